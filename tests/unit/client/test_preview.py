"""Previews of arguments: bounded, without code of a user, without secrets."""

from __future__ import annotations

import datetime as dt
import enum
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spoolpool.client.preview import LABEL_LIMIT, LIMIT, cut_label, describe, preview, summary
from spoolpool.wire import run_chunk

RUNS: list[str] = []


def note(what: str) -> str:
    RUNS.append(what)
    raise SystemExit(what)


class Meta(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        return note("metaclass")


class Hostile:
    """Object with methods that must not be called."""

    def __repr__(self) -> str:
        return note("repr")

    __str__ = __repr__

    def __getattr__(self, name: str) -> Any:
        return note(name)

    def __len__(self) -> int:
        note("len")
        return 0

    def __iter__(self) -> Iterator[Any]:
        note("iter")
        return iter(())


class OwnInt(int):
    __repr__ = Hostile.__repr__


class OwnList(list[Any]):
    __repr__ = Hostile.__repr__


class Named(metaclass=Meta):
    """Class with a name that is computed."""


Claims = type("ndarray", (Hostile,), {"__module__": "numpy"})


class Colour(enum.Enum):
    RED = 1


def login(user: str, password: str, port: int = 1) -> None:
    """Function with a secret among its parameters."""


@functools.wraps(login)
def decorated(*args: object) -> None:
    """Function that hides the parameters of another one."""


class Account:
    def __init__(self, user: str, password: str) -> None:
        """Create an account with a secret."""


class Zone(dt.tzinfo):
    """Time zone with methods that must not be called."""

    def utcoffset(self, _: dt.datetime | None) -> dt.timedelta:
        note("utcoffset")
        return dt.timedelta()


class Host:
    def login(self, token: str) -> None:
        """Method with a secret among its parameters."""


@pytest.mark.parametrize(
    ("args", "kwargs", "shown"),
    [
        ((1, 2.5, True, None), {}, "1, 2.5, True, None"),
        ((), {"steps": 200, "a": 4.05}, "steps=200, a=4.05"),
        ((), {}, ""),
        (("Al",), {}, "'Al'"),
        (("x" * 1000,), {}, "'xxxxxxxxxxx...xxxxxxxxxxx'"),
        ((b"abc", bytes(1000)), {}, "b'abc', 1000 bytes"),
        ((10**10_000,), {}, "int of 33220 bits"),
        ((np.zeros((1000, 3)), np.float64(0.5), np.int32(7)), {}, "array 1000x3 float64, 0.5, 7"),
        ((np.array(4.0), np.add), {}, "4.0, ufunc"),
        (([1, 2, 3, 4, 5], (1,), {}), {}, "[1, 2, 3, ... 5 items], (1,), {}"),
        (([[1, [2]], 2],), {}, "[list, 2]"),
        (({"a": 1, 2: "b"},), {}, "{'a': 1, 2: 'b'}"),
        ((dt.date(2026, 1, 2), Path("/data/in.h5")), {}, "2026-01-02, /data/in.h5"),
        ((dt.datetime(2026, 1, 2, tzinfo=Zone()), dt.time(3, tzinfo=Zone())), {}, "2026-01-02 00:00:00, 03:00:00"),
        ((Colour.RED, len, login, int), {}, "Colour.RED, len, login, int"),
        ((Hostile(), OwnInt(3), OwnList([1]), Claims()), {}, "Hostile, OwnInt, OwnList, ndarray"),
        (("\ud800\x1b",), {}, r"'\ud800\x1b'"),
    ],
)
def test_arguments_are_shown_without_code_of_the_user(args: Any, kwargs: Any, shown: str) -> None:
    RUNS.clear()
    assert preview(pow, args, kwargs) == shown
    assert not RUNS


def test_a_class_that_computes_its_name_costs_the_preview_alone() -> None:
    assert preview(pow, (1, Named()), {}) == ""


@pytest.mark.parametrize(
    "value", [list(range(10**6)), "x" * 10**6, {str(n): n for n in range(1000)}, 10**10_000], ids=type
)
def test_length_is_bounded(value: object) -> None:
    assert len(preview(pow, (value,) * 1000, {})) <= LIMIT
    assert len(preview(pow, (), {f"name{number}": value for number in range(1000)})) <= LIMIT
    assert len(preview(pow, (), {"n" * 10**6: 1})) <= LIMIT


@pytest.mark.parametrize(
    ("function", "args", "kwargs"),
    [
        (login, ("ada", "hunter2"), {}),
        (login, ("ada",), {"password": "hunter2"}),
        (pow, (), {"api_key": "hunter2"}),
        (pow, (), {"AWS_SECRET_ACCESS_KEY": "hunter2"}),
        (pow, (), {"tokens": ["hunter2"]}),
        (pow, ({"db_passwd": "hunter2"},), {}),
        (pow, ("postgres://ada:hunter2@db/x",), {}),
        (pow, (["https://hunter2@host/"],), {}),
        (Host().login, ("hunter2",), {}),
        (functools.partial(login, "ada"), ("hunter2",), {}),
        (functools.partial(functools.partial(decorated), "ada"), ("hunter2",), {}),
        (decorated, ("ada", "hunter2"), {}),
        (Account, ("ada", "hunter2"), {}),
    ],
)
def test_secrets_are_hidden(function: Any, args: Any, kwargs: Any) -> None:
    shown = preview(function, args, kwargs)
    assert "***" in shown and "hunter2" not in shown


def test_a_number_is_no_secret() -> None:
    assert preview(pow, (), {"max_tokens": 512}) == "max_tokens=512"


def test_a_chunk_is_described_by_its_first_and_last_call() -> None:
    assert describe(run_chunk, (pow, [(1, 2), (3, 4), (5, 6)]), {}, True) == ("pow x3", "1, 2 ... 5, 6")
    assert describe(run_chunk, (pow, [(1, 2), (3, 4)]), {}, False) == ("pow x2", "")
    assert describe(pow, (1, 2), {}, False) == ("pow", "")


def test_labels_of_several_calls_are_summarized_in_bounded_length() -> None:
    assert summary(["a", "a"], LABEL_LIMIT) == "a"
    assert summary(["a", "b", "c"], LABEL_LIMIT) == "a ... c"
    assert len(summary(["a" * 1000, "b" * 1000], LABEL_LIMIT)) <= LABEL_LIMIT
    assert len(cut_label("x" * 1000)) == LABEL_LIMIT
    assert cut_label("\udcff") == r"\udcff"
