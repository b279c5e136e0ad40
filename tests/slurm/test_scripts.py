"""Batch scripts of the documentation on a real Slurm, with fewer nodes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from spoolpool import Executor, settings
from spoolpool.protocol import worker_registration, workers
from tests.servers import slurm as server
from tests.slurm.site import PATIENCE, Site
from tests.support import notebook
from tests.support.waiting import wait_until

reason = server.missing()
pytestmark = [pytest.mark.slurm, pytest.mark.mpi, pytest.mark.skipif(bool(reason), reason=reason or "")]

SCRIPTS = Path(__file__).parents[2] / "docs" / "batch"
CHANGES = {
    "/shared/project/spool": "SPOOL",
    "--nodes=4": "--nodes=2",
    "--ntasks=4": "--ntasks=2",
    "--ranks 8 --threads 2": "--ranks 2",
}


def size() -> int:
    from mpi4py import MPI

    return MPI.COMM_WORLD.Get_size()


@pytest.mark.parametrize(
    "name",
    [
        "slurm.sh",
        pytest.param(
            "flux-in-slurm.sh",
            marks=[
                pytest.mark.flux,
                pytest.mark.skipif(shutil.which("flux") is None, reason="flux is not on PATH"),
            ],
        ),
    ],
)
def test_documented_script_fills_its_job_with_groups_that_run_tasks(site: Site, name: str) -> None:
    text = (SCRIPTS / name).read_text(encoding="utf-8")
    for documented, here in CHANGES.items():
        text = text.replace(documented, here)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = f"export PATH='{path}' PYTHONPATH=$(flux env printenv PYTHONPATH 2>/dev/null)\n"
    head, _, body = text.partition("\n\n")
    script = site.directory / name
    script.write_text(f"{head}\n{variables}\n{body}".replace("SPOOL", site.spool.path))
    script.chmod(0o755)
    log = site.directory / f"{name}.log"
    command = ["sbatch", "--parsable", f"--output={log}", str(script)]
    job = site.slurm.run(command, cwd=str(site.directory)).strip()
    site.jobs.append(job)
    wait_until(
        lambda: len({info.process.host for info in workers.read_workers(site.spool)}) == 2,
        f"both nodes have groups; output of the job: {log}",
        2 * PATIENCE,
    )
    with Executor(spool=site.spool.path, resource_dict={"cores": 2}) as executor:
        assert executor.submit(size).result(PATIENCE) == [2, 2]

    def ended() -> bool:
        for info in workers.read_workers(site.spool):  # also groups that have announced themselves only now
            worker_registration.request_stop(site.spool, info.worker)
        return site.ended(job)

    wait_until(ended, "the job ended with its last group", PATIENCE)
    assert site.state(job) == "COMPLETED", log.read_text()


@pytest.mark.parametrize(
    "comment",
    [
        pytest.param(
            "Flux within Slurm",
            marks=[
                pytest.mark.flux,
                pytest.mark.skipif(shutil.which("flux") is None, reason="flux is not on PATH"),
            ],
        ),
        "Slurm alone",
    ],
)
def test_documented_line_starts_one_notebook_whose_executor_has_both_nodes(site: Site, comment: str) -> None:
    bindings = subprocess.run(
        "flux env printenv PYTHONPATH || true", shell=True, capture_output=True, text=True
    ).stdout.strip()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    variables = {"PATH": path, "PYTHONPATH": bindings, settings.ENV_SPOOL: str(site.directory)}
    line = notebook.documented_line(comment)
    output = notebook.start_line(line, site.directory, {**site.slurm.env, **variables}, groups=8)
    wait_until(lambda: not site.slurm.run(["squeue", "-h"]).strip(), "the job ended", PATIENCE)
    log = site.directory / "notebook.log"
    output += log.read_text() if log.exists() else ""
    found = notebook.notebooks(site.directory)
    assert len(found) == 1, output
    assert found[0].get("server") == "n1", output
    assert {host.split()[0] for host in found[0]["hosts"]} == {"n1", "n2"}
