"""``spool``: the group of all commands. Each has a module of its own, which is imported when it is used."""

from __future__ import annotations

import os
from importlib import import_module

import click

from spoolpool.cli.output import CONTEXT, Group, add_common_options

COMMANDS = {
    "init": "Create a spool.",
    "accept": "Accept a spool that is new here, or was replaced.",
    "submit": "Submit a call of a Python function.",
    "run": "Submit a command line.",
    "status": "Show blocked, queued and running tasks, and the workers.",
    "top": "Show the status continuously.",
    "ls": "List tasks.",
    "show": "Show the details of tasks and their attempts.",
    "logs": "Show the captured output of tasks.",
    "graph": "Print the dependency graph of the tasks.",
    "wait": "Wait until tasks have finished.",
    "result": "Print the results of tasks.",
    "traceback": "Show the tracebacks of failed tasks.",
    "cancel": "Cancel tasks.",
    "session": "List sessions, print their results, and remove them.",
    "retry": "Requeue failed tasks.",
    "rm": "Remove failed tasks and uncollected outcomes.",
    "workers": "Submit batch jobs of workers, list and stop groups.",
    "autoscale": "Submit batch jobs of workers as queued tasks need them.",
    "journal": "Show the events of a spool in the order of time.",
    "export": "Print numbers of tasks, or events, for other programs.",
    "report": "Write a report of the events as a page or a picture.",
    "check": "Check a spool for inconsistencies.",
    "doctor": "Test whether a filesystem is suitable for a spool.",
    "key": "Create, rotate and list the keys of a signed spool.",
    "config": "Show the defaults of this site and account, and their sources.",
    "cache": "List and remove cached results.",
    "gc": "Remove expired results, logs and journals.",
}

_MODULES = {"accept": "init", "top": "status"}  # of commands that share one


class _Commands(Group):
    """Group that imports a command from ``spoolpool/cli`` when it is used, so that ``spool --help`` imports none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = _MODULES.get(name, name)
        return add_common_options(getattr(import_module(f"spoolpool.cli.{module}"), name), hidden=True)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Commands, context_settings=CONTEXT)
@click.version_option(package_name="spoolpool")
@click.pass_context
def main(context: click.Context) -> None:
    """A task queue in a shared directory, served by long-running worker groups."""
    if os.environ.get("NO_COLOR"):
        context.color = False


add_common_options(main)

if __name__ == "__main__":
    main()
