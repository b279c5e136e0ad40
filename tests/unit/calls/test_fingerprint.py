"""Fingerprints of calls: equal in every process, and different after a change that matters."""

from __future__ import annotations

import json
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spoolpool.calls.fingerprint import fingerprint
from spoolpool.calls.pickling import ObjectRef
from spoolpool.errors import BadRequest
from tests.support import tasks
from tests.support.processes import run_script

MODULE = """\
import abc, dataclasses, enum, functools, threading, typing
import numpy as np

LOCK = threading.Lock()
TABLE = {"b": 1, "a": [1.5, None]}
WORDS = {"alpha", "beta", "gamma", "delta", "epsilon"}

class Colour(enum.Enum):
    RED = 1
    BLUE = "blue"

@dataclasses.dataclass
class Point:
    x: float = 1.0
    tags: set = dataclasses.field(default_factory=lambda: {"p", "q", "r"})
    up: "Point | None" = None
    def norm(self):
        return abs(self.x)

class Base(abc.ABC):
    @abc.abstractmethod
    def run(self): ...

class Child(Base):
    def run(self):
        return even(4) and Point().norm()
    @property
    def size(self):
        return len(WORDS)

class Pair(typing.NamedTuple):
    left: int = 1

def even(n):
    return n == 0 or odd(n - 1)

def odd(n):
    return n != 0 and even(n - 1)

@functools.lru_cache
def helper(x):
    return x in {"one", "two", "three"}

def make(n):
    table = {"k": n}
    def inner(x, *, scale=2):
        with LOCK:
            return [helper(y + table["k"] * scale) for y in (lambda z: z)(x)], Child, TABLE, np.sum(x)
    return inner
"""

PROGRAM = """\
import functools, json, os, sys
import numpy as np
import local
from spoolpool.calls.fingerprint import fingerprint

def here(x, words=frozenset({"un", "deux", "trois"})):
    return x in {"eins", "zwei", "drei"}, local.make(x), local.even(x)

ring = ["ring"]
ring.append({"ring": ring})
points = [local.Point(i) for i in range(3)]
for one in points:
    one.up = points[0]
calls = {
    "plain": (here, (1, 2.5, "x", b"y", None, True, 1j), {}),
    "sets": (here, ({"a", "b", "c", ("d", 1)}, frozenset("xyz"), {frozenset("ab"), frozenset("cd")}), {}),
    "closure": (local.make(3), ([1],), {"scale": 3}),
    "recursive": (local.even, (3,), {}),
    "lambda": (lambda x: [y for y in x if y not in {"p", "q"}], ("abc",), {}),
    "partial": (functools.partial(here, words={"s", "t", "u"}), (), {}),
    "classes": (here, (local.Colour.BLUE, local.Child(), local.Pair(), local.Child), {}),
    "method": (local.Child().run, (), {}),
    "cycles": (here, (ring, points), {}),
    "arrays": (here, (np.arange(6.0).reshape(2, 3).T, np.array("text"), np.float32(3)), {}),
    "objects": (here, (np.array([{"a"}, 1], object),), {}),
    "keywords": (here, (), {"b": 1, "a": 2}),
    "builtin": (sorted, ([2, 1],), {"key": str.lower}),
    "library": (json.dumps, ({"a": 1},), {}),
}
print(json.dumps({name: fingerprint(*call) for name, call in calls.items()}))
"""


def test_the_fingerprint_is_the_same_in_processes_with_other_hash_seeds(tmp_path: Path) -> None:
    (tmp_path / "local.py").write_text(MODULE, encoding="utf-8")
    runs = [run_script(tmp_path / "program.py", PROGRAM, PYTHONHASHSEED=seed) for seed in (1, 22)]  # then from a .pyc
    first, second = (json.loads(run.stdout or run.stderr) for run in runs)
    assert first == second
    assert len(set(first.values())) == len(first) == 14
    assert all(len(value) == 64 for value in first.values())


def test_position_and_comments_of_a_function_do_not_count(tmp_path: Path) -> None:
    moved = MODULE.replace("def odd", "# a remark\n\n\ndef odd")
    found = []
    for name, text in (("a", MODULE), ("b", moved)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "local.py").write_text(text, encoding="utf-8")
        found.append(run_script(tmp_path / name / "program.py", PROGRAM).stdout)
    assert found[0] == found[1]


def made(source: str, name: str = "f", **names: Any) -> Any:
    """Return a function of a new module."""
    space: dict[str, Any] = {"__name__": "made", **names}
    exec(source, space)
    return space[name]


PLAIN = "def f(x, y=1, *, z=2):\n    return x + 3\n"


@pytest.mark.parametrize(
    "changed",
    [
        "def f(x, y=1, *, z=2):\n    return x + 4\n",
        "def f(x, y=1, *, z=2):\n    return x - 3\n",
        "def f(x, y=1, *, z=2):\n    return x + 3.0\n",
        "def f(x, y=5, *, z=2):\n    return x + 3\n",
        "def f(x, y=1, *, z=5):\n    return x + 3\n",
        "def f(x, y=1, /, *, z=2):\n    return x + 3\n",
        "async def f(x, y=1, *, z=2):\n    return x + 3\n",
    ],
)
def test_a_changed_function_has_another_fingerprint(changed: str) -> None:
    assert fingerprint(made(PLAIN), (1,), {}) == fingerprint(made(PLAIN), (1,), {})
    assert fingerprint(made(PLAIN), (1,), {}) != fingerprint(made(changed), (1,), {})


WRAPPED = """\
import functools
def wrap(g):
    @functools.wraps(g)
    def wrapped(): return g()
    return wrapped
@wrap
def f(): return {}
"""

MODULES = """\
import types
m = types.ModuleType("m")
m.n = types.ModuleType("n")
m.n.a = lambda: 0
m.n.b = lambda: {}
def g(): return m.n.b()
def f(): return m.n.a(), g()
"""


@pytest.mark.parametrize(
    ("source", "before", "after"),
    [
        ("def g(): return {}\ndef f(): return g()", "1", "2"),
        ("def f():\n    def g(): return {}\n    return g()", "1", "2"),
        ("def f(): return (lambda: {})()", "1", "2"),
        ("def f(): return [x in {} for x in 'a']", "{'a'}", "{'b'}"),
        ("def g(): return {}\ndef h(): return g()\ndef f(): return [h() for _ in 'a']", "1", "2"),
        ("LIMIT = {}\ndef f(): return LIMIT", "1", "2"),
        ("TABLE = {{'a': {}}}\ndef f(): return TABLE['a']", "1", "2"),
        ("class C:\n    def m(self): return {}\ndef f(): return C().m()", "1", "2"),
        ("class C:\n    LIMIT = {}\ndef f(): return C.LIMIT", "1", "2"),
        ("class B:\n    def m(self): return {}\nclass C(B): pass\ndef f(): return C().m()", "1", "2"),
        ("class C:\n    @staticmethod\n    def m(): return {}\ndef f(): return C.m()", "1", "2"),
        ("class C:\n    @property\n    def m(self): return {}\nc = C()\ndef f(): return c.m", "1", "2"),
        ("import functools\n@functools.cache\ndef g(): return {}\ndef f(): return g()", "1", "2"),
        (WRAPPED, "1", "2"),
        ("def make(n):\n    def f(): return n\n    return f\nf = make({})", "1", "2"),
        ("def f(): return 1\nf.limit = {}", "1", "2"),
        ("import types\nm = types.ModuleType('m')\nm.g = lambda: {}\ndef f(): return m.g()", "1", "2"),
        (MODULES, "1", "2"),
        ("import numpy as np\ndef f(): return np.{}", "sum", "max"),
        ("from math import {} as g\ndef f(): return g(1)", "sin", "cos"),
        ("from functools import {} as g\ndef f(): return g(1)", "wraps", "cache"),
    ],
)  # fmt: skip
def test_names_that_a_function_refers_to_count(source: str, before: str, after: str) -> None:
    old, again, new = (fingerprint(made(source.format(value)), (), {}) for value in (before, before, after))
    assert old == again
    assert old != new


def test_a_global_that_the_function_does_not_name_does_not_count() -> None:
    source = "OTHER = {}\ndef f(): return 1"
    assert fingerprint(made(source.format(1)), (), {}) == fingerprint(made(source.format(2)), (), {})


def test_a_lock_among_the_globals_counts_by_its_type_alone() -> None:
    locked = "def f():\n    with LOCK: return 1"
    one, other = (fingerprint(made(locked, LOCK=threading.Lock()), (), {}) for _ in range(2))
    assert one == other
    assert one != fingerprint(made(locked, LOCK=None), (), {})


class Plain:
    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


RING: list[Any] = [1]
RING.append(RING)

VALUES: list[Any] = [
    *(None, True, 1, 1.0, 0.0, -0.0, 1j, "1", b"1", bytearray(b"1"), float("nan"), ..., (), [], {}, set(), {1}, [1]),
    *(frozenset(), frozenset({1}), [[]], [[], []], ["ab", ""], ["a", "b"], ["", "ab"], (1,), (1, 2), ((1,), 2)),
    *({"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 2, "b": 1}, RING, [1, [1, [1]]]),
    *(np.zeros(2), np.zeros((2, 1)), np.zeros((1, 2)), np.zeros(4, "f4"), np.zeros(2, "i8"), np.zeros(0)),
    *(np.array(0.0), np.float64(0), np.zeros(2, "M8[s]"), np.zeros(2, "M8[ms]"), np.array([None, 1]), np.array(["a"])),
    *(np.zeros(2, [("a", "f4")]), np.zeros(2, [("b", "f4")]), [0.0, 0.0]),
    *(Plain(), Plain(a=1), Plain(a=2), Plain, int, len, range(3), range(4), ValueError("a"), ValueError("b")),
]  # fmt: skip


def test_different_values_have_different_fingerprints() -> None:
    found = [fingerprint(len, (value,), {}) for value in VALUES]
    assert found == [fingerprint(len, (value,), {}) for value in VALUES]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"b", "a", "c"}, {"c", "b", "a"}),
        (Plain(a=1, b=2), Plain(b=2, a=1)),
        (np.arange(6).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3))),
        (np.arange(6)[::2], np.array([0, 2, 4])),
        (str(b"ab", "ascii"), "ab"),
        ((1, (2, "x")), (1, (2, "x"))),
    ],
)
def test_equal_values_have_the_same_fingerprint(one: Any, other: Any) -> None:
    assert fingerprint(len, (one,), {}) == fingerprint(len, (other,), {})


def test_the_names_of_arguments_and_the_resources_count() -> None:
    calls = [
        fingerprint(len, (1, 2), {}),
        fingerprint(len, (1,), {"b": 2}),
        fingerprint(len, (1,), {"c": 2}),
        fingerprint(len, (2, 1), {}),
        fingerprint(len, (1, 2), {}, resources={"cores": 2}),
        fingerprint(len, (1, 2), {}, resources={"cores": 3}),
    ]
    assert len(set(calls)) == len(calls)
    assert fingerprint(len, (), {"a": 1, "b": 2}) == fingerprint(len, (), {"b": 2, "a": 1})


@pytest.mark.parametrize(
    ("args", "kwargs", "said"),
    [
        ((1, threading.Lock()), {}, "Argument 1 of the call to tests.support.tasks.mark .* a lock cannot be pickled"),
        ((), {"value": [{"x": iter([threading.Lock()])}]}, "Argument 'value' .* a lock cannot be pickled"),
        ((Future(),), {}, "Argument 0 .* a future"),
    ],
)
def test_the_error_names_an_argument_without_a_fingerprint(args: Any, kwargs: Any, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        fingerprint(tasks.mark, args, kwargs)


def test_the_error_names_an_argument_that_is_nested_too_deeply() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(BadRequest, match=r"Argument 0 .* nested too deeply"):
        fingerprint(tasks.mark, (deep,), {})


def test_an_object_reference_counts_by_the_content_of_the_object() -> None:
    refs = [ObjectRef("spool", "a" * 32, 9), ObjectRef("other", f"{'a' * 32}@1000", 9), ObjectRef("spool", "b" * 32, 9)]
    one, elsewhere, other = (fingerprint(len, ([ref],), {}) for ref in refs)
    assert one == elsewhere
    assert one != other


def test_a_future_counts_by_the_fingerprint_of_its_call() -> None:
    first, second = Future[int](), Future[int]()
    names = {first: "a" * 64, second: "b" * 64}
    one = fingerprint(len, ([first],), {}, stands_for=names.get)
    assert one == fingerprint(len, ([first],), {}, stands_for=names.get)
    assert one != fingerprint(len, ([second],), {}, stands_for=names.get)
