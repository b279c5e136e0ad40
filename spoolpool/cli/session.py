"""``spool session``: whole sessions, whose results later processes may collect."""

from __future__ import annotations

import contextlib
import functools
import json
import reprlib
import sys
import time
from typing import Any

import click

from spoolpool.cli.output import Group, echo_escaped, echo_stderr, report_errors
from spoolpool.cli.result import read_value
from spoolpool.cli.rm import needed_by, remove
from spoolpool.cli.spool_argument import takes_spool
from spoolpool.cli.task_selection import Selection, confirm, report_unlisted
from spoolpool.errors import BadRequest, SpoolpoolError
from spoolpool.format.names import check_session
from spoolpool.monitor.inventory import count_session_tasks
from spoolpool.monitor.query import Query, TaskView
from spoolpool.monitor.scan import SpoolScanner
from spoolpool.monitor.selection import select
from spoolpool.monitor.states import ENDS, STATES, UNREAD
from spoolpool.protocol.sessions import SessionInfo, is_in_use, list_entries, read_session, remove_dead
from spoolpool.protocol.spool import Spool
from spoolpool.security.trust import Trust
from spoolpool.system import accounts, files
from spoolpool.system.text import format_duration
from spoolpool.system.user_code import describe_value


@click.group(cls=Group)
def session() -> None:
    """List the sessions of a spool, print their results, and remove them."""


@session.command()
@takes_spool()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per session and line.")
@report_errors
def ls(directory: str, as_json: bool) -> None:
    """List the sessions of SPOOL: account, submitter, number of tasks, and time of the last submission.

    \b
      spool session ls SPOOL
    """
    spool = Spool(directory, read_only=True)
    scanner = SpoolScanner(spool.layout.root)
    titled = sys.stdout.isatty() and not as_json
    for name, found in count_session_tasks(spool, scanner).items():
        info = _submitter(spool, name)
        user = (
            info.user if info else accounts.account_name(files.owner(f"{spool.layout.results}/{name}") or spool.owner)
        )
        counts = {state: found.states[state] for state in (*STATES, UNREAD)}
        if as_json:
            process = {"host": info.process.host, "pid": info.process.pid} if info else None
            about = {"session": name, "user": user, "submitter": process, "state": _state(info)}
            click.echo(json.dumps({**about, **counts, "last": found.last}))
            continue
        if titled:
            click.echo(click.style(_row("SESSION", "USER", "SUBMITTER", "LAST", *map(str.upper, counts)), bold=True))
            titled = False
        since = format_duration(time.time() - found.last) if found.last else "-"
        row = _row(name, user, _state(info), since, *(f"{n:>{len(state)}}" for state, n in counts.items()))
        echo_escaped(row)
    report_unlisted(scanner, spool)
    if scanner.unlisted:
        sys.exit(SpoolpoolError.exit_code)


def _state(info: SessionInfo | None) -> str:
    """Return the state of the submitter: ended, alive or dead on this host, or on another host."""
    if info is None:
        return "ended"
    if info.process.is_alive_here():
        return "alive"
    return "dead" if info.process.is_provably_dead() else f"on {info.process.host}"


def _submitter(spool: Spool, session: str) -> SessionInfo | None:
    """Return a process of a session: one that is alive on this host, or else one that may be alive, if there is one."""
    infos = [read_session(spool, entry) for entry in list_entries(spool, session)]
    return max(
        filter(None, infos),
        key=lambda info: (info.process.is_alive_here(), not info.process.is_provably_dead()),
        default=None,
    )


def _row(name: str, user: str, state: str, last: str, *counts: str) -> str:
    return f"{name:<16}  {user[:8]:<8}  {state:<9}  {last:>6}  {'  '.join(f'{each:>7}' for each in counts)}"


@session.command()
@takes_spool("name:SESSION")
@click.option(
    "--trust-user", "trusted", multiple=True, metavar="NAME", help="Also read results of workers of this account."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per task and line.")
@report_errors
def results(directory: str, name: str, trusted: tuple[str, ...], as_json: bool) -> None:
    """Print the results and errors of the tasks of a session, in the order of submission; they stay in the spool.

    \b
      spool session results SPOOL sweep
      spool session results SPOOL sweep --json

    Values are shortened to one line; 'spool result' and --json print them in full. Unpickling a value can run code:
    only results from workers of your account and of --trust-user are read.
    """
    spool = Spool(directory, trust=Trust(trusted))
    failures = 0
    for view in _tasks(spool, name):
        entry: dict[str, Any] = {"task": view.id, "state": view.state, "name": view.name}
        try:
            entry.update(_value_or_error(view, trusted))
        except (OSError, SpoolpoolError) as error:
            failures += 1
            echo_escaped(f"{view.id}: {error}", err=True)
            continue
        if as_json:
            click.echo(json.dumps(entry, default=functools.partial(describe_value, length=sys.maxsize)))
        else:
            text = entry.get("error", "")
            if "value" in entry:
                text = describe_value(entry["value"], sys.maxsize, reprlib.repr)
            echo_escaped(f"{view.id}  {view.state:<9}  {view.name}  {text}")
    if failures:
        sys.exit(SpoolpoolError.exit_code)


def _value_or_error(view: TaskView, trusted: tuple[str, ...]) -> dict[str, Any]:
    """Return the value of a task, or its error as text, for which nothing is unpickled."""
    if view.state == "done":
        return {"value": read_value(view, trusted)}
    failure = view.outcome.failure if view.outcome else None
    return {"error": f"{failure.type}: {failure.message}"} if failure else {}


@session.command()
@takes_spool("name:SESSION")
@click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation.")
@report_errors
def rm(directory: str, name: str, yes: bool) -> None:
    """Remove a session with its outcomes and failed tasks.

    \b
      spool session rm SPOOL sweep

    Nothing is removed while the session has queued or running tasks, which 'spool cancel SPOOL --session SESSION'
    cancels, or while a process has it open.
    """
    spool = Spool(directory)
    views = _unused_tasks(spool, name)
    confirm("remove", views, yes)
    if not yes:  # the answer may have taken long
        views = [view for view in _unused_tasks(spool, name) if view.id in {each.id for each in views}]
    kept = 0
    with contextlib.closing(Selection((spool.path,), (), (), False, Query(session=name))) as selection:
        for view in reversed(views):  # latest first: a task was submitted after its dependencies
            if needed := needed_by(view):
                kept += 1
                echo_stderr(f"{view.id} stays: task {needed} needs its result. Cancel that task first.")
            elif remove(view):
                selection.log_event("removed", view)
    remove_dead(spool, name)
    spool.close_session(name)
    click.echo(f"The session {name} was removed{f', except {kept} task(s)' * bool(kept)}.")
    if kept:
        sys.exit(SpoolpoolError.exit_code)


def _unused_tasks(spool: Spool, name: str) -> list[TaskView]:
    """Return all tasks of a session; raises :class:`BadRequest` if it is in use, or has tasks without an outcome."""
    views = _tasks(spool, name)
    busy = sum(view.state not in ENDS for view in views)
    if busy:
        raise BadRequest(
            f"{busy} task(s) of the session {name} are queued or running: cancel them with "
            f"'spool cancel {spool.path} --session {name}', or wait for them with 'spool wait'."
        )
    if is_in_use(spool, name):
        info = _submitter(spool, name)
        process = f"process {info.process.pid} on {info.process.host}" if info else "a process"
        raise BadRequest(f"The session {name} of {spool.path} is open in {process}: end that process first.")
    return views


def _tasks(spool: Spool, name: str) -> list[TaskView]:
    """Return all tasks of a session, in the order of submission; raises :class:`BadRequest` for an unknown session."""
    check_session(name)
    views = sorted(select(spool, Query(session=name), packs=True), key=lambda view: view.id.partition("-")[2])
    if not views and not list_entries(spool, name) and not files.exists(f"{spool.layout.results}/{name}"):
        raise BadRequest(f"There is no session {name} in {spool.path}: see 'spool session ls {spool.path}'.")
    return views
