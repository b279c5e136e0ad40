"""``spool cache``: the results that executors cached with ``cache=``."""

from __future__ import annotations

import fnmatch
import functools
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import click

from spoolpool.cli.output import Group, echo_escaped, report_errors
from spoolpool.cli.quantities import Duration
from spoolpool.cli.spool_argument import takes_spool
from spoolpool.cli.task_selection import confirm
from spoolpool.client.result_cache import CachedResult, open_cache, record
from spoolpool.errors import BadRequest, SpoolpoolError
from spoolpool.security.trust import Trust
from spoolpool.system import files
from spoolpool.system.accounts import account_name
from spoolpool.system.text import format_duration


@click.group(cls=Group)
def cache() -> None:
    """List and remove cached results, of executors with cache=."""


def _filters(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add filters to a command; call it with the matching results, and whether a filter was given."""

    @report_errors
    @functools.wraps(function)
    def run(
        directory: str | None,
        keys: tuple[str, ...],
        name: str | None,
        user: str | None,
        unused: float | None,
        **more: Any,
    ) -> None:
        now = time.time()
        chosen = [
            each
            for each in open_cache(directory, Trust()).entries()
            if (not keys or each.entry.key.startswith(keys) or each.entry.given in keys)
            and (name is None or fnmatch.fnmatchcase(each.entry.name, name))
            and (user is None or account_name(each.owner) == user)
            and (unused is None or now - each.used > unused)
        ]
        function(chosen=chosen, named=bool(keys or name or user or unused is not None), **more)

    for option in (
        click.option("--unused", type=Duration(), metavar="TIME", help="Not used for this time: 90s, 10m, 2h, 7d."),
        click.option("--user", metavar="NAME", help="Results of this account."),
        click.option("--name", metavar="PATTERN", help="Function name; * and ? are wildcards."),
        click.option("--key", "keys", multiple=True, metavar="KEY", help="Beginning of the key, or the cache_key."),
        takes_spool(required=False),
    ):
        run = option(run)
    return run


@cache.command()
@_filters
@click.option("-l", "--long", is_flag=True, help="Print full keys, and the arguments.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per result and line.")
def ls(chosen: list[CachedResult], named: bool, long: bool, as_json: bool) -> None:
    """List the cached results of SPOOL or a directory; the default are those of embedded executors.

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
@click.option("--all", "everything", is_flag=True, help="All cached results.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation.")
def rm(chosen: list[CachedResult], named: bool, everything: bool, yes: bool) -> None:
    """Remove cached results of SPOOL or a directory; the default are those of embedded executors.

    \b
      spool cache rm SPOOL --key 3d60
      spool cache rm SPOOL --name relax --unused 30d --yes

    Repeated calls then run again. Concurrent readers of a result are not disturbed.
    """
    if named == everything:
        raise BadRequest("Select results with --key, --name, --user or --unused, or all with --all.")
    confirm("remove", chosen, yes, noun="cached result", describe=_describe)
    failures = 0
    for each in chosen:
        try:
            files.remove(each.path)
        except OSError as error:
            failures += 1
            echo_escaped(f"{each.path} stays: {error.strerror}.", err=True)
    click.echo(f"Removed {len(chosen) - failures} cached result(s).")
    if failures:
        sys.exit(SpoolpoolError.exit_code)


def _describe(kept: CachedResult) -> str:
    return f"{kept.entry.key[:10]}  {kept.size} bytes  {kept.entry.name}({kept.entry.arguments})"
