"""Row of the comparison: its quantities, contenders and references."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from benchmarks.contender import OURS, Environment, Samples

Role = Literal["ours", "peer", "floor"]
"""``floor``: the operating system alone; it is no peer, and is also measured without peers."""


class Key(NamedTuple):
    """Name of an entry in its row."""

    contender: str
    case: str = ""

    def __str__(self) -> str:
        """For people."""
        return f"{self.contender}, {self.case}" if self.case else self.contender


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of the measurements."""

    rounds: int = 5
    """Rounds, in which each contender has a turn."""
    calls: int = 200
    """Calls per turn for latencies."""
    tasks: int = 10_000
    """Calls per turn for rates."""
    mib: int = 1024
    """Size of the array in MiB."""
    starts: int = 5
    """Programs started, per turn."""
    traced: int = 100
    """Calls under a count of system calls."""
    idle: float = 20.0
    """Seconds of observation of an idle pool."""
    waiting: int = 1_000_000
    """Greatest number of queued tasks while one is claimed."""
    crowd: int = 128
    """Greatest number of processes that claim from one spool."""
    size: int = 1_000_000
    """Greatest number of pending futures of one submitter; of other things a tenth, or ten times as many."""
    seconds: float = 10.0
    """Seconds after which a slow contender makes fewer calls; a quarter of it for each of several measurements."""


QUICK = Sizes(
    rounds=2,
    calls=40,
    tasks=1000,
    mib=64,
    starts=3,
    traced=20,
    idle=4.0,
    waiting=10_000,
    crowd=4,
    size=10_000,
    seconds=2.0,
)
"""Sizes for a quick check with rough figures."""


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """Measured quantity."""

    name: str
    """Name in the samples of contenders."""
    unit: Literal["s", "/s", "x", "%", ""]
    """``x``: multiple of another size, named in the title; empty: a count."""
    title: str
    """In words."""
    group: str = ""
    """For wide rows: table of this column."""

    @property
    def more_is_better(self) -> bool:
        """Return whether a larger figure is better."""
        return self.unit == "/s"


@dataclass(frozen=True, kw_only=True)
class Goal:
    """Goal for a quantity of this project. It is shown beside the figure, and nothing depends on it."""

    limit: float
    """Upper limit; for rates and for costs of peers, lower limit."""
    of: Literal["value", "floor", "ours", "peers"] = "value"
    """Subject of the limit: the figure itself; its ratio to the floor, or to the own entry of its comparison; or
    the cost of the best of some peers."""
    peers: tuple[Key, ...] = ()
    """These peers: entries that are compared with the entry of this goal."""
    who: str = ""
    """These peers in words: ``every file-based peer``."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Place of one measurement of an entry."""

    python: str
    """Interpreter of the environment of the entry."""
    directory: str
    """Empty directory, removed afterwards."""
    run: Callable[[Sequence[str], str], None]
    """Function that runs a command to its end and to the creation of the named file; raises :class:`Failed`."""


class Failed(Exception):
    """A contender could not be measured; the message is the reason."""


Take = Callable[[Place], Samples]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Line of a row."""

    key: Key
    role: Role
    take: Take
    environment: Environment = OURS
    ours: Key | None = None
    """Own entry that this is compared with."""
    floor: Key | None = None
    """Floor that this is compared with."""
    goals: Mapping[str, Goal | tuple[Goal, ...]] = field(default_factory=dict)
    """Goals by the name of the quantity."""
    limit: float = 180.0
    """Seconds after which a turn is ended."""
    rounds: int | None = None
    """Greatest number of turns, for entries with long ones."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Quantities and entries of one comparison."""

    name: str
    title: str
    about: str
    """Text for the page in Markdown: the measurement, and conditions of the comparison."""
    quantities: Sequence[Quantity]
    entries: Callable[[Sizes], list[Entry]]
    wide: bool = False
    """Print one table with a column per quantity, and no ratios: for counts."""
    once: bool = False
    """Whether one turn is enough, because the figure has no noise or takes long."""
    decision: str = ""
    """Page of ``docs/decisions/`` on a missed goal."""
