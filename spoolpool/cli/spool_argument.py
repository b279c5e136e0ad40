"""SPOOL, which a command takes as its first argument, as ``--spool SPOOL``, or from the environment."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from spoolpool import settings

SPOOL_OPTION = click.option("--spool", "given_spool", metavar="SPOOL", hidden=True, help="Spool directory.")

MISSING = (
    "Missing SPOOL, the directory of a spool: name it as the first argument or with --spool, or set the variable "
    f"{settings.ENV_SPOOL}."
)


def split_words(words: Sequence[str], option: str | None = None) -> tuple[str, tuple[str, ...]]:
    """Return the spool and the further words, of which there may be any number.

    The first word is the spool, unless the option names one, or the environment does and the word cannot be a
    directory. Raises ``click.UsageError`` without a spool.
    """
    default = os.environ.get(settings.ENV_SPOOL)
    if option:
        return option, tuple(words)
    if words and not words[0].startswith("-") and (not default or os.sep in words[0] or os.path.isdir(words[0])):
        return words[0], tuple(words[1:])
    if default:
        return default, tuple(words)
    raise click.UsageError(MISSING)


def _complete_directory(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(incomplete, type="dir")]


def takes_spool(
    *names: str, many: str = "", metavar: str = "SPOOL", path: click.Path | None = None, required: bool = True
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Pass a command its spool as ``directory``, and further arguments.

    Args:
        names: Further arguments with one value each, as ``parameter:METAVAR``.
        many: A further argument with any number of values, in the same form.
        metavar: Metavar of the spool.
        path: Type of the spool's path.
        required: Whether the spool must be given; else ``directory`` may be None.
    """
    single = [each.partition(":")[::2] for each in names]
    rest, _, shown = many.partition(":")
    metavars = [f"[{metavar}]", *(text for _, text in single), *filter(None, [shown])]

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        @SPOOL_OPTION
        @click.argument("words", metavar=" ".join(metavars), nargs=-1, shell_complete=_complete_directory)
        @functools.wraps(function)
        def run(words: tuple[str, ...], given_spool: str | None, **options: Any) -> Any:
            directory: str | None
            if not (required or words or given_spool or os.environ.get(settings.ENV_SPOOL)):
                directory = None
            elif rest:
                directory, words = split_words(words, given_spool)
            elif len(words) > len(names) and not given_spool:
                directory, words = words[0], words[1:]
            else:
                directory, _ = split_words((), given_spool)
            if missing := single[len(words) :]:
                raise click.UsageError(f"Missing argument '{missing[0][1]}'.")
            if unexpected := () if rest else words[len(names) :]:
                raise click.UsageError(f"Got unexpected extra argument ({' '.join(unexpected)})")
            if path is not None and directory is not None:
                directory = os.fspath(path.convert(directory, None, click.get_current_context()))  # type: ignore[assignment]
            given: dict[str, Any] = {name: word for (name, _), word in zip(single, words, strict=False)}
            if rest:
                given[rest] = words
            return function(directory=directory, **given, **options)

        return run

    return wrap
