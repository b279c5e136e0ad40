"""Commands made of one template: one for each line of a file, or for each index of an array."""

from __future__ import annotations

import queue
import re
import shlex
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple

from spoolpool.client.end_command import end_of
from spoolpool.errors import BadRequest, SpoolpoolError, TaskFailed
from spoolpool.system.user_code import error_message
from spoolpool.wire import Command

if TYPE_CHECKING:
    from spoolpool.executor import Executor

INDEX = "SPOOLPOOL_INDEX"
"""Variable with the index of a command in an array."""

_PLACE = "{}"
_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9})(?::(\d{1,9}))?)?", re.ASCII)
_MOST = 10_000_000  # commands of an array


class Variant(NamedTuple):
    """One command of a series."""

    number: int
    """Number of its line, from 1, or its index."""
    text: str
    """The line or the index."""
    words: tuple[str, ...]
    """Program and arguments."""
    variables: Mapping[str, str]
    """Further environment variables."""


class CommandEnd(NamedTuple):
    """End of one command."""

    number: int
    text: str
    """The command as a shell would take it."""
    kind: str
    """End of its task: ``done``, ``raised``, ``lost``, ``cancelled`` or ``failed``."""
    code: int
    """Exit code; 128 and the number of a signal; 1 for a task that ended otherwise."""
    reason: str
    """Reason of a failure in one line; empty for exit code 0."""
    output: bytes
    errors: bytes


def read_lines(lines: Iterable[str], words: Sequence[str]) -> Iterator[Variant]:
    """Yield a command for each line that is not empty.

    The line replaces ``{}`` in the words, or follows them if they have none. Without words, each line is a command of
    ``sh``, and a line that begins with ``#`` is a comment.
    """
    for number, line in enumerate(lines, 1):
        text = line.rstrip("\r\n")
        if not text.strip() or (not words and text.lstrip().startswith("#")):
            continue
        yield Variant(number, text, _filled(words, text) if words else ("sh", "-c", text), {})


def parse_array(text: str, words: Sequence[str]) -> tuple[Iterator[Variant], int | None]:
    """Return the commands of an array such as ``0-99``, ``1,3,7`` or ``0-98:2``, and the number after ``%``.

    The index replaces ``{}`` in the words, or follows them if they have none; it is also in the variable
    ``SPOOLPOOL_INDEX``. Raises :class:`BadRequest` for another form.
    """
    indexes, percent, most = text.partition("%")
    matches = [_RANGE.fullmatch(part.strip()) for part in indexes.split(",")]
    if not all(matches) or (percent and not (most.isascii() and most.isdecimal() and int(most))):
        raise BadRequest(
            f"--array {text}: the form is 0-99, 1,3,7 or 0-98:2, and %8 at its end lets 8 commands run at once."
        )
    if not words:
        raise BadRequest("--array needs a COMMAND after --: for example, --array 0-99 -- ./part.sh {}")
    ranges = [_range(*match.groups()) for match in matches if match is not None]
    if any(not len(each) for each in ranges) or sum(map(len, ranges)) > _MOST:
        raise BadRequest(
            f"--array {text}: a range must not be empty, a step not 0, and an array has at most {_MOST:,} commands."
        )
    seen: set[int] = set()
    for each in ranges:
        if not seen.isdisjoint(each):
            raise BadRequest(f"--array {text}: the index {min(seen.intersection(each))} occurs twice.")
        seen.update(each)
    return (
        Variant(index, str(index), _filled(words, str(index)), {INDEX: str(index)}) for each in ranges for index in each
    ), int(most) if percent else None


def _range(first: str, last: str | None, step: str | None) -> range:
    if step is not None and not int(step):
        return range(0)
    return range(int(first), int(last or first) + 1, int(step or 1))


def _filled(words: Sequence[str], text: str) -> tuple[str, ...]:
    if any(_PLACE in word for word in words):
        return tuple(word.replace(_PLACE, text) for word in words)
    return (*words, text)


class CommandSeries:
    """Commands that one executor runs.

    Args:
        variants: The commands; they may come from a stream, and are read as they are submitted.
        variables: Environment variables of all of them.
        at_once: Number of commands that are submitted and have not ended, at most; None: all.
        label: Label of their tasks, in which ``{}`` is the line or the index.
    """

    def __init__(
        self,
        variants: Iterable[Variant],
        variables: Mapping[str, str],
        at_once: int | None = None,
        *,
        label: str = "",
    ) -> None:
        self._variants = iter(variants)
        self._variables = dict(variables)
        self._at_once = at_once
        self._label = label

    def submit(self, executor: Executor) -> Iterator[str]:
        """Submit all commands, and yield the ids of their tasks."""
        for variant in self._variants:
            yield self._submit(executor, variant).task  # type: ignore[attr-defined]

    def run(self, executor: Executor) -> Iterator[CommandEnd]:
        """Submit the commands, and yield their ends in the order of time."""
        ended: queue.SimpleQueue[tuple[Variant, Future[Any]]] = queue.SimpleQueue()
        pending = 0
        more = True
        while more or pending:
            while more and (self._at_once is None or pending < self._at_once):
                variant = next(self._variants, None)
                if variant is None:
                    more = False
                    break
                future = self._submit(executor, variant)
                pending += 1
                future.add_done_callback(lambda done, variant=variant: ended.put((variant, done)))  # type: ignore[misc]
                if not ended.empty():
                    break
            if pending:
                yield _end_of(*ended.get())
                pending -= 1

    def _submit(self, executor: Executor, variant: Variant) -> Future[Any]:
        resource_dict = {"label": self._label.replace(_PLACE, variant.text)} if self._label else None
        return executor.submit(
            Command(variant.words, {**self._variables, **variant.variables}), resource_dict=resource_dict
        )


def _end_of(variant: Variant, future: Future[Any]) -> CommandEnd:
    """Return the end of a command of one or more ranks."""
    text = shlex.join(variant.words)
    try:
        value = future.result()
    except subprocess.CalledProcessError as error:
        last = bytes(error.stderr or b"").decode(errors="replace").strip().rpartition("\n")[2]
        reason = f"exit code {error.returncode}{f': {last}' if last else ''}"
        output, errors = error.stdout or b"", error.stderr or b""
        return CommandEnd(variant.number, text, end_of(future), error.returncode, reason, output, errors)
    except BaseException as error:  # noqa: BLE001  of the task, which has ended
        code = error.exit_code if isinstance(error, SpoolpoolError) else TaskFailed.exit_code
        reason = f"{type(error).__name__}: {error_message(error)}".splitlines()[0]
        return CommandEnd(variant.number, text, end_of(future), code, reason, b"", b"")
    ranks = value if isinstance(value, list) else [value]
    output, errors = (b"".join(getattr(each, stream) for each in ranks) for stream in ("stdout", "stderr"))
    return CommandEnd(variant.number, text, "done", 0, "", output, errors)
