"""Functions and classes that task and result files may name. They are part of the format (``docs/format.md``).

A pickle names functions and classes by the path of their module. Besides the modules of the user and of libraries, a
file of a spool names the public names of ``spoolpool``, the classes of ``spoolpool.errors``, and the names in
:data:`__all__` of this module. While files of its format can be read, a name here is not renamed or moved, and its
arguments change only by additions with a default; its implementation may change. Golden spools hold files of each kind,
and a test fails on any other path.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import selectors
import shlex
import subprocess
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any

import msgspec

from spoolpool.calls import forks, leftovers, pickling, usage
from spoolpool.calls.definitions import (
    fill_class,
    fill_module,
    import_local,
    load_class,
    load_function,
    make_cached,
    make_cached_property,
    scope_of_local,
)
from spoolpool.calls.exceptions import fill_exception, make_exception
from spoolpool.calls.isolation import PickledCall, load, needs_isolation, run_apart, run_calls
from spoolpool.calls.pickling import import_optional, join_parts, stored_object, substitute, task_result
from spoolpool.calls.results import remote_error
from spoolpool.context import current_task, task_or_none
from spoolpool.errors import BadRequest, BadTaskFile, SpoolpoolError
from spoolpool.format.envelope import Buffer
from spoolpool.format.headers import Failure
from spoolpool.system.environment import without_mpi

__all__ = [
    "Command",
    "PackResults",
    "ask_shell",
    "fill_class",
    "fill_exception",
    "fill_module",
    "import_local",
    "import_optional",
    "join_parts",
    "load_class",
    "load_function",
    "make_cached",
    "make_cached_property",
    "make_exception",
    "run_chunk",
    "run_initialized",
    "run_initializer",
    "run_pack",
    "run_program",
    "scope_of_local",
    "start_shell",
    "stored_object",
    "substitute",
    "task_result",
]

OUTPUT_LIMIT = 1 << 24
"""Bytes of each output stream that the result of a command keeps: the last ones. The worker's own streams get all."""

_SHELL_GRACE = 5.0  # seconds in which a program ends after it has closed its input or its output


# -- calls that share a task


def run_chunk(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Run the calls of a chunk of ``map`` and return their values in order. The first exception ends the chunk.

    The exception has the values of the calls before it, for :func:`values_before`.
    """
    task = task_or_none()
    values: list[Any] = []
    try:
        if task is None or not needs_isolation(task):
            for args in calls:
                values.append(forks.call(function, args))  # noqa: PERF401  the values before an exception are needed
        else:
            for payload, buffers, failure, _ in run_calls(_pickled(function, calls), task):
                values.append(_value(payload, buffers, failure))
    except BaseException as error:
        if task is None or task.size == 1:  # else the values of other ranks would be missing
            _add_values(error, values)
        raise
    return values


def _pickled(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Iterator[PickledCall]:
    for args in calls:
        payload, buffers = pickling.dumps((function, args, {}))
        yield bytes(payload), [bytes(each) for each in buffers]


_VALUES = "_spoolpool_values"  # attribute of an exception


def _add_values(error: BaseException, values: list[Any]) -> None:
    """Add pickled values to an exception; if they cannot be pickled, their calls have to run again."""
    with contextlib.suppress(Exception):  # also where an exception takes no attributes
        payload, buffers = pickling.dumps(values)
        vars(error)[_VALUES] = bytes(payload), [bytes(each) for each in buffers]


def values_before(error: BaseException) -> list[Any] | None:
    """Return the values of the calls of a chunk before the one that raised; None if they are not known."""
    found = vars(error).pop(_VALUES, None)
    try:
        return None if found is None else list(load(*found))
    except Exception:  # noqa: BLE001  a value that cannot be unpickled here is left to a further run of its call
        return None


_MOST_BYTES = 4 << 20  # of the results of a pack that may end early


class PackResults:
    """Results of the calls of a pack. Indexing returns the value of a call or raises its exception.

    ``reports`` has for each call the pickle of its value or exception, the buffers of that pickle, and for an exception
    the fields of :class:`~spoolpool.format.headers.Failure`.
    """

    def __init__(self, reports: list[tuple[bytes, list[bytes], dict[str, Any] | None]]) -> None:
        self._reports = reports

    def __reduce__(self) -> tuple[Any, ...]:
        return PackResults, (self._reports,)

    def __len__(self) -> int:
        return len(self._reports)

    def __getitem__(self, number: int) -> Any:
        payload, buffers, failure = self._reports[number]
        return _value(payload, buffers, None if failure is None else msgspec.convert(failure, Failure))


def _value(payload: Buffer, buffers: Sequence[Buffer], failure: Failure | None) -> Any:
    """Return the value of a call that shared a task, or raise its exception."""
    value = load(payload, buffers)
    if failure is None:
        return value
    if not isinstance(value, BaseException):
        raise BadTaskFile(f"A call of a shared task should have an exception and has {type(value).__name__}.")
    raise remote_error(value, failure)


def run_pack(calls: Sequence[PickledCall], seconds: float = math.inf) -> PackResults:
    """Run the pickled calls of a pack; an exception of one does not affect the others.

    Each runs in the state of the process that the first one has found, and is the current task with its own id if it
    has one. After so many ``seconds``, or with 4 MiB of results, no further call is run if ``seconds`` is finite; the
    submitter submits the others again. Isolated calls are all run, since each of the others may end a worker.
    """
    task = task_or_none()
    isolated = task is not None and needs_isolation(task)
    if isolated:
        seconds = math.inf
    results = run_calls(calls, task) if isolated and task else run_apart(calls, task)
    reports: list[tuple[bytes, list[bytes], dict[str, Any] | None]] = []
    end, size = time.monotonic() + seconds, 0
    for result in results:
        failure = None if result.failure is None else msgspec.to_builtins(result.failure)
        buffers = [bytes(buffer) for buffer in result.buffers]
        reports.append((bytes(result.payload), buffers, failure))
        size += len(result.payload) + sum(map(len, buffers))
        if time.monotonic() > end or (size > _MOST_BYTES and seconds < math.inf):
            break
    return PackResults(reports)


# -- commands and programs


class Command:
    """Callable that runs a command on each rank, with variables added to its environment.

    The command gets ``SPOOLPOOL_TASK``, ``SPOOLPOOL_RANK`` and ``SPOOLPOOL_SIZE``. The variables of its group's MPI are
    removed: the command is no rank of it.
    """

    def __init__(self, words: Sequence[str], variables: Mapping[str, str]) -> None:
        self._words = list(words)
        self._variables = dict(variables)
        # the name of its task
        self.__module__ = ""
        self.__qualname__ = shlex.join(words)

    def __reduce__(self) -> tuple[Any, ...]:
        return Command, (self._words, self._variables)

    def __call__(self) -> subprocess.CompletedProcess[bytes]:
        """Run the command. The worker's own streams get its output too.

        Raises ``subprocess.CalledProcessError``, with the output, for an exit code other than 0, and
        :class:`BadRequest` where the command cannot be started.
        """
        task = current_task()
        told = {"SPOOLPOOL_TASK": task.id, "SPOOLPOOL_RANK": str(task.rank), "SPOOLPOOL_SIZE": str(task.size)}
        try:
            process = subprocess.Popen(
                self._words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**without_mpi(os.environ), **self._variables, **told},
            )
        except OSError as error:
            raise BadRequest(
                f"The command {self._words[0]!r} cannot be started in {os.getcwd()}: {error.strerror}. Name a program "
                "that exists on the hosts of the workers."
            ) from error
        with process:
            output, errors = _forward(process)
            with contextlib.suppress(ChildProcessError):  # a handler of SIGCHLD has waited for it
                _, status, used = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
                usage.note_child(used)
        code = process.returncode if process.returncode >= 0 else 128 - process.returncode  # as shells report signals
        if code:
            raise subprocess.CalledProcessError(code, self._words, output, errors)
        return subprocess.CompletedProcess(self._words, code, output, errors)


def _forward(process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    """Forward both output streams as they come; return the last bytes of each."""
    assert process.stdout is not None
    assert process.stderr is not None
    kept = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
    targets = dict(zip(kept, (1, 2), strict=True))
    with selectors.DefaultSelector() as selector:
        for fd in kept:
            selector.register(fd, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                data = os.read(key.fd, 65536)
                if not data:
                    selector.unregister(key.fd)
                    continue
                os.write(targets[key.fd], data)
                kept[key.fd] += data
                del kept[key.fd][: max(0, len(kept[key.fd]) - OUTPUT_LIMIT)]
    output, errors = kept.values()
    return bytes(output), bytes(errors)


def run_program(command: Sequence[str] | str, **options: Any) -> Any:
    """Run a program with the options of ``subprocess.run`` and return its standard output.

    Without ``env`` it does not inherit the variables of its group's MPI: it is no rank of it.
    """
    options.setdefault("check", True)
    if options.get("env") is None:
        options["env"] = without_mpi(os.environ)
    if not options.get("capture_output"):
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    if "input" not in options:
        options.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.run(command, **options).stdout  # noqa: PLW1510  it is among the options


class _Shell:
    """Interactive program of a session, in the worker."""

    def __init__(self, command: list[str], cwd: str | None) -> None:
        self._command = command
        self._cwd = cwd
        self._process = self._start()
        self._ended = False

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            self._command,
            cwd=self._cwd,
            env=without_mpi(os.environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        leftovers.keep_process(process.pid)
        return process

    def ask(self, text: str, lines: int | None, pattern: str | None) -> str:
        """Write a text and read the answer: a number of lines, or up to the first line with the pattern."""
        if self._ended:
            self._process, self._ended = self._start(), False
        writer, reader = self._process.stdin, self._process.stdout
        assert writer is not None
        assert reader is not None
        try:
            writer.write(text if text.endswith("\n") else f"{text}\n")
            writer.flush()
        except BrokenPipeError:
            raise self._end("") from None
        answer: list[str] = []
        while lines is None or len(answer) < lines:
            answer.append(self._line(reader, answer))
            if pattern is not None and pattern in answer[-1]:
                break
        return "".join(answer)

    def _line(self, reader: IO[str], answer: list[str]) -> str:
        line = reader.readline()
        if not line:
            raise self._end("".join(answer))
        return line

    def _end(self, output: str) -> SpoolpoolError:
        self._ended = True
        # its output is not read to the end: a process that the program left behind may hold the pipe for as long as it
        # runs; and the program itself may have closed its pipes and go on
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):  # the rest of the input: its reader is gone
                pipe.close()  # type: ignore[union-attr]
        try:
            self._process.wait(_SHELL_GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        return SpoolpoolError(
            f"The program {self._command} ended with exit code {self._process.returncode} before its answer was "
            f"complete. The next call starts it again. Its last output: {output!r}"
        )


def run_initializer(initializer: Callable[..., Any], arguments: Sequence[Any]) -> dict[str, Any]:
    """Call the initializer of a :class:`spoolpool.Pool`; this is the ``init_function`` of its session."""
    initializer(*arguments)
    return {"spoolpool_initialized": _globals_of(initializer)}


def run_initialized(
    call: Callable[..., Any],
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    spoolpool_initialized: dict[str, Any] | None,
) -> Any:
    """Call ``call``, which calls ``function``, with the global variables that the initializer of its pool has set.

    The functions of a script travel by value, each with global variables of its own.
    """
    found, given = _globals_of(function), spoolpool_initialized
    if given is not None and found is not None and found is not given and found["__name__"] == given["__name__"]:
        kinds = (types.FunctionType, types.ModuleType, type)
        names = [name for name in given if not name.startswith("__") and not isinstance(given[name], kinds)]
        found.update({name: given[name] for name in names})
    return call(*args, **kwargs)


def _globals_of(function: Callable[..., Any]) -> dict[str, Any] | None:
    """Return the global variables of a function in Python, of what a ``partial`` or a method calls, or of an object."""
    while isinstance(function, functools.partial):
        function = function.func
    if not isinstance(function, (types.FunctionType, types.MethodType)):
        function = getattr(type(function), "__call__", function)  # noqa: B004  the method, not whether it is callable
    found: dict[str, Any] | None = getattr(function, "__globals__", None)
    return found


def start_shell(command: list[str], cwd: str | None) -> dict[str, _Shell]:
    """Start the program of a :class:`spoolpool.ShellExecutor`; this is the ``init_function`` of its session."""
    return {"shell": _Shell(command, cwd)}


def ask_shell(string_input: str, lines: int | None, pattern: str | None, *, shell: _Shell) -> str:
    """Write lines to the program of the session and return its answer."""
    return shell.ask(string_input, lines, pattern)
