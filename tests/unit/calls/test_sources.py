"""Source text of functions by value in the process that loads them."""

import linecache

import pytest

from spoolpool.calls.sources import SourceCache

FIRST = "def first():\n    return 1\n"
OTHER = "def other():\n    return 2\n"
LATER = "def later():\n    return 3\n"


@pytest.fixture
def file():
    name = "<cell of test_sources>"
    yield name
    linecache.cache.pop(name, None)


def _text(file, first):
    return linecache.getline(file, first) + linecache.getline(file, first + 1)


def test_last_text_of_a_line_counts(file):
    sources = SourceCache()
    for text in (FIRST, FIRST, OTHER, FIRST, OTHER, OTHER):
        sources.add(file, 3, text)
        assert _text(file, 3) == text


def test_texts_of_several_lines_stay(file):
    sources = SourceCache()
    for _ in range(2):
        sources.add(file, 1, FIRST)
        sources.add(file, 5, LATER)
        assert (_text(file, 1), _text(file, 5)) == (FIRST, LATER)


def test_overlapping_text_replaces_the_lines_of_an_earlier_one(file):
    sources = SourceCache()
    sources.add(file, 1, FIRST)
    sources.add(file, 2, OTHER)
    sources.add(file, 1, FIRST)
    assert _text(file, 1) == FIRST


@pytest.mark.parametrize("lose", [linecache.clearcache, lambda: linecache.cache.update(dict.fromkeys(linecache.cache))])
def test_text_is_there_again_after_a_task_has_cleared_the_cache(file, lose):
    sources = SourceCache()
    sources.add(file, 1, FIRST)
    kept = dict(linecache.cache)
    try:
        lose()
        sources.add(file, 1, FIRST)
        assert _text(file, 1) == FIRST
    finally:
        linecache.cache.update({name: entry for name, entry in kept.items() if name != file})
