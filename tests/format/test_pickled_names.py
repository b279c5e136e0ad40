"""Files that the client and the workers of this version write name nothing of spoolpool but names of the format."""

from __future__ import annotations

import importlib
import inspect
import operator
import pickle
import re
import sys
import types
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import click.testing
import cloudpickle
import joblib
import pytest

import spoolpool
import spoolpool.joblib
from spoolpool import Executor, Pool, ShellExecutor, Submission, SubprocessExecutor, wire
from spoolpool.calls import pickling
from spoolpool.cli.spool import main
from spoolpool.client.map import ChunkSize
from spoolpool.client.packing import BUSY
from spoolpool.errors import DependencyFailed, NotPicklable
from spoolpool.protocol.claimer import Claimer
from spoolpool.protocol.spool import Spool
from spoolpool.security.trust import Trust
from tests.conftest import Workers
from tests.format.pickled_names import Name, is_allowed, names_in_pickle, names_in_spool
from tests.support.waiting import LIMIT

LOCAL = """
import functools
import local_lock
import local_numbers
import spoolpool

class OwnError(Exception):
    pass

def raise_own(*_):
    raise OwnError("here")

def raise_error():
    raise spoolpool.errors.BadRequest("here")

def describe_task():  # names in its code are also names of modules of the package: format, worker
    spoolpool.wait([])
    return "{} {}".format(spoolpool.current_task().worker, spoolpool.current_task().id)

def use_module():
    return local_numbers.SEVEN

@functools.lru_cache
def cached():
    return 7

class WithProperty:
    @functools.cached_property
    def seven(self):
        return 7

def use_property():
    return WithProperty().seven

def use_lock():
    return local_lock.locked()

def make_preset():
    return {"preset": 7}

def take_preset(preset):
    return preset
"""

LOCK = """
import threading

lock = threading.Lock()

def locked():
    with lock:
        return 7

def make_nested():
    def nested():
        return locked()
    return nested
"""


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module that is not installed, so that its functions are pickled by value."""
    (tmp_path / "local_functions.py").write_text(LOCAL)
    (tmp_path / "local_numbers.py").write_text("SEVEN = 7\n")
    (tmp_path / "local_lock.py").write_text(LOCK)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("local_functions", "local_numbers", "local_lock"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("local_functions")


def submit_all_kinds(spool: Spool, worker: Workers, local: Any) -> set[Name]:
    """Run calls of every kind in sessions that keep their files; return the names in the files."""
    with Executor(
        spool=spool.path, session="plain", submission=Submission(share_from=pickling.OUT_OF_BAND), cache=True
    ) as executor:
        stored = executor.put(b"x" * 100)
        part = spoolpool.get_item_from_future(executor.submit(dict, a=1), "a")
        elsewhere: Future[int] = Future()
        elsewhere.set_result(3)
        failed = executor.submit(local.raise_own)
        dependent = executor.submit(
            local.raise_own, failed
        )  # before it can have failed: else this one is not submitted
        worker(spool)
        for future in [
            executor.submit(pow, 2, 3),
            executor.submit(lambda: 1),
            executor.submit(local.describe_task),
            executor.submit(local.use_module),
            executor.submit(local.cached),
            executor.submit(local.use_property),
            executor.submit(local.use_lock),
            executor.submit(local.local_lock.make_nested()),
            executor.submit(len, stored),
            executor.submit(lambda: stored),
            executor.submit(operator.add, part, elsewhere),
            *(executor.submit(len, b"y" * 2 * pickling.OUT_OF_BAND) for _ in range(2)),
        ]:
            future.result(LIMIT)
        assert list(executor.map(lambda number: number + 1, range(4), chunksize=2)) == [1, 2, 3, 4]
        assert isinstance(dependent.exception(LIMIT), DependencyFailed)
        assert isinstance(failed.exception(LIMIT), local.OwnError)
        assert executor.submit(local.raise_error).exception(LIMIT) is not None
        assert isinstance(executor.submit(spoolpool.current_task).exception(LIMIT), NotPicklable)
    with Executor(spool=spool.path, session="presets", init_function=local.make_preset) as executor:
        assert executor.submit(local.take_preset).result(LIMIT) == 7
    with SubprocessExecutor(spool=spool.path, session="program") as program:
        assert program.submit(["true"]).result(LIMIT) == b""
    with ShellExecutor(["cat"], spool=spool.path, session="shell") as shell:
        assert shell.submit("line", lines_to_read=1).result(LIMIT) == "line\n"
        with Pool(spool=spool.path, session="pool", initializer=abs, initargs=(1,)) as pool:
            assert pool.apply(abs, (-1,)) == 1
            names = set(names_in_spool(Path(spool.path)))  # before the objects of the sessions may go
    with joblib.parallel_config("spoolpool", spool=spool.path, session="joblib", n_jobs=2):
        joblib.Parallel()(joblib.delayed(local.use_module)() for _ in range(4))
    run = click.testing.CliRunner().invoke(main, ["run", "--spool", spool.path, "--session", "cli", "--wait", "true"])
    assert run.exit_code == 0, run.output
    return names | set(names_in_spool(Path(spool.path)))


def names_of_packs(spool: Spool, local: Any) -> set[Name]:
    """Return the names in a pack of calls and in its result. Sessions that keep their files never pack calls."""
    executor = Executor(spool=spool.path, submission=Submission(queue="unserved", pack=True))
    assert executor._packer is not None
    executor._packer.functions.of(local.use_module).size = ChunkSize(4)
    for _ in range(BUSY + 4):
        executor.submit(local.use_module)
    names = set(names_in_spool(Path(spool.path)))
    claimer = Claimer(spool, "0" * 16, lambda lane: lane.queue == "unserved", Trust())
    while claim := claimer.next():
        with claim:
            for call in claim.calls or [claim.content]:
                function, args, kwargs = pickling.loads(call.payload, call.buffers)
                names |= set(names_in_pickle(bytes(pickling.dumps(function(*args, **kwargs))[0])))
            claim.report_lost("it died")  # a future that runs cannot be cancelled, and the interpreter waits for it
            if claim.calls:
                break
    names |= set(names_in_spool(Path(spool.path)))
    executor.shutdown(wait=False, cancel_futures=True)
    return names


def test_files_name_nothing_of_spoolpool_but_names_of_the_format(spool: Spool, worker: Workers, local: Any) -> None:
    names = submit_all_kinds(spool, worker, local)
    with Executor(spool=spool.path, session="lost", submission=Submission(queue="unserved")) as executor:
        executor.submit(local.raise_own)
        claim = Claimer(spool, "0" * 16, lambda lane: lane.queue == "unserved", Trust()).next()
        assert claim is not None
        with claim:
            claim.report_lost("it died")
    names |= set(names_in_spool(Path(spool.path))) | names_of_packs(spool, local)
    assert {name for name in names if not is_allowed(name)} == set()
    earlier = {"run_pack", "PackResults"}  # of packs that earlier versions wrote
    assert {name.name for name in names if name.module == "spoolpool.wire"} == set(wire.__all__) - earlier
    errors = {name.name for name in names if name.module == "spoolpool.errors"}
    assert {"BadRequest", "DependencyFailed", "NotPicklable", "RemoteTraceback", "WorkerLost"} <= errors


@pytest.mark.parametrize("name", spoolpool.__all__)
def test_public_names_are_pickled_by_their_public_path(name: str) -> None:
    value = getattr(spoolpool, name)
    assert set(names_in_pickle(cloudpickle.dumps(value))) == {Name("spoolpool", name)}


@pytest.mark.parametrize("name", wire.__all__)
def test_names_of_wire_are_pickled_by_reference(name: str) -> None:
    value = getattr(wire, name)
    assert set(names_in_pickle(bytes(pickling.dumps(value)[0]))) == {Name("spoolpool.wire", name)}
    assert pickle.loads(pickle.dumps(value)) is value


def test_the_pickles_of_wire_objects_hold_their_arguments_alone() -> None:
    command = wire.Command(["echo", "a b"], {"NAME": "value"})
    assert command.__reduce__() == (wire.Command, (["echo", "a b"], {"NAME": "value"}))
    results = wire.PackResults([(b"", [], None)])
    assert results.__reduce__() == (wire.PackResults, ([(b"", [], None)],))


def test_a_module_that_this_version_does_not_have_is_read_as_none() -> None:
    module = types.ModuleType("spoolpool.removed")
    assert pickling.loads(*pickling.dumps(module)) is None
    assert pickling.loads(*pickling.dumps(pickling)) is pickling


def test_the_format_page_lists_the_names_of_wire_with_their_arguments() -> None:
    page = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `(\w+)\(([^)]*)\)` \|", page, re.MULTILINE))
    assert listed.keys() == set(wire.__all__)
    for name, arguments in listed.items():
        parameters = inspect.signature(getattr(wire, name)).parameters
        assert [each.strip("*") for each in arguments.split(", ") if each != "*"] == list(parameters), name
