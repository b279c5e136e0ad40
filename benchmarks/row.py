"""A row of the comparison: what is measured, of whom, beside what."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from benchmarks.contender import OURS, Environment, Samples

Role = Literal["ours", "peer", "floor"]
"""``floor``: what the operating system alone needs for it; no peer, and measured without peers as well."""


class Key(NamedTuple):
    """Names an entry of a row."""

    contender: str
    case: str = ""

    def __str__(self) -> str:
        """For people."""
        return f"{self.contender}, {self.case}" if self.case else self.contender


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much work each measurement is."""

    rounds: int = 5
    """Turns that everybody has."""
    calls: int = 200
    """Calls of which the latency is taken, per turn."""
    tasks: int = 10_000
    """Calls of which the rate is taken, per turn."""
    mib: int = 1024
    """Size of the array in MiB."""
    starts: int = 5
    """Programs started, per turn."""
    traced: int = 100
    """Calls whose system calls are counted."""
    idle: float = 20.0
    """Seconds for which an idle pool is watched."""
    waiting: int = 1_000_000
    """Tasks that wait, at most, while one is claimed."""
    crowd: int = 128
    """Processes that claim from one spool, at most."""
    seconds: float = 10.0
    """Seconds after which a contender that is slow makes fewer calls; a quarter of it where it does several things."""


QUICK = Sizes(
    rounds=2, calls=40, tasks=1000, mib=64, starts=3, traced=20, idle=4.0, waiting=10_000, crowd=4, seconds=2.0
)
"""To see that it works, and roughly where it stands."""


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """Something that is measured."""

    name: str
    """As contenders have it in their samples."""
    unit: Literal["s", "/s", "x", "%", ""]
    """``x``: so many times another size, which the title names; empty: a count."""
    title: str
    """In words."""
    group: str = ""
    """Of a wide row: the table that it is a column of."""

    @property
    def more_is_better(self) -> bool:
        """Whether a larger figure is the better one."""
        return self.unit == "/s"


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What a quantity of ours should reach. It is shown beside the figure, and nothing depends on it."""

    limit: float
    """At most; of a rate, and of peers' costs, at least."""
    of: Literal["value", "floor", "ours", "peers"] = "value"
    """Of the figure itself; of its ratio to the floor, or to the entry of ours that this is compared with; or
    of the cost of the best of some peers."""
    peers: tuple[Key, ...] = ()
    """Which peers: entries that are compared with the one that has this goal."""
    who: str = ""
    """These peers in words: ``every file-based peer``."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where and with what an entry is measured, one time."""

    python: str
    """Interpreter of the entry's environment."""
    directory: str
    """Empty, and removed afterwards."""
    run: Callable[[Sequence[str], str], None]
    """Runs a command until it has ended and has written the file that is named; raises :class:`Failed`."""


class Failed(Exception):
    """A contender could not be measured; the message is the reason."""


Take = Callable[[Place], Samples]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of a row."""

    key: Key
    role: Role
    take: Take
    environment: Environment = OURS
    ours: Key | None = None
    """The entry of ours that this is compared with."""
    floor: Key | None = None
    """The floor that this is compared with."""
    goals: Mapping[str, Goal | tuple[Goal, ...]] = field(default_factory=dict)
    """By the quantity's name."""
    limit: float = 180.0
    """Seconds after which one turn is given up."""
    rounds: int | None = None
    """Turns at most, where one takes long."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is measured, and who takes part."""

    name: str
    title: str
    about: str
    """For the page: what is measured, and what to know of it when one is compared with another. Markdown."""
    quantities: Sequence[Quantity]
    entries: Callable[[Sizes], list[Entry]]
    wide: bool = False
    """Print one table with a column per quantity, and no ratios: for counts."""
    once: bool = False
    """One turn is enough: the figure has no noise, or takes long."""
    decision: str = ""
    """Of ``docs/decisions/``, the page on a goal that is missed."""
