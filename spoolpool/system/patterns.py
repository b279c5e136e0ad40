"""Regular expressions that are compiled at their first use.

A process imports many patterns and uses few of them, and the compilation of one takes 0.1 to 1 ms.
"""

from __future__ import annotations

import re
from typing import Any, AnyStr, cast


class _Pattern:
    """Stand-in of a compiled pattern; it keeps the methods that were used, so that they cost no more than its own."""

    def __init__(self, text: str | bytes, flags: int) -> None:
        self._text = text
        self._flags = flags

    def __reduce__(self) -> tuple[Any, ...]:
        return re.compile, (self._text, self._flags)  # as a compiled one is pickled and copied

    def __getattr__(self, name: str) -> Any:
        value = getattr(re.compile(self._text, self._flags), name)  # re keeps the compiled pattern
        setattr(self, name, value)
        return value


def lazy_pattern(text: AnyStr, flags: int = 0) -> re.Pattern[AnyStr]:
    """Return a pattern as ``re.compile`` does. Raises ``re.error`` at its first use."""
    return cast("re.Pattern[AnyStr]", _Pattern(text, int(flags)))
