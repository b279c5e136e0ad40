"""Worker groups in all that this process was given: started, looked after, and ended in time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from spoolpool.errors import BadNode, LauncherError
from spoolpool.launch.allocation import find_allocation, plan
from spoolpool.launch.launcher import Launcher, LaunchOptions
from spoolpool.launch.output_relay import Relay
from spoolpool.pool.batch_jobs import OwnerWatch
from spoolpool.pool.pool import GroupPool
from spoolpool.protocol.spool import Spool
from spoolpool.resources import Shape
from spoolpool.system.backoff import Backoff
from spoolpool.system.stop_request import StopRequest

_MARGIN = 5.0  # seconds for what comes after the last task


@dataclass(frozen=True, kw_only=True)
class SupervisorOptions:
    """What a supervisor is to do."""

    wishes: Sequence[tuple[Shape, int | None]]
    """Shapes of groups, each with a number; None: as many as fit."""
    arguments: Sequence[str] = ()
    """Options for every worker."""
    options: LaunchOptions = field(default_factory=LaunchOptions)
    """How groups are started."""
    as_json: bool = False
    """Whether what groups print is forwarded as JSON."""
    max_time: float | None = None
    """Seconds until the end; the walltime that is left if None."""
    drain: float = 20.0
    """Seconds that running tasks get to finish at the end, where an end is near; then they are given back."""


class Supervisor:
    """Starts groups through a launcher. Raises :class:`LauncherError` where they do not fit, or cannot be started.

    ``say`` is told what people want to know.
    """

    def __init__(self, spool: Spool, launcher: Launcher, orders: SupervisorOptions, say: Callable[[str], None]) -> None:
        options = orders.options
        self._planned, room = plan(launcher.allocation(), orders.wishes, oversubscribe=options.oversubscribe)
        left = launcher.seconds_left() if orders.max_time is None else orders.max_time
        self._ends = None if left is None else time.monotonic() + max(0.0, left - orders.drain - _MARGIN)
        # where nobody will kill us, tasks may take as long as they need
        self._drain = None if left is None and find_allocation().system == "none" else orders.drain
        self._relay = Relay(as_json=orders.as_json)
        self._pool = GroupPool(
            spool,
            launcher,
            arguments=orders.arguments,
            options=replace(options, relay=self._relay),
            ends=self._ends,
            room=room,
        )
        self._purpose = OwnerWatch(spool)
        self._say = say
        self._where = f"through {launcher.name} for {spool.path}"

    def run(self, stopping: StopRequest, hurry: StopRequest) -> None:
        """Look after the groups until ``stopping``, until the time is up, or until all ended by themselves.

        ``hurry`` gives back what still runs. At the end it raises :class:`BadNode` where a node was given up, and
        :class:`LauncherError` where groups could not be started.
        """
        try:
            for shape, count in self._planned:
                self._say(f"Starting {count} worker group(s) of {shape} {self._where}")
                self._pool.resize(shape, count)
            self._watch(stopping)
        finally:
            for task_id in self._pool.stop(self._drain, hurry=hurry.is_set):
                self._say(f"Task {task_id} was given back: it did not end in time.")
            self._purpose.leave()
            self._relay.close()
        pool = self._pool
        if pool.given_up and pool.served:
            nodes = "; ".join(f"{node} ({reason})" for node, reason in pool.given_up.items())
            raise BadNode(
                f"Every worker group that was started there died, so that these nodes were given up: {nodes}. Look at "
                "them before the next job; what their groups printed is above."
            )
        if pool.broken:
            raise LauncherError(" ".join(pool.broken.values()))

    def _watch(self, stopping: StopRequest) -> None:
        backoff = Backoff(0.02, 0.5)
        while not stopping.is_set() and self._pool.count():
            if self._pool.step():
                backoff.reset()
            if self._ends is not None and time.monotonic() > self._ends:
                self._say("The time is up: no more tasks are begun.")
                return
            if self._purpose.lost():
                self._say("The executor for which this job runs has ended.")
                return
            stopping.wait(backoff.next())
