"""How ranks on one host wake each other: a FIFO for each, because a rank that waits in MPI burns a core.

A rank that has sent a message writes a byte into the FIFO of the rank that waits for it. The byte says nothing
but "look now": whoever waits looks by itself too, in a slow rhythm, and so nothing depends on a byte.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import tempfile
from typing import Any

from spoolpool.system.backoff import Backoff


class Wakeup:
    """The FIFOs of one host, whose lowest rank (the leader) and the others wake each other.

    Made by all ranks of ``node`` together, the communicator of those ranks of ``group`` that share this host.
    Where FIFOs cannot be made or are not seen by all (containers with a ``/tmp`` each), there is no waking.
    """

    def __init__(self, node: Any, group: Any) -> None:
        ranks = node.allgather(group.Get_rank())
        mine = node.Get_rank()
        directory = None
        if mine == 0:
            with contextlib.suppress(OSError):  # no room: then without
                directory = tempfile.mkdtemp(prefix="spoolpool-")
                for number in range(len(ranks)):
                    os.mkfifo(f"{directory}/{number}", 0o600)
        directory = node.bcast(directory, root=0)
        opened: dict[int, int] = {}
        if directory is not None:
            with contextlib.suppress(OSError):
                for number in range(len(ranks)) if mine == 0 else (mine, 0):
                    # for reading as well: so no end of it is ever missing, and no open waits
                    opened[number] = os.open(f"{directory}/{number}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        everybody = all(node.allgather(mine in opened and (mine > 0 or len(opened) == len(ranks))))
        if mine == 0 and directory is not None:
            shutil.rmtree(directory, ignore_errors=True)
        self._fd = opened.pop(mine, -1)
        self._poll = select.poll()
        self._others = {ranks[number]: fd for number, fd in opened.items()}
        if not everybody:
            self.close()
        elif self._fd >= 0:
            self._poll.register(self._fd, select.POLLIN)
        self.leads = mine == 0
        """Whether this is the lowest rank of its host."""
        self.whole = everybody and len(ranks) == group.Get_size()
        """Whether all ranks of the group are on this host and can be woken."""
        self.woken = everybody and (self.whole or mine > 0)
        """Whether this rank is woken by everybody from whom it awaits something, or by its leader."""

    def wake(self, rank: int) -> None:
        """Wake a rank, if it is one of this host's that can be woken from here."""
        fd = self._others.get(rank)
        if fd is not None:
            with contextlib.suppress(OSError):  # full: it wakes anyway; closed by a task: it looks by itself
                os.write(fd, b"\0")

    def wake_all(self) -> None:
        """Wake every rank that can be woken from here."""
        for rank in self._others:
            self.wake(rank)

    def wait(self, backoff: Backoff) -> None:
        """Wait until woken, at most for the next step of ``rhythm``, which starts again after a waking."""
        if self._fd < 0 or not self.woken:
            backoff.sleep()
        elif self._poll.poll(backoff.next() * 1000):
            try:
                os.read(self._fd, 65536)
                backoff.reset()
            except OSError:  # a task closed all descriptors that it found
                self._fd = -1

    def close(self) -> None:
        """Give the descriptors back; harmless when repeated."""
        for fd in (self._fd, *self._others.values()):
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)
        self._fd = -1
        self._others = {}
