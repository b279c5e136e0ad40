"""Log for messages that other accounts can cause: each text once, and not more than some in a minute."""

from __future__ import annotations

import logging
import time

from spoolpool.system import open_directory

_BURST = 100.0  # messages at once
_EVERY = 6.0  # seconds for each further message
_KNOWN = 4096  # keys that are remembered; then all are forgotten, and may be logged again


class LimitedLog:
    """Logger of warnings whose number depends on the content of a spool, which other accounts write.

    Messages beyond the limit are counted. Threads may share it: a race costs a repeated message at most.
    """

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._known: set[str] = set()
        self._recent = 0.0  # messages, less the ones that later time has made up for
        self._counted = time.monotonic()
        self._omitted = 0

    def warning(self, key: str, text: str) -> None:
        """Log a text, unless one with this key was logged or counted before. A key is a path, or another text."""
        key = open_directory.display_path(key)
        if key in self._known:
            return
        if len(self._known) >= _KNOWN:
            self._known.clear()
        self._known.add(key)
        now = time.monotonic()
        self._recent = max(0.0, self._recent - (now - self._counted) / _EVERY)
        self._counted = now
        if self._recent > _BURST - 1:
            self._omitted += 1
            if self._omitted == 1:
                self._log.warning("There are too many warnings of this kind: further ones are only counted.")
            return
        self._recent += 1
        omitted, self._omitted = self._omitted, 0
        if omitted > 1:
            self._log.warning("%d warnings were left out here.", omitted)
        self._log.warning("%s", text)
