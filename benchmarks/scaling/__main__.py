"""The command line of ``scripts/simulate``."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from benchmarks import costs
from benchmarks.costs import Costs
from benchmarks.scaling import model, simulation
from benchmarks.scaling.model import Pool
from benchmarks.scaling.servers import SERVERS, Server
from benchmarks.table import aligned
from spoolpool import settings

_GROUPS = (100, 1000, 10_000)
_SECONDS = (1.0, 10.0, 60.0, 600.0)
_LEASES = (60.0, 300.0)
_STEPS: dict[str, Costs] = {
    "submit": costs.SUBMIT,
    "claim": costs.CLAIM,
    "publish": costs.PUBLISH,
    "collect": costs.COLLECT,
}


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/simulate",
        description="What a spool asks of a metadata server: closed forms, and discrete events beside them.",
        epilog="servers (published figures):\n"
        + "\n".join(f"  {name:12}{server.source}" for name, server in SERVERS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--server", choices=SERVERS, default="lustre-2.7", help="whose figures [%(default)s]")
    parser.add_argument("--groups", type=int, default=1000, help="worker groups of the simulation [%(default)s]")
    parser.add_argument("--tasks", type=int, default=100_000, help="tasks that they do, in each run [%(default)s]")
    parser.add_argument("--seed", type=int, default=1, help="of all chance [%(default)s]")
    parser.add_argument(
        "--measure", type=int, metavar="GROUPS", help="run so many groups here, count, and compare; prints nothing else"
    )
    parser.add_argument("--dir", metavar="DIR", help="measure on this directory's filesystem [temporary]")
    parser.add_argument("--time", action="store_true", help="say how long the simulation took")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Print the requested tables."""
    asked = arguments(given)
    server = SERVERS[asked.server]
    if asked.measure:
        print("\n".join(_measured(asked)))
        return 0
    for part in (_operations(server), _idle(server), _busy(server), _deaths()):
        print("\n".join(part), end="\n\n")
    begun = time.monotonic()
    print("\n".join(_checks(server, asked)))
    if asked.time:
        print(f"\nsimulated in {time.monotonic() - begun:.0f} s", file=sys.stderr)
    return 0


def _number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.3g}"


def _operations(server: Server) -> Iterator[str]:
    kinds = sorted({kind for step in _STEPS.values() for kind in step})
    cells = [["operations of a task", *kinds, "all"]]
    for name, step in _STEPS.items():
        cells.append([name, *(str(step.get(kind, "")) for kind in kinds), str(costs.operations(step))])
    cells.append(["all", *(str(sum(step.get(kind, 0) for step in _STEPS.values())) for kind in kinds)])
    cells[-1].append(str(costs.operations(*costs.TASK)))
    yield from aligned(cells)
    yield ""
    yield (
        f"{server.name}: {_number(server.create)} creations, {_number(server.stat)} stats, {_number(server.remove)} "
        "removals a second"
    )
    rates = ", ".join(f"{_number(model.most_tasks(server, n))} in tasks of {n} calls" for n in (10, 100))
    yield f"calls a second that fill it: {_number(model.most_tasks(server))} one by one, {rates}"


def _causes(pools: Sequence[Pool], title: str, heads: Sequence[str], server: Server) -> Iterator[str]:
    columns = [list(model.causes(pool)) for pool in pools]
    cells = [[title, *heads]]
    rows = zip(*columns, strict=True)
    cells += [[row[0].name, *(_number(cause.operations) for cause in row)] for row in rows]
    cells.append(["all", *(_number(model.operations(pool)) for pool in pools)])
    cells.append(["per cent of the server", *(f"{100 * model.load(pool, server):.2g}" for pool in pools)])
    cells.append(["MB a second of long listings", *(_number(model.listed(pool) / 1e6) for pool in pools)])
    return aligned(cells)


def _idle(server: Server) -> Iterator[str]:
    pools = [Pool(groups=groups, submitters=10) for groups in _GROUPS]
    heads = [f"{groups} groups" for groups in _GROUPS]
    yield from _causes(pools, "operations a second, idle, 10 submitters", heads, server)
    half = ", ".join(_number(model.look_every(n) / 2) for n in _GROUPS)
    yield f"  (seconds until half of as many tasks are claimed, if nothing wakes a group: {half})"
    everybody = ", ".join(_number(n * n * 4 / settings.LEASE) for n in _GROUPS)
    yield f"  (if each watched all the others: {everybody})"


def _busy(server: Server) -> Iterator[str]:
    pools = [Pool(groups=10_000, seconds=seconds, submitters=10) for seconds in _SECONDS]
    heads = [f"{seconds:g} s" for seconds in _SECONDS]
    yield from _causes(pools, "operations a second, 10 000 groups, tasks of", heads, server)
    yield ""
    cells = [["groups that fill half of the server, tasks of", *heads]]
    for lease in _LEASES:
        most = [model.most_groups(replace(pool, lease=lease), server, 0.5) for pool in pools]
        cells.append([f"lease {lease:g} s", *map(_number, most)])
    most = [model.most_groups(replace(pool, submitters=1000), server, 0.5) for pool in pools]
    cells.append(["1000 submitters", *map(_number, most)])
    yield from aligned(cells)


def _deaths() -> Iterator[str]:
    cells = [["leases until a silent group is taken for dead", "mean", "99 of 100 within"]]
    for groups in (16, *_GROUPS):
        for name, observers in (("all idle", groups), ("one idle", 1)):
            found = model.found_after(groups, observers)
            cells.append([f"{groups} groups, {name}", f"{found.mean:.2f}", f"{found.most:.2f}"])
    return aligned(cells)


def _checks(server: Server, asked: argparse.Namespace) -> Iterator[str]:
    cells = [[f"{asked.groups} groups, {asked.tasks} tasks, seed {asked.seed}", "closed form", "events", "ratio"]]
    for name, form, events in simulation.checks(server, groups=asked.groups, tasks=asked.tasks, seed=asked.seed):
        cells.append([name, _number(form), _number(events), f"{events / form:.2f}"])
    return aligned(cells)


def _measured(asked: argparse.Namespace) -> Iterator[str]:
    from benchmarks import processes
    from benchmarks.scaling import measured

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the groups end too
    processes.adopt_orphans()
    counted = measured.count(
        sys.executable, groups=asked.measure, tasks=100 * asked.measure, seconds=60.0, directory=asked.dir
    )
    for each in counted:
        rate = f", {_number(each.pool.begun)} tasks a second" if each.pool.begun else ""
        cells = [
            [f"operations a second, {asked.measure} groups, {each.state}{rate}", "closed form", "counted", "ratio"]
        ]
        for kind, form, count in each.lines():
            cells.append([kind, _number(form), _number(count), f"{count / form:.2f}" if form else ""])
        yield from aligned(cells)
        yield ""


if __name__ == "__main__":
    sys.exit(main())
