"""Failures of nodes and servers, while a submitter on client A keeps tasks in a spool for groups on other clients.

``scripts/chaos --on nfs-4.2`` repeats them for a chosen time; the conformance tests run each once.
"""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from spoolpool import settings
from spoolpool.system.backoff import Backoff
from tests.servers import NFS
from tests.sharedfs.mounts import PATIENCE, Command, Place
from tests.support.waiting import wait_until

MUST_BE_ZERO = ("lost", "duplicated outcomes", "errors", "ran too often", "left over")


class Chaos:
    """One run on a started filesystem; all clients and the server are up again at its end."""

    def __init__(self, place: Place, seed: int) -> None:
        self._place = place
        self._seed = seed
        self._chance = random.Random(seed)
        self._workers = [client for client in place.fs.clients if client != "A"]
        self._groups: dict[str, Command] = {}
        self._started: list[Command] = []
        self._counts: Counter[str] = Counter()
        self._failures: dict[str, Callable[[str], None]] = {
            "kills": self._kill,
            "stops": self._stop,
            "power failures": self._power,
        }
        if place.kind.network:
            self._failures |= {"cut cables": self._cut, "server restarts": self._restart_server}
        if isinstance(place.fs, NFS):
            self._failures |= {"stopped nodes": self._stop_node, "stopped servers": self._stop_server}

    def run(self, seconds: float) -> dict[str, int]:
        """Cause each failure at least once, and more of them for a time; end all tasks; count their outcomes."""
        place, end = self._place, time.monotonic() + seconds
        # a task may be hit by several failures and must not be lost for that
        self._spool = place.spool(max_attempts=99)
        name = place.unused("chaos")
        self._replace()
        place.actor.begin("flow", self._spool, place.marks, name, self._seed)
        wait_until(lambda: place.runs(f"{name}-{len(self._workers)}"), "tasks run", PATIENCE)
        first = True
        while first or time.monotonic() < end:
            first = False
            failures = sorted(self._failures)
            self._chance.shuffle(failures)
            for failure in failures:
                self._counts[failure] += 1
                self._failures[failure](self._chance.choice(self._workers))
                self._replace()
                self._wait(self._chance.uniform(0, place.kind.lease / 2))
        Path(place.marks, f"{name}-end.A.0").touch()

        def over() -> bool:
            self._replace()  # a disconnected group may end only now
            return place.actor.answered()

        wait_until(over, "every task has its outcome", 2 * PATIENCE)
        return self._count(place.actor.end())

    def _replace(self) -> None:
        """Start a group on each client without one: it has died, or has ended because it was fenced."""
        for client in self._workers:
            if client not in self._groups or self._groups[client].process.poll() is not None:
                group = self._groups[client] = self._place.start(client, self._spool)
                group.doomed = True  # any exit code is accepted: only the outcomes are checked
                self._started.append(group)
        for group in self._groups.values():
            wait_until(
                lambda group=group: group.serves() or group.process.poll() is not None, "a group serves", PATIENCE
            )

    @staticmethod
    def _wait(seconds: float) -> None:
        if seconds:
            Backoff(seconds, seconds).sleep()

    def _kill(self, client: str) -> None:
        self._groups[client].kill()

    def _stop(self, client: str) -> None:
        self._groups[client].signal(signal.SIGSTOP)
        self._wait(self._place.kind.lease * self._chance.uniform(0.5, 2))
        self._groups[client].signal(signal.SIGCONT)

    def _power(self, client: str) -> None:
        self._place.fs.restart(client)

    def _cut(self, client: str) -> None:
        self._place.fs.cut(client)
        try:
            self._wait(self._place.kind.lease * self._chance.uniform(0.5, 2))
        finally:
            self._place.fs.mend(client)

    def _restart_server(self, _client: str) -> None:
        self._place.fs.restart_server()

    def _stop_node(self, client: str) -> None:
        """Stop a client for so long that its workers are dead whatever their locks, and that its NFS 4 locks expire."""
        self._pause(client, (settings.GONE_LEASES + 3) * self._place.kind.lease)

    def _stop_server(self, _client: str) -> None:
        self._pause("S", 3 * self._place.kind.lease)

    def _pause(self, guest: str, seconds: float) -> None:
        assert isinstance(self._place.fs, NFS)
        self._place.fs.pause(guest)
        try:
            self._wait(seconds)
        finally:
            self._place.fs.resume(guest)

    def _count(self, outcomes: dict[str, tuple[int, int, str]]) -> dict[str, int]:
        place = self._place
        left: list[str] = []
        try:
            place.await_clean(self._spool)
        except AssertionError:
            left = place.actor.do("left_over", self._spool)
            print(f"left over: {left}")
        place.end_groups()
        runs = place.all_runs()
        said = [place.actor.said(), *(group.said() for group in self._started)]
        return {
            "tasks": len(outcomes),
            "groups": len(self._started),
            **{failure: self._counts[failure] for failure in self._failures},
            "recoveries": sum(text.count("Recovered ") for text in said),
            "ran again": sum(runs[uid] > 1 for uid in outcomes),
            "lost": sum(told == 0 for told, _, _ in outcomes.values()),
            "duplicated outcomes": sum(told > 1 for told, _, _ in outcomes.values()),
            "errors": sum(error != "" for _, _, error in outcomes.values()),
            "ran too often": sum(not 1 <= runs[uid] <= attempt for uid, (_, attempt, _) in outcomes.items()),
            "left over": len(left),
        }
