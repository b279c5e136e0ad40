"""Model of a pack: calls that share a task, whose outcomes are appended to one log of each claim.

There is one pack, of ``calls`` calls, and one session. The log of a claim has one record per call, in their order. A
worker *adopts* the log of the claim before its own: it copies the records into its own log, and then runs the call
after them. The collector delivers records of a log while the pack runs.

Names:

ready, claimed, results/1.c.a.w    the pack. `seconds` is the number of its first calls that have a record: FIRST
outgoing/1.c                       log of the claim c, which one worker appends to

Content of a log: ``log``, then the records. A record is the number of the claim in which the call ran, with ``L`` if
the call was lost in that claim. ``~`` is a torn record.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass

from tests.model.config import Budget, Config
from tests.model.invariants import Invariants, Records, replaced
from tests.model.operations import (
    DONE,
    NO,
    TASK,
    Activity,
    Append,
    Body,
    Choose,
    Create,
    Files,
    Find,
    Name,
    Note,
    Operation,
    Read,
    Rename,
    Unlink,
    Write,
    rule,
)
from tests.model.protocol import Protocol
from tests.model.transitions import Effect, Shared, Transitions

LOG, TORN = "log", "~"
Log = tuple[str, ...]


FoundLog = Generator[Operation, str, Log]


@dataclass(frozen=True, kw_only=True)
class PackConfig(Config):
    """Participants of a case. The calls are the tasks of the base class; ``attempts`` are those of each call."""

    tasks: int = 2

    @property
    def calls(self) -> int:
        """Number of calls of the pack."""
        return self.tasks


def log_of(claim: Name) -> Name:
    """Return the log of a claim."""
    return Name("outgoing", 1, claim.claim)


def records_of(content: str) -> Log:
    """Return the complete records of a log."""
    return tuple(each for each in content.split()[1:] if each != TORN)


def has_own(records: Log, claim: int) -> bool:
    """Tell whether a log has a record of its own claim, after the records that it adopted."""
    return any(each.rstrip("L") == str(claim) for each in records)


class PackProtocol(Protocol):
    """Rules of packs. Subclasses in the tests break one rule each."""

    config: PackConfig

    # -- submitter

    @rule
    def enqueue(self, task: int) -> Body:
        """Put the pack into the spool, with one rename: see :mod:`tests.model.protocol`."""
        yield Create(Name("ready", 1, 1, 1), TASK)
        for call in range(self.config.calls):
            yield Note("submitted", call + 1)
        return None

    @rule
    def stream(self, claimed: Name) -> Body:
        """Read the log of a claim, then look for the claim. If it stands, each of the records counts: deliver them."""
        records = records_of((yield Read(log_of(claimed))))
        if records and (yield Read(claimed)):
            for call, record in enumerate(records):
                yield Note("delivered", call + 1, record)
        return None

    @rule
    def collect(self, published: Name) -> Body:
        """Deliver the records of the published log. Then remove the pack, its log, and the logs of earlier claims."""
        records = records_of((yield Read(log_of(published))))
        if len(records) < self.config.calls:
            return None
        for call, record in enumerate(records):
            yield Note("delivered", call + 1, record)
        if (yield Unlink(published)) == DONE:
            for claim in range(published.claim, 0, -1):
                yield Unlink(Name("outgoing", 1, claim))
        return None

    # -- worker

    @rule
    def claim(self, ready: Name, me: str, left: int = 0) -> Body:
        """Claim the pack as any task, and adopt the log of an earlier claim."""
        mine = ready.to("claimed", me)
        if (yield Rename(ready, mine)) or (yield Read(mine)):
            return self.adopt(mine)
        return None

    def find_log(self, last: int) -> FoundLog:
        """Return the records of the latest log, down from the claim ``last``, that has a record of its own claim.

        A log without one has a part of the records that it was about to adopt. Look for each log more than once, since
        a stale cache may hide it.
        """
        for claim in range(last, 0, -1):
            for _ in range(self.rounds):
                found = records_of((yield Read(Name("outgoing", 1, claim))))
                if has_own(found, claim):
                    return found
        return ()

    @rule
    def adopt(self, mine: Name) -> Body:
        """Copy the records of an earlier claim into the own log, and run the call after them."""
        records = yield from self.find_log(mine.claim - 1)
        yield Create(log_of(mine), LOG)
        for record in records:
            yield from self.append(mine, record)
        return self.run_calls(mine, len(records))

    def append(self, mine: Name, record: str) -> Generator[Operation, str, None]:
        """Append a record; the worker may die in the middle."""
        yield Append(log_of(mine), TORN)
        yield Append(log_of(mine), record)

    def attempt(self, mine: Name, done: int) -> int:
        """Return the attempt of the first call without a record: the name of the pack counts that of its call FIRST."""
        return mine.attempt if done == mine.seconds else 1

    @rule
    def run_calls(self, mine: Name, done: int) -> Body:
        """Run the calls without a record, in their order; each has its record before the next one begins."""
        if done == self.config.calls:
            return self.commit(mine)
        if (yield Choose("release")):
            first = mine.seconds == done
            ready = mine.following("ready", mine.attempt if first else 1)._replace(seconds=done)
            yield Rename(mine, ready)
            return None
        if self.attempt(mine, done) > self.config.attempts:
            yield from self.append(mine, f"{mine.claim}L")
        else:
            yield Note("run", done + 1, str(mine.claim))
            yield from self.append(mine, str(mine.claim))
        return self.run_calls(mine, done + 1)

    @rule
    def commit(self, mine: Name) -> Body:
        """Rename claimed/N.c.a.w to results/N.c.a.w. A fenced worker leaves its log: another one may adopt it."""
        published = mine.to("results")
        if (yield Rename(mine, published)):
            return None
        if (yield Read(mine)):
            return self.commit(mine)
        return None

    @rule
    def self_check(self, mine: Name, left: int = 0) -> Body:
        """Resume a claim in the worker's name on which it does not work. Its log may have records."""
        own = records_of((yield Read(log_of(mine), own=True)))
        if has_own(own, mine.claim):
            yield Append(log_of(mine), "")  # cuts a torn record off
            return self.run_calls(mine, len(own))
        records = yield from self.find_log(mine.claim - 1)
        yield Write(log_of(mine), LOG)
        for record in records:
            yield from self.append(mine, record)
        return self.run_calls(mine, len(records))

    # -- recoverer

    @rule
    def recover(self, claimed: Name, me: str) -> Body:
        """Commit the claim of a dead worker if its log is complete; else requeue the pack.

        The first call without a record is the one that ran: it alone gets the attempt.
        """
        content = yield Read(log_of(claimed))
        if len(records_of(content)) == self.config.calls:
            yield Rename(claimed, claimed.to("results"))
            return None
        records = yield from self.find_log(claimed.claim)
        first = max(len(records), claimed.seconds)
        attempt = claimed.attempt + 1 if first == claimed.seconds else 2
        ready = claimed.following("ready", min(attempt, self.config.attempts + 1))
        yield Rename(claimed, ready._replace(seconds=first))
        return None

    @rule
    def discard(self, outgoing: Name) -> Body:
        """Unlink a log that no claim adopts any more: the pack was published by another claim, or is gone.

        Look in the order in which the pack moves, and several times: it can move back.
        """
        for _ in range(self.passes):
            for place in ("ready", "claimed"):
                if (yield Find(place, 1)):
                    return None
            if (yield Find(f"results.{outgoing.claim}", 1)):
                return None
        yield Unlink(outgoing)
        return None


class PackInvariants(Invariants):
    """Each call has one outcome, and none runs again after its delivery."""

    protocol: PackProtocol

    def after_operation(self, files: Files, records: Records, operation: Operation | str) -> tuple[Records, str]:
        if isinstance(operation, Create) and operation.name in files:
            return records, f"{operation.name} is created twice"
        if isinstance(operation, Append) and operation.text.endswith("L"):
            call = len(records_of(files.get(operation.name, LOG)))
            if call >= len(records) or records[call].had < self.protocol.config.attempts:
                return records, f"call {call + 1} is lost, although fewer workers died in it than it has attempts"
        if not isinstance(operation, Rename):
            return records, ""
        source, target = operation
        if target in files:
            return records, f"{target} is replaced by a rename"
        if (source.place, target.place) == ("claimed", "ready") and target.attempt > 1:
            call = len(self.latest(files, source.claim))
            if call < len(records):
                records = replaced(records, call + 1, records[call]._replace(had=records[call].had + 1))
        if target.place == "results":
            published = records_of(files.get(log_of(target), LOG))
            if len(published) < len(records):
                return records, f"{target} is published without an outcome of each call"
            for call, record in enumerate(records):
                if record.outcome not in ("", published[call]):
                    return records, f"call {call + 1} has another outcome in {target} than the delivered one"
        return records, ""

    @staticmethod
    def latest(files: Files, last: int) -> Log:
        for claim in range(last, 0, -1):
            records = records_of(files.get(Name("outgoing", 1, claim), LOG))
            if has_own(records, claim):
                return records
        return ()

    def after_note(self, files: Files, records: Records, note: Note) -> tuple[Records, str]:
        record, violation = records[note.task - 1], ""
        match note.event:
            case "submitted":
                record = record._replace(submitted=True)
            case "delivered":
                if record.delivered and record.outcome != note.detail:
                    violation = f"call {note.task} gets a second outcome"
                record = record._replace(delivered=True, outcome=note.detail)
            case "run":
                record = record._replace(runs=record.runs + 1)
                claims = [str(name.claim) for name, content in files.items() if content == TASK]
                if record.delivered and note.detail in claims:  # else the worker is fenced, and its log does not count
                    violation = f"call {note.task} runs again after its outcome was delivered"
        return replaced(records, note.task, record), violation

    def of_files(self, files: Files, records: Records) -> str:
        found = [name for name, content in files.items() if content == TASK]
        if len(found) > 1:
            return f"the pack has two files: {found[0]} and {found[1]}"
        if not found and any(record.owed for record in records):
            return "the pack is lost"
        return ""

    def is_complete(self, files: Files, records: Records) -> bool:
        return not files and all(record.delivered for record in records)


class PackTransitions(Transitions):
    """Steps of the submitter, workers and recoverers of one pack."""

    protocol: PackProtocol
    config: PackConfig

    def __init__(self, protocol: PackProtocol) -> None:
        super().__init__(protocol)
        self.invariants = PackInvariants(protocol)

    def begin(self, shared: Shared, files: Files, me: str) -> Iterator[tuple[str, str, Activity]]:
        rules, role = self.protocol, me[0]
        others = set(shared.live) - {me}
        if role == "s" and not shared.records[0].submitted:
            yield "", "submits the pack", rules.enqueue(1)
        for name in files:
            match role, name.place:
                case "s", "claimed":
                    yield "", f"looks at the log of {name}", rules.stream(name)
                case "s", "results":
                    yield "", f"collects {name}", rules.collect(name)
                case "w", "ready":
                    yield "", f"claims {name}", rules.claim(name, me)
                case "w", "claimed" if name.holder == me:
                    yield "", f"finds {name} in its name", rules.self_check(name)
                case "r", "claimed" if name.holder not in others or shared.budget.suspect:
                    price = "suspect" if name.holder in others else ""
                    yield price, f"recovers {name}", rules.recover(name, me)
                case "r", "outgoing":
                    yield "", f"considers {name}", rules.discard(name)

    def effects(self, operation: Operation, files: Files, budget: Budget) -> Iterator[Effect]:
        match operation:
            case Append(name, text):
                if name not in files:  # unlinked: nobody sees what is appended
                    yield Effect(DONE)
                    return
                whole = " ".join((LOG, *records_of(files[name]), *([text] if text else [])))
                yield Effect(DONE, files={**files, name: whole})
            case Find(place) if place.startswith("results."):
                claim = int(place.partition(".")[2])
                found = any(each.place == "results" and each.claim == claim for each in files)
                yield from self.read(TASK if found else NO, budget.stale)
            case _:
                yield from super().effects(operation, files, budget)
