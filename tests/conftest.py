"""Fixtures of many tests: a spool, and real worker processes that serve it."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from spoolpool.client import collector
from spoolpool.launch.mpiexec import find_mpiexec
from spoolpool.protocol import workers
from spoolpool.protocol.spool import Spool
from spoolpool.system import limited_log
from tests.support.environment import isolate
from tests.support.waiting import LIMIT, wait_until


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Spread tests over the processes one by one, except for tests that share a server."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            # not by xdist's own marks: xdist 3.8 writes them into an attribute that pytest 9.2 no longer has
            file, _, test = nodeid.partition("::")
            if file.startswith("tests/sharedfs/"):  # a server of each kind, named by the parameters
                return test.partition("[")[2] or file
            if file.startswith(("tests/slurm/", "tests/flux/", "tests/gridengine/")):
                return file
            return nodeid

    return Scheduling(config, log)


def pytest_configure(config: pytest.Config) -> None:
    """Make the tests independent of the machine; in a hook, since the workers of a test may import this module too."""
    import hypothesis

    isolate()
    # no deadline: a machine under load would exceed hypothesis' limit of 200 ms for an example
    hypothesis.settings.register_profile("spoolpool", deadline=None)
    hypothesis.settings.load_profile("spoolpool")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add an option that updates the console output in the pages; without it the output is compared."""
    parser.addoption(
        "--update-pages", action="store_true", help="write the output of commands into the pages that show it"
    )


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    """A new spool without workers."""
    return Spool.create(tmp_path / "spool", durability="none")


@pytest.fixture(autouse=True)
def _unlimited_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test use up the messages of the tests after it in this process."""
    monkeypatch.setattr(limited_log, "_BURST", 1e9)


@pytest.fixture(autouse=True)
def _own_logger() -> Iterator[None]:
    """Reset the logger of the package, which a command that runs in this process sets up for itself.

    Not to its state before the test: a fixture of the module may have run a command earlier.
    """
    _reset_logger()
    yield
    _reset_logger()


def _reset_logger() -> None:
    logger = logging.getLogger("spoolpool")
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


class Workers:
    """Starter of ``spool-worker`` processes. All must end without an error, except the ones that a test names."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._started: list[tuple[subprocess.Popen[bytes], Path]] = []
        self._doomed: set[int] = set()

    def __call__(
        self, spool: Spool | str | Path, *options: object, mpi_ranks: int = 1, await_groups: int = 1, **variables: str
    ) -> subprocess.Popen[bytes]:
        """Start a worker of a spool, by default until it has announced itself there."""
        path = spool.path if isinstance(spool, Spool) else str(spool)
        command = [sys.executable, "-m", "spoolpool.cli.worker", path, *map(str, options)]
        if mpi_ranks > 1:
            mpiexec = find_mpiexec()
            assert mpiexec is not None
            command = [mpiexec, "-n", str(mpi_ranks), *command]
        log = self._directory / f"worker-{len(self._started)}.log"
        before = _groups(path) if await_groups else set()
        with log.open("wb") as file:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env={**os.environ, **variables},
                start_new_session=True,
            )
        self._started.append((process, log))
        if await_groups:
            wait_until(
                lambda: process.poll() is not None or len(_groups(path) - before) >= await_groups,
                f"the groups of {' '.join(command)} announced themselves",
            )
        return process

    def may_die(self, process: subprocess.Popen[bytes]) -> None:
        """Note that a worker will be killed, or has a reason to fail."""
        self._doomed.add(process.pid)

    def said(self, process: subprocess.Popen[bytes]) -> str:
        """Return the output of a worker so far."""
        return next(log for started, log in self._started if started is process).read_text(encoding="utf-8")

    def stop(self) -> None:
        """Stop all workers; fail if one ended with an error."""
        for process, _ in self._started:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        bad = []
        for process, log in self._started:
            try:
                code = process.wait(LIMIT)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                code = process.wait()
            if code and process.pid not in self._doomed:
                bad.append(f"{process.args} ended with {code}:\n{log.read_text(encoding='utf-8', errors='replace')}")
        assert not bad, "\n".join(bad)


def _groups(path: str) -> set[str]:
    # ids: the entry of a dead group may be removed at any moment, so that a number would say nothing
    return {info.worker for info in workers.read_workers(Spool(path))}


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Workers]:
    """Starter of worker processes, which are ended after the test; an unexpected crash fails the test."""
    workers = Workers(tmp_path)
    try:
        yield workers
    finally:
        workers.stop()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spool]:
    """A spool that one group serves."""
    directory = tmp_path_factory.mktemp("served")
    spool = Spool.create(directory / "spool", durability="none")
    workers = Workers(directory)
    workers(spool)
    yield spool
    workers.stop()


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let submitters check within milliseconds, not seconds, whether a group serves their tasks."""
    monkeypatch.setattr(collector, "_CHECK_SECONDS", 0.05)
