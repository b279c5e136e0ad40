"""Pickling by value and by reference, between real processes."""

from __future__ import annotations

import functools
import json
import os
import pickle
import subprocess
import sys
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spoolpool import Executor
from spoolpool.calls import pickling
from spoolpool.errors import NotPicklable, NotUnpicklable
from tests.support import tasks
from tests.support.processes import run_script
from tests.support.waiting import LIMIT

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def executor() -> Iterator[Executor]:
    with Executor(max_workers=1) as shared:
        yield shared


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers start in a directory without modules to import."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.delenv("PYTHONPATH", raising=False)


# ----------------------------------------------------------------------- __main__, notebooks

MAIN = """
import dataclasses, math
from spoolpool import Executor

SCALE = 10

@dataclasses.dataclass
class Point:
    x: float
    y: float

    def length(self):
        return math.hypot(self.x, self.y)

class Trouble(Exception):
    pass

def scaled(point):
    return Point(SCALE * point.x, SCALE * point.y)

def recurse(n):
    return 1 if n < 2 else n * recurse(n - 1)

def trouble():
    raise Trouble("here")

def adder(n):
    def add(m):
        return n + m
    return add

with Executor(max_workers=1) as exe:
    back = exe.submit(scaled, Point(3, 4)).result()
    assert type(back) is Point and back == Point(30, 40), back
    assert exe.submit(back.length).result() == 50
    assert exe.submit(Point.length, back).result() == 50
    assert exe.submit(lambda: SCALE).result() == 10
    SCALE = 20
    assert exe.submit(lambda: SCALE).result() == 20
    assert exe.submit(recurse, 5).result() == 120
    assert exe.submit(adder(3), 4).result() == 7
    assert exe.submit(adder, 3).result()(4) == 7
    try:
        exe.submit(trouble).result()
    except Trouble as error:
        assert error.args == ("here",)
        print("all right")
"""


def test_definitions_of_a_script_are_pickled_by_value(tmp_path: Path, elsewhere: None) -> None:
    ended = run_script(tmp_path / "script.py", MAIN)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("all right\n", "", 0)


def test_definitions_at_a_prompt_are_pickled_by_value(elsewhere: None) -> None:
    ended = subprocess.run([sys.executable, "-"], input=MAIN, capture_output=True, text=True, timeout=LIMIT)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("all right\n", "", 0)


def test_definitions_in_a_cell_of_ipython_are_pickled_by_value(tmp_path: Path, elsewhere: None) -> None:
    pytest.importorskip("IPython", reason="IPython is not installed")
    (tmp_path / "cells.ipy").write_text("%autoawait asyncio\n" + MAIN)
    ended = subprocess.run(
        [sys.executable, "-m", "IPython", "--no-banner", "--quick", "--colors=NoColor", str(tmp_path / "cells.ipy")],
        env={**os.environ, "IPYTHONDIR": str(tmp_path / "ipython")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert "all right\n" in ended.stdout, ended.stdout + ended.stderr
    assert ended.returncode == 0


def test_definitions_in_a_namespace_without_a_module_are_pickled_by_value(executor: Executor) -> None:
    namespace: dict[str, Any] = {"__name__": "cell_of_a_notebook"}
    exec("scale = 3\ndef scaled(x):\n    return scale * x\n", namespace)
    assert executor.submit(namespace["scaled"], 4).result() == 12


# ------------------------------------------------------------------------------ local modules


def write_modules(directory: Path, **modules: str) -> None:
    for name, text in modules.items():
        path = directory / (name.replace("__in__", "/") + ".py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text))


def test_local_modules_are_pickled_by_value_with_the_modules_that_they_use(tmp_path: Path, elsewhere: None) -> None:
    write_modules(
        tmp_path,
        outer="""
            import inner
            from deeper import Thing
            def call(x):
                return Thing(inner.double(x))
        """,
        inner="""
            import json
            FACTOR = 2
            def double(x):
                return json.loads(str(FACTOR * x))
        """,
        deeper="""
            class Thing:
                def __init__(self, value):
                    self.value = value
        """,
    )
    script = """
        import deeper, outer
        from spoolpool import Executor
        with Executor(max_workers=1) as exe:
            thing = exe.submit(outer.call, 4).result()
            assert type(thing) is deeper.Thing, type(thing)
            print(thing.value)
    """
    ended = run_script(tmp_path / "script.py", textwrap.dedent(script))
    assert (ended.stdout, ended.stderr, ended.returncode) == ("8\n", "", 0)


def test_local_packages_are_pickled_by_value(tmp_path: Path, elsewhere: None) -> None:
    write_modules(
        tmp_path,
        package__in____init__="",
        package__in__first="""
            from package import second
            def call(x):
                return second.double(x)
        """,
        package__in__second="""
            def double(x):
                return 2 * x
        """,
    )
    script = """
        import package.first
        from spoolpool import Executor
        with Executor(max_workers=1) as exe:
            print(exe.submit(package.first.call, 4).result())
    """
    ended = run_script(tmp_path / "script.py", textwrap.dedent(script))
    assert (ended.stdout, ended.stderr, ended.returncode) == ("8\n", "", 0)


def test_local_modules_that_import_each_other_are_pickled_by_value(tmp_path: Path, elsewhere: None) -> None:
    write_modules(
        tmp_path,
        even="import odd, sys\nme = sys.modules[__name__]\n"
        "def is_even(n):\n    return n == 0 or odd.is_odd(n - 1)\n"
        "def same(n):\n    return me.is_even(n)\n",
        odd="import even\ndef is_odd(n):\n    return n != 0 and even.is_even(n - 1)\n",
        package__in____init__="",
        package__in__first="import package.second\ndef call(x):\n    return package.second.double(x)\n",
        package__in__second="import package.first\ndef double(x):\n    return 2 * x\n",
    )
    script = """
        import even, package.first
        from spoolpool import Executor
        with Executor(max_workers=1) as exe:
            print(exe.submit(even.is_even, 4).result(), exe.submit(even.same, 5).result())
            print(exe.submit(package.first.call, 4).result())
    """
    ended = run_script(tmp_path / "script.py", textwrap.dedent(script))
    assert (ended.stdout, ended.stderr, ended.returncode) == ("True False\n8\n", "", 0)


def test_a_local_module_that_is_imported_late_is_pickled_by_value(tmp_path: Path, elsewhere: None) -> None:
    write_modules(tmp_path, late="def call():\n    return 'late'\n")
    script = """
        from spoolpool import Executor
        with Executor(max_workers=1) as exe:
            exe.submit(pow, 2, 2).result()
            exe.submit(lambda: 1).result()
            import late
            print(exe.submit(late.call).result())
    """
    ended = run_script(tmp_path / "script.py", textwrap.dedent(script))
    assert (ended.stdout, ended.stderr, ended.returncode) == ("late\n", "", 0)


def test_installed_functions_are_pickled_by_reference() -> None:
    for function in (json.loads, os.path.join, np.linalg.norm, functools.reduce, pickling.label, tasks.pid):
        payload, _ = pickling.dumps(function)
        assert len(payload) < 200, function
        assert pickle.loads(payload) is function


# ------------------------------------------------------------------ callables and arguments


class Counter:
    """Callable with a state."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, n: int) -> int:
        self.count += n
        return self.count


def test_callables_of_all_kinds_can_be_submitted(executor: Executor) -> None:
    counter = Counter()
    assert executor.submit(counter, 3).result() == 3
    assert counter.count == 0  # the worker had a copy
    assert executor.submit(functools.partial(pow, 2), 3).result() == 8
    assert executor.submit("text".upper).result() == "TEXT"
    assert executor.submit(Counter).result().count == 0


def test_arguments_are_pickled_at_submission(executor: Executor, tmp_path: Path) -> None:
    held = executor.submit(tasks.wait_for, tmp_path / "end")
    given = [1, 2]
    future = executor.submit(sum, given)
    given.append(1000)
    (tmp_path / "end").touch()
    assert held.result() is None
    assert future.result() == 3


@pytest.mark.parametrize("size", [0, 10, 100_000, 3_000_000])
def test_arrays_are_writable_in_the_worker_and_in_the_result(executor: Executor, size: int) -> None:
    array = np.arange(size, dtype=np.float64)
    back = executor.submit(add_in_place, array, 1.0).result()
    assert np.array_equal(back, np.arange(size) + 1.0)
    assert np.array_equal(array, np.arange(size))
    back += 1.0  # writable


def add_in_place(array: Any, number: float) -> Any:
    array += number
    return array


def test_bytearrays_can_be_sent_and_returned(executor: Executor) -> None:
    big = bytearray(os.urandom(1 << 20))
    assert executor.submit(bytes, big).result() == bytes(big)
    assert executor.submit(bytearray, big).result() == big


# ----------------------------------------------------------------- values that cannot be sent


def test_a_value_that_is_nested_too_deeply_is_refused() -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(NotPicklable, match="nested too deeply"):
        pickling.dumps(nested)


class Stubborn:
    """Object for which pickle and repr raise."""

    def __reduce__(self) -> str:
        raise RuntimeError("never")

    def __repr__(self) -> str:
        raise RuntimeError("nor that")


def test_a_broken_repr_does_not_hide_the_pickling_error() -> None:
    with pytest.raises(NotPicklable, match=r"<Stubborn> .* RuntimeError: never"):
        pickling.dumps(Stubborn())


def test_the_error_names_a_package_that_is_missing_on_the_worker(executor: Executor) -> None:
    only_here = types.ModuleType("only_here")
    exec("def call():\n    return 1\n", only_here.__dict__)
    sys.modules["only_here"] = only_here
    try:
        future = executor.submit(only_here.call)
    finally:
        del sys.modules["only_here"]
    with pytest.raises(NotUnpicklable, match="'only_here' is needed") as caught:
        future.result()
    assert os.uname().nodename in str(caught.value)
    assert executor.submit(pow, 2, 2).result() == 4
