"""Make the golden spools of the present format: ``python tests/format/golden/make.py`` from the root of the repository.

Those of a format, unsigned, signed and with objects, are made once, committed, and read for ever: run this only when
``layout.FORMAT`` has risen.
"""

from __future__ import annotations

import functools
import pickle
import shutil
from pathlib import Path

import msgspec

from spoolpool.calls.pickling import ObjectRef
from spoolpool.format import envelope, headers
from spoolpool.format.headers import OutcomeHeader, TaskHeader
from spoolpool.format.names import FORMAT, ObjectLease, TaskFile
from spoolpool.protocol.claim import Claim
from spoolpool.protocol.objects import acquire, put_object
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.submit import Submitter

LANE = "default.r1t1g0.py3.11"
BUCKET = "499-0660e6e464b511-22dc7470"
WAITING, DONE = "499-0660e6e464b511-22dc7470e2", "499-0660e6e464b5ff-1f46f1a9c3"
WORKER = "0123456789abcdef"
DATA = bytes(range(256)) * 17
LIFE = "01234567"
SECRET = bytes(range(32))
"""The key of the signed spool."""


def header(name: str) -> TaskHeader:
    """What its submitter says about a task."""
    return TaskHeader(
        task=name,
        session="golden",
        lane=LANE,
        bucket=BUCKET,
        name="pow",
        user="golden",
        host="golden",
        submitted=1_790_000_000.0,
        max_attempts=3,
    )


def create(directory: Path, *, signed: bool = False) -> Spool:
    """A spool that is always called the same."""
    spool = Spool.create(directory, durability="none", signed=signed)
    config = msgspec.structs.replace(spool.config, id="0" * 16)
    Path(spool.layout.config).write_bytes(msgspec.json.encode(config))
    spool = Spool(directory, keys=SECRET)
    spool.open_session("golden")
    return spool


def make_with_objects(directory: Path) -> None:
    """A task that waits, with an object among its arguments, and one in the place of a buffer."""
    spool = create(directory)
    put = put_object(spool, pickle.dumps(b"put", protocol=5), [], LIFE)
    shared = put_object(spool, b"", [DATA], LIFE)
    for name in (put, shared):
        acquire(spool, "golden", ObjectLease(name, LIFE))
    ref = ObjectRef(spool.config.id, put, 3)
    call = pickle.dumps(
        (b"+".join, ([pickle.PickleBuffer(DATA), ref],), {}), protocol=5, buffer_callback=lambda buffer: None
    )
    about = msgspec.structs.replace(header(WAITING), objects={put: (), shared: (0,)})
    Submitter(spool).submit(about, envelope.pack(headers.encode(about), call))


def make(directory: Path, *, signed: bool = False) -> None:
    """A task that waits, and an outcome with a buffer of its own that nobody has collected."""
    spool = create(directory, signed=signed)
    call = pickle.dumps((pow, (2, 5), {}), protocol=5)
    for name in (WAITING, DONE):
        Submitter(spool).submit(header(name), envelope.pack(headers.encode(header(name)), call))
    task_file = TaskFile(DONE, 1, 1).claimed_by(WORKER)
    Path(spool.layout.bucket(LANE, BUCKET), TaskFile(DONE, 1, 1).name).rename(spool.layout.claimed_task(task_file))
    buffers: list[pickle.PickleBuffer] = []
    value = pickle.dumps([42, pickle.PickleBuffer(DATA)], protocol=5, buffer_callback=buffers.append)
    outcome = OutcomeHeader(task=DONE, kind="result", worker=WORKER, host="golden", started=1.0, ended=2.0)
    parts = envelope.pack(headers.encode(outcome), value, [buffer.raw() for buffer in buffers])
    claim = Claim(spool, header(DONE), task_file)
    claim.write_outcome(parts)
    claim.commit()


if __name__ == "__main__":
    here, number = Path(__file__).parent, FORMAT
    for place, fill in (
        (here / f"format-{number}", make),
        (here / f"format-{number}-signed", functools.partial(make, signed=True)),
        (here / f"objects-{number}", make_with_objects),
    ):
        shutil.rmtree(place, ignore_errors=True)
        fill(place)
        for directory in sorted(place.rglob("*"), reverse=True):
            if directory.is_dir() and not any(directory.iterdir()):
                directory.rmdir()  # git keeps none
