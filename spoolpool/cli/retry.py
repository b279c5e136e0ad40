"""``spool retry``."""

from __future__ import annotations

import os

import click

from spoolpool import settings
from spoolpool.cli.output import explained, say
from spoolpool.errors import BadRequest, SpoolpoolError


@click.command()
@click.argument("words", metavar="SPOOL [TASK]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every task that is kept in failed/.")
@explained
def retry(words: tuple[str, ...], everything: bool) -> None:
    """Let failed tasks run again, under the same ids and with all their attempts.

    A TASK is an id, or the beginning or end of one.
    """
    from spoolpool import fsio, layout
    from spoolpool.claim import retry as run_again
    from spoolpool.spool import Spool

    directory, tasks = _spool_and_tasks(words)
    spool = Spool(directory)
    kept = {name: token for name in fsio.names(spool.layout.failed) if (token := layout.parse_token(name))}
    if everything == bool(tasks):
        raise BadRequest(f"Name tasks, or --all. There are {len(kept)} in {spool.layout.failed}.")
    chosen = set(kept) if everything else set()
    for wanted in tasks:
        fits = {
            name
            for name, token in kept.items()
            if wanted and (token.task.startswith(wanted) or token.task.endswith(wanted))
        }
        count = len({kept[name].task for name in fits})
        if count != 1:
            raise BadRequest(f"{wanted!r} fits {count} tasks in {spool.layout.failed}; it must fit one.")
        chosen |= fits
    failures: list[SpoolpoolError] = []
    for name in sorted(chosen):
        try:
            click.echo(f"{run_again(spool, name)} waits again.")
        except SpoolpoolError as error:  # the others can be tried all the same
            failures.append(error)
    for failure in failures[1:]:
        say(str(failure))
    if failures:
        raise failures[0]
    if not chosen:
        say(f"There is nothing in {spool.layout.failed}.")


def _spool_and_tasks(words: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """The first word is the spool, unless the environment names one and the word can be none."""
    default = os.environ.get(settings.ENV_SPOOL)
    if words and (not default or os.sep in words[0] or os.path.isdir(words[0])):
        return words[0], words[1:]
    if default:
        return default, words
    raise click.UsageError("Missing argument 'SPOOL'.")
