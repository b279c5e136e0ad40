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

TOKEN = "token"
PARTIAL = "partial"  # an outcome that is being written; complete ones say how the task ended:
VALUE, RAISED, CANCELLED, LOST, DEPENDENCY = "value", "raised", "cancelled", "lost", "dependency"

# What an operation answers; a look answers the content of the file.
DONE, NO, ERROR = "done", "", "error"


class Name(NamedTuple):
    """A file's name. In `needs` (which task is needed by which) `claim` is the second task."""

    place: str
    task: int
    claim: int = 0
    attempt: int = 0
    holder: str = ""

    def to(self, place: str, holder: str | None = None) -> Name:
        """The same claim in another place."""
        return self._replace(place=place, holder=self.holder if holder is None else holder)

    def __str__(self) -> str:
        parts = [str(part) for part in self[1:] if part]
        return f"{self.place}/{'.'.join(parts)}"


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
    """Answers the content. `mine`: only I can have made it, so no stale cache hides it from me."""

    name: Name
    mine: bool = False


class Ask(NamedTuple):
    """Answers how a task ended: its token in results, and the outcome which that token names."""

    task: int


class Perhaps(NamedTuple):
    """A choice that is not the participant's own; `yes` costs one of that budget."""

    choice: str


class Note(NamedTuple):
    """Nothing on disk: what the invariants must know about a task."""

    event: str
    task: int
    detail: str = ""


Operation = Create | Write | Rename | Unlink | Look | Ask | Perhaps | Note
Body = Generator[Operation, str, "Doing | None"]
P = ParamSpec("P")


class Doing(NamedTuple):
    """A rule under way. A generator cannot be copied or compared; its arguments and answers can."""

    body: Callable[..., Body]
    arguments: tuple[object, ...]
    answers: tuple[str, ...] = ()

    def answered(self, answer: str) -> Doing:
        return self._replace(answers=(*self.answers, answer))


def rule(body: Callable[P, Body]) -> Callable[P, Doing]:
    """Calling a rule only describes it. A rule goes on with another one by returning it."""

    def describe(*args: P.args, **kwargs: P.kwargs) -> Doing:
        return Doing(body, args)

    return describe


@cache
def next_of(doing: Doing) -> Operation | Doing | None:
    """Replay a rule up to its next operation, or to the rule it goes on with (None: it ended)."""
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
    """How many of each fault and choice one run may contain."""

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
        return self._replace(**{what: getattr(self, what) - 1})


NO_FAULTS = Budget()


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is there: see `main` for the words."""

    tasks: int = 1
    chain: bool = False  # every task needs the one before it
    workers: int = 2
    recoverers: int = 1
    attempts: int = 2
    budget: Budget = NO_FAULTS


class Protocol:
    """The rules. Subclasses in the tests show what happens when one is wrong."""

    rounds = 2  # looks before an absence is believed, further apart than caches last
    outcome_is_token = False  # only for designs in which the outcome itself moves to results

    def __init__(self, config: Config) -> None:
        self.config = config

    def needed_by(self, task: int) -> list[Name]:
        """needs/A.N: task N reads the outcome of A; made before N's token, removed before it."""
        return [Name("needs", task - 1, task)] if self.config.chain and task > 1 else []

    def needing(self, task: int) -> list[Name]:
        """needs/N.D: another task reads the outcome of N, which must therefore stay."""
        last = not self.config.chain or task == self.config.tasks
        return [] if last else [Name("needs", task, task + 1)]

    # -- the submitter -----------------------------------------------------------------------

    @rule
    def enqueue(self, task: int) -> Body:
        """Write tmp/N, say what it needs, rename it to ready (or to waiting)."""
        yield Note("begun", task)
        yield Create(Name("tmp", task), TOKEN)
        for edge in self.needed_by(task):
            yield Create(edge, "edge")
        return self.hand_over(task)

    @rule
    def hand_over(self, task: int) -> Body:
        """Error: tmp/N gone, then it succeeded; still there, then again."""
        tmp = Name("tmp", task)
        target = Name("waiting" if self.needed_by(task) else "ready", task, 1, 1)
        if not (yield Rename(tmp, target)) and (yield Look(tmp, mine=True)):
            return self.hand_over(task)
        yield Note("submitted", task)
        return None

    @rule
    def sweep(self, task: int) -> Body:
        """A tmp/N of an earlier incarnation of my session: what it says it needs goes first."""
        for name in [*self.needed_by(task), Name("tmp", task)]:
            if (yield Unlink(name)) == ERROR:
                return None
        return None

    @rule
    def collect(self, token: Name) -> Body:
        """Deliver; keep it while a dependent needs it; then the marks, the token, the outcome."""
        outgoing = token.to("outgoing")
        content = CANCELLED if token.holder == CANCELLED else (yield Look(outgoing))
        if not content:
            return None
        yield Note("delivered", token.task, content)
        for edge in self.needing(token.task) * self.rounds:
            if (yield Look(edge)):
                return None
        for name in [Name("cancel", token.task), *self.edges_to_drop(token.task, content)]:
            if (yield Unlink(name)) == ERROR:
                return None
        lost = content == LOST
        removed = yield Rename(token, token.to("failed")) if lost else Unlink(token)
        if removed == DONE and token.holder != CANCELLED:
            yield Unlink(outgoing)
        return None

    def edges_to_drop(self, task: int, content: str) -> list[Name]:
        """A task in failed can be retried: it goes on needing what it needs."""
        return [] if content == LOST else self.needed_by(task)

    @rule
    def cancel(self, source: Name) -> Body:
        """Rename ready (or waiting) to results/N.c.a.cancelled; too late: create cancel/N."""
        if source.place == "cancel":
            yield Create(source, "mark")
            return None
        target = source.to("results", CANCELLED)
        if (yield Rename(source, target)) or (yield Look(target)):
            return None
        if source.place == "waiting":
            return self.cancel(source.to("ready"))
        return self.cancel(Name("cancel", source.task))

    # -- the worker --------------------------------------------------------------------------

    @rule
    def release(self, waiting: Name) -> Body:
        """What it needs is over, well or not: rename waiting/N.c.a to ready/N.c.a, then stop."""
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
            ended = yield Ask(edge.task)
            if not ended:
                return self.run(mine) if (yield Look(mine)) else None
            if ended != VALUE:
                return self.outcome(mine, DEPENDENCY)
        yield Note("run", mine.task)
        return self.outcome(mine, RAISED if (yield Perhaps("raises")) else VALUE)

    @rule
    def give_back(self, mine: Name) -> Body:
        """Rename claimed/N.c.a.w to ready/N.(c+1).a, then stop: no attempt is used."""
        yield Rename(mine, Name("ready", mine.task, mine.claim + 1, mine.attempt))
        return None

    @rule
    def outcome(self, mine: Name, content: str) -> Body:
        """Create outgoing/N.c.a.w and complete it."""
        yield Create(mine.to("outgoing"), PARTIAL)
        yield Write(mine.to("outgoing"), content)
        return self.commit(mine)

    @rule
    def commit(self, mine: Name) -> Body:
        """Rename claimed/N.c.a.w to results/N.c.a.w: this publishes the outcome.

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
        """Look in claimed first, then in results; later once more; unlink what neither needs."""
        for place in ("claimed", "results") * self.rounds:
            if (yield Look(outgoing.to(place))):
                return None
        yield Unlink(outgoing)
        return None

    @rule
    def self_check(self, mine: Name) -> Body:
        """A file in my name that I do not work on: adopt a claim, discard an outcome."""
        if mine.place == "outgoing":
            return self.discard(mine)
        complete = yield Look(mine.to("outgoing"), mine=True)
        return self.commit(mine) if complete else self.run(mine)

    # -- the recoverer -----------------------------------------------------------------------

    @rule
    def recover(self, claimed: Name, me: str) -> Body:
        """A dead worker's claim: commit for it, or requeue, or give up. Any error: stop."""
        task, claim, attempt = claimed.task, claimed.claim, claimed.attempt
        found = yield Look(claimed.to("outgoing"))
        if found and found != PARTIAL:
            yield Rename(claimed, claimed.to("results"))
        elif attempt < self.config.attempts:
            yield Rename(claimed, Name("ready", task, claim + 1, attempt + 1))
        else:  # attempt: "used up", so that whoever runs this claim only writes that it is lost
            mine = Name("claimed", task, claim + 1, self.config.attempts + 1, me)
            if (yield Rename(claimed, mine)) or (yield Look(mine)):
                return self.run(mine)
        return None

    @rule
    def retry(self, failed: Name) -> Body:
        """Somebody asks for it: rename failed/N.c.a.w to ready/N.(c+1).1, then stop."""
        yield Rename(failed, Name("ready", failed.task, failed.claim + 1, 1))
        return None


class Record(NamedTuple):
    """What the invariants remember of a task; a retry begins a new life with a new outcome."""

    begun: bool = False
    submitted: bool = False  # submit has returned
    outcome: str = ""  # the published one
    delivered: bool = False
    runs: int = 0
    retries: int = 0


Records = tuple[Record, ...]


def replaced(records: Records, task: int, record: Record) -> Records:
    return (*records[: task - 1], record, *records[task:])


class Person(NamedTuple):
    """A live participant: `s`ubmitter, `w`orker or `r`ecoverer. Who is not here is dead."""

    name: str
    doing: Doing | None = None


Files = dict[Name, str]


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
    """One transition. `violation`: the invariant that it breaks."""

    who: str
    what: Operation | str
    way: Way
    state: State
    violation: str

    def __str__(self) -> str:
        if isinstance(self.what, str):
            return f"{self.who:3} {self.what}"
        words = " ".join(str(part) for part in self.what if not isinstance(part, bool))
        return f"{self.who:3} {type(self.what).__name__.lower()} {words}: {self.way.words or self.way.answer or 'no'}"


class Model:
    """Which steps are possible in a state, and what they must never do."""

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol
        self.config = protocol.config

    def start(self) -> State:
        workers = [Person(f"w{i + 1}") for i in range(self.config.workers)]
        recoverers = [Person(f"r{i + 1}") for i in range(self.config.recoverers)]
        records = (Record(),) * self.config.tasks
        return State((), (Person("s"), *workers, *recoverers), records, self.config.budget)

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
        live = {person.name for person in state.people}
        for name in files:
            match me[0], name.place:
                case "s", "results":
                    yield "", f"collects {name}", rules.collect(name)
                case "s", "tmp":
                    yield "", f"sweeps {name}", rules.sweep(name.task)
                case "w", "ready":
                    yield "", f"claims {name}", rules.claim(name, me)
                case "w", "waiting":
                    yield "", f"would release {name}", rules.release(name)
                case "w" | "r", "claimed" | "outgoing" if name.holder == me:
                    yield "", f"finds {name} in its name", rules.self_check(name)
                case "r", "claimed" | "outgoing" if name.holder not in live or budget.judge:
                    claimed = name.place == "claimed"
                    doing = rules.recover(name, me) if claimed else rules.discard(name)
                    price = "judge" if name.holder in live else ""
                    yield price, f"takes {name.holder} for dead, takes up {name}", doing
                case "r", "failed" if budget.retry:
                    yield "retry", f"is asked to retry {name}", rules.retry(name)
        if me == "s":
            yield from self.wishes(state, files)

    def wishes(self, state: State, files: Files) -> Iterator[tuple[str, str, Doing]]:
        """The next task, and cancels. (A task whose dependency is delivered has none any more.)"""
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

    def step(
        self, state: State, index: int, what: Operation | str, way: Way, doing: Doing | None
    ) -> Step:
        """The state after it, when the participant stands before its next operation."""
        files, people, records, budget = state
        if way.price:
            budget = budget.spend(way.price)
        violation = ""
        if way.after is not None:
            records, violation = self.moved(dict(files), records, what)
            files = tuple(sorted(way.after.items()))
        while isinstance(following := doing and next_of(doing), Doing | Note | Perhaps | None):
            if isinstance(following, Note):
                records, broken = self.noted(records, following)
                violation = violation or broken
                following = doing and doing.answered(DONE)
            elif isinstance(following, Perhaps):
                if getattr(budget, following.choice):
                    break
                following = doing and doing.answered(NO)
            if (doing := following) is None:
                break
        people = (*people[:index], Person(people[index].name, doing), *people[index + 1 :])
        if way.after is not None:
            violation = violation or self.broken(way.after, records)
        then = State(files, people, records, budget)
        return Step(people[index].name, what, way, then, violation)

    def crash(self, state: State, index: int) -> Step:
        """Nobody of that role left: a new one starts, under a name never used before."""
        who, budget = state.people[index].name, state.budget.spend("crash")
        people = [person for person in state.people if person.name != who]
        if not any(person.name[0] == who[0] for person in people):
            crashes = self.config.budget.crash - budget.crash
            number = max(self.config.workers, self.config.recoverers) + crashes
            people.append(Person("s" if who == "s" else f"{who[0]}{number}"))
            people.sort(key=lambda person: person.name)
        then = state._replace(people=tuple(people), budget=budget)
        return Step(who, "CRASHES", Way("", "crash"), then, "")

    # -- the invariants ----------------------------------------------------------------------

    def moved(
        self, files: Files, records: Records, what: Operation | str
    ) -> tuple[Records, str]:
        """What a file operation means for its task."""
        if isinstance(what, Create) and what.name in files and what.content != "mark":
            return records, f"{what.name} is made twice"
        if not isinstance(what, Rename):
            return records, ""
        source, target = what
        record = records[source.task - 1]
        if target in files:
            return records, f"{target} is renamed over"
        if source.place == "failed":
            record = record._replace(outcome="", delivered=False, retries=record.retries + 1)
        if target.place == "results":
            content = files[source]
            if content == TOKEN:
                content = self.ended({target: TOKEN, **files}, source.task)
            if record.outcome:
                return records, f"a second outcome of task {source.task} is published: {target}"
            if content in (NO, PARTIAL):
                return records, f"{target} is published without a complete outcome"
            record = record._replace(outcome=content)
        return replaced(records, source.task, record), ""

    def noted(self, records: Records, note: Note) -> tuple[Records, str]:
        """What a participant knows or does in its memory."""
        task, record, violation = note.task, records[note.task - 1], ""
        match note.event:
            case "begun":
                record = record._replace(begun=True)
            case "submitted":
                record = record._replace(submitted=True)
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
            tokens = [
                name
                for name, content in files.items()
                if name.task == task and content == TOKEN and name.place != "tmp"
            ]
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
        """Everybody idle, everything delivered; only failed tasks, and what they need, are left."""
        if any(person.doing for person in state.people):
            return False
        if any(record.submitted and not record.delivered for record in state.records):
            return False
        failed = {name.task for name, _ in state.files if name.place == "failed"}
        wanted = {edge for task in failed for edge in self.protocol.needed_by(task)}
        kept = {edge.task for edge in wanted}
        return all(
            name.place == "failed"
            or name in wanted
            or (name.task in kept and name.place in ("results", "outgoing"))
            for name, _ in state.files
        )


class Report(NamedTuple):
    """What a run found; `trace` leads to the violation, if there is one."""

    states: int
    steps: int
    seconds: float
    violation: str
    trace: tuple[str, ...]

    def __str__(self) -> str:
        counts = f"{self.states} states, {self.steps} steps, {self.seconds:.1f} s"
        if not self.violation:
            return f"{counts}: holds"
        return "\n".join([f"{counts}: VIOLATION: {self.violation}", *self.trace])


def check(protocol: Protocol, limit: int = 0) -> Report:
    """Visit every reachable state, nearest first; `limit` states at most (0: all)."""
    began = time.monotonic()
    model = Model(protocol)
    states = [model.start()]
    index = {states[0]: 0}
    came: list[tuple[int, Step | None]] = [(0, None)]
    edges = array("q")  # pairs (from, to) of steps that are no faults
    count = 0

    def report(violation: str, last: int, step: Step | None = None) -> Report:
        trace = [step] if step else []
        while (origin := came[last])[1]:
            trace.append(origin[1])
            last = origin[0]
        lines = tuple(str(line) for line in reversed(trace)) if violation else ()
        return Report(len(states), count, time.monotonic() - began, violation, lines)

    for here, state in enumerate(states):  # grows while it is read
        for step in model.steps(state):
            count += 1
            if step.violation:
                return report(step.violation, here, step)
            there = index.setdefault(step.state, len(states))
            if there == len(states):
                states.append(step.state)
                came.append((here, step))
            if not step.way.price:
                edges.extend((here, there))
        if limit and len(states) > limit:
            return report(f"more than {limit} states: not finished", here)

    good = bytearray(model.is_good_end(state) for state in states)
    changed = True
    while changed:  # backwards, so that few rounds are enough
        changed = False
        for i in range(len(edges) - 2, -2, -2):
            if good[edges[i + 1]] and not good[edges[i]]:
                good[edges[i]] = changed = True
    stuck = good.find(0)
    if stuck < 0:
        return report("", 0)
    left = ", ".join(f"{name}={content}" for name, content in states[stuck].files)
    return report(f"no good end can be reached any more; files: {left}", stuck)


def main() -> int:
    parser = argparse.ArgumentParser(description="Check the spool protocol in every interleaving.")
    for option in ("tasks", "workers", "recoverers", "attempts"):
        parser.add_argument(f"--{option}", type=int, default=getattr(Config, option), metavar="N")
    parser.add_argument("--chain", action="store_true", help="every task needs the one before it")
    for fault in Budget._fields:
        words = f"at most N times in a run: {fault}"
        flag = "--" + fault.replace("_", "-")
        parser.add_argument(flag, type=int, default=0, metavar="N", help=words)
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="stop after N states")
    given = vars(parser.parse_args())
    limit = given.pop("limit")
    budget = Budget(**{fault: given.pop(fault) for fault in Budget._fields})
    report = check(Protocol(Config(budget=budget, **given)), limit)
    print(report)
    return 1 if report.violation else 0


if __name__ == "__main__":
    sys.exit(main())
