"""Single-threaded workers, submitters and clocks for tests of the protocol.

All decisions are made by the code of the package. Left out are its threads, its waiting and its heartbeat processes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from spoolpool import settings
from spoolpool.calls import pickling
from spoolpool.calls.interruption import Interrupter
from spoolpool.calls.isolation import PickledCall, Watch, run_apart
from spoolpool.calls.pickling import ObjectRef
from spoolpool.calls.run import RankResult
from spoolpool.client import collector, delivery, retention, vanished
from spoolpool.client.futures import TaskFuture
from spoolpool.client.prepared_call import PreparedCall
from spoolpool.client.references import CallReferences
from spoolpool.client.session import SubmitterSession
from spoolpool.context import CurrentTask, current_task
from spoolpool.errors import WorkerLost
from spoolpool.format import envelope
from spoolpool.format import headers as records
from spoolpool.format.config import RetentionPolicy
from spoolpool.format.headers import TaskHeader
from spoolpool.format.names import (
    CANCELLED,
    Lane,
    TaskFile,
    bucket_name,
    new_submitter_id,
    new_task_id,
    new_worker_id,
    parse_task_file,
    submitter_of,
)
from spoolpool.maintenance import garbage
from spoolpool.protocol import claimer, dependencies, heartbeat, listing, open_packs, presence, recovery, tasks
from spoolpool.protocol.object_cache import ObjectCache
from spoolpool.protocol.open_packs import OpenPack
from spoolpool.protocol.outcome_log import find_log
from spoolpool.protocol.outcomes import read_outcome
from spoolpool.protocol.packs import PackedCall
from spoolpool.protocol.recovery import Recovery
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.worker_registration import Registration
from spoolpool.protocol.workers import WorkerInfo, remove_worker
from spoolpool.resources import Resources
from spoolpool.security.trust import Trust
from spoolpool.system import backoff, files
from spoolpool.system.processes import ProcessId
from spoolpool.wire import PackResults
from spoolpool.worker import execution, housekeeping, idle_wait, loop, pack_run, publish
from spoolpool.worker.group import RankEnvironment
from spoolpool.worker.loop import Worker, WorkerOptions
from spoolpool.worker.publish import outcome_parts
from spoolpool.worker.serial_group import SerialGroup

LANE = Lane("default", 1, 1, 0, settings.PYTHON).name


class Clock:
    """Replacement for ``time`` in modules of the package: waiting takes no time, and the test moves the clock."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def monotonic(self) -> float:
        """Return the seconds of this clock."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Advance the clock by so many seconds."""
        self.now += seconds

    @classmethod
    def installed(cls, monkeypatch: pytest.MonkeyPatch, *, observers: bool = False) -> Clock:
        """Install a clock for all that waits in this process, or for the ``observers`` of heartbeats only."""
        clock = cls()
        worker = publish, loop, execution, pack_run, housekeeping, idle_wait
        others = () if observers else (backoff, claimer, dependencies, listing, presence, retention, vanished, *worker)
        monkeypatch.setattr(open_packs, "_now", clock.monotonic)
        for module in (recovery, heartbeat, collector, delivery, *others):
            monkeypatch.setattr(module, "time", clock)
        return clock


class _Beat:
    """Stand-in for the heartbeat."""

    def keep(self) -> bool:
        return True

    def close(self) -> None:
        pass


class EndOfRounds(Exception):
    """End of the last allowed wait."""


class SilentWatch:
    """Directory watcher that never sees a change. Waiting takes no time, and works only so many times."""

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

    def new_names(self) -> None:
        return None

    def covers(self, directories: set[str]) -> bool:
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
    """Entry of a worker without heartbeat processes."""

    def _start(self) -> Any:
        return _Beat()


class _NoInterrupter(Interrupter):
    """Interrupter without its thread, of which every staged worker would leave one behind."""

    def watch(self, *_: object) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


def leave_trace(path: str, needed: object = None) -> str:
    """Task that appends a line with its id for each run."""
    with open(path, "a", encoding="ascii") as file:
        file.write(f"{current_task().id}\n")
    return "value"


def leave_trace_of_call(path: str, number: int) -> str:
    """Call of a pack that appends a line with its number for each run."""
    with open(path, "a", encoding="ascii") as file:
        file.write(f"{current_task().id}+{number}\n")
    return "value"


def leave_trace_and_raise_at_first(path: str) -> str:
    """Task that raises in its first attempt."""
    attempt = _trace_of_attempt(path)
    if attempt == 1:
        raise ValueError("not yet")
    return "value"


def leave_trace_and_be_fenced_at_first(path: str, root: str) -> str:
    """Task that is requeued in its first attempt: another process fences its worker."""
    if _trace_of_attempt(path) == 1:
        name = current_task().id
        [claimed] = Path(root, "claimed").glob(f"{name}.*")
        [bucket] = Path(root, "ready", LANE).glob(f"{name[:18]}-*")  # the first task of its bucket
        task_file = parse_task_file(claimed.name)
        assert task_file is not None
        claimed.rename(bucket / task_file.requeued().name)
    return "value"


def _trace_of_attempt(path: str) -> int:
    task = current_task()
    with open(path, "a", encoding="ascii") as file:
        file.write(f"{task.id}:{task.attempt}\n")
    return task.attempt


def dead_process() -> ProcessId:
    """Return a process of this host that is provably dead: with the pid of this one, and another start time."""
    return msgspec.structs.replace(ProcessId.of(os.getpid()), start="1")


def unknown_process() -> ProcessId:
    """Return a process of another host, about which nothing can be proven here."""
    return msgspec.structs.replace(ProcessId.of(os.getpid()), boot="another", host="elsewhere")


def info_of(process: ProcessId, worker_id: str = "", **more: Any) -> WorkerInfo:
    """Return the entry of a serial group."""
    return WorkerInfo(worker=worker_id or new_worker_id(), process=process, user="tester", **more)


def announce(spool: Spool, process: ProcessId, **more: Any) -> str:
    """Register a worker; return its id."""
    info = info_of(process, **more)
    SilentRegistration(spool, info)
    return info.worker


def register(spool: Spool, process: ProcessId, **more: Any) -> Registration:
    """Register a worker; return its registration."""
    return SilentRegistration(spool, info_of(process, **more))


def outcome_of(header: TaskHeader, task_file: TaskFile) -> list[envelope.Buffer]:
    """Return the parts of a complete outcome file."""
    payload, buffers = pickling.dumps("value")
    return outcome_parts(header, task_file, RankResult(payload, buffers, None), 1, 0.0)


def run_worker(spool: Spool, clock: Clock, *, tasks: int | None = None, **info: Any) -> None:
    """Run a worker in this process until no task is ready, or until it has run this number of tasks.

    It seems to be on another host, because this process outlives it.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "Registration", SilentRegistration)
        patch.setattr(pack_run, "run_calls", _run_here)
        patch.setattr(loop, "DirectoryWatcher", lambda: SilentWatch(clock, 100))
        group = SerialGroup(
            RankEnvironment(objects=ObjectCache(spool, Trust()), interrupter=_NoInterrupter(None, None, 0.0))
        )
        options = WorkerOptions(max_tasks=tasks, idle_timeout=0.3)
        Worker(spool, group, info_of(unknown_process(), **info), options).run()


def _run_here(
    calls: Iterable[PickledCall], task: CurrentTask, attempt: int, watch: Watch | None = None
) -> Iterator[RankResult]:
    """Run the calls of a pack without the child processes of a further attempt."""
    return run_apart(calls, task, watch)


def prepare_call(inbox: SubmitterSession, function: Any, *args: Any, lane: str = LANE, **options: Any) -> PreparedCall:
    """Pickle a call; the options are fields of :class:`PreparedCall`, or else keys of a ``resource_dict``."""
    fields = {name: options.pop(name) for name in PreparedCall._fields if name in options}
    resources = Resources().updated(options)
    references = CallReferences(inbox.spool, new_task_id(resources.priority), inbox.objects.acquire)
    pickled = pickling.dumps((function, args, {}), references.refer)
    return PreparedCall(function, "tested", lane, *pickled, resources, references)._replace(**fields)


class Inbox(SubmitterSession):
    """Session without a thread: it collects only in :meth:`look`."""

    def __init__(self, spool: Spool, clock: Clock, name: str = "inbox", *, keeps: bool = False) -> None:
        super().__init__(spool, name, accept=Trust(), submitter=submitter_of(name) if keeps else "", keeps=keeps)
        self.collector.close()
        self.collector.start = lambda: False  # type: ignore[method-assign]
        self._clock = clock
        self.given: dict[str, TaskFuture] = {}

    def put(self, function: Any, *args: Any, **options: Any) -> TaskFuture:
        """Submit a call."""
        future = self.submit(prepare_call(self, function, *args, **options))
        self.given[future.task] = future
        return future

    def put_object(self, value: Any) -> ObjectRef:
        """Store a value, as an executor does."""
        return ObjectRef(self.spool.config.id, self.objects.put(*pickling.dumps(value)), 0)

    def expect(self, header: TaskHeader) -> TaskFuture:
        """Return the future of a task, even if another process of this session submitted it."""
        future = self.pending.get(header.task)
        if future is None:
            future = self.given[header.task] = TaskFuture(self, header)
            self.pending.add(future)
        return future

    def forget(self, task: str | None = None) -> None:
        """Stop waiting for a task, or for all."""
        with self.pending.lock:
            for each in self.pending.futures():
                if task in (None, each.task):
                    self.pending._remove(each.task)

    def look(self, rounds: int = 3) -> None:
        """Do the work of the collecting thread for a few rounds."""
        self.collector._watch = SilentWatch(self._clock, rounds)  # type: ignore[assignment]
        with contextlib.suppress(EndOfRounds):
            self.collector._loop()


class Seen(NamedTuple):
    """Task files and outcomes of a spool, by their paths below it."""

    ready: dict[str, TaskFile]
    claimed: dict[str, TaskFile]
    results: dict[str, TaskFile]
    outgoing: dict[str, TaskFile]
    failed: dict[str, TaskFile]


class Stage:
    """A spool, and the processes that work on it one after the other.

    Three files beside the spool are written past all faults: the ``diary`` of all processes (submitted, delivered), the
    ``effects`` of the tasks, and the fault that ``struck``.
    """

    session = "inbox"
    may_come: tuple[type[BaseException], ...] = (WorkerLost,)
    """Exceptions that are valid outcomes of a task."""
    may_be_left: tuple[str, ...] = ()
    """Files that only the garbage collection removes."""

    def __init__(self, directory: Path, clock: Clock, *, attempts: int = 2) -> None:
        self.clock = clock
        self.directory = directory
        self.diary = directory / "diary"
        directory.mkdir()
        self.effects = directory / "effects"
        self.struck = directory / "struck"
        self.effects.touch()
        self.diary.touch()
        self.spool = Spool.create(directory / "spool", durability="none", lease=0.3, caches=0.5, max_attempts=attempts)
        self.published: dict[str, set[str]] = {}
        self._inboxes: list[Inbox] = []

    def close(self) -> None:
        """Close the journals of all sessions."""
        for inbox in self._inboxes:
            inbox.pending.close()
        self._inboxes.clear()

    def restore(self, copy: Path) -> None:
        """Replace all files by a copy of them, which is used up."""
        shutil.rmtree(self.directory)
        copy.rename(self.directory)
        self.published.clear()

    def durability(self, durability: files.Durability) -> None:
        """Set the durability for all processes."""
        self.spool.config = msgspec.structs.replace(self.spool.config, durability=durability)

    # -- steps of the processes, in this process or in a child

    def note(self, what: str, task: str) -> None:
        """Append a line to the diary."""
        with self.diary.open("a") as file:
            file.write(f"{what} {task}\n")

    def inbox(self, *, keeps: bool = False) -> Inbox:
        """Open the session anew; ``keeps`` its outcomes."""
        inbox = Inbox(self.spool, self.clock, self.session, keeps=keeps)
        self._inboxes.append(inbox)
        return inbox

    def submit(
        self, inbox: Inbox | None = None, function: Callable[..., str] = leave_trace, *more: object, **options: Any
    ) -> TaskHeader:
        """Submit a task that appends a line for each run."""
        future = (inbox or self.inbox()).put(function, str(self.effects), *more, **options)
        self.note("submitted", future.task)
        return future.header

    def submit_pack(
        self, inbox: Inbox | None = None, calls: int = 2, ids: Sequence[str] = (), resources: Resources | None = None
    ) -> TaskHeader:
        """Submit a pack of calls that append a line for each run; with ``ids`` of calls, as many as these."""
        inbox = inbox or self.inbox()
        pickled = [
            PackedCall(*pickling.dumps((leave_trace_of_call, (str(self.effects), number), {})), task)
            for number, task in enumerate(ids or [""] * calls)
        ]
        prepared = prepare_call(inbox, leave_trace_of_call)
        asked = resources or prepared.resources
        future = inbox.submit(prepared._replace(payload=b"", buffers=[], calls=pickled, resources=asked))
        inbox.given[future.task] = future
        self.note("submitted", future.task)
        return future.header

    def open_pack(self, inbox: Inbox | None = None) -> OpenPack:
        """Open a pack for calls that append a line for each run."""
        inbox = inbox or self.inbox()
        future, pack = inbox.open_pack(prepare_call(inbox, leave_trace_of_call)._replace(payload=b"", buffers=[]))
        inbox.given[future.task] = future
        return pack

    def append_call(self, pack: OpenPack) -> bool:
        """Append a call to an open pack; return whether it is in the pack, which the diary notes then."""
        arguments = (str(self.effects), pack.calls)
        try:
            number = pack.append(PackedCall(*pickling.dumps((leave_trace_of_call, arguments, {}))))
            committed = pack.commit(number)
        except OSError:
            pack.seal()
            raise
        if committed:
            if not number:
                self.note("submitted", pack.header.task)
            self.note("committed", f"{pack.header.task}+{number}")
        return committed

    def work(self, *, tasks: int | None = None) -> None:
        """Run a worker until no task is waiting, or until it has run this number of tasks."""
        run_worker(self.spool, self.clock, tasks=tasks)

    def collect(self, inbox: Inbox, headers: Iterable[TaskHeader]) -> None:
        """Collect the outcomes of these tasks."""
        for header in headers:
            inbox.expect(header).add_done_callback(self._delivered)
        inbox.look()

    def _delivered(self, future: Any) -> None:
        if not future.cancelled():
            error = future.exception()
            good = isinstance(error, self.may_come) if error else self._is_good(future.result())
            if not good:
                self.note(f"surprise:{error!r}".replace(" ", "_"), future.header.task)
        self.note("delivered", future.header.task)

    def _is_good(self, value: object) -> bool:
        if not isinstance(value, PackResults):
            return value == "value"
        for number in range(len(value)):
            with contextlib.suppress(*self.may_come):
                if value[number] != "value":
                    return False
        return True

    # -- invariants, and the steps of other processes

    def story(self) -> str:
        """Return the history and the state of the spool, for error messages."""
        struck = self.struck.read_text() if self.struck.exists() else "no fault"
        return f"{struck}\n{self.diary.read_text()}{self.seen()}"

    def notes(self, what: str) -> Counter[str]:
        """Return how often the diary has this entry for each task."""
        lines = (line.split() for line in self.diary.read_text().splitlines())
        return Counter(task for said, task in lines if said == what)

    def runs(self) -> Counter[str]:
        """Return how often the function of each task ran, or of each attempt if the function notes attempts."""
        return Counter(self.effects.read_text().split())

    def seen(self) -> Seen:
        """Return all task files and outcomes."""
        where = self.spool.layout
        lanes = [where.lane(lane) for lane in files.list_names(where.ready)]
        buckets = [f"{lane}/{bucket}" for lane in lanes for bucket in files.list_names(lane)]
        return Seen(
            ready=self._task_files(where.waiting, *buckets),
            claimed=self._task_files(where.claimed),
            results=self._task_files(f"{where.results}/{self.session}"),
            outgoing=self._task_files(f"{where.outgoing}/{self.session}"),
            failed=self._task_files(where.failed),
        )

    def _task_files(self, *directories: str) -> dict[str, TaskFile]:
        found = {}
        for directory in directories:
            for name in files.list_names(directory):
                task_file = parse_task_file(name)
                assert task_file is not None, f"{name} in {directory}"
                found[os.path.relpath(f"{directory}/{name}", self.spool.path)] = task_file
        return found

    def complete(self) -> set[str]:
        """Return the tasks with a valid claim and a complete outcome for it, and the calls of packs with an outcome."""
        seen = self.seen()
        claims = set(seen.claimed.values())
        written = [task_file for task_file in seen.outgoing.values() if task_file in claims]
        left = [*seen.claimed.values(), *seen.ready.values()]
        calls = {f"{each.task}+{number}" for each in left for number in range(self.calls_done(each))}
        return calls | {task_file.task for task_file in written if self.outcome(task_file)}

    def calls_done(self, task_file: TaskFile) -> int:
        """Return the number of calls of a pack with an outcome that the next claim adopts."""
        if not task_file.calls:
            return 0
        return find_log(self.spool, self.session, task_file, files.regular_status).done

    def places(self, seen: Seen | None = None) -> dict[str, list[str]]:
        """Return the paths of the task files of each task."""
        seen = seen or self.seen()
        found: dict[str, list[str]] = {}
        for task_files in (seen.ready, seen.claimed, seen.results, seen.failed):
            for path, task_file in task_files.items():
                found.setdefault(task_file.task, []).append(path)
        return found

    def check(self, *, forgiven: frozenset[str] = frozenset()) -> None:
        """Check invariants 1 and 2, which hold at any moment, for all tasks except the ``forgiven`` ones."""
        seen = self.seen()
        places = self.places(seen)
        delivered = self.notes("delivered")
        assert "surprise" not in self.diary.read_text()
        for task, paths in places.items():
            assert len(paths) == 1, f"{task} is in {paths}"
        for task in self.notes("submitted").keys() - delivered.keys() - forgiven:
            assert task in places, f"{task} is lost"
        for task_file in seen.results.values():
            if task_file.worker != CANCELLED:
                assert self.outcome(task_file) is not None, f"{task_file.name} is published without its outcome"
            self.published.setdefault(task_file.task, set()).add(task_file.name)
        for task, names in self.published.items():
            assert len(names) == 1, f"{task} was published as {names}"

    def outcome(self, task_file: TaskFile) -> records.OutcomeHeader | None:
        """Return the header of an outcome, if it is complete."""
        try:
            return read_outcome(self.spool, self.session, task_file, Trust())[0]
        except Exception:  # noqa: BLE001  whatever is wrong with it: it is not complete
            return None

    def headers(self, paths: Iterable[str]) -> list[TaskHeader]:
        """Return the headers of the task files at these paths."""
        task_files = {path: parse_task_file(os.path.basename(path)) for path in paths}
        return [
            tasks.read_task(self.spool, f"{self.spool.path}/{path}", task_file)
            for path, task_file in task_files.items()
            if task_file
        ]

    def recover(self, observer: Recovery | None = None, *, rounds: int = 5) -> list[str]:
        """Run an observer, by default until all heartbeats have been still for longer than a lease."""
        observer = observer or Recovery(self.spool)
        done = []
        for _ in range(rounds):
            done += observer.round()
            self.clock.sleep(self.spool.config.lease)
        return done

    def settle(self, *, forgiven: frozenset[str] = frozenset()) -> None:
        """Recover, run and collect until nothing is left, and check that nothing is left."""
        self.check(forgiven=forgiven)
        observer = Recovery(self.spool)
        for _ in range(6):
            seen = self.seen()
            if seen.claimed or seen.outgoing or any(each.is_open for each in seen.ready.values()):
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
        runs = self.runs()
        for call in self.notes("committed"):
            assert runs[call], f"{call} is lost"

    def leave_nothing(self) -> None:
        """Check that nothing is left but unfinished writes in tmp/, which the garbage collection removes."""
        inbox = self.inbox()
        if self.seen().outgoing:
            # a session that waits for a task also removes outcomes that earlier processes of it left
            task = new_task_id()
            bucket = bucket_name(task, new_submitter_id())
            inbox.expect(TaskHeader(task=task, session=self.session, lane=LANE, bucket=bucket))
            inbox.look(rounds=8)
            inbox.forget()
        if unfinished := files.list_names(self.spool.layout.tmp):
            for name in unfinished:
                os.utime(f"{self.spool.layout.tmp}/{name}", (0, 0))
            # nothing of a live submitter or worker is removed
            for name in files.list_names(self.spool.layout.sessions):
                files.remove(f"{self.spool.layout.sessions}/{name}")
            for name in files.list_names(self.spool.layout.workers):
                remove_worker(self.spool, name)
            garbage.remove(self.spool, garbage.find_garbage(self.spool, RetentionPolicy()))
            assert files.list_names(self.spool.layout.tmp) == []
            self.collect(inbox, self.headers(self.seen().results))  # kept for the unfinished tasks
            inbox.look(rounds=8)
        inbox.close()
        root = Path(self.spool.path)
        left = [str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()]
        allowed = ("spool.json", "failed/", "journal/", "logs/", "workers/", "sessions/", *self.may_be_left)
        assert [path for path in left if not path.startswith(allowed)] == []
