"""Calls of MPI itself, in the only module that imports mpi4py, and not before it is used.

A serial worker never loads MPI: some (Debian's Open MPI under srun) end a process that is the only rank.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import sys
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from spoolpool import settings
from spoolpool.errors import LauncherError
from spoolpool.system.backoff import Backoff
from spoolpool.system.processes import hostname
from spoolpool.worker.mpi_messages import FIRST, Head

if TYPE_CHECKING:
    from mpi4py import MPI

    Comm = MPI.Comm
    Request = MPI.Request

log = logging.getLogger(__name__)

_LEAVING = (0.0001, 0.2)
_SWEEPING = (0.00002, 0.02)
_TAG = 32767
"""The greatest tag that each MPI has: a function is least likely to use it."""

_ONE_SIDED = re.compile(
    "I?(bcast|gatherv?|scatterv?|reduce|(ex)?scan)|I(barrier|all.*|reduce_scatter.*)", re.IGNORECASE
)
"""Collectives that a rank can leave although another rank never calls them: its message meets the next call there."""


def all_done(requests: Sequence[Request]) -> bool:
    """Return whether all these transfers are done; the test also makes MPI continue them."""
    from mpi4py import MPI

    return MPI.Request.Testall(requests)


def on_this_host(comm: Comm) -> Comm:
    """Return a communicator of the ranks of ``comm`` that share this host, in the same order."""
    from mpi4py import MPI

    return comm.Split_type(MPI.COMM_TYPE_SHARED, comm.Get_rank())


class CommunicatorCleaner:
    """Detects and removes the messages that functions leave behind in a communicator.

    ``comm`` is the communicator to give to functions; it has the name ``MPI.COMM_WORLD`` too.
    """

    comm: Any

    def __init__(self, comm: Comm) -> None:
        self._use(comm)
        self.renewals = 0
        """Number of communicators that replaced the first one."""
        self.clean = True
        """Whether the last :meth:`sweep` has removed all messages."""

    def _use(self, comm: Comm) -> None:
        """Let functions find this communicator, also under the name that all of them know."""
        from mpi4py import MPI

        self.comm = _watched(comm)
        self._sent: list[Request] = []
        MPI.COMM_WORLD = self.comm  # type: ignore[misc]

    def renew(self, comm: Comm) -> None:
        """Replace the communicator by a new one."""
        self._use(comm)
        self.renewals += 1
        self.clean = True

    def begin(self) -> None:
        """Prepare for a function; each rank is done with the one before."""
        all_done(self._sent)
        self.comm.called = 0

    def end(self, serial: int) -> None:
        """Send each rank a last message, after the function has ended on all ranks: before, it could receive this."""
        last, _ = Head(0, serial).message()
        self._sent = [self.comm.Isend(last, rank, _TAG) for rank in range(self.comm.Get_size())]

    @property
    def collectives(self) -> int:
        """Number that is the same on all ranks that have called the same one-sided collectives since :meth:`begin`."""
        called: int = self.comm.called
        return called

    def sweep(self, serial: int, seconds: float) -> None:
        """Remove the messages to this rank, up to the last message of each rank, which all send by :meth:`end`.

        MPI keeps the order of messages between two ranks, and shows arrived messages only little by little: without a
        last message nothing proves that there is no further one. If one has not come after ``seconds``, a receive that
        the function left open has taken it; then the communicator is not :attr:`clean`.
        """
        from mpi4py import MPI

        last, _ = Head(0, serial).message()
        status, backoff, end = MPI.Status(), Backoff(*_SWEEPING), time.monotonic() + seconds
        self.clean = False
        for rank in range(self.comm.Get_size()):
            text = bytearray()
            while text != last:
                found = self.comm.Improbe(rank, MPI.ANY_TAG, status)
                if found is None:
                    if time.monotonic() > end:
                        log.warning("A task left a receive open: its communicator is replaced.")
                        return
                    backoff.sleep()
                    continue
                text = bytearray(min(status.Get_count(MPI.BYTE), FIRST + 1))
                if len(text) <= FIRST:  # a larger one is not worth its transfer: now no receive can meet it
                    found.Recv([text, MPI.BYTE])
                if text != last:
                    log.warning("A task left a message from rank %d with tag %d behind.", rank, status.tag)
        self.clean = True


def _watched(comm: MPI.Comm) -> Any:
    """Return a communicator of the same group and context that records the calls of one-sided collectives."""
    from mpi4py import MPI

    class Watched(MPI.Intracomm):
        called = 0

    def recording(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def record_and_call(self: Watched, *args: Any, **kwargs: Any) -> Any:
            self.called = zlib.crc32(method.__name__.encode(), self.called)
            return method(self, *args, **kwargs)

        return record_and_call

    for name in filter(_ONE_SIDED.fullmatch, dir(MPI.Intracomm)):
        setattr(Watched, name, recording(getattr(MPI.Intracomm, name)))
    return Watched(comm)


class World:
    """All ranks that the launcher started, and the group of this rank among them."""

    def __init__(self, ranks: int | None, expected: int | None) -> None:
        """Split ``COMM_WORLD`` into groups of ``ranks`` (all of it if None).

        Raises :class:`LauncherError` if mpi4py cannot be loaded, and if the size of the world is not ``expected``: a
        launcher and an MPI that do not fit make many worlds of one rank, without an error.
        """
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:  # without mpi4py, or without a library of MPI
            raise LauncherError(
                f"mpi4py cannot be loaded by {sys.executable} on {hostname()} ({error}). Groups of several ranks need "
                "it: install it for this Python, with the site's MPI, or with one of its own (pip install "
                "'spoolpool[mpi]')."
            ) from error

        self._comm = MPI.COMM_WORLD.Dup()
        size = MPI.COMM_WORLD.Get_size()
        if expected is not None and size != expected:
            raise LauncherError(
                f"MPI sees {size} ranks where {expected} were started: the launcher and the MPI that mpi4py loads "
                f"({MPI.Get_library_version().splitlines()[0]}) do not fit. Use the mpiexec of that MPI "
                f"({settings.ENV_MPIEXEC}), under Slurm the right --mpi= (pmi2 for MPICH, pmix for Open "
                f"MPI; {settings.ENV_SRUN_MPI}), under Flux the right pmi ({settings.ENV_FLUX_PMI})."
            )
        ranks = ranks or size
        if size % ranks:
            raise LauncherError(
                f"{size} ranks cannot be split into groups of {ranks}. Start a multiple of {ranks} ranks."
            )
        self.split = ranks != size
        self.rank = MPI.COMM_WORLD.Get_rank()
        self.comm: MPI.Comm = MPI.COMM_WORLD
        if self.split:
            self.comm = MPI.COMM_WORLD.Split(self.rank // ranks, self.rank)

    def share(self, data: bytes) -> bytes:
        """Broadcast bytes from rank 0 to all ranks of the group."""
        shared: bytes = self.comm.bcast(data)
        return shared

    def leave(self, code: int) -> None:
        """Wait without spinning until each rank of each group is about to end, then finalize MPI.

        MPI may wait for ever for a message that a function sent and that was not received: then the process ends here,
        with ``code``.
        """
        from mpi4py import MPI

        backoff = Backoff(*_LEAVING)
        request = self._comm.Ibarrier()
        while not request.Test():
            backoff.sleep()
        limit = threading.Timer(settings.GRACE, os._exit, (code,))
        limit.daemon = True
        limit.start()
        try:
            MPI.Finalize()
        except MPI.Exception as error:  # for example, the buffer of such a message was freed
            log.info("MPI could not be finalized: %s", error)
            os._exit(code)
        limit.cancel()

    def abort(self, code: int) -> None:
        """End all ranks of all groups at once."""
        self._comm.Abort(code)
