"""The spool's protocol as rules that run, and a checker that tries every interleaving of them.

A rule is a generator: each `yield` is one file operation, its value is the filesystem's answer.
From an empty spool the checker follows every order in which the participants can take their next
operation, and at each of them every fault and choice that the budget allows:

    crash      a participant ends before its next operation; a new worker has a new name, a new
               submitter comes back to the same session
    judge      a recoverer takes a live participant for dead: any pause, lost lock or clock jump
    enoent     a rename or an unlink was done, and answers ENOENT
    error      a rename or an unlink was not done, and answers another error
    lie        a look does not see what another client made: a stale cache
    cancel, give_back, raises, retry     what people, batch systems and functions do

It stops at the first broken invariant, with the shortest way there. Where none is broken, it checks
that a good end can be reached from every state without further faults: everybody idle, everything
delivered, no file left over. No lock is in the model: locks only save work.

N.c.a and N.c.a.w are task, claim number, attempt and holder. Run it by hand for bigger cases:
`python tests/model/protocol.py --tasks 2 --crash 2`.
"""

from __future__ import annotations

import argparse
import sys
import time
from array import array
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, ParamSpec

# What is in a file: a task, an outcome that is being written, or how the task ended.
TOKEN, PARTIAL = "token", "partial"
VALUE, RAISED, CANCELLED, LOST, DEPENDENCY = "value", "raised", "cancelled", "lost", "dependency"
# What an operation answers; a look answers the content of the file.
DONE, NO, ERROR = "done", "", "error"


class Name(NamedTuple):
    """A file's name: place/N.c.a.w. (In needs/A.N, the number N stands where c does.)"""

    place: str
    task: int
    claim: int = 0
    attempt: int = 0
    holder: str = ""

    def to(self, place: str, holder: str | None = None) -> Name:
        """The same claim in another place."""
        return self._replace(place=place, holder=self.holder if holder is None else holder)

    def __str__(self) -> str:
        return f"{self.place}/{'.'.join(str(part) for part in self[1:] if part)}"


Files = dict[Name, str]


class Create(NamedTuple):
    name: Name
    content: str


class Write(NamedTuple):
    name: Name
    content: str


class Rename(NamedTuple):
    name: Name
    target: Name


class Unlink(NamedTuple):
    name: Name


class Look(NamedTuple):
    """Answers the content. `mine`: I alone can have made it, so no stale cache hides it from me."""

    name: Name
    mine: bool = False


class Ask(NamedTuple):
    """Answers how a task ended: its token in results, and the outcome which that token names."""

    task: int


class Perhaps(NamedTuple):
    """A choice that somebody else makes; it costs one of that budget."""

    choice: str


class Note(NamedTuple):
    """No file operation: what the invariants must know about a task."""

    event: str
    task: int
    detail: str = ""


Operation = Create | Write | Rename | Unlink | Look | Ask | Perhaps | Note
Body = Generator[Operation, str, "Doing | None"]
P = ParamSpec("P")


class Doing(NamedTuple):
    """A rule under way: a generator can be neither copied nor compared, but replayed."""

    body: Callable[..., Body]
    arguments: tuple[object, ...]
    answers: tuple[str, ...] = ()

    def answered(self, answer: str) -> Doing:
        return Doing(self.body, self.arguments, (*self.answers, answer))


def rule(body: Callable[P, Body]) -> Callable[P, Doing]:
    """Calling a rule only describes it. A rule goes on with another one by returning it."""
    return lambda *args, **kwargs: Doing(body, (*args, *kwargs.values()))


@cache
def next_of(doing: Doing) -> Operation | Doing | None:
    """A rule's next operation, or the rule it goes on with (None: it has ended)."""
    generator = doing.body(*doing.arguments)
    try:
        operation = next(generator)
        for answer in doing.answers:
            operation = generator.send(answer)
    except StopIteration as end:
        following: Doing | None = end.value
        return following
    return operation


class Budget(NamedTuple):
    """How many of each fault and choice a run may contain."""

    crash: int = 0
    judge: int = 0
    enoent: int = 0
    error: int = 0
    lie: int = 0
    cancel: int = 0
    give_back: int = 0
    raises: int = 0
    retry: int = 0

    def spend(self, what: str) -> Budget:
        return self._replace(**{what: getattr(self, what) - 1}) if what else self


NO_FAULTS = Budget()


@dataclass(frozen=True, kw_only=True)
class Config:
    """Who takes part; in a `chain` every task needs the one before it.

    A session that `keeps` removes no outcome; of several `submitters` of it, all collect, and the first one submits.
    `attempts` counts all; a task that raises in one of the first `retries` of them is held back.
    """

    tasks: int = 1
    chain: bool = False
    workers: int = 2
    recoverers: int = 1
    submitters: int = 1
    keeps: bool = False
    attempts: int = 2
    retries: int = 0
    budget: Budget = NO_FAULTS


class Protocol:
    """The rules. The tests' subclasses show what happens when one of them is wrong."""

    rounds = 2  # looks until an absence is believed, further apart than caches last
    outcome_is_token = False  # in a design where not the task but its outcome moves to results

    def __init__(self, config: Config) -> None:
        self.config = config

    def needed_by(self, task: int) -> list[Name]:
        """The edges needs/A.N of a task N: made before its token, removed before its token."""
        return [Name("needs", task - 1, task)] if self.config.chain and task > 1 else []

    def needing(self, task: int) -> list[Name]:
        """The edges needs/N.D of the tasks D that need N."""
        last = not self.config.chain or task == self.config.tasks
        return [] if last else [Name("needs", task, task + 1)]

    # -- submitter ---------------------------------------------------------------------------
    # One session does one of these at a time: it never collects A while it submits what needs A.

    @rule
    def enqueue(self, task: int) -> Body:
        """Write tmp/N, create needs/A.N, rename tmp/N to ready/N.1.1 (to waiting, if it needs)."""
        yield Note("begun", task)
        yield Create(Name("tmp", task), TOKEN)
        for edge in self.needed_by(task):
            yield Create(edge, "edge")
        return self.hand_over(task)

    @rule
    def hand_over(self, task: int) -> Body:
        """The rename. Error: tmp/N gone, then it succeeded; still there, then again."""
        tmp = Name("tmp", task)
        target = Name("waiting" if self.needed_by(task) else "ready", task, 1, 1)
        if not (yield Rename(tmp, target)) and (yield Look(tmp, mine=True)):
            return self.hand_over(task)
        yield Note("submitted", task)
        return None

    @rule
    def sweep(self, task: int) -> Body:
        """A tmp/N that my session left in an earlier life: its edges first, then itself."""
        for name in [*self.needed_by(task), Name("tmp", task)]:
            if (yield Unlink(name)) == ERROR:
                return None
        return None

    @rule
    def collect(self, token: Name) -> Body:
        """Deliver; unlink its edges. Unless a task needs it: unlink mark, then token, then outcome.

        What is lost goes to failed with its edges, because a retry needs them. A session that keeps
        removes and moves neither token nor outcome, and delivers as often as it is asked.
        """
        outgoing = token.to("outgoing")
        content = CANCELLED if token.holder == CANCELLED else (yield Look(outgoing))
        if not content:
            return None
        yield Note("delivered", token.task, content)
        lost = content == LOST
        for edge in [] if lost else self.needed_by(token.task):
            if (yield Unlink(edge)) == ERROR:
                return None
        for edge in self.needing(token.task) * self.rounds:
            if (yield Look(edge)):
                return None
        if (yield Unlink(Name("cancel", token.task))) == ERROR:
            return None
        if self.config.keeps:
            return None
        removed = yield Rename(token, token.to("failed")) if lost else Unlink(token)
        if removed == DONE and token.holder != CANCELLED:
            yield Unlink(outgoing)
        return None

    @rule
    def cancel(self, source: Name) -> Body:
        """Rename waiting or ready/N.c.a to results/N.c.a.cancelled. Too late: create cancel/N."""
        if source.place == "cancel":
            yield Create(source, "mark")
            return None
        target = source.to("results", CANCELLED)
        if (yield Rename(source, target)) or (yield Look(target)):
            return None
        released = source.place == "waiting"
        return self.cancel(source.to("ready") if released else Name("cancel", source.task))

    # -- worker ------------------------------------------------------------------------------

    @rule
    def release(self, waiting: Name) -> Body:
        """What it needs has ended, well or not: rename waiting/N.c.a to ready/N.c.a. Then stop.

        Anybody may do it, as nobody concludes anything from the answer; here workers and the submitter
        do. The delay of a task that was held back can be of any length.
        """
        for edge in self.needed_by(waiting.task):
            if not (yield Ask(edge.task)):
                return None
        yield Rename(waiting, waiting.to("ready"))
        return None

    @rule
    def claim(self, ready: Name, me: str) -> Body:
        """Rename ready/N.c.a to claimed/N.c.a.w. Error: own target there, then mine."""
        mine = ready.to("claimed", me)
        if (yield Rename(ready, mine)) or (yield Look(mine)):
            return self.run(mine)
        return None

    @rule
    def run(self, mine: Name) -> Body:
        """Call the function, unless there is a reason not to."""
        if (yield Perhaps("give_back")):
            return self.give_back(mine)
        if mine.attempt > self.config.attempts:
            return self.outcome(mine, LOST)
        if (yield Look(Name("cancel", mine.task))):
            return self.outcome(mine, CANCELLED)
        for edge in self.needed_by(mine.task):
            ended = NO
            for _ in range(self.rounds):
                ended = ended or (yield Ask(edge.task))
                if not ended and not (yield Look(mine)):  # I am fenced, and it was collected
                    return None
            if ended != VALUE:  # or it is not there, which a fault of the disk alone can bring about
                return self.outcome(mine, DEPENDENCY)
        yield Note("run", mine.task)
        raised = yield Perhaps("raises")
        if raised and mine.attempt <= self.config.retries:
            return self.hold_back(mine)
        return self.outcome(mine, RAISED if raised else VALUE)

    @rule
    def hold_back(self, mine: Name) -> Body:
        """Rename claimed/N.c.a.w to waiting/N.(c+1).(a+1). Error: claim there, then publish."""
        waiting = Name("waiting", mine.task, mine.claim + 1, mine.attempt + 1)
        if not (yield Rename(mine, waiting)) and (yield Look(mine, mine=True)):
            return self.outcome(mine, RAISED)
        return None

    @rule
    def give_back(self, mine: Name) -> Body:
        """Rename claimed/N.c.a.w to ready/N.(c+1).a: no attempt is used. Then stop."""
        yield Rename(mine, Name("ready", mine.task, mine.claim + 1, mine.attempt))
        return None

    @rule
    def outcome(self, mine: Name, content: str) -> Body:
        """Create outgoing/N.c.a.w, complete it, commit."""
        yield Create(mine.to("outgoing"), PARTIAL)
        yield Write(mine.to("outgoing"), content)
        return self.commit(mine)

    @rule
    def commit(self, mine: Name) -> Body:
        """Rename claimed/N.c.a.w to results/N.c.a.w: the outcome is published.

        Error: source there, then again; target there, then done; neither, then fenced: discard.
        """
        published = mine.to("results")
        if (yield Rename(mine, published)):
            return None
        if (yield Look(mine)):
            return self.commit(mine)
        if (yield Look(published)):
            return None
        return self.discard(mine.to("outgoing"))

    @rule
    def discard(self, outgoing: Name) -> Body:
        """Look in claimed first, then in results; later once more. In none of them: unlink."""
        for place in ("claimed", "results") * self.rounds:
            if (yield Look(outgoing.to(place))):
                return None
        yield Unlink(outgoing)
        return None

    @rule
    def self_check(self, mine: Name) -> Body:
        """A file in a worker's name that it does not work on: adopt a claim, discard an outcome.

        The outcome there: commit it. Not there: look for the claim once more, because another may
        have committed it, and its outcome may be collected; still there, then it never ran.
        """
        if mine.place == "outgoing":
            return self.discard(mine)
        if (yield Look(mine.to("outgoing"), mine=True)):
            return self.commit(mine)
        return self.run(mine) if (yield Look(mine)) else None

    # -- recoverer ---------------------------------------------------------------------------

    @rule
    def recover(self, claimed: Name, me: str) -> Body:
        """A dead worker's claim: commit for it, or requeue it, or report it lost. Error: stop.

        So too with a claim in my name that I do not work on. A recoverer runs nothing.
        """
        task, claim, attempt = claimed.task, claimed.claim, claimed.attempt
        found = yield Look(claimed.to("outgoing"))
        if found and found != PARTIAL:
            yield Rename(claimed, claimed.to("results"))
        elif attempt < self.config.attempts:
            yield Rename(claimed, Name("ready", task, claim + 1, attempt + 1))
        else:
            mine = Name("claimed", task, claim + 1, attempt, me)
            if (yield Rename(claimed, mine)) or (yield Look(mine)):
                return self.outcome(mine, LOST)
        return None

    @rule
    def retry(self, failed: Name) -> Body:
        """On request: rename failed/N.c.a.w, or a lost results/N.c.a.w, to ready/N.(c+1).1. Unlink its outcome."""
        retried = yield Rename(failed, Name("ready", failed.task, failed.claim + 1, 1))
        if retried and failed.place == "results":
            yield Unlink(failed.to("outgoing"))
        return None


# == the checker =================================================================================


class Record(NamedTuple):
    """What the invariants remember of a task. A retry begins a new life, with a new outcome."""

    begun: bool = False
    submitted: bool = False  # submit has returned
    outcome: str = ""  # as published
    delivered: bool = False
    runs: int = 0
    retries: int = 0


Records = tuple[Record, ...]


class Person(NamedTuple):
    """A live participant: submitter, worker or recoverer (s, w1, r1). Who is missing is dead."""

    name: str
    doing: Doing | None = None


class State(NamedTuple):
    files: tuple[tuple[Name, str], ...]
    people: tuple[Person, ...]
    records: Records
    budget: Budget


class Way(NamedTuple):
    """How an operation goes: its answer, what it costs, the files after it (None: unchanged)."""

    answer: str
    price: str = ""
    after: Files | None = None
    words: str = ""


class Step(NamedTuple):
    """One transition, and the invariant that it breaks."""

    who: str
    what: Operation | str
    way: Way
    state: State
    violation: str

    def __str__(self) -> str:
        if isinstance(self.what, str):
            return f"{self.who:3} {self.what}"
        words = " ".join(str(part) for part in self.what if not isinstance(part, bool))
        answer = self.way.words or self.way.answer or "no"
        return f"{self.who:3} {type(self.what).__name__.lower()} {words}: {answer}"


class Model:
    """Which steps are possible in a state, and what must hold."""

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol
        self.config = protocol.config

    def start(self) -> State:
        workers = [Person(f"w{i + 1}") for i in range(self.config.workers)]
        recoverers = [Person(f"r{i + 1}") for i in range(self.config.recoverers)]
        more = [Person(f"s{i + 2}") for i in range(self.config.submitters - 1)]
        people = (*recoverers, Person("s"), *more, *workers)
        return State((), people, (Record(),) * self.config.tasks, self.config.budget)

    def steps(self, state: State) -> Iterator[Step]:
        files = dict(state.files)
        for index, (me, doing) in enumerate(state.people):
            if doing is None:
                for price, words, begun in self.starts(state, files, me):
                    yield self.step(state, index, words, Way("", price), begun)
                continue
            operation = next_of(doing)
            assert operation is not None
            assert not isinstance(operation, Doing)
            for way in self.ways(operation, files, state.budget):
                yield self.step(state, index, operation, way, doing.answered(way.answer))
            if state.budget.crash:
                yield self.crash(state, index)

    def starts(self, state: State, files: Files, me: str) -> Iterator[tuple[str, str, Doing]]:
        """What an idle participant can begin: its price, its words, the rule."""
        rules, budget = self.protocol, state.budget
        live = {person.name for person in state.people} - {me}
        for name in files:
            match me[0], name.place:
                case "s", "results":
                    yield "", f"collects {name}", rules.collect(name)
                case "s", "tmp" if me == "s":
                    yield "", f"sweeps {name}", rules.sweep(name.task)
                case "w", "ready":
                    yield "", f"claims {name}", rules.claim(name, me)
                case "w" | "s", "waiting":
                    yield "", f"would release {name}", rules.release(name)
                case "w", "claimed" | "outgoing" if name.holder == me:
                    yield "", f"finds {name} in its name", rules.self_check(name)
                case "r", "claimed" | "outgoing" if name.holder not in live or budget.judge:
                    claimed = name.place == "claimed"
                    doing = rules.recover(name, me) if claimed else rules.discard(name)
                    price = "judge" if name.holder in live else ""
                    whose = f"takes {name.holder} for dead, " if name.holder != me else ""
                    yield price, f"{whose}takes up {name}", doing
                case "r", "failed" | "results" if budget.retry and (
                    name.place == "failed" or (self.config.keeps and files.get(name.to("outgoing")) == LOST)
                ):
                    yield "retry", f"is asked to retry {name}", rules.retry(name)
        if me == "s":
            yield from self.wishes(state, files)

    def wishes(self, state: State, files: Files) -> Iterator[tuple[str, str, Doing]]:
        """The next task, and cancels. (What a task needs of a delivered one is in its pickle.)"""
        records = state.records
        count = sum(record.submitted for record in records)
        moot = self.config.chain and count > 0 and records[count - 1].delivered
        if count < self.config.tasks and not records[count].begun and not moot:
            yield "", f"submits {count + 1}", self.protocol.enqueue(count + 1)
        for task, record in enumerate(records, 1):
            if state.budget.cancel and record.submitted and not record.delivered:
                seen = [n for n in files if n.task == task and n.place in ("ready", "waiting")]
                for source in seen or [Name("cancel", task)]:
                    yield "cancel", f"cancels {task}", self.protocol.cancel(source)

    def ways(self, operation: Operation, files: Files, budget: Budget) -> Iterator[Way]:
        """Every way in which an operation can go."""
        match operation:
            case Create(name, content):
                yield Way(DONE, after={**files, name: content})
            case Write(name, content):
                yield Way(DONE, after={**files, name: content} if name in files else None)
            case Look(name, mine):
                yield from self.seen(files.get(name, NO), 0 if mine else budget.lie)
            case Ask(task):
                yield from self.seen(self.ended(files, task), budget.lie)
            case Perhaps(choice):
                yield Way(NO)
                if getattr(budget, choice):
                    yield Way(DONE, choice)
            case Rename(name) | Unlink(name) if name not in files:
                yield Way(NO)
            case Rename(name) | Unlink(name):
                after = {other: content for other, content in files.items() if other != name}
                if isinstance(operation, Rename):
                    after[operation.target] = files[name]
                yield Way(DONE, after=after)
                if budget.enoent:
                    yield Way(NO, "enoent", after, "done, but answers ENOENT")
                if budget.error:
                    answer = NO if isinstance(operation, Rename) else ERROR
                    yield Way(answer, "error", words="not done, answers an error")

    @staticmethod
    def seen(truth: str, lies: int) -> Iterator[Way]:
        yield Way(truth)
        if truth and lies:
            yield Way(NO, "lie", words="no (stale)")

    @staticmethod
    def ended(files: Files, task: int) -> str:
        for name in files:
            if name.place == "results" and name.task == task:
                cancelled = name.holder == CANCELLED
                return CANCELLED if cancelled else files.get(name.to("outgoing"), NO)
        return NO

    def step(self, state: State, index: int, what: Operation | str, way: Way, doing: Doing) -> Step:
        """The state after it, in which the participant stands before its next operation."""
        files, people, records, _ = state
        budget, violation = state.budget.spend(way.price), ""
        if way.after is not None:
            records, violation = self.moved(dict(files), records, what)
            files = tuple(sorted(way.after.items()))
        now: Doing | None = doing
        while now:
            match next_of(now):
                case Note() as note:
                    records, broken = self.noted(records, note)
                    violation, now = violation or broken, now.answered(DONE)
                case Perhaps(choice) if not getattr(budget, choice):
                    now = now.answered(NO)
                case Doing() | None as now:
                    pass
                case _:
                    break
        if way.after is not None:
            violation = violation or self.broken(way.after, records)
        who = people[index].name
        people = (*people[:index], Person(who, now), *people[index + 1 :])
        return Step(who, what, way, State(files, people, records, budget), violation)

    def crash(self, state: State, index: int) -> Step:
        """Nobody of that role left: a new one starts, under a name never used before."""
        who, budget = state.people[index].name, state.budget.spend("crash")
        people = [person for person in state.people if person.name != who]
        if who == "s" or not any(person.name[0] == who[0] for person in people):
            crashes = self.config.budget.crash - budget.crash
            number = max(self.config.workers, self.config.recoverers) + crashes
            people.append(Person("s" if who == "s" else f"{who[0]}{number}"))
        then = state._replace(people=tuple(sorted(people)), budget=budget)
        return Step(who, "CRASHES", Way("", "crash"), then, "")

    # -- invariants --------------------------------------------------------------------------

    def moved(self, files: Files, records: Records, what: Operation | str) -> tuple[Records, str]:
        """What a file operation means for its task."""
        if isinstance(what, Create) and what.name in files and what.content != "mark":
            return records, f"{what.name} is made twice"
        if not isinstance(what, Rename):
            return records, ""
        source, target = what
        record = records[source.task - 1]
        if target in files:
            return records, f"{target} is renamed over"
        if source.place == "failed" or (source.place == "results" and target.place == "ready"):
            record = record._replace(outcome="", delivered=False, retries=record.retries + 1)
        if target.place == "results":
            content = files[source]
            if content == TOKEN:
                content = self.ended({target: TOKEN, **files}, source.task)
            if record.outcome:
                return records, f"a second outcome of task {source.task} is published: {target}"
            if content in (NO, PARTIAL):
                return records, f"{target} is published without a complete outcome"
            needed = [records[edge.task - 1] for edge in self.protocol.needed_by(source.task)]
            if content == DEPENDENCY and all(each.outcome == VALUE and not each.retries for each in needed):
                return records, f"task {source.task} fails, although what it needs has its value"
            record = record._replace(outcome=content)
        return replaced(records, source.task, record), ""

    def noted(self, records: Records, note: Note) -> tuple[Records, str]:
        """What a participant does or learns in its memory."""
        task, record, violation = note.task, records[note.task - 1], ""
        match note.event:
            case "begun":
                record = record._replace(begun=True)
            case "submitted":
                record = record._replace(submitted=True)
            case "delivered" if record.retries and note.detail == LOST != record.outcome:
                pass  # a process of the session hears late of the life before the retry
            case "delivered":
                record = record._replace(delivered=True)
                if note.detail != record.outcome:
                    violation = f"{note.detail} of task {task} is delivered, not {record.outcome}"
            case "run":
                record = record._replace(runs=record.runs + 1)
                if record.runs > self.config.attempts * (1 + record.retries):
                    violation = f"task {task} runs more often than it has attempts"
                for edge in self.protocol.needed_by(task):
                    if records[edge.task - 1].outcome != VALUE:
                        violation = f"task {task} runs without the value of task {edge.task}"
        return replaced(records, task, record), violation

    def broken(self, files: Files, records: Records) -> str:
        """What must hold of the files at every moment."""
        for task, record in enumerate(records, 1):
            held = [name for name, content in files.items() if content == TOKEN]
            tokens = [name for name in held if name.task == task and name.place != "tmp"]
            if len(tokens) > 1:
                return f"task {task} has two tokens: {tokens[0]} and {tokens[1]}"
            owed = record.submitted and not record.delivered
            if owed and not tokens and not self.protocol.outcome_is_token:
                return f"task {task} is lost"
            for token in tokens:
                if record.outcome and token.place in ("waiting", "ready", "claimed"):
                    return f"{token} can run after its outcome was published"
                if token.place == "results" and self.ended(files, task) in (NO, PARTIAL):
                    return f"{token} has lost its outcome"
        return ""

    def is_good_end(self, state: State) -> bool:
        """Everybody idle, everything delivered; what failed is left, and what its retry needs."""
        if any(person.doing for person in state.people):
            return False
        if any(record.submitted and not record.delivered for record in state.records):
            return False
        left = {name for name, _ in state.files if name.place != "failed"}
        failed = {name.task for name, content in state.files if name.place == "failed" or content == LOST}
        edges = {edge for task in failed for edge in self.protocol.needed_by(task)}
        kept = {(place, edge.task) for edge in edges for place in ("results", "outgoing")}
        if self.config.keeps:
            kept |= {
                (place, name.task) for name in left if name.place == "results" for place in ("results", "outgoing")
            }
        return all((name.place, name.task) in kept for name in left - edges)


def replaced(records: Records, task: int, record: Record) -> Records:
    return (*records[: task - 1], record, *records[task:])


class Report(NamedTuple):
    """What a check found; `trace` is the shortest way to the violation, if there is one."""

    states: int
    steps: int
    seconds: float
    violation: str
    trace: tuple[str, ...]

    def __str__(self) -> str:
        counts = f"{self.states} states, {self.steps} steps, {self.seconds:.1f} s"
        found = f"VIOLATION: {self.violation}" if self.violation else "holds"
        return "\n".join([f"{counts}: {found}", *self.trace])


def check(protocol: Protocol, limit: int = 0) -> Report:
    """Visit every state that can be reached, nearest first (`limit` of them, if it is given)."""
    began = time.monotonic()
    model = Model(protocol)
    states = [model.start()]
    numbers = {states[0]: 0}
    came_by: list[tuple[int, Step]] = []  # to state 1, 2, ...: from which state, by which step
    faultless = array("q")  # pairs of states: from, to
    count = 0

    def report(violation: str, last: int = 0, trace: tuple[Step, ...] = ()) -> Report:
        while last:
            last, step = came_by[last - 1]
            trace = (step, *trace)
        seconds = time.monotonic() - began
        return Report(len(states), count, seconds, violation, tuple(map(str, trace)))

    for here, state in enumerate(states):  # grows while it is read
        for step in model.steps(state):
            count += 1
            if step.violation:
                return report(step.violation, here, (step,))
            there = numbers.setdefault(step.state, len(states))
            if there == len(states):
                states.append(step.state)
                came_by.append((here, step))
            if not step.way.price:
                faultless.extend((here, there))
        if limit and len(states) > limit:
            return report(f"none so far, but there are more than {limit} states")
    stuck = first_stuck(bytearray(map(model.is_good_end, states)), faultless)
    if stuck is None:
        return report("")
    left = ", ".join(f"{name} ({content})" for name, content in states[stuck].files)
    return report(f"no good end can be reached any more; left are {left}", stuck)


def first_stuck(good: bytearray, faultless: array[int]) -> int | None:
    """The nearest state from which no good one can be reached; read backwards, to be quick."""
    changed = True
    while changed:
        changed = False
        for i in range(len(faultless) - 2, -2, -2):
            if good[faultless[i + 1]] and not good[faultless[i]]:
                good[faultless[i]] = changed = True
    stuck = good.find(0)
    return None if stuck < 0 else stuck


def main() -> int:
    parser = argparse.ArgumentParser(description="Check the spool's protocol exhaustively.")
    for who in ("tasks", "workers", "recoverers", "submitters", "attempts", "retries"):
        default = getattr(Config, who)
        parser.add_argument(f"--{who}", type=int, default=default, metavar="N", help=f"({default})")
    parser.add_argument("--chain", action="store_true", help="every task needs the one before it")
    parser.add_argument("--keeps", action="store_true", help="the session keeps its outcomes")
    for what in Budget._fields:
        option = "--" + what.replace("_", "-")
        parser.add_argument(option, type=int, default=0, metavar="N", help="at most (0)")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="states to stop at")
    given = vars(parser.parse_args())
    limit = given.pop("limit")
    budget = Budget(**{what: given.pop(what) for what in Budget._fields})
    report = check(Protocol(Config(budget=budget, **given)), limit)
    print(report)
    return 1 if report.violation else 0


if __name__ == "__main__":
    sys.exit(main())
