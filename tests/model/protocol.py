"""Rules of the protocol, as the model checker executes them.

The sections follow docs/protocol.md. No lock is in the model: locks only save work, and safety does not depend on
them.
"""

from __future__ import annotations

from collections.abc import Generator

from tests.model.config import Config
from tests.model.operations import (
    ALIVE,
    CANCELLED,
    DEAD,
    DEPENDENCY,
    DIRECTORY,
    DONE,
    ENTRY,
    ERROR,
    INBOX,
    LINK,
    LOST,
    NO,
    PARTIAL,
    RAISED,
    REQUEST,
    TASK,
    VALUE,
    Body,
    Choose,
    Create,
    Find,
    Name,
    Note,
    Operation,
    Read,
    ReadOutcome,
    ReadSuccessor,
    Rename,
    Unlink,
    Write,
    rule,
)

PLACES = ("waiting", "ready", "claimed", "results", "failed")  # of a task file, in the order in which it moves


class Protocol:
    """The rules. Subclasses in the tests break one rule each, to show that the checker finds it."""

    rounds = 2  # reads until an absent file counts as absent; they are further apart than caches last
    passes = 3  # of a search; a task evades one only if it moves back at that moment, or a stale cache hides it
    autoscaler_releases = True  # false in a design in which the autoscaler only counts the tasks that are ready
    outcome_is_moved = False  # true in a design that renames the outcome into results/ instead of the task file

    def __init__(self, config: Config) -> None:
        self.config = config

    def dependency_links(self, task: int) -> list[Name]:
        """Return the links needs/A.N of a task N. They are created and removed before its task file."""
        return [Name("needs", task - 1, task)] if self.config.chain and task > 1 else []

    def dependent_links(self, task: int) -> list[Name]:
        """Return the links needs/N.D of the tasks D that depend on a task N."""
        last = not self.config.chain or task == self.config.tasks
        return [] if last else [Name("needs", task, task + 1)]

    # -- submitter ---------------------------------------------------------------------------
    # A submitter executes one rule at a time: it never collects A while it submits a task that depends on A.

    @rule
    def enqueue(self, task: int) -> Body:
        """Create tmp/N and the links needs/A.N, then rename tmp/N."""
        yield Note("begun", task)
        yield Create(Name("tmp", task), TASK)
        for link in self.dependency_links(task):
            yield Create(link, LINK)
        return self.rename_into_queue(task)

    @rule
    def rename_into_queue(self, task: int) -> Body:
        """Rename tmp/N to ready/N.1.1, or to waiting/N.1.1 if N has dependencies or a time before which it must wait.

        Error: if tmp/N is there, try again. If it is gone, search for N: the rename was done, or a third party deleted
        tmp/N. Then unlink the links, and raise.
        """
        tmp = Name("tmp", task)
        waits = self.config.delayed or self.dependency_links(task)
        target = Name("waiting" if waits else "ready", task, 1, 1, seconds=self.config.duration * self.config.limited)
        if not (yield Rename(tmp, target)):
            if (yield Read(tmp, own=True)):
                return self.rename_into_queue(task)
            if not (yield Read(target, own=True)) and not (yield from self.find(task)):
                for link in self.dependency_links(task):
                    yield Unlink(link)
                yield Note("refused", task)
                return None
        yield Note("submitted", task)
        return None

    def find(self, task: int, places: tuple[str, ...] = PLACES) -> Generator[Operation, str, str]:
        """Look for a task in each place, in the order in which it moves, several times: it can move back meanwhile."""
        for place in places * self.passes:
            if (yield Find(place, task)):
                return place
        return NO

    @rule
    def search(self, task: int) -> Body:
        """Search for a task whose future is pending. If it is nowhere, the future gets TaskVanished.

        Then unlink its links and its cancel request, and cancel its dependents, which no worker would make ready.
        """
        if (yield from self.find(task)):
            return None
        yield Note("vanished", task)
        for name in [*self.dependency_links(task), Name("cancel", task)]:
            yield Unlink(name)
        for link in self.dependent_links(task):
            return self.withdraw(Name("waiting", link.claim, 1, 1))
        return None

    @rule
    def search_dependency(self, link: Name) -> Body:
        """Search for a task that a pending one needs. If it has no outcome and will get none, cancel the pending one.

        A task in failed/ gets none, unless it is retried.
        """
        waiting = Name("waiting", link.claim, 1, 1)
        if not (yield Read(waiting)) or (yield from self.find(link.task, PLACES[:-1])):
            return None
        return self.withdraw(waiting)

    @rule
    def withdraw(self, waiting: Name) -> Body:
        """Cancel a task whose dependency has no outcome. Too late: its worker finds none."""
        for source in (waiting, waiting.to("ready")):
            target = source.to("results", CANCELLED)
            if (yield Rename(source, target)) or (yield Read(target)):
                return None
        return None

    @rule
    def fail_set_aside(self, failed: Name) -> Body:
        """Fail the future of a task that was set aside in failed/."""
        if (yield Read(failed)):
            yield Note("set aside", failed.task)
        return None

    @rule
    def reopen(self) -> Body:
        """Register in the place of a dead submitter, then make the directory of the session if it is missing."""
        yield Write(ENTRY, ALIVE)
        if self.config.shared and not (yield Read(INBOX)):
            yield Create(INBOX, DIRECTORY)
        return None

    @rule
    def clean_up(self, task: int) -> Body:
        """Remove tmp/N of an earlier process of the session: first its links, then the file."""
        for name in [*self.dependency_links(task), Name("tmp", task)]:
            if (yield Unlink(name)) == ERROR:
                return None
        return None

    @rule
    def collect(self, published: Name) -> Body:
        """Deliver the outcome and unlink the links of the task. Then remove the files, unless a task depends on it.

        Order: the cancel request, the task file, the outcome. The file of a lost task goes to failed/ instead, and
        its links stay, because a retry needs them. A session that keeps its outcomes removes and moves neither task
        file nor outcome, and delivers as often as it is asked.
        """
        outgoing = published.to("outgoing")
        content = CANCELLED if published.holder == CANCELLED else (yield Read(outgoing))
        if not content:
            return None
        yield Note("delivered", published.task, content)
        lost = content == LOST
        for link in [] if lost else self.dependency_links(published.task):
            if (yield Unlink(link)) == ERROR:
                return None
        for link in self.dependent_links(published.task) * self.rounds:
            if (yield Read(link)):
                return None
        if (yield Unlink(Name("cancel", published.task))) == ERROR:
            return None
        if self.config.keeps:
            return None
        removed = yield Rename(published, published.to("failed")) if lost else Unlink(published)
        if removed == DONE and published.holder != CANCELLED:
            yield Unlink(outgoing)
        return None

    @rule
    def cancel(self, source: Name) -> Body:
        """Rename waiting/N.c.a or ready/N.c.a to results/N.c.a.cancelled. Too late: create cancel/N."""
        if source.place == "cancel":
            yield Create(source, REQUEST)
            return None
        target = source.to("results", CANCELLED)
        if (yield Rename(source, target)) or (yield Read(target)):
            return None
        made_ready = source.place == "waiting"
        return self.cancel(source.to("ready") if made_ready else Name("cancel", source.task))

    # -- worker ------------------------------------------------------------------------------

    @rule
    def make_ready(self, waiting: Name) -> Body:
        """Rename waiting/N.c.a to ready/N.c.a when each dependency has an outcome, good or bad. Then stop.

        Every participant may do it, because none concludes anything from the answer; in the model workers,
        submitters and the autoscaler do. The delay of a delayed task can have any length.
        """
        for link in self.dependency_links(waiting.task):
            if not (yield ReadOutcome(link.task)):
                return None
        yield Rename(waiting, waiting.to("ready"))
        return None

    def fits(self, ready: Name, left: int = 0) -> bool:
        """Tell whether a group with this time left claims the task: the name alone says how much it needs."""
        return not self.config.walltimes or ready.seconds <= left

    @rule
    def claim(self, ready: Name, me: str, left: int = 0) -> Body:
        """Rename ready/N.c.a to claimed/N.c.a.w. Error: if the own target is there, the claim is mine."""
        mine = ready.to("claimed", me)
        if (yield Rename(ready, mine)) or (yield Read(mine)):
            yield Note("claimed", mine.task, str(left))
            return self.run(mine, left)
        return None

    @rule
    def run(self, mine: Name, left: int = 0) -> Body:
        """Call the function, unless the task is released, lost or cancelled, or a dependency failed."""
        if (yield Choose("release")):
            return self.release(mine)
        if self.config.shared and not (yield Read(INBOX)):  # no outcome can be published
            yield Rename(mine, mine.to("failed"))
            return None
        if mine.attempt > self.config.attempts:
            return self.write_outcome(mine, LOST)
        if (yield Read(Name("cancel", mine.task))):
            return self.write_outcome(mine, CANCELLED)
        for link in self.dependency_links(mine.task):
            outcome = NO
            for _ in range(self.rounds):
                outcome = outcome or (yield ReadOutcome(link.task))
                # A fenced worker stops: its task ran elsewhere, and the outcome of the dependency is collected since.
                if not outcome and not (yield Read(mine)):
                    return None
            if outcome != VALUE:  # also if it is absent, which only a fault of the disk can cause
                return self.write_outcome(mine, DEPENDENCY)
        yield Note("run", mine.task)
        if self.config.walltimes and left < self.config.duration:
            return self.give_back(mine, left)
        if not (yield Read(mine, own=True)):  # a worker looks only if its call took longer than a lease
            return None
        raised = yield Choose("raises")
        if raised and mine.attempt <= self.config.retries:
            return self.delay(mine)
        return self.write_outcome(mine, RAISED if raised else VALUE)

    @rule
    def delay(self, mine: Name) -> Body:
        """Rename claimed/N.c.a.w to waiting/N.(c+1).(a+1). Error: if the claim is there, publish the exception."""
        waiting = mine.following("waiting", mine.attempt + 1)
        if not (yield Rename(mine, waiting)) and (yield Read(mine, own=True)):
            return self.write_outcome(mine, RAISED)
        return None

    @rule
    def release(self, mine: Name) -> Body:
        """Rename claimed/N.c.a.w to ready/N.(c+1).a, which uses no attempt. Then stop."""
        yield Rename(mine, mine.following("ready", mine.attempt))
        return None

    @rule
    def give_back(self, mine: Name, left: int) -> Body:
        """Release a task whose call had all the time that was left, and needs more. Count it in the name.

        A task without a time limit needs more time than that from now on. If it was given back as often as it has
        attempts, report it as lost instead.
        """
        if mine.releases + 1 >= self.config.attempts:
            return self.write_outcome(mine, LOST)
        ready = mine.following("ready", mine.attempt)
        seconds = mine.seconds if self.config.limited else max(mine.seconds, left + 1)
        if (yield Rename(mine, ready._replace(seconds=seconds, releases=mine.releases + 1))):
            yield Note("given back", mine.task, str(left))
        return None

    @rule
    def write_outcome(self, mine: Name, content: str) -> Body:
        """Create outgoing/N.c.a.w, complete it, commit."""
        yield Create(mine.to("outgoing"), PARTIAL)
        yield Write(mine.to("outgoing"), content)
        return self.commit(mine)

    @rule
    def commit(self, mine: Name) -> Body:
        """Rename claimed/N.c.a.w to results/N.c.a.w, which publishes the outcome.

        Error: if the source is there, try again. If the target is there, it was done. If neither is, the worker is
        fenced: drop the outcome.
        """
        published = mine.to("results")
        if (yield Rename(mine, published)):
            return None
        if (yield Read(mine)):
            return self.commit(mine)
        if (yield Read(published)):
            return None
        return self.drop(mine)

    @rule
    def drop(self, mine: Name) -> Body:
        """Unlink the outcome of a lost claim at once if the task went on without it, else discard it."""
        if (yield ReadSuccessor(mine)):
            yield Unlink(mine.to("outgoing"))
            return None
        return self.discard(mine.to("outgoing"))

    @rule
    def discard(self, outgoing: Name) -> Body:
        """Look for the task file in claimed/, then in results/, and later once more. If there is none, unlink."""
        for place in ("claimed", "results") * self.rounds:
            if (yield Read(outgoing.to(place))):
                return None
        yield Unlink(outgoing)
        return None

    @rule
    def self_check(self, mine: Name, left: int = 0) -> Body:
        """Resume a claim, or discard an outcome, that has the worker's name and on which it does not work.

        With an outcome: commit it. Without one: read the claim once more, because a recoverer may have committed it,
        and its outcome may be collected. If the claim is still there, the task never ran.
        """
        if mine.place == "outgoing":
            return self.discard(mine)
        if (yield Read(mine.to("outgoing"), own=True)):
            return self.commit(mine)
        return self.run(mine, left) if (yield Read(mine)) else None

    # -- recoverer ---------------------------------------------------------------------------

    @rule
    def recover(self, claimed: Name, me: str) -> Body:
        """Commit the claim of a dead worker for it, or requeue it, or report the task as lost. Error: stop.

        A recoverer treats a claim in its own name, on which it does not work, in the same way: it runs no task.
        """
        attempt = claimed.attempt
        found = yield Read(claimed.to("outgoing"))
        if found and found != PARTIAL:
            yield Rename(claimed, claimed.to("results"))
        elif attempt < self.config.attempts:
            yield Rename(claimed, claimed.following("ready", attempt + 1))
        else:
            mine = claimed.following("claimed", attempt, me)
            if (yield Rename(claimed, mine)) or (yield Read(mine)):
                return self.write_outcome(mine, LOST)
        return None

    @rule
    def end_group(self, claimed: Name, me: str, left: int) -> Body:
        """Take the claim of a live group over, end the group, and give the task back: its walltime is over.

        A supervisor does this. The group may go on until it is ended: it is fenced.
        """
        found = yield Read(claimed.to("outgoing"))
        if found and found != PARTIAL:
            yield Rename(claimed, claimed.to("results"))
            return None
        mine = claimed.following("claimed", claimed.attempt, me)
        if (yield Rename(claimed, mine)) or (yield Read(mine)):
            return self.give_back(mine, left)
        return None

    @rule
    def retry(self, failed: Name) -> Body:
        """Rename failed/N.c.a.w, or a lost results/N.c.a.w, to ready/N.(c+1).1 on request. Unlink its outcome.

        First unlink the cancel request for its earlier life.
        """
        yield Note("retried", failed.task)
        if (yield Unlink(Name("cancel", failed.task))) == ERROR:
            return None
        limit = self.config.duration * self.config.limited
        retried = yield Rename(failed, failed.following("ready", 1)._replace(seconds=limit, releases=0))
        if retried and failed.place == "results":
            yield Unlink(failed.to("outgoing"))
        return None

    # -- garbage collection ------------------------------------------------------------------
    # Any process may do it at any time. The age of a file proves nothing, because every participant may be paused. So
    # a collector proves the death of the submitter first, then looks at what it has left, and removes it.

    @rule
    def sweep(self, task: int) -> Body:
        """Remove tmp/N of a dead submitter: first its links, then the file.

        It looks for tmp/N after the proof: the submitter may have renamed it before its death.
        """
        tmp = Name("tmp", task)
        for name in [*self.dependency_links(task), tmp]:
            if (yield Read(ENTRY)) != DEAD or not (yield Read(tmp)) or (yield Unlink(name)) == ERROR:
                return None
        return None

    @rule
    def expire(self, published: Name) -> Body:
        """Remove an outcome of a dead submitter, as its collector would, unless a task depends on it.

        It looks for links after the proof: a dead submitter makes no further ones. A new process of the session may
        come at any time, so it looks at the entry again directly before the removal.
        """
        if (yield Read(ENTRY)) != DEAD:
            return None
        for link in self.dependent_links(published.task) * self.rounds:
            if (yield Read(link)):
                return None
        outgoing = published.to("outgoing")
        content = CANCELLED if published.holder == CANCELLED else (yield Read(outgoing))
        if not content:
            return None
        lost = content == LOST
        for link in [] if lost else self.dependency_links(published.task):
            if (yield Read(ENTRY)) != DEAD or (yield Unlink(link)) == ERROR:
                return None
        if (yield Read(ENTRY)) != DEAD:
            return None
        removed = yield Rename(published, published.to("failed")) if lost else Unlink(published)
        if removed == DONE and published.holder != CANCELLED:
            yield Unlink(outgoing)
        return None

    @rule
    def sweep_request(self, task: int) -> Body:
        """Remove cancel/N if the task neither waits nor runs."""
        if not (yield from self.find(task, ("waiting", "ready", "claimed"))):
            yield Unlink(Name("cancel", task))
        return None

    @rule
    def remove_session(self) -> Body:
        """Remove the directory of a dead submitter's session, unless the session has a task anywhere."""
        if (yield Read(ENTRY)) != DEAD:
            return None
        for task in range(1, self.config.tasks + 1):
            if (yield from self.find(task)):
                return None
        if (yield Read(ENTRY)) == DEAD:
            yield Unlink(INBOX)
        return None
