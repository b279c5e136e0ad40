"""Names of ready tasks, as one worker lists them; listings are used for about a second, in the order of fair share."""

from __future__ import annotations

import contextlib
import math
import random
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from spoolpool.errors import NotTrusted
from spoolpool.format.names import Lane, is_bucket, parse_lane, series_of
from spoolpool.protocol.fair_share import BucketInfo, FairShare
from spoolpool.protocol.spool import Spool
from spoolpool.system import files, open_directory

_FRESH = 1.0  # seconds for which a listing is used: a more urgent task may be overlooked for that long
_RELIST = 0.1  # seconds after a full listing in which the last bucket alone is listed again when it is used up
_UNUSABLE = 10.0  # seconds for which a bucket comes last if this worker can use none of its files
_WATCHED = 64  # lanes and buckets to watch; tasks in the others are found by listing

_LATE = 16  # oldest names, of which a late worker tries any first: the others are claiming the oldest one
_OWN = 32  # names of its own subset that a claimer looks for among the oldest ones
_STALE = 0.001  # seconds after which a bucket is listed again after a conflict
_BITS = 12  # of a checksum, at most
_CALM = 16  # claims without a conflict after which a claimer enlarges its subset


class ReadyListing:
    """One worker's view of ``ready/``: lanes and buckets are listed at once, each bucket when it is its turn.

    ``serves`` says which lanes are the worker's, ``weights`` which share of it each queue gets (:class:`FairShare`).
    With a ``submitter`` only the buckets of that one are seen. ``refuse`` is called with each path that is left
    alone, and the reason.
    """

    def __init__(
        self,
        spool: Spool,
        serves: Callable[[Lane], bool],
        refuse: Callable[[str, str], None],
        weights: Mapping[str, int] | None = None,
        submitter: str = "",
    ) -> None:
        self._spool = spool
        self._serves = serves
        self._refuse = refuse
        self._submitter = submitter
        self._order = FairShare(weights)
        self._lanes: list[Lane] = []
        self._buckets: list[BucketInfo] = []
        self._newest: dict[tuple[str, str, str], str] = {}  # name of the newest bucket of each submitter
        self._names: dict[BucketInfo, list[str]] = {}
        self._directories: dict[BucketInfo, open_directory.Place] = {}
        self._filled: dict[BucketInfo, _Filled] = {}
        self._used: set[BucketInfo] = set()  # buckets of which a task was claimed since the last full listing
        self._last: BucketInfo | None = None  # bucket of the last claimed task
        self._last_is_empty = False  # known from a listing of a moment ago
        self._contention = _ContentionFilter()
        self._put_off: dict[BucketInfo, float] = {}  # buckets that come last, and until when
        self._listed = -_FRESH
        self._late = False
        self._resumed = False  # whether the buckets come that were put off
        self._met_others = False  # whether other workers are claiming now
        self.left: dict[str, set[str]] = {}
        """Names that were left to other workers since :meth:`begin`, by the path of their bucket."""
        self.error: OSError | None = None
        """Why a directory could not be listed; the tasks in the others are found all the same."""

    @property
    def is_fresh(self) -> bool:
        """Whether the last full listing is young enough to be used."""
        return time.monotonic() - self._listed < _FRESH

    @property
    def has_names(self) -> bool:
        """Whether usable names are left of the bucket of the last claimed task."""
        return self._last is not None and bool(self._names.get(self._last)) and self.is_fresh

    def begin(self, *, late: bool) -> None:
        """Begin a search for one task. A ``late`` worker comes to tasks that others began to claim earlier."""
        self._late = late
        self._resumed = self._met_others = False
        self.left = {}

    def directories(self) -> set[str]:
        """Return the directories in which new tasks may appear."""
        where = self._spool.layout
        found = {where.ready, *(where.lane(lane.name) for lane in self._lanes[-_WATCHED:])}
        return found | self.buckets()

    def buckets(self) -> set[str]:
        """Return the buckets among these directories."""
        return set(map(self._path, self._buckets[-_WATCHED:]))

    @property
    def is_watchable(self) -> bool:
        """Whether new tasks can appear in no other directories than :meth:`directories`."""
        return len(self._lanes) <= _WATCHED and len(self._buckets) <= _WATCHED

    def refresh(self) -> None:
        """List lanes and buckets. Raises ``OSError`` if not even the lanes can be listed."""
        self.error = None
        where = self._spool.layout
        lanes = map(parse_lane, files.list_names(where.ready))
        self._lanes = [lane for lane in lanes if lane is not None and self._fits(lane) and self._serves(lane)]
        names = [lane.name for lane in self._lanes]
        self._buckets = sorted(
            BucketInfo(bucket, name, lane.queue, lane.user, *series_of(bucket))
            for lane, name in zip(self._lanes, names, strict=True)
            for bucket in filter(is_bucket, self._list(where.lane(name), lane.user)[1])
            if bucket.endswith(self._submitter)
        )
        self._newest = {(each.lane, each.priority, each.submitter): each.name for each in self._buckets}
        if self._last not in self._buckets:
            self._last = None
        # do not list again a bucket that was listed just now
        self._names = {self._last: []} if self._last_is_empty and self._last is not None else {}
        self._last_is_empty = False
        self._directories.clear()
        self._filled.clear()
        self._used.clear()
        self._listed = time.monotonic()
        self._put_off = {bucket: end for bucket, end in self._put_off.items() if end > self._listed}
        self._order.start(bucket for bucket in self._buckets if bucket not in self._put_off)

    def refresh_last(self) -> bool:
        """List the bucket of the last claimed task again if its names are used up; return whether it has new ones.

        To be called before :meth:`refresh`, since one listing is a third of that. Only shortly after a full listing: a
        task in another bucket may be more urgent, or of the next user.
        """
        bucket = self._last
        if bucket is None or self._names.get(bucket) or time.monotonic() - self._listed >= _RELIST:
            return False
        if self._path(bucket) in self.left:
            return False
        self._last_is_empty = not self._fill(bucket)
        if not self._last_is_empty:
            self._order.add(bucket)
        return not self._last_is_empty

    def resume_put_off(self) -> bool:
        """Continue with the buckets that were put off; return whether there are any."""
        self._resumed = True
        buckets = [each for each in self._buckets if each in self._put_off and self._path(each) not in self.left]
        self._order.start(buckets)
        return bool(buckets)

    def next_bucket(self) -> tuple[BucketInfo, list[str]] | None:
        """Return the next bucket, with its names: the next one last, to be removed by the caller."""
        while (bucket := self._order.first()) is not None:
            names = self._names.get(bucket)
            if names is None:
                names = self._fill(bucket)
            if names and not self._is_for_others(bucket, names):
                return bucket, names
            if names and self._resumed:
                self.leave(bucket)
            elif names:
                self._put_off_for(bucket, _FRESH)
                del self._names[bucket]
            self._order.drop(bucket)
        return None

    def _is_for_others(self, bucket: BucketInfo, names: list[str]) -> bool:
        """Return whether the few names of a bucket are left to the workers with these subsets.

        They are claiming them now. The same submitter has newer tasks of the same lane and priority; they come first
        for a moment. After these, the names are tried as well, unless there was another conflict meanwhile.
        """
        if self._is_newest(bucket) or not self._contention.leaves(names):
            return False
        return self._met_others or not self._resumed

    def directory(self, bucket: BucketInfo) -> open_directory.Place:
        """Return the directory of the bucket of :meth:`next_bucket`; held open in a shared spool."""
        return self._directories[bucket]

    def contended(self, bucket: BucketInfo, name: str, *, few: bool, now: bool) -> list[str]:
        """Record that another worker took a name of this bucket first; return the names to continue with.

        Of a ``few`` names a new listing is returned, so that a further conflict shows that others are claiming now.
        ``now``: the conflict shows it by itself.
        """
        self._late = True
        self._met_others |= now
        names = self._names[bucket]
        owns = self._contention.owns
        if few or not (
            owns(name) and len(names) > 1 and owns(names[-2])
        ):  # it took names that are not of its own subset
            return self._fill(bucket)
        if time.monotonic() - self._filled[bucket].time > _STALE:  # others may have taken many of them
            return self._fill(bucket, conflict=True)
        self._contention.record_conflict()
        names = self._names[bucket] = self._contention.sorted(names)
        return names

    def is_left_to_others(self, bucket: BucketInfo) -> bool:
        """Return whether so few names are left that they are reserved for other workers."""
        return self._contention.leaves(self._names[bucket])

    def served(self, bucket: BucketInfo) -> None:
        """Record that a task of the bucket was claimed."""
        if self._contention.record_claim():  # the others may be gone
            self._names[bucket] = self._contention.sorted(self._names[bucket])
        self._filled[bucket].mine += 1
        self._used.add(bucket)
        self._last = bucket
        self._put_off.pop(bucket, None)  # it is in use again: its next task must not come last
        self._order.served(bucket)

    def nothing_usable(self, bucket: BucketInfo) -> None:
        """Record that this worker can use no file that is left in the bucket; if it never could, put the bucket off."""
        if bucket not in self._used:
            self._put_off_for(bucket, _UNUSABLE)
            self._order.skip(bucket)

    def leave(self, bucket: BucketInfo) -> None:
        """Leave the rest of the bucket to the workers that claim its tasks."""
        self.left[self._path(bucket)] = set(self._names[bucket])
        self.skip(bucket)

    def skip(self, bucket: BucketInfo) -> None:
        """Continue with the other buckets before the rest of this one."""
        self._names[bucket].clear()
        self._put_off_for(bucket, _FRESH)

    def _fill(self, bucket: BucketInfo, *, conflict: bool = False) -> list[str]:
        self._directories[bucket], listed = self._list(self._path(bucket))
        if conflict:
            self._contention.record_conflict(self._filled[bucket].workers(listed))
        self._filled[bucket] = _Filled(time.monotonic(), len(listed), max(listed, default=""))
        names = self._names[bucket] = self._contention.sorted(listed)
        if self._late and names:
            first = random.randrange(max(0, len(names) - _LATE), len(names))
            names[first], names[-1] = names[-1], names[first]
        if not names:
            self._put_off_for(bucket, _FRESH)
            self._remove(bucket)
        return names

    def _path(self, bucket: BucketInfo) -> str:
        return self._spool.layout.bucket(bucket.lane, bucket.name)

    def _put_off_for(self, bucket: BucketInfo, seconds: float) -> None:
        self._put_off[bucket] = time.monotonic() + seconds

    def _is_newest(self, bucket: BucketInfo) -> bool:
        return self._newest[bucket.lane, bucket.priority, bucket.submitter] == bucket.name

    def _remove(self, bucket: BucketInfo) -> None:
        """Remove an empty bucket whose submitter uses a newer one; if it needs this one again, it makes it again."""
        if not self._is_newest(bucket):
            with contextlib.suppress(OSError, NotTrusted):  # another user's; it does no harm
                lane = self._spool.directory(self._spool.layout.lane(bucket.lane))
                files.remove_directory(f"{lane}/{bucket.name}")

    def _fits(self, lane: Lane) -> bool:
        """Return whether a lane names an account in a shared spool, or none in a private one; refuse others."""
        if (lane.user is None) is not self._spool.shared:
            return True
        path = self._spool.layout.lane(lane.name)
        fault = "names no account" if self._spool.shared else "names an account, and this spool has only one"
        self._refuse(path, f"{path} {fault}. It was left alone.")
        return False

    def _list(self, directory: str, owner: int | None = None) -> tuple[open_directory.Place, list[str]]:
        try:
            self._spool.close_directory(directory)
            place = self._spool.directory(directory, owner)
            return place, files.list_names(str(place))
        except NotTrusted as error:
            self._refuse(directory, str(error))
        except OSError as error:
            if error.errno not in files.GONE:
                self.error = error
        return directory, []


@dataclass
class _Filled:
    """Listing of a bucket: its time, the number of its names, the newest one, and the claims of them by this worker."""

    time: float
    count: int
    newest: str
    mine: int = 0

    def workers(self, names: list[str]) -> float:
        """Return how many workers claim from the bucket, of which these ``names`` are left."""
        gone = self.count - sum(name <= self.newest for name in names)
        return max(1.0, gone / max(1, self.mine))


class _ContentionFilter:
    """Reduces contention: each claimer prefers a pseudo-random subset of the names. No I/O.

    A claimer has a random number, and each name a checksum. The names whose last bits equal those of the number are
    its subset; the number of bits adapts to the conflicts that it has in there. With zero bits it prefers all names.
    """

    def __init__(self) -> None:
        self._number = random.getrandbits(_BITS)
        self._bits = 0
        self._calm = 0  # claims since the last conflict

    def owns(self, name: str) -> bool:
        """Return whether a name is in the subset."""
        return not (zlib.crc32(name.encode(errors="replace")) ^ self._number) & (1 << self._bits) - 1

    def sorted(self, names: list[str]) -> list[str]:
        """Return names in the order of claims, the first one last.

        The subset comes first, its oldest name before the others. The names outside follow in random order, so that
        workers that are done with their subsets seldom conflict.
        """
        names = sorted(names, reverse=True)
        if not self._bits:
            return names
        newer = max(0, len(names) - (_OWN << self._bits))
        own: list[str] = []
        others: list[str] = []
        for name in names[newer:]:
            (own if self.owns(name) else others).append(name)
        start = random.randrange(len(others)) if others else 0
        return [*names[:newer], *others[start:], *others[:start], *own]

    def leaves(self, names: list[str]) -> bool:
        """Return whether so few names are left that each is reserved for the worker with that subset."""
        return 0 < len(names) < 1 << self._bits and not self.owns(names[-1])

    def record_conflict(self, workers: float = 1.0) -> None:
        """Draw another number, and a smaller subset: another worker took names of this one.

        ``workers`` is how many seem to claim from the bucket.
        """
        self._bits = min(_BITS, max(self._bits + 1, round(math.log2(workers)) + 1))
        self._number = random.getrandbits(_BITS)
        self._calm = 0

    def record_claim(self) -> bool:
        """Count a claim; return whether the subset grew, after a number of claims without a conflict."""
        self._calm += 1
        if not self._bits or self._calm <= _CALM:
            return False
        self._bits -= 1
        self._calm -= _CALM // 4
        return True
