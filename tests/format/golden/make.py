"""Make the golden spools of the present format: ``python -m tests.format.golden.make`` from the root of the repository.

A golden spool holds a task of each kind and an outcome of each kind, once unsigned and once signed. The trees of a
format are made once, committed, and stay readable in all later versions: run this only when ``names.FORMAT`` has risen.
Their pickles name functions of the standard library and of spoolpool alone. A function by value would contain bytecode,
which differs between the minor versions of Python.
"""

from __future__ import annotations

import functools
import operator
import pickle
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle.cloudpickle as base
import msgspec

import spoolpool
from spoolpool import errors, wire
from spoolpool.calls import pickling
from spoolpool.calls.pickling import ObjectRef, Reference
from spoolpool.calls.run import RankResult
from spoolpool.format import envelope, headers
from spoolpool.format.envelope import Buffer
from spoolpool.format.headers import Failure, OutcomeHeader, TaskHeader, Usage
from spoolpool.format.names import CANCELLED, FORMAT, ObjectLease, TaskFile
from spoolpool.pool.batch_jobs import JobRecord
from spoolpool.pool.job_ends import JobEnd
from spoolpool.protocol import lost_attempts
from spoolpool.protocol.claim import Claim
from spoolpool.protocol.object_leases import acquire
from spoolpool.protocol.objects import put_object
from spoolpool.protocol.open_packs import OpenPack
from spoolpool.protocol.outcome_log import OutcomeLog
from spoolpool.protocol.packs import PackedCall, parts_of
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.submit import Submitter
from spoolpool.protocol.worker_registration import report_end, started_mark
from spoolpool.protocol.workers import stack_file

LANE = "default.r1t1g0.py3.11"
BUCKET = "499-0660e6e464b511-22dc7470"
WORKER = "0123456789abcdef"
DATA = bytes(range(256)) * 17
RUN = "01234567"
SECRET = bytes(range(32))
"""The key of the signed spool."""


STACK = (
    'Fatal Python error: Aborted\n\nCurrent thread 0x01 (most recent call first):\n  File "golden.py", line 1 in f\n'
)
"""Stack of a crash, as Python writes it."""
ATTEMPT = errors.LostAttempt(1, WORKER, "golden", 42, "4711", 1, -6, "", 1_790_000_000.0, "Fatal Python error: Aborted")
"""Attempt of a lost task."""

JOB = "spool-worker-0123456789abcdef"
RECORD = JobRecord(
    name=JOB, system="slurm", cluster="golden", user="golden", nodes=2, time="1:00:00", lane=LANE, session="a~01234567"
)
END = JobEnd(
    name=JOB,
    kind="failed",
    why="FAILED, exit code 3",
    job="6_2",
    lane=LANE,
    session="a~01234567",
    output=("loading", "no such module"),
)
"""End of a batch job."""


class Content(NamedTuple):
    """Content of a golden file, and the fields of its header that differ from those of the others."""

    payload: Buffer
    buffers: tuple[Buffer, ...] = ()
    header: Mapping[str, Any] = types.MappingProxyType({})


TASKS = (
    *("plain", "chunk", "pack", "command", "program", "shell", "objects", "dependency", "current task", "wait"),
    *("public names", "options", "errors", "module", "exception", "definitions"),
    *("time limit", "calls", "initialized", "open pack", "label", "arguments", "labelled calls"),
)
"""Kinds of tasks."""

OUTCOMES = (
    *("buffer", "chunk", "pack", "command", "object reference", "ranks", "exception", "worker lost"),
    *("dependency failed", "cancelled", "cancelled before its claim", "linked exception"),
    *("lost attempts", "exception of a chunk", "walltime too short", "calls", "usage"),
)
"""Kinds of outcomes."""


def waiting(kind: str) -> str:
    """Return the id of the waiting task of a kind."""
    number = TASKS.index(kind)
    return f"499-0660e6e464b5{0x11 + number:02x}-22dc7470{number:02x}"


def done(kind: str) -> str:
    """Return the id of the task that has the outcome of a kind."""
    number = OUTCOMES.index(kind)
    return f"499-0660e6e464b6{0x11 + number:02x}-1f46f1a9{number:02x}"


def header(task: str, **more: Any) -> TaskHeader:
    """Return the header of a golden task."""
    return TaskHeader(
        task=task,
        session="golden",
        lane=LANE,
        bucket=BUCKET,
        name="pow",
        user="golden",
        host="golden",
        submitted=1_790_000_000.0,
        max_attempts=3,
        **more,
    )


def dumps(value: object, refer: pickling.Refer | None = None) -> bytes:
    """Pickle as the client does."""
    return bytes(pickling.dumps(value, refer)[0])


def dumps_with_buffers(value: object) -> tuple[bytes, tuple[Buffer, ...]]:
    """Pickle with every buffer out of band, however small."""
    buffers: list[pickle.PickleBuffer] = []
    payload = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return payload, tuple(buffer.raw() for buffer in buffers)


def apart(value: object) -> object:
    """Return an argument that is pickled on its own."""
    return pickling._Apart(pickle.dumps(value, protocol=5), [])


def call_with_objects(spool: Spool) -> Content:
    """A call with an object that was put, and two buffers that are objects: of an array, and of an argument apart."""
    call = (b"+".join, ([pickle.PickleBuffer(DATA), put(spool, b"put"), apart(b"apart")],), {})
    payload, buffers = dumps_with_buffers(call)
    objects = {store(spool, b"", buffer): (place,) for place, buffer in enumerate(buffers)}
    return Content(payload, (), {"objects": {store(spool, dumps(b"put")): (), **objects}})


def store(spool: Spool, payload: bytes, *buffers: Buffer) -> str:
    """Store an object that the session uses; return its id."""
    name = put_object(spool, payload, buffers, RUN)
    acquire(spool, "golden", ObjectLease(name, RUN))
    return name


def put(spool: Spool, value: object) -> ObjectRef:
    """Put a value as an executor does."""
    payload = dumps(value)
    return ObjectRef(spool.config.id, store(spool, payload), len(payload))


def call_with_futures() -> Content:
    """A call with a part of another task's result, and the value of a future from elsewhere."""
    awaited, ended = Future[Any](), Future[Any]()
    found = {awaited: Reference("golden", done("buffer"), (0,)), ended: 1}
    payload = dumps((operator.add, (awaited, ended), {}), found.__getitem__)
    return Content(payload, (), {"needs": {"golden": (done("buffer"),)}})


def call_with_modules() -> Content:
    """A call with a local module, one of spoolpool's, and one of spoolpool's that this version does not have."""
    local, removed = types.ModuleType("golden_module"), types.ModuleType("spoolpool.removed")
    local.VALUE, local.__file__ = 7, "/golden/golden_module.py"
    sys.modules["golden_module"] = local
    attributes = [(local, "VALUE"), (errors, "__name__"), (removed, "__class__")]
    return Content(dumps((wire.run_chunk, (getattr, attributes), {})))


class Reduced:
    """Value with a given reduction."""

    def __init__(self, *reduction: Any) -> None:
        self._reduction = reduction

    def __reduce__(self) -> tuple[Any, ...]:
        return self._reduction


def definitions() -> list[Reduced]:
    """Return definitions by value, and those of a local module."""
    class_args = (base._make_skeleton_class, (type, "Golden", (object,), {}, "golden", None), "golden", "Golden")
    state = (base._class_setstate, ({"seven": 7}, {}))
    return [
        Reduced(wire.load_function, (functools.partial, (pow,), ((), 1, ""))),
        Reduced(wire.load_class, class_args, state, None, None, wire.fill_class),
        Reduced(wire.make_cached, (pow, 8, False)),
        Reduced(wire.make_cached_property, (len, "length")),
        Reduced(wire.import_local, ("json", "dumps", ())),
        Reduced(wire.scope_of_local, ("json", ())),
    ]


def calls(spool: Spool) -> dict[str, Content]:
    """Return the tasks that wait, by their kinds."""
    in_pack = [(dumps((pow, (2, 3), {})), []), (dumps((operator.truediv, (1, 0), {})), [])]
    start = functools.partial(wire.start_shell, ["cat"], None)
    names = tuple(getattr(spoolpool, name) for name in spoolpool.__all__)
    options = [(spoolpool.Session("night"), "name"), (spoolpool.Submission(queue="night"), "queue")]
    options += [(backend(extra=["-v"]), "extra") for backend in (spoolpool.Mpiexec, spoolpool.Srun, spoolpool.Flux)]
    options += [(backend(nodes=2), "nodes") for backend in (spoolpool.Sbatch, spoolpool.FluxBatch)]
    classes = tuple(each for each in vars(errors).values() if is_error(each))
    # the task's id, without a function by value: the only element of an iterator over the values of current_task()
    current = map(operator.attrgetter("id"), iter(spoolpool.current_task, None))
    plain: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        "plain": (pow, (2, 5)),
        "chunk": (wire.run_chunk, (pow, [(2, 3), (2, 4)])),
        "pack": (wire.run_pack, (in_pack,)),
        "command": (wire.Command(["sh", "-c", "echo $GOLDEN $SPOOLPOOL_RANK"], {"GOLDEN": "golden"}), ()),
        "current task": (next, (current,)),
        "wait": (functools.partial(spoolpool.wait, timeout=1.0), ([],)),
        "public names": (len, (names,)),
        "options": (wire.run_chunk, (getattr, options)),
        "errors": (len, (classes,)),
        "exception": (operator.truediv, (1, 0)),
        "definitions": (len, (definitions(),)),
    }
    limited = Content(dumps((pow, (2, 5), {})), (), {"time_limit": 90.0})
    initialize = functools.partial(wire.run_initializer, pow, (2, 3))
    initialized = dumps((wire.run_initialized, (pow, pow, (2, 5), {}), {}))
    return {kind: Content(dumps((function, args, {}))) for kind, (function, args) in plain.items()} | {
        "program": Content(dumps((wire.run_program, (["echo", "golden"],), {"universal_newlines": True}))),
        "shell": Content(dumps((wire.ask_shell, ("golden", 1, None), {})), (), {"init": store(spool, dumps(start))}),
        "objects": call_with_objects(spool),
        "dependency": call_with_futures(),
        "time limit": limited,
        "initialized": Content(initialized, (), {"init": store(spool, dumps(initialize))}),
        "label": Content(dumps((pow, (2, 5), {})), (), {"label": "two to five"}),
        "arguments": Content(dumps((pow, (2, 5), {})), (), {"arguments": "2, 5"}),
        "module": call_with_modules(),
    }


def is_error(value: object) -> bool:
    """Return whether a value is an exception class that spoolpool defines."""
    return isinstance(value, type) and issubclass(value, BaseException) and value.__module__ == "spoolpool.errors"


def outcomes(spool: Spool) -> dict[str, Content]:
    """Return the outcomes, by their kinds."""
    failure = Failure(type="ZeroDivisionError", message="division by zero", traceback="a line\n", host="golden")
    zero = dumps(ZeroDivisionError("division by zero"))
    reports = [(dumps(8), [], None), (zero, [], msgspec.to_builtins(failure))]
    lost = Failure(type="spoolpool.errors.WorkerLost", message="it died")
    short = Failure(type="spoolpool.errors.WalltimeTooShort", message="it was given back")
    dependency = errors.DependencyFailed("it was not run")
    dependency.__cause__ = ZeroDivisionError("division by zero")
    dependency.__cause__.__cause__ = errors.RemoteTraceback("a line\n")
    linked = OSError(2, "No such file", "golden")
    linked.__cause__ = ZeroDivisionError("division by zero")
    linked.add_note("a note")
    unreadable = Failure(type="FileNotFoundError", message="no such file", traceback="a line\n", host="golden")
    failed = Failure(type="spoolpool.errors.DependencyFailed", message="it was not run")
    of_chunk = ZeroDivisionError("division by zero")
    wire._add_values(of_chunk, [8])
    of_ranks = [dumps_with_buffers([rank, pickle.PickleBuffer(DATA)]) for rank in range(2)]
    return {
        "buffer": Content(*dumps_with_buffers([42, pickle.PickleBuffer(DATA)])),
        "chunk": Content(dumps([8, 16])),
        "pack": Content(dumps(wire.PackResults(reports))),
        "command": Content(dumps(subprocess.CompletedProcess(["echo"], 0, b"golden\n", b""))),
        "object reference": Content(dumps(put(spool, b"put"))),
        "ranks": Content(
            dumps([(payload, len(buffers)) for payload, buffers in of_ranks]),
            tuple(buffer for _, buffers in of_ranks for buffer in buffers),
            {"ranks": 2},
        ),
        "usage": Content(
            dumps(7), (), {"usage": Usage(cpu=3.5, cpu_max=2.0, wall=2.5, memory=1 << 30, memory_sum=1 << 31)}
        ),
        "exception": Content(zero, (), {"kind": "error", "failure": failure}),
        "worker lost": Content(dumps(errors.WorkerLost("it died")), (), {"kind": "lost", "failure": lost}),
        "dependency failed": Content(dumps(dependency), (), {"kind": "error", "failure": failed}),
        "cancelled": Content(b"", (), {"kind": "cancelled"}),
        "linked exception": Content(dumps(linked), (), {"kind": "error", "failure": unreadable}),
        "lost attempts": Content(dumps(errors.WorkerLost("it died", [ATTEMPT])), (), {"kind": "lost", "failure": lost}),
        "exception of a chunk": Content(dumps(of_chunk), (), {"kind": "error", "failure": failure}),
        "walltime too short": Content(
            dumps(errors.WalltimeTooShort("it was given back")), (), {"kind": "lost", "failure": short}
        ),
    }


def create(directory: Path, *, signed: bool = False) -> Spool:
    """Make a spool with a fixed id and an open session."""
    spool = Spool.create(directory, durability="none", signed=signed)
    config = msgspec.structs.replace(spool.config, id="0" * 16)
    Path(spool.layout.config).write_bytes(msgspec.json.encode(config))
    spool = Spool(directory, keys=SECRET if signed else b"")
    spool.open_session("golden")
    return spool


def make(directory: Path, *, signed: bool = False) -> None:
    """Make a golden spool."""
    spool = create(directory, signed=signed)
    plain = dumps((pow, (2, 5), {}))
    for kind, outcome in outcomes(spool).items():
        about = header(done(kind))
        first = Submitter(spool).submit(about, envelope.pack(headers.encode(about), plain))
        task_file = first.claimed_by(WORKER)
        if kind == "walltime too short":
            task_file = task_file.needing(12, releases=3)
        _path(spool, first).rename(spool.layout.claimed_task(task_file))
        fields = {"kind": "result", "worker": WORKER, "host": "golden", "started": 1.0, "ended": 2.0, **outcome.header}
        record = headers.encode(OutcomeHeader(task=done(kind), **fields))
        claim = Claim(spool, about, task_file)
        claim.write_outcome(envelope.pack(record, outcome.payload, outcome.buffers))
        claim.commit()
    about = header(done("cancelled before its claim"))
    first = Submitter(spool).submit(about, envelope.pack(headers.encode(about), plain))
    _path(spool, first).rename(spool.layout.result("golden", first.claimed_by(CANCELLED)))
    lost = TaskFile(done("lost attempts"), 1, 1, WORKER)
    lost_attempts.keep(spool, lost, ATTEMPT)
    spool.make_directories(spool.layout.worker(WORKER))
    lost_attempts.record_exit(spool, WORKER, 9, launcher="mpiexec")
    lost_attempts.record_exit(spool, WORKER, -11, rank=1)
    spool.write_public(f"{spool.layout.worker(WORKER)}/{stack_file(1)}", [STACK.encode()])
    report_end(spool, WORKER, "renew")
    add_jobs(spool)
    add_packs(spool)
    for kind, call in calls(spool).items():
        about = header(waiting(kind), **call.header)
        Submitter(spool).submit(about, envelope.pack(headers.encode(about), call.payload, call.buffers))


def add_packs(spool: Spool) -> None:
    """Add packs: one that waits, after a worker died in its second call, one with its outcomes, and one with labels."""
    calls = [PackedCall(dumps((pow, (2, 3), {})), []), PackedCall(dumps((operator.truediv, (1, 0), {})), [])]
    failure = Failure(type="ZeroDivisionError", message="division by zero", traceback="a line\n", host="golden")
    results = [RankResult(dumps(8), (), None), RankResult(dumps(ZeroDivisionError("division by zero")), (), failure)]
    for task, count in ((waiting("calls"), 1), (done("calls"), 2)):
        about = header(task, calls=2)
        first = Submitter(spool).submit(about, parts_of(spool, about, calls))
        task_file = first.claimed_by(WORKER)
        _path(spool, first).rename(spool.layout.claimed_task(task_file))
        with (log := OutcomeLog(spool, "golden", task_file, None)):
            for call, result in enumerate(results[:count]):
                fields = {"kind": "error" if result.failure else "result", "worker": WORKER, "host": "golden"}
                record = OutcomeHeader(task=task, started=1.0, ended=2.0, failure=result.failure, call=call, **fields)
                log.append(envelope.pack(headers.encode(record), result.payload, result.buffers))
        claim = Claim(spool, about, task_file)
        claim.commit() if count == len(calls) else claim.requeue()
    about = header(waiting("labelled calls"), calls=2, label="both")
    labelled = [calls[0]._replace(label="first"), calls[1]._replace(arguments="1, 0")]
    Submitter(spool).submit(about, parts_of(spool, about, labelled))
    add_open_pack(spool, calls)


def add_open_pack(spool: Spool, calls: Sequence[PackedCall]) -> None:
    """Add a pack to which a submitter has appended calls."""
    pack = OpenPack(spool, header(waiting("open pack"), calls=1, entry="golden"))
    for call in calls:
        pack.commit(pack.append(call))
    pack.after_fork()


def add_jobs(spool: Spool) -> None:
    """Add the files of an ended batch job."""
    spool.make_directories(spool.layout.jobs)
    spool.write_public(f"{spool.layout.jobs}/{JOB}.json", [msgspec.json.encode(RECORD)])
    spool.write_public(started_mark(spool, JOB), [])
    spool.write_public(f"{spool.layout.jobs}/{JOB}.end", [msgspec.json.encode(END)])


def _path(spool: Spool, task_file: TaskFile) -> Path:
    return Path(spool.layout.bucket(LANE, BUCKET), task_file.name)


if __name__ == "__main__":
    here = Path(__file__).parent
    for name, signed in ((f"format-{FORMAT}", False), (f"format-{FORMAT}-signed", True)):
        shutil.rmtree(here / name, ignore_errors=True)
        make(here / name, signed=signed)
        for directory in sorted((here / name).rglob("*"), reverse=True):
            if directory.is_dir() and not any(directory.iterdir()):
                directory.rmdir()  # git keeps none
