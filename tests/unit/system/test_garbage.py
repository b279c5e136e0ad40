"""Collection of cyclic garbage during imports."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from spoolpool.system.garbage import no_collection


@pytest.fixture(autouse=True)
def collection() -> Iterator[None]:
    """The collection is on before and after each test."""
    gc.enable()
    yield
    gc.enable()


def test_the_collection_is_off_inside_and_on_afterwards() -> None:
    with no_collection():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_the_collection_is_on_after_an_error() -> None:
    with pytest.raises(ImportError), no_collection():
        raise ImportError
    assert gc.isenabled()


def test_a_collection_that_was_off_stays_off() -> None:
    gc.disable()
    with no_collection():
        assert not gc.isenabled()
    assert not gc.isenabled()
