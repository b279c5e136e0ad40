"""Run one call on one rank, and turn what comes of it into bytes."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple

from spoolpool.calls import pickling
from spoolpool.calls.results import DependencyValue, ReferenceResolver
from spoolpool.context import CurrentTask, running
from spoolpool.errors import BadRequest, NotPicklable, SpoolpoolError, TaskCancelled, TaskFailed
from spoolpool.format.envelope import Buffer
from spoolpool.format.headers import Failure, TaskHeader
from spoolpool.system import files
from spoolpool.system.processes import hostname

if TYPE_CHECKING:
    from spoolpool.protocol.objects import ObjectCache

log = logging.getLogger(__name__)

_MESSAGE = 4096
_TRACEBACK = 65536
_ARGUMENT = 1000  # characters of an argument in the file of errors


class RankResult(NamedTuple):
    """What a rank has to say about its call: a pickled value, or a pickled exception and its story."""

    payload: Buffer
    buffers: Sequence[Buffer]
    failure: Failure | None


class InitializerCache:
    """Keyword arguments that a session's ``init_function`` presets, made once per group and rank."""

    def __init__(self) -> None:
        self._made: dict[str, dict[str, Any]] = {}

    def knows(self, init: str) -> bool:
        """Whether this ``init_function`` was called."""
        return init in self._made

    def make(self, init: str, payload: Buffer, buffers: Sequence[Buffer], worker: str) -> None:
        """Call an ``init_function`` in a worker and keep what it returns."""
        function = pickling.loads(payload, buffers)
        made = function(**_worker_id(function, (), {}, worker))
        if not isinstance(made, dict) or not all(isinstance(key, str) for key in made):
            raise BadRequest(
                f"The init_function {pickling.label(function)} returned {type(made).__name__}: it must return "
                "a dict from names of arguments to values."
            )
        self._made[init] = made

    def of(self, init: str) -> Mapping[str, Any]:
        """What a session's ``init_function`` presets; nothing without one."""
        return self._made.get(init, {})


_NOTHING = contextlib.nullcontext()

_WORKER_ID = ("spoolpool_worker_id", "executorlib_worker_id")
"""Parameters that get the id of the worker. The second one is for functions that were written for executorlib."""


def _worker_id(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], worker: str
) -> dict[str, Any]:
    """The worker's id as an argument, where a Python function has a parameter for it that nobody gave.

    Found without a look at the signature, which would cost more than a small call.
    """
    code = getattr(function.func if isinstance(function, functools.partial) else function, "__code__", None)
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount] if code is not None else ()
    wanted = {name: worker for name in _WORKER_ID if name in names}
    return _not_given(wanted, function, args, kwargs) if wanted else wanted


def _not_given(
    values: Mapping[str, Any], function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Those of some values, by names, that are for parameters of a function which a call does not give."""
    if isinstance(function, functools.partial):  # what it has bound by name looks like a default in its signature
        bound: functools.partial[Any] = function
        function, args, kwargs = bound.func, (*bound.args, *args), {**bound.keywords, **kwargs}
    try:
        signature = inspect.signature(function)
        given = signature.bind_partial(*args, **kwargs).arguments
    except (TypeError, ValueError):  # a builtin without a signature, or a wrong call: it will say so itself
        return {}
    return {
        name: values[name]
        for name, parameter in signature.parameters.items()
        if name in values and name not in given and parameter.kind is not parameter.POSITIONAL_ONLY
    }


def run_call(
    task: CurrentTask,
    payload: Buffer,
    buffers: Sequence[Buffer],
    *,
    header: TaskHeader,
    init_content: tuple[Buffer, Sequence[Buffer]] | None = None,
    presets: InitializerCache,
    needed: Sequence[DependencyValue] = (),
    objects: ObjectCache | None = None,
    guard: AbstractContextManager[None] | None = None,
) -> RankResult:
    """Unpickle and make the call; never raises, whatever the function does short of ending the process.

    ``header`` says in which directory, with which variables, presets and ``objects``; ``needed`` are the results to
    which its arguments refer; ``guard`` is around the function: :meth:`spoolpool.calls.interruption.Interrupter.watch`.
    """
    called: tuple[Any, ...] = ()
    try:
        with running(task), _directory(header.cwd) if header.cwd else _NOTHING:
            if init_content is not None and not presets.knows(header.init):
                presets.make(header.init, *init_content, task.worker)
            with _variables(header.env) if header.env else _NOTHING:
                find = None
                if header.objects and objects is not None:
                    buffers = objects.fill(header.objects, buffers)
                if needed or header.objects:
                    find = ReferenceResolver(needed, objects, header.objects)
                called = pickling.loads(payload, buffers, find)
                function, args, kwargs = called
                kwargs.update(_worker_id(function, args, kwargs, task.worker))
                if made := presets.of(header.init):
                    kwargs.update(_not_given(made, function, args, kwargs))
                with guard or _NOTHING:
                    value = function(*args, **kwargs)
    except BaseException as error:  # noqa: BLE001  SystemExit and KeyboardInterrupt too: they end the task, not the group
        report = failure_report(error, task.rank)
        if header.error_log_file and not isinstance(error, TaskCancelled):
            _log_error(header.error_log_file, task, header.name, called, report.failure)
        return report
    try:
        return RankResult(*pickling.dumps(value), None)
    except NotPicklable as error:
        reason = NotPicklable(
            f"The result of the task ({type(value).__name__}) cannot be sent back from rank {task.rank} on "
            f"{hostname()}. {error} Return what it is made from."
        )
        return failure_report(reason, task.rank)


@contextlib.contextmanager
def _directory(path: str) -> Iterator[None]:
    """Run in a working directory, made if missing."""
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


@contextlib.contextmanager
def _variables(wanted: Mapping[str, str]) -> Iterator[None]:
    """Run with some variables of the environment set, and put back afterwards what was there before."""
    before = {name: os.environ.get(name) for name in wanted}
    try:
        os.environ.update(wanted)
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _log_error(path: str, task: CurrentTask, name: str, called: tuple[Any, ...], failure: Failure | None) -> None:
    """Append to a file of the user's what was called, with what, and what came of it.

    In one piece, so that what ranks of one host write is not mixed. The task has its outcome also where this fails.
    """
    function, args, kwargs = called or (None, (), {})
    lines = [
        f"{time.strftime('%FT%T%z')} task {task.id}, attempt {task.attempt}, rank {task.rank} on {hostname()}",
        f"function: {pickling.label(function) if called else name + ' (not unpickled)'}",
        *(f"argument {number}: {pickling.short(value, _ARGUMENT)}" for number, value in enumerate(args)),
        *(f"argument {key}: {pickling.short(value, _ARGUMENT)}" for key, value in kwargs.items()),
        failure.traceback if failure else "",
        "",
    ]
    try:
        fd = files.open_append(path, 0o666)
        try:
            files.append(fd, "\n".join(lines).encode(errors="backslashreplace"))
        finally:
            files.close(fd)
    except OSError as error:
        log.warning("The error of %s cannot be appended to %s: %s.", task.id, path, error.strerror)


def failure_report(error: BaseException, rank: int) -> RankResult:
    """The report of an exception; one that cannot travel is told of by a :class:`TaskFailed`."""
    failure = describe_failure(error, rank)
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
    return RankResult(payload, buffers, failure)


def describe_failure(error: BaseException, rank: int) -> Failure:
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
