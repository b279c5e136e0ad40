"""Shared filesystem, which does not notify a client of the changes of another."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from benchmarks.contender import Contender, Samples
from benchmarks.contenders import executorlib, floor, spoolpool
from benchmarks.harness import environment_of
from benchmarks.jobs import run_job
from benchmarks.row import Entry, Failed, Goal, Key, Place, Quantity, Row, Sizes, Take

if TYPE_CHECKING:
    from tests.servers import FileServer

_FLOOR = Key("a bare poll loop")
_OURS = Key("spoolpool", "durability none")
_DURABLE = Key("spoolpool", "durability data")

_ROUNDS = 3
"""Turns at most: each starts a server."""


def entries(sizes: Sizes) -> list[Entry]:
    """Ours, the floor and the peer that goes by files, all on two mounts."""
    options = {"tasks": max(1, sizes.calls // 4), "seconds": sizes.seconds / 2}
    goals = {"after a pause": Goal(limit=3.0, of="floor")}
    files = executorlib.CONTENDER
    return [
        Entry(key=_OURS, role="ours", take=_served("none", options), floor=_FLOOR, goals=goals, rounds=_ROUNDS),
        Entry(key=_DURABLE, role="ours", take=_served("data", options), ours=_OURS, floor=_FLOOR, rounds=_ROUNDS),
        Entry(key=_FLOOR, role="floor", take=_alone(floor.CONTENDER, "polled", options), rounds=_ROUNDS),
        Entry(
            key=Key("executorlib", "files"),
            role="peer",
            take=_alone(files, "latency", {**options, "variant": "file", "warm": 1}),
            environment=files.environment,
            ours=_OURS,
            floor=_FLOOR,
            rounds=_ROUNDS,
        ),
    ]


def _served(durability: str, options: Mapping[str, object]) -> Take:
    """A group on the node that has the second mount; the submitter has the first one, and another host name."""

    def take(place: Place) -> Samples:
        with _mounted() as fs:
            spool = f"{fs.path('B')}/{spoolpool.SERVED}"
            env = environment_of(place.python, place.directory)
            python = [place.python, "-m"]
            fs.run("B", [*python, "spoolpool.cli.spool", "init", spool, "--durability", durability], env=env)
            null = subprocess.DEVNULL
            group = fs.popen(
                "B", [*python, "spoolpool.cli.worker", spool], env=env, stdin=null, stdout=null, stderr=null
            )
            wanted = {**options, "directory": str(fs.path("A")), "variant": spoolpool.SERVED}
            try:
                return _without_cpu(run_job(spoolpool.CONTENDER, place, "latency", wanted))
            finally:
                group.terminate()
                group.wait(30)

    return take


def _alone(contender: Contender, measure: str, options: Mapping[str, object]) -> Take:
    """Contender that starts its own workers on the second mount."""

    def take(place: Place) -> Samples:
        with _mounted() as fs:
            mounts = {"directory": str(fs.path("A")), "elsewhere": str(fs.path("B"))}
            return _without_cpu(run_job(contender, place, measure, {**options, **mounts}))

    return take


def _without_cpu(samples: Samples) -> Samples:
    """Return the samples without the CPU time, which would include server and mounts."""
    return {name: values for name, values in samples.items() if name != "CPU"}


@contextmanager
def _mounted() -> Iterator[FileServer]:
    """Start a MooseFS with two clients, in memory; raises :class:`Failed` if it cannot be started."""
    from tests.servers import MooseFS, ServerError, moosefs

    if reason := moosefs.missing():
        raise Failed(f"no shared filesystem can be started here: MooseFS {reason}")
    with tempfile.TemporaryDirectory(prefix="spb-") as directory:
        subprocess.run(["mount", "-t", "tmpfs", "spb", directory], check=True)
        try:
            with MooseFS(directory) as fs:
                yield fs
        except ServerError as error:
            raise Failed(str(error)) from error
        finally:
            subprocess.run(["umount", "--lazy", directory], check=True)


ROW = Row(
    name="shared",
    title="Shared filesystem: submit(pow, 2, 3).result(), submitter and group on two mounts of one MooseFS",
    about="""\
The submitter has one mount of a MooseFS, and the group another one, on a node with a host name and a network of its
own (namespaces of the same machine). No event of one client reaches the other, so both sides find what came by
listing directories: half a millisecond after something happened, then less and less often. The floor is two processes
that pass one file to and fro by rename, and look for it in the same rhythm; it shows what the rhythm and the
filesystem cost, and what is above it are the steps of the protocol. After a pause of 50 ms the group looks seldom, as
it does after any rest, and that counts on both sides. Executorlib with files starts a process for each call, which
gets the path of its file on the other mount. Server, disks and clients share one machine, and the disks are its
memory.
""",
    quantities=(
        Quantity(name="after a pause", unit="s", title="each 50 ms after the last"),
        Quantity(name="at once", unit="s", title="each at once after the last"),
    ),
    entries=entries,
)
