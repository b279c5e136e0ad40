"""What an executor knows of calls that were made before: their keys, and their results in a :mod:`cache`.

::

    submit ---- key ----> find ---- hit ----> a finished future, and no task
                           | miss
                           v
                    a task with its key ---> outcome ---> keep, in a thread of its own ---> the cache
"""

from __future__ import annotations

import logging
import reprlib
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

from spoolpool.calls import pickling
from spoolpool.calls.fingerprint import fingerprint
from spoolpool.client.futures import PartFuture, TaskFuture, finish
from spoolpool.client.result_cache import Cache, Entry, key_of
from spoolpool.errors import SpoolpoolError
from spoolpool.format.headers import OutcomeHeader, TaskHeader
from spoolpool.format.names import new_task_id
from spoolpool.protocol.spool import Spool
from spoolpool.resources import Resources
from spoolpool.security.trust import Trust
from spoolpool.system import files

if TYPE_CHECKING:
    from spoolpool.client.session import Session

log = logging.getLogger(__name__)

_MOST = 10_000  # notes


class Memoizer:
    """Finds and keeps the results of one executor's calls; may be used from several threads.

    ``accept`` says whose outcomes are worth keeping: those that the executor believes itself.
    """

    def __init__(self, cache: Cache, spool: Spool, accept: Trust, init: Callable[[], Any] | None = None) -> None:
        self._cache = cache
        self._spool = spool
        self._accept = accept
        self._init = None if init is None else fingerprint(init, (), {})  # what it presets changes results
        self._notes: dict[str, tuple[str, str]] = {}  # by key: the key that was given, and the arguments, for people
        self._writing: dict[str, Future[None]] = {}
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="spoolpool-cache")
        self._complained = False

    # -- finding

    def look(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        wishes: Resources,
        session: Session,
    ) -> tuple[str, TaskFuture | None]:
        """The key of a call, and a finished future if its result was kept; then no task is needed.

        The key is empty where the result is neither looked for nor to be kept: where ``wishes`` say so, and where a
        future is among the arguments of which nobody knows for which call it stands. Raises :class:`BadRequest` that
        names an argument without a fingerprint.
        """
        key = self._key(function, args, kwargs, wishes)
        if (writing := self._writing.get(key)) is not None:  # so that who has a result finds it
            wait([writing])
        found = self._cache.find(key) if key else None
        if found is None:
            if key:
                if len(self._notes) > _MOST:  # of calls that failed
                    self._notes.clear()
                self._notes[key] = wishes.cache_key, _told(args, kwargs)
            return key, None
        header = TaskHeader(
            task=new_task_id(),
            session=session.name,
            lane="",
            bucket="",
            name=pickling.label(function),
            submitted=time.time(),
            cache=key,
        )
        future = TaskFuture(session, header, here=True)
        finish(future, value=found[1])
        return key, future

    def _key(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], wishes: Resources
    ) -> str:
        if not wishes.cache:
            return ""
        if wishes.cache_key:
            return key_of(wishes.cache_key)
        unknown = False

        def stands_for(future: Future[Any]) -> object:
            nonlocal unknown
            whole, keys = (future.whole, future.keys) if isinstance(future, PartFuture) else (future, ())
            key = whole.header.cache if isinstance(whole, TaskFuture) else ""
            unknown = unknown or not key
            return key, keys

        # the ranks always count, since they make the result a list
        resources = (wishes.cores, self._init, wishes.decisive() if wishes.cache == "resources" else None)
        key = fingerprint(function, args, kwargs, resources=resources, stands_for=stands_for)
        return "" if unknown else key

    # -- keeping

    def keep(self, header: TaskHeader, outcome: OutcomeHeader, path: str, label: str) -> None:
        """Keep the result of a task: what its outcome at a path holds, before its future's owner may change it.

        It costs an open(2); the rest is done in another thread. Never raises: what finds no room is not kept, and
        nothing else is lost.
        """
        try:
            fd = files.open_file(path)
        except OSError as error:
            self._not_kept(error)
            return
        try:
            writing = self._writer.submit(self._write, fd, header, outcome, path, label)
        except RuntimeError:  # the interpreter ends, and takes no more for its threads
            self._write(fd, header, outcome, path, label)
        else:
            self._writing[header.cache] = writing
            writing.add_done_callback(lambda _: self._writing.pop(header.cache, None))

    def _write(self, fd: int, header: TaskHeader, outcome: OutcomeHeader, path: str, label: str) -> None:
        given, arguments = self._notes.pop(header.cache, ("", ""))
        try:
            content = self._spool.read(fd, self._accept.check(fd, path).st_size, path, label)
            entry = Entry(
                key=header.cache,
                name=header.name,
                arguments=arguments,
                given=given,
                created=time.time(),
                seconds=outcome.ended - outcome.started,
                ranks=outcome.ranks,
            )
            self._cache.keep(entry, content.payload, content.buffers)
        except (OSError, SpoolpoolError) as error:
            self._not_kept(error)
        finally:
            files.close(fd)

    def _not_kept(self, error: Exception) -> None:
        level = logging.INFO if self._complained else logging.WARNING
        self._complained = True
        log.log(level, "A result was not kept in the cache %s: %s", self._cache.directory, error)

    def close(self) -> None:
        """Wait until everything is kept that came."""
        self._writer.shutdown()


def _told(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Arguments for people."""
    told = [reprlib.repr(each) for each in args]
    told += [f"{name}={reprlib.repr(each)}" for name, each in kwargs.items()]
    text = ", ".join(told)
    return text if len(text) <= 200 else f"{text[:197]}..."
