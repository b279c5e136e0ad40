"""Transitions between states: participants that begin rules and execute operations, faults and choices."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from tests.model.config import Budget
from tests.model.invariants import Invariants, Record, Records, has_successor, outcome_of, replaced
from tests.model.operations import (
    ALIVE,
    DEAD,
    DIRECTORY,
    DONE,
    ENTRY,
    ERROR,
    INBOX,
    LOST,
    NO,
    TASK,
    Activity,
    Choose,
    Create,
    Files,
    Find,
    Holders,
    Name,
    Note,
    Operation,
    Read,
    ReadOutcome,
    ReadSuccessor,
    Rename,
    Unlink,
    Write,
    next_of,
)
from tests.model.protocol import Protocol


class Participant(NamedTuple):
    """A live participant and the activity that it executes, or None if it is idle.

    Its name begins with its role: s, s2, ... submitter; w1, w2, ... worker; r1, r2, ... recoverer; g1, g2, ... garbage
    collector; v1, v2, ... autoscaler.
    """

    name: str
    activity: Activity | None = None


class Shared(NamedTuple):
    """The part of a state that does not belong to one participant.

    `live` are the names of the participants that live, sorted. `used` are all numbered names that were given so far,
    sorted; a new participant gets a new one.
    """

    files: tuple[tuple[Name, str], ...]
    records: Records
    budget: Budget
    live: tuple[str, ...]
    used: tuple[str, ...]


class State(NamedTuple):
    """State of the spool and of all participants, in the order of their names. A participant that is absent is dead."""

    shared: Shared
    participants: tuple[Participant, ...]


class Effect(NamedTuple):
    """One way in which an operation can end: the answer, its price, and the files after it (None: unchanged)."""

    answer: str
    price: str = ""
    files: Files | None = None
    description: str = ""


class Step(NamedTuple):
    """A transition of one participant.

    `after` is the participant after the step. After a crash it is empty, or holds the participant that replaces the
    dead one, and stands in the same place in the order of names.
    `violation` describes the invariant that the step breaks.
    """

    actor: str
    action: Operation | str
    effect: Effect
    shared: Shared
    after: tuple[Participant, ...]
    violation: str = ""

    def __str__(self) -> str:
        if isinstance(self.action, str):
            return f"{self.actor:3} {self.action}"
        verb = re.sub("(?<=[a-z])(?=[A-Z])", " ", type(self.action).__name__).lower()
        words = " ".join(str(part) for part in self.action if not isinstance(part, bool))
        answer = self.effect.description or self.effect.answer or "no"
        return f"{self.actor:3} {verb} {words}: {answer}"


class Transitions:
    """All steps that are possible in a state.

    A step of a participant depends on the shared part of the state and on the participant itself, never on the
    activity of another one. The checker relies on this: it computes the steps of each such pair once.
    """

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol
        self.config = protocol.config
        self.invariants = Invariants(protocol)

    def start(self) -> State:
        """Return the first state: a spool without tasks, and every participant idle."""
        workers = [f"w{i + 1}" for i in range(self.config.workers)]
        recoverers = [f"r{i + 1}" for i in range(self.config.recoverers)]
        others = [f"s{i + 2}" for i in range(self.config.submitters - 1)]
        collectors = [f"g{i + 1}" for i in range(self.config.collectors)]
        scaler = ["v1"] if self.config.autoscaler else []
        used = (*collectors, *recoverers, *others, *scaler, *workers)
        live = (*collectors, *recoverers, "s", *others, *scaler, *workers)
        files = {INBOX: DIRECTORY} if self.config.shared else {}
        if collectors:
            files[ENTRY] = ALIVE
        shared = Shared(tuple(sorted(files.items())), (Record(),) * self.config.tasks, self.config.budget, live, used)
        return State(shared, tuple(Participant(name) for name in live))

    def successors(self, state: State) -> Iterator[tuple[Step, State]]:
        """Yield every step that is possible in a state, and the state after it."""
        for place, participant in enumerate(state.participants):
            before, behind = state.participants[:place], state.participants[place + 1 :]
            for step in self.steps(state.shared, participant):
                yield step, State(step.shared, (*before, *step.after, *behind))

    def steps(self, shared: Shared, participant: Participant) -> Iterator[Step]:
        """Yield every step that a participant can take."""
        files = dict(shared.files)
        name, activity = participant
        if activity is None:
            for price, words, begun in self.begin(shared, files, name):
                yield self.step(shared, name, words, Effect("", price), begun)
            if name[0] == "v" and any(each.place == "ready" for each in files):
                yield from self.start_worker(shared, name)
            if name[0] == "r" and shared.budget.delete:
                for deleted in (each for each, content in files.items() if content == TASK):
                    yield self.delete(shared, name, deleted)
            return
        operation = next_of(activity)
        assert operation is not None
        assert not isinstance(operation, Activity)
        for effect in self.effects(operation, files, shared.budget):
            yield self.step(shared, name, operation, effect, activity.answered(effect.answer))
        if shared.budget.crash:
            yield self.crash(shared, name)
        if shared.budget.death and name == "s":
            budget = shared.budget.spend("death")
            yield self.crash(shared._replace(budget=budget._replace(crash=budget.crash + 1)), name)

    def delete(self, shared: Shared, actor: str, name: Name) -> Step:
        """Return the deletion of a task file by a third party, at a moment at which this participant is idle."""
        files = {other: content for other, content in shared.files if other != name}
        record = shared.records[name.task - 1]._replace(deleted=True)
        shared = shared._replace(
            files=tuple(sorted(files.items())),
            records=replaced(shared.records, name.task, record),
            budget=shared.budget.spend("delete"),
        )
        violation = self.invariants.of_files(files, shared.records)
        action = f"sees a third party delete {name}"
        return Step(actor, action, Effect("", "delete"), shared, (Participant(actor),), violation)

    def start_worker(self, shared: Shared, actor: str) -> Iterator[Step]:
        """Yield the start of a worker by an idle autoscaler, if none lives. Its place is behind the autoscaler."""
        if any(name[0] == "w" for name in shared.live):
            return
        worker = f"w{sum(name[0] == 'w' for name in shared.used) + 1}"
        shared = shared._replace(live=tuple(sorted((*shared.live, worker))), used=tuple(sorted((*shared.used, worker))))
        after = (Participant(actor), Participant(worker))
        yield Step(actor, f"starts {worker}", Effect(""), shared, after)

    def begin(self, shared: Shared, files: Files, me: str) -> Iterator[tuple[str, str, Activity]]:
        """Yield every rule that an idle participant can begin, with its price and description."""
        rules, budget = self.protocol, shared.budget
        others = set(shared.live) - {me}
        times: list[tuple[int, ...]] = [(left,) for left in self.config.walltimes] or [()]
        if me == "s" and files.get(ENTRY) == DEAD:
            yield "", "opens the session again", rules.reopen()
            return
        for name in files:
            match me[0], name.place:
                case "s", "results":
                    yield "", f"collects {name}", rules.collect(name)
                case "s", "tmp" if me == "s":
                    yield "", f"cleans up {name}", rules.clean_up(name.task)
                case "w", "ready":
                    for left in times:
                        if rules.fits(name, *left):
                            yield "", f"claims {name}", rules.claim(name, me, *left)
                case "w" | "s" | "v", "waiting" if self.releases(me):
                    yield "", f"checks whether {name} is ready", rules.make_ready(name)
                case "w", "claimed" | "outgoing" if name.holder == me:
                    for left in times[-1:]:
                        yield "", f"finds {name} in its name", rules.self_check(name, *left)
                case "s", "failed" if shared.records[name.task - 1].owed:
                    yield "", f"finds {name}", rules.fail_set_aside(name)
                case "g", "tmp":
                    yield "", f"considers {name}", rules.sweep(name.task)
                case "g", "results":
                    yield "", f"considers {name}", rules.expire(name)
                case "g", "cancel":
                    yield "", f"considers {name}", rules.sweep_request(name.task)
                case "g", "inbox":
                    yield "", "considers the session", rules.remove_session()
                case "g", "claimed" if budget.cancel:
                    yield "cancel", f"cancels {name.task}", rules.cancel(Name("cancel", name.task))
                case "r" | "v", "claimed" | "outgoing" if self.recovers(me, name, others, budget):
                    claimed = name.place == "claimed"
                    activity = rules.recover(name, me) if claimed else rules.discard(name)
                    price = "suspect" if name.holder in others else ""
                    suspicion = f"takes {name.holder} for dead, " if name.holder != me else ""
                    yield price, f"{suspicion}recovers {name}", activity
                case "r", "claimed" if self.config.supervised and name.holder in others:
                    yield "", f"ends the group of {name}", rules.end_group(name, me, 1)
                case "r", "failed" | "results" if budget.retry and (
                    name.place == "failed" or (self.config.keeps and files.get(name.to("outgoing")) == LOST)
                ):
                    yield "retry", f"is asked to retry {name}", rules.retry(name)
        if me == "s":
            yield from self.requests(shared, files)

    def releases(self, me: str) -> bool:
        """Tell whether a participant releases delayed tasks. With an autoscaler the submitter has gone."""
        return me[0] == "w" or (self.protocol.autoscaler_releases if me[0] == "v" else not self.config.autoscaler)

    def recovers(self, me: str, name: Name, others: set[str], budget: Budget) -> bool:
        """Tell whether a participant can recover a claim or outcome now."""
        return bool(name.holder not in others or budget.suspect) and (me[0] != "v" or self.releases(me))

    def requests(self, shared: Shared, files: Files) -> Iterator[tuple[str, str, Activity]]:
        """Yield the requests of the user: to submit the next task, or to cancel a task.

        A chain ends at a delivered task: the value of a delivered task travels in the pickle of the next one.
        """
        records = shared.records
        count = sum(record.submitted for record in records)
        moot = self.config.chain and count > 0 and not records[count - 1].owed
        if count < self.config.tasks and not records[count].begun and not moot:
            yield "", f"submits {count + 1}", self.protocol.enqueue(count + 1)
        for task, record in enumerate(records, 1):
            if self.config.searches and record.owed:
                yield "", f"searches for {task}", self.protocol.search(task)
                for link in self.protocol.dependency_links(task):
                    yield "", f"searches for {link.task}, which {task} needs", self.protocol.search_dependency(link)
            if shared.budget.cancel and record.owed:
                queued = [name for name in files if name.task == task and name.place in ("ready", "waiting")]
                for source in queued or [Name("cancel", task)]:
                    yield "cancel", f"cancels {task}", self.protocol.cancel(source)

    def effects(self, operation: Operation, files: Files, budget: Budget) -> Iterator[Effect]:
        """Yield every way in which an operation can end."""
        match operation:
            case Create(name, content):
                yield Effect(DONE, files={**files, name: content})
            case Write(name, content):
                yield Effect(DONE, files={**files, name: content} if name in files else None)
            case Read(name, own):
                yield from self.read(files.get(name, NO), 0 if own else budget.stale)
            case Find(place, task):
                found = (content for name, content in files.items() if (name.place, name.task) == (place, task))
                yield from self.read(next(found, NO), budget.stale)
            case Holders(place, task):
                names = (name for name in files if (name.place, name.task) == (place, task))
                yield Effect(" ".join(sorted(name.holder for name in names)))
            case ReadOutcome(task):
                yield from self.read(outcome_of(files, task), budget.stale)
            case ReadSuccessor(name):
                yield from self.read(has_successor(files, name), budget.stale)
            case Choose(choice):
                yield Effect(NO)
                if getattr(budget, choice):
                    yield Effect(DONE, choice)
            case Rename(name) | Unlink(name) if name not in files:
                yield Effect(NO)
            case Rename(name) | Unlink(name):
                after = {other: content for other, content in files.items() if other != name}
                if isinstance(operation, Rename):
                    after[operation.target] = files[name]
                yield Effect(DONE, files=after)
                if budget.enoent:
                    yield Effect(NO, "enoent", after, "done, but answers ENOENT")
                if budget.error:
                    answer = NO if isinstance(operation, Rename) else ERROR
                    yield Effect(answer, "error", description="not done, answers an error")

    @staticmethod
    def read(content: str, stale: int) -> Iterator[Effect]:
        yield Effect(content)
        if content and stale:
            yield Effect(NO, "stale", description="no (stale)")

    def step(self, shared: Shared, actor: str, action: Operation | str, effect: Effect, activity: Activity) -> Step:
        """Return the step after which the participant stands before its next operation, or is idle."""
        files, records, violation = shared.files, shared.records, ""
        budget = shared.budget.spend(effect.price)
        if effect.files is not None:
            records, violation = self.invariants.after_operation(dict(files), records, action)
            files = tuple(sorted(effect.files.items()))
        now: Activity | None = activity
        while now:
            match next_of(now):
                case Note() as note:
                    records, broken = self.invariants.after_note(dict(files), records, note)
                    violation, now = violation or broken, now.answered(DONE)
                case Choose(choice) if not getattr(budget, choice):
                    now = now.answered(NO)
                case Activity() | None as now:
                    pass
                case _:
                    break
        if effect.files is not None:
            violation = violation or self.invariants.of_files(effect.files, records)
        shared = shared._replace(files=files, records=records, budget=budget)
        return Step(actor, action, effect, shared, (Participant(actor, now),), violation)

    def crash(self, shared: Shared, actor: str) -> Step:
        """Return the crash of a participant. A new one replaces a submitter, or the last one of its role.

        With an autoscaler, that one starts the workers. With garbage collectors, the session has no live submitter
        until the new one opens it.
        """
        files, records = shared.files, shared.records
        live, used, role = set(shared.live) - {actor}, shared.used, actor[0]
        new: tuple[Participant, ...] = ()
        if actor == "s":
            new = (Participant("s"),)
            if self.config.collectors:
                files = tuple(sorted({**dict(files), ENTRY: DEAD}.items()))
                records = tuple(each._replace(orphaned=each.begun and not each.delivered) for each in records)
        elif not any(name[0] == role for name in live) and not (self.config.autoscaler and role == "w"):
            new = (Participant(f"{role}{sum(name[0] == role for name in used) + 1}"),)
            used = tuple(sorted((*used, new[0].name)))
        live.update(participant.name for participant in new)
        budget = shared.budget.spend("crash")
        shared = shared._replace(files=files, records=records, budget=budget, live=tuple(sorted(live)), used=used)
        return Step(actor, "CRASHES", Effect("", "crash"), shared, new)
