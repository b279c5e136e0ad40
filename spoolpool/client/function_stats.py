"""Statistics of the functions that an executor calls: durations, pending tasks, and the packs that are open."""

from __future__ import annotations

import functools
from collections import Counter
from typing import TYPE_CHECKING, Any

from spoolpool.client.demand import Demand
from spoolpool.client.map import ChunkSize
from spoolpool.system.user_code import is_interrupt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spoolpool.client.packs import Pack, PackKey

_KNOWN = 256  # functions with statistics


class FunctionStats:
    """State of one function: measured durations, number of pending tasks, and the open packs."""

    def __init__(self) -> None:
        self.size = ChunkSize(None)
        self.demand = Demand()
        self.pending: Counter[PackKey] = Counter()
        """Tasks that groups have, or could have at once."""
        self.open_packs: dict[PackKey, Pack] = {}


class KnownFunctions:
    """Statistics of the functions that were called last. The packer changes them under its lock."""

    def __init__(self) -> None:
        self._stats: dict[object, FunctionStats] = {}

    def of(self, function: Any) -> FunctionStats:
        """Return the statistics of a function; functions with the same code share them."""
        try:
            while isinstance(function, functools.partial):
                function = function.func
            key = getattr(function, "__code__", function)
            known = key in self._stats
        except BaseException as error:  # its __getattr__, __hash__ or __eq__ may raise anything
            if is_interrupt(error):
                raise
            key = type(function)
            known = key in self._stats
        if not known:
            if len(self._stats) >= _KNOWN:
                self._stats = {key: stats for key, stats in self._stats.items() if stats.pending}
            self._stats[key] = FunctionStats()
        return self._stats[key]

    def open_packs(self) -> Iterator[Pack]:
        """Yield the open packs of all functions; one that is yielded may be submitted meanwhile."""
        for stats in [*self._stats.values()]:
            yield from [*stats.open_packs.values()]
