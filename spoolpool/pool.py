"""Start worker groups, watch them, and replace those that died."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from spoolpool import fsio, layout, registry, settings
from spoolpool.backoff import Backoff
from spoolpool.launchers import GroupProcess, Launcher, Options
from spoolpool.recovery import Recovery
from spoolpool.resources import Shape
from spoolpool.spool import Spool

log = logging.getLogger(__name__)

_FAILED_STARTS = 3
_STOP_SECONDS = 10.0


@dataclass(kw_only=True)
class _Slot:
    """One place for a group: what stands in it now, and how it went so far."""

    shape: Shape
    arguments: tuple[str, ...]
    worker: str = ""
    process: GroupProcess | None = None
    rhythm: Backoff = field(default_factory=lambda: Backoff(0.1, 30.0, 2.0))
    start_due: float = 0.0
    served: bool = False
    failed_starts: int = 0


class Pool:
    """Groups of one spool, started through one launcher. One thread at a time may call :meth:`step`.

    ``arguments`` go to every worker; after ``ends``, by this process's monotonic clock, none begins a task. The
    groups work for this process: they end when it has died.
    """

    def __init__(
        self,
        spool: Spool,
        launcher: Launcher,
        *,
        arguments: Sequence[str] = (),
        options: Options,
        ends: float | None = None,
    ) -> None:
        self._spool = spool
        self._launcher = launcher
        self._arguments = tuple(arguments)
        self._options = options
        self._ends = ends
        self._owner = registry.owner_text()
        self._recovery = Recovery(spool)
        self._slots: list[_Slot] = []
        self._ending: dict[str, GroupProcess] = {}
        self._lock = threading.Lock()
        self._bring_back_until = 0.0
        self.broken: dict[Shape, str] = {}
        """Shapes of which no group can be started, and why."""

    def resize(self, shape: Shape, count: int, *, arguments: Sequence[str] = ()) -> None:
        """Have ``count`` groups of a shape: starts what is missing, asks what is too much to end.

        A group that dies is replaced. One that ends with success is not: it was told to, or its terms are fulfilled.
        """
        launched = self._launcher.command(shape, (), self._options)  # raises at once if it cannot be started
        log.debug("groups of %s: %s", shape, launched)
        with self._lock:
            mine = [slot for slot in self._slots if slot.shape == shape]
            for slot in mine[count:]:
                self._slots.remove(slot)
                self._ask(slot)
            for _ in range(count - len(mine)):
                slot = _Slot(shape=shape, arguments=tuple(arguments))
                self._slots.append(slot)
                self._start(slot)

    def count(self, shape: Shape) -> int:
        """Groups of a shape, as wished."""
        with self._lock:
            return sum(slot.shape == shape for slot in self._slots)

    def alive(self) -> int:
        """Groups whose processes run."""
        with self._lock:
            return sum(slot.process is not None and slot.process.poll() is None for slot in self._slots)

    def _start(self, slot: _Slot) -> None:
        slot.worker = layout.new_worker_id()
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
            settings.ENV_WORKER: slot.worker,
            settings.ENV_OWNER: self._owner,
        }
        log.info("Starting worker group %s", slot.worker)
        slot.process = self._launcher.start(shape, arguments, self._options, variables)
        slot.served = False

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

    def _look(self, slot: _Slot) -> bool:
        if slot.process is None:
            if slot.start_due and time.monotonic() >= slot.start_due:
                slot.start_due = 0.0
                self._start(slot)
                return True
            return False
        code = slot.process.poll()
        if not slot.served and os.path.exists(f"{self._spool.layout.worker(slot.worker)}/info.json"):
            slot.served, slot.failed_starts = True, 0
        if code is None:
            return False
        slot.process = None
        log.info("Worker group %s ended with %s", slot.worker, code)
        # a rank that outlives its launcher for a moment is proven dead only then
        self._bring_back_until = time.monotonic() + 5.0
        if code == 0:
            self._slots.remove(slot)
        elif code == settings.EXIT_RENEW:
            self._start(slot)
        else:
            self._failed(slot, code)
        return True

    def _failed(self, slot: _Slot, code: int) -> None:
        reason = registry.start_error(self._spool, slot.worker)
        if reason is None and slot.served:
            log.warning("Worker group %s died (%s); another one is started.", slot.worker, describe(code))
            if self._held_a_task(slot.worker):  # which costs that task an attempt: it cannot go on like this
                slot.rhythm.reset()
        else:
            slot.failed_starts += 1
            if slot.failed_starts >= _FAILED_STARTS or code == settings.EXIT_START:
                self.broken[slot.shape] = (
                    f"Worker groups of {slot.shape.ranks} rank(s) cannot be started through {self._launcher.name}: "
                    f"{reason or describe(code)}."
                )
                self._slots.remove(slot)
                return
        slot.start_due = time.monotonic() + slot.rhythm.next()

    def _ask(self, slot: _Slot) -> None:
        slot.start_due = 0.0
        if slot.process is not None and slot.process.poll() is None:
            registry.ask_to_stop(self._spool, slot.worker)
            self._ending[slot.worker] = slot.process

    def _ask_again(self) -> None:
        """A group that was still starting had no entry yet in which it could be asked to end."""
        for worker, process in list(self._ending.items()):
            if process.poll() is None:
                registry.ask_to_stop(self._spool, worker)
            else:
                del self._ending[worker]

    def _held_a_task(self, worker: str) -> bool:
        try:
            tokens = map(layout.parse_token, fsio.names(self._spool.layout.claimed))
        except OSError:  # the server is away for a moment: then it is not known
            return False
        return any(token is not None and token.worker == worker for token in tokens)

    def stop(self, seconds: float | None = _STOP_SECONDS, *, hurry: Callable[[], bool] = lambda: False) -> list[str]:
        """Let every group finish what it runs, and end it.

        A group that still runs after ``seconds`` (None: never), or once ``hurry`` says so, is ended, and what it
        ran is given back. Returns the tasks that were.
        """
        with self._lock:
            slots, self._slots = self._slots, []
            for slot in slots:
                self._ask(slot)
        rhythm = Backoff(0.002, 0.1)
        deadline = None if seconds is None else time.monotonic() + seconds
        given_back: list[str] = []
        while running := {worker for worker, process in self._ending.items() if process.poll() is None}:
            if hurry() or (deadline is not None and time.monotonic() > deadline):
                for worker in running:
                    self._ending[worker].end()
                for worker in running:
                    given_back += self._recovery.give_back(worker)
                break
            for worker in running:
                # a group that was still starting has no entry yet in which it could be asked
                registry.ask_to_stop(self._spool, worker)
            rhythm.sleep()
        self._ending.clear()
        return given_back


def describe(code: int) -> str:
    """An exit code in words."""
    if code < 0:
        try:
            return f"signal {signal.Signals(-code).name}"
        except ValueError:
            return f"signal {-code}"
    return f"exit code {code}"
