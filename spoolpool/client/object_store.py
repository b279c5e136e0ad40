"""Objects leased by a session: those it put, those of others it uses, and the large buffers that it shares unasked."""

from __future__ import annotations

import contextlib
import struct
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Container, Iterable, Sequence

from spoolpool.calls.pickling import ObjectRef
from spoolpool.errors import BadRequest, NotTrusted
from spoolpool.format.envelope import Buffer
from spoolpool.format.names import ObjectLease, new_submitter_id
from spoolpool.protocol.object_leases import acquire, leases, release
from spoolpool.protocol.object_removal import is_stored, remove_object, remove_objects
from spoolpool.protocol.objects import object_file, object_id, put_object
from spoolpool.protocol.sessions import RENEWAL
from spoolpool.protocol.spool import Spool
from spoolpool.system import files

_RENEWAL = RENEWAL  # seconds between two leases of an object in use, so that 'spool gc' does not take it for old
_SEEN = 1024  # contents remembered as sent once
_AT_ONCE = 1 << 24  # bytes from which a content becomes an object when it is sent first
_UNUSED = 1 << 28  # bytes of shared objects that are kept although no pending task needs them


class SessionObjects:
    """Object leases of one process of a session, kept until :meth:`close`. Any thread may call any method.

    Each process of a session has a holder name of its own, so that none releases the leases of another.
    """

    def __init__(
        self, spool: Spool, session: str, run: str = "", *, keeps: bool = False, needed: Container[str] = ()
    ) -> None:
        """``run`` identifies this process among those of the session; a new one if it is empty.

        ``keeps`` says that the session has tasks which may outlive this process. ``needed`` has the objects of tasks
        that ended here and may still run, by the names of their files.
        """
        self._spool = spool
        self._session = session
        self._holder = run or new_submitter_id()
        self._needed = needed
        self._lock = threading.Lock()
        # by name of the object's file: time of the lease, by a clock that goes on while this host sleeps
        self._leased: dict[str, float] = {}
        self._seen: OrderedDict[str, None] = OrderedDict()
        # otherwise only 'spool gc' could remove a shared object, so that a content is not shared before its second use
        self._removes = spool.sees_all and not keeps
        self._requested: set[str] = set()  # objects put or named by the user, by the names of their files
        self._shared: OrderedDict[str, int] = OrderedDict()  # the other ones, last used last, with their sizes
        self._uses: Counter[str] = Counter()  # pending tasks by the names of shared objects
        self._ended: deque[str] = deque()  # uses that have ended; without a lock, for callbacks of futures

    def put(self, payload: Buffer, buffers: Sequence[Buffer]) -> str:
        """Store an object and lease it; returns the name of its file.

        Raises as :func:`spoolpool.protocol.objects.put_object`.
        """
        name = object_file(self._spool, object_id(payload, buffers))
        with self._lock:
            self._put(name, payload, buffers)
            self._request(name)
        return name

    def _request(self, name: str) -> None:
        """Note that the user has a reference to an object, which then stays to the end of the session."""
        self._requested.add(name)
        self._shared.pop(name, None)

    def _put(self, name: str, payload: Buffer, buffers: Sequence[Buffer]) -> None:
        known = name in self._leased
        self._acquire(name)
        try:
            put_object(self._spool, payload, buffers, self._holder, name.partition("@")[0])
        except BaseException:
            if not known:
                self._release(name)
            raise

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
            self._request(ref.name)

    def share(self, buffers: list[Buffer], least: int) -> tuple[list[Buffer], dict[str, tuple[int, ...]]]:
        """Replace buffers by objects: large ones at once, those of ``least`` bytes or more if they were sent before.

        Smaller buffers of a call are replaced together. Returns the remaining buffers, and the positions of the
        replaced ones by the names of their objects' files. Call :meth:`end_uses` with the names when the call has
        ended. Objects are found by their content, so that an array may be changed between two calls.
        """
        if not buffers:  # most calls
            return buffers, {}
        small = tuple(position for position, buffer in enumerate(buffers) if len(buffer) < least)
        together = len(small) > 1 and sum(len(buffers[position]) for position in small) >= least
        if len(small) == len(buffers) and not together:
            return buffers, {}
        groups = [(position,) for position in range(len(buffers)) if len(buffers[position]) >= least]
        positions: dict[str, tuple[int, ...]] = {}
        try:
            for group in [*groups, small] if together else groups:
                name = self._use([buffers[position] for position in group])
                if name:
                    if name in positions:  # one use for the call
                        self._ended.append(name)
                    positions[name] = (*positions.get(name, ()), *group)
        except BaseException:
            self.end_uses(positions)
            raise
        replaced = {position for group in positions.values() for position in group}
        return [buffer for position, buffer in enumerate(buffers) if position not in replaced], positions

    def _use(self, buffers: Sequence[Buffer]) -> str:
        """Store buffers as an object for one call; returns the name of its file, or "" if they are to be sent."""
        lengths = [len(buffer) for buffer in buffers]
        # the lengths are part of the content: other buffers may have the same bytes
        payload = struct.pack(f"<{len(lengths)}Q", *lengths) if len(lengths) > 1 else b""
        digest = object_id(payload, buffers)
        name = object_file(self._spool, digest)
        with self._lock:
            known = name in self._leased
            at_once = self._removes and sum(lengths) >= _AT_ONCE
            if not (known or at_once) and digest not in self._seen:  # most are never sent again
                self._seen[digest] = None
                if len(self._seen) > _SEEN:
                    self._seen.popitem(last=False)
                return ""
            if not known:
                self._remove_unused(_UNUSED - sum(lengths))
            if not known or (self._acquire(name) and not is_stored(self._spool, name)):
                self._put(name, payload, buffers)
            if name not in self._requested:
                self._shared[name] = sum(lengths)
                self._shared.move_to_end(name)
            self._uses[name] += 1
        return name

    def end_uses(self, names: Iterable[str]) -> None:
        """Note that a call has ended that used shared objects. For callbacks: it acquires no lock, and does no I/O."""
        self._ended.extend(names)

    def remove_unused(self) -> None:
        """Remove shared objects that no pending task needs if there are many bytes of them, but the last one.

        For the thread that notes the tasks that ended and may still run: before that, their objects seem unused.
        """
        if not self._ended:
            return
        with self._lock:
            while self._ended:
                self._uses[name := self._ended.popleft()] -= 1
                if not self._uses[name]:
                    del self._uses[name]
            self._remove_unused(_UNUSED, spare_last=True)

    def _remove_unused(self, most: int, *, spare_last: bool = False) -> None:
        """Remove shared objects without a use if they have more than ``most`` bytes. Costly: it lists all leases."""
        if not self._removes:
            return
        unused = [name for name in self._shared if name not in self._uses and name not in self._needed]
        if sum(self._shared[name] for name in unused) <= most:
            return
        if spare_last and unused[-1] == next(reversed(self._shared)):  # often used by the next call too
            del unused[-1]
        for name in unused:
            del self._shared[name]
            self._release(name)
        with contextlib.suppress(OSError, NotTrusted):
            remove_objects(self._spool, dict.fromkeys(unused), lambda: leases(self._spool, refresh=True))

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

    def close(self) -> None:
        """Release the leases after the last outcome, and remove objects without further leases. May be repeated.

        The objects of tasks that may run or be retried are left to 'spool gc', with their leases. So are all objects if
        this account cannot see the leases of others.
        """
        with self._lock, contextlib.suppress(OSError, NotTrusted):
            mine = [name for name in self._leased if name not in self._needed]
            for name in mine:
                self._release(name)
            if mine and self._spool.sees_all:
                others = leases(self._spool)
                for name in mine:
                    if name not in others:
                        remove_object(self._spool, name)
