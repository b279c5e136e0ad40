"""Interface of the batch systems, and the command runner that they share."""

from __future__ import annotations

import os
import re
import subprocess
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from spoolpool.errors import LauncherError

if TYPE_CHECKING:
    from spoolpool.batch_backends import BatchBackend

_SECONDS = 120.0  # for one answer of a batch system


class JobPart(NamedTuple):
    """Element of a job array, component of a heterogeneous job, or a whole job, as the batch system lists it."""

    id: str
    """Such as ``6_2``, ``6_[3-5]``, ``3+1`` or ``7``."""
    state: Literal["pending", "running"]


class ActiveJob(NamedTuple):
    """Job of this account that is pending or running."""

    id: str
    state: Literal["pending", "running"]
    """Running if a part of it runs."""
    problem: str = ""
    """Reason for which a pending job cannot start as it is, in the words of the batch system."""
    parts: tuple[JobPart, ...] = ()
    """Parts that have not ended; none for a job without parts."""


class EndedJob(NamedTuple):
    """Job of this account that has ended."""

    id: str
    state: Literal["done", "failed", "timeout", "lost", "cancelled"]
    """``lost``: by the failure of a node, or by preemption."""
    exit_status: int | None = None
    """Exit status of the script, negative for a signal; None if the script never ran, or it is unknown."""
    reason: str = ""
    """Reason of a failure, in the words of the batch system."""
    output: str = ""
    """File to which the job printed; empty if it is unknown."""


class BatchSystem(ABC):
    """Commands of one batch system. They raise :class:`LauncherError` with its message."""

    mark: ClassVar[str]
    """Start of a line of the script that holds options."""
    submit_command: ClassVar[Sequence[str]]
    """Command that submits the script on its standard input; it also takes the name of the job."""
    name_option: ClassVar[Sequence[str]]
    """Words of the command line before the name of the job; the last is joined with it if it ends with ``=``."""
    default_options: ClassVar[Sequence[tuple[str, Sequence[str]]]]
    """Keys of :mod:`spoolpool.system.defaults`, each with the spellings of its option."""
    setup: ClassVar[str] = ""
    """Lines of the script before the worker."""

    @abstractmethod
    def resources(self, backend: BatchBackend, time: str) -> list[str]:
        """Return the options that request the nodes and the walltime ``time`` of a job."""

    @abstractmethod
    def output_options(self, path: str) -> list[str]:
        """Return the options that send standard output and standard error to a file."""

    @abstractmethod
    def job_id(self, answer: str) -> str:
        """Return the id of a job from the answer of :attr:`submit_command`."""

    @abstractmethod
    def active_jobs(self) -> dict[str, ActiveJob]:
        """Return the pending and running jobs of this account by name."""

    @abstractmethod
    def ended_job(self, name: str) -> EndedJob | None:
        """Return the end of a job; None if the batch system does not know the job, or not any more."""

    def listed_ids(self, job: str) -> frozenset[str]:
        """Return the ids as lists have them of a job that has a further id; none for other jobs."""
        return frozenset()

    @abstractmethod
    def cancel(self, job: str, name: str) -> None:
        """Cancel the job with this id and name; a job that has ended meanwhile may be an error."""

    @abstractmethod
    def cluster(self) -> str:
        """Return the name of the batch system that answers here."""


def run(command: Sequence[str], action: str, text: str = "", *, accepted: Sequence[int] = (0,)) -> str:
    """Return the output of a command. Raises :class:`LauncherError` if its status is not one of ``accepted``."""
    try:
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
            env={**os.environ, "SLURM_BITSTR_LEN": "0"},  # squeue abbreviates no list of elements of an array
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LauncherError(f"Cannot {action} with {command[0]}: {error}.") from error
    if done.returncode not in accepted:
        reason = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
        reason = " | ".join(filter(None, map(str.strip, reason.splitlines())))
        raise LauncherError(f"Cannot {action}: {' '.join(command[:2])} says: {reason}")
    return done.stdout.strip()


def without_given(options: Iterable[str], given: Sequence[str]) -> list[str]:
    """Return the options that no option of the user replaces.

    Options are the same if their first words are, for ``-l`` with the name of the resource: PBS keeps the first of two.
    """
    replaced = {_subject(part) for option in given for part in _parts(option)}
    return [option for option in options if _subject(option) not in replaced]


def _parts(option: str) -> list[str]:
    """Return each request of a list, such as ``-l select=1,walltime=60``, as an option of its own."""
    word, _, value = option.strip().partition(" ")
    if word != "-l":
        return [option]
    return [f"-l {part}" for part in re.split(r",(?=\w+=)", value.strip())]


def _subject(option: str) -> str:
    word, _, value = option.strip().partition(" ")
    return f"-l {re.split('[=:]', value.strip())[0]}" if word == "-l" else word


def common_cores(cores: Iterable[int], system: str) -> int:
    """Return the number of cores that all nodes have. Raises :class:`LauncherError` if they differ."""
    found = Counter(cores)
    if len(found) == 1:
        return next(iter(found))
    kinds = ", ".join(f"{count} with {number}" for number, count in sorted(found.items()))
    raise LauncherError(
        f"The cores of a node are not known: {system} lists {kinds or 'no node that is up'}. Give their number by "
        "--cores-per-node (cores= of the backend), with the queue of these nodes as an option."
    )
