"""Report of the journals: statistics, the page in a browser, and pictures."""

from __future__ import annotations

import html
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click.testing
import pytest

from spoolpool import Executor, settings
from spoolpool.cli.spool import main
from spoolpool.errors import BadRequest
from spoolpool.format.names import new_task_id, new_worker_id
from spoolpool.monitor import ends
from spoolpool.monitor.ends import EndCounter
from spoolpool.monitor.report.page import page
from spoolpool.monitor.report.series import Bar, Bars, Distribution, Level
from spoolpool.monitor.report.summary import summarize
from spoolpool.monitor.states import STATES, end_after
from spoolpool.protocol.journal import Event
from spoolpool.protocol.spool import Spool
from spoolpool.system.processes import ProcessId
from tests.conftest import Workers
from tests.support import browser, tasks
from tests.support.browser import Browser
from tests.support.fake_worker import announce
from tests.support.task_files import put

BEGIN = 1_760_000_000.0


def run(*arguments: object) -> click.testing.Result:
    words = [str(each) for each in arguments]
    return click.testing.CliRunner().invoke(main, words, prog_name="spool", env={settings.ENV_SPOOL: None})


class Writer:
    """Writer of the journal of a worker."""

    def __init__(self, spool: Spool, host: str = "node1", begin: float = BEGIN) -> None:
        self.worker = new_worker_id()
        self.now = begin
        self._host = host
        self._file = open(f"{spool.layout.journal}/{self.worker}.jsonl", "w", encoding="utf-8")  # noqa: SIM115
        self.write("worker started", job="4711", ranks=2)

    def write(self, event: str, **fields: Any) -> None:
        about = {"t": self.now, "event": event, "by": self.worker, "uid": 0, "host": self._host}
        self._file.write(json.dumps({**about, **fields}) + "\n")

    def task(self, seconds: float, *, waited: float = 1.0, name: str = "module.relax", **fields: Any) -> None:
        started, self.now = self.now, self.now + seconds
        task = f"499-{int(started * 1e6):014x}-{random.getrandbits(40):010x}"
        times = {"submitted": started - waited, "started": started, "ended": self.now, "ran": seconds * 0.9}
        self.write("task", **{"task": task, "name": name, "kind": "result", "published": True, **times, **fields})

    def end(self) -> None:
        self.write("worker ended")
        self._file.close()


# ------------------------------------------------------------------------------------- statistics


def test_average_over_time_is_exact_for_any_time_range() -> None:
    level = Level(most=16, step=0.25)
    intervals = [(BEGIN + 10 * n, BEGIN + 10 * n + 5) for n in range(100)] + [(BEGIN - 500, BEGIN + 900)]
    for begin, end in intervals:
        level.add(begin, end)
    first, values = level.values()
    assert len(values) <= 16
    assert first <= BEGIN - 500 < first + level.step
    assert sum(values) * level.step == pytest.approx(100 * 5 + 1400, rel=1e-3)
    middle = int((BEGIN - 250 - first) // level.step)
    assert values[middle] == pytest.approx(1.0)


def test_short_intervals_are_weighted_by_their_length() -> None:
    level = Level(step=1.0)
    for n in range(100):
        level.add(BEGIN + n / 100, BEGIN + n / 100 + 0.005)
    assert level.values()[1] == [0.5]


def test_empty_intervals_have_no_average() -> None:
    assert Level().values() == (0.0, [])
    level = Level()
    level.add(5.0, 5.0)
    level.add(5.0, 4.0)
    assert level.values()[1] == []


def test_quantiles_have_an_error_of_ten_percent() -> None:
    random.seed(1)
    values = sorted(random.lognormvariate(0, 2) for _ in range(10_000))
    distribution = Distribution()
    for value in values:
        distribution.add(value)
    for share in (0.05, 0.5, 0.95):
        assert distribution.quantile(share) == pytest.approx(values[int(share * len(values))], rel=0.12)
    assert distribution.longest == values[-1]
    assert distribution.mean == pytest.approx(sum(values) / len(values))
    assert sum(count for _, count in distribution.classes()) == len(values)
    assert (Distribution().quantile(0.5), Distribution().mean, Distribution().classes()) == (0.0, 0.0, [])


def test_merged_bars_keep_all_counts() -> None:
    bars = Bars(most=500)
    for row in range(10):
        for n in range(1000):
            bars.add(str(row), Bar(BEGIN + n, BEGIN + n + 0.5 + (n == 7), n % 3, f"task{n}", failed=n == 500))
    kept = [bar for row in bars.rows.values() for bar in row]
    assert len(kept) <= 500
    assert sum(bar.count for bar in kept) == 10_000
    assert sum(bar.failed for bar in kept) == 10
    assert sum(bar.busy for bar in kept) == pytest.approx(5010)
    assert {bar.task for bar in (row[0] for row in bars.rows.values())} == {"task7"}, (
        "a merged bar has the name of its longest task"
    )


def test_rows_of_one_bar_each_are_not_merged() -> None:
    bars = Bars(most=10)
    for row in range(100):
        bars.add(str(row), Bar(BEGIN, BEGIN + 1, 0, "task", failed=False))
    assert sum(len(row) for row in bars.rows.values()) == 100


def test_journals_are_summarized(spool: Spool) -> None:
    first, second = Writer(spool), Writer(spool, host="node2", begin=BEGIN + 5)
    first.task(4.0, name="module.relax")
    first.task(1.0, name="module.fail", kind="error", type="ValueError")
    first.write("raised", name="module.fail", type="OSError", started=first.now - 1, ended=first.now, task="t")
    second.now += 5
    second.task(10.0)
    second.task(2.0, published=False)
    second.write("recovered", text="499-1: worker died; attempt 2 of 3 waits")
    first.end()
    second.end()
    Path(spool.layout.journal, f"{new_worker_id()}.jsonl").write_text('{"half of a li\n[]\n\x00\n{"t": "no"}\n')
    summary = summarize(spool)
    assert (summary.tasks, summary.retried, summary.recoveries, summary.dropped) == (3, 1, 1, 1)
    assert summary.ends == {"done": 2, "raised": 1}
    assert summary.end - summary.begin == 22
    names = summary.names
    assert {names[name]: each.count for name, each in summary.durations.items()} == {
        "module.relax": 3,
        "module.fail": 2,
    }
    assert {(names[name], kind): n for (name, kind), n in summary.failures.items()} == {
        ("module.fail", "ValueError"): 1,
        ("module.fail", "OSError"): 1,
    }
    assert summary.hosts() == {"node1": (1, 3, 6.0, 5.0), "node2": (1, 2, 12.0, 17.0)}
    assert summary.overhead.mean == pytest.approx(0.1 * 17 / 4)
    assert (summary.pauses.count, summary.waits.count) == (2, 4)


def test_spool_without_events_has_a_report(spool: Spool, tmp_path: Path) -> None:
    assert run("report", spool.path, "-o", tmp_path / "report.html").exit_code == 0
    assert "No events yet" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_finished_and_failed_tasks_are_reported(spool: Spool, worker: Workers, tmp_path: Path) -> None:
    serving = worker(spool)
    with Executor(spool=spool.path) as exe:
        futures = [exe.submit(abs, -n) for n in range(20)] + [exe.submit(tasks.fail, tasks.OwnError("no"))]
        futures.append(exe.submit(tasks.fail, OSError("no"), resource_dict={"retries": 1, "retry_delay": 0}))
    assert sum(future.exception() is not None for future in futures) == 2
    serving.terminate()
    assert serving.wait(60) == 0
    with Executor(spool=spool.path) as exe:
        waiting = exe.submit(abs, 1)
        summary = summarize(spool)
        assert waiting.cancel()
    assert (summary.tasks, summary.retried, summary.pending) == (22, 1, {"waiting": 1})
    assert summary.ends == {"done": 20, "raised": 2}
    assert summary.overhead.count == 22
    assert summary.pauses.count > 10
    [group] = summary.groups.values()
    assert (group.tasks, group.ranks) == (23, 1)
    result = run("report", spool.path, "-o", tmp_path / "report.html")
    assert result.stderr.endswith("report.html: 20 done, 2 raised, 1 cancelled; 1 group(s).\n")


PEAK = """
import resource, sys
from spoolpool.monitor.report.page import page
from spoolpool.monitor.report.summary import summarize
from spoolpool.protocol.spool import Spool
summary = summarize(Spool(sys.argv[1]))
text = page(summary)
print(summary.tasks, len(text), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_and_page_size_are_independent_of_the_number_of_tasks(tmp_path: Path) -> None:
    figures = []
    for count in (10_000, 50_000):
        spool = Spool.create(tmp_path / str(count))
        for _ in range(2):
            writer = Writer(spool)
            for n in range(count // 2):
                writer.task(0.01 + (n % 7) / 100, name=f"function{n % 50}")
            writer.end()
        result = subprocess.run([sys.executable, "-c", PEAK, spool.path], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        figures.append([int(word) for word in result.stdout.split()])
    assert [tasks_seen for tasks_seen, *_ in figures] == [10_000, 50_000]
    assert figures[1][1] < 4_000_000
    assert figures[1][2] < figures[0][2] + 25_000, "KiB of resident memory"


def test_png_and_svg_pictures_are_drawn(spool: Spool, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    writer = Writer(spool)
    for n in range(50):
        writer.task(1.0, name="module.$odd$" if n % 2 else "module.relax", kind="error" if n == 3 else "result")
    writer.end()
    png, svg = tmp_path / "report.png", tmp_path / "report.svg"
    assert run("report", spool.path, "--png", png, "--svg", svg).exit_code == 0
    assert png.read_bytes().startswith(b"\x89PNG\r\n")
    assert "<svg" in svg.read_text(encoding="utf-8")


def test_missing_matplotlib_is_reported_with_its_extra(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = run("report", spool.path, "--png", tmp_path / "report.png")
    assert result.exit_code == BadRequest.exit_code
    assert "spoolpool[report]" in result.stderr


def test_report_without_an_output_is_refused(spool: Spool) -> None:
    result = run("report", spool.path)
    assert result.exit_code == BadRequest.exit_code
    assert "-o report.html" in result.stderr


# ------------------------------------------------------------------------------------------- page

HOSTILE = "</script><script>hacked = 1</script><img src=x onerror='hacked = 1'>"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Page of three groups with hostile names."""
    directory = tmp_path_factory.mktemp("report")
    spool = Spool.create(directory / "spool <b>")
    random.seed(2)
    for host in ("node1", "node1", HOSTILE):
        writer = Writer(spool, host=host)
        for n in range(200):
            wrong = {"kind": "error", "type": HOSTILE} if n == 100 else {}
            writer.task(1 + random.random(), waited=30, name=HOSTILE if n % 5 == 0 else "module.relax", **wrong)
        writer.write("recovered", text=HOSTILE)
        writer.end()
    path = directory / "report.html"
    path.write_text(page(summarize(spool)), encoding="utf-8")
    return path


def test_page_is_self_contained_and_escaped(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    assert not re.search(r"https?://|//cdn|@import|url\(", text)
    assert HOSTILE not in text
    assert html.escape(HOSTILE) in text


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    reason = browser.missing()
    if reason:
        pytest.skip(reason)
    opened = Browser(tmp_path_factory.mktemp("browser"))
    yield opened
    opened.close()


@pytest.fixture
def opened(chromium: Browser, report: Path) -> Browser:
    chromium.open(report)
    return chromium


def canvas(opened: Browser, name: str) -> dict[str, float]:
    """Scroll to a canvas and return its rectangle in the window."""
    return opened.run(
        f"(() => {{ const c = document.getElementById('{name}'); c.scrollIntoView();"
        " const b = c.getBoundingClientRect(); return {x: b.x, y: b.y, width: b.width, height: b.height}; })()"
    )


def view(opened: Browser) -> tuple[float, float]:
    shown = opened.run("({from: view.from, to: view.to})")
    return shown["from"], shown["to"]


def colours(opened: Browser, name: str) -> int:
    """Return the number of colours in a canvas; an empty one has one."""
    return opened.run(
        f"(() => {{ const c = document.getElementById('{name}');"
        " const all = new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer);"
        " return new Set(all).size; })()"
    )


def test_page_loads_without_errors_and_requests(opened: Browser, report: Path) -> None:
    assert opened.complaints() == []
    assert opened.requests() == [report.as_uri()]
    assert opened.run("typeof hacked") == "undefined"
    assert all(colours(opened, name) > 3 for name in ("rows", "levels", "durations", "waits"))
    assert opened.run("document.documentElement.scrollWidth <= innerWidth")


def test_wheel_zooms_at_the_pointer(opened: Browser) -> None:
    where = canvas(opened, "rows")
    x, y = where["x"] + 150 + (where["width"] - 150) * 0.25, where["y"] + 20
    before = view(opened)
    opened.mouse("mouseWheel", x, y, deltaX=0, deltaY=-200)
    after = view(opened)
    assert after[1] - after[0] < 0.6 * (before[1] - before[0])
    at = [begin + 0.25 * (end - begin) for begin, end in (before, after)]
    assert at[1] == pytest.approx(at[0], rel=0.02)
    opened.mouse("mouseWheel", x, y, deltaX=0, deltaY=400)
    assert view(opened)[1] - view(opened)[0] > after[1] - after[0]
    for _ in range(60):
        opened.mouse("mouseWheel", x, y, deltaX=0, deltaY=-250)
    assert view(opened)[1] - view(opened)[0] == pytest.approx(1.0), "the shortest range is a millisecond"
    assert opened.complaints() == []


def test_drag_moves_both_charts_and_double_click_resets_them(opened: Browser) -> None:
    whole = view(opened)
    for name in ("rows", "levels"):
        where = canvas(opened, name)
        x, y = where["x"] + where["width"] / 2, where["y"] + 30
        opened.mouse("mouseWheel", x, y, deltaX=0, deltaY=-250)
        before = view(opened)
        opened.mouse("mousePressed", x, y, button="left", buttons=1, clickCount=1)
        opened.mouse("mouseMoved", x - 100, y, button="left", buttons=1)
        opened.mouse("mouseReleased", x - 100, y, button="left", clickCount=1)
        after = view(opened)
        assert after[1] - after[0] == pytest.approx(before[1] - before[0])
        assert after[0] - before[0] == pytest.approx(100 / (where["width"] - 150) * (before[1] - before[0]), rel=0.02)
        for count in (1, 2):
            opened.mouse("mousePressed", x, y, button="left", buttons=1, clickCount=count)
            opened.mouse("mouseReleased", x, y, button="left", clickCount=count)
        assert view(opened) == whole
    assert opened.complaints() == []


def test_pointer_over_a_bar_shows_its_task(opened: Browser) -> None:
    where = canvas(opened, "rows")
    y = where["y"] + 3 * 18 - 10  # the third row: the hostile host name sorts first
    opened.mouse("mouseMoved", where["x"] + where["width"] / 2, y)
    hint = opened.run("document.getElementById('hint').textContent")
    assert re.search(r"^node1 [0-9a-f]{4}: (module\.relax|</script>.*) \([0-9a-f]{10}\), 1\.\d+ s", hint)
    opened.mouse("mouseMoved", where["x"] + 20, y)
    assert "on node1, job 4711, 2 rank(s), 200 task(s)" in opened.run("document.getElementById('hint').textContent")


def test_number_of_drawn_boxes_is_limited_by_the_pixels(opened: Browser) -> None:
    """A row of 100 000 bars has at most one box per pixel."""
    opened.run(
        "(() => { const length = span / 2e5, rect = Path2D.prototype.rect; window.boxes = 0;"
        " rows[0].bars = Array.from({length: 100000}, (_, n) => [2 * n * length, length, 0, 1, length, 0, 't']);"
        " pack(rows[0]);"
        " Path2D.prototype.rect = function (...all) { window.boxes++; rect.apply(this, all); };"
        " drawRows(); })()"
    )
    assert 100 < opened.run("boxes") < 4000
    assert opened.complaints() == []


# ------------------------------------------------------------------------------------- ends of tasks


def event(name: str, task: str = "499-1", **fields: Any) -> Event:
    """Return an event of a journal."""
    return Event(t=fields.pop("t", 1.0), event=name, task=task, **fields)


@pytest.mark.parametrize(
    ("events", "end"),
    [
        ([event("submitted"), event("claimed")], None),
        ([event("task", kind="result")], "done"),
        ([event("task")], "done"),
        ([event("task", kind="error")], "raised"),
        ([event("task", kind="cancelled")], "cancelled"),
        ([event("task", kind="result", published=False)], None),
        ([event("raised"), event("task", kind="result")], "done"),
        ([event("recovered", kind="lost")], "lost"),
        ([event("recovered", kind="result")], "done"),
        ([event("recovered", kind="set aside")], "failed"),
        ([event("recovered")], None),
        ([event("given back")], None),
        ([event("given back", kind="lost")], "lost"),
        ([event("set aside")], "failed"),
        ([event("cancelled")], "cancelled"),
        ([event("cancel asked")], None),
        ([event("vanished")], "vanished"),
        ([event("task", kind="result"), event("vanished")], "vanished"),
        ([event("task", kind="result"), event("collected", kind="result"), event("removed")], "done"),
        ([event("removed")], "removed"),
        ([event("recovered", kind="lost"), event("retried")], None),
        ([event("recovered", kind="lost"), event("retried"), event("task", kind="result")], "done"),
        ([event("task", kind="a kind of a newer version")], None),
    ],
)
def test_end_of_a_task_is_told_by_its_last_event(events: list[Event], end: str | None) -> None:
    assert end_after(events) == end
    counter = EndCounter()
    for each in events:
        counter.read(each)
    assert counter.counts() == ({end: 1} if end else {})


def test_event_that_was_written_after_a_retry_and_is_older_is_ignored() -> None:
    counter = EndCounter()
    counter.read(event("retried", t=5.0))
    counter.read(event("collected", kind="lost", t=4.0))
    assert (counter.counts(), counter.without_end) == ({}, 1)
    counter.read(event("task", kind="result", t=6.0))
    assert counter.counts() == {"done": 1}


def test_more_tasks_than_are_remembered_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ends, "_TASKS", 100)
    counter = EndCounter()
    for number in range(1000):
        counter.read(event("submitted", f"task-{number}"))
        counter.read(event("task", f"task-{number}", kind="error" if number % 10 == 0 else "result"))
        if number >= 500:
            counter.read(event("collected", f"task-{number - 500}", kind="result"))
    assert counter.counts() == {"done": 900, "raised": 100}
    assert len(counter._ends) <= 100


def test_open_tasks_are_not_scanned_at_each_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ends, "_TASKS", 100)
    scans = 0
    settle = EndCounter._settle

    def count(counter: EndCounter) -> None:
        nonlocal scans
        scans += 1
        settle(counter)

    monkeypatch.setattr(EndCounter, "_settle", count)
    counter = EndCounter()
    for number in range(100):
        counter.read(event("submitted", f"open-{number}"))
    for number in range(1000):
        counter.read(event("submitted", f"task-{number}"))
        counter.read(event("task", f"task-{number}", kind="result"))
    assert (counter.counts(), counter.without_end) == ({"done": 1000}, 100)
    assert 1100 // 100 <= scans <= 1100 // 50, "each makes room for 50 tasks"
    for number in range(100):
        counter.read(event("task", f"open-{number}", kind="error"))
    assert (counter.counts(), counter.without_end) == ({"done": 1000, "raised": 100}, 0)


def test_ends_that_are_in_no_journal_are_read_in_the_spool(spool: Spool) -> None:
    for state in STATES:
        put(spool, state)
    lost = Writer(spool)
    lost.write("submitted", task="499-0661297741fbc4-853d4f17a5")
    lost.end()
    summary = summarize(spool)
    assert summary.ends == dict.fromkeys(("done", "raised", "lost", "cancelled", "failed"), 1)
    assert summary.pending == {"held": 1, "waiting": 1, "running": 1}
    assert (summary.unknown, summary.tasks) == (1, 6)
    assert "1 submitted task(s) are not in the spool any more" in page(summary)


@pytest.mark.parametrize("delivered", [False, True])
def test_times_of_a_task_that_no_worker_recorded_are_read_in_the_spool(spool: Spool, delivered: bool) -> None:
    worker = Writer(spool)
    task = put(spool, "raised", worker=worker.worker)
    gone = new_task_id()
    if delivered:
        worker.write("collected", task=task, kind="error")
    worker.write("collected", task=gone, kind="result")
    worker.task(1.0)
    worker._file.close()
    summary = summarize(spool)
    assert summary.ends == {"raised": 1, "done": 2}
    assert {summary.names[name]: each.count for name, each in summary.durations.items()} == {
        "some.function": 1,
        "module.relax": 1,
    }
    bars = summary.bars.rows[worker.worker]
    assert [bar.begin for bar in bars] == sorted(bar.begin for bar in bars)
    assert summary.failures == {(summary.names.index("some.function"), "ValueError"): 1}
    assert summary.untimed == 1
    assert "1 more task(s) have no times" in page(summary)


def test_group_that_died_was_busy_until_its_recovery(spool: Spool) -> None:
    dead = Writer(spool)
    dead.now += 10
    dead.write("claimed", task="499-1", name="module.relax", started=dead.now)
    dead.now += 30
    dead._file.close()
    other = Writer(spool, begin=dead.now)
    other.write(
        "recovered", task="499-1", name="module.relax", worker=dead.worker, kind="lost", reason="killed by SIGKILL"
    )
    other.end()
    summary = summarize(spool)
    group = summary.groups[dead.worker]
    assert (group.end - group.begin, group.busy, group.tasks) == (40.0, 30.0, 1)
    assert summary.failures == {(0, "lost: killed by SIGKILL"): 1}
    assert [bar.failed for bar in summary.bars.rows[dead.worker]] == [1]


def test_live_group_is_idle_after_its_last_task_and_busy_with_the_present_one(spool: Spool) -> None:
    now = time.time()
    idle, busy = (announce(spool, ProcessId.of(os.getpid())) for _ in range(2))
    for worker, last in ((idle, "task"), (busy, "claimed")):
        written = Writer(spool, begin=now - 100)
        os.rename(f"{spool.layout.journal}/{written.worker}.jsonl", f"{spool.layout.journal}/{worker}.jsonl")
        written.worker = worker
        written.now += 20
        written.write(last, task="499-1", name="f", kind="result", started=now - 100, ended=now - 80)
        written._file.close()
    summary = summarize(spool)
    shares = {name: group.busy / (group.end - group.begin) for name, group in summary.groups.items() if group.tasks}
    assert shares[idle] <= 0.2
    assert shares[busy] == pytest.approx(1.0)
