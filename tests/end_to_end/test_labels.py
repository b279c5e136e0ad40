"""Labels of tasks and previews of arguments, from the submission to the views."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spoolpool import Executor, Submission, settings
from spoolpool.calls.results import remote_traceback
from spoolpool.client.map import ChunkSize
from spoolpool.errors import BadRequest
from spoolpool.format.headers import Failure
from spoolpool.monitor.query import Query
from spoolpool.monitor.report.page import page
from spoolpool.monitor.report.summary import summarize
from spoolpool.monitor.selection import select
from spoolpool.protocol import journal
from spoolpool.protocol.spool import Spool
from tests.conftest import Workers
from tests.end_to_end.test_cli_tasks import run
from tests.support import tasks
from tests.support.task_files import put
from tests.support.waiting import LIMIT

HOSTILE = "<b>\x1b[31m&"


def labels(spool: Spool) -> list[tuple[str, str]]:
    """Names and labels of the tasks in the order of their submission."""
    views = sorted(select(spool, Query()), key=lambda view: view.id)
    return [(view.name, view.label) for view in views]


@pytest.fixture
def attached(spool: Spool) -> Callable[..., Executor]:
    """Executors of a spool that no group serves; their tasks stay there."""

    def make(**options: Any) -> Executor:
        return Executor(spool=spool.path, session="labels", **options)

    return make


def test_header_has_the_label_or_a_preview(spool: Spool, attached: Callable[..., Executor]) -> None:
    executor = attached()
    futures = [executor.submit(pow, 2, 5, resource_dict={"label": "two to five"}), executor.submit(pow, 2, 6)]
    assert labels(spool) == [("pow", "two to five"), ("pow", "(2, 6)")]
    assert "pow two to five pending" in repr(futures[0])
    assert "pow (2, 6) pending" in repr(futures[1])
    assert "<th>label</th><td>two to five</td>" in futures[0]._repr_html_()  # type: ignore[attr-defined]
    executor.detach()


def test_preview_can_be_switched_off(
    spool: Spool, attached: Callable[..., Executor], monkeypatch: pytest.MonkeyPatch
) -> None:
    for executor in (
        attached(submission=Submission(preview=False)),
        (monkeypatch.setenv(settings.ENV_PREVIEW, "false"), attached())[1],
    ):
        executor.submit(pow, 2, 5)
        executor.detach()
    executor = attached(submission=Submission(preview=True))
    executor.submit(pow, 2, 6)
    executor.detach()
    assert labels(spool) == [("pow", ""), ("pow", ""), ("pow", "(2, 6)")]


def test_map_labels_its_calls(spool: Spool, attached: Callable[..., Executor]) -> None:
    executor = attached()
    executor.map(pow, [1, 2], [3, 4], label=lambda base, power: f"{base} to {power}")
    executor.map(pow, [1, 2, 3], [3, 4, 5], label=lambda base, power: f"{base} to {power}", chunksize=3)
    executor.map(pow, [1, 2], [3, 4], label="powers")
    executor.map(pow, [1, 2], [3, 4], chunksize=2)
    assert labels(spool) == [
        ("pow", "1 to 3"),
        ("pow", "2 to 4"),
        ("pow x3", "1 to 3 ... 3 to 5"),
        ("pow", "powers"),
        ("pow", "powers"),
        ("pow x2", "(1, 3 ... 2, 4)"),
    ]
    for label, calls in ((7, [1]), (lambda base, power: base, [1])):
        with pytest.raises(BadRequest, match="label"):
            executor.map(pow, calls, calls, label=label)  # type: ignore[arg-type]
    executor.detach()


def test_label_does_not_change_the_key_of_a_call(spool: Spool) -> None:
    from spoolpool import Session

    for label in ("one", "two"):
        executor = Executor(spool=spool.path, session=Session("s", resume=True))
        executor.submit(pow, 2, 5, resource_dict={"label": label})
        executor.detach()
    assert labels(spool) == [("pow", "one")]


def test_commands_have_labels(spool: Spool, tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    lines.write_text("Al\nCu\n")
    assert run("run", spool.path, "--label", "first", "--", "true").exit_code == 0
    assert run("submit", spool.path, "math:hypot", "--arg", "3", "--arg", "4", "--label", "second").exit_code == 0
    assert run("submit", spool.path, "math:hypot", "--arg", "3", "--arg", "4").exit_code == 0
    series = ["run", spool.path, "--label", "relax {}", "--session", "s", "--no-wait"]
    assert run(*series, "--each-line", lines, "--", "echo", "{}").exit_code == 0
    assert run(*series, "--array", "7", "--", "echo").exit_code == 0
    assert labels(spool) == [
        ("true", "first"),
        ("math.hypot", "second"),
        ("math.hypot", "(3, 4)"),
        ("echo Al", "relax Al"),
        ("echo Cu", "relax Cu"),
        ("echo 7", "relax 7"),
    ]


def test_calls_of_a_pack_have_labels(spool: Spool) -> None:
    executor = Executor(spool=spool.path, submission=Submission(pack=True))
    futures = [executor.submit(pow, number, 2, resource_dict={"label": f"nr {number}"}) for number in range(4)]
    packer = executor._packer
    assert packer is not None
    packer.functions.of(pow).size = ChunkSize(100)
    futures += [executor.submit(pow, number, 2, resource_dict={"label": f"nr {number}"}) for number in range(4, 8)]
    futures += [executor.submit(pow, 9, 2)]
    assert "nr 5" in repr(futures[5]) and "(9, 2)" in repr(futures[8])
    packer.flush()
    found = [view.label for view in select(spool, Query()) if view.location.task_file.calls]
    assert sorted(found) == ["(9, 2)", "nr 4", "nr 5", "nr 6", "nr 7"]
    for future in futures:
        future.cancel()
    executor.shutdown()


def test_traceback_journal_and_report_name_the_label(spool: Spool, worker: Workers) -> None:
    group = worker(spool)
    with Executor(spool=spool.path) as executor:
        label = {"label": HOSTILE}
        error = executor.submit(tasks.fail_deeper, "so", resource_dict=label).exception()
        assert error is not None and r"fail_deeper <b>\x1b[31m&" in str(remote_traceback(error))
        error = executor.submit(tasks.fail_deeper, "so").exception()
        assert error is not None and "('so')" in str(remote_traceback(error))
    group.terminate()
    group.wait(LIMIT)  # then its journal is complete
    ended = [each.event.label for each in journal.lines(spool) if each.event.event == "task"]
    assert sorted(ended) == ["('so')", HOSTILE]
    html = "".join(page(summarize(spool)))
    assert "&lt;b&gt;" in html and "<b>\x1b" not in html


# -- spool ls


@pytest.fixture
def listed(spool: Spool) -> dict[str, str]:
    """Ids of tasks with labels and ages."""
    return {
        "Cu": put(spool, "waiting", name="model.relax", label="Cu fcc", ago=60),
        "Al": put(spool, "waiting", name="model.relax", label="Al fcc", ago=7200),
        "fit": put(spool, "done", name="fit", arguments="3, steps=5", ago=600),
        "bad": put(spool, "waiting", name="fit", label=HOSTILE, ago=10),
    }


def ids(*words: object) -> list[str]:
    result = run("ls", "--json", *words)
    assert result.exit_code == 0, result.stderr
    return [json.loads(line)["task"] for line in result.stdout.splitlines()]


def test_ls_has_a_header_line_and_escapes_labels(spool: Spool, listed: dict[str, str]) -> None:
    lines = run("ls", spool.path).stdout.splitlines()
    assert lines[0].split() == ["TASK", "STATE", "AGE", "USER", "LANE", "NAME", "LABEL"]
    assert len(lines) == 1 + len(listed)
    (bad,) = (line for line in lines if listed["bad"][-10:] in line)
    assert bad.endswith(r"<b>\x1b[31m&")
    (fit,) = (line for line in lines if listed["fit"][-10:] in line)
    assert fit.endswith("fit             (3, steps=5)")
    assert len(run("ls", spool.path, "--no-header").stdout.splitlines()) == len(listed)


def test_ls_filters_by_label_function_and_age(spool: Spool, listed: dict[str, str]) -> None:
    for words, wanted in (
        (["--label", "Al *"], ["Al"]),
        (["--label", "* fcc"], ["Al", "Cu"]),
        (["--label", "3, steps=*"], ["fit"]),
        (["--label", "nothing"], []),
        (["--function", "relax"], ["Al", "Cu"]),
        (["--newer-than", "5m"], ["Cu", "bad"]),
        (["--newer-than", "1h", "--older-than", "5m"], ["fit"]),
    ):
        assert ids(spool.path, *words, "--sort", "submitted") == [listed[name] for name in wanted], words


def test_ls_sorts_by_any_column(spool: Spool, listed: dict[str, str]) -> None:
    by_age = [listed[name] for name in ("bad", "Cu", "fit", "Al")]
    assert ids(spool.path, "--sort", "age") == by_age
    assert ids(spool.path, "--sort", "age", "--reverse") == by_age[::-1]
    assert ids(spool.path, "--sort", "age", "-n", "2") == by_age[:2]
    assert ids(spool.path, "--sort", "age", "-r", "-n", "1") == by_age[3:]
    assert ids(spool.path, "--sort", "label")[-1] == listed["Cu"]
    from spoolpool.cli.task_columns import COLUMNS

    for name in COLUMNS:
        assert sorted(ids(spool.path, "--sort", name)) == sorted(listed.values()), name


def test_ls_prints_the_chosen_columns(spool: Spool, listed: dict[str, str]) -> None:
    from spoolpool.cli.task_columns import COLUMNS

    words = [spool.path, "--state", "done"]
    lines = run("ls", *words, "--columns", "label,task,name").stdout.splitlines()
    assert [line.split() for line in lines] == [
        ["LABEL", "TASK", "NAME"],
        ["(3,", "steps=5)", listed["fit"][-10:], "fit"],
    ]
    found = json.loads(run("ls", *words, "--json", "--columns", ",".join(COLUMNS)).stdout)
    assert list(found) == list(COLUMNS)
    assert found["arguments"] == "3, steps=5" and found["ran"] == pytest.approx(8, abs=0.1)
    assert run("ls", *words, "--columns", ",".join(COLUMNS)).exit_code == 0
    for columns in ("nothing", "", "task,,nothing"):
        result = run("ls", *words, "--columns", columns)
        assert result.exit_code == 2 and "the columns are task, state" in result.stderr


def test_show_and_status_tell_the_label(spool: Spool, listed: dict[str, str]) -> None:
    assert "Label      Al fcc" in run("show", spool.path, listed["Al"]).stdout
    assert "Arguments  3, steps=5" in run("show", spool.path, listed["fit"]).stdout
    assert r"\x1b[31m" in run("show", spool.path, listed["bad"]).stdout


def test_unknown_hosts_leave_no_gap(spool: Spool) -> None:
    failure = Failure(type="ValueError", message="bad", traceback="here\n")
    task = put(spool, "raised", host="", failure=failure)
    put(spool, "running", host="")
    shown = run("show", spool.path, "--name", "*").stdout
    assert " on  " not in shown and " on:" not in shown and " on :" not in shown and "(rank 0)" in shown
    assert "host unknown" in run("traceback", spool.path, task).stdout
