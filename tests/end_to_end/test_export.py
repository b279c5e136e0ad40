"""``spool export``: counts and events for Prometheus, spreadsheets and data frames."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import click.testing
import pytest

from spoolpool import settings
from spoolpool.cli.spool import main
from spoolpool.monitor import export
from spoolpool.monitor.export import COUNT_COLUMNS, EVENT_COLUMNS
from spoolpool.protocol.journal import Journal, submitters_journal
from spoolpool.protocol.spool import Spool
from tests.support.fake_worker import announce, unknown_process
from tests.support.task_files import put


def run(*words: object) -> click.testing.Result:
    return click.testing.CliRunner().invoke(
        main, ["export", *map(str, words)], prog_name="spool", env={settings.ENV_SPOOL: None}
    )


@pytest.fixture
def filled(spool: Spool) -> Spool:
    """Spool with tasks in several states, a group, and events of which one has an odd name."""
    for _ in range(3):
        put(spool, "waiting")
    put(spool, "raised")
    announce(spool, unknown_process())
    journal = Journal(spool, submitters_journal(), "session")
    for name in ("f", 'odd "name", \\ and\nline \u2028'):
        journal.write("submitted", task="499-0660e6e464b511-22dc7470", name=name)
    journal.close()
    return spool


SAMPLE = re.compile(r'(spoolpool_\w+)\{((?:\w+="(?:[^"\\\n]|\\["\\n])*",?)+)\} (\S+)')


def samples(text: str) -> dict[tuple[str, str], float]:
    """Return the samples of a text by the rules of the format; fail for a line that is none."""
    found = {}
    for line in text.splitlines():
        if not line.startswith("# "):
            match = SAMPLE.fullmatch(line)
            assert match is not None, line
            found[match[1], match[2]] = float(match[3])
    return found


def test_counts_for_prometheus(filled: Spool, tmp_path: Path) -> None:
    path = tmp_path / "spool.prom"
    path.write_text("earlier", encoding="utf-8")
    assert run(filled.path, "--format", "prometheus", "-o", path).exit_code == 0
    text = path.read_text(encoding="utf-8")
    found = samples(text)
    by_state = {
        state: number
        for (name, labels), number in found.items()
        if name == "spoolpool_tasks"
        for state in re.findall('state="(.*?)"', labels)
    }
    assert by_state == {"waiting": 3, "raised": 1}
    groups = {labels: number for (name, labels), number in found.items() if name == "spoolpool_groups"}
    assert sum(groups.values()) == 1
    names = re.findall(r"^# TYPE (\S+) gauge$", text, re.MULTILINE)
    assert {name for name, _ in found} <= set(names)
    assert os.listdir(tmp_path).count("spool.prom") == 1
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".spool.prom")]


def test_labels_of_prometheus_are_escaped() -> None:
    assert export._labels({"a": 'x"\\\n'}) == 'a="x\\"\\\\\\n"'
    assert export._labels({"a": "x\udcff"}) == 'a="x\\\\udcff"'


def test_bytes_of_a_path_that_are_not_utf8_are_escaped_in_json() -> None:
    assert list(export.json_lines([{"spool": "/x\udcff", "tasks": 1}])) == [b'{"spool":"/x\\\\udcff","tasks":1}\n']


def test_controls_of_a_terminal_are_escaped_there_alone(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(spool, submitters_journal(), "session")
    journal.write("submitted", task="499-0660e6e464b511-22dc7470", name="\x1b[2J")
    journal.close()
    assert "\x1b" in run(spool.path, "--format", "csv", "--journal").stdout
    monkeypatch.setattr(click.testing._NamedTextIOWrapper, "isatty", lambda _: True)
    shown = run(spool.path, "--format", "csv", "--journal").stdout
    assert "\x1b" not in shown and "\\x1b[2J" in shown and shown.count("\n") == 2


def test_pipe_is_written_to_and_not_replaced(filled: Spool, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert run(filled.path, "--format", "csv", "-o", pipe).exit_code == 0
        assert os.read(reader, 1 << 16).startswith(b"spool,time,")
    finally:
        os.close(reader)
    assert pipe.is_fifo()


def test_link_to_a_file_stays_and_the_file_keeps_its_mode(filled: Spool, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "counts", tmp_path / "link"
    target.write_text("earlier", encoding="utf-8")
    target.chmod(0o640)
    link.symlink_to(target)
    assert run(filled.path, "--format", "csv", "-o", link).exit_code == 0
    assert link.is_symlink()
    assert target.read_text(encoding="utf-8").startswith("spool,time,")
    assert target.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("options", [[], ["--journal"]])
def test_json_and_csv_have_the_same_rows(filled: Spool, options: list[str]) -> None:
    lines = run(filled.path, "--format", "json", *options).stdout.split("\n")[:-1]
    table = list(csv.DictReader(io.StringIO(run(filled.path, "--format", "csv", *options).stdout, newline="")))
    rows = [json.loads(line) for line in lines]
    assert len(rows) == len(table) == 2
    columns = EVENT_COLUMNS if options else COUNT_COLUMNS
    assert list(table[0]) == list(columns)
    for row, entry in zip(rows, table, strict=True):
        for name, value in row.items():
            if name not in ("t", "time", "name"):
                assert entry[name] == str(value)
    if options:
        assert [row["name"] for row in table] == [row["name"] for row in rows]


def test_events_since_a_time(filled: Spool) -> None:
    assert run(filled.path, "--format", "json", "--journal", "--since", "1d").stdout.count("\n") == 2
    assert run(filled.path, "--format", "json", "--journal", "--since", "2999-01-01").stdout == ""


@pytest.mark.parametrize("options", [[], ["--journal"]])
def test_parquet_has_the_rows_and_their_types(filled: Spool, tmp_path: Path, options: list[str]) -> None:
    parquet: Any = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "rows.parquet"
    done = run(filled.path, "--format", "parquet", "-o", path, *options)
    assert done.exit_code == 0, done.stderr
    table = parquet.read_table(path)
    assert table.num_rows == 2
    assert table.column_names == list(EVENT_COLUMNS if options else COUNT_COLUMNS)


def test_parquet_without_pyarrow_names_it(filled: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    done = run(filled.path, "--format", "parquet", "-o", tmp_path / "rows.parquet")
    assert done.exit_code != 0
    assert "pip install pyarrow" in done.stderr
    assert os.listdir(tmp_path) == ["spool"]


@pytest.mark.parametrize(
    "words", [["prometheus", "--journal"], ["csv", "--since", "1d"], ["parquet"], ["csv", "-o", "/nowhere/file"]]
)
def test_options_that_do_not_fit_are_refused(filled: Spool, words: list[str]) -> None:
    done = run(filled.path, "--format", *words)
    assert done.exit_code != 0
    assert done.stderr.startswith("spool export: ")
