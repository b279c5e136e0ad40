"""Patterns that are compiled at their first use."""

from __future__ import annotations

import copy
import pickle
import re

import pytest

from spoolpool.system.patterns import lazy_pattern


def test_a_pattern_matches_as_a_compiled_one() -> None:
    number = lazy_pattern(r"(\d+)([a-z]?)")
    for _ in range(2):
        match = number.fullmatch("12k")
        assert match is not None
        assert match.groups() == ("12", "k")
        assert number.match("x") is None
        assert number.findall("1a2") == [("1", "a"), ("2", "")]
        assert number.sub("-", "1 2") == "- -"


def test_the_flags_of_a_pattern_count() -> None:
    assert lazy_pattern("a", re.IGNORECASE).fullmatch("A")
    assert not lazy_pattern(r"\d", re.ASCII).fullmatch("٣")


def test_a_pattern_is_compiled_at_its_first_use() -> None:
    wrong = lazy_pattern("(")
    with pytest.raises(re.error):
        wrong.match("")


def test_a_pattern_has_no_other_attributes_than_a_compiled_one() -> None:
    with pytest.raises(AttributeError):
        lazy_pattern("a").no_method  # type: ignore[attr-defined]  # noqa: B018


def test_a_pattern_is_copied_and_pickled_as_a_compiled_one() -> None:
    given = lazy_pattern("[ab]+", re.IGNORECASE)
    for _ in range(2):  # before its first use and after it
        for found in (copy.deepcopy(given), pickle.loads(pickle.dumps(given))):
            assert found.fullmatch("aB")
            assert found == re.compile("[ab]+", re.IGNORECASE)
        assert given.fullmatch("A")
