"""The benchmark measures, reports and explains. No test depends on a measured figure."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks import environments, harness, measures, processes, results, table, trace
from benchmarks.contender import OURS, Environment, Job
from benchmarks.contenders import executorlib
from benchmarks.row import Entry, Failed, Goal, Key, Quantity, Row, Sizes
from benchmarks.rows import ROWS
from tests.servers import moosefs

ROOT = Path(__file__).resolve().parents[2]
TINY = {
    "rounds": 2,
    "calls": 2,
    "tasks": 12,
    "mib": 1,
    "starts": 1,
    "traced": 2,
    "idle": 0.2,
    "waiting": 100,
    "crowd": 4,
    "size": 400,
    "seconds": 0.5,
}


# in parts that several processes can share; "shared" starts a server, and has its own test
PARTS = (
    ("latency", "backlog"),
    ("throughput", "crowd"),
    ("durability",),
    ("start",),
    ("arrays", "idle"),
    ("operations",),
    ("size",),
)


def test_every_row_is_measured_by_a_test():
    assert sorted(name for part in PARTS for name in part) == sorted(set(ROWS) - {"shared"})


@pytest.mark.mpi
@pytest.mark.slow
@pytest.mark.parametrize("rows", PARTS, ids="-".join)
def test_rows_without_peers_have_figures_of_all_own_entries_and_floors(rows, tmp_path, monkeypatch):
    pytest.importorskip("mpi4py")
    monkeypatch.setenv("SPOOLPOOL_VENV", sys.prefix)
    tiny = TINY | {"rounds": 2 if "durability" in rows else 1}  # one part shows that rounds are repeated
    sizes = [word for name, value in tiny.items() for word in (f"--{name}", str(value))]
    command = ["scripts/bench", *rows, "--quick", "--no-peers", "--json", str(tmp_path / "report.json"), *sizes]
    done = subprocess.run([*command, "--dir", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=500)
    report = json.loads((tmp_path / "report.json").read_text())

    traced = shutil.which("strace") is not None
    assert done.returncode == (0 if traced or "operations" not in rows else 1), done.stderr
    assert report["format"] == results.FORMAT
    assert report["sizes"] == tiny
    assert {"processor", "cores", "filesystem", "load", "python", "commit"} <= report["machine"].keys()
    assert list(report["environments"]) == ["spoolpool"]
    assert [row["name"] for row in report["rows"]] == list(rows)
    for row in report["rows"]:
        assert {"ours", "peer"} & {entry["role"] for entry in row["entries"]} == {"ours"}
        for entry in row["entries"]:
            if row["name"] == "operations" and not traced:
                assert "strace" in entry["missing"]
                continue
            assert entry["missing"] is None
            assert entry["figures"].keys() <= {quantity["name"] for quantity in row["quantities"]}
            assert entry["figures"]
            for figure in entry["figures"].values():
                assert figure["low"] <= figure["median"] <= figure["high"]
                assert figure["p10"] <= figure["p90"]
                assert len(figure["rounds"]) == (1 if row["once"] else tiny["rounds"])
                assert all(isinstance(value, (int, float)) for samples in figure["rounds"] for value in samples)
            assert entry["contender"] in done.stdout
    assert list(tmp_path.iterdir()) == [tmp_path / "report.json"]  # the directories of the measurement are removed


@pytest.mark.sharedfs
@pytest.mark.slow
def test_shared_filesystem_is_measured_with_submitter_and_group_on_different_mounts():
    if reason := moosefs.missing():
        pytest.skip(reason)
    entries = ROWS["shared"].entries(Sizes(calls=8, seconds=2.0))
    report = _report(*(entry for entry in entries if entry.role == "floor" or "none" in entry.key.case))
    ours, floor = report["rows"][0]["entries"]
    assert (ours["missing"], floor["missing"]) == (None, None)
    assert min(*ours["facts"].values(), *floor["facts"].values()) > 0
    assert ours["facts"].keys() == floor["facts"].keys() == {"at once", "after a pause"}


def test_shared_filesystem_that_cannot_be_started_is_reported_with_the_reason(monkeypatch):
    monkeypatch.setattr(moosefs, "missing", lambda: "needs root")
    report = _report(*(entry for entry in ROWS["shared"].entries(Sizes()) if entry.role != "peer"))
    assert ["needs root" in entry["missing"] for entry in report["rows"][0]["entries"]] == [True, True, True]


def test_calls_of_executorlib_read_their_files_through_the_other_mount(tmp_path, monkeypatch):
    job = Job(measure="latency", directory="/a/mount", elsewhere="/another", answer="", harness=0)
    monkeypatch.setattr(sys, "executable", sys.executable)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    script = tmp_path / "call.py"
    script.write_text("import sys; print(sys.argv[1])")
    executorlib.work_elsewhere(job)
    called = subprocess.run([sys.executable, script, "/a/mount/cache/x_i.h5"], capture_output=True, text=True)
    assert called.stdout == "/another/cache/x_i.h5\n"


def test_entry_may_take_part_in_fewer_rounds():
    turns = Counter()

    def entry(name, rounds):
        def take(place):
            turns[name] += 1
            return {"time": [float(turns[name])]}

        return _entry("ours", name, take, rounds=rounds, floor=Key("all"))

    report = _report(entry("all", None), entry("few", 2), entry("many", 9), rounds=3)
    assert turns == {"all": 3, "few": 2, "many": 3}
    assert report["rows"][0]["entries"][1]["figures"]["time"]["floor"] == pytest.approx(1.0)


def test_command_line_lists_its_rows_and_refuses_unknown_ones():
    ask = [sys.executable, "-m", "benchmarks"]
    told = subprocess.run([*ask, "--help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(name in told for name in ROWS)
    refused = subprocess.run([*ask, "latencies"], cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "latencies" in refused.stderr and "latency" in refused.stderr


def test_library_that_cannot_be_installed_is_reported_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setenv(environments.CACHE, str(tmp_path))
    nowhere = Environment(name="nowhere", requires=(str(tmp_path / "no-such-package"),))
    report = _report(_entry("peer", "absent", environment=nowhere))
    assert "no-such-package" in report["environments"]["nowhere"]["missing"]
    assert "no-such-package" in report["rows"][0]["entries"][0]["missing"]
    assert any("no figures of absent" in line and "no-such-package" in line for line in table.lines(report))


def test_failed_contender_is_left_out_of_later_rounds():
    turns = Counter()

    def fails(place):
        turns["bad"] += 1
        raise Failed("it fell over")

    def works(place):
        turns["good"] += 1
        return {"time": [1.0], "calls": [7]}

    report = _report(_entry("ours", "good", works), _entry("peer", "bad", fails), rounds=3)
    good, bad = report["rows"][0]["entries"]
    assert turns == {"good": 3, "bad": 1}
    assert (good["missing"], bad["missing"]) == (None, "it fell over")
    assert good["facts"] == {"calls": 7}


def test_ratios_are_taken_within_a_round_and_are_above_one_if_worse():
    ours, theirs = iter([1.0, 10.0, 2.0]), iter([3.0, 30.0, 4.0])
    entries = [
        _entry("ours", "ours", lambda _: {"time": [value := next(ours)], "rate": [1 / value]}),
        _entry("peer", "theirs", lambda _: {"time": [value := next(theirs)], "rate": [1 / value]}, ours=Key("ours")),
    ]
    figures = _report(*entries, rounds=3)["rows"][0]["entries"][1]["figures"]
    assert figures["time"]["cost"] == pytest.approx(3.0)
    assert figures["rate"]["cost"] == pytest.approx(3.0)


def test_missed_goal_is_only_reported():
    entry = _entry("ours", "ours", lambda _: {"time": [0.25]}, goals={"time": Goal(limit=0.1)})
    report = _report(entry)
    (goal,) = report["rows"][0]["entries"][0]["figures"]["time"]["goals"]
    assert (goal["limit"], goal["of"], goal["at_least"], goal["reached"]) == (0.1, "value", False, 0.25)
    assert any("≤ 100 ms: no" in line for line in table.lines(report))


def test_goal_relative_to_peers_compares_with_the_best_peer_that_has_figures():
    def fails(place):
        raise Failed("it fell over")

    def peer(name, take):
        return _entry("peer", name, take, ours=Key("ours"))

    named = tuple(map(Key, ("slow", "slower", "fallen", "unasked")))
    goals = {
        "time": (Goal(limit=3.0, of="peers", peers=named, who="the slow"), Goal(limit=0.5)),
        "rate": Goal(limit=3.0, of="peers", peers=named, who="the slow"),
    }
    report = _report(
        _entry("ours", "ours", lambda _: {"time": [0.25], "rate": [100.0]}, goals=goals),
        peer("slow", lambda _: {"time": [1.0], "rate": [50.0]}),
        peer("slower", lambda _: {"time": [2.0], "rate": [20.0]}),
        peer("fallen", fails),
        peer("quick", lambda _: {"time": [0.1], "rate": [1000.0]}),
    )
    figures = report["rows"][0]["entries"][0]["figures"]
    assert [goal["reached"] for goal in figures["time"]["goals"]] == [pytest.approx(4.0), 0.25]
    assert [goal["reached"] for goal in figures["rate"]["goals"]] == [pytest.approx(2.0)]
    told = list(table.lines(report))
    assert any("≥ 3.00x ahead of the slow: yes (4.00x); ≤ 500 ms: yes" in line for line in told)
    assert any("≥ 3.00x ahead of the slow: no (2.00x)" in line for line in told)
    alone = _report(_entry("ours", "ours", lambda _: {"time": [0.25]}, goals=goals))
    assert alone["rows"][0]["entries"][0]["figures"]["time"]["goals"][0]["reached"] is None
    assert not any("ahead of" in line for line in table.lines(alone))


@pytest.mark.parametrize("row", ROWS.values(), ids=list(ROWS))
def test_entries_are_compared_within_their_row(row):
    entries = {entry.key: entry for entry in row.entries(Sizes())}
    assert len(entries) == len(row.entries(Sizes()))
    for entry in entries.values():
        assert {entry.ours, entry.floor} <= {None, *entries}
        assert entry.goals.keys() <= {quantity.name for quantity in row.quantities}
        for goals in entry.goals.values():
            for goal in goals if isinstance(goals, tuple) else (goals,):
                assert all(entries[key].ours == entry.key for key in goal.peers)
                assert (goal.of == "peers") == bool(goal.peers)
                assert goal.of != "ours" or entry.ours is not None


def test_calls_are_made_by_submit_map_and_chunks_as_far_as_a_contender_has_them():
    class Counting(ThreadPoolExecutor):
        def submit(self, *args):
            made["submit"] += 1
            return super().submit(*args)

        def map(self, *args, chunksize=1):
            made["map", chunksize] += len(args[-1])
            return map(*args)

    class Plain:
        submit = ThreadPoolExecutor(1).submit

    def throughput(pool, **options):
        @contextmanager
        def executor(job):
            yield pool

        return measures.of_executor(executor, **options)["throughput"](
            _job(tasks=5, ranks=0)
        )  # no ranks: no wait for their start

    made = Counter()
    assert throughput(Counting(1), chunks=True).keys() == {"rate", "CPU", "calls", "map", "chunks"}
    assert made == {"submit": 5, ("map", 1): 5, ("map", measures.LARGE_CHUNK): 50}
    assert throughput(Counting(1)).keys() == {"rate", "CPU", "calls", "map"}
    assert throughput(Plain()).keys() == {"rate", "CPU", "calls"}


@pytest.mark.parametrize("shared", [True, False])
def test_pool_on_queues_returns_each_value_and_leaves_no_worker(tmp_path, monkeypatch, shared):
    (tmp_path / "plain_queue.py").write_text(_PLAIN_QUEUE.format(shared=shared))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "plain_queue", raising=False)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    import plain_queue

    before = {process.pid for process in processes.below(os.getpid())}
    with plain_queue.QUEUES.executor(_job(directory=str(tmp_path), workers=2)) as pool:
        pending = [pool.submit(pow, 2, number) for number in range(20)]
        assert [future.result() for future in reversed(pending)] == [2**number for number in reversed(range(20))]
        assert pool.submit(os.getpid).result() != os.getpid()
    assert len(list(tmp_path.glob("*/calls"))) == (1 if shared else 2)
    assert {process.pid for process in processes.below(os.getpid())} == before


_PLAIN_QUEUE = """
import contextlib, os, pickle, uuid
from benchmarks.contenders.queues import Queues

class Queue:
    def __init__(self, directory):
        os.makedirs(directory, exist_ok=True)
        self.directory = directory

    def put(self, item):
        path = f"{{self.directory}}/{{uuid.uuid4()}}"
        with open(f"{{path}}.part", "wb") as file:
            pickle.dump(item, file)
        os.rename(f"{{path}}.part", path)

    def taken(self):
        for name in os.listdir(self.directory):
            path = f"{{self.directory}}/{{name}}"
            with contextlib.suppress(FileNotFoundError):  # another worker was first
                if "." not in name:
                    os.rename(path, f"{{path}}.{{os.getpid()}}")
                    with open(f"{{path}}.{{os.getpid()}}", "rb") as file:
                        yield pickle.load(file)

QUEUES = Queues(module="plain_queue", opens=Queue, shared={shared})
"""


def test_operations_in_a_trace_are_classified():
    def kind(line):
        operation = trace.parse(f"1700000000.5 {line}")
        return operation and (operation.kind, operation.path)

    at = "AT_FDCWD</elsewhere>"
    assert kind(f'openat({at}, "/s/a", O_RDWR|O_CLOEXEC) = 3</s/a>') == ("open", "/s/a")
    assert kind(f'openat({at}, "/s/a", O_WRONLY|O_CREAT|O_EXCL, 0600) = 3</s/a>') == ("create", "/s/a")
    assert kind(f'openat({at}, "/s", O_RDONLY|O_DIRECTORY) = -1 ENOENT (No such file or directory)') == ("list", "/s")
    assert kind('rename("/s/a", "/s/b") = 0') == ("rename", "/s/a")
    assert kind('unlinkat(4</s>, "a", 0) = 0') == ("unlink", "/s/a")
    assert kind('unlinkat(4</s>, "a", AT_REMOVEDIR) = 0') == ("directory", "/s/a")
    assert kind(f'newfstatat({at}, "/s/a", {{st_mode=S_IFREG|0600, ...}}, 0) = 0') == ("stat", "/s/a")
    assert kind('newfstatat(3</s/a>, "", {st_mode=S_IFREG|0600, ...}, AT_EMPTY_PATH) = 0') == ("descriptor", "/s/a")
    assert kind("flock(3</s/a>, LOCK_EX|LOCK_NB) = 0") == ("descriptor", "/s/a")
    assert kind("fcntl(3</s/a>, F_SETLK, {l_type=F_WRLCK, l_whence=SEEK_SET, l_len=1}) = 0") == ("descriptor", "/s/a")
    assert kind("fcntl(3</s/a>, F_GETFD) = 0x1 (flags FD_CLOEXEC)") is None
    assert kind("+++ exited with 0 +++") is None


def test_operations_of_start_and_end_do_not_count_per_call(tmp_path):
    lines, now = [], 0

    def did(text):
        nonlocal now
        now += 1
        lines.append(f"{now}.0 {text} = 0\n")

    for times in (1, 3):
        did(f'access("/d/mark.awaited.{times}.begin", F_OK)')
        did('rename("/d/begin", "/d/end")')
        for _ in range(2 * times):
            did('rename("/d/a", "/d/b")')
            did('unlink("/other/a")')
        did(f'access("/d/mark.awaited.{times}.end", F_OK)')
    (tmp_path / "thread.1").write_text("".join(lines))
    counts = trace.per_call(trace.between_marks(str(tmp_path), "/d"), "awaited", 2)
    assert counts["rename"] == 1.0
    assert counts["unlink"] == 0.0


def _job(**options):
    return Job(**{"measure": "", "directory": "", "answer": "", "harness": os.getpid(), **options})


def _entry(role, name, take=lambda _: {}, **options):
    return Entry(key=Key(name), role=role, take=take, **{"environment": OURS, **options})


def _report(*entries, rounds=1):
    quantities = (Quantity(name="time", unit="s", title="time"), Quantity(name="rate", unit="/s", title="rate"))
    row = Row(name="row", title="A row", about="", quantities=quantities, entries=lambda _: list(entries))
    sizes = Sizes(rounds=rounds)
    with tempfile.TemporaryDirectory() as directory:
        run = harness.Harness(directory=directory, sizes=sizes, wanted=lambda _: True, say=lambda _: None).run([row])
    machine = dict.fromkeys(("processor", "cores", "memory", "system", "python", "filesystem", "date", "commit"), "")
    return json.loads(json.dumps(results.report(run, sizes, {**machine, "load": 0.0})))
