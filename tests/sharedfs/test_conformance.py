"""A spool on every shared filesystem: a submitter on client A, worker groups on B and C, each with its own caches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tests.sharedfs import tasks
from tests.sharedfs.chaos import MUST_BE_ZERO, Chaos
from tests.sharedfs.mounts import PATIENCE, Command, Place, Remote
from tests.support.waiting import wait_until

pytestmark = pytest.mark.sharedfs

SIZES = (0, 1, 4095, 100_000, 3_000_000)
MANY = 30


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """Finished tasks of all kinds, by their numbers, run by groups on B and C."""

    spool: str
    sizes: list[int]
    array: int
    failing: int
    cancelled: bool
    meeting: list[int]
    many: list[int]


@pytest.fixture(scope="module")
def submitted(filesystem: Place) -> Submitted:
    place, spool = filesystem, filesystem.spool()

    def submit(function: Any, *arguments: Any) -> int:
        return place.actor.do("submit", spool, function, *arguments)

    never = submit(tasks.run, place.marks, "never")
    found = Submitted(
        spool=spool,
        sizes=[submit(tasks.echo, bytes(size)) for size in SIZES],
        array=submit(tasks.twice, np.arange(600_000, dtype=float)),
        failing=submit(tasks.fail, "on purpose"),
        cancelled=place.actor.do("cancel", never),
        meeting=[submit(tasks.meet, place.marks, "meet", 2) for _ in range(2)],
        many=[submit(tasks.run, place.marks, f"many-{number}") for number in range(MANY)],
    )
    place.serve(spool, "B", "C")
    for number in range(never + 1, found.many[-1] + 1):
        place.actor.do("wait", number, PATIENCE)
    place.end_groups()
    return found


@pytest.fixture(scope="module")
def examined(filesystem: Place) -> str:
    return filesystem.spool()


@pytest.fixture(scope="module", autouse=True)
def doctor(filesystem: Place, examined: str) -> Iterator[Command]:
    """Doctor that examines the filesystem with a peer on B, during other tests: it takes over a minute on NFS."""
    place = filesystem
    peer = place.command("B", "doctor", examined, "--peer")
    wait_until(lambda: "Waiting for" in peer.said(), "the peer waits", PATIENCE)
    wait_until(lambda: place.actor.do("list", f"{examined}/tmp"), "A sees what the peer made", PATIENCE)
    doctor = place.command("A", "doctor", examined, "--json")
    yield doctor
    for each in (doctor, peer):
        each.kill()


class TestTasks:
    def test_values_of_all_sizes_are_transferred_in_both_directions(self, place: Place, submitted: Submitted) -> None:
        assert [len(place.result(number)) for number in submitted.sizes] == list(SIZES)
        assert np.array_equal(place.result(submitted.array), np.arange(600_000, dtype=float) * 2)

    def test_exception_is_returned(self, place: Place, submitted: Submitted) -> None:
        with pytest.raises(ValueError, match="on purpose"):
            place.result(submitted.failing)

    def test_cancelled_task_is_not_run(self, place: Place, submitted: Submitted) -> None:
        assert submitted.cancelled and place.runs("never") == []

    def test_two_groups_share_the_tasks_and_each_runs_once(self, place: Place, submitted: Submitted) -> None:
        assert sorted(place.result(number) for number in submitted.meeting) == ["B", "C"]
        hosts = [place.result(number) for number in submitted.many]
        assert [place.runs(f"many-{number}") for number in range(MANY)] == [[host] for host in hosts]

    def test_no_file_is_left(self, place: Place, submitted: Submitted) -> None:
        place.actor.do("close", submitted.spool)
        place.await_clean(submitted.spool)


class TestDeath:
    def test_task_of_a_killed_group_runs_elsewhere(self, place: Place) -> None:
        spool, name = place.spool(), place.unused("killed")
        doomed = place.start("B", spool)
        number = place.actor.do("submit", spool, tasks.linger, place.marks, name)
        place.await_run(name)
        rescuer = place.start("C", spool)
        doomed.kill()
        place.await_service(rescuer)
        assert place.result(number) == (2, "C")
        assert place.runs(name) == ["B", "C"]
        place.actor.do("close", spool)
        place.await_clean(spool)


@pytest.mark.slow
class TestDoctor:
    def test_doctor_finds_the_properties_of_the_filesystem_and_valid_settings(
        self, place: Place, examined: str, doctor: Command
    ) -> None:
        assert doctor.process.wait(PATIENCE) == 0, doctor.said()
        found = json.loads(doctor.said())
        facts = {answer["question"]: answer["value"] for answer in found["answers"]}
        assert found["across_hosts"]
        assert (facts["rename"], facts["create"], facts["inotify"]) == (0, 0, False)
        assert facts["filesystem"]["local"] is False
        assert facts["locks"] == ("yes" if place.kind.locks else "per host")
        assert (3500 < facts["clock"] < 3700) == ("nfs" in place.kind.name)
        # a cache delays at most one of the two look-ups, and none if the question came after its time
        late = [question for question in ("listed", "looked up") if facts[question] > 1.0]
        assert late in ([], [place.kind.late])
        assert place.actor.do("left_over", examined) == []
        spool = place.spool(**found["settings"])
        number = place.actor.do("submit", spool, tasks.echo, 1)
        place.serve(spool, "B")
        assert place.result(number) == 1
        place.actor.do("close", spool)


class TestListings:
    def test_name_hidden_by_a_stale_listing_appears_after_a_refresh(self, place: Place) -> None:
        place.actor.do("make_directory", "listed")
        other = Remote(place.fs, "B", place.fs.directory / "log/other.log")
        hidden = 0
        try:
            for number in range(12):
                place.actor.begin("sees", "listed", f"{number}", 0.5)
                other.do("replace", "listed", f"{number}")
                if not place.actor.end():
                    hidden += 1
                    (place.actor, other)[number % 2].do("refresh", "listed")
                    assert place.actor.do("sees", "listed", f"{number}", PATIENCE)
                if hidden == 2:
                    break
        finally:
            other.stop()


@pytest.mark.slow
class TestFailures:
    def test_each_task_has_one_outcome_under_failures_of_nodes_and_server(self, place: Place) -> None:
        counts = Chaos(place, seed=1).run(seconds=0)
        print(counts)
        assert {name: counts[name] for name in MUST_BE_ZERO} == dict.fromkeys(MUST_BE_ZERO, 0)
        assert counts["tasks"] > 0

    def test_tasks_of_nodes_without_mount_power_or_network_run_elsewhere_and_late_outcomes_are_dropped(
        self, place: Place
    ) -> None:
        spool = place.spool()
        groups = {client: place.start(client, spool) for client in (("B", "C") if place.kind.network else ("B",))}
        numbers = {}
        for name in groups:  # each claims one task and cannot finish it
            numbers[name] = place.actor.do("submit", spool, tasks.linger, place.marks, f"node-{name}")
            place.await_run(f"node-{name}")
        hosts = {place.runs(f"node-{name}")[0]: f"node-{name}" for name in groups}
        groups["B"].doomed = True
        place.die("B")
        if place.kind.network:
            place.fs.cut("C")
        try:
            place.serve(spool, "A")
            for name, number in numbers.items():
                assert place.result(number) == (2, "A")
                assert len(place.runs(f"node-{name}")) == 2
            place.allow(hosts.get("C", ""))
        finally:
            if place.kind.network:
                place.fs.mend("C")
            place.fs.restart("B")
        if place.kind.network:
            dropped = "was taken from this worker"
            wait_until(lambda: dropped in groups["C"].said(), "C drops its late outcome", PATIENCE)
        place.actor.do("close", spool)
        place.await_clean(spool)
