"""The objects that one session holds: those that it put, those of others that it uses, and what it shares by itself."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence

from spoolpool.calls.pickling import ObjectRef
from spoolpool.errors import BadRequest, NotTrusted
from spoolpool.format.envelope import Buffer
from spoolpool.format.names import ObjectLease, new_submitter_id
from spoolpool.protocol.objects import (
    acquire,
    leases,
    named_by_tasks,
    object_file,
    object_id,
    put_object,
    release,
    remove_object,
)
from spoolpool.protocol.spool import Spool
from spoolpool.system import files

_AGAIN = 6 * 3600.0  # seconds after which an object that is still used is held anew, so that it does not look forgotten
_SEEN = 1024  # contents of which it is remembered that they were sent once


class SessionObjects:
    """What one life of a session holds. All methods may be called from any thread.

    What it holds stays until :meth:`close`. Each life has a name of its own in this, so that none takes away what
    another one relies on.
    """

    def __init__(self, spool: Spool, session: str) -> None:
        self._spool = spool
        self._session = session
        self._life = new_submitter_id()
        self._lock = threading.Lock()
        self._held: dict[str, float] = {}
        self._seen: OrderedDict[str, None] = OrderedDict()

    def put(self, payload: Buffer, buffers: Sequence[Buffer]) -> str:
        """Store an object and hold it; returns the name of its file.

        Raises as :func:`spoolpool.protocol.objects.put_object`.
        """
        name = object_file(self._spool, object_id(payload, buffers))
        with self._lock:
            known = name in self._held
            self._hold(name)
            try:
                put_object(self._spool, payload, buffers, self._life)
            except BaseException:
                if not known:
                    self._let_go(name)
                raise
        return name

    def take(self, ref: ObjectRef) -> None:
        """Hold an object to which an argument refers; raises :class:`BadRequest` where it is not in this spool."""
        if ref.spool != self._spool.config.id:
            raise BadRequest(
                f"{ref} is of another spool: put the value into {self._spool.path}, and give that reference."
            )
        with self._lock:
            known = ref.name in self._held
            self._hold(ref.name)
            if not known and not files.exists(f"{self._spool.layout.objects}/{ref.name}"):
                self._let_go(ref.name)
                raise BadRequest(f"{ref} is not in {self._spool.path} any more: put the value there again.")

    def share(self, buffers: list[Buffer], least: int) -> tuple[list[Buffer], dict[str, tuple[int, ...]]]:
        """Let large buffers that were sent before stand in objects.

        Returns what is still to be sent, and the places of those that are not, by the names of their objects' files.
        The first time a content is only remembered: most are never sent again.
        """
        if all(len(buffer) < least for buffer in buffers):
            return buffers, {}
        places: dict[str, list[int]] = {}
        left = []
        for place, buffer in enumerate(buffers):
            name = self._shared(buffer) if len(buffer) >= least else ""
            if name:
                places.setdefault(name, []).append(place)
            else:
                left.append(buffer)
        return left, {name: tuple(each) for name, each in places.items()}

    def _shared(self, buffer: Buffer) -> str:
        """The name of the object's file that holds this buffer; empty if it is sent for the first time."""
        digest = object_id(b"", [buffer])
        name = object_file(self._spool, digest)
        with self._lock:
            held = name in self._held
            if held:
                self._hold(name)
            elif digest not in self._seen:
                self._seen[digest] = None
                if len(self._seen) > _SEEN:
                    self._seen.popitem(last=False)
                return ""
        return name if held else self.put(b"", [buffer])

    def _hold(self, name: str) -> None:
        now = time.monotonic()
        if now - self._held.get(name, -_AGAIN) >= _AGAIN:
            with files.translate_errors(f"hold an object in {self._spool.path}"):
                acquire(self._spool, self._session, ObjectLease(name, self._life))
            self._held[name] = now

    def _let_go(self, name: str) -> None:
        self._held.pop(name, None)
        with contextlib.suppress(OSError, NotTrusted):  # 'spool gc' finds it
            release(self._spool, self._session, ObjectLease(name, self._life))

    def close(self, *, lost: bool) -> None:
        """Hold nothing any more, once every task has its outcome; what nobody else holds goes. Harmless when repeated.

        What a task in ``failed/`` needs for a retry is left to 'spool gc'; ``lost`` says whether there may be one, for
        an account that may not look. Such a one does not know either who else holds what it does, and leaves that.
        """
        with self._lock, contextlib.suppress(OSError, NotTrusted):
            sees_all = self._spool.sees_all
            if not self._held or (lost and not sees_all):
                return
            kept = named_by_tasks(self._spool, [self._spool.layout.failed]) if sees_all else set()
            mine = self._held.keys() - kept
            for name in mine:
                self._let_go(name)
            for name in mine - leases(self._spool).keys() if sees_all else ():
                remove_object(self._spool, name)
