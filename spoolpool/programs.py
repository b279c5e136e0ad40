"""Executors for programs that are not Python: one run per call, or one that lives long and is fed lines."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import Future
from typing import IO, Any

from spoolpool.errors import BadRequest, SpoolpoolError
from spoolpool.executor import Executor


class SubprocessExecutor(Executor):
    """Runs a program per call: ``submit(["echo", "hello"], universal_newlines=True)`` gives its output.

    Takes the arguments of :class:`spoolpool.Executor`. A program that fails raises
    ``subprocess.CalledProcessError``, with its output.
    """

    def submit(  # type: ignore[override]
        self, command: Sequence[str] | str, /, *, resource_dict: dict[str, Any] | None = None, **options: Any
    ) -> Future[Any]:
        """Run a program; ``options`` go to ``subprocess.run``.

        Unless they say otherwise, ``check`` is on, the output is kept, and there is no input.
        """
        return super().submit(_run_program, command, resource_dict=resource_dict, **options)


def _run_program(command: Sequence[str] | str, **options: Any) -> Any:
    options.setdefault("check", True)
    if not options.get("capture_output"):
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    if "input" not in options:
        options.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.run(command, **options).stdout  # noqa: PLW1510  it is among the options


class ShellExecutor(Executor):
    """Runs one interactive program that lives long, and feeds it lines.

    ``ShellExecutor(["python", "calculator.py"]).submit("4", lines_to_read=1)`` writes a line and reads the
    answer: so many lines, or up to the first that holds ``stop_read_pattern``. A program that ended fails the
    call that finds it so, and is started anew for the next one; likewise one whose worker died. There is one
    worker, so that the calls come in order.
    """

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
            init_function=lambda: {"shell": _Shell(command, directory)},
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
        return super().submit(_ask_shell, string_input, lines_to_read, stop_read_pattern)


class _Shell:
    """The program, in the worker."""

    def __init__(self, command: list[str], cwd: str | None) -> None:
        self._command = command
        self._cwd = cwd
        self._process = self._start()
        self._over = False

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self._command,
            cwd=self._cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def ask(self, text: str, lines: int | None, pattern: str | None) -> str:
        """Write, then read to the end of the answer."""
        if self._over:
            self._process, self._over = self._start(), False
        writer, reader = self._process.stdin, self._process.stdout
        assert writer is not None
        assert reader is not None
        try:
            writer.write(text if text.endswith("\n") else f"{text}\n")
            writer.flush()
        except BrokenPipeError:
            raise self._ended("") from None
        answer: list[str] = []
        while lines is None or len(answer) < lines:
            answer.append(self._line(reader, answer))
            if pattern is not None and pattern in answer[-1]:
                break
        return "".join(answer)

    def _line(self, reader: IO[str], answer: list[str]) -> str:
        line = reader.readline()
        if not line:
            raise self._ended("".join(answer))
        return line

    def _ended(self, said: str) -> SpoolpoolError:
        self._over = True
        self._process.communicate()
        return SpoolpoolError(
            f"The program {self._command} ended with exit code {self._process.returncode} before its answer did. The "
            f"next call starts it anew. It last said: {said!r}"
        )


def _ask_shell(string_input: str, lines: int | None, pattern: str | None, *, shell: _Shell) -> str:
    return shell.ask(string_input, lines, pattern)
