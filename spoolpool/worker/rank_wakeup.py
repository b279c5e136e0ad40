"""Wake-up of ranks on one host by a FIFO for each rank, because a rank that waits in MPI burns a core.

A rank that has sent a message writes a byte into the FIFO of the receiver. The byte only means "check now": the
receiver also checks without it, with a growing backoff, so that a lost byte costs time and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import tempfile
from typing import Any

from spoolpool.format.temporary_names import new_temporary_name
from spoolpool.system.backoff import Backoff


class Wakeup:
    """FIFOs of one host, by which its lowest rank (the leader) and its other ranks wake each other.

    All ranks of ``node`` make it together; that is the communicator of the ranks of ``group`` that share this host. If
    the FIFOs cannot be made, or not all ranks see them (containers with a ``/tmp`` each), there is no wake-up.
    """

    def __init__(self, node: Any, group: Any) -> None:
        ranks = node.allgather(group.Get_rank())
        mine = node.Get_rank()
        directory = None
        if mine == 0:
            with contextlib.suppress(OSError):  # the disk is full: no wake-up
                directory = f"{tempfile.gettempdir()}/{new_temporary_name('ranks', os.urandom(8).hex())}"
                os.mkdir(directory, 0o700)
                for number in range(len(ranks)):
                    os.mkfifo(f"{directory}/{number}", 0o600)
        directory = node.bcast(directory, root=0)
        opened: dict[int, int] = {}
        if directory is not None:
            with contextlib.suppress(OSError):
                for number in range(len(ranks)) if mine == 0 else (mine, 0):
                    # for reading as well: then the other end is never missing, and the open does not wait
                    opened[number] = os.open(f"{directory}/{number}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        complete = all(node.allgather(mine in opened and (mine > 0 or len(opened) == len(ranks))))
        if mine == 0 and directory is not None:
            shutil.rmtree(directory, ignore_errors=True)
        self._fd = opened.pop(mine, -1)
        self._poll = select.poll()
        self._others = {ranks[number]: fd for number, fd in opened.items()}
        if not complete:
            self.close()
        elif self._fd >= 0:
            self._poll.register(self._fd, select.POLLIN)
        self.leads = mine == 0
        """Whether this is the lowest rank of its host."""
        on_one_host = len(ranks) == group.Get_size()
        self.woken = complete and (on_one_host or mine > 0)
        """Whether this rank is woken by each rank from which it awaits messages, or by its leader."""

    def wake(self, rank: int) -> None:
        """Wake a rank, if it is on this host and can be woken from here."""
        fd = self._others.get(rank)
        if fd is not None:
            with contextlib.suppress(OSError):  # full: it wakes anyway; closed by a task: no wake-up
                os.write(fd, b"\0")

    def wake_all(self) -> None:
        """Wake each rank that can be woken from here."""
        for rank in self._others:
            self.wake(rank)

    def wait(self, backoff: Backoff) -> None:
        """Wait until woken, at most for the next step of ``backoff``, which is reset by a wake-up."""
        if self._fd < 0 or not self.woken:
            backoff.sleep()
        elif self._poll.poll(backoff.next() * 1000):
            try:
                os.read(self._fd, 65536)
                backoff.reset()
            except OSError:  # a task closed all descriptors that it found
                self._fd = -1

    def close(self) -> None:
        """Close the descriptors; harmless when repeated."""
        for fd in (self._fd, *self._others.values()):
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)
        self._fd = -1
        self._others = {}
