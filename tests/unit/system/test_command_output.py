"""Output of commands of the host."""

from __future__ import annotations

import sys

import pytest

from spoolpool.system.command_output import output_of

SPEAK = "import sys; print('warning', file=sys.stderr, flush=True); print('version \\xe9'); sys.exit(3)"


@pytest.mark.parametrize(("errors", "expected"), [(False, "version \xe9\n"), (True, "version \xe9\nwarning\n")])
def test_errors_follow_the_output_whatever_came_first(errors: bool, expected: str) -> None:
    assert output_of([sys.executable, "-c", SPEAK], errors=errors) == expected


def test_a_command_that_is_missing_or_does_not_end_has_no_output() -> None:
    assert output_of(["spoolpool-no-command"], errors=True) == ""
    assert output_of([sys.executable, "-c", "print(1, flush=True); input()"], seconds=0.0) == ""
