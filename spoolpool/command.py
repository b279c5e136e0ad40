"""A command of the shell as a task: what ``spool run`` submits, and a group calls."""

from __future__ import annotations

import os
import selectors
import shlex
import subprocess
from collections.abc import Mapping, Sequence

from spoolpool.context import current_task
from spoolpool.errors import BadRequest
from spoolpool.launchers.base import without_mpi

LIMIT = 1 << 24
"""Bytes of each stream that the result holds: the last ones. All of it passes through the worker's own streams."""


class Command:
    """A command, with variables that are added to its environment; to call it runs it, on each rank.

    It finds ``SPOOLPOOL_TASK``, ``SPOOLPOOL_RANK`` and ``SPOOLPOOL_SIZE`` in its environment, and nothing of the MPI of
    its group, of which it is no rank.
    """

    def __init__(self, words: Sequence[str], variables: Mapping[str, str]) -> None:
        self._words = list(words)
        self._variables = dict(variables)
        # what a task is called
        self.__module__ = ""
        self.__qualname__ = shlex.join(words)

    def __call__(self) -> subprocess.CompletedProcess[bytes]:
        """Run it; its output is also the worker's.

        Raises ``subprocess.CalledProcessError``, with the output, for an exit code that is not 0, and
        :class:`BadRequest` where it cannot be started.
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
                "that is there on the hosts of the workers."
            ) from error
        with process:
            output, errors = _pass_on(process)
        code = process.returncode if process.returncode >= 0 else 128 - process.returncode  # as shells tell of signals
        if code:
            raise subprocess.CalledProcessError(code, self._words, output, errors)
        return subprocess.CompletedProcess(self._words, code, output, errors)


def _pass_on(process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    """Hand both streams on as they come, and keep the ends of them."""
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
                del kept[key.fd][: max(0, len(kept[key.fd]) - LIMIT)]
    output, errors = kept.values()
    return bytes(output), bytes(errors)
