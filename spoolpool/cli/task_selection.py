"""Which tasks a command is about: named by id, by the beginning or end of one, or by filters; alike everywhere."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import sys
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

import click
from click.shell_completion import CompletionItem

from spoolpool import settings
from spoolpool.cli.output import echo_escaped, echo_stderr, report_errors
from spoolpool.errors import BadRequest, SpoolpoolError
from spoolpool.monitor.query import Query, State, TaskView, find_by_ids, select
from spoolpool.monitor.scan import SpoolScanner
from spoolpool.protocol.journal import Journal, submitters_journal
from spoolpool.protocol.spool import Spool
from spoolpool.system.text import format_duration

_FILTERS = ("states", "lane", "queue", "user", "session", "name", "older_than")
_STATES = ("held", "waiting", "running", "done", "raised", "lost", "cancelled", "failed")
_UNITS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_SHOWN = 10  # tasks that a question names
_OFFERED = 200  # ids that a shell is offered


class Duration(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic in newer versions of click alone
    """A length of time: seconds, or with a unit (90s, 10m, 2h, 7d)."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds."""
        if isinstance(value, (int, float)):
            return float(value)
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|d|)", str(value), re.ASCII)
        if match is None:
            self.fail(f"{value!r} is no length of time: write 90s, 10m, 2h or 7d.", param, ctx)
        return float(match[1]) * _UNITS[match[2]]


class Selection:
    """The tasks of a spool that the words and options of a command name; ``states`` are those that it can be about."""

    def __init__(self, words: tuple[str, ...], states: Collection[State], everything: bool, query: Query) -> None:
        directory, self._words = spool_and_tasks(words)
        self.spool: Spool = Spool(directory)
        self._is_open = not self._words and query.is_empty
        self._everything = everything
        self._query = query if query.states else dataclasses.replace(query, states=tuple(states))
        self._scanner = SpoolScanner(self.spool.path)

    def each(self) -> Iterator[TaskView]:
        """The tasks as they are met, which may be all; says in the end what could not be seen."""
        if self._words:
            yield from find_by_ids(self.spool, self._words, self._query, self._scanner)
        else:
            yield from select(self.spool, self._query, self._scanner)
        for directory, reason in self._scanner.unlisted.items():
            echo_escaped(
                f"Not seen: {self.spool.path}/{directory} ({reason}). Ask its owner, or look again later.", err=True
            )

    @property
    def unseen(self) -> bool:
        """Whether something could not be seen, so that tasks may be missing."""
        return bool(self._scanner.unlisted)

    @functools.cached_property
    def _journal(self) -> Journal:
        return Journal(self.spool, submitters_journal(), "spool")

    def note(self, event: str, view: TaskView) -> None:
        """Write into the journal what was done to a task, so that it is known who did it."""
        self._journal.write(event, task=view.id, session=view.session)

    def close(self) -> None:
        """The command has ended."""
        if "_journal" in vars(self):
            self._journal.close()

    def chosen(self) -> list[TaskView]:
        """The tasks, for a command that must be told which; raises :class:`BadRequest` where it was not."""
        if self._everything != self._is_open:
            raise BadRequest(
                f"Name tasks or give a filter, or --all. 'spool ls {self.spool.path}' shows which there are."
            )
        return list(self.each())


def spool_and_tasks(words: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """The first word is the spool, unless the environment names one and the word can be none."""
    default = os.environ.get(settings.ENV_SPOOL)
    if words and (not default or os.sep in words[0] or os.path.isdir(words[0])):
        return words[0], words[1:]
    if default:
        return default, words
    raise click.UsageError("Missing argument 'SPOOL'.")


def complete(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Directories for the spool, then the ids of its tasks."""
    words = tuple(ctx.params.get("words") or ())
    if os.sep in incomplete or (not words and settings.ENV_SPOOL not in os.environ):
        return [CompletionItem(incomplete, type="dir")]
    directory, _rest = spool_and_tasks(words)
    found = []
    for location in SpoolScanner(directory).tasks():
        if location.task_file.task.startswith(incomplete):
            found.append(CompletionItem(location.task_file.task, help=location.place))
            if len(found) == _OFFERED:
                break
    return found


def selects(*states: State, everything: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command its ``selection``, of tasks in these states (or in any), and explain its errors.

    With ``everything`` there is ``--all``: for commands that must be told what to do something to.
    """

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        @report_errors
        @functools.wraps(function)
        def run(words: tuple[str, ...], **options: Any) -> None:
            query = Query(**{each: value for each in _FILTERS if (value := options.pop(each))})
            selection = Selection(words, states, options.pop("everything", False), query)
            try:
                function(selection=selection, **options)
            finally:
                selection.close()
            if selection.unseen:
                sys.exit(SpoolpoolError.exit_code)

        choice = click.Choice(states or _STATES)
        for option in (
            click.option(
                "--older-than", type=Duration(), metavar="TIME", help="Submitted longer ago: 90s, 10m, 2h, 7d."
            ),
            click.option("--name", metavar="PATTERN", help="What is called: * and ? stand for anything."),
            click.option("--session", metavar="NAME", help="Of this session."),
            click.option("--user", metavar="NAME", help="Of this account."),
            click.option("--queue", metavar="NAME", help="In this queue."),
            click.option("--lane", metavar="PATTERN", help="In a lane like this."),
            click.option("--state", "states", multiple=True, type=choice, help="In this state; repeat for more."),
        ):
            run = option(run)
        if everything:
            run = click.option("--all", "everything", is_flag=True, help="Every task that this can be done to.")(run)
        return click.argument("words", metavar="SPOOL [TASK]...", nargs=-1, shell_complete=complete)(run)

    return wrap


def confirm(doing: str, views: list[TaskView], yes: bool) -> None:
    """Ask before something is done that cannot be undone; without a terminal there is nobody to ask."""
    if yes or not views:
        return
    if not sys.stdin.isatty():
        raise BadRequest(f"Would {doing} {len(views)} task(s). Nobody can be asked here: add --yes if that is meant.")
    for view in views[:_SHOWN]:
        echo_escaped(
            f"  {view.id}  {view.state}  {format_duration(time.time() - view.submitted)}  {view.name}", err=True
        )
    if len(views) > _SHOWN:
        echo_stderr(f"  and {len(views) - _SHOWN} more")
    which = "this task" if len(views) == 1 else f"these {len(views)} tasks"
    click.confirm(f"{doing.capitalize()} {which}?", abort=True, err=True)
