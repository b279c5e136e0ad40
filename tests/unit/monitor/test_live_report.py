"""Report page that is rewritten while it is open: the command, and the page in a browser."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click.testing
import pytest

from spoolpool import settings
from spoolpool.cli.spool import main
from spoolpool.errors import BadRequest
from spoolpool.format.names import new_worker_id
from spoolpool.monitor.report.page import Rewriting, page
from spoolpool.monitor.report.summary import summarize
from spoolpool.protocol.spool import Spool
from tests.support import browser
from tests.support.browser import Browser
from tests.support.waiting import LIMIT, wait_until

BEGIN = 1_760_000_000.0


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool.create(tmp_path / "spool", durability="none")


def write_tasks(spool: Spool, number: int, host: str = "node1") -> None:
    """Write the journal of a group that ran so many tasks, and that was idle before and after them."""
    worker, lines = new_worker_id(), []
    base = {"by": worker, "uid": 0, "host": host}
    lines.append({"t": BEGIN, "event": "worker started", "job": "4711", "ranks": 2, **base})
    for index in range(number):
        start = BEGIN + 10 + 2 * index
        task = f"499-{int(start * 1e6):014x}-{random.getrandbits(40):010x}"
        times = {"submitted": start - 5, "started": start, "ended": start + 1 + index / 50, "ran": 0.9}
        kind = {"kind": "error", "type": "ValueError"} if index % 5 == 4 else {"kind": "result"}
        lines.append({"t": start + 2, "event": "task", "task": task, "name": "study.relax", **kind, **times, **base})
    lines.append({"t": BEGIN + 20 + 2 * number, "event": "worker ended", **base})
    path = Path(spool.layout.journal, f"{worker}.jsonl")
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def run(*words: object) -> click.testing.Result:
    arguments = [str(each) for each in words]
    return click.testing.CliRunner().invoke(main, arguments, prog_name="spool", env={settings.ENV_SPOOL: None})


def figures(path: Path) -> dict[str, Any]:
    """Return the data of a page, which must be whole."""
    text = path.read_text(encoding="utf-8")
    assert text.endswith("</html>\n")
    found: dict[str, Any] = json.loads(text.split('id="data">')[1].split("</script>")[0])
    return found


# ------------------------------------------------------------------------------------- the command


def start_watching(spool: Spool, output: Path, *options: str) -> subprocess.Popen[str]:
    # a process in the background of a shell ignores SIGINT, and passes that on
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.argv[0] = 'spool'"
    code += "; from spoolpool.cli.spool import main; main()"
    command = [sys.executable, "-c", code, "report", spool.path, "-o", str(output), *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_page_is_rewritten_until_a_signal_and_the_last_one_stays(spool: Spool, number: int) -> None:
    output = Path(spool.path).with_name("report.html")
    process = start_watching(spool, output, "--watch", "0.2")
    try:
        wait_until(output.exists, "there is no page")
        first = figures(output)
        assert (first["every"] >= 0.2, first["rows"]) == (True, [])
        write_tasks(spool, 3)
        wait_until(lambda: bool(figures(output)["rows"]), "the page has no new group")
        inode = output.stat().st_ino
        wait_until(lambda: output.stat().st_ino != inode, "the page is not replaced by a new file")
        write_tasks(spool, 4)
        process.send_signal(number)
        _, said = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, said
    assert "Ctrl-C ends this" in said
    assert "7 done" in said or "raised" in said
    last = figures(output)
    assert (last["every"], len(last["rows"])) == (0, 2)
    text = output.read_text(encoding="utf-8")
    assert "Last page, written" in text
    assert 'http-equiv="refresh"' not in text
    assert [path.name for path in output.parent.glob(".report*")] == [], "no temporary file is left"


@pytest.mark.parametrize(
    "words", [("--watch", "SPOOL"), ("SPOOL", "--watch"), ("SPOOL", "--watch", "7"), ("SPOOL", "--watch=7s")]
)
def test_seconds_of_a_watch_can_be_left_out(
    spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    waited = []

    def interrupt(backoff: Any) -> None:
        waited.append(backoff.first)
        raise KeyboardInterrupt

    monkeypatch.setattr("spoolpool.cli.report.Backoff.sleep", interrupt)
    arguments = [spool.path if word == "SPOOL" else word for word in words]
    result = run("report", "-o", tmp_path / "report.html", *arguments)
    assert result.exit_code == 0, result.output
    assert waited == [7.0 if "7" in words[-1] else 5.0]


@pytest.mark.parametrize("options", [["--svg", "x.svg"], ["-o", "x.html", "--png", "x.png"]])
def test_watch_needs_a_page_and_no_pictures(spool: Spool, options: list[str]) -> None:
    result = run("report", spool.path, "--watch", *options)
    assert result.exit_code == BadRequest.exit_code
    assert "-o report.html" in result.stderr


def test_watch_ends_at_a_path_that_cannot_be_written(spool: Spool, tmp_path: Path) -> None:
    result = run("report", spool.path, "--watch", "-o", tmp_path / "missing" / "report.html")
    assert result.exit_code == 1
    assert "report.html" in result.stderr


def test_full_disk_delays_the_page(spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, rounds = tmp_path / "report.html", []
    real = os.replace

    def full(source: str, target: str) -> None:
        if len(rounds) == 1:
            raise OSError(28, "No space left on device", target)
        real(source, target)

    def next_round(_: Any) -> None:
        rounds.append(1)
        if len(rounds) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", full)
    monkeypatch.setattr("spoolpool.cli.report.Backoff.sleep", next_round)
    assert run("report", spool.path, "--watch", "-o", output).exit_code == 0
    assert "Last page" in output.read_text(encoding="utf-8")


# ---------------------------------------------------------------------------------------- the page


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    reason = browser.missing()
    if reason:
        pytest.skip(reason)
    opened = Browser(tmp_path_factory.mktemp("browser"))
    opened.resize(1200, 700)
    yield opened
    opened.close()


def write(spool: Spool, path: Path, every: float | None, *, written: float | None = None) -> None:
    summary = summarize(spool)
    summary.created = written or summary.created
    new = path.with_suffix(".new")
    new.write_text(page(summary, None if every is None else Rewriting(every)), encoding="utf-8")
    new.replace(path)


def said(opened: Browser) -> str:
    found: str = opened.run("document.getElementById('written').textContent")
    return found


def is_loaded_with(opened: Browser, written: float) -> bool:
    script = (
        f"document.readyState === 'complete' && typeof data === 'object' && data.written === {round(written * 1000)}"
    )
    try:
        return bool(opened.run(script))
    except AssertionError:  # the page is being loaded
        return False


def test_page_reloads_itself(chromium: Browser, spool: Spool, tmp_path: Path) -> None:
    path, now = tmp_path / "report.html", time.time()
    write_tasks(spool, 3)
    write(spool, path, 0.2, written=now)
    with contextlib.suppress(AssertionError):  # the page reloads itself while it is looked at
        chromium.open(path)
    write(spool, path, 3600.0, written=now + 1)
    wait_until(lambda: is_loaded_with(chromium, now + 1), "the page does not reload itself")


def test_reload_keeps_position_sections_range_and_focus(chromium: Browser, spool: Spool, tmp_path: Path) -> None:
    path, now = tmp_path / "report.html", time.time()
    write_tasks(spool, 30)
    write(spool, path, 3600.0, written=now)
    chromium.open(path)
    chromium.run("document.getElementById('hosts').open = false")
    chromium.run("document.getElementById('rows').focus()")
    for key in ("ArrowDown", "ArrowRight", "+"):
        chromium.key(key)
    chromium.run("scrollTo(0, 220)")
    shown = "({from: view.from, to: view.to, hint: document.getElementById('hint').textContent, y: scrollY})"
    before = chromium.run(shown)
    assert before["to"] - before["from"] < chromium.run("span")
    assert "study.relax" in before["hint"]
    write_tasks(spool, 40, host="node2")
    write(spool, path, 3600.0, written=now + 1)
    chromium.run("reload()")
    wait_until(lambda: is_loaded_with(chromium, now + 1), "the page does not show the new file")
    after = chromium.run(shown)
    assert (after.pop("hint"), after) == (before.pop("hint"), pytest.approx(before))
    assert before["y"] == 220
    assert chromium.run("document.getElementById('hosts').open") is False
    assert chromium.run("document.getElementById('functions').open") is True
    assert chromium.run("document.activeElement.id") == "rows"
    assert chromium.complaints() == []


def test_page_is_not_reloaded_while_text_is_selected(chromium: Browser, spool: Spool, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_tasks(spool, 3)
    write(spool, path, 3600.0)
    chromium.open(path)
    assert chromium.run("isInUse()") is False
    chromium.run("getSelection().selectAllChildren(document.querySelector('h1'))")
    assert chromium.run("isInUse()") is True


def test_page_tells_its_age(chromium: Browser, spool: Spool, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_tasks(spool, 3)
    write(spool, path, 3600.0)
    chromium.open(path)
    assert re.fullmatch(r"Written (just now|\d+ s ago); rewritten every 60 min\.", said(chromium))
    write(spool, path, 3600.0, written=time.time() - 7 * 86400)
    chromium.open(path)
    assert said(chromium).startswith("Stale: written 7 d ago")
    assert chromium.run("document.getElementById('written').className") == "stale"
    write(spool, path, 0.0)
    chromium.open(path)
    assert said(chromium).startswith("Last page, written")
    assert chromium.run("data.every") == 0
    write(spool, path, None)
    chromium.open(path)
    assert chromium.run("document.getElementById('written')") is None


def test_groups_tasks_and_classes_are_named_by_the_keyboard(chromium: Browser, spool: Spool, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_tasks(spool, 10)
    write_tasks(spool, 0, host="node2")
    write(spool, path, None)
    chromium.open(path)
    ids = []
    for _ in range(14):
        chromium.key("Tab")
        ids.append(chromium.run("document.activeElement.id"))
    assert {"rows", "levels", "durations", "waits", "b-in", "b-all"} <= set(ids)
    chromium.run("document.getElementById('rows').focus()")
    hint = "document.getElementById('{}').textContent"
    chromium.key("ArrowDown")
    assert "10 task(s)" in chromium.run(hint.format("hint"))
    chromium.key("ArrowRight")
    assert re.search(r"study\.relax \([0-9a-f]{10}\), 1\.00 s", chromium.run(hint.format("hint")))
    for _ in range(4):
        chromium.key("ArrowRight")
    assert chromium.run(hint.format("hint")).endswith(", failed")
    chromium.key("ArrowDown")
    assert "on node2, job 4711, 2 rank(s), 0 task(s)" in chromium.run(hint.format("hint"))
    chromium.run("document.getElementById('durations').focus()")
    chromium.key("ArrowRight")
    assert re.search(r"\d+ ms to .*: \d+ tasks?$", chromium.run(hint.format("durations-hint")))
    assert chromium.complaints() == []


def test_idle_group_is_drawn(chromium: Browser, spool: Spool, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_tasks(spool, 0)
    write(spool, path, None)
    chromium.open(path)
    assert chromium.run("rows.length") == 1
    pixel = "Array.from(document.getElementById('rows').getContext('2d').getImageData({}, {}, 1, 1).data)"
    inside, below = chromium.run(pixel.format(600, 10)), chromium.run(pixel.format(600, 30))
    assert inside[3] == 255 and inside != below


@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("number", [0, 1, 10, 4000])
def test_no_label_of_a_chart_is_cut(chromium: Browser, spool: Spool, tmp_path: Path, width: int, number: int) -> None:
    path = tmp_path / "report.html"
    if number:
        write_tasks(spool, number)
    write(spool, path, None)
    chromium.resize(width, 700)
    try:
        chromium.open(path)
        drawn = chromium.run(
            """(() => {
                const found = [], real = CanvasRenderingContext2D.prototype.fillText;
                CanvasRenderingContext2D.prototype.fillText = function (text, x, y, most) {
                    const long = Math.min(this.measureText(text).width, most || Infinity);
                    const left = { left: x, center: x - long / 2, right: x - long }[this.textAlign] ?? x;
                    found.push([this.canvas.id, text, left, left + long, this.canvas.clientWidth]);
                    real.apply(this, arguments);
                };
                all();
                CanvasRenderingContext2D.prototype.fillText = real;
                return found;
            })()"""
        )
        cut = [each for each in drawn if each[2] < -0.5 or each[3] > each[4] + 0.5]
        assert cut == []
        counts = [text for name, text, *_ in drawn if name == "levels" and re.fullmatch(r"[\d.,]+", text)]
        assert len(counts) >= 2
        assert not any("." in text for text in counts), "a count is whole"
        assert not chromium.run("document.documentElement.scrollWidth > innerWidth"), "nothing scrolls sideways"
        assert chromium.complaints() == []
    finally:
        chromium.resize(1200, 700)
