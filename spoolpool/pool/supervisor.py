"""Supervisor: fills the resources of this process with worker groups, and ends them in time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from spoolpool import settings
from spoolpool.errors import BadNode, LauncherError
from spoolpool.launch.allocation import find_allocation, plan
from spoolpool.launch.launcher import Launcher, LaunchOptions
from spoolpool.launch.output_relay import Relay
from spoolpool.pool.batch_jobs import OwnerWatch
from spoolpool.pool.group_pool import GroupPool
from spoolpool.protocol.presence import Presence
from spoolpool.protocol.spool import Spool
from spoolpool.resources import Shape
from spoolpool.system.backoff import Backoff
from spoolpool.system.stop_request import StopRequest

_RELEASE_SECONDS = 3.0  # for groups to release their tasks and end, before the batch system kills this process


def task_seconds(walltime: float, drain: float = settings.DRAIN, *, margin: float) -> float:
    """Return the seconds for which groups begin tasks, from those until the end of their supervisor."""
    return max(0.0, walltime - drain - margin)


class Supervisor:
    """Starts groups of several shapes by one launcher, and reports to a person through ``echo``.

    ``requests`` are shapes with the number of their groups, or None for as many as fit. Every worker gets
    ``arguments``. The groups end after ``max_time`` seconds, or with the walltime if it is None; before such an end,
    running tasks get ``drain`` seconds to finish, and are released then. ``as_json`` is the form of forwarded output.
    Raises :class:`LauncherError` if the groups do not fit.
    """

    def __init__(
        self,
        spool: Spool,
        launcher: Launcher,
        requests: Sequence[tuple[Shape, int | None]],
        options: LaunchOptions,
        *,
        arguments: Sequence[str],
        max_time: float | None,
        drain: float,
        as_json: bool,
        echo: Callable[[str], None],
    ) -> None:
        allocation = launcher.allocation(options)
        self._planned, capacity = plan(allocation, requests, oversubscribe=options.oversubscribe)
        if max(allocation.threads_per_core, default=1) > 1 or allocation.memory:
            echo(f"Groups are placed by whole cores in {allocation.description}.")
        left = launcher.seconds_left() if max_time is None else max_time
        self._ends = (
            None if left is None else time.monotonic() + task_seconds(left, drain, margin=launcher.end_margin())
        )
        # without an end from outside, tasks may take as long as they need
        self._drain = None if left is None and find_allocation().system == "none" else drain
        self._notice = max(0.0, launcher.notice() - _RELEASE_SECONDS)
        self._relay = Relay(as_json=as_json)
        self._pool = GroupPool(
            spool,
            launcher,
            arguments=arguments,
            options=replace(options, relay=self._relay),
            ends=self._ends,
            capacity=capacity,
        )
        self._presence = Presence(spool)
        self._owner = OwnerWatch(spool)
        self._echo = echo
        self._target = f"through {launcher.name} for {spool.path}"

    def run(self, stopping: StopRequest, hurry: StopRequest) -> None:
        """Supervise the groups until ``stopping`` is requested, the time is up, or all groups have ended.

        ``hurry`` releases the tasks that still run. At the end raises :class:`BadNode` if a node was given up, and
        :class:`LauncherError` if groups could not be started. Raises :class:`BrokenSpool` if the spool was removed,
        moved or replaced.
        """
        pool = self._pool
        try:
            for shape, count in self._planned:
                self._echo(f"Starting {count} worker group(s) of {shape} {self._target}")
                pool.resize(shape, count)
            self._watch(stopping)
        finally:
            at_walltime = self._ends is not None and time.monotonic() > self._ends
            for task_id in pool.stop(self._drain, hurry=self._hurries(stopping, hurry), at_walltime=at_walltime):
                self._echo(f"Task {task_id} was given back: it did not end in time.")
            self._owner.leave()
            self._relay.close()
        if pool.excluded_nodes and pool.announced:
            nodes = "; ".join(f"{node} ({reason})" for node, reason in pool.excluded_nodes.items())
            raise BadNode(
                f"Every worker group that was started there died, so that these nodes were given up: {nodes}. Look at "
                "them before the next job; the output of their groups is above."
            )
        if pool.broken:
            raise LauncherError(" ".join(pool.broken.values()))

    def has_groups_left(self) -> bool:
        """Return whether no shape has lost all of its groups by their deaths."""
        return not self._pool.broken

    def _hurries(self, stopping: StopRequest, hurry: StopRequest) -> Callable[[], bool]:
        """Return a function that tells whether to release the running tasks now.

        That is so a while before the batch system kills this process after a signal, which may come during the last
        tasks at the end of a walltime.
        """
        signalled: float | None = None

        def hurries() -> bool:
            nonlocal signalled
            if signalled is None and stopping.is_set():
                signalled = time.monotonic()
            return hurry.is_set() or (signalled is not None and time.monotonic() - signalled > self._notice)

        return hurries

    def _watch(self, stopping: StopRequest) -> None:
        backoff = Backoff(0.02, 0.5)
        while not stopping.is_set() and self._pool.count():
            present = self._presence.check_if_due()
            if self._pool.step():
                self._presence.check()  # the groups of a spool that is gone die, which says nothing about their node
                backoff.reset()
            if self._ends is not None and time.monotonic() > self._ends:
                self._echo("The time is up: no more tasks are begun.")
                return
            if present and self._owner.has_ended():
                self._echo("The executor for which this job runs has ended.")
                return
            stopping.wait(backoff.next())
