"""Costs of tasks that survive the loss of their node, or of power."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping

from benchmarks import machine
from benchmarks.contender import Contender, Samples
from benchmarks.contenders import floor, spoolpool
from benchmarks.contenders.spoolpool import DURABILITIES
from benchmarks.jobs import job_of, run_job
from benchmarks.row import Entry, Key, Place, Quantity, Row, Sizes, Take

_DISK = "/var/tmp"
"""Its files outlive a boot, so it is on a disk wherever there is one."""

_ROUNDS = 3
"""Turns at most: a sync takes long."""


def entries(sizes: Sizes) -> list[Entry]:
    """Each durability in the directory of the run, then on the disk, each beside the bare calls with the same syncs."""
    kind = machine.filesystem(_DISK)
    found = []
    for where, disk in ("", ""), (f", {_DISK} on {kind}", _DISK):
        for durability in DURABILITIES if kind != "tmpfs" or not disk else ():
            ours, bare = Key("spoolpool", f"{durability}{where}"), Key("bare system calls", f"{durability}{where}")
            options = {"tasks": sizes.calls, "seconds": sizes.seconds, "variant": durability}
            found += [
                Entry(
                    key=ours,
                    role="ours",
                    take=_on(disk, spoolpool.CONTENDER, options),
                    ours=Key("spoolpool", f"none{where}") if durability != "none" else None,
                    floor=bare,
                    rounds=_ROUNDS,
                ),
                Entry(key=bare, role="floor", take=_on(disk, floor.CONTENDER, options), rounds=_ROUNDS),
            ]
    return found


def _on(disk: str, contender: Contender, options: Mapping[str, object]) -> Take:
    if not disk:
        return job_of(contender, "durability", **options)

    def take(place: Place) -> Samples:
        with tempfile.TemporaryDirectory(prefix="spb-", dir=disk) as directory:
            return run_job(contender, place, "durability", {**options, "directory": directory})

    return take


ROW = Row(
    name="durability",
    title="Durability: one attached group, by what a task survives (x ours: times durability none)",
    about="""\
The price of durability: a task that survives the crash of any process (`none`), of the node (`data`: each file is
synced before it gets its name) or the loss of power on a local disk (`full`: the directories are synced too). One
spool with one group that runs beside it; `x ours` compares each line with `none` in the same place. The floor is the
task's way in bare system calls of one process that waits for nobody and syncs what must be: two files, and the
directories in which three names are made. It is measured where everything is, and on the disk of `/var/tmp`: on a
tmpfs a sync costs nothing. What a sync costs is the disk's affair; an ext4 without a journal makes files slowly.
""",
    quantities=(
        Quantity(name="at once", unit="s", title="one call at a time"),
        Quantity(name="rate", unit="/s", title="calls per second, submitted one by one"),
    ),
    entries=entries,
)
