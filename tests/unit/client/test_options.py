"""Option objects of an executor, and the arguments that contradict each other."""

from __future__ import annotations

import dataclasses
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import spoolpool
from spoolpool import Executor, Flux, FluxBatch, Mpiexec, Sbatch, Session, Spool, Srun, Submission
from spoolpool.errors import BadRequest
from spoolpool.launch.launcher import LaunchOptions
from tests.support import tasks

OBJECTS = [
    Mpiexec(extra=["--tag-output"]),
    Srun(extra=["--cpu-bind=cores"]),
    Flux(urgency=20),
    Sbatch(nodes=2, directives=["--partition=long"]),
    FluxBatch(time="10m"),
    Session("sweep", resume=True),
    Submission(queue="night"),
]


@pytest.mark.parametrize("options", OBJECTS, ids=lambda each: type(each).__name__)
def test_option_objects_are_public_frozen_and_hashable(options: Any) -> None:
    assert getattr(spoolpool, type(options).__name__) is type(options)
    assert pickle.loads(pickle.dumps(options)) == options
    assert {options: 1}[dataclasses.replace(options)] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.anything = 1


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: Sbatch(nodes=0), "at least 1 node"),
        (lambda: Sbatch(min_jobs=-1), "0 <= min_jobs"),
        (lambda: Sbatch(min_jobs=3, max_jobs=2), "min_jobs <= max_jobs"),
        (lambda: FluxBatch(min_jobs=0, max_jobs=0), "max_jobs of at least 1"),
        (lambda: Sbatch(directives="--partition=long"), "must be a list of texts"),
        (lambda: Mpiexec(extra="-v"), "must be a list of texts"),
        (lambda: Flux(urgency=32), "from 0 to 31"),
        (lambda: Session("../up"), "session"),
        (lambda: Submission(queue="../up"), "queue"),
        (lambda: Submission(share_from=1), "share_from"),
        (lambda: Executor(backend="carrier pigeon"), "no backend 'carrier pigeon'.* flux-batch"),
    ],
)
def test_invalid_values_are_refused_with_their_names(made: Callable[[], object], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        made()


@pytest.mark.parametrize(("few", "limit"), [(0, 1), (1, 1), (3, 3)])
def test_without_max_jobs_the_limit_is_min_jobs_or_one(few: int, limit: int) -> None:
    assert Sbatch(min_jobs=few).job_limit == FluxBatch(min_jobs=few).job_limit == limit


def test_a_named_session_without_a_spool_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for session in ("sweep", Session("sweep", resume=True)):
        with pytest.raises(BadRequest, match="give spool= as well"):
            Executor(session=session, backend="local")
    assert list(tmp_path.iterdir()) == []


def test_detach_is_refused_if_the_groups_end_with_the_executor(spool: Spool) -> None:
    with Executor(max_workers=1, backend="local") as executor:
        with pytest.raises(BadRequest, match="can leave its tasks"):
            executor.detach()
        assert executor.submit(pow, 2, 2).result() == 4


def test_groups_of_an_embedded_executor_serve_its_queue() -> None:
    with Executor(max_workers=1, backend="local", submission=Submission(queue="night")) as executor:
        assert executor.info["queue"] == "night"
        assert executor.submit(pow, 2, 2).result() == 4


def test_an_object_without_options_is_the_backend_of_its_name() -> None:
    with Executor(max_workers=1, backend=Mpiexec()) as executor:
        assert executor.info["backend"] == "mpiexec"
        assert executor.submit(pow, 2, 2).result() == 4


@pytest.mark.parametrize("backend", [Mpiexec(extra=["a"]), Srun(extra=["b"]), Flux(extra=["c=1"], urgency=20)])
def test_fields_of_a_launchers_backend_are_launch_options(backend: Any) -> None:
    assert vars(backend).items() <= vars(LaunchOptions(**vars(backend))).items()


@pytest.mark.mpi
def test_further_arguments_reach_mpiexec(tmp_path: Path) -> None:
    (tmp_path / "ranks").mkdir()
    with Executor(max_workers=1, cores_per_worker=2, backend=Mpiexec(extra=["-wdir", str(tmp_path / "ranks")])) as exe:
        assert exe.submit(tasks.get_cwd_of_parent).result() == [str(tmp_path / "ranks")] * 2


@pytest.mark.parametrize(
    ("given", "groups"),
    [
        ({"max_cores": 3}, 3),
        ({"max_cores": 5, "threads_per_core": 2}, 2),
        ({"max_cores": 4, "max_workers": 1}, 1),
        ({"max_cores": 2, "max_workers": 9}, 2),
    ],
)
def test_max_cores_limits_the_number_of_groups(given: dict[str, int], groups: int) -> None:
    with Executor(backend="local", **given) as executor:  # type: ignore[arg-type]
        assert executor.max_workers == groups


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_cores": 1, "threads_per_core": 2}, "no room"),
        ({"max_cores": 0}, "max_cores"),
        ({"max_cores": "x"}, "max"),
    ],
)
def test_max_cores_without_room_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        Executor(backend="local", **given)
