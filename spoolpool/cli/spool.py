"""``spool``: the command that wires the others. Each lives in a file of its own and is imported when used."""

from __future__ import annotations

import os
from importlib import import_module

import click

from spoolpool.cli.output import CONTEXT, with_common

COMMANDS = {
    "init": "Make a new spool.",
    "submit": "Submit a call of a Python function.",
    "run": "Submit a command of the shell.",
    "status": "Show what blocks, what waits, what runs, and who works.",
    "top": "The same, again and again.",
    "ls": "List tasks: all, or those that fit.",
    "show": "Show all that is known of tasks.",
    "logs": "Show what tasks printed.",
    "graph": "Show which tasks need which.",
    "wait": "Wait until tasks have ended.",
    "result": "Print what tasks returned.",
    "traceback": "Show where and why tasks failed.",
    "cancel": "Take tasks back, or ask for their end.",
    "session": "List sessions, print their results, remove them.",
    "retry": "Let failed tasks run again.",
    "rm": "Remove failed tasks, and outcomes that nobody collected.",
    "workers": "Start batch jobs of workers, list groups, and end them.",
    "autoscale": "Submit batch jobs of workers for the tasks that wait.",
    "journal": "Show what happened, in the order of time.",
    "report": "Show what happened, as a page or a picture.",
    "check": "Look whether everything in a spool is as it should be.",
    "doctor": "Try what a filesystem can be trusted with.",
    "key": "Make and change the key of a signed spool.",
    "cache": "List and remove kept results.",
    "gc": "Remove what nobody will ask for any more.",
}


class _Commands(click.Group):
    """Finds a command by its name in ``spoolpool/cli``, so that ``spool --help`` imports none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        return with_common(getattr(import_module(f"spoolpool.cli.{name}"), name), hidden=True)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Commands, context_settings=CONTEXT)
@click.version_option(package_name="spoolpool")
@click.pass_context
def main(context: click.Context) -> None:
    """A queue that is nothing but files: tasks in a shared directory, run by warm worker groups."""
    if os.environ.get("NO_COLOR"):
        context.color = False


with_common(main)

if __name__ == "__main__":
    main()
