"""Selection of tasks by ids, parts of ids and filters: common to all commands for tasks."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import Any

import click
from click.shell_completion import CompletionItem

from spoolpool import settings
from spoolpool.cli.output import echo_escaped, echo_stderr, report_errors
from spoolpool.cli.quantities import Duration
from spoolpool.cli.spool_argument import SPOOL_OPTION, split_words
from spoolpool.errors import BadRequest, SpoolpoolError
from spoolpool.monitor.calls import CallView
from spoolpool.monitor.query import Query, TaskView
from spoolpool.monitor.scan import SpoolScanner
from spoolpool.monitor.selection import find_by_ids, select
from spoolpool.monitor.states import STATES, State
from spoolpool.protocol.journal import Journal, submitters_journal
from spoolpool.protocol.spool import Spool
from spoolpool.system.text import format_duration

_FILTERS = ("states", "lane", "queue", "user", "session", "name", "label", "older_than", "newer_than")
_LISTED = 10  # items that a question lists
_COMPLETIONS = 200  # ids that a shell gets


class Selection:
    """Tasks that the arguments and options of a command select; ``states`` are the states that the command accepts.

    ``usual`` are the ones that it takes unless the user names tasks or states. ``read_only`` is for a command that
    changes nothing.
    """

    def __init__(
        self,
        words: tuple[str, ...],
        states: Collection[State],
        usual: Collection[State],
        everything: bool,
        query: Query,
        *,
        spool: str | None = None,
        read_only: bool = False,
    ) -> None:
        directory, self._words = split_words(words, spool)
        self.spool: Spool = Spool(directory, read_only=read_only)
        self._is_open = not self._words and query.is_empty
        self._everything = everything
        self._query = (
            query if query.states else dataclasses.replace(query, states=tuple(states if self._words else usual))
        )
        self._scanner = SpoolScanner(self.spool.layout.root)
        self._left_out = False

    def tasks(self) -> Iterator[TaskView]:
        """Yield the selected tasks, without a selection all; report directories that could not be listed at the end."""
        if self._words:
            yield from find_by_ids(self.spool, self._words, self._query, self._scanner)
        else:
            yield from select(self.spool, self._query, self._scanner)
        report_unlisted(self._scanner, self.spool)

    @property
    def is_incomplete(self) -> bool:
        """Whether directories could not be listed, so that tasks may be missing, or calls were left out."""
        return bool(self._scanner.unlisted) or self._left_out

    @functools.cached_property
    def _journal(self) -> Journal:
        return Journal(self.spool, submitters_journal(), "spool")

    def log_event(self, event: str, view: TaskView) -> None:
        """Record a change of a task, and its author, in the journal."""
        self._journal.write(event, task=view.id, name=view.name, session=view.session, lane=view.lane)

    def close(self) -> None:
        """Close the journal."""
        if "_journal" in vars(self):
            self._journal.close()

    def explicit_files(self) -> list[TaskView]:
        """Return the selected tasks as :meth:`explicit_tasks`, for a command that changes files: a pack is one of them.

        A pack of which some calls alone are selected is left out, and reported.
        """
        found: dict[str, TaskView] = {}
        calls: Counter[str] = Counter()
        for view in self.explicit_tasks():
            task_file = view.location.task_file
            if isinstance(view, CallView):
                calls[task_file.task] += 1
                if calls[task_file.task] == task_file.calls:
                    found[task_file.task] = view.pack.view
            else:
                found[task_file.task] = view
        for task in calls.keys() - found.keys():
            self._left_out = True
            echo_stderr(f"{calls[task]} selected call(s) of the pack {task} share its file with others: left alone.")
        return list(found.values())

    def explicit_tasks(self) -> list[TaskView]:
        """Return the selected tasks of a command that needs a selection; raises :class:`BadRequest` without one."""
        if self._everything != self._is_open:
            other = ", or --all" if "everything" in click.get_current_context().params else ""
            raise BadRequest(f"Name tasks or give a filter{other}. 'spool ls {self.spool.path}' lists the tasks.")
        return list(self.tasks())


def complete(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete directories for the spool, then the ids of its tasks."""
    words = tuple(ctx.params.get("words") or ())
    named = ctx.params.get("given_spool") or settings.ENV_SPOOL in os.environ
    if os.sep in incomplete or not (words or named):
        return [CompletionItem(incomplete, type="dir")]
    directory, _rest = split_words(words, ctx.params.get("given_spool"))
    found = []
    for location in SpoolScanner(directory).tasks():
        if location.task_file.task.startswith(incomplete):
            found.append(CompletionItem(location.task_file.task, help=location.place))
            if len(found) == _COMPLETIONS:
                break
    return found


def selects(
    *states: State, usual: Collection[State] = (), everything: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add a ``selection`` of tasks in these states (default: in any) to a command, and report its errors.

    ``usual`` are the states for which the user need not ask; default: all of these. ``everything`` adds ``--all``, for
    commands that need a selection.
    """

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        @report_errors
        @functools.wraps(function)
        def run(words: tuple[str, ...], given_spool: str | None, **options: Any) -> None:
            query = Query(**{each: value for each in _FILTERS if (value := options.pop(each))})
            given = options.pop("everything", False)
            selection = Selection(
                words, states, usual or states, given, query, spool=given_spool, read_only=not everything
            )
            try:
                function(selection=selection, **options)
            finally:
                selection.close()
            if selection.is_incomplete:
                sys.exit(SpoolpoolError.exit_code)

        choice = click.Choice(states or tuple(STATES))
        for option in (
            click.option("--newer-than", type=Duration(), metavar="TIME", help="Submitted within 90s, 10m, 2h, 7d."),
            click.option("--older-than", type=Duration(), metavar="TIME", help="Older than 90s, 10m, 2h, 7d."),
            click.option("--label", metavar="PATTERN", help="Label or arguments; * and ? are wildcards."),
            click.option(
                "--name", "--function", "name", metavar="PATTERN", help="Function or command; * and ? are wildcards."
            ),
            click.option("--session", metavar="NAME", help="Tasks of this session."),
            click.option("--user", metavar="NAME", help="Tasks of this account."),
            click.option("--queue", metavar="NAME", help="Tasks in this queue."),
            click.option("--lane", metavar="PATTERN", help="Lane name; * and ? are wildcards."),
            click.option("--state", "states", multiple=True, type=choice, help="Task state (repeat for more)."),
        ):
            run = option(run)
        if everything:
            run = click.option("--all", "everything", is_flag=True, help="All tasks that the command accepts.")(run)
        run = click.argument("words", metavar="[SPOOL] [TASK]...", nargs=-1, shell_complete=complete)(run)
        return SPOOL_OPTION(run)

    return wrap


def report_unlisted(scanner: SpoolScanner, spool: Spool) -> None:
    """Report the directories that a scan could not list."""
    for directory, reason in scanner.unlisted.items():
        text = f"{spool.path}/{directory} cannot be listed ({reason}). Ask its owner, or try again later."
        echo_escaped(text, err=True)


def _describe(view: TaskView) -> str:
    return f"{view.id}  {view.state}  {format_duration(time.time() - view.submitted)}  {view.title}"


def confirm(
    action: str, items: list[Any], yes: bool, *, noun: str = "task", describe: Callable[[Any], str] = _describe
) -> None:
    """Ask for confirmation of an irreversible action; raises :class:`BadRequest` without a terminal."""
    if yes or not items:
        return
    if not sys.stdin.isatty():
        raise BadRequest(
            f"Would {action} {len(items)} {noun}(s), but there is no terminal for a confirmation. "
            "To confirm, add --yes."
        )
    for item in items[:_LISTED]:
        echo_escaped(f"  {describe(item)}", err=True)
    if len(items) > _LISTED:
        echo_stderr(f"  and {len(items) - _LISTED} more")
    which = f"this {noun}" if len(items) == 1 else f"these {len(items)} {noun}s"
    click.confirm(f"{action.capitalize()} {which}?", abort=True, err=True)
