"""Durations as text, and text for a terminal."""

from __future__ import annotations

import os

import pytest

from spoolpool.system.text import escape_line, format_duration


@pytest.mark.parametrize(
    ("seconds", "whole", "precise"),
    [
        (0.0, "0 s", "0 µs"),
        (-3.0, "0 s", "0 µs"),
        (0.0123456, "0 s", "12.3 ms"),
        (59.99, "59 s", "60 s"),
        (99.94, "99 s", "99.9 s"),
        (100.0, "1 min", "1.67 min"),
        (5999.0, "99 min", "100 min"),
        (6000.0, "1 h", "1.67 h"),
        (86400.0, "24 h", "24 h"),
        (30 * 86400.0, "30 d", "30 d"),
        (9999 * 86400.0, "9999 d", "9999 d"),
    ],
)
def test_duration_has_a_readable_unit(seconds: float, whole: str, precise: str) -> None:
    assert format_duration(seconds) == whole
    assert format_duration(seconds, precise=True) == precise
    assert len(whole) <= 6


def test_terminal_controls_are_escaped() -> None:
    odd = os.fsdecode(b"a b\x1b[31m\n\xff\xe2\x80\xae\xc3\xa9")
    assert escape_line(odd) == "a b\\x1b[31m\\n\\udcff\\u202eé"
    assert escape_line("plain: 'text' (ü)") == "plain: 'text' (ü)"
