"""Records that another account wrote: each is read, or reported and skipped; nothing else happens."""

from __future__ import annotations

import json
import logging
import math
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spoolpool.errors import NotTrusted
from spoolpool.format.config import Config
from spoolpool.format.headers import OutcomeHeader, TaskHeader
from spoolpool.pool.batch_jobs import JobRecord
from spoolpool.protocol.journal import Event
from spoolpool.protocol.progress import TaskProgress
from spoolpool.protocol.sessions import SessionInfo
from spoolpool.protocol.workers import WorkerInfo
from spoolpool.system import limited_log, records
from spoolpool.system.limited_log import LimitedLog
from spoolpool.system.processes import ProcessId
from spoolpool.system.records import BadRecord

PROCESS = {"host": "h", "pid": 1, "start": "1", "boot": "b", "namespace": "n"}
RECORDS: dict[type, dict[str, Any]] = {
    WorkerInfo: {"worker": "0" * 16, "process": PROCESS, "user": "u"},
    SessionInfo: {"process": PROCESS, "user": "u"},
    TaskProgress: {"task": "t", "fraction": 0.5, "text": "x", "told": 1.0},
    JobRecord: {"name": "n", "system": "slurm", "cluster": "c", "user": "u"},
    Config: {"format": 1, "id": "00"},
    Event: {"t": 1.0, "event": "task"},
    ProcessId: PROCESS,
    TaskHeader: {"task": "t", "session": "s", "lane": "l", "bucket": "b"},
    OutcomeHeader: {"task": "t", "kind": "result", "worker": "w"},
}
"""Each kind of record, with its required fields."""

DECODERS: dict[type, msgspec.json.Decoder[Any]] = {kind: msgspec.json.Decoder(kind) for kind in RECORDS}

CONTENTS = {
    "zeros": bytes(200),
    "half": b'{"worker": "00',
    "nothing in it": b"{}",
    "null": b"null",
    "a list": b"[]",
    "deep list": b"[" * 100_000 + b"]" * 100_000,
    "deep object": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "deep in an unknown field": b'{"a":' + b"[" * 20_000 + b"]" * 20_000 + b"}",
    "deep and unterminated": b"[" * 60_000,
    "a million keys": b"{" + b",".join(b'"%d":1' % number for number in range(1_000_000)) + b"}",
    "many keys": b"{" + b",".join(b'"%d":1' % number for number in range(7_000)) + b"}",
    "NaN": b'{"t": NaN, "event": "task"}',
    "Infinity": b'{"t": Infinity, "event": "task"}',
    "1e400": b'{"t": 1e400, "event": "task"}',
    "1e308": b'{"t": 1e308, "event": "task"}',
    "digits": b'{"t": ' + b"9" * 5000 + b', "event": "task"}',
    "lone surrogate": b'{"t": 1, "event": "\\ud800"}',
    "lone surrogate, raw": b'{"t": 1, "event": "\xed\xa0\x80"}',
    "not UTF-8": b'{"t": 1, "event": "\xff"}',
    "quotes": b'{"a": "' + b'\\"' * 30_000,
    "backslash": b'{"a": "\\',
}


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.LogCaptureFixture]:
    """Messages of the reader, which has reported nothing yet."""
    monkeypatch.setattr(records, "_reported", LimitedLog(logging.getLogger(records.__name__)))
    with caplog.at_level(logging.WARNING):
        yield caplog


def _fields(kind: type, fields: dict[str, Any]) -> bytes:
    return json.dumps({**RECORDS[kind], **fields}).encode()


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_record_with_its_required_fields_is_read(kind: type, tmp_path: Path) -> None:
    path = tmp_path / "record"
    path.write_bytes(_fields(kind, {}))
    assert isinstance(records.load(str(path), DECODERS[kind]), kind)


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_damaged_content_is_reported_once_and_skipped(
    kind: type, name: str, tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "record"
    path.write_bytes(CONTENTS[name])
    for _ in range(3):
        assert records.read(str(path), DECODERS[kind]) is None
    [message] = said.messages
    assert str(path) in message
    assert message.isprintable()
    assert len(message) < 1000


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_depth_does_not_depend_on_the_recursion_limit_of_the_program(kind: type, tmp_path: Path) -> None:
    path = tmp_path / "record"
    path.write_bytes(b'{"a":' + b"[" * 20_000 + b"]" * 20_000 + b"}")
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(10**9)
    try:
        with pytest.raises(BadRecord, match="inside each other"):
            records.load(str(path), DECODERS[kind])
    finally:
        sys.setrecursionlimit(before)


def test_brackets_inside_a_text_are_no_depth() -> None:
    text = "[{" * 100 + '"\\' + "[" * 100
    data = json.dumps({"task": "t", "fraction": None, "text": text, "told": 1.0}).encode()
    assert records.decode(DECODERS[TaskProgress], data, "/x").text == text


@pytest.mark.parametrize("kind", ["directory", "FIFO", "link", "dangling link", "loop", "socket", "100 MB"])
def test_other_things_in_the_place_of_a_record_are_reported_and_skipped(
    kind: str, tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "record"
    good = tmp_path / "good"
    good.write_bytes(_fields(Event, {}))
    if kind == "directory":
        path.mkdir()
    elif kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    elif kind == "100 MB":
        with path.open("wb") as file:
            file.write(good.read_bytes())
            file.truncate(100_000_000)
    else:
        path.symlink_to({"link": good, "dangling link": tmp_path / "none", "loop": path}[kind])
    assert records.read(str(path), DECODERS[Event]) is None
    assert [str(path) in message for message in said.messages] == [True]


def test_missing_or_empty_record_is_no_finding(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    empty = tmp_path / "empty"  # race: another process has created it, and writes it just now
    empty.touch()
    assert records.read(str(empty), DECODERS[Event]) is None
    assert records.read(str(tmp_path / "none"), DECODERS[Event]) is None
    assert records.read(str(tmp_path / "none" / "none"), DECODERS[Event]) is None
    assert said.messages == []


def test_record_that_the_check_refuses_is_reported_and_skipped(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "record"
    path.write_bytes(_fields(Event, {}))

    def refuse(fd: int, name: str) -> os.stat_result:
        raise NotTrusted(f"{name} belongs to a stranger.")

    assert records.read(str(path), DECODERS[Event], check=refuse) is None
    assert "belongs to a stranger" in said.text


@pytest.mark.parametrize("error", [MemoryError(), OverflowError(), RecursionError(), KeyError("x")])
def test_any_error_of_the_decoder_is_a_bad_record(error: Exception, tmp_path: Path) -> None:
    class Decoder:
        def decode(self, data: bytes) -> None:
            raise error

    path = tmp_path / "record"
    path.write_bytes(b"{}")
    with pytest.raises(BadRecord, match=type(error).__name__):
        records.load(str(path), Decoder())  # type: ignore[arg-type]


ABSURD = [
    (ProcessId, {"pid": 10**30}),
    (ProcessId, {"pid": -1}),
    (ProcessId, {"pid": 0}),
    (ProcessId, {"host": "x" * 100_000}),
    (ProcessId, {"host": "\x1b[2J"}),
    (WorkerInfo, {"ranks": -1}),
    (WorkerInfo, {"ranks": 0}),
    (WorkerInfo, {"ranks": 10**18}),
    (WorkerInfo, {"threads": 0}),
    (WorkerInfo, {"gpus": -1}),
    (WorkerInfo, {"started": 1e300}),
    (WorkerInfo, {"started": -1e300}),
    (WorkerInfo, {"user": "\x1b]0;title\x07"}),
    (WorkerInfo, {"user": "a\nb"}),
    (WorkerInfo, {"job": "\u202egnp.exe"}),
    (WorkerInfo, {"batch": "\x7f"}),
    (WorkerInfo, {"python": "\x9b2J"}),
    (WorkerInfo, {"queues": ["\x00"]}),
    (WorkerInfo, {"queues": [str(number) for number in range(10_000)]}),
    (WorkerInfo, {"tags": ["\r"]}),
    (WorkerInfo, {"weights": {"default": -1}}),
    (WorkerInfo, {"weights": {"\x1b": 1}}),
    (WorkerInfo, {"trust_users": [-1]}),
    (WorkerInfo, {"trust_users": [10**30]}),
    (WorkerInfo, {"trust_groups": ["a\x00b"]}),
    (SessionInfo, {"user": "\x1b[2J"}),
    (SessionInfo, {"process": {**PROCESS, "pid": 10**30}}),
    (TaskProgress, {"fraction": 1e300}),
    (TaskProgress, {"fraction": -0.5}),
    (TaskProgress, {"told": 1e300}),
    (TaskProgress, {"text": "x" * 10_000}),
    (TaskProgress, {"task": "\x1b"}),
    (JobRecord, {"nodes": -1}),
    (JobRecord, {"time": "\x1b"}),
    (JobRecord, {"user": "\n"}),
    (Config, {"lease": 1e308}),
    (Config, {"lease": 0}),
    (Config, {"lease": -1}),
    (Config, {"caches": 1e308}),
    (Config, {"caches": -1}),
    (Config, {"max_attempts": 0}),
    (Config, {"max_attempts": 10**9}),
    (Config, {"output": -1}),
    (Config, {"max_waiting": -1}),
    (Config, {"id": "../../x"}),
    (Config, {"id": "\x1b"}),
    (Config, {"keep": {"results": -1}}),
    (TaskHeader, {"not_before": 1e300}),
    (TaskHeader, {"submitted": -1e300}),
    (TaskHeader, {"time_limit": 1e10}),
    (TaskHeader, {"retry_delay": 1e10}),
    (TaskHeader, {"retries": -1}),
    (TaskHeader, {"max_attempts": 0}),
    (TaskHeader, {"memory": -1}),
    (OutcomeHeader, {"ended": 1e300}),
    (OutcomeHeader, {"attempt": 0}),
    (OutcomeHeader, {"ranks": 10**30}),
    (Event, {"t": 1e300}),
    (Event, {"t": -1}),
    (Event, {"ended": 1e300}),
    (Event, {"attempt": -1}),
    (Event, {"ranks": 10**30}),
]


@pytest.mark.parametrize(("kind", "fields"), ABSURD, ids=[f"{kind.__name__}-{fields}"[:60] for kind, fields in ABSURD])
def test_values_out_of_range_are_refused_where_they_are_read(kind: type, fields: dict[str, Any]) -> None:
    with pytest.raises(BadRecord):
        records.decode(DECODERS[kind], _fields(kind, fields), "/x")


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.text()
    | st.text(st.characters(categories=("Cc", "Cf", "Cs"))),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def _contents(draw: st.DrawFn) -> tuple[type, bytes]:
    kind = draw(st.sampled_from(list(RECORDS)))
    names = st.sampled_from([field.name for field in msgspec.structs.fields(kind)]) | st.text(max_size=5)
    fields = {**RECORDS[kind], **draw(st.dictionaries(names, _VALUES, max_size=5))}
    data = json.dumps(fields, ensure_ascii=draw(st.booleans())).encode(errors="surrogatepass")
    damage = draw(st.sampled_from(["none", "cut", "byte", "repeat", "random"]))
    if damage == "cut":
        data = data[: draw(st.integers(0, len(data)))]
    elif damage == "byte":
        place = draw(st.integers(0, len(data) - 1))
        data = data[:place] + bytes([draw(st.integers(0, 255))]) + data[place + 1 :]
    elif damage == "repeat":
        place = draw(st.integers(0, len(data) - 1))
        data = data[:place] + data[place : place + 1] * draw(st.integers(1, 5000)) + data[place:]
    elif damage == "random":
        data = draw(st.binary(max_size=200))
    return kind, data


def _numbers_and_texts(value: object) -> Iterator[object]:
    if isinstance(value, msgspec.Struct):
        for field in value.__struct_fields__:
            yield from _numbers_and_texts(getattr(value, field))
    elif isinstance(value, dict):
        for pair in value.items():
            yield from _numbers_and_texts(pair)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _numbers_and_texts(each)
    else:
        yield value


@settings(max_examples=2000, suppress_health_check=[HealthCheck.too_slow])
@given(_contents())
def test_any_content_is_a_record_in_range_or_a_bad_record(found: tuple[type, bytes]) -> None:
    kind, data = found
    record, error = None, ""
    try:
        record = records.decode(DECODERS[kind], data, "/spool/record")
    except BadRecord as bad:
        error = str(bad)
    assert error.isprintable()
    assert len(error) < 2000
    for value in _numbers_and_texts(record):
        if isinstance(value, float):
            assert math.isfinite(value) and 0 <= value <= 1e11
        elif isinstance(value, int):
            assert -1 <= value < 2**63
        elif isinstance(value, str):
            value.encode()
            assert len(value) <= 1 << 16


def test_number_of_messages_is_bounded(said: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limited_log, "_BURST", 100.0)
    for number in range(20_000):
        records.report(f"/spool/workers/{number}", BadRecord(f"/spool/workers/{number}", "it is torn"))
    assert 50 <= len(said.messages) <= 300
    assert "only counted" in said.text


def test_memory_of_reported_records_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limited_log, "_KNOWN", 10)
    log = LimitedLog(logging.getLogger("spoolpool.test"))
    for number in range(1000):
        log.warning(str(number), "text")
    assert len(log._known) <= 10
