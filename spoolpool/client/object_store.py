"""Objects leased by a session: those it put, those of others it uses, and the large buffers that it shares unasked."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Container, Sequence

from spoolpool.calls.pickling import ObjectRef
from spoolpool.errors import BadRequest, NotTrusted
from spoolpool.format.envelope import Buffer
from spoolpool.format.names import ObjectLease, new_submitter_id
from spoolpool.protocol.objects import (
    acquire,
    is_stored,
    leases,
    object_file,
    object_id,
    put_object,
    release,
    remove_object,
)
from spoolpool.protocol.sessions import RENEWAL
from spoolpool.protocol.spool import Spool
from spoolpool.system import files

_RENEWAL = RENEWAL  # seconds between two leases of an object in use, so that 'spool gc' does not take it for old
_SEEN = 1024  # contents remembered as sent once


class SessionObjects:
    """Object leases of one process of a session, kept until :meth:`close`. Any thread may call any method.

    Each process of a session has a holder name of its own, so that none releases the leases of another.
    """

    def __init__(self, spool: Spool, session: str, run: str = "") -> None:
        """``run`` identifies this process among those of the session; a new one if it is empty."""
        self._spool = spool
        self._session = session
        self._holder = run or new_submitter_id()
        self._lock = threading.Lock()
        # by name of the object's file: time of the lease, by a clock that goes on while this host sleeps
        self._leased: dict[str, float] = {}
        self._seen: OrderedDict[str, None] = OrderedDict()

    def put(self, payload: Buffer, buffers: Sequence[Buffer]) -> str:
        """Store an object and lease it; returns the name of its file.

        Raises as :func:`spoolpool.protocol.objects.put_object`.
        """
        name = object_file(self._spool, object_id(payload, buffers))
        with self._lock:
            known = name in self._leased
            self._acquire(name)
            try:
                put_object(self._spool, payload, buffers, self._holder)
            except BaseException:
                if not known:
                    self._release(name)
                raise
        return name

    def acquire(self, ref: ObjectRef) -> None:
        """Lease an object to which an argument refers. Raises :class:`BadRequest` if it is not in this spool."""
        if ref.spool != self._spool.config.id:
            raise BadRequest(
                f"{ref} belongs to another spool. Call put() of an executor on {self._spool.path}, and pass the new "
                "reference."
            )
        with self._lock:
            if self._acquire(ref.name) and not is_stored(self._spool, ref.name):
                self._release(ref.name)
                raise BadRequest(f"{ref} was removed from {self._spool.path}: put the value again.")

    def share(self, buffers: list[Buffer], least: int) -> tuple[list[Buffer], dict[str, tuple[int, ...]]]:
        """Replace buffers of ``least`` bytes or more that were sent before by objects.

        Returns the remaining buffers, and the positions of the replaced ones by the names of their objects' files. A
        content that is sent for the first time is only remembered: most are never sent again.
        """
        if all(len(buffer) < least for buffer in buffers):
            return buffers, {}
        positions: dict[str, list[int]] = {}
        remaining = []
        for position, buffer in enumerate(buffers):
            name = self._put_if_seen(buffer) if len(buffer) >= least else ""
            if name:
                positions.setdefault(name, []).append(position)
            else:
                remaining.append(buffer)
        return remaining, {name: tuple(each) for name, each in positions.items()}

    def _put_if_seen(self, buffer: Buffer) -> str:
        """Store a buffer that was sent before; returns the name of its object's file, or "" for the first time."""
        digest = object_id(b"", [buffer])
        name = object_file(self._spool, digest)
        with self._lock:
            known = name in self._leased
            leased = known and (not self._acquire(name) or is_stored(self._spool, name))
            if not known and digest not in self._seen:
                self._seen[digest] = None
                if len(self._seen) > _SEEN:
                    self._seen.popitem(last=False)
                return ""
        return name if leased else self.put(b"", [buffer])

    def _acquire(self, name: str) -> bool:
        """Create or renew a lease if it is time; returns whether it did, and so whether the object may be gone."""
        now = time.time()
        before = self._leased.get(name)
        if before is not None and 0 <= now - before < _RENEWAL:
            return False
        with files.translate_errors(f"lease an object in {self._spool.path}"):
            acquire(self._spool, self._session, ObjectLease(name, self._holder))
        self._leased[name] = now
        return True

    def renew(self) -> None:
        """Renew all leases: a collector of garbage on another host sees no other sign of life of this process."""
        with self._lock:
            for name in self._leased:
                acquire(self._spool, self._session, ObjectLease(name, self._holder))

    def _release(self, name: str) -> None:
        self._leased.pop(name, None)
        with contextlib.suppress(OSError, NotTrusted):  # 'spool gc' removes the lease
            release(self._spool, self._session, ObjectLease(name, self._holder))

    def close(self, needed: Container[str] = ()) -> None:
        """Release the leases after the last outcome, and remove objects without further leases. May be repeated.

        The objects in ``needed``, of tasks that may run or be retried, are left to 'spool gc', with their leases. So
        are all objects if this account cannot see the leases of others.
        """
        with self._lock, contextlib.suppress(OSError, NotTrusted):
            mine = [name for name in self._leased if name not in needed]
            for name in mine:
                self._release(name)
            if mine and self._spool.sees_all:
                others = leases(self._spool)
                for name in mine:
                    if name not in others:
                        remove_object(self._spool, name)
