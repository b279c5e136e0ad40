"""Pool of worker groups: starts them, restarts those that die, and ends them."""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from spoolpool import settings
from spoolpool.errors import LauncherError, NotASpool, SpoolpoolError
from spoolpool.format.names import new_worker_id
from spoolpool.launch.allocation import Capacity, find_allocation
from spoolpool.launch.launcher import Launcher, LaunchOptions
from spoolpool.pool.ending_groups import STOP_SECONDS, EndingGroups
from spoolpool.pool.slot import Slot
from spoolpool.protocol.spool import Spool
from spoolpool.resources import Shape
from spoolpool.security import known_spools
from spoolpool.system.processes import describe_command_status, describe_status, encode_own_id

# worker_registration, last_lines: imported where a group has ended, while others begin

if TYPE_CHECKING:
    from spoolpool.protocol.owner_entry import OwnerEntry

log = logging.getLogger(__name__)

_MOST_REPORTS = 100  # on groups that are missing
_RECOVERY_SECONDS = 5.0  # a rank may outlive its launcher for a moment, and can be proven dead only after that


class GroupPool:
    """Worker groups of one spool, started by one launcher. One thread at a time may call :meth:`step`.

    Every worker gets ``arguments``; after ``ends``, by this process's monotonic clock, none begins a task. The groups
    end when this process has died. With a ``capacity``, each group gets nodes from it, and a node on which all groups
    die is excluded.
    """

    def __init__(
        self,
        spool: Spool,
        launcher: Launcher,
        *,
        arguments: Sequence[str] = (),
        options: LaunchOptions,
        ends: float | None = None,
        capacity: Capacity | None = None,
    ) -> None:
        self._spool = spool
        self._launcher = launcher
        self._arguments = tuple(arguments)
        self._options = options
        self._ends = ends
        self._capacity = capacity
        self._owner = encode_own_id()
        self._entry: OwnerEntry | None = None
        self._slots: list[Slot] = []
        self._ending = EndingGroups(spool)
        self._lock = threading.Lock()
        self._recover_until = 0.0
        self._killed = False
        self._reports: dict[str, str] = {}  # why slots were removed, by the id of an entry that is made for the text
        self._report_due = 0.0
        self.broken: dict[Shape, str] = {}
        """Shapes of which no group can be started, with the reasons."""
        self.announced: set[Shape] = set()
        """Shapes of which a group has ever announced itself."""
        self.excluded_nodes: dict[str, str] = {}
        """Nodes on which all groups died, with the reasons."""

    def resize(self, shape: Shape, count: int, *, arguments: Sequence[str] = ()) -> None:
        """Set the number of groups of a shape: start missing groups, with ``arguments``, and ask surplus ones to end.

        A group that dies is replaced. A group that ends with success is not: it was asked to end, or has reached its
        limits. Raises :class:`LauncherError`.
        """
        command = self._launcher.command(shape, (), self._options)  # raises if no group of the shape can be started
        log.debug("Groups of %s: %s", shape, command)
        with self._lock:
            if self._killed:
                return
            present = [slot for slot in self._slots if slot.shape == shape]
            for slot in present[count:]:
                self._remove(slot)
                self._ending.request(slot)
            for _ in range(count - len(present)):
                nodes = () if self._capacity is None else self._capacity.reserve(shape)
                if nodes is None:
                    raise LauncherError(f"There is no room for another group of {shape}.")
                slot = Slot(shape=shape, arguments=tuple(arguments), nodes=nodes, number=self._free_number())
                self._start(slot)
                self._slots.append(slot)

    def _free_number(self) -> int:
        """Return the least number that no live group has, under the lock."""
        taken = {slot.number for slot in self._slots}
        taken.update(self._ending.numbers())
        return next(number for number in itertools.count() if number not in taken)

    def count(self, shape: Shape | None = None) -> int:
        """Return the requested number of groups of a shape, or of all shapes."""
        with self._lock:
            return len(self._slots) if shape is None else [slot.shape for slot in self._slots].count(shape)

    def _remove(self, slot: Slot) -> None:
        self._slots.remove(slot)
        if self._capacity is not None:
            self._capacity.release(slot.nodes, slot.shape)

    def _start(self, slot: Slot) -> None:
        worker = new_worker_id()
        shape = slot.shape
        arguments = [self._spool.path, "--group-of", str(shape.ranks)]
        arguments += ["--threads", str(shape.threads), "--gpus", str(shape.gpus), *self._arguments, *slot.arguments]
        if self._ends is not None:
            arguments += ["--max-time", f"{max(0.0, self._ends - time.monotonic()):.3f}"]
        variables = {
            settings.ENV_WORKER: worker,
            settings.ENV_NUMBER: str(slot.number),
            settings.ENV_RENEWALS: str(slot.renewals),
            settings.ENV_OWNER: self._owner,
            settings.ENV_KNOWN: known_spools.encode(self._spool.identity),
        }
        if self._launcher.reaches_other_nodes:
            variables[settings.ENV_OWNER_ENTRY] = self._announce()
        log.info("Starting worker group %s %s", worker, " ".join(dict.fromkeys(slot.nodes)))
        options = replace(self._options, nodes=slot.nodes)
        slot.assign(worker, self._launcher.start(shape, arguments, options, variables))

    def step(self) -> bool:
        """Check every group once; return whether anything has changed."""
        changed = False
        with self._lock:
            self._keep_entry()
            for slot in list(self._slots):
                changed |= self._check(slot)
            self._ending.repeat_requests()
            self._repeat_reports()
            # a group may die after its check: its entry and claims must stay until the next one, which judges by them
            running = {slot.worker for slot in self._slots if slot.process is not None} | self._reports.keys()
        if time.monotonic() < self._recover_until:
            try:
                for line in self._ending.recovery.round(running):
                    log.warning("Recovered %s", line)
            except OSError as error:  # the server does not answer for a moment
                log.info("Recovery is delayed: %s", error)
        return changed

    def _announce(self) -> str:
        """Return the id of the entry of this process, whose heartbeat groups on other hosts observe."""
        if self._entry is None:
            from spoolpool.protocol.owner_entry import OwnerEntry  # groups on this host alone need none

            try:
                self._entry = OwnerEntry(self._spool)
            except OSError as error:
                raise LauncherError(str(error)) from error
        return self._entry.id

    def _keep_entry(self) -> None:
        entry = self._entry  # read once: another thread may stop the pool
        if entry is not None:
            entry.keep()

    def _check(self, slot: Slot) -> bool:
        if slot.process is None:
            if slot.start_due and time.monotonic() >= slot.start_due:
                self._restart(slot)
                return True
            return False
        status = slot.poll(self._spool)
        if slot.announced:
            self.announced.add(slot.shape)
        if status is None:
            return slot.is_late() and self._end_waiting(slot)
        log.info("Worker group %s ended: %s", slot.worker, describe_status(status))
        self._recover_until = time.monotonic() + _RECOVERY_SECONDS
        from spoolpool.protocol import worker_registration

        end = worker_registration.take_end(self._spool, slot.worker)
        if end is not None:
            slot.record_success()
        if end == "done":
            self._remove(slot)
        elif end == "renew":
            slot.record_renewal()
            self._restart(slot)
        else:
            self._record_failure(slot, status)
        return True

    def _end_waiting(self, slot: Slot) -> bool:
        """End a group if its launcher says that it has no resources; return whether it does."""
        from spoolpool.launch import last_lines

        errors = self._last_errors(slot)
        if slot.proven or slot.process is None or not self._launcher.never_began(errors):
            return False
        self._ending.request(slot)
        slot.process.end()
        self._wait_or_remove(slot, last_lines.find_own(errors))
        return True

    def _restart(self, slot: Slot) -> None:
        slot.start_due = 0.0
        try:
            self._start(slot)
        except LauncherError as error:
            slot.record_failed_start()
            self._retry_or_give_up(slot, str(error))

    def _record_failure(self, slot: Slot, status: int) -> None:
        from spoolpool.launch import last_lines
        from spoolpool.protocol import worker_registration

        direct = self._launcher.starts_ranks_itself(slot.shape)
        launcher = "" if direct else self._launcher.name
        error = worker_registration.take_start_error(self._spool, slot.worker)
        errors = self._last_errors(slot)
        if error is None and not slot.announced and self._launcher.never_began(errors):
            self._wait_or_remove(slot, last_lines.find_own(errors))
            return
        if error is None and not slot.announced and last_lines.is_mistake(errors):
            error = last_lines.find_cause(errors)
        reason = error or (describe_status(status) if direct else describe_command_status(status))
        if error is None and slot.announced:
            from spoolpool.protocol import lost_attempts

            lost_attempts.record_exit(self._spool, slot.worker, status, launcher=launcher)
            reason = ": ".join(filter(None, (reason, last_lines.find_own(errors))))
            log.warning("Worker group %s died (%s); another one is started.", slot.worker, reason)
            slot.record_death(self._spool)
            # srun, killed with its child, leaves its ranks running, which keep the resources of the next group.
            # Idle ranks end by this request, and those in a call by the record of the end
            worker_registration.request_stop(self._spool, slot.worker)
        else:
            slot.record_failed_start()
            if error is None and status == NotASpool.exit_code:  # it ran no function, so that the status is its own
                reason += ": it does not see its spool, which must lie on a filesystem that all nodes share"
            elif error is None:
                reason = ": ".join(filter(None, (reason, last_lines.find_cause(errors))))
        if error is not None:
            self._give_up(slot, error)
        else:
            self._retry_or_give_up(slot, reason)

    def _last_errors(self, slot: Slot) -> list[str]:
        return [] if self._options.relay is None else self._options.relay.last_errors(slot.worker)

    def _wait_or_remove(self, slot: Slot, reason: str) -> None:
        """Remove a slot whose group did not get its resources; try again if a group has run there before.

        After the death of a group its resources are not free at once.
        """
        if slot.proven:
            log.warning("A worker group of %s waits for its resources: %s", slot.shape, reason)
            slot.start_due = time.monotonic() + slot.backoff.next()
            return
        self._slots.remove(slot)  # its share of the capacity stays reserved: there is no room for it
        left = [each.shape for each in self._slots].count(slot.shape)
        log.error(
            "A worker group of %s did not begin, and is taken off the plan: %s. %d group(s) of this shape are left.",
            slot.shape,
            reason,
            left,
        )
        if left:
            job = find_allocation().job
            where = f" in job {job}" if job else ""
            self._report(f"A group of {slot.shape}{where} did not begin: {reason}.")
        else:
            self._record_broken(slot, reason)

    def _report(self, text: str) -> None:
        """Show in the spool why a group is missing, until this pool ends."""
        if len(self._reports) < _MOST_REPORTS:
            self._reports[new_worker_id()] = text
            self._report_due = 0.0

    def _repeat_reports(self) -> None:
        """Write the reports again: recoverers remove entries without a heartbeat."""
        if self._reports and time.monotonic() >= self._report_due:
            from spoolpool.protocol import worker_registration

            self._report_due = time.monotonic() + self._spool.config.lease / 4
            for worker, text in self._reports.items():
                with contextlib.suppress(SpoolpoolError):  # the spool is gone, which its caller finds out
                    worker_registration.report_start_error(self._spool, worker, text)

    def _retry_or_give_up(self, slot: Slot, reason: str) -> None:
        """Schedule another group in this slot, unless all groups on one of its nodes, or of its shape, die."""
        slot.start_due = time.monotonic() + slot.backoff.next()
        for node in dict.fromkeys(slot.nodes):
            on_node = [each for each in self._slots if node in each.nodes]
            others_healthy = any(each.is_healthy() for each in self._slots if node not in each.nodes)
            if all(each.is_exhausted(others_healthy=others_healthy) for each in on_node):
                self._exclude(node, on_node, reason)
        if not slot.nodes:
            of_shape = [each for each in self._slots if each.shape == slot.shape]
            if all(each.is_exhausted(others_healthy=False) for each in of_shape):
                for each in of_shape:
                    self._give_up(each, reason)

    def _exclude(self, node: str, slots: list[Slot], reason: str) -> None:
        """Start nothing on a node from now on; move its slots to other nodes if there is room."""
        assert self._capacity is not None
        log.error(
            "Node %s is given up: every worker group that is started on it dies (%s). It had %d of them.",
            node,
            reason,
            len(slots),
        )
        self.excluded_nodes[node] = reason
        self._report(f"Node {node} is given up: every worker group that is started on it dies ({reason}).")
        self._capacity.exclude(node)
        for slot in slots:
            self._capacity.release(slot.nodes, slot.shape)
            slot.nodes = self._capacity.reserve(slot.shape) or ()
            if slot.nodes:
                slot.record_success()
            else:
                self._give_up(slot, reason)

    def _give_up(self, slot: Slot, reason: str) -> None:
        """Remove a slot; a group that still runs in it is asked to end."""
        self._remove(slot)
        self._ending.request(slot)
        if not any(each.shape == slot.shape for each in self._slots):
            self._record_broken(slot, reason)

    def _record_broken(self, slot: Slot, reason: str) -> None:
        """Record that no group of a shape is left."""
        failure = "die as often as they are started" if slot.shape in self.announced else "cannot be started"
        self.broken[slot.shape] = (
            f"Worker groups of {slot.shape.ranks} rank(s) {failure} through {self._launcher.name}: "
            f"{reason.rstrip('.')}."
        )
        self._report(self.broken[slot.shape])

    def stop(
        self,
        seconds: float | None = STOP_SECONDS,
        *,
        hurry: Callable[[], bool] = lambda: False,
        at_walltime: bool = False,
    ) -> list[str]:
        """End every group after the task that it runs; return the tasks that were released instead.

        ``at_walltime``: they end because their time is over.

        A group that still runs after ``seconds`` (None: without limit), or once ``hurry`` returns True, is ended, and
        its task is released. A group without an entry for a minute is ended in any case: it has no task, and hangs in
        its start or exit, so that waiting for it might have no end.
        """
        with self._lock:
            slots, self._slots = self._slots, []
            for slot in slots:
                self._ending.request(slot)
                self._ending.add(slot)  # it may have ended a moment ago, by the cause of this stop
        released = self._ending.wait(seconds, hurry=hurry, at_walltime=at_walltime, keep_entry=self._keep_entry)
        self._close()
        return released

    def _close(self) -> None:
        """Remove what this process has in the spool, after the end of all groups."""
        from spoolpool.protocol import worker_registration

        if self._entry is not None:
            self._entry.close()
            self._entry = None
        self._ending.close()
        for worker in self._reports:
            worker_registration.take_start_error(self._spool, worker)
        self._reports.clear()

    def kill(self) -> None:
        """Kill every group, and start none any more. :meth:`stop` waits for their ends."""
        with self._lock:
            self._killed = True
            slots, self._slots = self._slots, []
            for slot in slots:
                self._ending.add(slot)
            processes = self._ending.processes()
        for process in processes:
            if process.poll() is None:
                process.end(kill=True)
