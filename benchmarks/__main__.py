"""Command line of ``scripts/bench``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine, page, processes, results, table
from benchmarks.environments import cache
from benchmarks.harness import Harness
from benchmarks.row import QUICK, Entry, Sizes
from benchmarks.rows import ROWS


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    rows = "\n".join(f"  {name:12}{row.title}" for name, row in ROWS.items())
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure this project and its peers in one run on this machine, and print the ratios.",
        epilog=f"rows (all without a name):\n{rows}\n\nPeers are installed from PyPI into {cache()}, or into the\n"
        "folder that SPOOLPOOL_BENCH_CACHE names. What cannot be had is reported with its reason.\n"
        "Nothing depends on a time: the exit status is 0 unless something of ours could not be measured.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help="what to measure")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works")
    parser.add_argument("--no-peers", action="store_true", help="measure this project and the floors alone")
    parser.add_argument("--only", metavar="WORD", action="append", help="of the peers, those whose name has this word")
    parser.add_argument("--json", metavar="FILE", help="write all samples and figures there")
    parser.add_argument(
        "--page", metavar="DIR", help="write benchmarks.md there, with plots and a short report beside it"
    )
    parser.add_argument("--from", metavar="FILE", dest="source", help="measure nothing: take the report that is there")
    parser.add_argument("--dir", metavar="DIR", help="measure on this directory's filesystem [default: temporary]")
    for field in dataclasses.fields(Sizes):
        kind = float if field.type == "float" else int
        parser.add_argument(f"--{field.name}", metavar="N", type=kind, help=_SIZES[field.name])
    found = parser.parse_args(given)
    unknown = [name for name in found.rows if name not in ROWS]
    if unknown:
        parser.error(f"there is no row {unknown[0]!r}; there are {', '.join(ROWS)}")
    return found


_SIZES = {
    "rounds": "turns that everybody has [5; quick: 2]",
    "calls": "calls per turn for the latency [200; 40]",
    "tasks": "calls per turn for the throughput [10000; 1000]",
    "mib": "size of the array in MiB [1024; 64]",
    "starts": "programs started per turn [5; 3]",
    "traced": "calls whose system calls are counted [100; 20]",
    "waiting": "tasks that wait while one is claimed, at most [1000000; 10000]",
    "crowd": "processes that claim from one spool, at most [128; 4]",
    "size": "pending futures of one submitter, at most [1000000; 10000]",
    "idle": "seconds to watch an idle pool [20; 4]",
    "seconds": "seconds after which a slow contender makes fewer calls [10; 2]",
}


def say(text: str) -> None:
    """Print the progress to standard error."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def measured(asked: argparse.Namespace, command: Sequence[str]) -> dict[str, Any]:
    """Measure; return the report."""
    own = {name: getattr(asked, name) for name in _SIZES if getattr(asked, name) is not None}
    sizes = dataclasses.replace(QUICK if asked.quick else Sizes(), **own)

    def wanted(entry: Entry) -> bool:
        if entry.role != "peer":
            return True
        words = asked.only or [""]
        return not asked.no_peers and any(word.lower() in " ".join(entry.key).lower() for word in words)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    processes.adopt_orphans()
    directory = tempfile.mkdtemp(prefix="spb-", dir=asked.dir)
    try:
        here = machine.describe(directory)
        if machine.busy(here):
            say(f"the load is {here['load']} on {here['cores']} cores: others are at work, the figures will be noisy")
        if here["filesystem"].endswith(machine.UNJOURNALED):
            say(f"{directory} is on an ext4 without journal, where files are made slowly: another one by --dir")
        harness = Harness(directory=directory, sizes=sizes, wanted=wanted, say=say)
        run = harness.run([ROWS[name] for name in asked.rows or ROWS])
    finally:
        processes.end_descendants(())
        shutil.rmtree(directory, ignore_errors=True)
    here["load after"] = round(os.getloadavg()[0], 2)
    return results.report(run, sizes, here, shlex.join(["scripts/bench", *command]))


def main(given: Sequence[str] | None = None) -> int:
    """Measure, write the report, and print it."""
    asked = arguments(given)
    command = sys.argv[1:] if given is None else given
    report = results.read(asked.source) if asked.source else measured(asked, command)
    if asked.json:
        with open(asked.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)
            file.write("\n")
    if asked.page:
        page.write(report, Path(asked.page), ROWS)
    for line in table.lines(report):
        print(line)
    failed = [
        entry for row in report["rows"] for entry in row["entries"] if entry["missing"] and entry["role"] != "peer"
    ]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
