"""Counts and events of a spool for other programs: Prometheus, spreadsheets, data frames."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import msgspec

from spoolpool.errors import BadRequest
from spoolpool.protocol.journal import Event, Line
from spoolpool.system.accounts import account_name

if TYPE_CHECKING:
    from spoolpool.monitor.status import Status

Row = Mapping[str, Any]

EVENT_COLUMNS = ("account", *Event.__struct_fields__)
"""Columns of events: the account that owns the journal, then the fields that its entries may have."""
COUNT_COLUMNS = ("spool", "time", "lane", "user", "state", "tasks")
"""Columns of counts."""

_ROWS = 100_000  # rows of a group in a Parquet file: so many are in memory


def count_rows(status: Status) -> Iterator[Row]:
    """Yield the number of tasks for each lane, user and state that has any."""
    for each in status.counts:
        for state, number in each.states.items():
            if number:
                place = {"spool": status.spool, "time": status.time, "lane": each.lane, "user": each.user}
                yield {**place, "state": state, "tasks": number}


def event_rows(lines: Iterable[Line]) -> Iterator[Row]:
    """Yield the events of journals, with the account that owns the file of each."""
    accounts: dict[int, str] = {}
    for line in lines:
        account = accounts.get(line.owner)
        if account is None:
            account = accounts[line.owner] = account_name(line.owner)
        yield {"account": account, **msgspec.structs.asdict(line.event)}


def json_lines(rows: Iterable[Row]) -> Iterator[bytes]:
    """Yield one JSON object per row and line; empty fields are left out."""
    for row in rows:
        yield msgspec.json.encode({name: _encodable(value) for name, value in row.items() if value != ""}) + b"\n"


def csv_lines(rows: Iterable[Row], columns: Sequence[str]) -> Iterator[bytes]:
    """Yield the lines of a table with a title; values are quoted where necessary."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(row)
        if text.tell() > 1 << 16:
            yield text.getvalue().encode(errors="backslashreplace")
            text.seek(0)
            text.truncate()
    yield text.getvalue().encode(errors="backslashreplace")


def write_parquet(rows: Iterable[Row], columns: Sequence[str], path: str) -> None:
    """Write rows into a Parquet file. Raises :class:`BadRequest` without pyarrow."""
    try:
        pa: Any = import_module("pyarrow")
        pq: Any = import_module("pyarrow.parquet")
    except ImportError:
        raise BadRequest("Parquet files are written by pyarrow, which is not installed: pip install pyarrow.") from None
    types = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    sample = {"account": "", "spool": "", "time": 0.0, "lane": "", "user": "", "state": "", "tasks": 0}
    sample = {**msgspec.structs.asdict(Event(t=0.0, event="")), **sample}
    schema = pa.schema([(name, types[type(sample[name])]) for name in columns])
    with pq.ParquetWriter(path, schema) as writer:
        for piece in _pieces(rows):
            values = [{name: _exact(row[name], sample[name]) for name in columns} for row in piece]
            writer.write_table(pa.Table.from_pylist(values, schema))


def _pieces(rows: Iterable[Row]) -> Iterator[list[Row]]:
    piece: list[Row] = []
    for row in rows:
        piece.append(row)
        if len(piece) == _ROWS:
            yield piece
            piece = []
    yield piece


def _exact(value: Any, sample: Any) -> Any:
    """Return a value that Arrow accepts: a text without lone surrogates, and a float where an integer came."""
    return _encodable(type(sample)(value))


def _encodable(value: Any) -> Any:
    """Return a value as it is, and a text without lone surrogates, which paths have for bytes that are not UTF-8."""
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


def prometheus(status: Status) -> bytes:
    """Return the counts in the text format of Prometheus, for the textfile collector of node_exporter.

    https://prometheus.io/docs/instrumenting/exposition_formats/
    """
    place = {"spool": status.spool}
    tasks: list[tuple[Mapping[str, str], float]] = [
        ({**place, "lane": row["lane"], "user": row["user"], "state": row["state"]}, row["tasks"])
        for row in count_rows(status)
    ]
    groups = Counter(
        ("busy" if group.task else "idle") if group.life.state == "alive" else group.life.state
        for group in status.groups
    )
    states = {**dict.fromkeys(("busy", "idle"), 0), **groups}
    values: list[tuple[str, str, list[tuple[Mapping[str, str], float]]]] = [
        ("tasks", "Tasks in the spool.", tasks),
        ("groups", "Worker groups.", [({**place, "state": state}, number) for state, number in states.items()]),
        ("groups_missing", "Groups that supervisors lack.", [(place, sum(status.missing.values()))]),
        ("blocked_tasks", "Tasks that no live group can run.", [(place, sum(each.count for each in status.blocked))]),
        ("tasks_per_second", "Tasks that live groups finished in the last minutes.", [(place, status.rate or 0.0)]),
        ("unlisted_directories", "Directories that could not be listed.", [(place, len(status.unseen))]),
        ("status_time_seconds", "Time of these figures by the clock of the file server.", [(place, status.time)]),
    ]
    lines = []
    for name, text, samples in values:
        lines += [f"# HELP spoolpool_{name} {text}", f"# TYPE spoolpool_{name} gauge"]
        lines += [f"spoolpool_{name}{{{_labels(labels)}}} {value!r}" for labels, value in samples]
    return "".join(f"{line}\n" for line in lines).encode()


def _labels(labels: Mapping[str, str]) -> str:
    escaped = {
        name: _encodable(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        for name, value in labels.items()
    }
    return ",".join(f'{name}="{value}"' for name, value in escaped.items())
