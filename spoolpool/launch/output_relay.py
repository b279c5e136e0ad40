"""What groups print, line by line, with a mark of whose it is: a process that reads their pipes.

It is a process of its own so that nothing of a group breaks when the supervisor is killed: it reads until the last
group has closed its pipes. What it holds is bounded: an unfinished line per pipe. While it cannot write, those who
print wait.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence

_LINE = 16384  # bytes after which a line is broken
_MESSAGE = 1 << 20
_END_SECONDS = 5.0
_IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGPIPE)
"""Signals that a batch system sends to all processes of a job: they are for the supervisor. Without SIGPIPE, a failed
write raises an error that :func:`_write` ignores."""


class Relay:
    """Starts that process, and hands it the pipes of groups; from one thread at a time.

    ``as_json``: each line becomes a JSON object with ``group``, ``node``, ``rank`` and ``text``; one that is an object
    already gets the first three besides what it has.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self._form = "json" if as_json else "text"
        self._start()

    def _start(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:  # -IS: nothing but the standard library is needed, which saves time and memory
            command = [sys.executable, "-IS", __file__, self._form]
            # blocked, which a child inherits: else one that comes before the child ignores it would end it
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED)
            try:
                self._process = subprocess.Popen(command, stdin=theirs.fileno(), start_new_session=True)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def pipes(self, group: str, nodes: Sequence[str], label: str = "", rank: int | None = None) -> tuple[int, int]:
        """Descriptors for the standard output and error of a group, or of one rank of it; the caller closes them.

        ``nodes``: those of the ranks, where they are known; ``label``: a regular expression for what stands before each
        line of a rank, with its number as its group, or nothing. Raises ``OSError``.
        """
        if self._process.poll() is not None:  # somebody killed it
            self._socket.close()
            self._start()
        reading, writing = zip(os.pipe(), os.pipe(), strict=True)
        message = json.dumps({"group": group, "nodes": list(nodes), "label": label, "rank": rank})
        try:
            socket.send_fds(self._socket, [message.encode()], reading)
        except OSError:
            _close(writing)
            raise
        finally:
            _close(reading)
        return writing

    def close(self) -> None:
        """Wait until all was written, which takes as long as somebody holds a pipe; a few seconds at most."""
        self._socket.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def handed_over(pipes: Sequence[int]) -> str:
    """What tells the ranks of a group on this host of the pipes that this process holds open for each of them."""
    return f"{os.uname().nodename} /proc/{os.getpid()}/fd {' '.join(map(str, pipes))}"


def take_over(told: str, rank: int) -> None:
    """Print into the pipes that :func:`handed_over` tells of, in place of those that mpiexec gave to this rank.

    mpiexec mixes what its ranks print, also within lines. Where the pipes cannot be reached, all stays as it is.
    """
    host, directory, *pipes = told.split()
    if host != os.uname().nodename:  # the descriptors there are others
        return
    with contextlib.suppress(OSError, ValueError):
        for target, pipe in zip((1, 2), pipes[2 * rank :][:2], strict=True):
            opened = os.open(f"{directory}/{pipe}", os.O_WRONLY)
            os.dup2(opened, target)
            os.close(opened)


class _Source:
    """One pipe, and what marks its lines."""

    def __init__(
        self, group: str, nodes: Sequence[str], label: str, rank: int | None, *, target: int, as_json: bool
    ) -> None:
        self._group = group[:8]
        self._rank = rank
        self._as_json = as_json
        self._nodes = nodes
        self._label = re.compile(label.encode()) if label else None
        self._target = target
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Write the lines that are finished; at the end of the pipe (no data) also the one that is not."""
        *lines, rest = (self._rest + data).split(b"\n")
        while len(rest) > _LINE or (rest and not data):
            lines.append(rest[:_LINE])
            rest = rest[_LINE:]
        self._rest = rest
        if lines:
            _write(self._target, b"".join(self._marked(line) for line in lines))

    def _marked(self, line: bytes) -> bytes:
        match = self._label.match(line) if self._label else None
        rank = int(match[1]) if match else self._rank
        if match:
            line = line[match.end() :]
        node = None
        if rank is not None and rank < len(self._nodes):
            node = self._nodes[rank]
        elif len(set(self._nodes)) == 1:
            node = self._nodes[0]
        if len(self._nodes) == 1:
            rank = None
        if self._as_json:
            return json.dumps({"group": self._group, "node": node, "rank": rank, **_fields(line)}).encode() + b"\n"
        mark = " ".join(str(part) for part in (self._group, node, rank) if part is not None)
        return f"[{mark}] ".encode() + line + b"\n"


def _fields(line: bytes) -> dict[str, object]:
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(line)
        if isinstance(found, dict):
            return found
    return {"text": line.decode(errors="backslashreplace")}


def _write(target: int, data: bytes) -> None:
    """Write all of it; what nobody takes any more is dropped, so that the groups can go on."""
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(target, data) :]


def _main(form: str) -> None:
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    orders = socket.socket(fileno=0)
    selector = selectors.DefaultSelector()
    selector.register(orders, selectors.EVENT_READ)
    while selector.get_map():
        for key, _ in selector.select():
            if key.fileobj is orders:
                message, pipes, _, _ = socket.recv_fds(orders, _MESSAGE, 2)
                if not message:
                    selector.unregister(orders)
                for target, pipe in zip((1, 2), pipes, strict=False):
                    source = _Source(**json.loads(message), target=target, as_json=form == "json")
                    selector.register(pipe, selectors.EVENT_READ, source)
                continue
            data = os.read(key.fd, _LINE)
            key.data.feed(data)
            if not data:
                selector.unregister(key.fd)
                os.close(key.fd)


if __name__ == "__main__":
    _main(sys.argv[1])
