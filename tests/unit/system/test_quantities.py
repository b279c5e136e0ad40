"""A number that can mean something else is refused with both readings; every other numeric type is accepted."""

from __future__ import annotations

import time
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from typing import Any

import click.testing
import numpy as np
import pytest

from spoolpool import Executor, Flux, Sbatch, Spool, Submission
from spoolpool.batch_backends import FluxBatch
from spoolpool.cli.spool import main
from spoolpool.errors import BadRequest
from spoolpool.resources import Resources
from spoolpool.system.quantities import DAY, LONGEST, read_count, read_memory, read_seconds, read_start

EPOCH = 1_795_850_270


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (90, 90),
        (0, 0),
        (2.5, 2.5),
        (np.float32(2.5), 2.5),
        (np.int64(90), 90),
        (np.timedelta64(5, "m"), 300),
        (Decimal("2.5"), 2.5),
        (Fraction(5, 2), 2.5),
        (timedelta(minutes=2), 120),
        ("90s", 90),
        ("1.5h", 5400),
        ("10 min", 600),
        ("2d", 2 * DAY),
        ("1w", 7 * DAY),
        ("1:30:00", 5400),
        ("1-00:00:01", DAY + 1),
        ("1-12", 1.5 * DAY),
        (" 1-06:30 ", 1.25 * DAY + 1800),
        (LONGEST, LONGEST),
    ],
)
def test_a_duration_is_a_number_a_timedelta_or_a_text_with_a_unit(value: Any, seconds: float) -> None:
    assert read_seconds("limit", value) == seconds
    assert Resources().updated({"time_limit": value}).time_limit == seconds
    assert type(Resources().updated({"time_limit": value}).time_limit) is float


@pytest.mark.parametrize(
    "wrong",
    [
        *(True, np.bool_(True), None, -1, -0.5, float("nan"), float("inf"), -float("inf"), Decimal("NaN"), 10**400),
        *(
            1 + 0j,
            "",
            "90",
            "-5s",
            "1h30",
            "nan",
            "0x10",
            "1:99:00",
            "1-2:99",
            "1-:30",
            b"90",
            [90],
            np.array([90]),
            np.timedelta64("NaT"),
        ),
        *(timedelta(seconds=-1), datetime.now(timezone.utc), date(2026, 1, 1)),
    ],
)
@pytest.mark.parametrize("key", ["time_limit", "retry_delay"])
def test_other_values_of_a_duration_are_refused_by_name(key: str, wrong: Any) -> None:
    with pytest.raises(BadRequest, match=key):
        Resources().updated({key: wrong})


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (EPOCH, "seconds"),
        (float(EPOCH), "seconds"),
        (np.int64(EPOCH), "seconds"),
        (EPOCH * 1000, "milliseconds"),
        (EPOCH * 10**6, "microseconds"),
        (EPOCH * 10**9, "nanoseconds"),
    ],
)
@pytest.mark.parametrize("key", ["not_before", "time_limit"])
def test_seconds_since_the_epoch_are_refused_with_both_readings(key: str, number: Any, kind: str) -> None:
    with pytest.raises(BadRequest, match=rf"{key} is .* years; as {kind} since 1970 it is 2026-11-28 07:17:50 UTC"):
        Resources().updated({key: number})


def test_a_number_of_seconds_without_a_reading_as_a_date_is_refused() -> None:
    with pytest.raises(BadRequest, match="years"):
        read_seconds("limit", 1e30)


def test_a_time_of_two_parts_is_refused_with_both_readings() -> None:
    with pytest.raises(BadRequest, match=r"'1:30:00' or '0:01:30'"):
        read_seconds("limit", "1:30")


def test_a_long_delay_between_retries_is_refused() -> None:
    assert Resources().updated({"retry_delay": "5m"}).retry_delay == 300
    with pytest.raises(BadRequest, match=r"60 min; milliseconds are written as '3.6s'"):
        Resources().updated({"retry_delay": 3600})


@pytest.mark.parametrize("start", ["2030-01-02T03:04:05Z", "2030-01-02T03:04:05+00:00", "2030-01-02 04:04:05+01:00"])
def test_a_start_with_a_zone_is_that_moment(start: str) -> None:
    assert read_start("start", start) == datetime(2030, 1, 2, 3, 4, 5, tzinfo=timezone.utc)


def test_a_start_without_a_zone_is_in_that_of_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC-3")
    time.tzset()
    try:
        moment = datetime(2030, 1, 2, tzinfo=timezone.utc) - timedelta(hours=3)
        for start in (datetime(2030, 1, 2), "2030-01-02", "2030-01-02T00:00"):  # noqa: DTZ001  naive on purpose
            assert read_start("start", start) == moment
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_start_from_now_needs_a_unit_in_a_text() -> None:
    assert read_start("start", "2h") == 7200
    assert read_start("start", timedelta(hours=2)) == 7200
    assert read_start("start", np.float64(7200)) == 7200


@pytest.mark.parametrize(
    "wrong", ["12:30", "90", "tomorrow", "", None, date(2026, 1, 1), np.datetime64("2026-01-01"), True, -1]
)
def test_other_starts_are_refused(wrong: Any) -> None:
    with pytest.raises(BadRequest, match="not_before"):
        Resources().updated({"not_before": wrong})


@pytest.mark.parametrize(
    ("size", "count"), [(0, 0), (4e9, 4_000_000_000), (np.int64(1 << 30), 1 << 30), ("4G", 4 << 30)]
)
def test_a_size_is_a_number_of_bytes_or_a_text(size: Any, count: int) -> None:
    assert read_memory(size) == count


@pytest.mark.parametrize("size", [4, 4000, "4000", np.int32(64)])
def test_a_size_of_too_few_bytes_is_refused_with_both_readings(size: Any) -> None:
    with pytest.raises(BadRequest, match=rf"as bytes .* '{size}M' .* '{size}G'"):
        read_memory(size)


@pytest.mark.parametrize("size", [True, -1, 1.5e9 + 0.5, float("nan"), "4GB", "4g", "", None, 1 << 60, "9999999T"])
def test_other_sizes_are_refused(size: Any) -> None:
    with pytest.raises(BadRequest, match="memory"):
        read_memory(size)


def test_a_count_is_a_whole_number_of_any_type() -> None:
    assert read_count("cores", np.int32(3), 1) == 3
    assert Resources().updated({"cores": np.uint8(3), "priority": np.int64(-3)}).cores == 3
    for wrong in (True, 2.0, "3", None, 0, np.float64(3), np.timedelta64(3, "s"), float("nan")):
        with pytest.raises(BadRequest, match=r"cores .* whole number from 1 to"):
            Resources().updated({"cores": wrong})
    with pytest.raises(BadRequest, match="a greater one run earlier"):
        Resources().updated({"priority": 1000})


@pytest.mark.parametrize(
    "make",
    [
        lambda: Executor(max_workers=True),
        lambda: Executor(max_workers=2.5),  # type: ignore[arg-type]
        lambda: Executor(max_workers=0),
        lambda: Sbatch(nodes=1.5),  # type: ignore[arg-type]
        lambda: Sbatch(max_jobs=True),
        lambda: Sbatch(time=60),  # type: ignore[arg-type]
        lambda: Sbatch(time=""),
        lambda: Sbatch(time="1:00:00\n#SBATCH --exclusive"),
        lambda: FluxBatch(time=timedelta(seconds=-1)),
        lambda: Flux(urgency=16.5),  # type: ignore[arg-type]
        lambda: Submission(share_from="1M"),  # type: ignore[arg-type]
        lambda: Submission(share_from=1),
    ],
)
def test_wrong_numbers_of_options_are_refused(make: Any) -> None:
    with pytest.raises(BadRequest):
        make()


def test_a_walltime_may_be_a_timedelta() -> None:
    assert Sbatch(time=timedelta(days=1, seconds=61.5)).time == "24:01:02"
    assert FluxBatch(time=timedelta(hours=2)).time == "2:00:00"


@pytest.mark.parametrize(
    "wrong",
    [
        {"lease": float("nan")},
        {"lease": 0},
        {"lease": -1},
        {"lease": True},
        {"lease": 60_000},
        {"caches": 120_000},
        {"caches": float("inf")},
        {"max_attempts": 1.5},
        {"max_waiting": 0},
        {"output": -1},
        {"output": "8M"},
    ],
)
def test_wrong_numbers_of_a_spool_are_refused(tmp_path: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match=next(iter(wrong))):
        Spool.create(tmp_path / "spool", **wrong)


@pytest.mark.parametrize(
    "words",
    [
        ["init", "SPOOL/new", "--lease", "nan"],
        ["init", "SPOOL/new", "--lease", "-5"],
        ["init", "SPOOL/new", "--output", "nan"],
        ["init", "SPOOL/new", "--output", "8388608"],
        ["gc", "SPOOL", "--results", "nan"],
        ["gc", "SPOOL", "--results", "inf"],
        ["gc", "SPOOL", "--logs", "-1"],
        ["gc", "SPOOL", "--results", "2592000"],
        ["wait", "SPOOL", "--timeout", "1795850270"],
        ["wait", "SPOOL", "--timeout", "1:30"],
        ["autoscale", "SPOOL", "--max-jobs", "1", "--once", "--time", "1:30"],
        ["workers", "start", "SPOOL", "--time", "1:30", "--dry-run"],
        ["journal", "SPOOL", "--since", "1795850270"],
        ["status", "SPOOL", "--interval", "0.01"],
        ["autoscale", "SPOOL", "--max-jobs", "1", "--once", "--idle-timeout", "nan"],
        ["submit", "--spool", "SPOOL", "math:sqrt", "--arg", "4", "--resource", "not_before=1795850270"],
    ],
    ids=" ".join,
)
def test_wrong_numbers_of_commands_are_refused(spool: Spool, words: list[str]) -> None:
    result = click.testing.CliRunner().invoke(main, [word.replace("SPOOL", spool.path) for word in words])
    assert result.exit_code != 0
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception


def test_periods_of_garbage_collection_are_days_or_have_a_unit(spool: Spool) -> None:
    for days in ("0", "30", "12h", "4w", "1:30:00"):
        assert click.testing.CliRunner().invoke(main, ["gc", spool.path, "-n", "--results", days]).exit_code == 0
    told = click.testing.CliRunner().invoke(main, ["gc", spool.path, "--results", "2592000"]).stderr
    assert "seconds are written as '2592000s'" in told
