"""Memoizer: finds the results of earlier calls in a :mod:`~spoolpool.client.result_cache`, and adds new ones.

::

    submit ---- key ----> find ---- hit ----> a finished future, and no task
                           | miss
                           v
                    a task with the key ---> outcome ---> keep, in the writer thread ---> the cache
"""

from __future__ import annotations

import logging
import os
import reprlib
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

from spoolpool.calls import pickling
from spoolpool.calls.fingerprint import fingerprint
from spoolpool.client.futures import PartFuture, TaskFuture, finish
from spoolpool.client.result_cache import Cache, Entry, key_of_user_key
from spoolpool.errors import SpoolpoolError
from spoolpool.format import envelope
from spoolpool.format.headers import OutcomeHeader, TaskHeader
from spoolpool.format.names import new_task_id
from spoolpool.protocol.overflow import is_short
from spoolpool.protocol.spool import Spool
from spoolpool.resources import Resources
from spoolpool.security.trust import Trust
from spoolpool.system import file_content, files
from spoolpool.system.user_code import describe_value

if TYPE_CHECKING:
    from spoolpool.client.session import SubmitterSession

log = logging.getLogger(__name__)

_MOST = 10_000  # descriptions of calls without a result yet


class Memoizer:
    """Memoizer of one executor's calls. The methods may be called from any thread.

    Only outcomes of the accounts in ``accept``, the ones that the executor trusts itself, are kept.
    """

    def __init__(self, cache: Cache, spool: Spool, accept: Trust, init: Callable[[], Any] | None = None) -> None:
        self._cache = cache
        self._spool = spool
        self._accept = accept
        self._init = None if init is None else fingerprint(init, (), {})  # its preset arguments change results
        self._descriptions: dict[str, tuple[str, str]] = {}  # by key: the user's cache_key, and the arguments as text
        self._writing: dict[str, Future[None]] = {}
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="spoolpool-cache")
        self._warned = False

    # -- finding

    def find(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        resources: Resources,
        session: SubmitterSession,
    ) -> tuple[str, TaskFuture | None]:
        """Return the key of a call, and a finished future if its result is in the cache, so that no task is needed.

        The key is empty if the call is not cached: if ``resources`` disable it, or if an argument is a future of a call
        without a key. Raises :class:`BadRequest` that names an argument without a fingerprint.
        """
        key = self._key(function, args, kwargs, resources)
        if (writing := self._writing.get(key)) is not None:  # so that a result that was delivered is found
            wait([writing])
        found = self._cache.find(key) if key else None
        if found is None:
            if key:
                if len(self._descriptions) > _MOST:  # most belong to calls that failed
                    self._descriptions.clear()
                self._descriptions[key] = resources.cache_key, _describe(args, kwargs)
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
        future = TaskFuture(session, header, submitted_by_this_run=True)
        finish(future, value=found[1])
        return key, future

    def _key(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], resources: Resources
    ) -> str:
        if not resources.cache:
            return ""
        if resources.cache_key:
            return key_of_user_key(resources.cache_key)
        unknown = False

        def stands_for(future: Future[Any]) -> object:
            nonlocal unknown
            whole, keys = (future.whole, future.keys) if isinstance(future, PartFuture) else (future, ())
            key = whole.header.cache if isinstance(whole, TaskFuture) else ""
            unknown = unknown or not key
            return key, keys

        # always with the number of ranks, since several make the result a list
        decisive = (resources.cores, self._init, resources.decisive() if resources.cache == "resources" else None)
        key = fingerprint(function, args, kwargs, resources=decisive, stands_for=stands_for)
        return "" if unknown else key

    # -- keeping

    def keep(self, header: TaskHeader, outcome: OutcomeHeader, path: str, label: str) -> None:
        """Keep the result of a task, read from its outcome at a path, since the delivered object may be changed.

        This opens the file, which the collector may remove afterwards; the writer thread does the rest. Errors are
        logged and not raised: without a cache entry the call only runs again.
        """
        try:
            fd = self._open(path, label)
        except (OSError, SpoolpoolError) as error:
            self._log_failure(error)
            return
        try:
            writing = self._writer.submit(self._write, fd, header, outcome, path, label)
        except RuntimeError:  # during the exit of the interpreter, which starts no more work in threads
            self._write(fd, header, outcome, path, label)
        else:
            self._writing[header.cache] = writing
            writing.add_done_callback(lambda _: self._writing.pop(header.cache, None))

    def _open(self, path: str, label: str) -> int:
        """Open the file with the content of an outcome."""
        fd = files.open_file(path)
        overflow = self._spool.overflow
        if overflow is None:
            return fd
        try:
            content = envelope.read(fd, file_content.size(fd), path)
            if not is_short(content):
                return os.dup(fd)
            return overflow.open_content(path, label, content)
        finally:
            files.close(fd)

    def _write(self, fd: int, header: TaskHeader, outcome: OutcomeHeader, path: str, label: str) -> None:
        given, arguments = self._descriptions.pop(header.cache, ("", ""))
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
            self._log_failure(error)
        finally:
            files.close(fd)

    def _log_failure(self, error: Exception) -> None:
        level = logging.INFO if self._warned else logging.WARNING
        self._warned = True
        log.log(level, "Cannot keep a result in the cache %s: %s", self._cache.directory, error)

    def close(self) -> None:
        """Wait until all given results are kept."""
        self._writer.shutdown()


def _describe(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Return the arguments as text of at most 200 characters."""
    parts = [describe_value(each, sys.maxsize, reprlib.repr) for each in args]
    parts += [f"{name}={describe_value(each, sys.maxsize, reprlib.repr)}" for name, each in kwargs.items()]
    text = ", ".join(parts)
    return text if len(text) <= 200 else f"{text[:197]}..."
