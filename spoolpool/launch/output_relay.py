"""Process that labels each line of the output of groups with group, node and rank.

It is a process so that groups keep their output when the supervisor is killed: it reads until the last group has closed
its pipes. Its memory is bounded by one unfinished line per pipe, and the last errors of each group. While it cannot
write, groups that print wait.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import resource
import selectors
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Sequence

_LINE = 16384  # bytes after which a line is split
_MESSAGE = 1 << 20
_END_SECONDS = 5.0
_ANSWER_SECONDS = 10.0
_LATE_SECONDS = 1.0  # further wait for an answer that did not come in time: callers hold locks
_LAST_LINES = 60  # of the errors of a group: a traceback of each of some ranks
_LAST_WIDTH = 500  # characters of each of them
_MOST_GROUPS = 4096  # of which the last errors are kept


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
        from spoolpool.system.stop_request import blocked_group_signals  # the program cannot import the package

        self._socket, child = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(_ANSWER_SECONDS)
        self._is_late = False
        with child:  # -IS: the standard library suffices, which saves time and memory
            command = [sys.executable, "-IS", __file__, self._form]
            with blocked_group_signals():
                self._process = subprocess.Popen(command, stdin=child.fileno(), start_new_session=True)
        return self._socket

    def pipes(self, group: str, nodes: Sequence[str], label: str = "", rank: int | None = None) -> list[int]:
        """Return descriptors for the standard output and error of a group, or of one rank; the caller closes them.

        ``nodes`` are those of the ranks, if known; ``label`` is the regular expression of a prefix of each line, with
        the rank as its group. Raises ``OSError``.
        """
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


class _Source:
    """Reading end of one pipe."""

    def __init__(
        self, target: int, form: str, group: str, runs: Sequence[tuple[str, int]], label: str, rank: int | None
    ) -> None:
        self.group = group
        self.last: deque[str] = deque(maxlen=_LAST_LINES)
        """Where the last lines are kept."""
        self._target = target
        self._form = form
        self._nodes = [node for node, ranks in runs for _ in range(ranks)]
        self._only_node = self._nodes[0] if len({node for node, _ in runs}) == 1 else None
        self._label = re.compile(label.encode())
        self._rank = rank
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Write the finished lines; at the end of the pipe (no data) also the unfinished one."""
        *lines, rest = (self._rest + data).split(b"\n")
        while len(rest) > _LINE or (rest and not data):
            lines.append(rest[:_LINE])
            rest = rest[_LINE:]
        self._rest = rest
        _write(self._target, b"".join(map(self._labelled, lines)))

    def _labelled(self, line: bytes) -> bytes:
        rank, node = self._rank, self._only_node
        if self._label.groups and (match := self._label.match(line)):
            rank, line = int(match[1]), line[match.end() :]
        self.last.append(line[:_LAST_WIDTH].decode(errors="replace"))
        if self._form == "plain":
            return line + b"\n"
        if rank is not None and rank < len(self._nodes):
            node = self._nodes[rank]
        if len(self._nodes) == 1:
            rank = None
        if self._form == "json":
            return json.dumps({"group": self.group, "node": node, "rank": rank, **_fields(line)}).encode() + b"\n"
        label = " ".join(str(part) for part in (self.group, node, rank) if part is not None)
        return f"[{label}] ".encode() + line + b"\n"


def _fields(line: bytes) -> dict[str, object]:
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(line)  # noqa: TID251  output of a worker group
        if isinstance(found, dict):
            return found
    return {"text": line.decode(errors="backslashreplace")}


def _write(target: int, data: bytes) -> None:
    """Write all data; drop it if the target has no reader any more, so that groups can go on."""
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(target, data) :]


def _main(form: str) -> None:
    # a soft limit of 1024 descriptors would close the pipes of the 511th group
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    _Sources(form).run()


class _Sources:
    """All pipes, and the connection to the supervisor on standard input."""

    def __init__(self, form: str) -> None:
        self._form = form
        self._selector = selectors.DefaultSelector()
        self._supervisor = socket.socket(fileno=0)
        self._last: dict[str, deque[str]] = {}  # errors by group

    def run(self) -> None:
        """Read until the supervisor has closed the connection, and all groups their pipes."""
        self._selector.register(self._supervisor, selectors.EVENT_READ)
        while self._selector.get_map():
            for key, _ in self._selector.select():
                if key.fileobj is self._supervisor:
                    self._obey()
                elif key.fd in self._selector.get_map():  # else an answer to the supervisor has read it to the end
                    self._read(key)

    def _obey(self) -> None:
        try:
            message, pipes, _, _ = socket.recv_fds(self._supervisor, _MESSAGE, 2)
        except ConnectionResetError:  # it ended with an answer unread; its earlier messages, then the end, can be read
            return
        if not message:
            self._selector.unregister(self._supervisor)
        elif pipes:
            group, *rest = json.loads(message)  # noqa: TID251  of the supervisor
            for target, pipe in zip((1, 2), pipes, strict=False):
                source = _Source(target, self._form, group, *rest)
                if target == 2:
                    source.last = self._last.setdefault(group, source.last)
                os.set_blocking(pipe, False)
                self._selector.register(pipe, selectors.EVENT_READ, source)
            while len(self._last) > _MOST_GROUPS:
                del self._last[next(iter(self._last))]
        else:
            group = str(json.loads(message))  # noqa: TID251  of the supervisor
            for key in list(self._selector.get_map().values()):
                if key.data is not None and key.data.group == group:
                    while self._read(key):  # the group may have ended just now
                        pass
            with contextlib.suppress(OSError):  # the supervisor has ended
                self._supervisor.send(json.dumps(list(self._last.get(group, ()))).encode())

    def _read(self, key: selectors.SelectorKey) -> bool:
        """Pass a piece of output on; return whether there was some."""
        try:
            data = os.read(key.fd, _LINE)
        except BlockingIOError:
            return False
        key.data.feed(data)
        if not data:
            self._selector.unregister(key.fd)
            os.close(key.fd)
        return bool(data)


if __name__ == "__main__":
    _main(sys.argv[1])
