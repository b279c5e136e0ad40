"""Spools of every format that there ever was are read for ever."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from spoolpool.calls import pickling
from spoolpool.calls.results import ReferenceResolver
from spoolpool.errors import SpoolVersion
from spoolpool.format.headers import TaskHeader
from spoolpool.format.layout import Layout
from spoolpool.format.names import FORMAT, new_worker_id
from spoolpool.maintenance.check import check
from spoolpool.protocol.claimer import Claimer
from spoolpool.protocol.objects import ObjectCache, leases
from spoolpool.protocol.spool import Spool
from spoolpool.security import signing
from spoolpool.security.trust import Trust
from tests.format.golden.make import DATA, DONE, SECRET, WAITING
from tests.support.fake_worker import Clock, Inbox, outcome_of

GOLDEN = Path(__file__).parent / "golden"
FORMATS = sorted(path.name for path in GOLDEN.glob("format-*"))


def copied(name: str, place: Path) -> Path:
    """A copy of a golden spool, with the empty directories that git does not keep."""
    shutil.copytree(GOLDEN / name, place)
    place.chmod(0o700)  # git keeps no modes
    for directory in Layout.DIRECTORIES:
        (place / directory).mkdir(exist_ok=True)
    return place


@pytest.fixture(params=FORMATS)
def golden(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a golden spool, and the key of a signed one."""
    key = signing.Key.of(SECRET)
    (tmp_path / "key").write_text(f"{key.id} {key.secret.hex()}\n")
    (tmp_path / "key").chmod(0o600)
    monkeypatch.setenv("SPOOLPOOL_KEY", str(tmp_path / "key"))
    return copied(request.param, tmp_path / "spool")


def test_there_is_a_golden_spool_of_this_format() -> None:
    assert f"format-{FORMAT}" in FORMATS


def test_nothing_in_a_golden_spool_is_strange(golden: Path) -> None:
    assert check(Spool(golden)) == []


def test_its_waiting_task_is_claimed_and_run_and_its_outcomes_are_collected(
    golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(golden)
    inbox = Inbox(spool, Clock.installed(monkeypatch), "golden")
    claim = Claimer(spool, new_worker_id(), lambda _: True, Trust()).next()
    assert claim is not None
    assert claim.header.task == WAITING
    assert (claim.header.name, claim.header.user, claim.header.max_attempts) == ("pow", "golden", 3)
    function, args, kwargs = pickling.loads(claim.content.payload, claim.content.buffers)
    assert function(*args, **kwargs) == 32
    claim.write_outcome(outcome_of(claim.header, claim.task_file))
    assert claim.commit()
    claim.close()

    waiting = inbox.expect(claim.header)
    done = inbox.expect(TaskHeader(task=DONE, session="golden", lane=claim.header.lane, bucket=claim.header.bucket))
    inbox.look()
    assert waiting.result(timeout=0) == "value"
    number, data = done.result(timeout=0)
    assert number == 42
    assert bytes(data) == DATA
    assert not [path for path in (golden / "outgoing").rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", sorted(path.name for path in GOLDEN.glob("objects-*")))
def test_a_task_of_a_golden_spool_finds_its_objects(name: str, tmp_path: Path) -> None:
    spool = Spool(copied(name, tmp_path / "spool"))
    assert check(spool) == []
    claim = Claimer(spool, new_worker_id(), lambda _: True, Trust()).next()
    assert claim is not None
    found = ObjectCache(spool, Trust())
    buffers = found.fill(claim.header.objects, claim.content.buffers)
    values = ReferenceResolver((), found, claim.header.objects)
    function, args, _ = pickling.loads(claim.content.payload, buffers, values)
    assert function(*args) == DATA + b"+put"
    claim.close()
    assert sorted(leases(spool)) == sorted(claim.header.objects)


def test_a_spool_of_a_later_format_is_refused_with_the_words_what_to_do(golden: Path) -> None:
    config = msgspec.json.decode((golden / "spool.json").read_bytes())
    config["format"] = FORMAT + 1
    (golden / "spool.json").write_bytes(msgspec.json.encode(config))
    with pytest.raises(SpoolVersion, match="Install a newer spoolpool"):
        Spool(golden)
