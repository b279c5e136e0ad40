"""``spool-worker`` as a supervisor in a real Flux instance."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spoolpool import Executor
from spoolpool.errors import BadNode
from spoolpool.protocol import worker_registration, workers
from spoolpool.protocol.spool import Spool
from tests.support import tasks
from tests.support.processes import deadly
from tests.support.waiting import wait_until

FLUX = shutil.which("flux")
pytestmark = [pytest.mark.flux, pytest.mark.skipif(FLUX is None, reason="flux is not on PATH")]

PATIENCE = 120.0


def see() -> tuple[str | None, str]:
    return os.environ.get("CUDA_VISIBLE_DEVICES"), tasks.get_cwd_of_parent()


@contextlib.contextmanager
def supervised(
    spool: Spool, flux: dict[str, str], *options: object
) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], str]]]:
    """Start a supervisor; yield its process and a function that returns its output. End it after the test."""
    log = Path(spool.path).parent / "supervisor.log"
    command = [sys.executable, "-m", "spoolpool.cli.worker", spool.path, *map(str, options)]
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=flux, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    try:
        yield process, log.read_text
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)


def groups(spool: Spool, count: int) -> list[workers.WorkerInfo]:
    found = workers.read_workers(spool)
    return found if len(found) == count else []


def test_shapes_share_an_instance_with_different_gpus_for_each_rank(
    spool: Spool, flux: dict[str, str], tmp_path: Path
) -> None:
    options = ("--shape", "2+1gpu=2", "--shape", "1", "--cwd", tmp_path, "--urgency", 20)
    with supervised(spool, flux, *options) as (process, output):
        found = wait_until(lambda: groups(spool, 6), "the groups fill the instance", PATIENCE)
        assert Counter((info.ranks, info.gpus) for info in found) == {(2, 1): 2, (1, 0): 4}
        jobs = subprocess.run(
            ["flux", "jobs", "-n", "-o", "{name} {ntasks} {urgency}"], env=flux, capture_output=True, text=True
        )
        assert sorted(jobs.stdout.splitlines()) == 4 * ["spool-worker 1 20"] + 2 * ["spool-worker 2 20"]
        seen: set[str | None] = set()
        with Executor(spool=spool.path) as executor:
            assert executor.submit(see).result(PATIENCE)[1] == str(tmp_path)

            def all_four() -> bool:
                resources = {"cores": 2, "gpus_per_core": 1}
                calls = [executor.submit(see, resource_dict=resources) for _ in range(8)]
                seen.update(device for call in calls for device, _ in call.result(PATIENCE))
                return len(seen) == 4

            wait_until(all_four, "both groups with GPUs ran a task", PATIENCE)
        assert seen == {"0", "1", "2", "3"}
        process.send_signal(signal.SIGUSR1)
        assert process.wait(PATIENCE) == 0, output()
    wait_until(lambda: not workers.read_workers(spool), "the groups have removed their entries", PATIENCE)


def test_node_on_which_all_groups_die_is_excluded_and_the_other_goes_on(
    spool: Spool, two_nodes: dict[str, str], tmp_path: Path
) -> None:
    site = deadly(tmp_path / "site", "local-1")["PYTHONPATH"].partition(os.pathsep)[0]
    environment = {**two_nodes, "PYTHONPATH": f"{site}{os.pathsep}{two_nodes['PYTHONPATH']}"}
    with supervised(spool, environment, "--ranks", 2) as (process, output):
        wait_until(lambda: ":1 is given up" in output(), "the node was excluded", PATIENCE)
        [info] = wait_until(lambda: groups(spool, 1), "the other node has a group", PATIENCE)
        with Executor(spool=spool.path, resource_dict={"cores": 2}) as executor:
            assert executor.submit(pow, 2, 3).result(PATIENCE) == [8, 8]
        worker_registration.request_stop(spool, info.worker)
        assert process.wait(PATIENCE) == BadNode.exit_code, output()
