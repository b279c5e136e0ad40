"""By which a claimer keeps apart from others on the same names. Pure: no disk is touched here."""

from __future__ import annotations

import random
import zlib

_BITS = 12  # of a lot, at most
_CALM = 16  # claims without a meeting, after which a claimer keeps less apart from others


class ContentionFilter:
    """One claimer's lot; every name has one too, by its checksum.

    The names whose lots are like its own in their last bits are its part, so many bits as keep it from meeting others
    there. How many these are nobody is told: alone, it takes all for its own.
    """

    def __init__(self) -> None:
        self._lot = random.getrandbits(_BITS)
        self._bits = 0
        self._calm = 0  # claims since it met somebody in its own part

    def owns(self, name: str) -> bool:
        """Whether a name is in its part."""
        return not (zlib.crc32(name.encode(errors="replace")) ^ self._lot) & (1 << self._bits) - 1

    def sorted(self, names: list[str]) -> list[str]:
        """In the order of claims, the first one last.

        Its own part first, of which the oldest. The others come after them, in no order, so that those who are done
        with their parts seldom meet.
        """
        names = sorted(names, reverse=True)
        if not self._bits:
            return names
        own: list[str] = []
        others: list[str] = []
        for name in names:
            (own if self.owns(name) else others).append(name)
        random.shuffle(others)
        return others + own

    def crowded(self, names: list[str]) -> bool:
        """Whether so few names are left that they are for those in whose parts they are."""
        return 0 < len(names) < 1 << self._bits and not self.owns(names[-1])

    def met(self) -> None:
        """Somebody else took names of this part: draw another lot, and keep more apart."""
        self._bits = min(_BITS, self._bits + 1)
        self._lot = random.getrandbits(_BITS)
        self._calm = 0

    def claimed(self) -> bool:
        """A name was claimed; whether the part grew, since nobody was met for a while."""
        self._calm += 1
        if not self._bits or self._calm <= _CALM:
            return False
        self._bits -= 1
        self._calm -= _CALM // 4
        return True
