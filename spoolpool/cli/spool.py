"""``spool``: the command that wires the others. Each lives in a file of its own and is imported when used."""

from __future__ import annotations

from importlib import import_module

import click

from spoolpool.cli.output import CONTEXT, set_up

COMMANDS = {
    "init": "Make a new spool.",
    "status": "Show what waits, what runs, and what blocks.",
    "workers": "Start batch jobs of workers, list groups, and end them.",
    "autoscale": "Submit batch jobs of workers for the tasks that wait.",
    "ls": "List tasks: all, or those that fit.",
    "logs": "Show what tasks printed.",
    "retry": "Let failed tasks run again.",
    "check": "Look whether everything in a spool is as it should be.",
    "doctor": "Try what a filesystem can be trusted with.",
    "key": "Make and change the key of a signed spool.",
    "gc": "Remove what nobody will ask for any more.",
}


class _Commands(click.Group):
    """Finds a command by its name in ``spoolpool/cli``, so that ``spool --help`` imports none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        found: click.Command = getattr(import_module(f"spoolpool.cli.{name}"), name)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Commands, context_settings=CONTEXT)
@click.option("-v", "--verbose", count=True, help="Say more; twice: everything.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="spoolpool")
def main(verbose: int, debug: bool) -> None:
    """A queue that is nothing but files: tasks in a shared directory, run by warm worker groups."""
    set_up(verbose)


if __name__ == "__main__":
    main()
