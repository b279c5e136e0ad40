"""``spool run``: submit one command, or one for each line of a file or index of an array."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import IO

import click

from spoolpool.cli.output import echo_escaped, echo_stderr, on_end_option
from spoolpool.cli.spool_argument import SPOOL_OPTION, split_words
from spoolpool.cli.submit import Request, submission_options
from spoolpool.client.command_series import CommandEnd, CommandSeries, Variant, parse_array, read_lines
from spoolpool.errors import BadRequest
from spoolpool.wire import Command

_SHELL_WORDS = frozenset(("|", "||", "&&", ";", "&", ">", ">>", "<", "2>", "2>&1", "|&"))
_SHELL_TEXT = re.compile(r"[|;<>$`]|&&")
_LISTED = 50  # failures in the table


class _Run(click.Command):
    """Command whose options and SPOOL may come in any order before ``--``, or without a COMMAND."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Make the only word before ``--`` the value of ``--spool``, unless it begins a command."""
        at = args.index("--") if "--" in args else len(args)
        if at < len(args) or any(word.startswith("--each-line") for word in args):
            place = self._only_word(ctx, args[:at])
            if place is not None and not split_words([args[place]])[1]:
                args = [*args[:place], *args[place + 1 : at], "--spool", args[place], *args[at:]]
        return super().parse_args(ctx, args)

    def _only_word(self, ctx: click.Context, head: list[str]) -> int | None:
        """Return the place of the word among options if it is the only one, and no option names the spool."""
        before, ctx.allow_interspersed_args = ctx.allow_interspersed_args, True
        try:
            words, option = self._parse(ctx, head)
            if len(words) != 1 or option:
                return None
            # an option may have the same value
            places = [place for place, word in enumerate(head) if word == words[0]]
            return next(place for place in places if not self._parse(ctx, [*head[:place], *head[place + 1 :]])[0])
        except click.UsageError:  # options of the command
            return None
        finally:
            ctx.allow_interspersed_args = before

    def _parse(self, ctx: click.Context, args: list[str]) -> tuple[tuple[str, ...], bool]:
        """Return the words among options, and whether there is the option for the spool."""
        found, _, _ = self.make_parser(ctx).parse_args(list(args))
        words = found.get("words")
        return words if isinstance(words, tuple) else (), "given_spool" in found


@click.command(cls=_Run, context_settings={"allow_interspersed_args": False})
@SPOOL_OPTION
@click.argument("words", metavar="[SPOOL] -- COMMAND [ARGUMENT]...", nargs=-1, type=click.UNPROCESSED)
@submission_options
@click.option(
    "--each-line",
    "lines",
    type=click.File("r", sys.getfilesystemencoding(), "surrogateescape"),  # a line may be a path, of any bytes
    metavar="FILE",
    help="Run one command per line of FILE (-: input).",
)
@click.option("--array", metavar="RANGE", help="Run one command per index: 0-99, 1,3,7 or 0-98:2; %8: 8 at once.")
@click.option("--at-once", type=click.IntRange(1), metavar="N", help="Have at most N commands submitted at a time.")
@click.option(
    "-w",
    "--wait/--no-wait",
    default=None,
    help="Wait for the result and print it; remove it without --session.  [default: for several commands]",
)
@on_end_option
@click.option(
    "-e",
    "--env",
    "variables",
    multiple=True,
    metavar="NAME[=VALUE]",
    help="Environment variable of the command (repeat for more).",
)
def run(
    request: Request,
    words: tuple[str, ...],
    variables: tuple[str, ...],
    lines: IO[str] | None,
    array: str | None,
    at_once: int | None,
    wait: bool | None,
    on_end: str | None,
) -> None:
    """Submit a command, and print the id of the task. The result is the exit code and the output.

    \b
      spool run SPOOL -- ./relax.sh Al
      spool run SPOOL --wait --threads 4 -- sh -c 'make -j4 2>&1 | tail'
      spool run SPOOL --ranks 4 -- ./part.sh       (each rank has its own $SPOOLPOOL_RANK)
      spool run SPOOL --session s --each-line names.txt -- ./relax.sh {}
      spool run SPOOL --session s --array 0-99%8 -- ./part.sh {}

    A program is started without a shell: pipes, redirections and $NAME need sh -c. With --wait, print the output of the
    command and exit with its exit code. A task with another code than 0 fails.

    With --each-line and --array, {} is the line or the index, also in --label; without {}, it is the last argument, and
    without COMMAND each line is a command of sh. The outputs are printed as the commands end, and a table of failures
    at last. The exit code is the greatest one. With --session, the same command continues after an interruption, and
    repeats what failed.
    """
    environment = _environment(variables)
    single = lines is None and array is None
    if on_end and not (wait or (wait is None and not single)):
        raise BadRequest("--on-end needs the end of the command: add --wait, or use 'spool wait --on-end' later.")
    if lines is not None and array is not None:
        raise BadRequest("Give --each-line or --array, not both.")
    if single:
        if not words:
            raise click.UsageError("Missing argument 'COMMAND'.")
        _hint_at_shell(words)
        request.submit(Command(words, environment), (), {}, wait=bool(wait), on_end=on_end)
        return
    if words:
        _hint_at_shell(words)
    variants: Iterable[Variant]
    if lines is not None:
        variants = read_lines(lines, words)
    else:
        assert array is not None
        variants, most = parse_array(array, words)
        at_once = min(filter(None, (at_once, most)), default=None)
    label = str(request.resource_dict.get("label", ""))
    series = CommandSeries(variants, environment, at_once, label=label)
    _run_series(request, series, wait=wait is not False, on_end=on_end)


def _environment(variables: Sequence[str]) -> dict[str, str]:
    split = [each.partition("=") for each in variables]
    missing = [name for name, given, _ in split if not given and name not in os.environ]
    if missing:
        raise BadRequest(f"The environment has no variable {', '.join(missing)}: set it, or write {missing[0]}=VALUE.")
    return {name: value if given else os.environ[name] for name, given, value in split}


def _hint_at_shell(words: Sequence[str]) -> None:
    """Tell that there is no shell where the words look as if they were meant for one."""
    alone = len(words) == 1 and _is_line(words[0])
    if alone or not _SHELL_WORDS.isdisjoint(words):
        text = words[0] if alone else " ".join(words)
        echo_stderr(
            "Note: the program is started without a shell, so that |, >, &&, ; and $NAME are plain text. For a shell: "
            f"sh -c '{text}'"
        )


def _is_line(word: str) -> bool:
    return shutil.which(word) is None and (" " in word.strip() or _SHELL_TEXT.search(word) is not None)


def _run_series(request: Request, series: CommandSeries, *, wait: bool, on_end: str | None) -> None:
    executor = request.executor(None if wait else f"cli-{os.geteuid()}", resume=request.session is not None)
    failed: list[CommandEnd] = []
    count = 0
    try:
        if not wait:
            for task in series.submit(executor):
                click.echo(task)
            return
        for end in series.run(executor):
            count += 1
            _write(end.output, end.errors)
            if end.code:
                failed.append(end)
    except KeyboardInterrupt:
        echo_stderr(
            "Interrupted: submitted commands continue. "
            + (
                "The same command with the same --session continues here."
                if request.session
                else "Their results are lost: use --session to continue later."
            )
        )
        raise
    finally:
        executor.detach()
    _report(count, failed)
    if on_end:
        request.run_end_command(on_end, {"done": count - len(failed), **Counter(end.kind for end in failed)})
    sys.exit(min(255, max((end.code for end in failed), default=0)))


def _write(output: bytes, errors: bytes) -> None:
    for stream, data in ((sys.stdout, output), (sys.stderr, errors)):
        if data:
            click.echo(data, file=stream.buffer, nl=False)


def _report(count: int, failed: Sequence[CommandEnd]) -> None:
    """Print the number of commands, and a table of those that failed."""
    echo_stderr(f"{count} command(s): {count - len(failed)} ended with 0, {len(failed)} failed.")
    if not failed:
        return
    echo_stderr(f"{'NUMBER':>8} {'EXIT':>5}  {'COMMAND':<40} REASON")
    for end in sorted(failed, key=lambda end: end.number)[:_LISTED]:
        echo_escaped(f"{end.number:>8} {end.code:>5}  {end.text[:40]:<40} {end.reason}", err=True)
    if len(failed) > _LISTED:
        echo_stderr(f"... and {len(failed) - _LISTED} more.")
