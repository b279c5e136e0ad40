"""Entry by which groups on other hosts see that their supervisor lives."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from spoolpool.protocol import workers
from spoolpool.protocol.owner_entry import OwnerEntry
from spoolpool.protocol.spool import Spool
from tests.support.processes import processes_of
from tests.support.waiting import wait_until


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool.create(tmp_path / "spool", durability="none", lease=0.6, caches=0)


@pytest.fixture
def entry(spool: Spool) -> Iterator[OwnerEntry]:
    made = OwnerEntry(spool)
    yield made
    made.close()


def await_touch(entry: OwnerEntry, spool: Spool) -> None:
    path = f"{spool.layout.worker(entry.id)}/beat"
    os.utime(path, ns=(1, 1))

    def is_touched() -> bool:
        entry.keep()
        return os.stat(path).st_mtime_ns != 1

    wait_until(is_touched, "the heartbeat goes on")


def test_entry_has_a_heartbeat_and_is_no_worker(entry: OwnerEntry, spool: Spool) -> None:
    await_touch(entry, spool)
    assert workers.read_workers(spool) == []
    entry.close()
    assert os.listdir(spool.layout.workers) == []


def test_heartbeat_goes_on_after_its_processes_were_killed(entry: OwnerEntry, spool: Spool) -> None:
    for pid in processes_of(entry.id):
        os.kill(pid, signal.SIGKILL)
    await_touch(entry, spool)


def test_entry_that_a_recoverer_removed_is_made_again(entry: OwnerEntry, spool: Spool) -> None:
    workers.remove_worker(spool, entry.id)

    def is_back() -> bool:
        entry.keep()
        return os.path.exists(f"{spool.layout.worker(entry.id)}/beat")

    wait_until(is_back, "the entry is there again")
    await_touch(entry, spool)
