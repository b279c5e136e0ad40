"""Program that labels each line of the output of groups with group, node and rank. It imports nothing of the package.

It reads until the last group has closed its pipes, also if the supervisor is killed. Its memory is bounded by one
unfinished line per pipe, and the last errors of each group. While it cannot write, groups that print wait.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import selectors
import socket
import sys
from collections import deque
from collections.abc import Sequence

_LINE = 16384  # bytes after which a line is split
_MESSAGE = 1 << 20
_LAST_LINES = 60  # of the errors of a group: a traceback of each of some ranks
_LAST_WIDTH = 500  # characters of each of them
_MOST_GROUPS = 4096  # of which the last errors are kept


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
