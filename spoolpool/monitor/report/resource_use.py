"""Resources that the calls of a function have used, beside the ones that they had or asked for."""

from __future__ import annotations

from dataclasses import dataclass

from spoolpool.protocol.journal import Event


@dataclass
class ResourceUse:
    """Sums over the calls of one function, of those whose use was measured."""

    calls: int = 0
    cpu: float = 0.0
    """CPU time in seconds."""
    core_seconds: float = 0.0
    """Durations times the numbers of cores that the calls had."""
    memory: int = 0
    """Greatest peak of a rank in bytes."""
    asked: int = 0
    """Greatest request of memory per rank in bytes; 0 without a request."""

    def add(self, event: Event) -> None:
        """Add the end of a call."""
        self.calls += 1
        self.cpu += event.cpu
        self.core_seconds += event.ran * event.cores
        self.memory = max(self.memory, event.memory)
        self.asked = max(self.asked, event.asked)

    @property
    def cpu_share(self) -> float:
        """Share of the time of its cores in which they computed."""
        return self.cpu / self.core_seconds if self.core_seconds else 0.0

    @property
    def memory_share(self) -> float | None:
        """Greatest peak as a share of the greatest request; None without a request."""
        return self.memory / self.asked if self.asked else None
