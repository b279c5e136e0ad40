"""Check a case of any size: `python -m tests.model --tasks 2 --crash 2`, in the root of the repository."""

from __future__ import annotations

import argparse
import sys

from tests.model.checker import check
from tests.model.config import Budget, Config
from tests.model.protocol import Protocol


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.model", description="Check the protocol exhaustively.")
    for field in ("tasks", "workers", "recoverers", "submitters", "collectors", "attempts", "retries"):
        default = getattr(Config, field)
        parser.add_argument(f"--{field}", type=int, default=default, metavar="N", help=f"({default})")
    parser.add_argument("--chain", action="store_true", help="each task depends on the one before it")
    parser.add_argument("--keeps", action="store_true", help="the session keeps its outcomes")
    parser.add_argument("--shared", action="store_true", help="only the submitter can make the session's directory")
    parser.add_argument("--searches", action="store_true", help="the submitter searches for its tasks")
    parser.add_argument("--delayed", action="store_true", help="a task has a time before which it is not to start")
    parser.add_argument("--autoscaler", action="store_true", help="workers start for ready tasks alone")
    for kind in Budget._fields:
        parser.add_argument(f"--{kind}", type=int, default=0, metavar="N", help="at most (0)")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="number of states to stop at")
    options = vars(parser.parse_args())
    limit = options.pop("limit")
    budget = Budget(**{kind: options.pop(kind) for kind in Budget._fields})
    report = check(Protocol(Config(budget=budget, **options)), limit)
    print(report)
    return 1 if report.violation else 0


if __name__ == "__main__":
    sys.exit(main())
