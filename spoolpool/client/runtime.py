"""What an executor has at work, and leaves behind when it is dropped: its session, its groups, and who watches them."""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from typing import TYPE_CHECKING

from spoolpool.calls import pickling
from spoolpool.calls.pickling import ObjectRef
from spoolpool.client.resume import SessionReplay
from spoolpool.client.session import Session
from spoolpool.errors import BadRequest, BrokenSpool
from spoolpool.format.names import parse_lane
from spoolpool.pool.batch_pool import BatchPool
from spoolpool.pool.pool import GroupPool
from spoolpool.protocol.spool import Spool
from spoolpool.resources import Shape
from spoolpool.security.trust import Trust
from spoolpool.system import files
from spoolpool.system.backoff import Backoff

if TYPE_CHECKING:
    from spoolpool.client.memoize import Memoizer
    from spoolpool.client.output_stream import OutputStream

_SPARE_SECONDS = 30.0  # after which a group of a shape that one call asked for ends


class ExecutorRuntime:
    """The session, the pool and the thread that watches it, until the last task is done.

    It does not refer to the executor, so that one that nobody holds is collected.
    """

    def __init__(
        self,
        spool: Spool,
        name: str,
        accept: Trust,
        pool: GroupPool | None,
        jobs: BatchPool | None,
        *,
        cores: int,
        temporary: bool,
        stream: bool = False,
        submitter: str = "",
        wait_for_room: bool = False,
        keeps: bool = False,
    ) -> None:
        self.spool = spool
        self.pool = pool
        self.jobs = jobs
        self.init = ""
        """Object id of the ``init_function``."""
        self.cores = cores
        self._temporary = temporary
        self._pid = os.getpid()
        self.accept = accept
        self.session = Session(
            spool, name, accept=accept, submitter=submitter, wait_for_room=wait_for_room, keeps=keeps
        )
        self._closed = False
        self._awake: SimpleQueue[None] = SimpleQueue()  # its put may be called while garbage is collected
        self._thread: threading.Thread | None = None
        self.stream: OutputStream | None = None
        self.memo: Memoizer | None = None
        self.resumption: SessionReplay | None = None
        self.before_end: Callable[[], None] | None = None
        """Called before no more calls are taken, to submit what was put off."""
        _at_work.add(self.session)
        if stream:
            from spoolpool.client.output_stream import OutputStream

            self.stream = OutputStream(self.session, accept)
            _at_work.add(self)
        if pool is not None or jobs is not None:
            self._thread = threading.Thread(target=self._watch, name=f"spoolpool-pool-{name}", daemon=True)
            _at_work.add(self)
            self._thread.start()

    def _watch(self) -> None:
        """Look after the groups until the executor is closed and its tasks are done."""
        backoff = Backoff(0.01, 0.5)
        try:
            while not (self._closed and self.session.wait(0)):
                if self._look_after():
                    backoff.reset()
                if self._closed:
                    self.session.wait(backoff.next())
                else:
                    with contextlib.suppress(queue.Empty):
                        self._awake.get(timeout=backoff.next())
        except BaseException as error:  # noqa: BLE001  whatever it is, nobody may wait in silence
            self.session.fail(BrokenSpool(f"The thread that looks after the groups ended: {error}"))
        finally:
            if self.pool is not None:
                self.pool.stop()
            if self.jobs is not None:
                self.jobs.stop()
            self.session.join()
            if self.stream is not None:
                self.stream.close()
                self.stream.join()
            if self._temporary:
                files.remove_tree(self.spool.path)

    def _look_after(self) -> bool:
        """Look after the groups once; whether something happened."""
        # for what is not to start yet no groups need wait; of those that do, any sees when it is time
        now = time.time()
        lanes = {future.header.lane for future in self.session.pending() if future.header.not_before <= now}
        if self.jobs is not None:
            self.jobs.step(lanes)
            if self.jobs.broken and lanes:
                self.session.fail(BrokenSpool(self.jobs.broken))
        if self.pool is None:
            return False
        happened = self.pool.step()
        for lane in lanes:
            shape = _shape(lane)
            if reason := self.pool.broken.get(shape):
                self.session.fail(BrokenSpool(reason), lane)
            else:  # a group that ended as idle may have missed the task that came at that moment
                self._make_room(shape)
        return happened

    def put(self, value: object) -> ObjectRef:
        """Store a value as an object that the session holds."""
        payload, buffers = pickling.dumps(value, _refuse)
        name = self.session.holdings.put(payload, buffers)
        return ObjectRef(self.spool.config.id, name, len(payload) + sum(map(len, buffers)))

    def prepare(self, shape: Shape) -> None:
        """Have groups for a call; raises :class:`BrokenSpool` where none of its shape can be started."""
        if self.jobs is not None and self.jobs.broken:
            raise BrokenSpool(f"Nothing can be submitted: {self.jobs.broken}")
        if self.pool is not None:
            if reason := self.pool.broken.get(shape):
                raise BrokenSpool(f"Nothing can be submitted: {reason}")
            self._make_room(shape)

    def _make_room(self, shape: Shape) -> None:
        """Have groups of a shape that a call asks for, as many as the executor's cores hold; they end when idle."""
        if self.pool is not None and self.pool.count(shape) == 0:
            arguments = ["--idle-timeout", str(_SPARE_SECONDS)]
            self.pool.resize(shape, max(1, self.cores // shape.cores), arguments=arguments)

    def put_off(self, submit: Callable[[], None]) -> None:
        """Some calls are submitted later than they come; ``submit`` is called when it is time for all of them."""
        self.before_end = submit
        _at_work.add(self)

    def remember(self, memo: Memoizer) -> None:
        """Look there for the results of calls, and keep there what comes."""
        self.memo = memo
        self.session.on_result(memo.keep)

    def close(self) -> None:
        """Let everything end once nothing is pending; harmless when repeated, and in a forked child."""
        if os.getpid() == self._pid:
            if self.before_end is not None:
                self.before_end()
            self.session.close()  # first: what was submitted before is awaited, and nothing comes after
            self._closed = True
            self._awake.put(None)
            if self.stream is not None:
                self.stream.close()

    def join(self) -> None:
        """Wait until everything ended, after :meth:`close`; not in a callback, for which the threads wait."""
        if self.session.collects_here() or self._thread is threading.current_thread():
            return
        self.session.join()
        if self.stream is not None:
            self.stream.join()
        if self._thread is not None:
            self._thread.join()
        if self.memo is not None:
            self.memo.close()


def _refuse(reference: object) -> object:
    what = "a reference" if isinstance(reference, ObjectRef) else "a future"
    raise BadRequest(f"There is {what} in what is to be put: give it to the call as an argument of its own.")


def _shape(lane: str) -> Shape:
    wanted = parse_lane(lane)
    assert wanted is not None  # this process made it
    return Shape(ranks=wanted.ranks, threads=wanted.threads, gpus=wanted.gpus)


_at_work: weakref.WeakSet[ExecutorRuntime | Session] = weakref.WeakSet()
"""What has threads in this process, which keep it alive also where its executor is gone: the exit waits for them."""


def _at_exit() -> None:
    working = sorted(_at_work, key=lambda each: isinstance(each, Session))  # a core submits what was put off
    for each in working:
        if isinstance(each, Session) and each.may_be_left:
            each.detach()
        else:
            each.close()
    for each in working:
        each.join()


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_at_work.clear)
