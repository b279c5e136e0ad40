"""``spool journal``."""

from __future__ import annotations

import functools
import json
import pwd
import sys
from typing import Any

import click
import msgspec

from spoolpool.cli.output import format_time, report_errors
from spoolpool.cli.quantities import Moment
from spoolpool.cli.spool_argument import takes_spool
from spoolpool.errors import BadRequest
from spoolpool.monitor.ends import EndCounter
from spoolpool.monitor.states import describe_counts
from spoolpool.protocol.journal import Line, lines
from spoolpool.protocol.spool import Spool
from spoolpool.system import records
from spoolpool.system.accounts import account_name
from spoolpool.system.records import BadRecord
from spoolpool.system.text import escape_line

_COLUMNS = frozenset({"t", "event", "by", "uid", "host", "task"})
"""Keys of an entry that have columns of their own."""

_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(dict[str, Any])


@click.command()
@takes_spool()
@click.option("--task", metavar="ID", help="Events of this task: its id, or the beginning or end of it.")
@click.option("--user", metavar="NAME", help="Events from journals of this account.")
@click.option(
    "--since", type=Moment(), metavar="TIME", help="Not before 2026-11-26, 2026-11-26T09:30, or 90s, 2h, 7d ago."
)
@click.option("--event", "events", metavar="NAME", multiple=True, help="Events of this kind (repeat for more).")
@click.option("--count", is_flag=True, help="Print only the numbers of tasks by their ends, as these events tell them.")
@click.option("--json", "as_json", is_flag=True, help="Print the entries unchanged, with 'account' and 'forged' added.")
@report_errors
def journal(
    directory: str,
    task: str | None,
    user: str | None,
    since: float | None,
    events: tuple[str, ...],
    count: bool,
    as_json: bool,
) -> None:
    """Show the events of SPOOL in the order of time, from the journals of all workers and submitters.

    \b
      spool journal SPOOL --task e7819e56d5
      spool journal SPOOL --since 2h --event lost
      spool journal SPOOL --count

    The account is the owner of the journal's file. An exclamation mark precedes a different account in the entry. The
    order of events on different hosts is only as exact as their clocks.
    """
    spool = Spool(directory, read_only=True)
    owner = None if user is None else _uid(user)
    out = sys.stdout.buffer
    ends = EndCounter()
    for line in lines(spool, since or 0.0):
        event = line.event
        if (
            (owner is None or line.owner == owner)
            and (not events or event.event in events)
            and (task is None or event.about.startswith(task) or event.about.endswith(task))
        ):
            if count:
                ends.read(event)
            else:
                out.write(_with_account(line) if as_json else f"{escape_line(_format(line))}\n".encode())
    if count:
        counts: dict[str, int] = dict(ends.counts())  # type: ignore[arg-type]
        if ends.without_end:
            counts["without an end"] = ends.without_end
        out.write(f"{json.dumps(counts) if as_json else describe_counts(counts, ('done',))}\n".encode())
    out.flush()


def _uid(user: str) -> int:
    """Return the number of an account; a number is accepted without an account."""
    try:
        return int(user) if user.isdecimal() else pwd.getpwnam(user).pw_uid
    except KeyError:
        raise BadRequest(
            f"There is no account {user!r} on this host: name an existing account, or its number."
        ) from None


@functools.cache
def _account(uid: int) -> str:
    return account_name(uid)


def _forged(line: Line) -> bool:
    return line.event.uid != line.owner


def _with_account(line: Line) -> bytes:
    return _encode({**_entry(line), "account": _account(line.owner), "forged": _forged(line)}) + b"\n"


def _entry(line: Line) -> dict[str, Any]:
    """Return all fields of a line, also those of newer versions; only the known ones if the others are invalid."""
    try:
        return records.decode(_decoder, line.text, "the journal")
    except BadRecord:
        return msgspec.to_builtins(line.event)  # type: ignore[no-any-return]


def _format(line: Line) -> str:
    rest = " ".join(f"{key}={value}" for key, value in _entry(line).items() if key not in _COLUMNS and value != "")
    author = f"{_account(line.owner)}@{line.event.host}"
    mark = f" ! claims to be {_account(line.event.uid)}" if _forged(line) else ""
    when = format_time(line.event.t)
    return f"{when}  {line.event.event:<14}  {line.event.about or '-':<29}  {author}{mark}  {rest}".rstrip()
