"""Fair share: no submitter starves, queues get their weights, and the cost does not grow with the backlog."""

from __future__ import annotations

import itertools
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spoolpool.format import envelope, headers
from spoolpool.format.headers import TaskHeader
from spoolpool.format.names import Lane, TaskFile, new_worker_id, parse_lane, series_of
from spoolpool.protocol.claimer import Claimer
from spoolpool.protocol.fair_share import BucketInfo, FairShare
from spoolpool.protocol.listing import _ContentionFilter
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.submit import Submitter
from spoolpool.security.trust import Trust
from spoolpool.system import files
from spoolpool.system.locks import Lock, try_lock
from tests.support.fake_worker import Clock

PYTHON = "3.11"


def source(
    number: int = 0, *, queue: str = "default", user: int | None = None, priority: int = 0, submitter: int = 0
) -> BucketInfo:
    lane = Lane(queue, 1, 1, 0, PYTHON, (), user)
    bucket = f"{499 - priority:03d}-{number:014x}-{submitter:08x}"
    return BucketInfo(bucket, lane.name, queue, user, *series_of(bucket))


def claims(order: FairShare, waiting: dict[BucketInfo, int]) -> Iterator[BucketInfo]:
    """Claim until no task is left."""
    order.start(waiting)
    while (turn := order.first()) is not None:
        if waiting[turn]:
            waiting[turn] -= 1
            order.served(turn)
            yield turn
        else:
            order.drop(turn)


SOURCES = st.builds(
    source,
    st.integers(0, 20),
    queue=st.sampled_from(["fast", "slow"]),
    user=st.sampled_from([None, 1, 2, 3]),
    priority=st.sampled_from([0, 5]),
    submitter=st.integers(0, 3),
)
BACKLOGS = st.dictionaries(SOURCES, st.integers(0, 6), max_size=12)
"""Buckets may turn out to be empty."""
WEIGHTS = st.sampled_from([{}, {"fast": 3}, {"fast": 2, "slow": 5}])


@settings(max_examples=100, deadline=None)
@given(BACKLOGS, WEIGHTS)
def test_all_tasks_are_claimed_the_most_urgent_first(waiting: dict[BucketInfo, int], weights: dict[str, int]) -> None:
    order = list(claims(FairShare(weights), dict(waiting)))
    assert Counter(order) == Counter({each: count for each, count in waiting.items() if count})
    for queue in {each.queue for each in waiting} if weights else {""}:
        priorities = [each.priority for each in order if each.queue == queue or not weights]
        assert priorities == sorted(priorities)


@settings(max_examples=100, deadline=None)
@given(BACKLOGS)
def test_each_other_submitter_has_a_turn_between_two_turns_of_one(waiting: dict[BucketInfo, int]) -> None:
    """For users, and for the submitters of one user, at one priority."""
    order = list(claims(FairShare(), dict(waiting)))
    levels: list[Callable[[BucketInfo], object]] = [lambda each: each.user, lambda each: (each.user, each.submitter)]
    for name in levels:
        for first, last in _turns(order, name):
            mine, rest = order[first], order[last:]
            between = Counter(name(each) for each in order[first + 1 : last])
            among = [each for each in rest if each.priority == mine.priority == order[last].priority]
            if name is levels[1]:
                among = [each for each in among if each.user == mine.user]
            assert all(between[name(each)] >= 1 for each in among if name(each) != name(mine))


def _turns(order: list[BucketInfo], name: Callable[[BucketInfo], object]) -> Iterator[tuple[int, int]]:
    """Return the positions of two successive turns of one name."""
    before: dict[object, int] = {}
    for position, each in enumerate(order):
        if name(each) in before:
            yield before[name(each)], position
        before[name(each)] = position


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.sampled_from("abcd"), st.integers(1, 9), min_size=2), st.integers(1, 200))
def test_queues_with_tasks_get_their_weights_at_every_moment(weights: dict[str, int], count: int) -> None:
    order = FairShare(weights)
    # priorities order the tasks of a queue, and give it no greater share
    waiting = {source(queue=queue, priority=ord(queue) - ord("a")): count for queue in weights}
    had: Counter[str] = Counter()
    for turn in itertools.islice(claims(order, waiting), count):
        had[turn.queue] += 1
        shares = [(had[queue] / weight, 1 / weight) for queue, weight in weights.items()]
        for (one, step), (other, another) in itertools.combinations(shares, 2):
            assert abs(one - other) <= step + another + 1e-9


def test_empty_queue_saves_nothing_up() -> None:
    order = FairShare({"fast": 1, "slow": 1})
    assert len(list(claims(order, {source(queue="fast"): 100}))) == 100
    waiting = {source(queue="fast"): 10, source(queue="slow"): 10}
    assert [turn.queue for turn in itertools.islice(claims(order, waiting), 6)].count("slow") == 3


def test_new_submitter_is_served_next() -> None:
    order = FairShare()
    big, small = source(1, user=1), source(2, user=2)
    assert len(list(itertools.islice(claims(order, {big: 1000}), 500))) == 500
    assert [turn.user for turn in itertools.islice(claims(order, {big: 1000, small: 10}), 20)] == [2, 1] * 10


def test_memory_of_submitters_is_bounded() -> None:
    order = FairShare()
    for number in range(10_000):
        assert list(claims(order, {source(submitter=number): 1}))
    assert len(order._turn_of) < 5000


# -- a worker and a spool


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock.installed(monkeypatch)


class Backlog:
    """Waiting tasks of several submitters, and one worker that claims them."""

    def __init__(self, spool: Spool, weights: dict[str, int] | None = None) -> None:
        self.spool = spool
        self._ids = itertools.count()
        self.claimer = Claimer(spool, new_worker_id(), lambda _: True, Trust(), weights)

    def put(self, count: int, submitter: int, *, bucket: int = 0, queue: str = "default") -> str:
        """Put tasks into a bucket; return its directory."""
        lane = Lane(queue, 1, 1, 0, PYTHON).name
        name = f"499-{bucket:014x}-{submitter:08x}"
        for _ in range(count):
            header = TaskHeader(
                task=f"499-{next(self._ids):014x}-{submitter:010x}", session="inbox", lane=lane, bucket=name
            )
            Submitter(self.spool).submit(header, envelope.pack(headers.encode(header), b""))
        return self.spool.layout.bucket(lane, name)

    def claim(self, count: int) -> list[TaskHeader]:
        """Claim and finish ``count`` tasks."""
        found = []
        for _ in range(count):
            claim = self.claimer.next()
            if claim is None:
                break
            files.remove(self.spool.layout.claimed_task(claim.task_file))
            claim.close()
            found.append(claim.header)
        return found

    def submitters(self, count: int) -> list[int]:
        """Claim tasks; return the numbers of their submitters."""
        return [int(header.bucket[-8:], 16) for header in self.claim(count)]


@pytest.fixture
def backlog(spool: Spool, clock: Clock) -> Backlog:
    return Backlog(spool)


class Listed:
    """Counter of listed directories."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths: list[str] = []
        names = files.list_names

        def note(path: str) -> list[str]:
            if "/ready" in path:
                self.paths.append(path)
            return names(path)

        monkeypatch.setattr(files, "list_names", note)


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> Listed:
    return Listed(monkeypatch)


def test_claims_alternate_between_submitters_of_a_private_spool(backlog: Backlog) -> None:
    for bucket in range(5):
        backlog.put(20, 1, bucket=bucket)
    backlog.put(5, 2, bucket=7)
    backlog.put(5, 3, bucket=8)
    assert sorted(backlog.submitters(15)) == [1] * 5 + [2] * 5 + [3] * 5
    assert backlog.submitters(10) == [1] * 10


def test_worker_serves_queues_in_proportion_to_their_weights(spool: Spool, clock: Clock) -> None:
    backlog = Backlog(spool, {"fast": 3})
    backlog.put(40, 1, queue="slow")
    backlog.put(40, 2, queue="fast", bucket=1)
    lanes = [parse_lane(header.lane) for header in backlog.claim(40)]
    assert Counter(lane.queue for lane in lanes if lane) == {"fast": 30, "slow": 10}
    assert len(backlog.claim(100)) == 40  # an empty queue delays no other


@pytest.mark.parametrize("buckets", [1, 50])
def test_listings_per_claim_do_not_grow_with_the_backlog(backlog: Backlog, listed: Listed, buckets: int) -> None:
    for bucket in range(buckets):
        backlog.put(3, 1, bucket=bucket)
    backlog.put(3, 2, bucket=buckets)
    assert len(backlog.claim(4)) == 4
    assert len(listed.paths) == 4  # the lanes, the buckets of one, and one bucket of each submitter


def test_empty_spool_costs_three_listings_and_a_single_task_no_more(backlog: Backlog, listed: Listed) -> None:
    backlog.put(1, 1)
    assert len(backlog.claim(1)) == 1
    assert len(listed.paths) == 3
    assert backlog.claim(1) == []
    assert len(listed.paths) == 6


def test_idle_submitters_cost_no_listing_per_claim(backlog: Backlog, listed: Listed, clock: Clock) -> None:
    for submitter in range(20):
        os.makedirs(backlog.put(0, submitter, bucket=submitter), exist_ok=True)
    for round_ in range(5):
        backlog.put(1, 99, bucket=99)
        before = len(listed.paths)
        assert len(backlog.claim(1)) == 1
        assert len(listed.paths) - before == (23 if round_ == 0 else 1)
    backlog.put(1, 3, bucket=3)
    assert backlog.submitters(1) == [3]  # checked all the same before the claimer reports no task


def test_task_in_an_empty_bucket_is_found_within_a_second_despite_a_backlog(backlog: Backlog, clock: Clock) -> None:
    Path(backlog.put(0, 1)).mkdir(parents=True)
    backlog.put(50, 2, bucket=2)
    assert backlog.submitters(3) == [2, 2, 2]
    backlog.put(1, 1)
    assert backlog.submitters(1) == [2]  # the listing is used for a second
    clock.sleep(1.1)
    assert backlog.submitters(2) == [1, 2]


def test_empty_bucket_that_is_in_use_again_keeps_its_place(backlog: Backlog, clock: Clock) -> None:
    backlog.put(1, 1, bucket=1)
    assert len(backlog.claim(2)) == 1
    backlog.put(1, 1, bucket=1)
    assert len(backlog.claim(1)) == 1
    clock.sleep(0.2)  # a full listing comes next, while an empty bucket would still come last
    backlog.put(1, 1, bucket=2)
    backlog.put(1, 1, bucket=1)
    assert [int(header.bucket[4:18], 16) for header in backlog.claim(2)] == [1, 2]


def test_unusable_names_do_not_block_tasks_of_other_submitters(backlog: Backlog, listed: Listed, clock: Clock) -> None:
    for bucket in range(10):
        place = Path(backlog.put(0, 1, bucket=bucket))
        place.mkdir(parents=True)
        for number in range(3):
            (place / TaskFile(f"499-{number:014x}-{bucket:010x}", 1, 1).name).symlink_to("/nowhere")
    backlog.put(20, 2, bucket=20)
    assert backlog.submitters(10) == [2] * 10
    clock.sleep(1.1)
    before = len(listed.paths)
    assert backlog.submitters(10) == [2] * 10
    assert len(listed.paths) - before == 3


def test_empty_bucket_is_removed_once_its_submitter_has_a_newer_one(backlog: Backlog, clock: Clock) -> None:
    first = backlog.put(2, 1, bucket=1)
    second = backlog.put(2, 1, bucket=2)
    assert len(backlog.claim(4)) == 4 and backlog.claim(1) == []
    assert not os.path.exists(first) and os.path.exists(second)


def test_workers_with_the_same_listing_claim_every_task_once(spool: Spool, clock: Clock) -> None:
    one, two = Backlog(spool), Backlog(spool)
    for submitter in range(3):
        one.put(20, submitter, bucket=submitter)
    found: list[str] = []
    while len(found) < 60:
        found += [header.task for each in (one, two) for header in each.claim(3)]
    assert len(set(found)) == 60


def test_only_the_bucket_of_the_last_task_is_listed_again_within_a_second(
    backlog: Backlog, listed: Listed, clock: Clock
) -> None:
    backlog.put(2, 1, bucket=1)
    assert backlog.submitters(2) == [1, 1]
    before = len(listed.paths)
    backlog.put(2, 1, bucket=1)
    backlog.put(1, 2, bucket=2)
    assert backlog.submitters(2) == [1, 1]
    assert len(listed.paths) - before == 1
    assert backlog.submitters(1) == [2]  # the listing that finds the other one does not list the first again
    assert len(listed.paths) - before == 1 + 1 + 3
    backlog.put(1, 1, bucket=1)
    clock.sleep(1.1)
    assert backlog.submitters(1) == [1]


def test_bucket_that_was_removed_before_its_second_listing_is_no_error(backlog: Backlog, clock: Clock) -> None:
    place = backlog.put(1, 1, bucket=1)
    assert backlog.submitters(1) == [1]
    os.rmdir(place)
    assert backlog.claim(1) == [] and backlog.claim(1) == []
    backlog.put(1, 1, bucket=2)
    assert backlog.submitters(1) == [1]


def test_many_workers_waste_few_tries_on_tasks_of_others(spool: Spool, clock: Clock) -> None:
    random.seed(1)
    crowd = [Backlog(spool) for _ in range(16)]
    crowd[0].put(1600, 1)
    tried = Counter({"open": 0})
    opened = files.open_file

    def count(path: str, **options: bool) -> int:
        tried["open"] += "/ready/" in path
        return opened(path, **options)

    taken = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "open_file", count)
        while taken < 1500:
            taken += sum(len(each.claim(1)) for each in crowd)
    assert tried["open"] - taken < 0.5 * taken


def test_few_tasks_are_left_to_workers_that_claim_now_and_not_lost(
    backlog: Backlog, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Backlog(backlog.spool)
    place = backlog.put(8, 1)
    claimed: list[TaskHeader] = []
    real = files.open_file

    def open_second(path: str, **options: bool) -> int:
        """The other worker has claimed the task before this one opens it."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files, "open_file", real)
            while os.path.exists(path):
                claimed.extend(other.claim(1))
        return real(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(files, "open_file", open_second)
        patch.setattr(random, "randrange", lambda start, stop=None: (start if stop is None else stop) - 1)
        assert backlog.claimer.next(late=True) is None
    assert len(claimed) == 2
    assert backlog.claimer.left == {place: set(files.list_names(place))}
    rest = backlog.claim(8)
    assert len(rest) == 6
    assert not backlog.claimer.left
    assert len({header.task for header in [*claimed, *rest]}) == 8


def test_late_worker_begins_with_any_of_the_oldest_tasks(
    backlog: Backlog, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    backlog.put(40, 1)
    [oldest] = backlog.claim(1)
    clock.sleep(1.1)
    monkeypatch.setattr(random, "randrange", lambda start, stop: start)
    claim = backlog.claimer.next(late=True)
    assert claim is not None
    with claim:
        number = int(claim.header.task[4:18], 16) - int(oldest.task[4:18], 16)
    assert number == 16


def test_locked_task_is_opened_once_per_listing(
    backlog: Backlog, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = backlog.put(3, 1)
    locked = [os.open(f"{place}/{name}", os.O_RDWR) for name in files.list_names(place)]
    try:
        assert all(try_lock(fd) is Lock.TAKEN for fd in locked)
        opened = Counter[str]()
        real = files.open_file

        def count(path: str, **options: bool) -> int:
            opened[path] += 1
            return real(path, **options)

        monkeypatch.setattr(files, "open_file", count)
        assert backlog.claim(1) == []
        assert sorted(opened.values()) == [1, 1, 1]
    finally:
        for fd in locked:
            os.close(fd)
    clock.sleep(1.1)
    assert len(backlog.claim(4)) == 3


def test_last_worker_of_many_claims_in_order_again(spool: Spool, clock: Clock) -> None:
    one, other = Backlog(spool), Backlog(spool)
    one.put(300, 1)
    while len(one.claim(1)) and len(other.claim(9)) == 9 and files.list_names(one.put(0, 1)):
        pass
    one.put(300, 1, bucket=1)
    assert len(one.claim(100)) == 100
    tasks = [header.task for header in one.claim(100)]
    assert tasks == sorted(tasks)


def crowded(backlog: Backlog, *buckets: str) -> None:
    """Let the worker of a backlog expect so many others that the tasks of these buckets seem to be theirs."""
    contention = backlog.claimer._listing._contention
    contention._bits = 7
    names = [name for bucket in buckets for name in files.list_names(bucket)]
    contention._number = next(number for number in range(128) if not any(map(_owner(number), names)))


def _owner(number: int) -> Callable[[str], bool]:
    contention = _ContentionFilter()
    contention._bits, contention._number = 7, number
    return contention.owns


def test_few_tasks_for_others_come_after_newer_ones_of_the_same_submitter_and_are_not_lost(
    backlog: Backlog, clock: Clock
) -> None:
    crowded(backlog, backlog.put(5, 1, bucket=1))
    backlog.put(5, 1, bucket=2)
    buckets = [int(header.bucket[4:18], 16) for header in backlog.claim(11)]
    assert buckets == [2] * 5 + [1] * 5


def test_few_tasks_for_others_keep_the_turn_of_their_submitter_and_their_priority(
    backlog: Backlog, clock: Clock
) -> None:
    crowded(backlog, backlog.put(5, 1, bucket=1))
    backlog.put(5, 2, bucket=2)
    assert backlog.submitters(11) == [1, 2] * 5


def test_few_tasks_are_left_without_a_try_after_a_conflict_in_the_same_search(
    backlog: Backlog, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = backlog.put(5, 1, bucket=1)
    new = backlog.put(1, 1, bucket=2)
    crowded(backlog, old, new)
    tried: list[str] = []
    real = files.open_file

    def open_second(path: str, **options: bool) -> int:
        """Another worker has claimed the task before this one opens it."""
        tried.append(path)
        if path.startswith(new):
            os.remove(path)
        return real(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(files, "open_file", open_second)
        assert backlog.claimer.next() is None
    assert [os.path.dirname(path) for path in tried] == [new]
    assert backlog.claimer.left == {old: set(files.list_names(old))}
    assert len(backlog.claim(6)) == 5


def test_lock_of_an_earlier_attempt_does_not_leave_other_tasks_unclaimed(backlog: Backlog, clock: Clock) -> None:
    old = backlog.put(5, 1, bucket=1)
    new = backlog.put(1, 1, bucket=2)
    [name] = files.list_names(new)
    fd = os.open(f"{new}/{name}", os.O_RDWR)
    try:
        assert try_lock(fd) is Lock.TAKEN
        crowded(backlog, old, new)
        assert backlog.claim(1) == []  # its holder may be claiming now, and others the old tasks
        clock.sleep(0.1)
        assert len(backlog.claim(6)) == 5
    finally:
        os.close(fd)


def test_first_conflict_shows_how_many_workers_there_are(backlog: Backlog, clock: Clock) -> None:
    place = backlog.put(600, 1)
    assert len(backlog.claim(1)) == 1
    for name in sorted(files.list_names(place))[:256]:
        os.remove(f"{place}/{name}")
    clock.sleep(0.1)
    assert len(backlog.claim(1)) == 1
    assert backlog.claimer._listing._contention._bits >= 8
