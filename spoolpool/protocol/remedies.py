"""Commands that start a worker group for tasks that no group can run, as a user would type them."""

from __future__ import annotations

import os
import shlex
import sys

from spoolpool import settings
from spoolpool.format.names import Lane, parse_lane
from spoolpool.system.accounts import account_name
from spoolpool.system.packages import is_requirement


def start_group(path: str, lane: str, seconds: int = 0) -> str:
    """Return a sentence with the command that starts a group for a lane of the spool at ``path``; empty for no lane.

    ``seconds`` is the time that the group must have, if it is known.
    """
    wanted = parse_lane(lane)
    if wanted is None:
        return ""
    places = []
    if wanted.python != settings.PYTHON:
        places.append(f"with Python {wanted.python}")
    if packages := [each for each in wanted.tags if is_requirement(each)]:
        places.append(f"with {', '.join(packages)} installed")
    if seconds:
        places.append(f"in a job with at least {seconds} s left")
    place = f" {', '.join(places)}" if places else ""
    return f"Start a group{place}: {shlex.join(_command(path, wanted))}"


def _command(path: str, lane: Lane) -> list[str]:
    words = [*_program(lane.python), path]
    for option, value, usual in (
        ("--ranks", lane.ranks, 1),
        ("--threads", lane.threads, 1),
        ("--gpus", lane.gpus, 0),
        ("--queue", lane.queue, "default"),
    ):
        if value != usual:
            words += [option, str(value)]
    for tag in lane.tags:
        if not is_requirement(tag):
            words += ["--tag", tag]
    if lane.user is not None and lane.user != os.geteuid():
        words += ["--trust-user", account_name(lane.user)]
    return words


def _program(python: str) -> list[str]:
    """Return the worker of the present environment; for another version of Python, of its own one."""
    if python != settings.PYTHON:
        return [f"python{python}", "-m", "spoolpool.cli.worker"]
    script = os.path.join(os.path.dirname(sys.executable), "spool-worker")
    if os.access(script, os.X_OK):
        return [script]
    return [sys.executable, "-m", "spoolpool.cli.worker"] if sys.executable else ["spool-worker"]
