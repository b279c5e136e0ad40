"""Limits of one rank: its guard and the images of its command that follow know the same end."""

from __future__ import annotations

import sys
import time

import click.testing
import pytest

from spoolpool import settings
from spoolpool.cli import worker, worker_rank
from spoolpool.protocol.spool import Spool
from spoolpool.worker.rank_guard import GuardOptions


def _guard_options(monkeypatch: pytest.MonkeyPatch, *words: str) -> GuardOptions:
    """Return the conditions of the guard that the command of a worker would start."""
    found: list[GuardOptions] = []

    def watch(_directory: str, _worker: str, options: GuardOptions) -> None:
        found.append(options)
        sys.exit(7)  # the command ends here

    monkeypatch.setattr(worker_rank, "watch_rank", watch)
    monkeypatch.setenv("PMI_RANK", "0")
    result = click.testing.CliRunner().invoke(worker.main, words)
    assert result.exit_code == 7, result.output
    return found[0]


def test_guard_knows_the_walltime_of_the_job(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_rank, "rest_of_walltime", lambda *_: 100.0)
    max_time = _guard_options(monkeypatch, spool.path).max_time
    assert max_time is not None
    assert 0 < max_time <= 100


def test_end_stays_when_the_worker_starts_again(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.ENV_LIMITS, f"- {time.monotonic() + 100}")
    max_time = _guard_options(monkeypatch, spool.path, "--max-time", "1h").max_time
    assert max_time is not None
    assert 0 < max_time <= 100
