"""Execution of one call on one rank, with its result as bytes."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import os
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple

from spoolpool.calls import forks, pickling
from spoolpool.calls.process_state import Changes, ProcessState
from spoolpool.calls.results import DependencyValue, ReferenceResolver
from spoolpool.context import CurrentTask, running
from spoolpool.errors import BadRequest, NotPicklable, TaskCancelled, TaskFailed
from spoolpool.format.envelope import Buffer
from spoolpool.format.headers import Failure, TaskHeader, Usage
from spoolpool.system import file_content, files
from spoolpool.system.environment import without_mpi, working_directory
from spoolpool.system.processes import hostname
from spoolpool.system.user_code import describe_value, error_message, printable

if TYPE_CHECKING:
    from spoolpool.protocol.object_cache import ObjectCache

log = logging.getLogger(__name__)

_MESSAGE = 4096
_TRACEBACK = 65536
_OWN_FILES = (__file__, contextlib.__file__, forks.__file__)  # of frames above that of the function
_ARGUMENT = 1000  # characters of an argument in the error log file


class RankResult(NamedTuple):
    """Result of a call on one rank: the pickled value, or the pickled exception with its description."""

    payload: Buffer
    buffers: Sequence[Buffer]
    failure: Failure | None
    usage: Usage | None = None
    """Resources used; None if they were not measured."""


class InitializerCache:
    """Cache of the keyword arguments that the ``init_function`` of a session returns, called once per rank."""

    def __init__(self, accepting: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext) -> None:
        self._accepting = accepting
        """Returns the context of each call; what it leaves running is to stay."""
        self._made: dict[str, dict[str, Any]] = {}
        self._changes: dict[str, Changes] = {}

    def knows(self, init: str) -> bool:
        """Return whether this ``init_function`` was called."""
        return init in self._made

    def make(self, init: str, payload: Buffer, buffers: Sequence[Buffer], worker: str) -> None:
        """Call an ``init_function`` in a worker and cache the result."""
        function = pickling.loads(payload, buffers)
        before = ProcessState()
        with self._accepting():
            made = forks.call(function, (), worker_id(function, (), {}, worker))
        if not isinstance(made, dict) or not all(isinstance(key, str) for key in made):
            raise BadRequest(
                f"The init_function {pickling.label(function)} returned {type(made).__name__}: it must return "
                "a dict of argument names and values."
            )
        self._made[init] = made
        self._changes[init] = before.changes()

    def changes(self, init: str) -> Changes | None:
        """Return what the ``init_function`` of a session has changed in this process; None if it was not called."""
        return self._changes.get(init)

    def of(self, init: str) -> Mapping[str, Any]:
        """Return the arguments of a session's ``init_function``; empty if the session has none."""
        return self._made.get(init, {})


_NOTHING = contextlib.nullcontext()

worker_number = 0
"""Number, from 0, of this process's worker among the live workers of its executor or supervisor."""

_WORKER_ID, _WORKER_NUMBER = "spoolpool_worker_id", "executorlib_worker_id"
"""Parameters that get the id of the worker, and its number, as functions written for executorlib expect it."""


def worker_id(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], worker: str
) -> dict[str, Any]:
    """Return the worker's id and number as keyword arguments, if a Python function has unset parameters for them.

    It does not inspect the signature, which would take longer than a small call.
    """
    code = getattr(function.func if isinstance(function, functools.partial) else function, "__code__", None)
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount] if code is not None else ()
    wanted: dict[str, Any] = {}
    if _WORKER_ID in names:
        wanted[_WORKER_ID] = worker
    if _WORKER_NUMBER in names:
        wanted[_WORKER_NUMBER] = worker_number
    return _not_given(wanted, function, args, kwargs) if wanted else wanted


def _not_given(
    values: Mapping[str, Any], function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the values, by their names, for parameters of a function that a call does not set."""
    if isinstance(function, functools.partial):  # its keywords look like defaults in its signature
        bound: functools.partial[Any] = function
        function, args, kwargs = bound.func, (*bound.args, *args), {**bound.keywords, **kwargs}
    try:
        signature = inspect.signature(function)
        given = signature.bind_partial(*args, **kwargs).arguments
    except (TypeError, ValueError):  # a builtin without a signature, or a wrong call, which will raise by itself
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
    initializers: InitializerCache,
    dependencies: Sequence[DependencyValue] = (),
    objects: ObjectCache | None = None,
    guard: AbstractContextManager[None] | None = None,
    pack: Callable[[], None] | None = None,
) -> RankResult:
    """Unpickle and run the call. It never raises: only the end of the process prevents a result.

    ``header`` determines the directory, the environment, the preset arguments and the objects of the call.
    ``dependencies`` are the results to which its arguments refer. The function runs inside ``guard``:
    :meth:`spoolpool.calls.interruption.Interrupter.watch`. ``pack`` runs the calls of a pack instead of one call.
    """
    called: tuple[Any, ...] = ()
    try:
        with running(task), _directory(header):
            if init_content is not None and not initializers.knows(header.init):
                initializers.make(header.init, *init_content, task.worker)
            with _variables(header.env) if header.env else _NOTHING:
                find = None
                if header.objects and objects is not None:
                    buffers = objects.fill(header.objects, buffers)
                if dependencies or header.objects:
                    find = ReferenceResolver(dependencies, objects, header.objects)
                function, args, kwargs = (pack, (), {}) if pack else pickling.loads(payload, buffers, find)
                called = function, args, kwargs
                kwargs.update(worker_id(function, args, kwargs, task.worker))
                if made := initializers.of(header.init):
                    kwargs.update(_not_given(made, function, args, kwargs))
                with guard or _NOTHING:
                    value = forks.call(function, args, kwargs)
    except BaseException as error:  # noqa: BLE001  SystemExit and KeyboardInterrupt, too, end the task, not the group
        hint_at_environment(error)
        report = failure_report(error, task.rank)
        if header.error_log_file and not isinstance(error, TaskCancelled):
            _log_error(header.error_log_file, task, header.name, called, report.failure)
        return report
    return value_report(value, task.rank)


def value_report(value: object, rank: int) -> RankResult:
    """Return the result of a call that returned a value; an error if that cannot be pickled."""
    try:
        return RankResult(*pickling.dumps(value), None)
    except BaseException as error:  # noqa: BLE001  an interrupt too: the call has ended
        reason = NotPicklable(
            f"The result of the task ({type(value).__name__}) cannot be sent back from rank {rank} on "
            f"{hostname()}. {error_message(error)} Return the values from which it is created."
        )
        return failure_report(reason, rank)


def hint_at_environment(error: BaseException) -> None:
    """Add a note to the error of a program that may have taken itself for a rank of the group."""
    add_note = getattr(error, "add_note", None)  # from Python 3.11 on
    if add_note is None or not isinstance(error, subprocess.CalledProcessError):
        return
    if len(without_mpi(os.environ)) < len(os.environ):
        add_note(
            "The program inherited the variables of the group's MPI. If it uses MPI itself, start it with "
            "env=spoolpool.current_task().clean_environment()."
        )


def _directory(header: TaskHeader) -> AbstractContextManager[None]:
    """Return a context in the working directory of the call: ``cwd``, else the directory of its submitter.

    A worker of another account stays in its own directory if that of the submitter is closed to it.
    """
    path = header.cwd or header.directory
    here = working_directory()
    if path in ("", here):
        return _NOTHING
    try:
        if header.cwd:
            os.makedirs(path, exist_ok=True)
        os.chdir(path)
    except OSError as error:
        if isinstance(error, PermissionError) and not header.cwd:
            log.info("The directory of the submitter, %s, is closed to this account: %s", printable(path), error)
            return _NOTHING
        advice = (
            ""
            if header.cwd
            else (
                " The task was submitted there. Submit it in a directory that all hosts see, or name one: "
                "resource_dict={'cwd': DIRECTORY}, or --cwd."
            )
        )
        raise BadRequest(
            f"The working directory {path} of the task cannot be used on {hostname()}: {error.strerror}.{advice}"
        ) from error
    return _returning(here or os.path.expanduser("~"))


@contextlib.contextmanager
def _returning(before: str) -> Iterator[None]:
    """Change back to a directory after the context."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # it was removed meanwhile
            os.chdir(before)


@contextlib.contextmanager
def _variables(wanted: Mapping[str, str]) -> Iterator[None]:
    """Run with environment variables set, and restore their previous values afterwards."""
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
    """Append function, arguments and traceback to a file of the user.

    It is one write, so that entries of several ranks on a host are not mixed. An error here does not change the outcome
    of the task.
    """
    function, args, kwargs = called or (None, (), {})
    lines = [
        f"{time.strftime('%FT%T%z')} task {task.id}, attempt {task.attempt}, rank {task.rank} on {hostname()}",
        f"function: {pickling.label(function) if called else name + ' (not unpickled)'}",
        *(f"argument {number}: {describe_value(value, _ARGUMENT)}" for number, value in enumerate(args)),
        *(f"argument {key}: {describe_value(value, _ARGUMENT)}" for key, value in kwargs.items()),
        failure.traceback if failure else "",
        "",
    ]
    try:
        fd = files.open_append(path, 0o666)
        try:
            file_content.append(fd, "\n".join(lines).encode(errors="backslashreplace"))
        finally:
            files.close(fd)
    except OSError as error:
        log.warning("The error of %s cannot be appended to %s: %s.", task.id, path, error.strerror)


def failure_report(error: BaseException, rank: int) -> RankResult:
    """Return the result of a call that raised; a :class:`TaskFailed` replaces an exception that cannot be pickled."""
    failure = describe_failure(error, rank)
    try:
        payload, buffers = _dump_exception(error)
    except BaseException as reason:  # noqa: BLE001  an interrupt too: the call has ended
        payload, buffers = pickling.dumps(
            TaskFailed(
                f"The task raised {failure.type}: {failure.message} This exception cannot be sent back "
                f"({error_message(reason)}); its traceback is this one's cause."
            )
        )
    return RankResult(payload, buffers, failure)


def _dump_exception(error: BaseException) -> tuple[Buffer, Sequence[Buffer]]:
    """Return the pickle of an exception that the reader can load, with as many of its parts as possible."""
    for leave_out, linked in ((False, True), (True, True), (True, False)):
        try:
            payload, buffers = pickling.dumps(error, leave_out=leave_out, linked=linked)
            # from bytes, like the reader: a __reduce__ may name a class that requires other arguments
            copy = pickling.loads(bytes(payload), buffers)
            if type(copy) is type(error) or type(copy).__qualname__ == type(error).__qualname__:
                return payload, buffers
            reason: BaseException = NotPicklable(f"it comes back as {type(copy).__name__}")
        except BaseException as failed:  # noqa: BLE001  an interrupt too: the call has ended
            reason = failed
    raise reason


def describe_failure(error: BaseException, rank: int) -> Failure:
    """Return the description of an exception, with the frames of the function alone."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename in _OWN_FILES:
        frames = frames.tb_next
    message = error_message(error)
    try:
        text = printable("".join(traceback.format_exception(type(error), error, frames or error.__traceback__)))
    except BaseException:  # noqa: BLE001  a broken __str__ must not cost the task its outcome
        text = f"{type(error).__name__}: {message}\n"
    kind = type(error)
    return Failure(
        type=kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}",
        message=message[:_MESSAGE],
        traceback=text if len(text) <= _TRACEBACK else text[: _TRACEBACK // 2] + "\n[...]\n" + text[-_TRACEBACK // 2 :],
        rank=rank,
        host=hostname(),
    )
