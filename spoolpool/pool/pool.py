"""Start worker groups, watch them, and replace those that died."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from spoolpool import settings
from spoolpool.errors import LauncherError, NotASpool
from spoolpool.format.names import new_worker_id
from spoolpool.launch.allocation import Capacity
from spoolpool.launch.launcher import GroupProcess, Launcher, LaunchOptions
from spoolpool.pool.slot import Slot
from spoolpool.protocol import registration
from spoolpool.protocol.recovery import Recovery
from spoolpool.protocol.spool import Spool
from spoolpool.resources import Shape
from spoolpool.system import files
from spoolpool.system.backoff import Backoff

log = logging.getLogger(__name__)

_STOP_SECONDS = 10.0
_START_SECONDS = 60.0  # for groups that are still starting at the end; longer than NFS hides a new name from a look-up


class GroupPool:
    """Groups of one spool, started through one launcher. One thread at a time may call :meth:`step`.

    ``arguments`` go to every worker; after ``ends``, by this process's monotonic clock, none begins a task. The
    groups work for this process: they end when it has died. With a ``room``, each group gets a place in it, and a node
    that kills all its groups is given up.
    """

    def __init__(
        self,
        spool: Spool,
        launcher: Launcher,
        *,
        arguments: Sequence[str] = (),
        options: LaunchOptions,
        ends: float | None = None,
        room: Capacity | None = None,
    ) -> None:
        self._spool = spool
        self._launcher = launcher
        self._arguments = tuple(arguments)
        self._options = options
        self._ends = ends
        self._room = room
        self._owner = registration.encode_owner()
        self._recovery = Recovery(spool, everybody=True)  # one of its groups has died when it goes round
        self._slots: list[Slot] = []
        self._ending: dict[str, GroupProcess] = {}
        self._lock = threading.Lock()
        self._bring_back_until = 0.0
        self.broken: dict[Shape, str] = {}
        """Shapes of which no group can be started, and why."""
        self.served: set[Shape] = set()
        """Shapes of which a group ever got so far as to announce itself."""
        self.given_up: dict[str, str] = {}
        """Nodes that killed all groups that were started on them, and how."""

    def resize(self, shape: Shape, count: int, *, arguments: Sequence[str] = ()) -> None:
        """Have ``count`` groups of a shape: starts what is missing, asks what is too much to end.

        A group that dies is replaced. One that ends with success is not: it was told to, or its terms are fulfilled.
        """
        launched = self._launcher.command(shape, (), self._options)  # raises at once if it cannot be started
        log.debug("groups of %s: %s", shape, launched)
        with self._lock:
            mine = [slot for slot in self._slots if slot.shape == shape]
            for slot in mine[count:]:
                self._remove(slot)
                self._ask(slot)
            for _ in range(count - len(mine)):
                place = () if self._room is None else self._room.reserve(shape)
                if place is None:
                    raise LauncherError(f"There is no room for another group of {shape}.")
                slot = Slot(shape=shape, arguments=tuple(arguments), place=place)
                self._start(slot)
                self._slots.append(slot)

    def count(self, shape: Shape | None = None) -> int:
        """Groups of a shape, or of all, as wished."""
        with self._lock:
            return len(self._slots) if shape is None else [slot.shape for slot in self._slots].count(shape)

    def alive(self) -> int:
        """Groups whose processes run."""
        with self._lock:
            return sum(slot.process is not None and slot.process.poll() is None for slot in self._slots)

    def _remove(self, slot: Slot) -> None:
        self._slots.remove(slot)
        if self._room is not None:
            self._room.release(slot.place, slot.shape)

    def _start(self, slot: Slot) -> None:
        worker = new_worker_id()
        shape = slot.shape
        arguments = [
            self._spool.path,
            "--group-of",
            str(shape.ranks),
            "--threads",
            str(shape.threads),
            "--gpus",
            str(shape.gpus),
            *self._arguments,
            *slot.arguments,
        ]
        if self._ends is not None:
            arguments += ["--max-time", f"{max(0.0, self._ends - time.monotonic()):.3f}"]
        variables = {
            settings.ENV_WORKER: worker,
            settings.ENV_OWNER: self._owner,
        }
        log.info("Starting worker group %s %s", worker, " ".join(dict.fromkeys(slot.place)))
        options = replace(self._options, nodes=slot.place)
        slot.stands(worker, self._launcher.start(shape, arguments, options, variables))

    def step(self) -> bool:
        """Look after every group once; whether something happened."""
        happened = False
        with self._lock:
            for slot in list(self._slots):
                happened |= self._look(slot)
            self._ask_again()
        if time.monotonic() < self._bring_back_until:
            try:
                for line in self._recovery.round():
                    log.warning("Recovered %s", line)
            except OSError as error:  # the server is away for a moment
                log.info("Recovery was put off: %s", error)
        return happened

    def _look(self, slot: Slot) -> bool:
        if slot.process is None:
            if slot.start_due and time.monotonic() >= slot.start_due:
                self._start_again(slot)
                return True
            return False
        code = slot.look(self._spool)
        if slot.served:
            self.served.add(slot.shape)
        if code is None:
            return False
        log.info("Worker group %s ended with %s", slot.worker, code)
        # a rank that outlives its launcher for a moment is proven dead only then
        self._bring_back_until = time.monotonic() + 5.0
        if code == 0:
            self._remove(slot)
        elif code == settings.EXIT_RENEW:
            self._start_again(slot)
        else:
            self._failed(slot, code)
        return True

    def _start_again(self, slot: Slot) -> None:
        slot.start_due = 0.0
        try:
            self._start(slot)
        except LauncherError as error:
            slot.record_failed_start()
            self._judge(slot, str(error))

    def _failed(self, slot: Slot, code: int) -> None:
        reason = registration.take_start_error(self._spool, slot.worker)
        if reason is None and slot.served:
            log.warning("Worker group %s died (%s); another one is started.", slot.worker, describe(code))
            slot.died(self._spool)
        else:
            slot.record_failed_start()
        if code == settings.EXIT_START:
            self._drop(slot, reason or describe(code))
        else:
            self._judge(slot, reason or describe(code))

    def _judge(self, slot: Slot, reason: str) -> None:
        """Another group is started in this place after a while, unless all of them die here."""
        slot.start_due = time.monotonic() + slot.backoff.next()
        for node in dict.fromkeys(slot.place):
            there = [each for each in self._slots if node in each.place]
            elsewhere = any(each.thrives() for each in self._slots if node not in each.place)
            if all(each.hopeless(others_thrive=elsewhere) for each in there):
                self._close(node, there, reason)
        if not slot.place and all(
            each.hopeless(others_thrive=False) for each in self._slots if each.shape == slot.shape
        ):
            for each in [each for each in self._slots if each.shape == slot.shape]:
                self._drop(each, reason)

    def _close(self, node: str, slots: list[Slot], reason: str) -> None:
        """Start nothing on a node any more; its groups go where there is room for them."""
        assert self._room is not None
        log.error(
            "Node %s is given up: every worker group that is started on it dies (%s). It had %d of them.",
            node,
            reason,
            len(slots),
        )
        self.given_up[node] = reason
        self._room.exclude(node)
        for slot in slots:
            self._room.release(slot.place, slot.shape)
            slot.place = self._room.reserve(slot.shape) or ()
            if slot.place:
                slot.did_well()
            else:
                self._drop(slot, reason)

    def _drop(self, slot: Slot, reason: str) -> None:
        """Have this place no more; whoever still stands there is asked to end."""
        self._remove(slot)
        self._ask(slot)
        if not any(each.shape == slot.shape for each in self._slots):
            what = "die as often as they are started" if slot.shape in self.served else "cannot be started"
            self.broken[slot.shape] = (
                f"Worker groups of {slot.shape.ranks} rank(s) {what} through {self._launcher.name}: "
                f"{reason.rstrip('.')}."
            )

    def _ask(self, slot: Slot) -> None:
        slot.start_due = 0.0
        if slot.process is not None and slot.process.poll() is None:
            registration.request_stop(self._spool, slot.worker)
            self._ending[slot.worker] = slot.process

    def _ask_again(self) -> None:
        """A group that was still starting had no entry yet in which it could be asked to end."""
        for worker, process in list(self._ending.items()):
            if process.poll() is None:
                registration.request_stop(self._spool, worker)
            else:
                del self._ending[worker]

    def stop(self, seconds: float | None = _STOP_SECONDS, *, hurry: Callable[[], bool] = lambda: False) -> list[str]:
        """Let every group finish what it runs, and end it.

        A group that still runs after ``seconds`` (None: never), or once ``hurry`` says so, is ended, and what it
        ran is given back. Returns the tasks that were. A group that has not announced itself after a minute is ended in
        any case: it has no entry in which it could be asked, and no task, and the wait for it would have no end.
        """
        with self._lock:
            slots, self._slots = self._slots, []
            for slot in slots:
                self._ask(slot)
        backoff = Backoff(0.002, 0.1)
        begun = time.monotonic()
        starting = {worker for worker in self._ending if self._has_no_entry(worker)}
        released: list[str] = []
        while running := {worker for worker, process in self._ending.items() if process.poll() is None}:
            passed = time.monotonic() - begun
            late: set[str] = set()
            if hurry() or (seconds is not None and passed > seconds):
                late = running
            elif passed > _START_SECONDS:
                late = {worker for worker in running & starting if self._has_no_entry(worker)}
            for worker in late:
                self._ending[worker].end()
            for worker in late:
                released += self._recovery.release(worker)
                del self._ending[worker]
            for worker in running - late:
                # a group that was still starting has no entry yet in which it could be asked
                registration.request_stop(self._spool, worker)
            if running != late:
                backoff.sleep()
        self._ending.clear()
        return released

    def _has_no_entry(self, worker: str) -> bool:
        return files.is_missing(f"{self._spool.layout.worker(worker)}/info.json")


def describe(code: int) -> str:
    """An exit code in words."""
    if code < 0:
        try:
            return f"signal {signal.Signals(-code).name}"
        except ValueError:
            return f"signal {-code}"
    if code == NotASpool.exit_code:
        return f"exit code {code}: it does not see its spool, which must lie on a filesystem that all nodes share"
    return f"exit code {code}"
