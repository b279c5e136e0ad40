"""Handle of the process that labels each line of the output of groups, and redirection of the output of ranks.

It is a process (:mod:`spoolpool.launch.output_relay_program`) so that groups keep their output when the supervisor is
killed.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

_PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "output_relay_program.py")
_MESSAGE = 1 << 20
_END_SECONDS = 5.0
_ANSWER_SECONDS = 10.0
_LATE_SECONDS = 1.0  # further wait for an answer that did not come in time: callers hold locks


class Relay:
    """Handle of the process; for one thread at a time.

    With ``as_json`` each line becomes a JSON object with ``group``, ``node``, ``rank`` and ``text``; a line that is an
    object gets the first three in addition to its own keys. Without ``labels`` lines stay as they are.
    """

    def __init__(self, *, as_json: bool = False, labels: bool = True) -> None:
        self.labels = labels
        self._form = "json" if as_json else "text" if labels else "plain"
        self._socket: socket.socket | None = None
        self._is_late = False
        """Whether an answer was not received in time: it is for an earlier question."""
        if labels:  # else it may never be needed
            self._start()

    def _start(self) -> socket.socket:
        import socket  # late, as json: most groups of one rank keep the output of this process

        from spoolpool.system.stop_request import blocked_group_signals

        self._socket = None  # also if the process cannot be started
        channel, child = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with child:  # -IS: the standard library suffices, which saves time and memory
            command = [sys.executable, "-IS", _PROGRAM, self._form]
            try:
                with blocked_group_signals():
                    self._process = subprocess.Popen(command, stdin=child.fileno(), start_new_session=True)
            except BaseException:
                channel.close()
                raise
        channel.settimeout(_ANSWER_SECONDS)
        self._is_late = False
        self._socket = channel
        return channel

    def pipes(self, group: str, nodes: Sequence[str], label: str = "", rank: int | None = None) -> list[int]:
        """Return descriptors for the standard output and error of a group, or of one rank; the caller closes them.

        ``nodes`` are those of the ranks, if known; ``label`` is the regular expression of a prefix of each line, with
        the rank as its group. Raises ``OSError``.
        """
        import json
        import socket

        channel = self._socket or self._start()
        if self._process.poll() is not None:  # it was killed
            channel.close()
            channel = self._start()
        # runs of equal nodes: the names of 20 000 ranks are more than a message holds
        runs = [(node, len(list(ranks))) for node, ranks in itertools.groupby(nodes)]
        reading, writing = zip(os.pipe(), os.pipe(), strict=True)
        try:
            socket.send_fds(
                channel, [json.dumps([group[:8], runs, label if self.labels else "", rank]).encode()], reading
            )
        except OSError:
            close_all(writing)
            raise
        finally:
            close_all(reading)
        return list(writing)

    def last_errors(self, group: str) -> list[str]:
        """Return the last lines on the standard error of a group, without labels; none if the relay cannot tell."""
        if self._socket is None or self._process.poll() is not None:
            return []
        import json

        try:
            if self._is_late:  # one question at a time: the relay would wait with more answers than the socket holds
                self._receive(self._socket, _LATE_SECONDS)
            self._socket.send(json.dumps(group[:8]).encode())
            self._is_late = True
            lines: list[str] = json.loads(  # noqa: TID251  of the own child process
                self._receive(self._socket, _ANSWER_SECONDS)
            )
        except (OSError, ValueError):  # it is stopped, or was killed meanwhile
            return []
        return lines

    def _receive(self, channel: socket.socket, seconds: float) -> bytes:
        """Return the answer to the last question. Raises ``OSError`` if it does not come in time."""
        channel.settimeout(seconds)
        try:
            answer = channel.recv(_MESSAGE)
        finally:
            channel.settimeout(_ANSWER_SECONDS)
        self._is_late = False
        return answer

    def close(self) -> None:
        """Wait until all output is written, which takes until all pipes are closed; at most some seconds."""
        if self._socket is None:
            return
        self._socket.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)


def close_all(descriptors: Iterable[int]) -> None:
    """Close descriptors."""
    for descriptor in descriptors:
        os.close(descriptor)


def location_of(pipes: Sequence[int]) -> str:
    """Return the location of the pipes, two for each rank, that this process keeps open for :func:`redirect_output`."""
    return f"{os.uname().nodename} /proc/{os.getpid()}/fd {' '.join(map(str, pipes))}"


def redirect_output(location: str, rank: int) -> None:
    """Redirect standard output and error of this rank to its pipes; keep them if the pipes cannot be opened.

    mpiexec mixes the output of its ranks within lines; its own labels (``-l``) split lines that come in pieces.
    """
    host, directory, *pipes = location.split()
    if host != os.uname().nodename:  # there the numbers are other descriptors
        return
    with contextlib.suppress(OSError, ValueError):
        for target, pipe in zip((1, 2), pipes[2 * rank :][:2], strict=True):
            opened = os.open(f"{directory}/{pipe}", os.O_WRONLY)
            os.dup2(opened, target)
            os.close(opened)
