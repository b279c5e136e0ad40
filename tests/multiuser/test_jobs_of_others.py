"""Batch jobs and groups of several accounts on one spool."""

from __future__ import annotations

import os

import msgspec
import pytest
from click.testing import CliRunner, Result

from spoolpool.cli.spool import main
from spoolpool.errors import SpoolDenied
from spoolpool.format.names import new_job_name
from spoolpool.pool import batch_system, job_ends
from spoolpool.pool.batch_jobs import JobRecord, find_ends, find_jobs
from spoolpool.pool.job_ends import JobEnd
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.worker_registration import started_mark
from spoolpool.system.processes import ProcessId
from tests.multiuser.accounts import Person, Scene
from tests.support.fake_worker import SilentRegistration, info_of

pytestmark = pytest.mark.multiuser


@pytest.fixture(autouse=True)
def _batch_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """Provide a batch system without jobs."""
    monkeypatch.setattr(batch_system, "cluster", lambda system: "c")
    monkeypatch.setattr(batch_system, "active_jobs", lambda system: {})
    monkeypatch.setattr(batch_system, "ended_job", lambda system, name: None)
    monkeypatch.setattr(batch_system, "listed_ids", lambda system, job: frozenset())


def start_group(scene: Scene, person: Person, job: str) -> SilentRegistration:
    with person.acting():
        return SilentRegistration(Spool(scene.path), info_of(ProcessId.of(os.getpid()), job=job))


def record_job(scene: Scene, person: Person) -> str:
    record = JobRecord(name=new_job_name(), system="slurm", cluster="c", user=person.name)
    with person.acting():
        spool = Spool(scene.path)
        spool.make_directories(spool.layout.jobs)
        spool.write_public(f"{spool.layout.jobs}/{record.name}.json", [msgspec.json.encode(record)])
    return record.name


def call(scene: Scene, person: Person, *words: str) -> Result:
    with person.acting():
        return CliRunner().invoke(main, [words[0], words[1], str(scene.path), *words[2:]])


@pytest.mark.parametrize("command", ["stop", "drain"])
def test_all_means_the_groups_of_the_own_account_and_names_the_others(group: Scene, command: str) -> None:
    own, other = start_group(group, group.alice, "12"), start_group(group, group.people.bob, "6_2")
    try:
        done = call(group, group.alice, "workers", command, "--all")
        assert done.exit_code == 0, done.output
        assert own.is_stop_requested()
        assert not other.is_stop_requested()
        assert f"Left: 1 group(s) of {group.people.bob.name} in job 6_2, which only that account ends." in done.output
    finally:
        for person, registration in ((group.alice, own), (group.people.bob, other)):
            with person.acting():
                registration.close()


def test_job_of_another_account_is_not_stopped_and_its_account_is_named(group: Scene) -> None:
    other = start_group(group, group.people.bob, "6_2")
    try:
        done = call(group, group.alice, "workers", "stop", "6_2")
        assert done.exit_code != 0
        assert f"'6_2' belongs to {group.people.bob.name}: only that account ends its jobs" in done.output
        assert not other.is_stop_requested()
    finally:
        with group.people.bob.acting():
            other.close()


def test_failed_job_of_another_account_is_shown_under_its_name_and_not_forgotten(group: Scene) -> None:
    with group.worker.acting():
        Spool(group.path).make_directories(Spool(group.path).layout.jobs)
    name = record_job(group, group.people.bob)
    with group.people.bob.acting():
        job_ends.write_end(
            Spool(group.path), JobEnd(name=name, kind="failed", why="exit code 3", job="7", output=("no such module",))
        )
    for words in (("workers", "ls"), ("status",)):
        with group.alice.acting():
            done = CliRunner().invoke(main, [*words, str(group.path)])
        assert done.exit_code == 0, done.output
        assert f"Job 7 of {group.people.bob.name} failed " in done.output
        assert "| no such module" in done.output
    done = call(group, group.alice, "workers", "forget", "7")
    assert "'7' is no ended job of your account" in done.output


def test_end_and_mark_that_another_account_made_first_are_replaced(
    group: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    # else below the home of this process, which acts as several accounts
    monkeypatch.setattr(job_ends, "output_path", lambda spool, name: f"{spool.layout.jobs}/{name}.out")
    with group.worker.acting():
        Spool(group.path).make_directories(Spool(group.path).layout.jobs)
    name = record_job(group, group.alice)
    with group.people.bob.acting():
        spool = Spool(group.path)
        job_ends.write_end(spool, JobEnd(name=name, kind="failed", why="forged"))
        spool.write_public(started_mark(spool, name), [])
    with group.alice.acting():
        spool = Spool(group.path)
        SilentRegistration(spool, info_of(ProcessId.of(os.getpid()), batch=name)).close()
        assert job_ends.has_started(spool, name)
        [seen] = find_ends(spool, find_jobs(spool))
        assert seen.end is not None
        assert seen.end.kind == "done"
        assert find_jobs(spool)[0].end == seen.end


def test_pending_job_of_another_account_is_told_by_stop_all(group: Scene) -> None:
    with group.worker.acting():
        Spool(group.path).make_directories(Spool(group.path).layout.jobs)
    record_job(group, group.people.bob)
    done = call(group, group.alice, "workers", "stop", "--all")
    assert f"Left: 1 batch job(s) that {group.people.bob.name} has submitted" in done.output


def test_groups_that_an_account_cannot_ask_are_an_error(dropbox: Scene) -> None:
    registration = start_group(dropbox, dropbox.worker, "12")
    try:
        done = call(dropbox, dropbox.mallory, "workers", "drain", "12")
        assert done.exit_code == SpoolDenied.exit_code, done.output
        assert f"cannot ask groups of {dropbox.worker.name} to end" in done.output
        assert not registration.is_stop_requested()
    finally:
        with dropbox.worker.acting():
            registration.close()
