"""Model of an open pack: a submitter appends calls to a file in the spool, until one rename seals it.

There is one session, with one submitter that may die or be stopped, and further processes that seal what it leaves. The
submitter uses one open pack after another. A call is one task of the base class.

Names:

open/P             the pack P, open; its content is ``pack`` and the numbers of its calls. ``~`` is a torn record
ready/P.1.1        the sealed pack. `seconds` is the number of its calls: those after it do not exist
results/P.1.1      the pack after its run; a worker runs each of its calls once, as `packs.py` checks
beat/P             the pack has changed within a lease, as others see it: each append is a sign of life. Without it they
                   may seal. It goes when the submitter is stopped, computes without a pause, or has nothing to append
silent/P           the pack has not changed for a lease at some time, as the submitter knows by its own clock
synced/P           number of the records that a loss of power leaves
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass

from tests.model.config import Budget, Config
from tests.model.invariants import Invariants, Records, replaced
from tests.model.operations import (
    DONE,
    ERROR,
    NO,
    Activity,
    Append,
    Body,
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
from tests.model.transitions import Effect, Participant, Shared, Step, Transitions

PACK, TORN, ALIVE = "pack", "~", "alive"
PLACES = ("ready", "results")
"""Places of a sealed pack, in the order in which it moves."""


@dataclass(frozen=True, kw_only=True)
class OpenPackConfig(Config):
    """Participants of a case: ``tasks`` is the number of calls, ``recoverers`` that of the processes that seal."""

    tasks: int = 2
    workers: int = 1


def open_pack(number: int) -> Name:
    """Return the name of an open pack."""
    return Name("open", number)


def beat(number: int) -> Name:
    """Return the name of the sign of life of a pack, which others see."""
    return Name("beat", number)


def silent(number: int) -> Name:
    """Return the name of a silence of a pack, which its submitter knows."""
    return Name("silent", number)


def synced(number: int) -> Name:
    """Return the name of the number of durable records of a pack."""
    return Name("synced", number)


def calls_of(content: str) -> tuple[str, ...]:
    """Return the calls of a pack with complete records."""
    return tuple(each for each in content.split()[1:] if each != TORN)


class OpenPackProtocol(Protocol):
    """Rules of open packs. Subclasses in the tests break one rule each."""

    config: OpenPackConfig

    # -- submitter

    @rule
    def submit(self, call: int, pack: int, new: int) -> Body:
        """Append a call to the open pack. After a silence seal the pack, and begin a new one.

        *Why a new one:* a process that saw the silence may have counted the calls, and rename the pack at any time.
        """
        yield Note("begun", call, str(pack))
        if not new and (yield Read(silent(pack), own=True)):
            yield from self.seal_own(pack)
            return self.submit(call, pack + 1, 1)
        return self.write(call, pack, new)

    @rule
    def write(self, call: int, pack: int, new: int) -> Body:
        """Append the record. Without a silence up to the end of the write nobody has counted the calls before."""
        if new:
            yield Create(open_pack(pack), PACK)
        if not (yield from self.append(call, pack)):
            return self.fail(call, pack)
        if (yield Read(silent(pack), own=True)):
            return self.decide(call, pack)
        yield Note("submitted", call)
        return None

    def append(self, call: int, pack: int) -> Generator[Operation, str, str]:
        """Append a record, through a descriptor that is open since the pack was created, and make it durable."""
        yield Append(open_pack(pack), TORN)
        if (yield Append(open_pack(pack), str(call))) == ERROR:
            return NO
        return (yield Write(synced(pack), ""))

    @rule
    def decide(self, call: int, pack: int) -> Body:
        """Seal the pack with this call in it. If another process was first, its name tells whether the call is in it.

        If it is not, submit the call again, in a new pack.
        """
        if not (yield from self.seal_own(pack)) and not (yield from self.is_in(call, pack)):
            return self.submit(call, pack + 1, 1)
        yield Note("submitted", call)
        return None

    @rule
    def fail(self, call: int, pack: int) -> Body:
        """Seal the pack without this call, whose append failed: the disk is full. Nothing is cut off.

        If another process was first, its name tells whether the call is in it all the same. *Why nothing is cut off:*
        the name of another process may count the record.
        """
        if not (yield from self.seal_own(pack, before=call)) and (yield from self.is_in(call, pack)):
            yield Note("submitted", call)
        return None

    def is_in(self, call: int, pack: int) -> Generator[Operation, str, bool]:
        """Tell whether a call is in its pack, which another process has sealed."""
        count = yield from self.sealed_count(pack)
        return int(count or 0) > int((yield Find(f"position.{pack}", call)))

    def seal_own(self, pack: int, before: int = 0) -> Generator[Operation, str, str]:
        """Rename the own open pack to ready/, with its number of calls; answer whether this process did it.

        With ``before`` it has the calls before this one.
        """
        count = yield Find(f"position.{pack}" if before else "own count", before or pack)
        yield Note("closed", 1, str(pack))
        while not (yield Rename(open_pack(pack), Name("ready", pack, 1, 1, seconds=int(count or 0)))):
            if not (yield Read(open_pack(pack), own=True)):
                return NO
        return DONE

    def sealed_count(self, pack: int) -> Generator[Operation, str, str]:
        """Return the number of calls in the name of a sealed pack, or NO if it is not found."""
        for place in PLACES * self.passes:
            found = yield Find(f"count.{place}", pack)
            if found:
                return found
        return NO

    @rule
    def seal(self, pack: int) -> Body:
        """Seal the own open pack: it is full, or a group has nothing to do."""
        yield from self.seal_own(pack)
        return None

    @rule
    def collect(self, published: Name) -> Body:
        """Deliver the calls of a pack that has run, and remove it. Submit those again that it does not have."""
        content = yield Read(published)
        if not content:
            return None
        for call in calls_of(content)[: published.seconds]:
            yield Note("delivered", int(call))
        yield Unlink(published)
        return None

    # -- others

    @rule
    def seal_for(self, name: Name) -> Body:
        """Seal a pack that is silent: list it first, then observe the silence, then count the calls, and sync them.

        What is appended after the count does not exist; a live submitter finds that out by the name. *Why the sync:*
        after a loss of power the pack would have fewer calls than its name says.
        """
        if (yield Read(beat(name.task), own=True)):  # observed for a lease, by opening the file
            return None
        content = yield Read(name)
        if content:
            yield Write(synced(name.task), "")
            yield Rename(name, Name("ready", name.task, 1, 1, seconds=len(calls_of(content))))
        return None

    @rule
    def claim(self, ready: Name, me: str, left: int = 0) -> Body:
        """Run the calls of a sealed pack: see `packs.py`."""
        content = yield Read(ready)
        if content and (yield Rename(ready, ready.to("results"))):
            for call in calls_of(content)[: ready.seconds]:
                yield Note("run", int(call))
        return None


class OpenPackInvariants(Invariants):
    """A call for which submit returned is in a pack that will run, or was delivered; none runs for two submissions."""

    def after_operation(self, files: Files, records: Records, operation: Operation | str) -> tuple[Records, str]:
        if isinstance(operation, Create) and operation.name in files:
            return records, f"{operation.name} is created twice"
        if isinstance(operation, Rename) and operation.target in files:
            return records, f"{operation.target} is replaced by a rename"
        if isinstance(operation, Rename) and operation.name.place == "open":
            durable = int(files.get(synced(operation.name.task), "0"))
            if durable < operation.target.seconds:
                return records, f"{operation.target} has fewer calls than its name says after a loss of power"
        return records, ""

    def after_note(self, files: Files, records: Records, note: Note) -> tuple[Records, str]:
        record, violation = records[note.task - 1], ""
        match note.event:
            case "begun":
                record = record._replace(begun=True, had=int(note.detail))
            case "closed":
                record = record._replace(retries=max(record.retries, int(note.detail)))
            case "submitted":
                record = record._replace(submitted=True)
            case "run":
                record = record._replace(runs=record.runs + 1)
                if record.runs > 1:
                    violation = f"call {note.task} runs twice"
            case "delivered":
                record = record._replace(delivered=True)
        return replaced(records, note.task, record), violation

    def of_files(self, files: Files, records: Records) -> str:
        held: set[str] = set()
        for name, content in files.items():
            if name.place in ("open", *PLACES):
                calls = calls_of(content)
                held.update(calls if name.place == "open" else calls[: name.seconds])
        for number, record in enumerate(records, 1):
            if record.submitted and not record.delivered and str(number) not in held:
                return f"call {number} is lost"
        return ""

    def is_complete(self, files: Files, records: Records) -> bool:
        left = any(name.place in ("open", *PLACES) for name in files)
        return not left and all(not record.submitted or record.delivered for record in records)


class OpenPackTransitions(Transitions):
    """Steps of one submitter, processes that seal, and a worker."""

    protocol: OpenPackProtocol
    config: OpenPackConfig

    def __init__(self, protocol: OpenPackProtocol) -> None:
        super().__init__(protocol)
        self.invariants = OpenPackInvariants(protocol)

    def begin(self, shared: Shared, files: Files, me: str) -> Iterator[tuple[str, str, Activity]]:
        rules, role = self.protocol, me[0]
        if me == "s":
            yield from self.submitter(shared, files)
        for name in files:
            match role, name.place:
                case "s", "results":
                    yield "", f"collects {name}", rules.collect(name)
                case "w", "ready":
                    yield "", f"claims {name}", rules.claim(name, me)
                case "r", "open":
                    yield "", f"seals {name}", rules.seal_for(name)

    def submitter(self, shared: Shared, files: Files) -> Iterator[tuple[str, str, Activity]]:
        rules, records = self.protocol, shared.records
        begun = [number for number, record in enumerate(records, 1) if record.begun]
        pack = max((record.had for record in records), default=0) or 1
        is_open = bool(begun) and records[0].retries < pack  # as far as the submitter knows
        if len(begun) < self.config.tasks:
            number = len(begun) + 1
            activity = rules.submit(number, pack, 0) if is_open else rules.submit(number, pack + bool(begun), 1)
            yield "", f"submits {number}", activity
        if is_open:
            yield "", "seals its pack", rules.seal(pack)

    def crash(self, shared: Shared, actor: str) -> Step:
        """Return the crash of a participant. A further process of the session collects for a dead submitter."""
        if actor != "s":
            return super().crash(shared, actor)
        files = tuple(each for each in shared.files if each[0].place != "beat")
        live = tuple(sorted({*shared.live, "s2"} - {"s"}))
        shared = shared._replace(files=files, live=live, budget=shared.budget.spend("crash"))
        return Step(actor, "CRASHES", Effect("", "crash"), shared, (Participant("s2"),))

    def steps(self, shared: Shared, participant: Participant) -> Iterator[Step]:
        yield from super().steps(shared, participant)
        if participant.name != "s":
            return
        files = dict(shared.files)
        beats = [name for name in files if name.place == "beat"]
        if beats and shared.budget.suspect:  # at any moment
            changed = {name: content for name, content in files.items() if name not in beats}
            changed.update((silent(name.task), ALIVE) for name in beats)
            stopped = shared._replace(files=tuple(sorted(changed.items())), budget=shared.budget.spend("suspect"))
            yield Step("s", "appends nothing for a lease", Effect("", "suspect"), stopped, (participant,))

    def effects(self, operation: Operation, files: Files, budget: Budget) -> Iterator[Effect]:
        match operation:
            case Append(name, text):
                target = name if name in files else self.renamed(name, files)
                if target is None:  # removed: nobody sees what is appended
                    yield Effect(DONE)
                    return
                whole = " ".join((PACK, *calls_of(files[target]), text))
                after = {**files, target: whole, beat(name.task): ALIVE}
                yield Effect(DONE, files=after)
                if budget.error and text != TORN:
                    yield Effect(ERROR, "error", description="not done, the disk is full")
                if budget.enoent and text != TORN:
                    yield Effect(ERROR, "enoent", after, "done, but answers an error")
            case Create(name, content) if name.place == "open":
                yield Effect(DONE, files={**files, name: content, beat(name.task): ALIVE})
            case Write(name) if name.place == "synced":
                here = open_pack(name.task)
                where = here if here in files else self.renamed(here, files)
                count = "0" if where is None else str(len(calls_of(files[where])))
                yield Effect(DONE, files={**files, name: count})
            case Find(place, pack) if place.startswith("count."):
                found = [each for each in files if (each.place, each.task) == (place.partition(".")[2], pack)]
                yield from self.read(str(found[0].seconds) if found else NO, budget.stale)
            case Find(place, call) if place.startswith("position."):  # what the submitter knows by itself
                number = int(place.partition(".")[2])
                here = open_pack(number)
                where = here if here in files else self.renamed(here, files)
                calls = () if where is None else calls_of(files[where])
                if where is None:  # it had no calls
                    yield Effect(str(self.config.tasks))
                else:
                    yield Effect(str(calls.index(str(call)) if str(call) in calls else len(calls)))
            case Find("own count", pack):
                here = open_pack(pack)
                where = here if here in files else self.renamed(here, files)
                yield Effect("" if where is None else str(len(calls_of(files[where]))))
            case Rename(name, target) if name.place == "open" and target.seconds == 0 and name in files:
                for effect in super().effects(Unlink(name), files, budget):  # a pack without calls
                    yield effect._replace(answer=NO) if effect.answer == ERROR else effect
            case _:
                yield from super().effects(operation, files, budget)

    @staticmethod
    def renamed(name: Name, files: Files) -> Name | None:
        """Return where a file is whose descriptor is open, after a rename of it."""
        return next((each for each in files if each.task == name.task and each.place in PLACES), None)
