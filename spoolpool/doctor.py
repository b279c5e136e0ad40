"""What can a filesystem be trusted with? Found out by trying, between two processes or two hosts.

The doctor asks a *peer* to do things to files and looks at what comes of it here. The peer is a process that
this one starts, or one that somebody started on another host; the questions are the same. They talk through
files in the directory that is examined: unique names, written once.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from spoolpool import fsio, settings
from spoolpool.backoff import Backoff
from spoolpool.errors import TaskTimeout
from spoolpool.identity import hostname
from spoolpool.locks import Lock, try_lock
from spoolpool.watch import Watch

Grade = Literal["good", "note", "bad"]

_MEETING = "spoolpool-doctor"
_TOKENS = 500
_PATIENCE = 100.0  # seconds: longer than NFS goes on saying "not there" (60)
_LOCK_PATIENCE = 20.0
_OPTIONS_THAT_MATTER = (
    "nolock", "local_lock", "noac", "actimeo", "acregmax", "acdirmax", "lookupcache", "soft", "flock", "noflock",
    "localflock", "vers", "nfsvers", "sync", "ro",
)  # fmt: skip
_NO_NETWORK = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "tmpfs", "zfs", "f2fs", "overlay"})


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What was found about one question."""

    question: str
    """A short key, stable for programs."""
    grade: Grade
    """``bad`` can break something or slow it down badly; ``note`` needs a setting."""
    text: str
    """A sentence for people."""
    value: Any = None
    """The figure or fact itself."""


class Peer:
    """The far side: does what is asked, until it is told to go or hears nothing for a while."""

    def __init__(self, directory: str, *, patience: float = 600.0) -> None:
        self._meeting = _meet(directory)
        self._name = os.urandom(4).hex()
        self._patience = patience
        self._holder: subprocess.Popen[bytes] | None = None

    def serve(self) -> int:
        """Answer a doctor's orders; returns how many there were."""
        _post(self._meeting, f"peer-{self._name}", {"host": hostname(), "pid": os.getpid()})
        done: set[str] = set()
        rhythm = Backoff(0.002, 0.1)
        heard = time.monotonic()
        try:
            while time.monotonic() - heard < self._patience:
                orders = [name for name in fsio.names(self._meeting) if name.startswith(f"order-{self._name}-")]
                for name in sorted(set(orders) - done):
                    done.add(name)
                    order = _read(self._meeting, name)
                    if order["do"] == "go":
                        return len(done)
                    answer = getattr(self, f"_{order['do']}")(order)
                    _post(self._meeting, name.replace("order", "answer"), answer)
                    heard = time.monotonic()
                    rhythm.reset()
                rhythm.sleep()
        finally:
            self._end_holder()
            with contextlib.suppress(OSError):
                fsio.remove(f"{self._meeting}/peer-{self._name}")
        return len(done)

    def _clock(self, _order: dict[str, Any]) -> dict[str, Any]:
        return {"now": time.time(), "host": hostname()}

    def _race(self, order: dict[str, Any]) -> dict[str, Any]:
        _post(self._meeting, f"ready-{order['race']}", {})
        _await(lambda: os.path.lexists(f"{self._meeting}/start-{order['race']}"), "the start of the race")
        return {"won": _race(f"{self._meeting}/{order['race']}", "peer")}

    def _make(self, order: dict[str, Any]) -> dict[str, Any]:
        fsio.create(f"{self._meeting}/{order['name']}", [b"x"])
        return {}

    def _take(self, order: dict[str, Any]) -> dict[str, Any]:
        return {"gone": fsio.remove(f"{self._meeting}/{order['name']}")}

    def _touch(self, order: dict[str, Any]) -> dict[str, Any]:
        fsio.touch(f"{self._meeting}/{order['name']}")
        return {}

    def _hold(self, order: dict[str, Any]) -> dict[str, Any]:
        path = f"{self._meeting}/{order['name']}"
        self._holder = subprocess.Popen(
            [sys.executable, "-m", "spoolpool.doctor", path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._holder.stdout is not None
        return {"lock": self._holder.stdout.readline().decode().strip()}

    def _kill(self, _order: dict[str, Any]) -> dict[str, Any]:
        self._end_holder()
        return {}

    def _end_holder(self) -> None:
        if self._holder is not None:
            self._holder.kill()
            self._holder.communicate()
            self._holder = None


def hold(path: str) -> None:
    """Lock a file, say what came of it, and keep it until standard input ends."""
    fd = fsio.open_file(path, write=True)
    print(try_lock(fd).value, flush=True)  # noqa: T201  the parent reads it
    sys.stdin.read()


def _race(directory: str, me: str) -> int:
    """Rename every token to a name of one's own; returns how many renames said that they happened."""
    won = 0
    for number in range(_TOKENS):
        with contextlib.suppress(OSError):
            fsio.move(f"{directory}/{number}", f"{directory}/{number}.{me}")
            won += 1
    return won


class Doctor:
    """The near side: asks one peer and grades what comes of it."""

    def __init__(self, directory: str, peer: str) -> None:
        self._meeting = _meet(directory)
        self._peer = peer
        self._number = 0

    def examine(self) -> list[Answer]:
        """All questions that need two."""
        return [
            self._clock(),
            self._renames(),
            *self._locks(),
            *self._names(),
            self._signs_of_life(),
            self._inotify(),
        ]

    def dismiss(self) -> None:
        """Let the peer go, and remove what was made."""
        self._number += 1
        _post(self._meeting, f"order-{self._peer}-{self._number:04d}", {"do": "go"})
        _await(lambda: not fsio.there(f"{self._meeting}/peer-{self._peer}"), "the peer's departure")
        fsio.remove_tree(self._meeting)

    def _ask(self, do: str, **order: object) -> dict[str, Any]:
        self._number += 1
        name = f"{self._peer}-{self._number:04d}"
        _post(self._meeting, f"order-{name}", {"do": do, **order})
        _await(lambda: fsio.there(f"{self._meeting}/answer-{name}"), f"the peer's answer to {do!r}")
        return _read(self._meeting, f"answer-{name}")

    def _new_name(self, what: str) -> str:
        self._number += 1
        return f"{what}-{self._number}"

    def _clock(self) -> Answer:
        before = time.time()
        theirs = self._ask("clock")
        offset = theirs["now"] - (before + time.time()) / 2
        text = f"the clock of {theirs['host']} is {offset:+.1f} s from this one's; nothing compares them"
        return Answer(question="clock", grade="good", text=text, value=round(offset, 3))

    def _renames(self) -> Answer:
        race = self._new_name("race")
        directory = f"{self._meeting}/{race}"
        fsio.make_directory(directory)
        for number in range(_TOKENS):
            fsio.create(f"{directory}/{number}", [])
        self._number += 1
        name = f"{self._peer}-{self._number:04d}"
        _post(self._meeting, f"order-{name}", {"do": "race", "race": race})
        _await(lambda: fsio.there(f"{self._meeting}/ready-{race}"), "the peer at the start")
        fsio.create(f"{self._meeting}/start-{race}", [])
        mine = _race(directory, "doctor")
        _await(lambda: fsio.there(f"{self._meeting}/answer-{name}"), "the peer's result of the race")
        theirs = _read(self._meeting, f"answer-{name}")["won"]
        good = mine + theirs == _TOKENS
        text = f"of {_TOKENS} files that two renamed at once, {mine} and {theirs} were won"
        text += "" if good else ": a rename can have two winners or none here. Do not use this filesystem for a spool"
        return Answer(question="rename", grade="good" if good else "bad", text=text, value=mine + theirs - _TOKENS)

    def _locks(self) -> list[Answer]:
        name = self._new_name("lock")
        path = f"{self._meeting}/{name}"
        fsio.create(path, [])
        theirs = self._ask("hold", name=name)["lock"]
        fd = fsio.open_file(path, write=True)
        try:
            mine = try_lock(fd)
            if theirs != Lock.TAKEN.value or mine is Lock.NONE:
                self._ask("kill")
                text = "there are no locks (mount with flock, or start lockd): the lease alone tells who lives"
                return [Answer(question="locks", grade="note", text=text, value="none")]
            if mine is Lock.TAKEN:
                self._ask("kill")
                text = (
                    "a lock excludes only its own host (nolock, localflock): the lease alone tells who lives elsewhere"
                )
                return [Answer(question="locks", grade="note", text=text, value="per host")]
            answers = [Answer(question="locks", grade="good", text="a lock here excludes the other side", value="yes")]
            self._ask("kill")
            seconds = _until(lambda: try_lock(fd) is Lock.TAKEN, _LOCK_PATIENCE)
            if seconds is None:
                text = (
                    f"a killed process still holds its lock after {_LOCK_PATIENCE:.0f} s: its tasks wait for 10 leases"
                )
                return [*answers, Answer(question="lock of the dead", grade="note", text=text)]
            text = f"the lock of a killed process was free after {seconds:.3f} s"
            return [*answers, Answer(question="lock of the dead", grade="good", text=text, value=round(seconds, 3))]
        finally:
            fsio.close(fd)

    def _names(self) -> list[Answer]:
        name = self._new_name("name")
        path = f"{self._meeting}/{name}"
        os.path.lexists(path)  # looked up in vain: from now on the cache may say so
        self._ask("make", name=name)
        listed = _until(lambda: name in fsio.names(self._meeting), _PATIENCE)
        looked_up = _until(lambda: os.path.lexists(path), _PATIENCE)
        self._ask("take", name=name)
        gone = _until(lambda: not os.path.lexists(path), _PATIENCE)
        return [
            _delay("listed", listed, "a new name is listed", bound=1.0),
            _delay("looked up", looked_up, "a new name that was looked up in vain before is found", bound=60.0),
            _delay("gone", gone, "a removed name is no longer found", bound=60.0),
        ]

    def _signs_of_life(self) -> Answer:
        name = self._new_name("beat")
        path = f"{self._meeting}/{name}"
        fsio.create(path, [])
        before = fsio.stamp(path)
        Backoff(1.1, 1.1).sleep()  # some keep whole seconds
        self._ask("touch", name=name)
        seconds = _until(lambda: fsio.stamp(path) != before, _PATIENCE)
        return _delay("sign of life", seconds, "a sign of life is seen", bound=settings.LEASE / 3)

    def _inotify(self) -> Answer:
        watch = Watch()
        try:
            directory = f"{self._meeting}/{self._new_name('watched')}"
            fsio.make_directory(directory)
            watch.add(directory)
            self._ask("make", name=f"{os.path.basename(directory)}/new")
            told = watch.wait(2.0)
        finally:
            watch.close()
        text = "changes by the other side are told (inotify)" if told else "changes are found by polling: no inotify"
        return Answer(question="inotify", grade="good" if told else "note", text=text, value=told)


def _delay(question: str, seconds: float | None, what: str, bound: float) -> Answer:
    if seconds is None:
        return Answer(question=question, grade="bad", text=f"{what} not even after {_PATIENCE:.0f} s")
    grade: Grade = "good" if seconds <= bound else "note"
    return Answer(question=question, grade=grade, text=f"{what} after {seconds:.3f} s", value=round(seconds, 3))


def mount_of(path: str) -> tuple[str, str, str]:
    """Mount point, kind, and options of the filesystem that holds ``path`` (``/proc/self/mountinfo``, proc(5))."""
    best = ("/", "unknown", "")
    real = os.path.realpath(path)
    with contextlib.suppress(OSError), open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            point = left.split()[4].replace("\\040", " ")
            inside = real == point or real.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(best[0]):
                kind, _, options = right.split()[:3]
                best = (point, kind, f"{left.split()[5]},{options}")
    return best


def describe(directory: str) -> list[Answer]:
    """What one look tells: kind and options of the mount, space, inodes, quota, permissions."""
    point, kind, options = mount_of(directory)
    chosen = [each for each in options.split(",") if each.partition("=")[0] in _OPTIONS_THAT_MATTER]
    answers = [
        Answer(
            question="filesystem",
            grade="note" if {"nolock", "localflock", "noflock", "soft", "ro"} & set(chosen) else "good",
            text=f"{kind} mounted on {point}" + (f" with {','.join(chosen)}" if chosen else ""),
            value={"kind": kind, "mount": point, "options": chosen, "local": kind in _NO_NETWORK},
        )
    ]
    space = os.statvfs(directory)
    free, inodes = space.f_bavail * space.f_frsize, space.f_favail
    short = free < 1 << 30 or (space.f_files and inodes < 10_000)
    text = f"{free / (1 << 30):.1f} GiB" + (f" and {inodes} inodes" if space.f_files else "") + " are free"
    answers.append(Answer(question="space", grade="note" if short else "good", text=text, value=[free, inodes]))
    if quota := shutil.which("quota"):
        said = subprocess.run([quota, "-w"], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
        lines = [line for line in said.stdout.splitlines() if point in line]
        if lines:
            answers.append(Answer(question="quota", grade="good", text=f"quota: {' '.join(lines[0].split())}"))
    denied = [name for name in (".", *fsio.names(directory)) if _shut(f"{directory}/{name}")]
    text = f"this account may not write to {', '.join(denied)}" if denied else "this account may write everywhere"
    answers.append(Answer(question="permissions", grade="bad" if denied else "good", text=text, value=denied))
    return answers


def _shut(path: str) -> bool:
    return os.path.isdir(path) and not os.access(path, os.W_OK | os.X_OK)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to make a spool with on this filesystem."""

    lease: float
    """``spool init --lease``."""
    caches: float
    """``spool init --caches``."""


def recommend(answers: list[Answer]) -> Settings:
    """Settings from what was found: several times the longest delay that was seen."""
    found = {answer.question: answer.value for answer in answers}
    local = bool((found.get("filesystem") or {}).get("local"))
    delays = [found.get(question) for question in ("listed", "looked up", "gone")]
    worst = max([delay for delay in delays if delay is not None], default=settings.CACHE_SECONDS)
    beat = found.get("sign of life")
    lease = max(10.0 if local else 60.0, 6 * (settings.LEASE if beat is None else beat))
    return Settings(lease=round(lease), caches=max(1.0 if local else settings.CACHE_SECONDS, round(3 * worst)))


def waiting_peer(directory: str) -> str | None:
    """The name of a peer that somebody started on this directory, on whichever host."""
    meeting = _where(directory)
    names = [name.removeprefix("peer-") for name in fsio.names(meeting) if name.startswith("peer-")]
    return min(names, default=None)


def start_peer(directory: str) -> subprocess.Popen[bytes]:
    """Start a peer on this host."""
    return subprocess.Popen([sys.executable, "-m", "spoolpool.doctor", "--peer", directory], stdin=subprocess.DEVNULL)


def _where(directory: str) -> str:
    inside = f"{directory}/tmp"
    return f"{inside if os.path.isdir(inside) else directory}/{_MEETING}"


def _meet(directory: str) -> str:
    meeting = _where(directory)
    fsio.make_directory(meeting)
    return meeting


def _post(meeting: str, name: str, content: dict[str, Any]) -> None:
    source = f"{meeting}/.{name}.{os.urandom(4).hex()}"
    fsio.create(source, [json.dumps(content).encode()])
    fsio.move(source, f"{meeting}/{name}")


def _read(meeting: str, name: str) -> dict[str, Any]:
    rhythm = Backoff(0.01, 0.5)
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            found: dict[str, Any] = json.loads(fsio.read_small(f"{meeting}/{name}"))
        except (OSError, ValueError):  # listed already, but its content is not here yet
            if time.monotonic() > end:
                raise
            rhythm.sleep()
        else:
            return found


def _until(condition: Callable[[], bool], seconds: float) -> float | None:
    """Seconds until the condition held; None if it did not in time."""
    begin = time.monotonic()
    rhythm = Backoff(0.0005, 0.05)
    while not condition():
        if time.monotonic() - begin > seconds:
            return None
        rhythm.sleep()
    return time.monotonic() - begin


def _await(condition: Callable[[], bool], what: str) -> None:
    if _until(condition, _PATIENCE) is None:
        raise TaskTimeout(f"The doctor waited {_PATIENCE:.0f} s for {what} in vain. Does the peer still run?")


if __name__ == "__main__":
    if sys.argv[1] == "--peer":
        Peer(sys.argv[2]).serve()
    else:
        hold(sys.argv[1])
