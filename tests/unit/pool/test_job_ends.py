"""Ends of batch jobs: concluded from the batch system and from files, recorded once, and never trusted."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from spoolpool import settings
from spoolpool.errors import BadNode, LauncherError
from spoolpool.format.names import ended_job_of, job_of, new_job_name
from spoolpool.pool import batch_jobs, batch_system, job_ends
from spoolpool.pool.batch_jobs import JobRecord, find_ends, find_jobs
from spoolpool.pool.job_ends import JobEnd, conclude
from spoolpool.pool.job_failures import choose, find_failures
from spoolpool.pool.own_job import OwnJob
from spoolpool.pool.scaling_policy import failures_in_a_row, seconds_left_alone
from spoolpool.pool.systems.base import EndedJob
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.worker_registration import Registration, started_mark
from spoolpool.protocol.workers import WorkerInfo
from spoolpool.system import files
from spoolpool.system.accounts import account_name
from tests.support.accounts import unused_id
from tests.support.fake_worker import unknown_process

LANE = "default.r1t1g0.py3.11"


@pytest.fixture
def job(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a recorded job that the batch system does not list; it knows nothing else either."""
    monkeypatch.setattr(batch_system, "cluster", lambda system: "c")
    monkeypatch.setattr(batch_system, "active_jobs", lambda system: {})
    monkeypatch.setattr(batch_system, "ended_job", lambda system, name: None)
    return submit(spool)


def submit(spool: Spool, lane: str = "") -> str:
    record = JobRecord(name=new_job_name(), system="slurm", cluster="c", user="tester", lane=lane)
    spool.make_directories(spool.layout.jobs)
    Path(spool.layout.jobs, f"{record.name}.json").write_bytes(msgspec.json.encode(record))
    return record.name


def output(spool: Spool, name: str) -> Path:
    return Path(job_ends.output_path(spool, name))


def register_group(spool: Spool, name: str) -> None:
    info = WorkerInfo(worker="0123456789abcdef", process=unknown_process(), user="tester", batch=name)
    Registration(spool, info).close()


NO_GROUP = "it ended before one of its worker groups had started"


@pytest.mark.parametrize(
    ("result", "started", "kind"),
    [
        ("done", True, "done"),
        ("done", False, "failed"),
        ("timeout", True, "done"),
        ("timeout", False, "failed"),
        ("failed", True, "failed"),
        ("failed", False, "failed"),
        ("cancelled", True, "cancelled"),
        ("cancelled", False, "cancelled"),
        ("lost", True, "lost"),
        ("lost", False, "lost"),
    ],
)
def test_end_is_concluded_from_the_batch_system_and_the_mark_of_the_groups(
    spool: Spool, job: str, result: Any, started: bool, kind: str
) -> None:
    output(spool, job).write_text("loading\nno such module\n")
    if started:
        register_group(spool, job)
    end = conclude(spool, job, EndedJob("7", result, None, "SAID"), vanished=False)
    assert end is not None
    assert (end.kind, end.job) == (kind, "7")
    assert (end.output == ("loading", "no such module")) == (kind == "failed")
    assert (NO_GROUP in end.why) == (kind == "failed" and not started)
    assert "SAID" in end.why


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        (EndedJob("7", "failed", 130, "TERM_OWNER: job killed by owner"), "cancelled"),
        (EndedJob("7", "failed", -2, "TERM_RUNLIMIT: job killed after reaching LSF run time limit"), "done"),
        (EndedJob("7", "failed", None, "Job run (PBS status -29)"), "done"),
        (EndedJob("7", "failed", -15, "Job run"), "cancelled"),
        (EndedJob("7", "failed", -9, "qmaster enforced h_rt limit"), "done"),
        (EndedJob("7", "failed", 3, ""), "failed"),
        (EndedJob("7", "failed", -9, "TERM_MEMLIMIT: job killed after reaching LSF memory usage limit"), "failed"),
    ],
)
def test_ends_of_other_batch_systems_are_told_apart_by_their_reasons(
    spool: Spool, job: str, told: EndedJob, kind: str
) -> None:
    register_group(spool, job)
    end = conclude(spool, job, told, vanished=False)
    assert end is not None
    assert end.kind == kind


def test_job_that_vanished_from_the_queue_is_judged_by_its_files(spool: Spool, job: str) -> None:
    assert conclude(spool, job, None, vanished=False) is None, "its submission may be in progress"
    gone = conclude(spool, job, None, vanished=True)
    assert gone is not None
    assert gone.kind == "cancelled", "it never printed anything"
    output(spool, job).write_text("no such module\n")
    failed = conclude(spool, job, None, vanished=False)
    assert failed is not None
    assert (failed.kind, failed.why, failed.output) == ("failed", NO_GROUP, ("no such module",))
    register_group(spool, job)
    done = conclude(spool, job, None, vanished=False)
    assert done is not None
    assert done.kind == "done"


def test_end_is_recorded_once_and_outlives_the_memory_of_the_batch_system(
    spool: Spool, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = EndedJob("7", "failed", 3, "FAILED")
    monkeypatch.setattr(batch_system, "ended_job", lambda system, name: told)
    [seen] = find_ends(spool, find_jobs(spool))
    monkeypatch.setattr(batch_system, "ended_job", lambda system, name: pytest.fail("asked again"))
    [again] = find_ends(spool, find_jobs(spool))
    assert seen.end == again.end
    assert again.end is not None
    assert again.end.kind == "failed"
    job_ends.write_end(spool, JobEnd(name=job, kind="done"))
    assert find_jobs(spool)[0].end == again.end


@pytest.mark.parametrize(
    "content", [b"\x1b]0;title\x07\x1b[2J" * 3, b"\xff\xfe" * 3, b"x" * (1 << 22), b"a\r\x08b\n" * 10_000]
)
def test_last_lines_of_an_output_are_bounded_and_escaped(spool: Spool, job: str, content: bytes) -> None:
    output(spool, job).write_bytes(content)
    end = conclude(spool, job, EndedJob("7", "failed"), vanished=False)
    assert end is not None
    assert end.output
    assert all(line.isprintable() for line in end.output)
    assert sum(map(len, end.output)) <= 5000
    job_ends.write_end(spool, end)
    assert find_jobs(spool)[0].end == end


@pytest.mark.parametrize("kind", ["link", "fifo", "foreign"])
def test_output_that_is_not_the_accounts_own_file_is_not_shown(
    spool: Spool, job: str, kind: str, tmp_path: Path
) -> None:
    path = output(spool, job)
    secret = tmp_path / "secret"
    secret.write_text("secret\n")
    if kind == "link":
        path.symlink_to(secret)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.write_text("secret\n")
        os.chown(path, unused_id(), -1)
    end = conclude(spool, job, EndedJob("7", "failed"), vanished=False)
    assert end is not None
    assert end.output == ()
    assert "it printed nothing to " in end.why


def test_mark_of_the_groups_counts_only_if_it_belongs_to_the_account(spool: Spool, job: str) -> None:
    register_group(spool, job)
    os.chown(started_mark(spool, job), unused_id(), -1)
    assert not job_ends.has_started(spool, job)


@pytest.mark.parametrize("way", ["file", "link"])
def test_name_that_another_account_took_first_is_replaced(
    spool: Spool, job: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (Path(spool.layout.jobs, f"{job}.end"), Path(started_mark(spool, job))):
        if way == "link":
            path.symlink_to(spool.layout.jobs)
        else:
            path.write_bytes(msgspec.json.encode(JobEnd(name=job, kind="failed", why="forged")))
        os.chown(path, unused_id(), -1, follow_symlinks=False)
    register_group(spool, job)
    assert job_ends.has_started(spool, job)
    monkeypatch.setattr(batch_system, "ended_job", lambda system, name: EndedJob("7", "done"))
    [seen] = find_ends(spool, find_jobs(spool))
    assert seen.end is not None
    assert (seen.end.kind, seen.end.job) == ("done", "7")
    assert find_jobs(spool)[0].end == seen.end, "it is recorded"


@pytest.mark.parametrize("record", [True, False])
@pytest.mark.parametrize("prints", [True, False])
def test_pause_of_a_lane_passes_although_the_ends_cannot_be_recorded(
    spool: Spool, job: str, prints: bool, record: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(spool: Spool, path: str, parts: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", path)

    monkeypatch.setattr(Spool, "write_public", refuse)
    monkeypatch.setattr(batch_system, "ended_job", lambda system, name: EndedJob("7", "failed", 3))
    now = time.time()
    hours = 3 if prints else 2
    for name in (submit(spool, LANE), submit(spool, LANE)):
        os.utime(Path(spool.layout.jobs, f"{name}.json"), (now - 3600.0 * hours,) * 2)
        if prints:
            output(spool, name).write_text("no such module\n")
            os.utime(output(spool, name), (now - 7200.0,) * 2)
    for _ in range(2):
        failed = failures_in_a_row(find_ends(spool, find_jobs(spool), record=record), LANE)
        assert [round(each.ended / 3600.0) for each in failed] == [2, 2]
        assert seconds_left_alone(failed) == 0.0


@pytest.mark.parametrize("content", [b"{", b'{"name":"x","kind":"failed"}', b"[" * 100_000, bytes(1 << 17)])
def test_hostile_record_of_an_end_is_ignored(spool: Spool, job: str, content: bytes) -> None:
    Path(spool.layout.jobs, f"{job}.end").write_bytes(content)
    [seen] = find_jobs(spool)
    assert seen.end is None
    assert find_failures(spool, record=False)[1] == []


def test_end_that_another_account_recorded_does_not_count_for_a_job_and_is_shown_as_its_own(
    spool: Spool, job: str
) -> None:
    job_ends.write_end(spool, JobEnd(name=job, kind="failed", why="forged"))
    path = Path(spool.layout.jobs, f"{job}.end")
    account = unused_id()
    os.chown(path, account, -1)
    [seen] = find_jobs(spool)
    assert seen.end is None
    other = new_job_name()
    job_ends.write_end(spool, JobEnd(name=other, kind="failed", why="broken", output=("no such module",)))
    os.chown(Path(spool.layout.jobs, f"{other}.end"), account, -1)
    found = [each for each in find_failures(spool, record=False)[1] if each.end.name == other]
    assert [each.user for each in found] == [account_name(account)]
    assert f" of {account_name(account)} failed " in found[0].text


def test_status_asks_the_batch_system_only_about_jobs_without_a_group(
    spool: Spool, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def no_answer(system: str) -> Any:
        asked.append(system)
        raise LauncherError("squeue does not answer")

    monkeypatch.setattr(batch_system, "active_jobs", no_answer)
    assert find_failures(spool, record=False) == ([], [], "squeue does not answer")
    assert asked == ["slurm"]
    register_group(spool, job)
    ended = submit(spool)
    job_ends.write_end(spool, JobEnd(name=ended, kind="failed", why="exit code 3"))
    _, [failure], problem = find_failures(spool, record=False)
    assert (failure.end.name, problem, asked) == (ended, "", ["slurm"])


def test_failed_jobs_are_shown_on_a_read_only_mount(spool: Spool, job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: str) -> None:
        raise OSError(errno.EROFS, "Read-only file system", path)

    job_ends.write_end(spool, JobEnd(name=job, kind="failed", why="exit code 3"))
    submit(spool)
    monkeypatch.setattr(files, "touch", refused)
    jobs, [failure], problem = find_failures(spool, record=False)
    assert (failure.end.name, len(jobs), problem) == (job, 2, "")


def test_number_of_failed_jobs_that_are_listed_is_bounded(spool: Spool, job: str) -> None:
    for number in range(30):
        job_ends.write_end(spool, JobEnd(name=new_job_name(), kind="failed", why=f"reason {number}"))
    chosen, left = choose(find_failures(spool, record=False)[1])
    assert (len(chosen), left) == (10, 20)


def test_record_and_output_of_a_job_are_kept_for_a_day_after_its_end(spool: Spool, job: str) -> None:
    os.utime(Path(spool.layout.jobs, f"{job}.json"), (1e9, 1e9))
    job_ends.write_end(spool, JobEnd(name=job, kind="failed"))
    end = Path(spool.layout.jobs, f"{job}.end")
    assert find_jobs(spool), "it has waited for longer than a day"
    os.utime(end, (end.stat().st_mtime - 90_000,) * 2)
    assert find_jobs(spool, clean=False)
    assert find_jobs(spool) == []
    assert [name for name in os.listdir(spool.layout.jobs) if job_of(name) or ended_job_of(name)] == []


# -- records of the job itself


@pytest.fixture
def in_job(spool: Spool, job: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of the recorded job around this process."""
    monkeypatch.setenv(settings.ENV_JOB, job)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    return job


def end_of(spool: Spool, name: str) -> JobEnd | None:
    [seen] = [each for each in find_jobs(spool) if each.record.name == name]
    return seen.end


def test_supervisor_records_its_error_as_the_reason(spool: Spool, in_job: str) -> None:
    with pytest.raises(LauncherError), OwnJob(spool).recording():
        raise LauncherError("no room\x1b[2J")
    end = end_of(spool, in_job)
    assert end is not None
    assert (end.kind, end.why, end.job) == ("failed", "no room\\x1b[2J", "7")


@pytest.mark.parametrize(("left", "kind"), [(True, "done"), (False, "failed")])
def test_job_that_gave_up_nodes_has_failed_only_without_a_group_on_another_node(
    spool: Spool, in_job: str, left: bool, kind: str
) -> None:
    own = OwnJob(spool)
    own.has_groups_left = lambda: left
    register_group(spool, in_job)
    with pytest.raises(BadNode), own.recording():
        raise BadNode("n1")
    end = end_of(spool, in_job)
    assert end is not None
    assert end.kind == kind


def test_job_that_was_asked_to_end_before_its_first_group_is_no_failure(spool: Spool, in_job: str) -> None:
    with OwnJob(spool).recording():
        pass
    end = end_of(spool, in_job)
    assert end is not None
    assert end.kind == "cancelled"


def test_requeued_job_has_no_end(spool: Spool, in_job: str) -> None:
    register_group(spool, in_job)
    job_ends.write_end(spool, JobEnd(name=in_job, kind="done"))
    OwnJob(spool)
    assert end_of(spool, in_job) is None
    assert not job_ends.has_started(spool, in_job)


def test_element_of_an_array_records_its_failure_and_no_end_of_all(
    spool: Spool, in_job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "6")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    with OwnJob(spool).recording():
        pass
    assert end_of(spool, in_job) is None
    with pytest.raises(LauncherError), OwnJob(spool).recording():
        raise LauncherError("no room")
    end = end_of(spool, in_job)
    assert end is not None
    assert (end.kind, end.job) == ("failed", "6_2")


def test_script_that_was_not_submitted_through_the_spool_records_its_failure_under_a_new_name(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(settings.ENV_JOB, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    for error in (None, LauncherError("no room")):
        try:
            with OwnJob(spool).recording():
                if error:
                    raise error
        except LauncherError:
            pass
    [failure] = find_failures(spool, record=True)[1]
    assert (failure.end.job, failure.end.why) == ("9", "no room")
    assert batch_jobs.read_records(spool) == []


def test_process_outside_of_batch_jobs_records_no_end(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (settings.ENV_JOB, "SLURM_JOB_ID", "FLUX_ENCLOSING_ID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(LauncherError), OwnJob(spool).recording():
        raise LauncherError("no room")
    assert not Path(spool.layout.jobs).exists()
