"""Examine a filesystem for the properties that a spool needs, by trial between two processes or two hosts.

The doctor gives orders to a *peer* and measures their effects on this side. The peer is a process that the doctor
starts, or that a user started on another host; the questions are the same. Both communicate through files in a
directory of the examined filesystem: each with a name of its own, written once.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from spoolpool import settings
from spoolpool.errors import SpoolpoolError
from spoolpool.format.layout import Layout
from spoolpool.maintenance.doctor_peer import (
    RACE_FILES,
    TIMEOUT,
    Rendezvous,
    create_all,
    find_peer,
    order_name,
    rename_all,
    reply_name,
    seconds_until,
    start_peer,
)
from spoolpool.system import files
from spoolpool.system.backoff import Backoff
from spoolpool.system.locks import Lock, try_lock
from spoolpool.system.mounts import LOCAL, mount_of, quota
from spoolpool.system.watch import DirectoryWatcher

Grade = Literal["good", "note", "bad"]

_RACES = 3
_LOCK_TIMEOUT = 20.0  # seconds
_TICK = 0.05  # seconds
_WHOLE_SECOND = 1.5  # with its jitter never less than 1.1 s: some filesystems keep whole seconds
_RELEVANT_OPTIONS = (
    "nolock", "local_lock", "noac", "actimeo", "acregmax", "acdirmax", "lookupcache", "soft", "flock", "noflock",
    "localflock", "vers", "nfsvers", "sync", "ro",
)  # fmt: skip
_NOTED_OPTIONS = frozenset({"nolock", "local_lock=all", "local_lock=flock", "localflock", "noflock", "soft", "ro"})


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Answer to one question about a filesystem."""

    question: str
    """Short key, stable for programs."""
    grade: Grade
    """``bad`` can break or seriously slow down a spool; ``note`` needs a setting."""
    text: str
    """Sentence for people, without its full stop."""
    value: Any = None
    """Measured number, or fact."""


class Doctor:
    """Gives orders to one peer and grades the results. ``timeout`` limits the wait for the effect of an order."""

    def __init__(self, rendezvous: Rendezvous, *, timeout: float = TIMEOUT) -> None:
        self._rendezvous = rendezvous
        self._timeout = timeout
        self._orders = 0
        self._names = 0

    def examine(self) -> Iterator[Answer]:
        """Yield the answers to all questions that need two processes."""
        yield self._clock()
        yield self._renames()
        yield self._creates()
        yield from self._locks()
        yield from self._visibility()
        yield self._heartbeat()
        yield self._inotify()
        self._order("end")

    def _order(self, do: str, name: str = "", meanwhile: Callable[[], object] = lambda: None) -> dict[str, Any]:
        number, self._orders = self._orders, self._orders + 1
        self._rendezvous.send(order_name(number), {"do": do, "name": name})
        meanwhile()
        reply = self._rendezvous.receive(reply_name(number), f"its reply to {do!r}")
        if "error" in reply:
            raise SpoolpoolError(f"The other side could not execute the order {do!r}: {reply['error']}.")
        return reply

    def _new_name(self, prefix: str) -> str:
        self._names += 1
        return f"{prefix}-{self._names}"

    def _new_directory(self, prefix: str) -> str:
        """Create a directory two levels down: the rendezvous is listed often, which on NFS refreshes its children."""
        name = self._new_name(prefix)
        for each in (name, f"{name}/in"):
            files.make_directory(f"{self._rendezvous.path}/{each}")
        return f"{name}/in"

    def _clock(self) -> Answer:
        self._order("clock")  # the first reply may include the start of the peer
        before = time.time()
        theirs = self._order("clock")
        error = (time.time() - before) / 2
        offset = theirs["now"] - before - error
        text = (
            f"the clock of {theirs['host']} differs by {offset:+.1f} s (within {error:.1f} s) from the clock here; no "
            "rule of the protocol compares them"
        )
        return Answer(question="clock", grade="good", text=text, value=round(offset, 3))

    def _race(self, do: str, run: Callable[[str], int], count: int) -> tuple[int, int]:
        """Let both sides do the same to the same files at once; return their wins. Repeat if one side won all."""
        for _ in range(_RACES):
            mine, theirs = self._race_once(do, run, count)
            if mine and theirs:
                break
        return mine, theirs

    def _race_once(self, do: str, run: Callable[[str], int], count: int) -> tuple[int, int]:
        race = self._new_name("race")
        directory = f"{self._rendezvous.path}/{race}"
        files.make_directory(directory)
        for number in range(count):
            files.create(f"{directory}/{number}", [])
        mine = []

        def compete() -> None:
            self._rendezvous.receive(f"ready-{race}", "the signal that it is ready for a race")
            self._rendezvous.send(f"start-{race}", {})
            mine.append(run(directory))

        theirs = self._order(do, race, compete)["won"]
        files.remove_tree(directory)
        return mine[0], theirs

    def _renames(self) -> Answer:
        mine, theirs = self._race("rename", lambda directory: rename_all(directory, "doctor"), RACE_FILES)
        return self._winners("rename", "renamed", mine, theirs)

    def _creates(self) -> Answer:
        mine, theirs = self._race("create", create_all, 0)
        return self._winners("create", "created", mine, theirs)

    @staticmethod
    def _winners(question: str, did: str, mine: int, theirs: int) -> Answer:
        grade: Grade = "good"
        text = f"of {RACE_FILES} files that both sides {did} at once, one side won {mine} and the other {theirs}"
        if mine + theirs != RACE_FILES:
            grade = "bad"
            text += ": an operation can have two winners or none. Do not use this filesystem for a spool"
        elif not (mine and theirs):
            grade = "note"
            text += ": they never collided, so this proves nothing"
        return Answer(question=question, grade=grade, text=text, value=mine + theirs - RACE_FILES)

    def _locks(self) -> Iterator[Answer]:
        name = self._new_name("lock")
        path = f"{self._rendezvous.path}/{name}"
        files.create(path, [])
        theirs = Lock(self._order("lock", name)["lock"])
        fd = files.open_file(path, write=True)
        try:
            mine = try_lock(fd)
            if theirs is not Lock.TAKEN or mine is Lock.NONE:
                self._order("kill")
                text = "there are no locks (mount with flock, or start lockd): only the lease tells which workers live"
                yield Answer(question="locks", grade="note", text=text, value="none")
                return
            if mine is Lock.TAKEN:
                self._order("kill")
                text = (
                    "a lock excludes only processes of its own host (nolock, localflock): only the lease tells which "
                    "workers of other hosts live"
                )
                yield Answer(question="locks", grade="note", text=text, value="per host")
                return
            yield Answer(question="locks", grade="good", text="a lock here excludes the other side", value="yes")
            self._order("kill")
            timeout = min(_LOCK_TIMEOUT, self._timeout)
            seconds = seconds_until(lambda: try_lock(fd) is Lock.TAKEN, timeout)
            if seconds is None:
                text = f"a killed process still has its lock after {timeout:g} s: its tasks wait for 10 leases"
                yield Answer(question="lock release", grade="note", text=text)
                return
            text = f"the lock of a killed process was free after {seconds:.3f} s"
            yield Answer(question="lock release", grade="good", text=text, value=round(seconds, 3))
        finally:
            files.close(fd)

    def _visibility(self) -> Iterator[Answer]:
        root = self._rendezvous.path
        listed, looked_up, removed = (self._new_directory(prefix) for prefix in ("listed", "name", "removed"))
        self._order("make", f"{removed}/new")
        # in a later clock tick than their creation, or NFS 3 may never list the new name (see files.refresh)
        Backoff(_TICK, _TICK).sleep()
        # fill the caches: an empty listing, a failed look-up, a successful one. Only the first directory is listed,
        # because a listing refreshes cached look-ups
        files.list_names(f"{root}/{listed}")
        os.path.lexists(f"{root}/{looked_up}/new")
        os.path.lexists(f"{root}/{removed}/new")
        self._order("make", f"{listed}/new")
        yield self._delay(
            "listed", lambda: bool(files.list_names(f"{root}/{listed}")), "a new name is listed", limit=1.0
        )
        # at the same time, because each takes half a minute on NFS
        self._order("make", f"{looked_up}/new")
        self._order("remove", f"{removed}/new")
        begin = time.monotonic()
        conditions: dict[str, Callable[[], bool]] = {
            "looked up": lambda: os.path.lexists(f"{root}/{looked_up}/new"),
            "removed": lambda: not os.path.lexists(f"{root}/{removed}/new"),
        }
        seen: dict[str, float] = {}

        def all_seen() -> bool:
            for question, condition in conditions.items():
                if question not in seen and condition():
                    seen[question] = time.monotonic() - begin
            return len(seen) == len(conditions)

        seconds_until(all_seen, self._timeout, self._rendezvous.is_alive)
        text = "a new name is found by a look-up that failed before"
        yield self._grade_delay("looked up", seen.get("looked up"), text, limit=60.0)
        yield self._grade_delay("removed", seen.get("removed"), "a removed name is no longer found", limit=60.0)

    def _heartbeat(self) -> Answer:
        name = self._new_name("beat")
        path = f"{self._rendezvous.path}/{name}"
        files.create(path, [])
        before = files.mtime_ns(path)
        Backoff(_WHOLE_SECOND, _WHOLE_SECOND).sleep()
        self._order("touch", name)
        limit = settings.LEASE / 3
        return self._delay("heartbeat", lambda: files.mtime_ns(path) != before, "a heartbeat is visible", limit=limit)

    def _inotify(self) -> Answer:
        watcher = DirectoryWatcher()
        try:
            name = self._new_directory("watched")
            watcher.add(f"{self._rendezvous.path}/{name}")
            self._order("make", f"{name}/new")
            notified = watcher.wait(2.0)
        finally:
            watcher.close()
        text = "inotify reports changes by the other side" if notified else "no inotify: changes are found by polling"
        return Answer(question="inotify", grade="good" if notified else "note", text=text, value=notified)

    def _delay(self, question: str, condition: Callable[[], bool], text: str, limit: float) -> Answer:
        seconds = seconds_until(condition, self._timeout, self._rendezvous.is_alive)
        return self._grade_delay(question, seconds, text, limit)

    def _grade_delay(self, question: str, seconds: float | None, text: str, limit: float) -> Answer:
        if seconds is None:
            return Answer(question=question, grade="bad", text=f"{text} not even after {self._timeout:g} s")
        grade: Grade = "good" if seconds <= limit else "note"
        return Answer(question=question, grade=grade, text=f"{text} after {seconds:.3f} s", value=round(seconds, 3))


def examine(directory: str, *, timeout: float = TIMEOUT) -> tuple[bool, list[Answer]]:
    """Examine a directory; return whether the peer was started by a user, as on another host, and the answers.

    A peer that waits there is used (:class:`Peer`), else one is started here. No file is left behind. Raises
    :class:`TaskTimeout` if the peer does not reply.
    """
    answers = describe(directory)
    rendezvous = None
    process = None
    across = False
    try:
        rendezvous = find_peer(directory, timeout=timeout)
        across = rendezvous is not None
        if rendezvous is None:
            rendezvous = Rendezvous.create(directory, timeout=timeout)
            process = peer = start_peer(rendezvous)
            rendezvous.is_alive = lambda: peer.poll() is None
        for answer in Doctor(rendezvous, timeout=timeout).examine():
            answers.append(answer)
    except OSError as error:
        if isinstance(error, SpoolpoolError):
            raise
        text = f"a file cannot be created or read here ({error.strerror}): some questions have no answer"
        answers.append(Answer(question="files", grade="bad", text=text, value=error.strerror))
    finally:
        if process is not None:
            process.kill()
            process.wait()
        if rendezvous is not None:
            rendezvous.remove()
    return across, answers


def describe(directory: str) -> list[Answer]:
    """Return the answers that need no peer: type and options of the mount, space, inodes, quota, permissions."""
    point, kind, options = mount_of(directory)
    chosen = [each for each in options.split(",") if each.partition("=")[0] in _RELEVANT_OPTIONS]
    answers = [
        Answer(
            question="filesystem",
            grade="note" if _NOTED_OPTIONS.intersection(chosen) else "good",
            text=f"{kind} mounted on {point}" + (f" with {','.join(chosen)}" if chosen else ""),
            value={"kind": kind, "mount": point, "options": chosen, "local": kind in LOCAL},
        )
    ]
    space = os.statvfs(directory)
    free, inodes = space.f_bavail * space.f_frsize, space.f_favail
    short = free < 1 << 30 or (space.f_files and inodes < 10_000)
    text = f"{free / (1 << 30):.1f} GiB" + (f" and {inodes} inodes" if space.f_files else "") + " are free"
    answers.append(Answer(question="space", grade="note" if short else "good", text=text, value=[free, inodes]))
    if said := quota(point):
        answers.append(Answer(question="quota", grade="good", text=f"quota: {said}", value=said))
    is_spool = os.path.lexists(f"{directory}/spool.json")
    denied = [name for name in (".", *(Layout.DIRECTORIES if is_spool else ())) if _is_denied(f"{directory}/{name}")]
    text = f"this account cannot write to {', '.join(denied)}" if denied else "this account can write here"
    answers.append(Answer(question="permissions", grade="bad" if denied else "good", text=text, value=denied))
    return answers


def _is_denied(path: str) -> bool:
    return os.path.isdir(path) and not os.access(path, os.W_OK | os.X_OK)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Recommended settings of a spool on this filesystem."""

    lease: float
    """``spool init --lease``."""
    caches: float
    """``spool init --caches``."""


def recommend(answers: list[Answer]) -> Settings:
    """Derive settings from the answers: several times the longest delay that was measured."""
    found = {answer.question: answer.value for answer in answers}
    local = bool((found.get("filesystem") or {}).get("local"))
    # a change that was not seen before the timeout counts as a delay of the timeout
    delays = [
        TIMEOUT if found[each] is None else found[each] for each in ("listed", "looked up", "removed") if each in found
    ]
    beat = TIMEOUT if found.get("heartbeat", 0.0) is None else found.get("heartbeat", 0.0)
    lease = max(10.0 if local else settings.LEASE, 6 * beat)
    caches = max(1.0 if local else settings.CACHE_SECONDS, 3 * max(delays, default=0.0))
    return Settings(lease=math.ceil(lease), caches=math.ceil(caches))


def verdict(answers: list[Answer]) -> str:
    """Summarize the answers in a sentence, without its full stop."""
    bad = [answer.question for answer in answers if answer.grade == "bad"]
    if bad:
        return f"do not create a spool here before this is solved: {', '.join(bad)}"
    notes = [answer.question for answer in answers if answer.grade == "note"]
    return f"suitable for a spool; see the notes on {', '.join(notes)}" if notes else "suitable for a spool"
