"""jug: a script with calls as names of files, executed by any number of processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from benchmarks import processes
from benchmarks.claims import of_claims
from benchmarks.contender import Contender, Environment, Job, Samples
from benchmarks.measures import mark

SCRIPT = """
import time
from jug import Task

def call(number):
    return time.time(), pow(2, 3)

calls = [Task(call, number) for number in range({count})]
"""


def execute(job: Job, count: int) -> tuple[float, float]:
    """Seconds from the first call's start to the last value read, and CPU seconds of all of it."""
    folder = f"{job.directory}/{count}"
    os.makedirs(folder)
    with open(f"{folder}/calls.py", "w", encoding="ascii") as file:
        file.write(SCRIPT.format(count=count))
    jug_command = os.path.join(os.path.dirname(sys.executable), "jug")
    program = [jug_command, "execute", "calls.py", "--jugdir", f"{folder}/data", "--will-cite"]
    quiet = subprocess.DEVNULL
    before = _cpu(job)
    workers = [subprocess.Popen(program, cwd=folder, stdin=quiet, stdout=quiet) for _ in range(job.workers)]
    for worker in workers:
        if worker.wait():
            raise RuntimeError(f"jug execute ended with {worker.returncode}")
    busy = _cpu(job) - before
    import jug
    from jug.task import value

    since = time.perf_counter()
    _, space = jug.init(f"{folder}/calls.py", f"{folder}/data")
    values = value(space["calls"])
    reading = time.perf_counter() - since
    starts = [start for start, _ in values]
    return max(starts) - min(starts) + reading, busy


def _cpu(job: Job) -> float:
    return sum(map(processes.cpu, processes.family(job.harness)))


def throughput(job: Job) -> Samples:
    """Calls per second; the start of ``jug execute`` itself is left out, in jug's favour."""
    pilot = min(job.tasks, 100)
    took, _ = execute(job, pilot)
    count = min(job.tasks, max(pilot + 1, int(pilot / took * job.seconds)))
    took, busy = execute(job, count)
    return {"rate": [count / took], "CPU": [busy / count], "calls": [count]}


def marked(job: Job) -> Samples:
    """All calls of a script between marks, as :func:`benchmarks.measures.marked` has them; nothing is ever idle."""
    for times in (1, 3):
        mark(job, f"batch.{times}.begin")
        execute(job, times * job.tasks)
        mark(job, f"batch.{times}.end")
    return {}


def _fill(directory: str, count: int, _: int) -> None:
    with open(f"{directory}/calls.py", "w", encoding="ascii") as file:
        file.write(SCRIPT.format(count=count))


class _Taker:
    """Run the tasks one by one, as ``jug execute`` does; a stored value marks a task as finished."""

    def __init__(self, directory: str) -> None:
        import jug

        _, space = jug.init(f"{directory}/calls.py", f"{directory}/data")
        self._calls = iter(space["calls"])
        self.wasted = 0

    def take(self, seconds: float) -> bool:
        for call in self._calls:
            if call.can_load():
                continue
            if call.lock():
                try:
                    if not call.can_load():
                        time.sleep(seconds)
                        call.run()
                        return True
                finally:
                    call.unlock()
            self.wasted += 1
        return False


CONTENDER = Contender(
    name="jug",
    module=__name__,
    measures={"throughput": throughput, "marked": marked, **of_claims(_fill, _Taker)},
    environment=Environment(name="jug", requires=("jug",)),
)

if __name__ == "__main__":
    CONTENDER.main()
