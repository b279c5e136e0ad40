"""Submitters and workers on one spool while processes are killed and stopped, and the disk fills up.

``scripts/chaos`` runs it. It runs for a time, with a seed, then waits until all tasks have ended, and counts:
every task must have had exactly one outcome, an uninterrupted task must have run exactly once, and no file may be
left. Only then the exit code is 0. ``--on`` does the same to the nodes of a shared filesystem.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from spoolpool import Executor, Spool, current_task
from spoolpool.errors import SpoolFull, WorkerLost
from spoolpool.format import envelope, headers
from spoolpool.format.names import CANCELLED, TaskFile
from spoolpool.maintenance.check import check
from spoolpool.maintenance.repair import repair
from spoolpool.monitor.scan import scan
from spoolpool.system import file_content, files
from spoolpool.system.backoff import Backoff

SIZES = (0, 100, 100_000)

SKEWED = """\
import sys, time
offset = float(sys.argv.pop(1))
now, now_ns = time.time, time.time_ns
time.time = lambda: now() + offset
time.time_ns = lambda: now_ns() + int(offset * 1e9)
from spoolpool.cli.worker import main
main()
"""
# A worker whose wall clock is wrong. (libfaketime breaks clock_nanosleep, and so time.sleep, in Debian 12.)


def work(effects: str, uid: str, seconds: float, size: int) -> tuple[str, int, bytes]:
    """A task: notes that it ran, takes its time, and gives back some bytes."""
    fd = os.open(effects, os.O_WRONLY | os.O_APPEND)
    os.write(fd, f"{uid}\n".encode())
    os.close(fd)
    backoff = Backoff(0.001, 0.05)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        backoff.sleep()
    return uid, current_task().attempt, bytes(size)


def submit(spool: str, diary: str, effects: str, seed: int, seconds: float) -> None:
    """One submitter: keeps tasks in the spool for a time, then waits for all of them."""
    chance = random.Random(seed)
    end = time.monotonic() + seconds
    pending: set[Future[tuple[str, int, bytes]]] = set()
    backoff = Backoff(0.005, 0.05)
    with open(diary, "a", buffering=1) as notes, Executor(spool=spool) as executor:

        def delivered(uid: str, future: Future[tuple[str, int, bytes]]) -> None:
            # called before the outcome is removed from the spool: noted, or still there
            error = future.exception()
            if error is None:
                note = ["delivered", uid, future.task, "result", future.result()[1]]
            else:
                note = [
                    "delivered",
                    uid,
                    future.task,
                    "lost" if isinstance(error, WorkerLost) else "error",
                    repr(error),
                ]
            notes.write(json.dumps(note) + "\n")

        number = 0
        while pending or time.monotonic() < end:
            pending = {future for future in pending if not future.done()}
            if time.monotonic() >= end or len(pending) >= 40:
                backoff.sleep()
                continue
            uid = f"{os.getpid()}-{seed}-{number}"
            number += 1
            with contextlib.suppress(SpoolFull):  # the disk is full at times: no part of the task is in the spool
                future = executor.submit(work, effects, uid, chance.choice([0, 0, 0.01, 0.2]), chance.choice(SIZES))
                notes.write(json.dumps(["submitted", uid, future.task]) + "\n")
                future.add_done_callback(functools.partial(delivered, uid))
                pending.add(future)


@dataclass
class Chaos:
    """One run."""

    root: Path
    seconds: float
    chance: random.Random
    submitters: int = 2
    groups: int = 3
    lease: float = 1.0
    fill: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    stopped: dict[str, float] = field(default_factory=dict)
    number: int = 0

    def run(self) -> dict[str, int]:
        """Cause failures for a time, wait for all tasks, and count."""
        self.spool = Spool.create(self.root / "disk" / "spool", durability="none", lease=self.lease, caches=0.5)
        self.effects = self.root / "effects"
        self.effects.touch()
        end = time.monotonic() + self.seconds
        backoff = Backoff(0.05, 0.3)
        for place in range(self.groups):
            self._start_worker(f"worker-{place}")
        for place in range(self.submitters):
            self._start_submitter(f"submitter-{place}", end)
        try:
            while time.monotonic() < end:
                self._replace(end)
                self._harm()
                backoff.sleep()
            self._settle()
            return self._count()
        finally:
            for process in self.processes.values():
                _signal(process, signal.SIGKILL)

    def _start(self, name: str, command: list[str]) -> None:
        with open(self.root / "log", "ab") as log:
            self.processes[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _start_worker(self, name: str) -> None:
        clock = self.chance.choice([0, 3600, -3600])  # hosts with clocks an hour apart
        self._start(name, [sys.executable, "-c", SKEWED, str(clock), self.spool.path])
        self.counts["workers"] += 1

    def _start_submitter(self, name: str, end: float) -> None:
        self.number += 1
        diary = str(self.root / f"diary-{self.number}")
        left = max(0.1, end - time.monotonic())
        command = [sys.executable, "-m", "tests.faults.chaos", "--submit", self.spool.path, diary, str(self.effects)]
        self._start(name, [*command, str(self.chance.randrange(1 << 30)), str(left)])

    def _replace(self, end: float) -> None:
        for name, process in list(self.processes.items()):
            if process.poll() is not None:
                if name.startswith("worker"):
                    self._start_worker(name)
                elif time.monotonic() < end - 1:
                    self._start_submitter(name, end)
        for name, until in list(self.stopped.items()):
            if time.monotonic() > until:
                del self.stopped[name]
                _signal(self.processes[name], signal.SIGCONT)

    def _harm(self) -> None:
        name = self.chance.choice(sorted(self.processes))
        process = self.processes[name]
        what = self.chance.choices(["kill", "stop", "fill", "nothing"], [4, 2, 1, 4])[0]
        if name in self.stopped or process.poll() is not None:
            return
        if what == "kill" and (name.startswith("worker") or self.chance.random() < 0.3):
            self.counts["kills"] += 1
            # the leader alone, or with its heartbeat processes
            if self.chance.random() < 0.5:
                process.kill()
            else:
                _signal(process, signal.SIGKILL)
        elif what == "stop" and name.startswith("worker"):
            self.counts["stops"] += 1
            _signal(process, signal.SIGSTOP)
            self.stopped[name] = time.monotonic() + self.lease * self.chance.uniform(0.5, 4)
        elif what == "fill" and self.fill:
            self.counts["disk full"] += 1
            self._fill_disk()

    def _fill_disk(self) -> None:
        path = self.root / "disk" / "filler"
        backoff = Backoff(0.1, 0.3)
        with contextlib.suppress(OSError), open(path, "wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 20))
        backoff.sleep()
        path.unlink()

    def _settle(self) -> None:
        """Stop the failures: wait until the submitters have their results, then stop the workers."""
        for name in list(self.stopped):
            _signal(self.processes[name], signal.SIGCONT)
        self.stopped.clear()
        backoff = Backoff(0.05, 0.5)
        deadline = time.monotonic() + 120 + 10 * self.lease
        while any(p.poll() is None for name, p in self.processes.items() if name.startswith("submitter")):
            self._replace(0)
            backoff.sleep()
            if time.monotonic() > deadline:
                self.counts["submitters that hang"] += 1
                return
        # tasks of killed submitters are still run
        while any((scan(self.spool).ready, scan(self.spool).claimed)) and time.monotonic() < deadline:
            self._replace(0)
            backoff.sleep()
        workers = [p for name, p in self.processes.items() if name.startswith("worker")]
        for process in workers:
            process.terminate()
        for process in workers:
            process.wait(60)
        repair(self.spool, check(self.spool, deep=False))

    def _count(self) -> dict[str, int]:
        submitted, outcomes = {}, {}
        delivered: Counter[str] = Counter()
        for diary in self.root.glob("diary-*"):
            for line in diary.read_text().splitlines():
                with contextlib.suppress(ValueError):  # the last line of a killed process may be incomplete
                    note = json.loads(line)
                    if note[0] == "submitted":
                        submitted[note[2]] = note[1]
                    else:
                        delivered[note[2]] += 1
                        outcomes[note[2]] = (note[3], note[4])
        seen = scan(self.spool)
        uncollected = {task_file.task: path.split("/")[1] for path, task_file in seen.results.items()}
        outgoing = {task_file.name for task_file in seen.outgoing.values()}
        committed = {task_file.name for task_file in seen.results.values()}
        kept = {task_file.task for task_file in seen.failed.values()}
        runs = Counter(self.effects.read_text().split())
        twice = 0
        for name, uid in submitted.items():
            kind, attempt = outcomes.get(name, ("", 0))
            if kind == "result" and not 1 <= runs[uid] <= attempt:
                twice += 1
        result = {
            "tasks": len(submitted),
            "workers": self.counts["workers"],
            "kills": self.counts["kills"],
            "stops": self.counts["stops"],
            "disk full": self.counts["disk full"],
            "recoveries": (self.root / "log").read_text(errors="replace").count("Recovered "),
            "reported lost": sum(kind == "lost" for kind, _ in outcomes.values()),
            "ran again": sum(count > 1 for count in runs.values()),
            "lost": len(submitted.keys() - delivered.keys() - uncollected.keys() - kept),
            "duplicated outcomes": sum(count > 1 for count in delivered.values()),
            "errors": sum(kind == "error" for kind, _ in outcomes.values()),
            "ran too often": twice,
            "left over": len(seen.ready) + len(seen.claimed) + len(outgoing - committed) + len(seen.unknown),
            "submitters that hang": self.counts["submitters that hang"],
        }
        result["unreadable"] = sum(
            not self._complete(path.split("/")[1], task_file) for path, task_file in seen.results.items()
        )
        return result

    def _complete(self, session: str, task_file: TaskFile) -> bool:
        """Return whether the uncollected outcome of a killed submitter exists and is complete."""
        if task_file.worker == CANCELLED:
            return True
        path = self.spool.layout.outcome(session, task_file)
        try:
            fd = files.open_file(path)
        except OSError:
            return False
        try:
            headers.decode_outcome(envelope.read(fd, file_content.size(fd), path).header, path)
        finally:
            files.close(fd)
        return True


MUST_BE_ZERO = (
    "lost",
    "duplicated outcomes",
    "errors",
    "ran too often",
    "left over",
    "unreadable",
    "submitters that hang",
)


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to a process group: to a worker with its heartbeat processes."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


@contextlib.contextmanager
def _disk(root: Path, megabytes: int):
    """Mount a small disk, if this account may."""
    disk = root / "disk"
    disk.mkdir()
    mounted = not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(disk)], capture_output=True
    ).returncode
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(disk)])


def _report(counts: dict[str, int], must_be_zero: tuple[str, ...]) -> bool:
    """Print the counts with their meaning; return whether all is well."""
    for name, count in counts.items():
        print(f"{name:<22}{count:>8}")
    bad = [name for name in must_be_zero if counts[name]]
    if bad or not counts["tasks"]:
        print(f"BROKEN: {', '.join(bad) or 'nothing was submitted'}.")
        return False
    print("Every task had exactly one outcome.")
    return True


def _run_on(name: str, seconds: float, seed: int) -> int:
    # these import pytest, which is installed wherever these tests are
    from tests.sharedfs import chaos
    from tests.sharedfs import mounts as place

    kinds = {kind.name: kind for kind in place.KINDS}
    if name not in kinds:
        print(f"There is no filesystem {name!r} here; there are {', '.join(kinds)}.")
        return 2
    with place.placed(kinds[name]) as placed:
        print(f"Seed {seed}, {seconds:g} s, on {name}", flush=True)
        return 0 if _report(chaos.Chaos(placed, seed).run(seconds), chaos.MUST_BE_ZERO) else 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=60, help="how long to rage (default: 60)")
    parser.add_argument("--seed", type=int, default=None, help="seed of all choices (default: a random one, printed)")
    parser.add_argument("--submitters", type=int, default=2)
    parser.add_argument("--groups", type=int, default=3)
    parser.add_argument("--lease", type=float, default=1.0, help="seconds (default: 1)")
    parser.add_argument("--on", metavar="KIND", help="do it to the nodes of a shared filesystem: nfs-4.2, moosefs, ...")
    parser.add_argument("--keep", action="store_true", help="keep the directory also when all is well")
    parser.add_argument("--submit", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.submit:
        spool, diary, effects, seed, seconds = options.submit
        submit(spool, diary, effects, int(seed), float(seconds))
        return 0
    seed = random.randrange(1 << 30) if options.seed is None else options.seed
    if options.on:
        return _run_on(options.on, options.seconds, seed)
    root = Path(tempfile.mkdtemp(prefix="spoolpool-chaos-"))
    with _disk(root, 64) as small:
        if not small:
            print("The disk is not filled up: this account may not mount one.")
        chaos = Chaos(
            root,
            options.seconds,
            random.Random(seed),
            options.submitters,
            options.groups,
            options.lease,
            fill=small,
        )
        print(f"Seed {seed}, {options.seconds:g} s, in {root}", flush=True)
        well = _report(chaos.run(), MUST_BE_ZERO)
        if not well and small:
            shutil.copytree(root / "disk", root / "disk-kept", symlinks=True)
    if not well:
        print(f"See {root}.")
        return 1
    if not options.keep:
        shutil.rmtree(root, ignore_errors=True)
    return 0


if __name__ == "__main__":
    from tests.faults.chaos import main as run  # so that functions are pickled under the real name of the module

    sys.exit(run())
