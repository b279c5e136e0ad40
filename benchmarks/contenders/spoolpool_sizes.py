"""spoolpool with many of one thing: pending futures, outcomes, dependencies, objects, finished calls, workers.

All times are CPU seconds of the submitter, or of a command, for one of these things: other programs on the machine and
the worker group, which is a process of its own, have no part in them.
"""

from __future__ import annotations

import gc
import os
import re
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.contender import Contender, Job, Samples
from benchmarks.measures import mark
from benchmarks.tasks import peak

if TYPE_CHECKING:
    from spoolpool import Executor, Spool
    from spoolpool.protocol.worker_registration import Registration

_WARM = 200
"""Calls before the measurement, which load code and fill caches."""
_WORKER = "spoolpool.cli.worker"
_INOTIFY = "watchdog.observers"
LONG = 1.0
"""Seconds of a long call."""
_SETTLED = 10.0
"""Seconds until groups without a task look for one at their slowest rhythm."""
_BLOCKS = 10
"""Blocks of submissions at the beginning and at the end that are compared."""
_MODULE = "benchmarks.contenders.spoolpool_sizes"


def _memory() -> int:
    """Return the memory of this process in bytes."""
    gc.collect()
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def _spool(job: Job) -> str:
    from spoolpool import Spool

    path = f"{job.directory}/spool"
    Spool.create(path, durability="none")
    return path


@contextmanager
def _group(path: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """Worker group of one rank, ended afterwards."""
    with _started([sys.executable, "-m", _WORKER, path, *options]) as group:
        yield group


@contextmanager
def _started(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    group = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        yield group
    finally:
        group.terminate()
        group.wait(300)


class _Used(NamedTuple):
    """Result of a function, with the CPU seconds that its thread used."""

    value: Any
    seconds: float


def _used(function: Callable[[], Any]) -> _Used:
    begun = time.thread_time()
    value = function()
    return _Used(value, time.thread_time() - begun)


def futures(job: Job) -> Samples:
    """Submit ``tasks`` calls that no group runs; then cancel them all, while a thread yields them as completed."""
    from spoolpool import Executor, as_completed

    with Executor(spool=_spool(job)) as executor:
        for future in [executor.submit(pow, 2, 3) for _ in range(_WARM)]:
            future.cancel()
        pending: list[Any] = []
        block = max(1, min(1000, job.tasks // (2 * _BLOCKS)))
        before = _memory()
        taken = 0.0

        def submit() -> float:
            nonlocal taken
            seconds = _used(lambda: pending.extend(_submit(executor, block))).seconds
            taken += seconds
            return seconds

        with _other_submitter(f"{job.directory}/other", block) as other:
            pairs = [(submit(), other()) for _ in range(_BLOCKS)]
            while len(pending) < job.tasks - _BLOCKS * block:
                submit()
            pairs += [(submit(), other()) for _ in range(_BLOCKS)]
        first, last = (sum(mine for mine, _ in part) / sum(theirs for _, theirs in part) for part in _halves(pairs))
        memory = (_memory() - before) / len(pending)
        found: list[_Used] = []
        begun = threading.Event()

        def complete() -> int:
            count = 0
            for _ in as_completed([*pending, done]):
                count += 1
                begun.set()
            return count

        done = executor.submit(pow, 2, 3)
        done.cancel()
        completing = threading.Thread(target=lambda: found.append(_used(complete)))
        completing.start()
        begun.wait()
        cancelled = _used(lambda: sum(future.cancel() for future in pending))
        completing.join()
        assert cancelled.value == len(pending) == found[0].value - 1
        most = (peak() - before) / len(pending)
    return {
        "time": [taken / len(pending)],
        "last": [last / first],
        "memory": [memory],
        "peak": [most],
        "completed": [found[0].seconds / len(pending)],
        "end": [cancelled.seconds / len(pending)],
    }


@contextmanager
def _other_submitter(path: str, block: int) -> Iterator[Callable[[], float]]:
    """Process with few pending futures; the function returns its CPU seconds for so many submissions.

    It is asked in turn with the measured one, so that a change of the machine's speed meets both.
    """
    code = f"from {_MODULE} import answer; answer({path!r}, {block})"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    send, receive = process.stdin, process.stdout

    def ask() -> float:
        print(file=send, flush=True)
        return float(receive.readline())

    try:
        ask()  # the first block is slower
        yield ask
    finally:
        send.close()
        process.wait(60)


def answer(path: str, block: int) -> None:
    """Print the CPU seconds of so many submissions for each line of the input."""
    from spoolpool import Executor, Spool

    Spool.create(path, durability="none")
    with Executor(spool=path) as executor:
        for _ in sys.stdin:
            given = _used(lambda: _submit(executor, block))
            print(given.seconds, flush=True)
            for future in given.value:
                future.cancel()


def _halves(pairs: list[tuple[float, float]]) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    middle = len(pairs) // 2
    return pairs[:middle], pairs[middle:]


def resumed(job: Job) -> Samples:
    """Resume a named session with ``tasks`` outcomes, by the same script and by ``futures()``."""
    from spoolpool import Executor, Session, wait

    path = _spool(job)
    left = Executor(spool=path, session=Session("size", resume=True, detach=True))
    for number in range(job.tasks):
        left.submit(pow, 2, number)
    left.shutdown()
    del left
    with _group(path, "--max-tasks", str(job.tasks)) as group:
        group.wait()
    before, begun = _memory(), time.process_time()
    again = Executor(spool=path, session=Session("size", resume=True))
    given = [again.submit(pow, 2, number) for number in range(job.tasks)]
    assert len(wait(given).done) == job.tasks
    assert all(future.task == other.task for future, other in zip(given, again.futures(), strict=True))  # type: ignore[attr-defined]
    taken, memory = time.process_time() - begun, _memory() - before
    _, ended = _used(again.shutdown)
    return {"time": [taken / job.tasks], "memory": [memory / job.tasks], "end": [ended / job.tasks]}


def _chain(executor: Executor, edges: int) -> list[Any]:
    calls: list[Any] = [executor.submit(pow, 2, 3)]
    for _ in range(edges):
        calls.append(executor.submit(max, calls[-1], 1))
    return calls


def _fan_in(executor: Executor, edges: int) -> list[Any]:
    calls: list[Any] = [executor.submit(pow, 2, 3) for _ in range(edges)]
    return [*calls, executor.submit(max, calls)]


def _fan_out(executor: Executor, edges: int) -> list[Any]:
    first = executor.submit(pow, 2, 3)
    return [first, *(executor.submit(max, first, 1) for _ in range(edges))]


_GRAPHS = {"chain": _chain, "fan-in": _fan_in, "fan-out": _fan_out}


def graph(job: Job) -> Samples:
    """Submit a graph of ``tasks`` dependencies, of the kind ``variant``; then let a group run it."""
    from spoolpool import Executor, wait

    path = _spool(job)
    with Executor(spool=path) as executor:
        for future in _GRAPHS[job.variant](executor, 10):
            future.cancel()
        before, begun = _memory(), time.process_time()
        calls = _GRAPHS[job.variant](executor, job.tasks)
        submitted, memory = time.process_time() - begun, _memory() - before
        begun = time.process_time()
        with _group(path):
            assert not wait(calls).not_done
        ended = time.process_time() - begun
        assert {future.result() for future in calls} == {8}
    return {"time": [submitted / job.tasks], "memory": [memory / job.tasks], "end": [ended / job.tasks]}


def objects(job: Job) -> Samples:
    """Put ``tasks`` different objects, and end the session, which removes them."""
    from spoolpool import Executor

    executor = Executor(spool=_spool(job))
    executor.put("first")
    before = _memory()
    _, taken = _used(lambda: [executor.put(number) for number in range(job.tasks)])
    memory, begun = _memory() - before, time.process_time()
    executor.shutdown()
    ended = time.process_time() - begun
    return {"time": [taken / job.tasks], "memory": [memory / job.tasks], "end": [ended / job.tasks]}


_TIME = re.compile(rb'("(?:t|submitted|started|ended)":)(\d+\.\d+)')


def _repeat(path: str, task: str, count: int) -> None:
    """Repeat the lines of a journal about a task, for other tasks and times."""
    with open(path, "rb") as file:
        lines = [line for line in file if task.encode() in line]

    parts = [_TIME.split(line.replace(b"%", b"%%")) for line in lines]
    with open(path, "ab", buffering=1 << 20) as longer:
        for number in range(count):
            other = f"{task[:4]}{int(task[4:18], 16) + 1 + number:014x}{task[18:]}".encode()
            for line in parts:
                texts = [
                    f"{float(part) + number * 1e-3:.6f}".encode() if place % 3 == 2 else part
                    for place, part in enumerate(line)
                ]
                longer.write(b"".join(texts).replace(task.encode(), other))


def journal(job: Job) -> Samples:
    """Read a spool with ``tasks`` finished calls in its journals, by ``spool status`` and ``spool report``."""
    from spoolpool import Executor

    path = _spool(job)
    with _group(path, "--max-tasks", "1") as group, Executor(spool=path) as executor:
        task: str = executor.submit(pow, 2, 3).task  # type: ignore[attr-defined]
        group.wait()
    for name in os.listdir(f"{path}/journal"):
        _repeat(f"{path}/journal/{name}", task, job.tasks)
    reported, memory = _command("report", path, "-o", f"{path}.html")
    status, _ = _command("status", path)
    return {"time": [reported / job.tasks], "command memory": [memory], "command": [status]}


def _command(name: str, path: str, *options: str) -> tuple[float, int]:
    """Run a command; return its CPU seconds and its peak of memory in bytes."""
    command = [sys.executable, "-m", "spoolpool.cli.spool", name, path, *options]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, f"{command} ended with status {process.returncode}"
    return used.ru_utime + used.ru_stime, used.ru_maxrss * 1024


def registered(job: Job) -> Samples:
    """Watch ``tasks`` workers of another host: a round of recovery, and ``spool status``."""
    from spoolpool import Spool
    from spoolpool.protocol.recovery import Recovery

    path = _spool(job)
    kept = _register(Spool(path), job.tasks)
    recovery = Recovery(Spool(path))
    recovery.round()
    _, seen = _used(recovery.round)
    status, memory = _command("status", path)
    assert len(kept) == job.tasks
    return {"time": [seen / job.tasks], "command": [status], "command memory": [memory]}


def _register(spool: Spool, count: int) -> list[Registration]:
    import msgspec

    from spoolpool.format.names import new_worker_id
    from spoolpool.protocol.worker_registration import Registration
    from spoolpool.protocol.workers import WorkerInfo
    from spoolpool.system.processes import ProcessId

    class Still(Registration):
        """Entry without a process for its heartbeat."""

        def _start(self) -> Any:
            return None

    process = msgspec.structs.replace(ProcessId.of(os.getpid()), boot="another", host="elsewhere")
    return [Still(spool, WorkerInfo(worker=new_worker_id(), process=process, user="bench")) for _ in range(count)]


def pool(job: Job) -> Samples:
    """Let ``workers`` groups run ``tasks`` calls, then long ones, and then be idle for ``seconds``, between marks.

    Nothing wakes them, as on a network filesystem: they and the submitter do without inotify.
    """
    sys.modules[_INOTIFY] = None  # type: ignore[assignment]  # as if it could not be imported
    from spoolpool import Executor

    path = _spool(job)
    code = f"import runpy, sys; sys.modules[{_INOTIFY!r}] = None; runpy.run_module({_WORKER!r}, run_name='__main__')"
    with ExitStack() as groups, Executor(spool=path) as executor:
        begun = time.monotonic()
        for _ in range(job.workers):
            groups.enter_context(_started([sys.executable, "-c", code, path]))
        while len(os.listdir(f"{path}/workers")) < job.workers:
            time.sleep(0.5)
        for each in _submit(executor, job.workers):  # a first bucket
            each.result()
        tiny = _marked(job, "tiny", lambda: [each.result() for each in _submit(executor, job.tasks)])
        long = _marked(
            job, "long", lambda: [each.result() for each in _submit(executor, job.tasks // 5, time.sleep, LONG)]
        )
        waited = executor.submit(pow, 2, 3, resource_dict={"not_before": 86400})  # the submitter polls for it
        time.sleep(_SETTLED)
        age = time.monotonic() - begun + job.seconds / 2
        idle = _marked(job, "idle", lambda: time.sleep(job.seconds))
        waited.cancel()
    return {"idle seconds": [idle], "tiny seconds": [tiny], "long seconds": [long], "age": [age]}


def _submit(executor: Executor, count: int, *call: Any) -> list[Any]:
    function, *arguments = call or (pow, 2, 3)
    return [executor.submit(function, *arguments) for _ in range(count)]


def _marked(job: Job, name: str, work: Callable[[], object]) -> float:
    """Do a work between two marks in a trace; return its seconds."""
    begun = time.perf_counter()
    mark(job, f"{name}.begin")
    work()
    mark(job, f"{name}.end")
    return time.perf_counter() - begun


CONTENDER = Contender(
    name="spoolpool",
    module=__name__,
    measures={
        "futures": futures,
        "resumed": resumed,
        "graph": graph,
        "objects": objects,
        "journal": journal,
        "registered": registered,
        "pool": pool,
    },
)

if __name__ == "__main__":
    CONTENDER.main()
