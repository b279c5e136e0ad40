"""Records of batch jobs, and the executors that own them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from spoolpool import Executor
from spoolpool.format.names import new_job_name
from spoolpool.pool.batch_jobs import JobRecord, OwnerWatch
from spoolpool.protocol import sessions
from spoolpool.protocol.spool import Spool


def record_job(spool: Spool, entry: str) -> str:
    """Record a job that the process with this entry owns; return its name."""
    record = JobRecord(name=new_job_name(), system="slurm", cluster="", user="tester", session=entry)
    spool.make_directories(spool.layout.jobs)
    Path(spool.layout.jobs, f"{record.name}.json").write_bytes(msgspec.json.encode(record))
    return record.name


@pytest.mark.parametrize("first_ends", [True, False])
def test_job_ends_with_its_own_executor_and_not_with_another_one_of_the_session(spool: Spool, first_ends: bool) -> None:
    first = Executor(spool=spool.path, session="shared")
    [owner_of_first] = sessions.list_entries(spool, "shared")
    second = Executor(spool=spool.path, session="shared")
    [owner_of_second] = {*sessions.list_entries(spool, "shared")} - {owner_of_first}
    owners = [owner_of_first, owner_of_second]
    executors = [first, second]
    if first_ends:
        owners.reverse()
        executors.reverse()
    job, other = (record_job(spool, owner) for owner in owners)
    executors[1].shutdown()
    assert not OwnerWatch(spool, job).has_ended()
    assert OwnerWatch(spool, other).has_ended()
    executors[0].shutdown()
    assert OwnerWatch(spool, job).has_ended()
