"""Walltimes are read in one way, and written as each batch system reads them."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Any

import click.testing
import numpy as np
import pytest

from spoolpool import FluxBatch, Sbatch, Spool
from spoolpool.cli.spool import main
from spoolpool.cli.worker import main as worker
from spoolpool.errors import BadRequest
from spoolpool.pool.batch_system import Job
from spoolpool.system.walltime import describe_walltime, format_walltime, parse_clock, read_walltime


@pytest.mark.parametrize(
    ("given", "seconds", "understood"),
    [
        ("1:30:00", 5400, "1:30:00 (90 minutes)"),
        ("01:30:00", 5400, "1:30:00 (90 minutes)"),
        ("2-00:00:00", 172_800, "2-00:00:00 (2880 minutes)"),
        ("1-12", 129_600, "1-12:00:00 (2160 minutes)"),
        ("90m", 5400, "1:30:00 (90 minutes)"),
        ("1.5h", 5400, "1:30:00 (90 minutes)"),
        ("90", 5400, "1:30:00 (90 minutes)"),
        ("5400s", 5400, "1:30:00 (90 minutes)"),
        ("0.5", 30, "0:00:30 (0.5 minutes)"),
        ("1", 60, "0:01:00 (1 minute)"),
        ("2d", 172_800, "2-00:00:00 (2880 minutes)"),
        (timedelta(seconds=60.5), 61, "0:01:01 (1.02 minutes)"),
        (np.timedelta64(90, "m"), 5400, "1:30:00 (90 minutes)"),
    ],
)
def test_a_walltime_is_read_and_described(given: Any, seconds: int, understood: str) -> None:
    assert read_walltime("time", given) == seconds
    assert describe_walltime(seconds) == understood


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("1:30", "'1:30:00' or '0:01:30'"),
        ("90:30", "'90:30:00' or '0:90:30'"),
        ("", "a number of minutes"),
        ("soon", "a number of minutes"),
        ("-5", "a number of minutes"),
        ("1:00:00\n#SBATCH --exclusive", "a number of minutes"),
        ("0", "greater than 0"),
        ("0:00:00", "greater than 0"),
        ("1795850270", "as minutes that is .* years; seconds are written as '1795850270s'"),
        (90, "could mean minutes.* or seconds"),
        (1.5, "could mean minutes"),
        (np.int64(90), "could mean minutes"),
        (True, "could mean minutes"),
        (None, "could mean minutes"),
        (timedelta(seconds=-1), "negative"),
    ],
)
def test_other_walltimes_are_refused_by_name(given: Any, message: str) -> None:
    with pytest.raises(BadRequest, match=f"the limit is .*{message}"):
        read_walltime("the limit", given)
    with pytest.raises(BadRequest, match="Sbatch: time is"):
        Sbatch(time=given)


@pytest.mark.parametrize(
    ("seconds", "slurm", "lsf", "flux"),
    [
        (3600, "1:00:00", "1:00", "60m"),
        (5401, "1:30:01", "1:31", "5401s"),
        (30, "0:00:30", "0:01", "30s"),
        (180_000, "50:00:00", "50:00", "3000m"),
    ],
)
def test_a_walltime_is_written_as_each_system_reads_it(seconds: int, slurm: str, lsf: str, flux: str) -> None:
    assert format_walltime(seconds, "slurm") == slurm
    assert format_walltime(seconds, "pbs") == slurm
    assert format_walltime(seconds, "sge") == slurm
    assert format_walltime(seconds, "lsf") == lsf
    assert format_walltime(seconds, "flux") == flux


@pytest.mark.parametrize("time", ["1:30:00", "90m", "1.5h", "90", timedelta(hours=1.5)])
def test_the_script_of_a_job_has_the_walltime_in_the_format_of_its_system(time: Any) -> None:
    for backend, line in ((Sbatch(time=time), "#SBATCH --time=1:30:00"), (FluxBatch(time=time), "--time-limit=90m")):
        assert dataclasses.replace(backend) == backend
        assert line in Job(backend=backend, spool="/s").script("n", "/o")


@pytest.mark.parametrize("time", ["1:30:00", "90m", "1.5h", "90"])
@pytest.mark.parametrize(("system", "line"), [("--slurm", "--time=1:30:00\n"), ("--flux", "--time-limit=90m\n")])
def test_a_command_states_how_it_understood_a_walltime(spool: Spool, time: str, system: str, line: str) -> None:
    done = click.testing.CliRunner().invoke(
        main, ["workers", "start", spool.path, "--dry-run", system, f"--time={time}"]
    )
    assert done.exit_code == 0, done.output
    assert line in done.stdout
    assert "walltime 1:30:00 (90 minutes)\n" in done.stderr


@pytest.mark.parametrize(("time", "understood"), [("1.5h", "1:30:00 (90 minutes)"), ("0-00:02", "0:02:00 (2 minutes)")])
def test_a_worker_states_how_it_understood_the_time_after_which_it_ends(
    spool: Spool, time: str, understood: str
) -> None:
    arguments = [spool.path, f"--max-time={time}", "--launcher=local", "--ranks=2"]  # which local refuses
    done = click.testing.CliRunner().invoke(worker, arguments)
    assert f"--max-time: the work ends after {understood}\n" in done.stderr
    assert done.exit_code


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1-02:03:04", 93784),
        ("2:03:04", 7384),
        ("30:00", 1800),
        ("0:07\n", 7),
        ("90", 90),
        ("1::30", 3630),
        ("UNLIMITED", None),
        ("INFINITY", None),
        ("1-2-3:00", None),
        ("", None),
    ],
)
def test_times_as_batch_systems_print_them(text: str, seconds: float | None) -> None:
    assert parse_clock(text) == seconds
