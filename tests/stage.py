"""What tests of the protocol play with: a clock that they move, a worker and an inbox that do one thing at a time.

Everything that decides is the package's own; what is left out are threads, waiting, and the process that beats.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from spoolpool import (
    backoff,
    claim,
    claimer,
    collector,
    dependencies,
    envelope,
    fsio,
    garbage,
    listing,
    pickling,
    publishing,
    recovery,
    registry,
    retention,
    settings,
    worker,
)
from spoolpool import task as records
from spoolpool.call import Report
from spoolpool.config import Keep
from spoolpool.context import current_task
from spoolpool.errors import WorkerLost
from spoolpool.future import TaskFuture
from spoolpool.identity import Identity
from spoolpool.layout import (
    CANCELLED,
    Lane,
    Token,
    bucket_name,
    new_submitter_id,
    new_task_id,
    new_worker_id,
    parse_token,
    submitter_of,
)
from spoolpool.needs import Needs
from spoolpool.objects import ObjectCache
from spoolpool.pickling import ObjectRef
from spoolpool.publishing import outcome_parts
from spoolpool.recovery import Recovery
from spoolpool.registry import Registration, WorkerInfo
from spoolpool.serial import SerialGroup
from spoolpool.session import Session
from spoolpool.signature import outcome_label
from spoolpool.spool import Spool
from spoolpool.task import TaskHeader
from spoolpool.trust import Trust
from spoolpool.worker import Terms, Worker

LANE = Lane("default", 1, 1, 0, settings.PYTHON).name


class Clock:
    """``time`` for the package's modules, where waiting takes no time and the test moves the monotonic clock."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def monotonic(self) -> float:
        """Seconds as the observers see them."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let them pass."""
        self.now += seconds

    @classmethod
    def installed(cls, monkeypatch: pytest.MonkeyPatch, *, observers: bool = False) -> Clock:
        """The clock of everybody in this process, or of ``observers`` alone: then others do wait."""
        clock = cls()
        others = () if observers else (backoff, claimer, dependencies, listing, publishing, retention, worker)
        for module in (recovery, registry, collector, *others):
            monkeypatch.setattr(module, "time", clock)
        return clock


class _Beat:
    """The process that beats, as its worker sees it."""

    def poll(self) -> None:
        return None

    def kill(self) -> None:
        pass

    def communicate(self) -> None:
        pass


class EndOfRounds(Exception):
    """Whoever waits has waited often enough."""


class SilentWatch:
    """A watch that never sees anything; to wait on it takes no time, and only so many times."""

    def __init__(self, clock: Clock, rounds: int) -> None:
        self._clock = clock
        self._left = rounds

    def add(self, directory: str) -> None:
        pass

    def keep(self, directories: set[str]) -> None:
        pass

    def clear(self) -> None:
        pass

    def pause(self, seconds: float) -> bool:
        return False

    def wake(self) -> None:
        pass

    def close(self) -> None:
        pass

    def wait(self, seconds: float) -> bool:
        self._left -= 1
        if self._left < 0:
            raise EndOfRounds
        self._clock.sleep(min(max(seconds, 0.2), 1.0))
        return False


class SilentRegistration(Registration):
    """An entry without a process that beats: its sign of life is still."""

    def _start(self) -> Any:
        return _Beat()


def leave_trace(path: str, needed: object = None) -> str:
    """A task: leaves a line with its name for each run."""
    with open(path, "a", encoding="ascii") as file:
        file.write(f"{current_task().id}\n")
    return "value"


def leave_trace_and_raise_at_first(path: str) -> str:
    """A task that does not succeed before its second attempt."""
    attempt = _trace_of_attempt(path)
    if attempt == 1:
        raise ValueError("not yet")
    return "value"


def leave_trace_and_be_fenced_at_first(path: str, root: str) -> str:
    """A task in whose first attempt others take the worker for dead, and let the task wait again."""
    if _trace_of_attempt(path) == 1:
        name = current_task().id
        [claimed] = Path(root, "claimed").glob(f"{name}.*")
        [bucket] = Path(root, "ready", LANE).glob(f"{name[:18]}-*")  # it is the first of its bucket
        token = parse_token(claimed.name)
        assert token is not None
        claimed.rename(bucket / token.requeued().name)
    return "value"


def _trace_of_attempt(path: str) -> int:
    task = current_task()
    with open(path, "a", encoding="ascii") as file:
        file.write(f"{task.id}:{task.attempt}\n")
    return task.attempt


def dead_process() -> Identity:
    """A process of this host that is provably dead: it has this one's pid, and started at another time."""
    return msgspec.structs.replace(Identity.of(os.getpid()), start="1")


def unknown_process() -> Identity:
    """A process of another host: nothing can be proven about it here."""
    return msgspec.structs.replace(Identity.of(os.getpid()), boot="another", host="elsewhere")


def info_of(process: Identity, worker_id: str = "", **more: Any) -> WorkerInfo:
    """The entry of a serial group."""
    return WorkerInfo(worker=worker_id or new_worker_id(), process=process, user="tester", **more)


def announce(spool: Spool, process: Identity, **more: Any) -> str:
    """Make a worker's entry as its worker does; returns its id."""
    info = info_of(process, **more)
    SilentRegistration(spool, info)
    return info.worker


def outcome_of(header: TaskHeader, token: Token) -> list[envelope.Buffer]:
    """A complete outcome: the bytes of its file."""
    payload, buffers = pickling.dumps("value")
    return outcome_parts(header, token, Report(payload, buffers, None), 1, 0.0)


class Inbox(Session):
    """A session without a thread: it looks when it is told to."""

    def __init__(self, spool: Spool, clock: Clock, name: str = "inbox", *, keeps: bool = False) -> None:
        super().__init__(spool, name, accept=Trust(), submitter=submitter_of(name) if keeps else "", keeps=keeps)
        self._collector.close()
        self._collector.start = lambda: False  # type: ignore[method-assign]
        self._clock = clock
        self.given: dict[str, TaskFuture] = {}

    def put(self, function: Any, *args: Any, **options: Any) -> TaskFuture:
        """Submit a call."""
        task_id = new_task_id(options.pop("priority", settings.PRIORITY))
        needs = Needs(self.spool, task_id, self.holdings.take)
        payload, buffers = pickling.dumps((function, args, {}), needs.refer)
        options["objects"] = needs.objects
        future = self.submit(payload, buffers, lane=LANE, name="tested", needs=needs, **options)
        self.given[future.task] = future
        return future

    def put_object(self, value: Any) -> ObjectRef:
        """Store a value, as an executor does."""
        return ObjectRef(self.spool.config.id, self.holdings.put(*pickling.dumps(value)), 0)

    def expect(self, header: TaskHeader) -> TaskFuture:
        """The future of a task, also of one that another incarnation of this session submitted."""
        future = self._awaited.get(header.task)
        if future is None:
            future = self.given[header.task] = TaskFuture(self, header)
            self._awaited.add(future)
        return future

    def forget(self, task: str | None = None) -> None:
        """Await a task no more, or none."""
        with self._awaited.lock:
            for each in self.pending():
                if task in (None, each.task):
                    self._awaited._forget(each.task)

    def look(self, rounds: int = 3) -> None:
        """Do what the thread that collects does, for a few rounds."""
        self._collector._watch = SilentWatch(self._clock, rounds)  # type: ignore[assignment]
        with contextlib.suppress(EndOfRounds):
            self._collector._loop()


class Seen(NamedTuple):
    """One look at a spool."""

    ready: dict[str, Token]
    claimed: dict[str, Token]
    results: dict[str, Token]
    outgoing: dict[str, Token]
    failed: dict[str, Token]


class Stage:
    """One spool, and those who work on it one after the other.

    The diary is a file that all processes write to: what was submitted, what ran, what was delivered.
    """

    session = "inbox"
    may_come: tuple[type[BaseException], ...] = (WorkerLost,)
    """Exceptions that may be the outcome of a task."""

    def __init__(self, directory: Path, clock: Clock, *, attempts: int = 2) -> None:
        self.clock = clock
        self.diary = directory / "diary"
        directory.mkdir()
        self.effects = directory / "effects"
        self.struck = directory / "struck"
        self.effects.touch()
        self.diary.touch()
        self.spool = Spool.create(directory / "spool", durability="none", lease=0.3, caches=0.5, max_attempts=attempts)
        self.published: dict[str, set[str]] = {}

    def durability(self, durability: fsio.Durability) -> None:
        """What everybody syncs from now on."""
        self.spool.config = msgspec.structs.replace(self.spool.config, durability=durability)

    # -- what people do, in this process or in a child that is about to end

    def note(self, what: str, task: str) -> None:
        """Write a line into the diary, past every fault."""
        with self.diary.open("a") as file:
            file.write(f"{what} {task}\n")

    def inbox(self, *, keeps: bool = False) -> Inbox:
        """A new incarnation of the submitter, perhaps one that keeps its outcomes."""
        return Inbox(self.spool, self.clock, self.session, keeps=keeps)

    def submit(
        self, inbox: Inbox | None = None, function: Callable[..., str] = leave_trace, *more: object, **options: Any
    ) -> TaskHeader:
        """Submit a task that leaves a trace of each run."""
        future = (inbox or self.inbox()).put(function, str(self.effects), *more, **options)
        self.note("submitted", future.task)
        return future.header

    def work(self, *, tasks: int | None = None) -> None:
        """Be a worker until nothing waits any more, or until so many tasks are done."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(worker, "Registration", SilentRegistration)
            patch.setattr(worker, "Watch", lambda: SilentWatch(self.clock, 100))
            info = info_of(Identity.of(os.getpid()))
            Worker(
                self.spool,
                SerialGroup(objects=ObjectCache(self.spool, Trust())),
                info,
                Terms(max_tasks=tasks, idle_timeout=0.3),
            ).run()

    def collect(self, inbox: Inbox, headers: Iterable[TaskHeader]) -> None:
        """Deliver what has come of these tasks."""
        for header in headers:
            inbox.expect(header).add_done_callback(self._delivered)
        inbox.look()

    def _delivered(self, future: Any) -> None:
        if not future.cancelled():
            error = future.exception()
            good = isinstance(error, self.may_come) if error else future.result() == "value"
            if not good:
                self.note(f"surprise:{error!r}".replace(" ", "_"), future.header.task)
        self.note("delivered", future.header.task)

    # -- what holds, and what the others bring about

    def story(self) -> str:
        """What happened here."""
        struck = self.struck.read_text() if self.struck.exists() else "no fault"
        return f"{struck}\n{self.diary.read_text()}{self.seen()}"

    def notes(self, what: str) -> Counter[str]:
        """How often the diary says this about each task."""
        lines = (line.split() for line in self.diary.read_text().splitlines())
        return Counter(task for said, task in lines if said == what)

    def runs(self) -> Counter[str]:
        """How often the function of each task ran (of each attempt, where every one runs once)."""
        return Counter(self.effects.read_text().split())

    def seen(self) -> Seen:
        """Every task file and every outcome, by its path below the spool."""
        where = self.spool.layout
        lanes = [where.lane(lane) for lane in fsio.names(where.ready)]
        buckets = [f"{lane}/{bucket}" for lane in lanes for bucket in fsio.names(lane)]
        return Seen(
            ready=self._tokens(where.waiting, *buckets),
            claimed=self._tokens(where.claimed),
            results=self._tokens(f"{where.results}/{self.session}"),
            outgoing=self._tokens(f"{where.outgoing}/{self.session}"),
            failed=self._tokens(where.failed),
        )

    def _tokens(self, *directories: str) -> dict[str, Token]:
        found = {}
        for directory in directories:
            for name in fsio.names(directory):
                token = parse_token(name)
                assert token is not None, f"{name} in {directory}"
                found[os.path.relpath(f"{directory}/{name}", self.spool.path)] = token
        return found

    def complete(self) -> set[str]:
        """Tasks of which a complete outcome was written for a claim that stands."""
        seen = self.seen()
        claims = set(seen.claimed.values())
        return {token.task for token in seen.outgoing.values() if token in claims and self.outcome(token)}

    def places(self, seen: Seen | None = None) -> dict[str, list[str]]:
        """Where the token of each task stands."""
        seen = seen or self.seen()
        found: dict[str, list[str]] = {}
        for tokens in (seen.ready, seen.claimed, seen.results, seen.failed):
            for path, token in tokens.items():
                found.setdefault(token.task, []).append(path)
        return found

    def check(self, *, forgiven: frozenset[str] = frozenset()) -> None:
        """Invariants 1 and 2, at any moment. ``forgiven``: their submitter ended while it took them out."""
        seen = self.seen()
        places = self.places(seen)
        delivered = self.notes("delivered")
        assert "surprise" not in self.diary.read_text()
        for task, paths in places.items():
            assert len(paths) == 1, f"{task} stands in {paths}"
        for task in self.notes("submitted").keys() - delivered.keys() - forgiven:
            assert task in places, f"{task} is lost"
        for token in seen.results.values():
            if token.worker != CANCELLED:
                assert self.outcome(token) is not None, f"{token.name} is published without its outcome"
            self.published.setdefault(token.task, set()).add(token.name)
        for task, names in self.published.items():
            assert len(names) == 1, f"{task} was published as {names}"

    def outcome(self, token: Token) -> records.OutcomeHeader | None:
        """The outcome of a claim, if it is complete."""
        path = self.spool.layout.outcome(self.session, token)
        try:
            fd = fsio.open_file(path)
        except FileNotFoundError:
            return None
        try:
            label = outcome_label(self.session, token.name)
            return records.decode_outcome(self.spool.read(fd, fsio.size(fd), path, label).header, path)
        except Exception:  # noqa: BLE001  whatever is wrong with it: it is not complete
            return None
        finally:
            fsio.close(fd)

    def headers(self, paths: Iterable[str]) -> list[TaskHeader]:
        """What the task files at these paths say."""
        tokens = {path: parse_token(os.path.basename(path)) for path in paths}
        return [
            claim.read_task(self.spool, f"{self.spool.path}/{path}", token) for path, token in tokens.items() if token
        ]

    def recover(self, observer: Recovery | None = None, *, rounds: int = 5) -> list[str]:
        """Let an observer look, by default until it has seen everybody's silence for longer than a lease."""
        observer = observer or Recovery(self.spool)
        done = []
        for _ in range(rounds):
            done += observer.round()
            self.clock.sleep(self.spool.config.lease)
        return done

    def settle(self, *, forgiven: frozenset[str] = frozenset()) -> None:
        """Let the others recover, run and collect until nothing is left, then check that nothing is."""
        self.check(forgiven=forgiven)
        observer = Recovery(self.spool)
        for _ in range(6):
            seen = self.seen()
            if seen.claimed or seen.outgoing:
                self.recover(observer)
                self.check(forgiven=forgiven)
                seen = self.seen()
            if seen.ready:
                self.work()
                self.check(forgiven=forgiven)
                seen = self.seen()
            if not seen.results:
                break
            self.collect(self.inbox(), self.headers(seen.results))
            self.check(forgiven=forgiven)
        self.leave_nothing()

    def leave_nothing(self) -> None:
        """Nothing is left over but unfinished writes in tmp/, which are the garbage collection's."""
        inbox = self.inbox()
        if self.seen().outgoing:
            # while a session waits for something, it looks after what its earlier incarnations left
            task = new_task_id()
            bucket = bucket_name(task, new_submitter_id())
            inbox.expect(TaskHeader(task=task, session=self.session, lane=LANE, bucket=bucket))
            inbox.look(rounds=8)
            inbox.forget()
        if unfinished := fsio.names(self.spool.layout.tmp):
            for name in unfinished:
                os.utime(f"{self.spool.layout.tmp}/{name}", (0, 0))
            garbage.remove(self.spool, garbage.rubbish(self.spool, Keep()))
            assert fsio.names(self.spool.layout.tmp) == []
            self.collect(inbox, self.headers(self.seen().results))  # what was kept for them
            inbox.look(rounds=8)
        inbox.close()
        root = Path(self.spool.path)
        left = [str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()]
        allowed = ("spool.json", "failed/", "journal/", "workers/", "sessions/")
        assert [path for path in left if not path.startswith(allowed)] == []
