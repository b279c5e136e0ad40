"""Where tasks wait, as a worker sees it: listings that are used for about a second, in the order of its turns."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping

from spoolpool.errors import NotTrusted
from spoolpool.format.names import Lane, is_bucket, parse_lane, series_of
from spoolpool.protocol.contention import ContentionFilter
from spoolpool.protocol.fair_share import BucketInfo, FairShare
from spoolpool.protocol.spool import Spool
from spoolpool.system import files

_FRESH = 1.0  # seconds for which a listing is used: for so long a more urgent task may go unseen
_LATEST = 0.1  # seconds since a whole look for which, of a listing that is used up, one bucket alone is listed anew
_HOPELESS = 10.0  # seconds for which a bucket comes last in which there are only names that this worker leaves alone
_WATCHED = 64  # buckets that are watched; the others are found by listing


class ReadyListing:
    """One worker's view of ``ready/``. A look lists lanes and their buckets; a bucket is listed when it is its turn.

    ``serves`` says which lanes are the worker's, ``weights`` how much of it each queue gets (see :class:`Order`);
    ``submitter`` leaves the buckets of one alone to be seen.
    ``refuse`` is told of a path that is left alone, and why.
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
        self._sources: list[BucketInfo] = []
        self._last: dict[tuple[str, str, str], str] = {}
        self._names: dict[BucketInfo, list[str]] = {}
        self._places: dict[BucketInfo, files.Place] = {}
        self._gave: set[BucketInfo] = set()
        self._latest: BucketInfo | None = None  # the bucket that gave the last task
        self._lot = ContentionFilter()
        self._doubtful: dict[BucketInfo, float] = {}
        self._bare = False  # whether that one was empty a moment ago
        self._looked = -_FRESH
        self.unlisted: OSError | None = None
        """Why a directory could not be listed; the tasks in the others are found all the same."""

    @property
    def fresh(self) -> bool:
        """Whether the last look is young enough to be used."""
        return time.monotonic() - self._looked < _FRESH

    @property
    def supplied(self) -> bool:
        """Whether names are left of the bucket that gave the last task, which may be used."""
        return self._latest is not None and bool(self._names.get(self._latest)) and self.fresh

    def directories(self) -> set[str]:
        """Where new tasks may appear, as the last look saw it."""
        where = self._spool.layout
        found = {where.ready, *(where.lane(lane.name) for lane in self._lanes)}
        return found | {where.bucket(source.lane, source.bucket) for source in self._sources[-_WATCHED:]}

    def look(self) -> None:
        """List which buckets there are. Raises ``OSError`` where not even the lanes can be listed."""
        self.unlisted = None
        where = self._spool.layout
        lanes = map(parse_lane, files.list_names(where.ready))
        self._lanes = [lane for lane in lanes if lane is not None and self._fits(lane) and self._serves(lane)]
        names = [lane.name for lane in self._lanes]
        self._sources = sorted(
            BucketInfo(bucket, name, lane.queue, lane.user, *series_of(bucket))
            for lane, name in zip(self._lanes, names, strict=True)
            for bucket in filter(is_bucket, self._list(where.lane(name), lane.user)[1])
            if bucket.endswith(self._submitter)
        )
        self._last = {(each.lane, each.priority, each.submitter): each.bucket for each in self._sources}
        if self._latest not in self._sources:
            self._latest = None
        # what was listed just now need not be listed again
        self._names = {self._latest: []} if self._bare and self._latest is not None else {}
        self._bare = False
        self._places.clear()
        self._gave.clear()
        self._looked = time.monotonic()
        self._doubtful = {source: end for source, end in self._doubtful.items() if end > self._looked}
        self._order.start(source for source in self._sources if source not in self._doubtful)

    def look_again(self) -> bool:
        """List the bucket anew that gave the last task, if nothing is left of it; whether something came into it.

        To be called before :meth:`look`: one listing is a third of a look. For a moment only: a task that came into
        another bucket may be more urgent, or of somebody whose turn it is.
        """
        source = self._latest
        if source is None or self._names.get(source) or time.monotonic() - self._looked >= _LATEST:
            return False
        self._bare = not self._fill(source)
        if not self._bare:
            self._order.add(source)
        return not self._bare

    def look_closer(self) -> bool:
        """Go on with the buckets in which nothing was a moment ago; whether there are any."""
        doubtful = [source for source in self._sources if source in self._doubtful]
        self._order.start(doubtful)
        return bool(doubtful)

    def turn(self) -> tuple[BucketInfo, list[str]] | None:
        """The bucket whose turn it is, with names that were in it: the next one last, to be taken out by the caller."""
        while (source := self._order.first()) is not None:
            names = self._names.get(source)
            if names is None:
                names = self._fill(source)
            if names:
                return source, names
            self._order.drop(source)
        return None

    def missed(self, source: BucketInfo, name: str) -> list[str]:
        """Somebody else was first at a name of this bucket, whose turn it is; returns the names to go on with."""
        names = self._names[source]
        owns = self._lot.owns
        if not (owns(name) and len(names) > 1 and owns(names[-2])):  # somebody helped, or had nothing else
            return self._fill(source)
        self._lot.met()
        names = self._names[source] = self._lot.sorted(names)
        return names

    def crowded(self, source: BucketInfo) -> bool:
        """Whether so little is left of the bucket that it is for those in whose parts it is."""
        return self._lot.crowded(self._names[source])

    def _fill(self, source: BucketInfo) -> list[str]:
        path = self._spool.layout.bucket(source.lane, source.bucket)
        self._places[source], listed = self._list(path)
        names = self._names[source] = self._lot.sorted(listed)
        if not names:
            self._put_off(source, _FRESH)
            self._remove(source)
        return names

    def place(self, source: BucketInfo) -> files.Place:
        """The directory of the bucket of :meth:`turn`, held open where others could swap it."""
        return self._places[source]

    def served(self, source: BucketInfo) -> None:
        """A task of the bucket was claimed."""
        if self._lot.claimed():  # the others may be gone
            self._names[source] = self._lot.sorted(self._names[source])
        self._gave.add(source)
        self._latest = source
        self._doubtful.pop(source, None)  # it is in use again: what comes next into it is not to come last
        self._order.served(source)

    def hopeless(self, source: BucketInfo) -> None:
        """What is left in the bucket is what this worker leaves alone; if that was all, let it come last a while."""
        if source not in self._gave:
            self._put_off(source, _HOPELESS)
            self._order.skip(source)

    def cut(self, source: BucketInfo) -> None:
        """So much in the bucket was of no use that the others are looked at before the rest of it."""
        self._names[source].clear()
        self._put_off(source, _FRESH)

    def _put_off(self, source: BucketInfo, seconds: float) -> None:
        self._doubtful[source] = time.monotonic() + seconds

    def _remove(self, source: BucketInfo) -> None:
        """Remove an empty bucket whose submitter went on to the next one; should it come back, it makes it again."""
        if self._last[source.lane, source.priority, source.submitter] != source.bucket:
            with contextlib.suppress(OSError, NotTrusted):  # it is somebody else's, and no more than in the way
                lane = self._spool.held(self._spool.layout.lane(source.lane))
                files.remove_directory(f"{lane}/{source.bucket}")

    def _fits(self, lane: Lane) -> bool:
        """Whether lanes of this spool are named like that: with an account where several use it, and else without."""
        if (lane.user is None) is not self._spool.shared:
            return True
        path = self._spool.layout.lane(lane.name)
        who = "names no account" if self._spool.shared else "names an account, and this spool has only one"
        self._refuse(path, f"{path} {who}. It was left alone.")
        return False

    def _list(self, directory: str, owner: int | None = None) -> tuple[files.Place, list[str]]:
        try:
            self._spool.let_go(directory)
            place = self._spool.held(directory, owner)
            return place, files.list_names(str(place))
        except NotTrusted as error:
            self._refuse(directory, str(error))
        except OSError as error:
            if error.errno not in files.GONE:
                self.unlisted = error
        return directory, []
