"""Invariants of the protocol, and what they remember of each task."""

from __future__ import annotations

from typing import NamedTuple

from tests.model.operations import (
    CANCELLED,
    DEPENDENCY,
    DONE,
    ENTRY,
    INBOX,
    LOST,
    NO,
    PARTIAL,
    REQUEST,
    TASK,
    VALUE,
    Create,
    Files,
    Name,
    Note,
    Operation,
    Rename,
)
from tests.model.protocol import Protocol


class Record(NamedTuple):
    """History of a task, as far as an invariant needs it. A retry begins a new life, with a new outcome."""

    begun: bool = False
    submitted: bool = False  # submit has returned
    outcome: str = ""  # as published
    delivered: bool = False
    refused: bool = False  # submit has raised
    vanished: bool = False  # the future has got TaskVanished
    deleted: bool = False  # by a third party
    orphaned: bool = False  # its submitter died: from now on garbage collection may remove its outcome
    asked: bool = False  # a user asked to cancel it, since its last retry
    runs: int = 0
    had: int = 0  # longest time in which it did not end, since its last retry
    retries: int = 0

    @property
    def owed(self) -> bool:
        """Whether the submitter still waits for an outcome."""
        return self.submitted and not self.delivered and not self.vanished


Records = tuple[Record, ...]


def outcome_of(files: Files, task: int) -> str:
    """Return the outcome of a task, or NO: the content of the file that its name in results/ points to."""
    for name in files:
        if name.place == "results" and name.task == task:
            return CANCELLED if name.holder == CANCELLED else files.get(name.to("outgoing"), NO)
    return NO


def has_successor(files: Files, claim: Name) -> str:
    """Return DONE if the task has a later claim number, or no file any more, else NO."""
    claims = [name.claim for name, content in files.items() if name.task == claim.task and content == TASK]
    return DONE if max(claims, default=claim.claim + 1) > claim.claim else NO


class Invariants:
    """Checks of operations, events and files. Each returns "" or a sentence that describes the violation."""

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol

    def after_operation(self, files: Files, records: Records, operation: Operation | str) -> tuple[Records, str]:
        """Check an operation that changes `files` (as they were before), and record its meaning for the task."""
        if isinstance(operation, Create) and operation.content == REQUEST:
            task = operation.name.task
            return replaced(records, task, records[task - 1]._replace(asked=True)), ""
        if isinstance(operation, Create) and operation.name in files:
            return records, f"{operation.name} is created twice"
        if not isinstance(operation, Rename):
            return records, ""
        source, target = operation
        if target in files:
            return records, f"{target} is replaced by a rename"
        record = records[source.task - 1]
        if (source.place, target.place) == ("claimed", "failed") and record.orphaned:
            return records, f"task {source.task} is set aside without a run"
        if source.place == "failed" or (source.place == "results" and target.place == "ready"):
            record = record._replace(outcome="", delivered=False, retries=record.retries + 1)
        if target.place == "results":
            content = files[source]
            if content == TASK:
                content = outcome_of({target: TASK, **files}, source.task)
            violation = self.published(records, target, content)
            if violation:
                return records, violation
            record = record._replace(outcome=content)
        return replaced(records, source.task, record), ""

    def published(self, records: Records, target: Name, content: str) -> str:
        """Check an outcome that is being published."""
        if records[target.task - 1].outcome:
            return f"a second outcome of task {target.task} is published: {target}"
        if content in (NO, PARTIAL):
            return f"{target} is published without a complete outcome"
        record = records[target.task - 1]
        if content == CANCELLED and target.holder != CANCELLED and not record.asked:
            return f"task {target.task} is cancelled, but nobody asked for it since its retry"
        needed = [records[link.task - 1] for link in self.protocol.dependency_links(target.task)]
        if content == DEPENDENCY and all(
            each.outcome == VALUE and not (each.retries or each.deleted or (each.orphaned and not record.orphaned))
            for each in needed
        ):
            return f"task {target.task} fails, although its dependency has a value"
        return ""

    def after_note(self, files: Files, records: Records, note: Note) -> tuple[Records, str]:
        """Check and record an event that leaves no trace in the files."""
        task, record, violation = note.task, records[note.task - 1], ""
        match note.event:
            case "begun":
                record = record._replace(begun=True)
            case "submitted":
                record = record._replace(submitted=True)
            case "refused" | "vanished":
                refused = note.event == "refused"
                record = record._replace(refused=record.refused or refused, vanished=record.vanished or not refused)
                found = [name for name, content in files.items() if content == TASK and name.task == task]
                if note.event == "refused" and not record.deleted:
                    violation = f"task {task} is refused, although no third party deleted it"
                if found:
                    violation = f"task {task} is {note.event}, although it is in {found[0]}"
            case "set aside":
                record = record._replace(delivered=True)
            case "retried":
                record = record._replace(asked=False, had=0)
            case "delivered" if record.retries and note.detail == LOST != record.outcome:
                pass  # a process of the session delivers late: this was the outcome before the retry
            case "delivered":
                record = record._replace(delivered=True)
                if note.detail != record.outcome:
                    violation = f"{note.detail} of task {task} is delivered, not {record.outcome}"
            case "claimed":
                config = self.protocol.config
                if config.limited and int(note.detail) < config.duration:
                    violation = f"task {task} is claimed by a group in whose time its limit does not fit"
                if record.had and int(note.detail) <= record.had:
                    violation = f"task {task} is claimed by a group that has no more time than an earlier one had"
            case "given back":
                record = record._replace(had=max(record.had, int(note.detail)))
            case "run":
                record = record._replace(runs=record.runs + 1)
                config = self.protocol.config
                ends = 2 if config.walltimes else 1  # by deaths, and by walltimes
                if record.runs > ends * config.attempts * (1 + record.retries):
                    violation = f"task {task} runs more often than it has attempts"
                for link in self.protocol.dependency_links(task):
                    if records[link.task - 1].outcome != VALUE:
                        violation = f"task {task} runs without the value of task {link.task}"
        return replaced(records, task, record), violation

    def of_files(self, files: Files, records: Records) -> str:
        """Check the files; this holds at every moment."""
        for task, record in enumerate(records, 1):
            held = [name for name, content in files.items() if content == TASK]
            found = [name for name in held if name.task == task and name.place != "tmp"]
            if len(found) > 1:
                return f"task {task} has two files: {found[0]} and {found[1]}"
            may_be_missing = record.deleted or record.orphaned or self.protocol.outcome_is_moved
            if record.owed and not found and not may_be_missing:
                return f"task {task} is lost"
            for name in found:
                if record.outcome and name.place in ("waiting", "ready", "claimed"):
                    return f"{name} can run after its outcome was published"
                if name.place == "results" and outcome_of(files, task) in (NO, PARTIAL):
                    return f"{name} has lost its outcome"
        return ""

    def is_complete(self, files: Files, records: Records) -> bool:
        """Tell whether every outcome is delivered and no file is left over.

        A lost task stays in failed/, or in results/ of a session that keeps its outcomes. Its links stay too, and
        the outcomes of its dependencies, because its retry needs them. Garbage collection removes the links and the
        cancel request of a deleted task whose submitter has crashed or had collected it. A task that needs more time
        than any group has waits, and people are told.
        """
        told = {name for name in files if name.place == "ready" and self.is_too_long(name)}
        if {task for task, record in enumerate(records, 1) if record.owed} - {name.task for name in told}:
            return False
        left = {name for name in files if name.place != "failed"} - told
        failed = {name.task for name, content in files.items() if name.place == "failed" or content == LOST}
        deleted = {task for task, record in enumerate(records, 1) if record.deleted}
        failed |= deleted
        links = {link for task in failed for link in self.protocol.dependency_links(task)}
        kept = {link.task for link in links}
        if self.protocol.config.keeps:
            kept |= {name.task for name in left if name.place == "results"}
        left -= links | {ENTRY, INBOX} | {Name("cancel", task) for task in deleted}
        return all(name.place in ("results", "outgoing") and name.task in kept for name in left)

    def is_too_long(self, ready: Name) -> bool:
        """Tell whether a task needs more time than any group has; status and the submitter say so."""
        walltimes = self.protocol.config.walltimes
        return bool(walltimes) and ready.seconds > max(walltimes)


def replaced(records: Records, task: int, record: Record) -> Records:
    """Return the records with another record of one task."""
    return (*records[: task - 1], record, *records[task:])
