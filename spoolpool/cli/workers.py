"""``spool workers``: start and stop batch jobs of workers from a login node."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import click
import msgspec

from spoolpool.cli.batch_options import create_job, job_options
from spoolpool.cli.output import Group, echo_escaped, echo_stderr, report_errors
from spoolpool.cli.quantities import Duration
from spoolpool.cli.spool_argument import takes_spool
from spoolpool.errors import BadRequest, LauncherError, SpoolDenied
from spoolpool.format.names import new_job_name
from spoolpool.pool.batch_jobs import SpoolJob, count_other_jobs, end_jobs, find_jobs, remove_record, submit
from spoolpool.pool.batch_system import listed_ids
from spoolpool.pool.job_ends import JobEnd, output_path
from spoolpool.pool.job_failures import JobFailure, failure_lines, find_failures
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.worker_registration import request_stop
from spoolpool.protocol.workers import WorkerInfo, group_state, read_start_errors, read_workers
from spoolpool.system.accounts import account_name
from spoolpool.system.job_ids import is_component, names_job, select, spell_out
from spoolpool.system.text import escape_line

_MOST_NAMES = 10  # that an error lists
_SHORT_ID = 8  # characters of the ids of groups that logs and screens show


@click.group(cls=Group)
def workers() -> None:
    """Submit batch jobs of workers; list and stop groups and jobs."""


@workers.command()
@click.option("--jobs", "count", type=click.IntRange(1), default=1, show_default=True, help="Number of jobs.")
@click.option("--dry-run", is_flag=True, help="Print the job script; submit nothing.")
@job_options
@report_errors
def start(directory: str, count: int, dry_run: bool, **options: Any) -> None:
    """Submit batch jobs that run spool-worker, and print their ids.

    \b
      spool workers start SPOOL --nodes 4 --time 4:00:00 -- --ranks 8 --threads 2
    """
    spool = Spool(directory)
    submitted = create_job(spool.path, options)
    if dry_run:
        name = new_job_name()
        click.echo(submitted.script(name, output_path(spool, name)), nl=False)
        return
    for _ in range(count):
        click.echo(submit(spool, submitted)[1])


@workers.command()
@takes_spool()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per group or job, and line.")
@report_errors
def ls(directory: str, as_json: bool) -> None:
    """List the worker groups of SPOOL: id, state, host, job, shape and queues; then its batch jobs.

    \b
      spool workers ls SPOOL

    Pending and running jobs are those of your account. Jobs of all accounts that failed within a day follow, with the
    reason and the last lines of their output, and the lanes that 'spool autoscale' leaves alone because of them.
    """
    spool = Spool(directory, read_only=True)
    now = spool.shown_time()
    found = read_workers(spool)
    for info in sorted(found, key=lambda info: info.started):
        life = group_state(spool, info, now)
        if as_json:
            click.echo(json.dumps({**msgspec.to_builtins(info), "state": life.state, "silence": life.silence}))
            continue
        state = life.text
        names = list(filter(None, (info.job, info.batch)))  # its id, and the name of its record if it has one
        job = " = ".join(f"job {name}" for name in names) or "no job"
        shape = f"{info.ranks} rank(s) x {info.threads} thread(s), {info.gpus} GPU(s)"
        left = "" if info.ends is None else f"  {max(0.0, info.ends - now):.0f} s left"
        echo_escaped(f"{info.worker}  {state}  {info.process.host}  {job}  {shape}  {', '.join(info.queues)}{left}")
    for worker, error in read_start_errors(spool, {info.worker for info in found}).items():
        if as_json:
            click.echo(json.dumps({"worker": worker, "state": "missing", "error": error}))
        else:
            echo_escaped(f"{worker}  missing  {error}")
    jobs, failures, problem = find_failures(spool, record=True)
    if as_json:
        _echo_json(jobs, failures)
    else:
        for line in itertools.chain(*map(_job_lines, jobs), failure_lines(failures)):
            echo_escaped(line)
    if problem:
        raise LauncherError(problem)


def _job_lines(job: SpoolJob) -> Iterator[str]:
    record = job.record
    purpose = f"for {record.lane}" if record.lane else "submitted manually"
    purpose += f", session {record.session}" if record.session else ""
    for part in job.parts:
        told = "  component of a heterogeneous job" if is_component(part.id) else ""
        told += f"  cannot start: {job.problem}" if job.problem else ""
        yield f"{part.id}  {part.state}  {record.nodes} node(s) for {record.time}  {purpose}  {record.name}{told}"


def _echo_json(jobs: list[SpoolJob], failures: list[JobFailure]) -> None:
    failed = {each.end.name: each.as_json() for each in failures}
    for job in jobs:
        told = {
            **msgspec.to_builtins(job.record),
            "id": job.id or (job.end.job if job.end else ""),
            "state": job.state,
            "parts": [part._asdict() for part in job.parts],
            "end": None if job.end is None else job.end.kind,
            "failure": failed.pop(job.record.name, None),
        }
        click.echo(json.dumps(told))
    for name, failure in failed.items():  # of other accounts, and of scripts that were not submitted through the spool
        told = {"name": name, "id": failure["job"], "state": "over", "parts": [], "end": "failed", "failure": failure}
        click.echo(json.dumps(told))


def _is_own(spool: Spool, info: WorkerInfo) -> bool:
    """Return whether this account runs a group: in a shared spool the owner of its entry tells."""
    return not spool.shared or info.user == account_name(os.geteuid())


def _groups_named(spool: Spool, name: str, found: list[WorkerInfo]) -> list[WorkerInfo]:
    """Return the groups of this id, host or job."""

    def groups_of(job: str) -> list[WorkerInfo]:
        return [info for info in found if info.job and names_job(job, info.job)]

    fits = [info for info in found if name in (info.worker, info.process.host, info.batch)]
    fits = fits or groups_of(name) or groups_of(spell_out(name))
    fits = fits or [info for job in listed_ids("slurm", name) for info in groups_of(job)]
    # at last, and not by a few digits: the number of an ended job must not end a group by chance
    return fits or [info for info in found if len(name) >= _SHORT_ID and info.worker.startswith(name)]


@workers.command()
@takes_spool(many="named:[GROUP|JOB|HOST]...")
@click.option("--all", "everything", is_flag=True, help="All groups of your account.")
@report_errors
def drain(directory: str, named: tuple[str, ...], everything: bool) -> None:
    """Stop groups after their current tasks. A supervisor ends with its last group.

    \b
      spool workers drain SPOOL node17
      spool workers drain SPOOL --all

    A JOB is an id as the batch system shows it, such as 12, 6_2 (an element of an array) or fMM79KV.
    """
    spool = Spool(directory)
    found = read_workers(spool)
    if everything == bool(named):
        raise BadRequest(f"Name groups, jobs or hosts, or --all. The spool has {len(found)} groups.")
    chosen: dict[str, WorkerInfo] = {}
    for name in named:
        fits = _groups_named(spool, name, found)
        if not fits:
            there = sorted({info.job for info in found if info.job} | {info.process.host for info in found})
            raise BadRequest(
                f"{name!r} is no group, job or host of this spool, which has {_enumerate(there)}: see "
                f"'spool workers ls {spool.path}'."
            )
        chosen.update({info.worker: info for info in fits})
    if everything:
        chosen = {info.worker: info for info in found if _is_own(spool, info)}
    refused = _ask_to_end(spool, list(chosen.values()), click.echo)
    if everything:
        _tell_what_is_left(spool, found)
    if refused:
        raise SpoolDenied(f"This account cannot ask groups of {_enumerate(sorted(refused))} to end.")


def _ask_to_end(spool: Spool, groups: list[WorkerInfo], echo: Callable[[str], object]) -> set[str]:
    """Ask groups to end; return the accounts of those that this account cannot ask."""
    refused = set()
    for info in groups:
        if request_stop(spool, info.worker):
            echo(escape_line(f"{info.worker} on {info.process.host} was asked to end."))
        else:
            refused.add(info.user)
    return refused


def _tell_what_is_left(spool: Spool, found: list[WorkerInfo]) -> None:
    """Print which groups and jobs of other accounts were left."""
    for user in sorted({info.user for info in found if not _is_own(spool, info)}):
        groups = [info for info in found if info.user == user]
        jobs = sorted({info.job for info in groups if info.job})
        hosts = sorted({info.process.host for info in groups})
        where = f"in {_enumerate(jobs, 'job')}" if jobs else f"on {_enumerate(hosts)}"
        echo_escaped(f"Left: {len(groups)} group(s) of {user} {where}, which only that account ends.", err=True)
    for user, count in sorted(count_other_jobs(spool).items()):
        echo_escaped(f"Left: {count} batch job(s) that {user} has submitted and that may not have ended.", err=True)


def _enumerate(names: list[str], noun: str = "") -> str:
    """Return names as text, not more than some of them."""
    if not names:
        return "none"
    told = ", ".join(names[:_MOST_NAMES])
    told += f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return f"{noun}{'s' * (noun != '' and len(names) > 1)} {told}".strip()


@workers.command()
@takes_spool(many="named:[JOB|NAME]...")
@click.option("--all", "everything", is_flag=True, help="All batch jobs and all groups of your account.")
@click.option(
    "--wait",
    "seconds",
    type=Duration(),
    default=60.0,
    show_default=True,
    help="Seconds for groups to finish their tasks; then their jobs are cancelled.",
)
@report_errors
def stop(directory: str, named: tuple[str, ...], everything: bool, seconds: float) -> None:
    """Stop batch jobs that were submitted for SPOOL, and wait until they have ended.

    \b
      spool workers stop SPOOL 4711
      spool workers stop SPOOL --all

    Pending jobs are cancelled. The groups of running jobs are asked to end after their tasks; after --wait seconds
    their jobs are cancelled too. Only jobs that your account submitted for this spool are touched. --all names the
    groups and jobs of other accounts that it leaves.

    A JOB is an id as the batch system shows it: 12, 6_2 or 6_[1-3] (elements of an array), 3+1 (a component of a
    heterogeneous job, which ends as a whole), fMM79KV or any other spelling of Flux.
    """
    spool = Spool(directory)
    jobs = find_jobs(spool)
    active = [job for job in jobs if job.state != "over"]
    if everything == bool(named):
        raise BadRequest(f"Name batch jobs, or --all. There are {len(active)}: see 'spool workers ls {spool.path}'.")
    if everything:
        found = read_workers(spool)
        _ask_to_end(spool, [info for info in found if _is_own(spool, info)], echo_stderr)
        _tell_what_is_left(spool, found)
        wanted: dict[str, set[str]] = {job.record.name: _all_of(job) for job in active}
    else:
        wanted = {}
        for name in named:
            chosen = _jobs_named(name, active)
            if not chosen:
                raise BadRequest(_why_no_job(spool, name, jobs))
            for job, ids in chosen:
                wanted.setdefault(job.record.name, set()).update(ids)
                if any(is_component(part.id) for part in job.parts):
                    echo_stderr(f"Job {job.id} is heterogeneous: all of its components end together.")
    parts = {job.record.name: wanted[job.record.name] for job in active if job.record.name in wanted}
    whole = {job.record.name for job in active if parts.get(job.record.name) == _all_of(job)}
    elements_only = {name: ids for name, ids in parts.items() if name not in whole}
    for line in end_jobs(spool, lambda job: job.record.name in parts, seconds, elements_only):
        echo_stderr(line)


def _all_of(job: SpoolJob) -> set[str]:
    return set().union(*job.selected(None).values())


def _jobs_named(name: str, jobs: list[SpoolJob]) -> list[tuple[SpoolJob, set[str]]]:
    """Return the jobs that an id or name selects, with the ids of their parts."""

    def search(typed: str) -> list[tuple[SpoolJob, set[str]]]:
        found = [(job, set().union(*(select(typed, part.id) for part in job.parts))) for job in jobs]
        return [(job, ids) for job, ids in found if ids]

    by_name = [(job, _all_of(job)) for job in jobs if job.record.name == name]
    found = by_name or search(name) or search(spell_out(name))
    systems = {job.record.system for job in jobs}
    return found or [each for system in systems for job in listed_ids(system, name) for each in search(job)]


def _why_no_job(spool: Spool, name: str, jobs: list[SpoolJob]) -> str:
    """Return the reason why no job can be stopped by a name, and which ones can."""
    hint = f"see 'spool workers ls {spool.path}'"
    groups = _groups_named(spool, name, read_workers(spool))
    if others := sorted({info.user for info in groups if not _is_own(spool, info)}):
        return f"{name!r} belongs to {_enumerate(others)}: only that account ends its jobs; {hint}."
    if groups:
        return (
            f"{name!r} was not submitted by 'spool workers start' or 'spool autoscale', so that it cannot be cancelled "
            f"here: 'spool workers drain {spool.path} {name}' ends its {len(groups)} group(s) after their tasks."
        )
    ended = [job for job in jobs if job.state == "over" and (name == job.record.name or _is_id(name, job))]
    if ended:
        return f"{name!r} has ended already: {hint}."
    there = [f"{part.id} ({part.state})" for job in jobs for part in job.parts]
    return f"{name!r} is no batch job of this spool. Your jobs there are: {_enumerate(there)}; {hint}."


def _is_id(name: str, job: SpoolJob) -> bool:
    return job.end is not None and bool(job.end.job) and bool(select(name, job.end.job))


@workers.command()
@takes_spool(many="named:[JOB|NAME|LANE]...")
@click.option("--all", "everything", is_flag=True, help="All ended jobs of your account.")
@report_errors
def forget(directory: str, named: tuple[str, ...], everything: bool) -> None:
    """Remove the records and outputs of ended jobs, so that their failures are listed and counted no more.

    \b
      spool workers forget SPOOL --all

    'spool autoscale' submits jobs again for a lane that it has left alone.
    """
    spool = Spool(directory)
    jobs, failures, problem = find_failures(spool, record=True)
    if problem:
        raise LauncherError(problem)
    ended = {job.record.name: job.end or JobEnd(name=job.record.name, kind="done") for job in jobs if not job.parts}
    ended.update({each.end.name: each.end for each in failures if not each.user})
    for job in jobs:
        if job.parts:
            ended.pop(job.record.name, None)
    if everything == bool(named):
        raise BadRequest(f"Name ended jobs or lanes, or --all. There are {len(ended)} ended jobs of your account.")
    chosen = set(ended) if everything else set()
    for name in named:
        fits = {
            each.name
            for each in ended.values()
            if name in (each.name, each.lane) or (each.job and select(spell_out(name), each.job))
        }
        if not fits:
            there = sorted({each.job or each.name for each in ended.values()})
            raise BadRequest(
                f"{name!r} is no ended job of your account, and no lane of one. The ended jobs are: "
                f"{_enumerate(there)}; see 'spool workers ls {spool.path}'."
            )
        chosen |= fits
    for name in sorted(chosen):
        remove_record(spool, name)
    click.echo(f"{len(chosen)} ended job(s) were forgotten.")
