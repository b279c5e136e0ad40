"""Calls of MPI itself, in the only module that imports mpi4py, and not before it is used.

A serial worker never loads MPI: some (Debian's Open MPI under srun) end a process that is the only rank.
"""

from __future__ import annotations

import contextlib
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
from spoolpool.calls.leftovers import Leftover, Severity
from spoolpool.errors import LauncherError
from spoolpool.system.backoff import Backoff
from spoolpool.system.patterns import lazy_pattern
from spoolpool.system.processes import hostname
from spoolpool.worker.mpi_messages import FIRST, Head

if TYPE_CHECKING:
    from mpi4py import MPI

    Comm = MPI.Comm
    Request = MPI.Request

log = logging.getLogger(__name__)

COMMUNICATORS = 256
"""Communicators that each task must be able to make."""
_FEW_COMMUNICATORS = 32
_TRIAL_SHARE = 10  # a trial may take this part of the time

_LEAVING = (0.0001, 0.2)
_PROBES = 20  # before a sleep: each makes MPI take in another message, and the awaited one may be there already
_SWEEPING = (0.00002, 0.02)
_TAG = 32767
"""The greatest tag that each MPI has: a function is least likely to use it."""

_ONE_SIDED = lazy_pattern(
    "I?(bcast|gatherv?|scatterv?|reduce|(ex)?scan)|I(barrier|all.*|reduce_scatter.*)", re.IGNORECASE
)
"""Collectives that a rank can leave although another rank never calls them: its message meets the next call there."""


def all_done(requests: Sequence[Request]) -> bool:
    """Return whether all these transfers are done; the tests also make MPI continue them.

    A test may take in no more than one arrived message, which can be one of a function.
    """
    from mpi4py import MPI

    return any(MPI.Request.Testall(requests) for _ in range(_PROBES))


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

        self._mpi: Any = MPI
        self.comm = _watched(comm)
        self._sent: list[Request] = []

    def renew(self, comm: Comm) -> None:
        """Replace the communicator by a new one."""
        self._use(comm)
        self.renewals += 1
        self.clean = True

    def begin(self) -> None:
        """Prepare for a function; each rank is done with the one before."""
        all_done(self._sent)
        mpi = self._mpi
        mpi.COMM_WORLD, mpi.Finalize = self.comm, _finalize  # again: a task may have assigned others
        self.comm.called = 0

    def end(self, serial: int) -> None:
        """Send each rank a last message, after the function has ended on all ranks: before, it could receive this."""
        last, _ = Head(0, serial).message()
        self._sent = [self.comm.Isend(last, rank, _TAG) for rank in range(self.comm.Get_size())]
        all_done(self._sent)  # MPI sends them now: this rank may sleep before its next call of MPI

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
        status, end = MPI.Status(), time.monotonic() + seconds
        self.clean = False
        for rank in range(self.comm.Get_size()):
            text = bytearray()
            while text != last:
                found = self._await_message(rank, status, end)
                if found is None:
                    log.warning("A task left a receive open: its communicator is replaced.")
                    return
                text = bytearray(min(status.Get_count(MPI.BYTE), FIRST + 1))
                if len(text) <= FIRST:  # a larger one is not worth its transfer: now no receive can meet it
                    found.Recv([text, MPI.BYTE])
                if text != last:
                    log.warning("A task left a message from rank %d with tag %d behind.", rank, status.tag)
        self.clean = True

    def _await_message(self, rank: int, status: Any, end: float) -> Any:
        """Return the next message of a rank; None if none has come at the monotonic time ``end``."""

        def probe() -> Any:
            return self.comm.Improbe(rank, self._mpi.ANY_TAG, status)

        for _ in range(_PROBES):
            if found := probe():
                return found
        backoff = Backoff(*_SWEEPING)
        while (found := probe()) is None and time.monotonic() <= end:
            backoff.sleep()
        return found


def _watched(comm: MPI.Comm) -> Any:
    """Return a communicator of the same group and context that records the calls of one-sided collectives.

    Like ``MPI.COMM_WORLD`` it cannot be freed.
    """
    from mpi4py import MPI

    class Watched(MPI.Intracomm):
        called = 0

        def Free(self) -> None:  # noqa: N802  as mpi4py has it
            if self is watched:
                raise MPI.Exception(MPI.ERR_COMM)
            super().Free()

        def Disconnect(self) -> None:  # noqa: N802
            if self is watched:
                raise MPI.Exception(MPI.ERR_COMM)
            super().Disconnect()

    def recording(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def record_and_call(self: Watched, *args: Any, **kwargs: Any) -> Any:
            self.called = zlib.crc32(method.__name__.encode(), self.called)
            return method(self, *args, **kwargs)

        return record_and_call

    for name in filter(_ONE_SIDED.fullmatch, dir(MPI.Intracomm)):
        setattr(Watched, name, recording(getattr(MPI.Intracomm, name)))
    watched = Watched(comm)
    return watched


def _finalize() -> None:
    """Replace ``MPI.Finalize`` for functions: the ranks need MPI for the outcome, and for the next tasks."""
    log.info("A task has called MPI.Finalize. It was ignored: the group needs MPI.")


class CommunicatorSupply:
    """Observer of the communicators that this process can still make: MPICH has 2048 in all.

    No call of MPI tells their number. The handle of a new communicator is the same as before if no other was made
    meanwhile; otherwise it is tried how many can be made, which takes some milliseconds.
    """

    def __init__(self) -> None:
        self._handle: int | None = None
        self._due = 0.0
        self._found: list[Leftover] = []
        self.find()

    @staticmethod
    def _mpi() -> Any:
        """Return the module of MPI if it is imported and initialized."""
        mpi: Any = sys.modules.get("mpi4py.MPI")
        return mpi if mpi is not None and hasattr(mpi, "COMM_SELF") and mpi.Is_initialized() else None

    def prepare(self) -> None:
        """Let MPI raise exceptions, in case that a task has changed that."""
        mpi = self._mpi()
        if mpi is not None and not mpi.Is_finalized():
            for comm in (mpi.COMM_WORLD, mpi.COMM_SELF):
                with contextlib.suppress(Exception):  # a task may have assigned anything
                    comm.Set_errhandler(mpi.ERRORS_RETURN)

    def is_suspicious(self) -> bool:
        """Return whether tasks may have left communicators, or have finalized MPI."""
        mpi = self._mpi()
        if mpi is None:
            return False
        if mpi.Is_finalized():
            return True
        try:
            comm = mpi.COMM_SELF.Dup()
        except mpi.Exception:
            return True
        handle = comm.py2f()
        comm.Free()
        return bool(handle != self._handle and time.monotonic() >= self._due)

    def find(self) -> list[Leftover]:
        """Return whether tasks have left too few communicators, or have finalized MPI."""
        mpi = self._mpi()
        if mpi is None:
            return []
        if mpi.Is_finalized():
            return [Leftover("MPI", "MPI finalized", Severity.URGENT)]
        made: list[Comm] = []
        try:
            mpi.COMM_SELF.Set_errhandler(mpi.ERRORS_RETURN)
            made.append(mpi.COMM_SELF.Dup())
            handle = made[0].py2f()
            if handle != self._handle and time.monotonic() >= self._due:
                self._handle = handle
                self._try(made)
        except mpi.Exception as error:
            log.debug("No more communicators: %s", error)
            severity = Severity.LEFTOVER if len(made) >= _FEW_COMMUNICATORS else Severity.URGENT
            self._found = [Leftover("communicators", f"fewer than {len(made) + 1} free communicators", severity)]
        finally:
            for comm in reversed(made):  # in this order, the next one gets the handle of the first
                comm.Free()
        return self._found

    def _try(self, made: list[Comm]) -> None:
        begun = time.monotonic()
        while len(made) < COMMUNICATORS:
            made.append(made[0].Dup())
        self._found = []
        now = time.monotonic()
        self._due = now + _TRIAL_SHARE * (now - begun)


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
        self._finalize = MPI.Finalize  # functions find another one
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
            self._finalize()
        except MPI.Exception as error:  # for example, the buffer of such a message was freed
            log.info("MPI could not be finalized: %s", error)
            os._exit(code)
        limit.cancel()

    def abort(self, code: int) -> None:
        """End all ranks of all groups at once."""
        self._comm.Abort(code)
