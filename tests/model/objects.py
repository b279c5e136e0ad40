"""Model of objects: the leases of sessions, the tasks that name an object, and the removal of objects.

There is one object, which every task names, and one session with several processes. No task is collected or lost here
in the ways of `protocol.py`: its file moves, and needs its object, until it is done.

Names:

objects/1          the object
aside/1.h          the object, put aside by h, who decides whether to remove it
needs/1.h          lease of the process h
sessions/0.h       entry of the process h
waiting, ready, claimed, failed, results      files of tasks

These are no files, but the state of processes:

process/0.h        h runs. Its absence is the proof that h is dead
held/1.h           h has acquired the object, and relies on that
silent/1.h         h has given no sign of life for long: it does not rely on its lease, and renews it first
mine/N.h           h waits for the task N, or knows that it was lost
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass

from tests.model.config import Budget, Config
from tests.model.invariants import Invariants, Records, replaced
from tests.model.operations import (
    DONE,
    ERROR,
    LOST,
    TASK,
    Activity,
    Body,
    Choose,
    Create,
    Files,
    Find,
    Holders,
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
from tests.model.transitions import Effect, Participant, Shared, State, Step, Transitions

OBJECT = Name("objects", 1)
CONTENT, LEASE, ENTRY, PENDING, ALIVE, SILENT = "object", "lease", "entry", "pending", "alive", "silent"
PLACES = ("waiting", "ready", "claimed", "failed")
"""Directories of the tasks that need the object, in the order in which a task moves."""
ANY = "any"

Answer = Generator[Operation, str, bool]


@dataclass(frozen=True, kw_only=True)
class ObjectConfig(Config):
    """Participants of a case.

    tasks       number of tasks: the first process submits the first one, and so on
    processes   processes of the session: each acquires the object, submits, collects, and ends; the first one puts the
                object, the others refer to it
    collectors  processes that collect garbage, at any time
    crashing    roles whose participants can crash
    early       the processes share a value unasked: each puts it, submits `rounds` tasks one after another, and may
                remove the object before its end, when none of its tasks needs it
    rounds      tasks of each process
    by_place    a look through the tasks lists one directory after the other, and a task may move meanwhile; else it is
                one step, for cases in which no task moves to a place that was listed before
    """

    workers: int = 1
    processes: int = 2
    collectors: int = 1
    crashing: str = "gsw"
    by_place: bool = False
    early: bool = False
    rounds: int = 1


class ObjectProtocol(Protocol):
    """Rules of objects. Subclasses in the tests break one rule each."""

    config: ObjectConfig
    looks = 2  # looks through all tasks after the object was put aside: a task may move to a place that was seen

    def __init__(self, config: ObjectConfig) -> None:
        super().__init__(config)
        self.by_place = config.by_place
        self.processes = tuple(f"s{number + 1}" for number in range(config.processes))

    def entries(self) -> list[Name]:
        """Return the entries of the processes: each has one of its own."""
        return [entry_of(each) for each in self.processes]

    def tasks_of(self, number: int) -> list[int]:
        """Return the tasks that a process submits, by its number."""
        if self.config.early:
            return [number * self.config.rounds + each + 1 for each in range(self.config.rounds)]
        return [number + 1] if number < self.config.tasks else []

    def is_kept(self, mine: dict[int, str]) -> bool:
        """Tell whether a process that ends leaves its lease: a task of its own was lost, and may be retried."""
        return LOST in mine.values()

    # -- processes of the session

    @rule
    def put(self, me: str) -> Body:
        """Acquire a lease; then write the object, if it does not exist."""
        yield Create(lease_of(me), LEASE)
        if not (yield Read(OBJECT)):
            yield Create(OBJECT, CONTENT)
        yield Create(held_by(me), "")
        return None

    @rule
    def refer(self, me: str) -> Body:
        """Acquire a lease; then look for the object, also aside. It is refused if it does not exist."""
        yield Note("begun", self.processes.index(me) + 1)
        yield Create(lease_of(me), LEASE)
        if (yield from self.found()):
            yield Create(held_by(me), "")
        else:
            yield Unlink(lease_of(me))
        return None

    def found(self) -> Answer:
        """Look for the object; put it back if it is aside."""
        if (yield Read(OBJECT)):
            return True
        holders = yield Holders("aside", 1)
        for holder in holders.split():
            if (yield Rename(Name("aside", 1, holder=holder), OBJECT)):
                return True
        return bool((yield Read(OBJECT)))

    @rule
    def submit(self, task: int, me: str) -> Body:
        """Submit a task that names the object, if the lease was renewed lately. The process is not silent meanwhile."""
        if (yield Rename(held_by(me), Name("mine", task, holder=me))):
            yield Create(Name("ready", task, 1, 1), TASK)
            yield Note("submitted", task)
            yield Create(held_by(me), "")
        return None

    @rule
    def take(self, published: Name, me: str) -> Body:
        yield Unlink(published)
        yield Unlink(Name("mine", published.task, holder=me))
        return None

    @rule
    def hear_of_loss(self, task: int, me: str) -> Body:
        yield Write(Name("mine", task, holder=me), LOST)
        return None

    @rule
    def close(self, me: str, keeps: int) -> Body:
        """End: release the lease; remove the object if there is no other one, also no expired one."""
        if not keeps:
            yield Unlink(lease_of(me))
            if not (yield Holders("needs", 1)):
                yield from self.remove(me, by_gc=False)
        return self.leave(me)

    def is_unused(self, mine: dict[int, str]) -> bool:
        """Tell whether no task of a process needs the object: none is awaited, and none was lost."""
        return not mine

    @rule
    def remove_early(self, me: str, left: int) -> Body:
        """Remove the object as at the end, but go on: it is acquired again for a later task."""
        yield Unlink(held_by(me))
        yield Unlink(lease_of(me))
        yield from self.remove(me, by_gc=False, run=f"a{left}")
        return None

    @rule
    def leave(self, me: str) -> Body:
        """End without a look at anything else."""
        yield Unlink(entry_of(me))
        yield Unlink(Name("process", 0, holder=me))
        return None

    # -- removal

    def remove(self, me: str, *, by_gc: bool, run: str = "") -> Answer:
        """Put the object aside, look again, and put it back if it is needed, or remove it.

        A process that acquires the object meanwhile has created its lease before it looks for the object: it finds the
        object, here or aside, or the lease is found here. `by_gc`: leases can be of dead processes, whose tasks wait.
        No other removal has its `run`, so that a collector which found an earlier one does nothing to it.
        """
        aside = Name("aside", 1, holder=run or me)
        if not (yield Rename(OBJECT, aside)):
            return False
        if by_gc:
            needed = (yield from self.is_leased()) or (yield from self.is_named(self.looks))
        else:
            needed = bool((yield Holders("needs", 1)))
        if needed and not (yield Read(OBJECT)):
            yield Rename(aside, OBJECT)
        else:
            yield Unlink(aside)
        return not needed

    def is_leased(self) -> Answer:
        """Tell whether there is a lease of the session, and one of its processes is not known to have ended."""
        if not (yield Holders("needs", 1)):
            return False
        for entry in self.entries():
            if (yield Read(entry)) and (yield Read(Name("process", 0, holder=entry.holder))) == ALIVE:
                return True
        return False

    def is_named(self, looks: int) -> Answer:
        """Tell whether a task names the object, or one that cannot be read may name it."""
        for place in (PLACES if self.by_place else (ANY,)) * looks:
            for task in range(1, self.config.tasks + 1):
                if (yield Find(place, task)):
                    return True
        return False

    @rule
    def collect_garbage(self, me: str) -> Body:
        """Remove the object if no lease and no task keeps it; then the leases, if their processes had ended before.

        A lease that was created after the look at the tasks may be of a process that has submitted a task since then.
        """
        holders = yield Holders("needs", 1)
        ended: tuple[str, ...] = ()
        for holder in holders.split():
            if not (yield Read(Name("process", 0, holder=holder))):
                ended = (*ended, holder)
        if (yield from self.is_leased()) or (yield from self.is_named(1)):
            return None
        if (yield from self.remove(me, by_gc=True)) or not (yield from self.found()):
            for holder in ended:
                yield Unlink(lease_of(holder))
        return None

    @rule
    def restore(self, aside: Name) -> Body:
        """Put back an object that a process put aside, and died; the next collection decides about it."""
        if (yield Read(OBJECT)):
            yield Unlink(aside)
        else:
            yield Rename(aside, OBJECT)
        return None

    @rule
    def forget(self, name: Name) -> Body:
        """Remove the entry of a dead process, or a task that is done and whose submitter has ended."""
        yield Unlink(name)
        return None

    # -- worker, and requests

    @rule
    def claim(self, ready: Name, me: str, left: int = 0) -> Body:
        mine = ready.to("claimed", me)
        return self.run(mine) if (yield Rename(ready, mine)) else None

    @rule
    def run(self, mine: Name, left: int = 0) -> Body:
        """Run the task with its object. It is looked for again while it is missing: it may be aside for a moment."""
        if not (yield from self.found()):
            yield Note("missing", mine.task)
            return self.run(mine)
        yield Note("run", mine.task)
        if mine.attempt <= self.config.retries and (yield Choose("raises")):
            yield Rename(mine, Name("waiting", mine.task, mine.claim + 1, mine.attempt + 1))
        else:
            yield Rename(mine, mine.to("results"))
        return None

    @rule
    def recover(self, claimed: Name, me: str) -> Body:
        """Requeue the task of a dead worker; after its last attempt it goes to failed/."""
        lost = claimed.attempt >= self.config.attempts
        ready = Name("ready", claimed.task, claimed.claim + 1, claimed.attempt + 1)
        yield Rename(claimed, claimed.to("failed") if lost else ready)
        return None


def lease_of(process: str) -> Name:
    return Name("needs", 1, holder=process)


def held_by(process: str) -> Name:
    return Name("held", 1, holder=process)


def entry_of(process: str) -> Name:
    return Name("sessions", 0, holder=process)


class ObjectInvariants(Invariants):
    """A task always finds its object, and nothing is kept for ever."""

    def after_operation(self, files: Files, records: Records, operation: Operation | str) -> tuple[Records, str]:
        return records, ""

    def after_note(self, files: Files, records: Records, note: Note) -> tuple[Records, str]:
        if note.event == "missing":
            return records, self.of_files(files, records)
        if note.event == "submitted":
            return replaced(records, note.task, records[note.task - 1]._replace(submitted=True)), ""
        if note.event == "begun":
            return replaced(records, note.task, records[note.task - 1]._replace(begun=True)), ""
        return records, ""

    def of_files(self, files: Files, records: Records) -> str:
        stored = any(name.place in ("objects", "aside") for name in files)
        for name in files:
            if name.place in PLACES and not stored:
                return f"{name} needs the object, which was removed"
        return ""

    def is_complete(self, files: Files, records: Records) -> bool:
        """Tell whether all processes have ended, and nothing is left but lost tasks and what they need."""
        left = {name.place for name in files}
        if not self.protocol.config.collectors:  # what they would collect stays
            return left <= {"aside", "failed", "needs", "objects", "results", "sessions"}
        return not left or left in ({"failed", "objects"}, {"failed", "objects", "needs"})


class ObjectTransitions(Transitions):
    """Steps of the processes of a session, a worker, a recoverer, and collectors of garbage."""

    protocol: ObjectProtocol
    config: ObjectConfig

    def __init__(self, protocol: ObjectProtocol) -> None:
        super().__init__(protocol)
        self.invariants = ObjectInvariants(protocol)

    def start(self) -> State:
        config = self.config
        collectors = [f"g{number + 1}" for number in range(config.collectors)]
        workers = [f"w{number + 1}" for number in range(config.workers)]
        live = (*collectors, "r1", *self.protocol.processes, *workers)
        files = dict.fromkeys(self.protocol.entries(), ENTRY)
        files |= {Name("process", 0, holder=each): ALIVE for each in self.protocol.processes}
        shared = super().start().shared
        shared = shared._replace(
            files=tuple(sorted(files.items())),
            live=live,
            used=tuple(workers),
            records=shared.records[:1] * max(config.tasks, config.processes),
        )
        return State(shared, tuple(map(Participant, live)))

    def begin(self, shared: Shared, files: Files, me: str) -> Iterator[tuple[str, str, Activity]]:
        rules, role = self.protocol, me[0]
        if role == "s":
            if Name("process", 0, holder=me) in files:
                yield from self.session(shared, files, me)
            return
        if role == "g" and (OBJECT in files or any(name.place == "needs" for name in files)):
            yield "", "collects garbage", rules.collect_garbage(me)
        for name in files:
            match role, name.place:
                case "w", "ready":
                    yield "", f"claims {name}", rules.claim(name, me)
                case "r", "waiting":
                    yield "", f"makes {name} ready", rules.make_ready(name)
                case "r", "claimed" if name.holder not in shared.live:
                    yield "", f"recovers {name}", rules.recover(name, me)
                case "r", "failed" if shared.budget.retry:
                    yield "retry", f"is asked to retry {name}", rules.retry(name)
                case "g", "aside":
                    yield "", f"finds {name}", rules.restore(name)
                case "g", "sessions" if Name("process", 0, holder=name.holder) not in files:
                    yield "", f"finds {name}", rules.forget(name)
                case "g", "results" if not any(each.place == "mine" and each.task == name.task for each in files):
                    yield "", f"finds {name}", rules.forget(name)

    def session(self, shared: Shared, files: Files, me: str) -> Iterator[tuple[str, str, Activity]]:
        """Yield what a process of the session can do: it ends once it waits for no task any more."""
        rules = self.protocol
        mine = {name.task: content for name, content in files.items() if name.place == "mine" and name.holder == me}
        number = rules.processes.index(me)
        tasks = rules.tasks_of(number)
        unsubmitted = [task for task in tasks if not shared.records[task - 1].submitted]
        acquires = bool(unsubmitted) if self.config.early else bool(tasks) or not shared.records[number].begun
        if held_by(me) not in files:
            first = number == 0 or self.config.early
            if acquires:
                yield "", "acquires the object", rules.put(me) if first else rules.refer(me)
        elif unsubmitted:
            yield "", f"submits {unsubmitted[0]}", rules.submit(unsubmitted[0], me)
        if shared.budget.early and held_by(me) in files and rules.is_unused(mine):
            yield "early", "needs the object no more", rules.remove_early(me, shared.budget.early)
        for name in files:
            if name.place in ("results", "failed") and mine.get(name.task) == PENDING:
                done = name.place == "results"
                yield "", f"finds {name}", rules.take(name, me) if done else rules.hear_of_loss(name.task, me)
        if PENDING not in mine.values():
            yield "", "closes", rules.close(me, int(rules.is_kept(mine)))
        if shared.budget.detach:
            yield "detach", "detaches", rules.leave(me)

    def effects(self, operation: Operation, files: Files, budget: Budget) -> Iterator[Effect]:
        match operation:
            case Find(place, task):
                places = PLACES if place == ANY else (place,)
                found = any(name.place in places and name.task == task for name in files)
                yield Effect(DONE if found else "")
                if found and budget.unreadable:
                    yield Effect(ERROR, "unreadable", description="cannot be read")
            case Read(name) if name.place == "process":
                silent = Name("silent", 1, holder=name.holder)
                yield Effect(SILENT if silent in files else files.get(name, ""))
                if budget.suspect and held_by(name.holder) in files:
                    after = {other: content for other, content in files.items() if other != held_by(name.holder)}
                    yield Effect(SILENT, "suspect", {**after, silent: ""}, "no sign of life for long")
            case Create(name) if name.place == "needs":
                silent = Name("silent", 1, holder=name.holder)
                after = {other: content for other, content in files.items() if other != silent}
                yield Effect(DONE, files={**after, name: operation.content})
            case Rename(name, target) if target.place == "mine":
                after = {other: content for other, content in files.items() if other != name}
                found = name in files
                yield Effect(DONE, files={**after, target: PENDING}) if found else Effect("")
            case Unlink(name) if name.place == "process":
                yield Effect(DONE, files=without_process(files, name.holder))
            case _:
                yield from super().effects(operation, files, budget)

    def steps(self, shared: Shared, participant: Participant) -> Iterator[Step]:
        if participant.name[0] in self.config.crashing:
            return super().steps(shared, participant)
        kept = shared.budget
        spared = super().steps(shared._replace(budget=kept._replace(crash=0)), participant)
        return (
            step._replace(shared=step.shared._replace(budget=step.shared.budget._replace(crash=kept.crash)))
            for step in spared
        )

    def crash(self, shared: Shared, actor: str) -> Step:
        """Return the crash of a participant; a process of the session is not replaced."""
        if actor[0] == "w":
            return super().crash(shared, actor)
        files = without_process(dict(shared.files), actor)
        live = tuple(each for each in shared.live if each != actor)
        new: tuple[Participant, ...] = ()
        if actor[0] != "s":
            new = (Participant(f"{actor[0]}{int(actor[1:]) + self.config.collectors}"),)
            live = tuple(sorted((*live, new[0].name)))
        shared = shared._replace(files=tuple(sorted(files.items())), live=live, budget=shared.budget.spend("crash"))
        return Step(actor, "CRASHES", Effect("", "crash"), shared, new)


def without_process(files: Files, process: str) -> Files:
    """Return the files without the state of a process that has ended."""
    gone = ("process", "held", "silent", "mine")
    return {name: content for name, content in files.items() if not (name.place in gone and name.holder == process)}
