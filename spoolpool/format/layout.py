"""Paths of the files and directories of a spool. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spoolpool.format.names import DependencyLink, OutputFile, TaskFile

if TYPE_CHECKING:
    from spoolpool.system.open_directory import Place


class Layout:
    """Paths below one spool directory, which is given by its path or is open. Keep this object while a path is used."""

    DIRECTORIES = (
        "tmp",
        "ready",
        "waiting",
        "claimed",
        "outgoing",
        "results",
        "failed",
        "cancel",
        "objects",
        "sessions",
        "workers",
        "journal",
        "logs",
    )
    ON_DEMAND = ("jobs", "needs", "cache")
    """Directories that are made when they are first needed."""

    def __init__(self, place: Place) -> None:
        self.place = place  # a path through an open directory is valid while it is open
        self.root = root = str(place)
        self.config = f"{root}/spool.json"
        self.tmp = f"{root}/tmp"
        self.ready = f"{root}/ready"
        self.waiting = f"{root}/waiting"
        self.needs = f"{root}/needs"
        self.claimed = f"{root}/claimed"
        self.outgoing = f"{root}/outgoing"
        self.results = f"{root}/results"
        self.failed = f"{root}/failed"
        self.cancel = f"{root}/cancel"
        self.objects = f"{root}/objects"
        self.cache = f"{root}/cache"
        self.sessions = f"{root}/sessions"
        self.workers = f"{root}/workers"
        self.journal = f"{root}/journal"
        self.logs = f"{root}/logs"
        self.jobs = f"{root}/jobs"

    def lane(self, lane: str) -> str:
        """Return the directory of a lane, which contains its buckets."""
        return f"{self.ready}/{lane}"

    def bucket(self, lane: str, bucket: str) -> str:
        """Return the directory of a bucket, which contains ready tasks."""
        return f"{self.ready}/{lane}/{bucket}"

    def claimed_task(self, task_file: TaskFile) -> str:
        """Return the path of a claimed task."""
        return f"{self.claimed}/{task_file.name}"

    def outcome(self, session: str, task_file: TaskFile) -> str:
        """Return the path of an outcome, complete or not, committed or not."""
        return f"{self.outgoing}/{session}/{task_file.name}"

    def result(self, session: str, task_file: TaskFile) -> str:
        """Return the path of a task file after its commit: its outcome can be collected."""
        return f"{self.results}/{session}/{task_file.name}"

    def session(self, entry: str) -> str:
        """Return the file of a session's entry, on one submitter. Its modification time is its sign of life, if any."""
        return f"{self.sessions}/{entry}.json"

    def log(self, log: OutputFile) -> str:
        """Return the output log of one rank."""
        return f"{self.logs}/{log.name}"

    def dependency_link(self, session: str, link: DependencyLink) -> str:
        """Return the path of a link. While it exists, the outcome of a task of this session is needed."""
        return f"{self.needs}/{session}/{link.name}"

    def object(self, name: str, user: int | None) -> str:
        """Return the path of an object; in shared spools each account has its own objects."""
        return f"{self.objects}/{name}" if user is None else f"{self.objects}/{name}@{user}"

    def worker(self, worker: str) -> str:
        """Return the directory of a worker's entry."""
        return f"{self.workers}/{worker}"
