"""Deferred calls: they wait in the submitter for futures among their arguments whose values are not in their spool.

::

    submit ---- pickle ----> deferred call ---- all awaited futures are done ----> task, with their values
                                  |
                                  +---- one of them failed, or the call was cancelled ----> no task

The awaited futures are of other executors, or of lists (``batched``). The call is pickled by ``submit``, with places
for their values, so that later changes of its arguments do not reach it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue

from spoolpool.client.futures import DeferredFuture, TaskFuture
from spoolpool.client.prepared_call import PreparedCall
from spoolpool.client.references import has_failed
from spoolpool.client.session import SubmitterSession

Find = Callable[[], "tuple[str, TaskFuture | None]"]
"""Function that returns the key of a call of a resumed session, and the future of that call if there is one."""


class DeferredCalls:
    """Deferred calls of a session, and the thread that submits them. The methods may be called from any thread.

    A thread of its own, because the awaited futures may be done in any thread, and a submission may wait for room.
    """

    def __init__(self, session: SubmitterSession, submit: Callable[[PreparedCall], TaskFuture]) -> None:
        self._session = session
        self._pending = session.pending
        self._submit = submit
        self._ready: SimpleQueue[tuple[DeferredFuture, PreparedCall, Find | None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def defer(self, call: PreparedCall, find: Find | None = None) -> DeferredFuture:
        """Return the future of a call that is submitted once the futures that it awaits are done.

        ``find`` is called before the submission. Raises the errors of a closed or broken session.
        """
        references = call.references
        call = call._replace(again=True)  # it is submitted also after the shutdown
        future = DeferredFuture(references.awaited, self._session)
        with self._pending.lock:
            self._session.expect(future)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="spoolpool-deferred", daemon=True)
                self._thread.start()
        future.add_done_callback(lambda _: self._drop(future, call))
        left = set(references.awaited)
        lock = threading.Lock()

        def count(awaited: Future[object]) -> None:
            with lock:
                left.discard(awaited)
                ready = not left or has_failed(awaited)
            if ready:
                self._ready.put((future, call, find))

        for awaited in references.awaited:
            awaited.add_done_callback(count)
        return future

    def _drop(self, future: DeferredFuture, call: PreparedCall) -> None:
        """Forget a call that ended, perhaps without a task."""
        if future.task_future is None:
            call.references.release()
        self._pending.remove_deferred(future)
        self._ready.put(None)

    def _run(self) -> None:
        while True:
            with self._pending.lock:
                if not self._pending.deferred():
                    self._thread = None
                    return
            ready = self._ready.get()
            if ready is not None:
                self._send(*ready)

    def _send(self, future: DeferredFuture, call: PreparedCall, find: Find | None) -> None:
        with future.lock:  # cancel() waits: it cancels the task, if there is one
            if future.done():
                return
            try:
                task = self._find_or_submit(call, find)
            except BaseException as error:  # noqa: BLE001  only the future can report it
                failure = error
            else:
                future.task_future, future.sources = task, (task,)
        if future.task_future is None:
            future.fail(failure)
            return
        self._pending.remove_deferred(future)  # last: the session ends once no call and no task is left
        task.add_done_callback(future.take)

    def _find_or_submit(self, call: PreparedCall, find: Find | None) -> TaskFuture:
        key, earlier = ("", None) if find is None else find()
        if earlier is not None:
            call.references.release()
            return earlier
        return self._submit(call._replace(buffers=call.references.fill(call.buffers), key=key))
