"""What can a filesystem be trusted with? Found out by trying, between two processes or two hosts.

The doctor asks a *peer* to do things to files and looks at what comes of it here. The peer is a process that
this one starts, or one that somebody started on another host; the questions are the same. They talk through
files in a directory beside what is examined: unique names, written once.
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
    PATIENCE,
    TOKENS,
    Rendezvous,
    answer_name,
    create_all,
    order_name,
    rename_all,
    start_peer,
    until_true,
    waiting_peer,
)
from spoolpool.system import files
from spoolpool.system.backoff import Backoff
from spoolpool.system.locks import Lock, try_lock
from spoolpool.system.mounts import LOCAL, mount_of, quota
from spoolpool.system.watch import DirectoryWatcher

Grade = Literal["good", "note", "bad"]

_RACES = 3
_LOCK_PATIENCE = 20.0
_TICK = 0.05
_WHOLE_SECOND = 1.5  # with its jitter never less than 1.1 s: some filesystems keep whole seconds
_OPTIONS_THAT_MATTER = (
    "nolock", "local_lock", "noac", "actimeo", "acregmax", "acdirmax", "lookupcache", "soft", "flock", "noflock",
    "localflock", "vers", "nfsvers", "sync", "ro",
)  # fmt: skip
_OPTIONS_OF_NOTE = frozenset({"nolock", "local_lock=all", "local_lock=flock", "localflock", "noflock", "soft", "ro"})


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


class Doctor:
    """The near side: asks one peer and grades what comes of it. ``patience``: to see what the peer did."""

    def __init__(self, meeting: Rendezvous, *, patience: float = PATIENCE) -> None:
        self._meeting = meeting
        self._patience = patience
        self._orders = 0
        self._names_made = 0

    def examine(self) -> Iterator[Answer]:
        """All questions that need two, one after the other."""
        yield self._clock()
        yield self._renames()
        yield self._creates()
        yield from self._locks()
        yield from self._names()
        yield self._signs_of_life()
        yield self._inotify()
        self._ask("go")

    def _ask(self, do: str, name: str = "", meanwhile: Callable[[], object] = lambda: None) -> dict[str, Any]:
        number, self._orders = self._orders, self._orders + 1
        self._meeting.post(order_name(number), {"do": do, "name": name})
        meanwhile()
        answer = self._meeting.hear(answer_name(number), f"its answer to {do!r}")
        if "error" in answer:
            raise SpoolpoolError(f"The other side could not do what was asked ({do}): {answer['error']}.")
        return answer

    def _new_name(self, what: str) -> str:
        self._names_made += 1
        return f"{what}-{self._names_made}"

    def _new_place(self, what: str) -> str:
        """A directory two levels down: the meeting is listed often, which on NFS tells of the directories in it."""
        name = self._new_name(what)
        for each in (name, f"{name}/in"):
            files.make_directory(f"{self._meeting.path}/{each}")
        return f"{name}/in"

    def _clock(self) -> Answer:
        self._ask("clock")  # it may only just be starting
        before = time.time()
        theirs = self._ask("clock")
        unsure = (time.time() - before) / 2
        offset = theirs["now"] - before - unsure
        text = (
            f"the clock of {theirs['host']} is {offset:+.1f} s from this one's (give or take {unsure:.1f}); nothing "
            "compares them"
        )
        return Answer(question="clock", grade="good", text=text, value=round(offset, 3))

    def _race(self, do: str, run: Callable[[str], int], task_files: int) -> tuple[int, int]:
        """Let both do the same to the same files at once; how many each won. Once more, if they did not meet."""
        for _ in range(_RACES):
            mine, theirs = self._race_once(do, run, task_files)
            if mine and theirs:
                break
        return mine, theirs

    def _race_once(self, do: str, run: Callable[[str], int], task_files: int) -> tuple[int, int]:
        race = self._new_name("race")
        directory = f"{self._meeting.path}/{race}"
        files.make_directory(directory)
        for number in range(task_files):
            files.create(f"{directory}/{number}", [])
        mine = []

        def compete() -> None:
            self._meeting.hear(f"ready-{race}", "a sign that it is ready for a race")
            self._meeting.post(f"start-{race}", {})
            mine.append(run(directory))

        theirs = self._ask(do, race, compete)["won"]
        files.remove_tree(directory)
        return mine[0], theirs

    def _renames(self) -> Answer:
        mine, theirs = self._race("rename", lambda directory: rename_all(directory, "doctor"), TOKENS)
        return self._winners("rename", "renamed", mine, theirs)

    def _creates(self) -> Answer:
        mine, theirs = self._race("create", create_all, 0)
        return self._winners("create", "created", mine, theirs)

    @staticmethod
    def _winners(question: str, did: str, mine: int, theirs: int) -> Answer:
        grade: Grade = "good"
        text = f"of {TOKENS} files that two {did} at once, one got {mine} and the other {theirs}"
        if mine + theirs != TOKENS:
            grade = "bad"
            text += ": there can be two winners or none here. Do not use this filesystem for a spool"
        elif not (mine and theirs):
            grade = "note"
            text += ": they never met, so that this proves nothing"
        return Answer(question=question, grade=grade, text=text, value=mine + theirs - TOKENS)

    def _locks(self) -> Iterator[Answer]:
        name = self._new_name("lock")
        path = f"{self._meeting.path}/{name}"
        files.create(path, [])
        theirs = Lock(self._ask("hold", name)["lock"])
        fd = files.open_file(path, write=True)
        try:
            mine = try_lock(fd)
            if theirs is not Lock.TAKEN or mine is Lock.NONE:
                self._ask("kill")
                text = "there are no locks (mount with flock, or start lockd): the lease alone tells who lives"
                yield Answer(question="locks", grade="note", text=text, value="none")
                return
            if mine is Lock.TAKEN:
                self._ask("kill")
                text = (
                    "a lock excludes only its own host (nolock, localflock): the lease alone tells who lives elsewhere"
                )
                yield Answer(question="locks", grade="note", text=text, value="per host")
                return
            yield Answer(question="locks", grade="good", text="a lock here excludes the other side", value="yes")
            self._ask("kill")
            patience = min(_LOCK_PATIENCE, self._patience)
            seconds = until_true(lambda: try_lock(fd) is Lock.TAKEN, patience)
            if seconds is None:
                text = f"a killed process still holds its lock after {patience:g} s: its tasks wait for 10 leases"
                yield Answer(question="lock of the dead", grade="note", text=text)
                return
            text = f"the lock of a killed process was free after {seconds:.3f} s"
            yield Answer(question="lock of the dead", grade="good", text=text, value=round(seconds, 3))
        finally:
            files.close(fd)

    def _names(self) -> Iterator[Answer]:
        listed, looked_up, gone = (self._new_place(what) for what in ("listed", "name", "gone"))
        place, come, went = (f"{self._meeting.path}/{each}" for each in (listed, f"{looked_up}/new", f"{gone}/new"))
        self._ask("make", f"{gone}/new")
        # in a later tick than they were made in, or NFS 3 might never list what comes next (see files.refresh)
        Backoff(_TICK, _TICK).sleep()
        # listed, looked up in vain, and seen: caches may go on saying so. The first alone is listed: that asks anew
        files.list_names(place)
        os.path.lexists(come)
        os.path.lexists(went)
        self._ask("make", f"{listed}/new")
        yield self._delay("listed", lambda: bool(files.list_names(place)), "a new name is listed", bound=1.0)
        # each of these takes half a minute on NFS: both at once
        self._ask("make", f"{looked_up}/new")
        self._ask("take", f"{gone}/new")
        begin = time.monotonic()
        wanted: dict[str, Callable[[], bool]] = {
            "looked up": lambda: os.path.lexists(come),
            "gone": lambda: not os.path.lexists(went),
        }
        seen: dict[str, float] = {}

        def all_seen() -> bool:
            for question, condition in wanted.items():
                if question not in seen and condition():
                    seen[question] = time.monotonic() - begin
            return len(seen) == len(wanted)

        until_true(all_seen, self._patience, self._meeting.present)
        text = "a new name that was looked up in vain before is found"
        yield self._seen("looked up", seen.get("looked up"), text, bound=60.0)
        yield self._seen("gone", seen.get("gone"), "a removed name is no longer found", bound=60.0)

    def _signs_of_life(self) -> Answer:
        name = self._new_name("beat")
        path = f"{self._meeting.path}/{name}"
        files.create(path, [])
        before = files.mtime_ns(path)
        Backoff(_WHOLE_SECOND, _WHOLE_SECOND).sleep()
        self._ask("touch", name)
        changed = "a sign of life is seen"
        return self._delay("sign of life", lambda: files.mtime_ns(path) != before, changed, bound=settings.LEASE / 3)

    def _inotify(self) -> Answer:
        watch = DirectoryWatcher()
        try:
            name = self._new_place("watched")
            watch.add(f"{self._meeting.path}/{name}")
            self._ask("make", f"{name}/new")
            told = watch.wait(2.0)
        finally:
            watch.close()
        text = "changes by the other side are told (inotify)" if told else "changes are found by polling: no inotify"
        return Answer(question="inotify", grade="good" if told else "note", text=text, value=told)

    def _delay(self, question: str, condition: Callable[[], bool], what: str, bound: float) -> Answer:
        return self._seen(question, until_true(condition, self._patience, self._meeting.present), what, bound)

    def _seen(self, question: str, seconds: float | None, what: str, bound: float) -> Answer:
        if seconds is None:
            text = f"{what} not even after {self._patience:g} s"
            return Answer(question=question, grade="bad", text=text)
        grade: Grade = "good" if seconds <= bound else "note"
        return Answer(question=question, grade=grade, text=f"{what} after {seconds:.3f} s", value=round(seconds, 3))


def examine(directory: str, *, patience: float = PATIENCE) -> tuple[bool, list[Answer]]:
    """Find out all about a directory: whether it was between two hosts' processes, and the answers.

    A peer that waits in it is asked (:class:`Peer`), else one that is started here. Nothing is left behind. Raises
    :class:`TaskTimeout` where the peer does not answer.
    """
    answers = describe(directory)
    meeting = None
    process = None
    across = False
    try:
        meeting = waiting_peer(directory, patience=patience)
        across = meeting is not None
        if meeting is None:
            meeting = Rendezvous.make(directory, patience=patience)
            process = peer = start_peer(meeting)
            meeting.present = lambda: peer.poll() is None
        for answer in Doctor(meeting, patience=patience).examine():
            answers.append(answer)
    except OSError as error:
        if isinstance(error, SpoolpoolError):
            raise
        text = f"a file cannot be made or read here ({error.strerror}): not everything could be tried"
        answers.append(Answer(question="files", grade="bad", text=text, value=error.strerror))
    finally:
        if process is not None:
            process.kill()
            process.wait()
        if meeting is not None:
            meeting.close()
    return across, answers


def describe(directory: str) -> list[Answer]:
    """What one look tells: kind and options of the mount, space, inodes, quota, permissions."""
    point, kind, options = mount_of(directory)
    chosen = [each for each in options.split(",") if each.partition("=")[0] in _OPTIONS_THAT_MATTER]
    answers = [
        Answer(
            question="filesystem",
            grade="note" if _OPTIONS_OF_NOTE.intersection(chosen) else "good",
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
    denied = [name for name in (".", *(Layout.DIRECTORIES if is_spool else ())) if _shut(f"{directory}/{name}")]
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
    # what was not seen at all in time is taken for as slow as the doctor is patient
    delays = [
        PATIENCE if found[each] is None else found[each] for each in ("listed", "looked up", "gone") if each in found
    ]
    beat = PATIENCE if found.get("sign of life", 0.0) is None else found.get("sign of life", 0.0)
    lease = max(10.0 if local else settings.LEASE, 6 * beat)
    caches = max(1.0 if local else settings.CACHE_SECONDS, 3 * max(delays, default=0.0))
    return Settings(lease=math.ceil(lease), caches=math.ceil(caches))


def verdict(answers: list[Answer]) -> str:
    """All of it in a sentence."""
    bad = [answer.question for answer in answers if answer.grade == "bad"]
    if bad:
        return f"do not put a spool here before this is mended: {', '.join(bad)}"
    notes = [answer.question for answer in answers if answer.grade == "note"]
    return f"a spool can lie here; mind what is said about {', '.join(notes)}" if notes else "a spool can lie here"
