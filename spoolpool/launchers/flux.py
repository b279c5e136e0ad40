"""Groups as jobs of the Flux instance around us, through Flux's own bindings."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from spoolpool import settings
from spoolpool.allocation import Allocation
from spoolpool.errors import LauncherError
from spoolpool.launchers.base import GroupProcess, Options, environment, python_worker
from spoolpool.launchers.mpi import mpi_in_use
from spoolpool.resources import Shape

log = logging.getLogger(__name__)

_CANCEL_SECONDS = 15.0  # Flux itself kills what is left of a cancelled job after 5 s


def _connect() -> Any:
    """A handle of the instance. A handle belongs to one thread."""
    try:
        import flux
        import flux.job
    except ImportError as error:
        raise LauncherError(
            f"Flux's bindings cannot be imported ({error}). Install them for this Python: pip install "
            "'spoolpool[flux]' with the version of 'flux --version', or set PYTHONPATH as 'flux env' does."
        ) from error
    try:
        return flux.Flux()
    except OSError as error:
        raise LauncherError(
            f"There is no Flux instance here ({error}). Start one with 'flux start', or submit with 'flux batch'."
        ) from error


class FluxGroup:
    """One group as a job. A thread waits for the job's events: nothing is polled."""

    def __init__(self, jobspec: Any, urgency: int) -> None:
        import flux.job

        self._id = flux.job.submit(_connect(), jobspec, urgency=urgency)
        self._code: int | None = None
        self._clean = threading.Event()
        threading.Thread(target=self._follow, name=f"flux-{self._id}", daemon=True).start()

    def _follow(self) -> None:
        """Read the job's events to their end; the last, ``clean``, comes when no process of it is left."""
        import flux.job

        code = 1
        try:
            for event in flux.job.event_watch(_connect(), self._id):
                if event.name == "finish":
                    code = os.waitstatus_to_exitcode(event.context["status"])
                elif event.name == "exception" and event.context.get("severity") == 0:
                    log.warning("Flux job %s: %s: %s", self._id, event.context.get("type"), event.context.get("note"))
        except OSError as error:  # the instance ended, and its jobs with it
            log.warning("Flux job %s is not heard of any more: %s", self._id, error)
        self._code = code
        self._clean.set()

    def poll(self) -> int | None:
        """The exit code, once nothing of the job is left."""
        return self._code if self._clean.is_set() else None

    def end(self) -> None:
        """Cancel the job, and wait until nothing of it is left."""
        for number in (None, signal.SIGKILL):
            if not self._clean.is_set():
                self._send(number)
                self._clean.wait(_CANCEL_SECONDS)

    def _send(self, number: int | None) -> None:
        import flux.job

        try:
            if number is None:
                flux.job.cancel(_connect(), self._id, "the group was ended")
            else:
                flux.job.kill(_connect(), self._id, number)
        except (OSError, LauncherError) as error:  # it ended meanwhile, or the instance did
            log.info("Flux job %s: %s", self._id, error)


class FluxLauncher:
    """Starts groups as jobs of this instance, wherever in it there is room."""

    name = "flux"

    def __init__(self) -> None:
        self._handle = _connect()

    def command(self, shape: Shape, arguments: Sequence[str], options: Options) -> list[str]:
        """The command of one rank; Flux starts it as often as the shape says."""
        self.fits(shape)
        return python_worker(arguments)

    def start(
        self, shape: Shape, arguments: Sequence[str], options: Options, variables: Mapping[str, str]
    ) -> GroupProcess:
        """Submit a job with a core per thread of each rank."""
        from flux.job import JobspecV1

        jobspec = JobspecV1.from_command(
            python_worker(arguments),
            num_tasks=shape.ranks,
            cores_per_task=shape.threads,
            gpus_per_task=shape.gpus or None,
        )
        jobspec.cwd = options.cwd or os.getcwd()  # else the broker's
        jobspec.environment = {**environment(shape, options), **variables}
        jobspec.setattr("system.job.name", "spool-worker")
        jobspec.setattr_shell_option("exit-on-error", 1)  # a rank that died is no rank that others should wait for
        jobspec.setattr_shell_option("gpu-affinity", "per-task")  # else each rank sees all GPUs of the job
        if pmi := self._pmi(shape):
            jobspec.setattr_shell_option("pmi", pmi)
        if options.output:
            jobspec.stdout = jobspec.stderr = options.output
        return FluxGroup(jobspec, options.urgency)

    @staticmethod
    def _pmi(shape: Shape) -> str | None:
        """Flux's own is right for MPICH; Open MPI 5 finds nobody by it, silently, and needs flux-pmix."""
        if named := os.environ.get(settings.ENV_FLUX_PMI):
            return named
        return "pmix" if shape.ranks > 1 and mpi_in_use() == "openmpi" else None

    def fits(self, shape: Shape) -> int | None:
        """As many as the instance holds, whatever runs in it now."""
        import flux.resource

        up = flux.resource.resource_list(self._handle).get().up
        nodes = up.nnodes or 1
        # Flux says what there is in all: nodes of one instance are alike, as a rule
        each = Allocation(kind="flux", cores=(up.ncores // nodes,) * nodes, gpus=(up.ngpus // nodes,) * nodes)
        return each.fits(shape)

    def seconds_left(self) -> float | None:
        """Until the instance's own job ends."""
        from flux.job import timeleft

        try:
            left = float(timeleft(self._handle))
        except OSError:  # an instance that is no job of another one
            return None
        return None if left in (0.0, float("inf")) else left
