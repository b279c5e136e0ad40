"""``spool cache``: the results that are kept for calls which are made again."""

from __future__ import annotations

import fnmatch
import functools
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import click

from spoolpool import settings
from spoolpool.cli.output import echo_escaped, echo_stderr, report_errors
from spoolpool.cli.task_selection import Duration
from spoolpool.client.result_cache import CachedResult, open_cache, record
from spoolpool.errors import BadRequest, SpoolpoolError
from spoolpool.security.trust import Trust
from spoolpool.system import files
from spoolpool.system.accounts import account_name
from spoolpool.system.text import format_duration

_SHOWN = 10  # results that a question names


@click.group()
def cache() -> None:
    """List and remove kept results: those of executors that were made with cache=."""


def _filters(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the kept results that its words and options name, and say whether they name any."""

    @report_errors
    @functools.wraps(function)
    def run(
        where: str | None, keys: tuple[str, ...], name: str | None, user: str | None, unused: float | None, **more: Any
    ) -> None:
        now = time.time()
        chosen = [
            each
            for each in open_cache(where, Trust()).entries()
            if (not keys or each.entry.key.startswith(keys) or each.entry.given in keys)
            and (name is None or fnmatch.fnmatchcase(each.entry.name, name))
            and (user is None or account_name(each.owner) == user)
            and (unused is None or now - each.used > unused)
        ]
        function(chosen=chosen, named=bool(keys or name or user or unused is not None), **more)

    for option in (
        click.option("--unused", type=Duration(), metavar="TIME", help="Not used for longer: 90s, 10m, 2h, 7d."),
        click.option("--user", metavar="NAME", help="Of this account."),
        click.option("--name", metavar="PATTERN", help="What was called: * and ? stand for anything."),
        click.option("--key", "keys", multiple=True, metavar="KEY", help="With a key that begins so, or was given so."),
        click.argument("where", metavar="[SPOOL]", envvar=settings.ENV_SPOOL, required=False),
    ):
        run = option(run)
    return run


@cache.command()
@_filters
@click.option("-l", "--long", is_flag=True, help="Whole keys, and the arguments.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per result and line.")
def ls(chosen: list[CachedResult], named: bool, long: bool, as_json: bool) -> None:
    """List the kept results of SPOOL, or below a directory; without one, those of embedded executors.

    \b
      spool cache ls SPOOL --name 'relax*'
      spool cache ls SPOOL --unused 30d --json
    """
    if sys.stdout.isatty() and not as_json and chosen:
        click.echo(click.style(_row("KEY", "USED", "TOOK", "BYTES", "USER", "NAME"), bold=True))
    for each in chosen:
        row = record(each)
        if as_json:
            click.echo(json.dumps(row))
            continue
        name = row["function"] + (f"({row['arguments']})" if long else "")
        name += f"  [{row['cache_key']}]" if row["cache_key"] else ""
        key = row["key"] if long else row["key"][:10]
        used = format_duration(time.time() - row["used"])
        echo_escaped(_row(key, used, format_duration(row["seconds"]), str(row["size"]), row["user"], name))


def _row(key: str, used: str, took: str, size: str, user: str, name: str) -> str:
    return f"{key:<10}  {used:>6}  {took:>6}  {size:>12}  {user[:8]:<8}  {name}"


@cache.command()
@_filters
@click.option("--all", "everything", is_flag=True, help="Every kept result.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def rm(chosen: list[CachedResult], named: bool, everything: bool, yes: bool) -> None:
    """Remove kept results of SPOOL, or below a directory; without one, those of embedded executors.

    \b
      spool cache rm SPOOL --key 3d60
      spool cache rm SPOOL --name relax --unused 30d --yes

    The calls run again when they are made again. Who reads a result just now is not disturbed.
    """
    if named == everything:
        raise BadRequest("Say which results to remove by --key, --name, --user or --unused, or say --all.")
    if chosen and not yes:
        _ask(chosen)
    stayed = 0
    for each in chosen:
        try:
            files.remove(each.path)
        except OSError as error:
            stayed += 1
            echo_escaped(f"{each.path} stays: {error.strerror}.", err=True)
    click.echo(f"Removed {len(chosen) - stayed} kept result(s).")
    if stayed:
        sys.exit(SpoolpoolError.exit_code)


def _ask(chosen: list[CachedResult]) -> None:
    """Ask before something is done that cannot be undone; without a terminal there is nobody to ask."""
    if not sys.stdin.isatty():
        raise BadRequest(f"Would remove {len(chosen)} kept result(s). Nobody can be asked here: add --yes if meant.")
    for each in chosen[:_SHOWN]:
        echo_escaped(f"  {each.entry.key[:10]}  {each.size} bytes  {each.entry.name}({each.entry.arguments})", err=True)
    if len(chosen) > _SHOWN:
        echo_stderr(f"  and {len(chosen) - _SHOWN} more")
    click.confirm("Remove them?", abort=True, err=True)
