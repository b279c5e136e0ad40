"""Executors for programs that are not Python: one run per call, or one that lives long and is fed lines."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from spoolpool.errors import BadRequest
from spoolpool.executor import Executor
from spoolpool.wire import ask_shell, run_program, start_shell


class SubprocessExecutor(Executor):
    """Runs a program per call: ``submit(["echo", "hello"], universal_newlines=True)`` gives its output.

    Takes the arguments of :class:`spoolpool.Executor`. A program that fails raises
    ``subprocess.CalledProcessError``, with its output.
    """

    __module__ = "spoolpool"

    def submit(  # type: ignore[override]
        self, command: Sequence[str] | str, /, *, resource_dict: dict[str, Any] | None = None, **options: Any
    ) -> Future[Any]:
        """Run a program; ``options`` go to ``subprocess.run``.

        Unless they say otherwise, ``check`` is on, the output is kept, and there is no input.
        """
        return super().submit(run_program, command, resource_dict=resource_dict, **options)


class ShellExecutor(Executor):
    """Runs one interactive program that lives long, and feeds it lines.

    ``ShellExecutor(["python", "calculator.py"]).submit("4", lines_to_read=1)`` writes a line and reads the
    answer: so many lines, or up to the first that holds ``stop_read_pattern``. A program that ended fails the
    call that finds it so, and is started anew for the next one; likewise one whose worker died. There is one
    worker, so that the calls come in order.
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
            raise BadRequest("ShellExecutor reads lines of text: universal_newlines must be true.")
        command, directory = list(command), None if cwd is None else os.fspath(cwd)
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
        """Write a line (or several) to the program and read its answer as one string."""
        if (lines_to_read is None) == (stop_read_pattern is None):
            raise BadRequest("Give either lines_to_read or stop_read_pattern: else nobody knows where the answer ends.")
        return super().submit(ask_shell, string_input, lines_to_read, stop_read_pattern)
