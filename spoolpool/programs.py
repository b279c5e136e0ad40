"""Executors for programs other than Python functions: one run per call, or one process that answers lines."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from spoolpool.errors import BadRequest
from spoolpool.executor import Executor
from spoolpool.system.quantities import read_count
from spoolpool.wire import ask_shell, run_program, start_shell


class SubprocessExecutor(Executor):
    """Executor of one program per call: ``submit(["echo", "hello"], universal_newlines=True)`` returns its output.

    Takes the arguments of :class:`spoolpool.Executor`. A program that fails raises ``subprocess.CalledProcessError``
    with its output.
    """

    __module__ = "spoolpool"

    def submit(  # type: ignore[override]
        self, command: Sequence[str] | str, /, *, resource_dict: dict[str, Any] | None = None, **options: Any
    ) -> Future[Any]:
        """Run a program; ``options`` are those of ``subprocess.run``.

        By default ``check`` is on, the output is captured, and the input is empty.
        """
        return super().submit(run_program, command, resource_dict=resource_dict, **options)


class ShellExecutor(Executor):
    """Executor that sends lines to one long-running interactive program.

    ``ShellExecutor(["python", "calculator.py"]).submit("4", lines_to_read=1)`` writes a line and reads the answer: so
    many lines, or up to the first line with ``stop_read_pattern``. If the program has ended or its worker has died,
    the call fails, and the next call starts the program anew. The only worker runs the calls in order. Takes further
    arguments of :class:`spoolpool.Executor`.
    """

    __module__ = "spoolpool"

    def __init__(
        self,
        command: Sequence[str],
        *,
        universal_newlines: bool = True,
        cwd: str | os.PathLike[str] | None = None,
        spool: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> None:
        if not universal_newlines:
            raise BadRequest("ShellExecutor reads lines of text: universal_newlines must be True.")
        command, directory = list(command), None if cwd is None else os.path.abspath(cwd)
        super().__init__(
            max_workers=1,
            init_function=functools.partial(start_shell, command, directory),
            cwd=cwd,
            spool=spool,
            **options,
        )

    def submit(  # type: ignore[override]
        self, string_input: str, /, *, lines_to_read: int | None = None, stop_read_pattern: str | None = None
    ) -> Future[str]:
        """Write one or more lines to the program and return its answer as one string."""
        if (lines_to_read is None) == (stop_read_pattern is None):
            raise BadRequest("The end of the answer is undefined: pass either lines_to_read or stop_read_pattern.")
        if lines_to_read is not None:
            lines_to_read = read_count("lines_to_read", lines_to_read, 0)
        return super().submit(ask_shell, string_input, lines_to_read, stop_read_pattern)
