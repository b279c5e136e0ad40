"""Run one call on one rank, and turn what comes of it into bytes."""

from __future__ import annotations

import contextlib
import inspect
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from spoolpool import pickling
from spoolpool.context import CurrentTask, running
from spoolpool.envelope import Buffer
from spoolpool.errors import BadRequest, NotPicklable, SpoolpoolError, TaskFailed
from spoolpool.identity import hostname
from spoolpool.outcome import Needed, Values
from spoolpool.task import Failure

_MESSAGE = 4096
_TRACEBACK = 65536


class Report(NamedTuple):
    """What a rank has to say about its call: a pickled value, or a pickled exception and its story."""

    payload: Buffer
    buffers: Sequence[Buffer]
    failure: Failure | None


class Presets:
    """Keyword arguments that a session's ``init_function`` presets, made once per group and rank."""

    def __init__(self) -> None:
        self._made: dict[str, dict[str, Any]] = {}

    def knows(self, init: str) -> bool:
        """Whether this ``init_function`` was called."""
        return init in self._made

    def make(self, init: str, payload: Buffer, buffers: Sequence[Buffer]) -> None:
        """Call an ``init_function`` and keep what it returns."""
        function = pickling.loads(payload, buffers)
        made = function()
        if not isinstance(made, dict) or not all(isinstance(key, str) for key in made):
            raise BadRequest(
                f"The init_function {pickling.label(function)} returned {type(made).__name__}: it must return "
                "a dict from names of arguments to values."
            )
        self._made[init] = made

    def fill(self, init: str, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Add to ``kwargs`` what was preset for those parameters of ``function`` that nobody gave."""
        made = self._made.get(init)
        if not made:
            return
        try:
            signature = inspect.signature(function)
            given = signature.bind_partial(*args, **kwargs).arguments
        except (TypeError, ValueError):  # a builtin without a signature, or a wrong call: it will say so itself
            return
        for name, parameter in signature.parameters.items():
            if name in made and name not in given and parameter.kind is not parameter.POSITIONAL_ONLY:
                kwargs[name] = made[name]


def run(
    task: CurrentTask,
    payload: Buffer,
    buffers: Sequence[Buffer],
    *,
    cwd: str = "",
    init: str = "",
    init_content: tuple[Buffer, Sequence[Buffer]] | None = None,
    presets: Presets,
    needed: Sequence[Needed] = (),
    guard: AbstractContextManager[None] | None = None,
) -> Report:
    """Unpickle and make the call; never raises, whatever the function does short of ending the process.

    ``needed`` are the results to which its arguments refer; ``guard`` is around the function:
    :meth:`spoolpool.interruption.Interrupter.watch`.
    """
    try:
        with running(task), _directory(cwd):
            if init_content is not None and not presets.knows(init):
                presets.make(init, *init_content)
            function, args, kwargs = pickling.loads(payload, buffers, Values(needed) if needed else None)
            presets.fill(init, function, args, kwargs)
            with guard or contextlib.nullcontext():
                value = function(*args, **kwargs)
    except BaseException as error:  # noqa: BLE001  SystemExit and KeyboardInterrupt too: they end the task, not the group
        return failed(error, task.rank)
    try:
        return Report(*pickling.dumps(value), None)
    except NotPicklable as error:
        reason = NotPicklable(
            f"The result of the task ({type(value).__name__}) cannot be sent back from rank {task.rank} on "
            f"{hostname()}. {error} Return what it is made from."
        )
        return failed(reason, task.rank)


@contextlib.contextmanager
def _directory(path: str) -> Iterator[None]:
    """Run in a working directory, made if missing."""
    if not path:
        yield
        return
    before = os.getcwd()
    try:
        os.makedirs(path, exist_ok=True)
        os.chdir(path)
    except OSError as error:
        raise BadRequest(
            f"The working directory {path} of the task cannot be used on {hostname()}: {error.strerror}."
        ) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # somebody removed it meanwhile
            os.chdir(before)


def failed(error: BaseException, rank: int) -> Report:
    """The report of an exception; one that cannot travel is told of by a :class:`TaskFailed`."""
    failure = describe(error, rank)
    try:
        payload, buffers = pickling.dumps(error)
        # made bytes first, as the reader sees them: a constructor may ask for more than was pickled
        copy = pickling.loads(bytes(payload), buffers)
        if type(copy) is not type(error) and type(copy).__qualname__ != type(error).__qualname__:
            raise NotPicklable(f"it comes back as {type(copy).__name__}")
    except (SpoolpoolError, RecursionError) as reason:
        payload, buffers = pickling.dumps(
            TaskFailed(
                f"The task raised {failure.type}: {failure.message} This exception cannot be sent back "
                f"({reason}); its traceback is this one's cause."
            )
        )
    return Report(payload, buffers, failure)


def describe(error: BaseException, rank: int) -> Failure:
    """An exception in words, with the frames of the function alone."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename in (__file__, contextlib.__file__):
        frames = frames.tb_next
    try:
        text = "".join(traceback.format_exception(type(error), error, frames or error.__traceback__))
        message = str(error)
    except Exception:  # noqa: BLE001  a broken __str__ must not cost the task its outcome
        text, message = f"{type(error).__name__}: (its text cannot be had)\n", "(its text cannot be had)"
    kind = type(error)
    return Failure(
        type=kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}",
        message=message[:_MESSAGE],
        traceback=text if len(text) <= _TRACEBACK else text[: _TRACEBACK // 2] + "\n[...]\n" + text[-_TRACEBACK // 2 :],
        rank=rank,
        host=hostname(),
    )
