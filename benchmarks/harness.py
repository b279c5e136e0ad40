"""Rounds in which each contender has a turn: in new processes, in a new directory, without other contenders.

So a disturbance of the machine affects all alike, a ratio is taken within a round, and the spread over the rounds
includes the differences between starts of a contender.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import environments, processes
from benchmarks.contender import Environment, Samples
from benchmarks.row import Entry, Failed, Place, Row, Sizes

ROOT = Path(__file__).resolve().parent.parent
_LINGER = 20.0  # seconds that a contender may take to end after it has answered
_LOOK = 0.25  # seconds between polls: long enough not to disturb the measurement


@dataclass(kw_only=True)
class Outcome:
    """Results of an entry."""

    entry: Entry
    rounds: list[Samples] = field(default_factory=list)
    missing: str | None = None
    """Reason why figures are missing, of all rounds or of later ones."""


@dataclass(kw_only=True)
class Run:
    """Results of one run."""

    rows: list[tuple[Row, list[Outcome]]] = field(default_factory=list)
    environments: dict[str, environments.Made | str] = field(default_factory=dict)
    """Installed versions, or the reason of a failed installation."""


@dataclass(frozen=True, kw_only=True)
class Harness:
    """Runner of the rounds."""

    directory: str
    """Directory in which the contenders work."""
    sizes: Sizes
    wanted: Callable[[Entry], bool]
    """Predicate of the entries that take part."""
    say: Callable[[str], None]
    """Function that prints progress."""

    def run(self, rows: Iterable[Row]) -> Run:
        """Measure rows."""
        run = Run()
        for row in rows:
            outcomes = [Outcome(entry=entry) for entry in row.entries(self.sizes) if self.wanted(entry)]
            for outcome in outcomes:
                made = self._have(run, outcome.entry.environment)
                outcome.missing = made if isinstance(made, str) else None
            rounds = 1 if row.once else self.sizes.rounds
            for number in range(1, rounds + 1):
                for outcome in outcomes:
                    if outcome.missing is None and number <= (outcome.entry.rounds or rounds):
                        self.say(f"{row.name}, round {number} of {rounds}: {outcome.entry.key}")
                        self._turn(outcome, run.environments[outcome.entry.environment.name])
            run.rows.append((row, outcomes))
        return run

    def _have(self, run: Run, environment: Environment) -> environments.Made | str:
        if environment.name not in run.environments:
            try:
                run.environments[environment.name] = environments.have(environment, self.say)
            except environments.NotToBeHad as error:
                run.environments[environment.name] = f"cannot be installed: {error}"
                self.say(f"{environment.name} cannot be installed: {error}")
        return run.environments[environment.name]

    def _turn(self, outcome: Outcome, made: environments.Made | str) -> None:
        assert not isinstance(made, str)
        directory = f"{self.directory}/w"  # short: names of sockets are cut at 108 bytes
        os.mkdir(directory)
        others = {process.pid for process in processes.below(os.getpid())}
        run = runner(made.python, directory, outcome.entry.limit, others)
        place = Place(python=made.python, directory=directory, run=run)
        try:
            outcome.rounds.append(outcome.entry.take(place))
        except Failed as error:
            outcome.missing = str(error)
            self.say(f"{outcome.entry.key} failed: {error}")
        except Exception as error:  # noqa: BLE001  an error in here, and an hour of figures of others to be kept
            outcome.missing = f"the benchmark itself failed: {type(error).__name__}: {error}"
            self.say(traceback.format_exc())
        finally:
            processes.end_descendants(others)
            shutil.rmtree(directory, ignore_errors=True)


def environment_of(python: str, directory: str) -> dict[str, str]:
    """Return the environment variables of a contender: paths of its library and this package, and TMPDIR."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "COV_", "COVERAGE_", "PMI", "OMPI_", "VIRTUAL_ENV"))
    }
    kept |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    kept["PATH"] = f"{os.path.dirname(python)}:{os.environ.get('PATH', os.defpath)}"
    return {**kept, "PYTHONPATH": str(ROOT), "TMPDIR": directory}


def runner(python: str, directory: str, limit: float, others: Collection[int]) -> Callable[[Sequence[str], str], None]:
    """Return the function that runs a command of a contender for at most so many seconds; see :class:`Place`."""

    def run(command: Sequence[str], answer: str) -> None:
        log = f"{directory}/log"
        with open(log, "wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=directory,
                env=environment_of(python, f"{directory}/d"),
                start_new_session=True,
            )
            ended = _wait(process, limit, answer, others)
        if os.path.exists(answer):
            return
        if ended is None:
            raise Failed(f"it took more than {limit:.0f} s")
        raise Failed(f"it ended with status {ended}: {_last_words(log)}")

    return run


def _wait(process: subprocess.Popen[bytes], limit: float, answer: str, others: Collection[int]) -> int | None:
    """Wait for the end of a process; return None if it was killed: at the limit, or for staying after its answer."""
    end = time.monotonic() + limit
    answered = False
    while time.monotonic() < end:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(_LOOK)
        if not answered and os.path.exists(answer):
            answered = True
            end = min(end, time.monotonic() + _LINGER)
    processes.end_descendants(others)
    process.wait()
    return None


def _last_words(log: str) -> str:
    with open(log, encoding="utf-8", errors="replace") as file:
        lines = [line.strip() for line in file if line.strip()]
    errors = [line for line in lines if "Error" in line]
    return (errors or lines or ["it said nothing"])[-1][:300]
