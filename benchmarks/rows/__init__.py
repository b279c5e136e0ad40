"""Measurements: one module per row of the comparison."""

from __future__ import annotations

from benchmarks.row import Row
from benchmarks.rows import (
    arrays,
    backlog,
    crowd,
    durability,
    idle,
    latency,
    operations,
    shared,
    size,
    start,
    throughput,
)

ROWS: dict[str, Row] = {
    row.name: row
    for row in (
        latency.ROW,
        throughput.ROW,
        backlog.ROW,
        crowd.ROW,
        size.ROW,
        durability.ROW,
        shared.ROW,
        start.ROW,
        arrays.ROW,
        idle.ROW,
        operations.ROW,
    )
}
"""Rows by their names on the command line, in the order of their runs."""
