"""Launcher of groups as jobs of the surrounding Flux instance, through Flux's own bindings."""

from __future__ import annotations

import contextlib
import functools
import glob
import logging
import math
import os
import re
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from spoolpool import settings
from spoolpool.errors import LauncherError
from spoolpool.launch.allocation import Allocation
from spoolpool.launch.launcher import GroupProcess, Launcher, LaunchOptions, python_worker, rank_environment
from spoolpool.launch.mpi_implementation import mpi_of_library
from spoolpool.launch.orphan_guard import OrphanGuard
from spoolpool.launch.output_relay import close_all
from spoolpool.resources import Shape
from spoolpool.system.stop_request import HURRY

log = logging.getLogger(__name__)

_LIBRARY = re.compile(r"\.so\b|undefined symbol")


def _connect() -> Any:
    """Return a handle of the instance. A handle belongs to one thread."""
    try:
        import flux
        import flux.job
    except ImportError as error:
        raise LauncherError(_why_not_imported(error)) from error
    if not hasattr(flux, "Flux"):
        raise LauncherError(
            f"The module flux of {flux.__file__} is not that of Flux: rename it, or remove its directory from the "
            "search path of Python."
        )
    try:
        return flux.Flux()
    except OSError as error:
        raise LauncherError(
            f"There is no Flux instance here ({error}). Start one with 'flux start', or submit with 'flux batch'."
        ) from error


def _why_not_imported(error: ImportError) -> str:
    """Return an error about the bindings: without a library the same import fails that fails without the bindings."""
    if not _LIBRARY.search(str(error)):
        return (
            f"Flux's bindings cannot be imported ({error}). Install them for this Python: pip install "
            "'spoolpool[flux]' with the version of 'flux --version', or set PYTHONPATH as 'flux env' does."
        )
    command = shutil.which("flux")
    directory = "the directory of libflux-core.so.2"
    if command is not None:
        prefix = os.path.dirname(os.path.dirname(os.path.realpath(command)))
        found = (f"{prefix}/{name}" for name in ("lib", "lib64") if glob.glob(f"{prefix}/{name}/libflux-core.so*"))
        directory = next(found, directory)
    return (
        f"Flux's bindings are installed, but the loader cannot load Flux's libraries for them ({error}). Add "
        f"{directory} to LD_LIBRARY_PATH, or load the module of the site for Flux; bindings and Flux must have the "
        "same version."
    )


def _kill_timeout(handle: Any) -> float:
    """Return the seconds between the first signal to the processes of an ending job, and SIGKILL."""
    from flux.util import parse_fsd

    return float(parse_fsd(str(handle.conf_get("exec.kill-timeout", default="5s"))))


class FluxGroup:
    """Job of one group. A thread waits for the job's events and its output: nothing is polled."""

    end_seconds = 15.0  # Flux kills the processes of a cancelled job after its kill-timeout, 5 s by default

    def __init__(self, jobspec: Any, urgency: int, output: Sequence[int], orphans: OrphanGuard) -> None:
        """Submit the job; ``output``: descriptors for the output of its ranks, which are duplicated.

        ``orphans`` ends the job after the death of this process.
        """
        import flux.job

        self._id = flux.job.submit(_connect(), jobspec, urgency=urgency)
        self._orphans = orphans
        orphans.add_job(int(self._id))
        self._output = dict(zip(("stdout", "stderr"), map(os.dup, output), strict=True))
        self._code = 1
        self._clean = threading.Event()
        threading.Thread(target=self._follow, name=f"flux-{self._id}", daemon=True).start()

    def _follow(self) -> None:
        """Read the job's events until the last, ``clean``: then all its processes have ended."""
        from flux.job import event_watch_async, output_event_watch_async

        try:
            handle = _connect()
            event_watch_async(handle, self._id).then(self._note)
            output_event_watch_async(handle, self._id).then(self._print)
            handle.reactor_run()
        except (OSError, LauncherError) as error:  # the instance ended, and its jobs with it
            log.warning("Flux job %s cannot be watched any more, and counts as ended: %s", self._id, error)
        finally:  # also after an unexpected error: else the group would count as running without end
            self._clean.set()
            self._orphans.remove_job(int(self._id))
            close_all(self._output.values())

    def _note(self, future: Any) -> None:
        event = future.get_event()
        if event is None:
            return
        if event.name == "finish":
            self._code = os.waitstatus_to_exitcode(event.context["status"])
        elif event.name == "exception" and event.context.get("severity") == 0:
            self._write("stderr", f"flux: job {self._id}: {event.context.get('type')}: {event.context.get('note')}\n")
        elif event.name == "clean":
            self._clean.set()

    def _print(self, future: Any) -> None:
        """Write lines with their rank; Flux passes whole lines, or an unfinished one at the end of a rank."""
        try:
            event = future.get_event()
        except OSError as error:  # the job never started: its events give the reason
            log.debug("Flux job %s has no output: %s", self._id, error)
            return
        if event is not None and event.name == "data" and event.data:
            self._write(event.stream, "".join(f"{event.rank}: {line}\n" for line in event.data.splitlines()))

    def _write(self, stream: str, lines: str) -> None:
        with contextlib.suppress(OSError):  # the reader has ended
            os.write(self._output[stream], lines.encode(errors="surrogateescape"))

    def poll(self) -> int | None:
        """Return the exit code once all processes of the job have ended, else None."""
        return self._code if self._clean.is_set() else None

    def end(self, *, kill: bool = False) -> None:
        """Let the group release its task at once and cancel the job, or kill its processes."""
        import flux.job

        try:
            handle = _connect()
            with contextlib.suppress(OSError):  # it does not run yet, or has ended
                flux.job.kill(handle, self._id, signal.SIGKILL if kill else HURRY)
            if not kill:
                flux.job.cancel(handle, self._id, "the group was ended")
        except (OSError, LauncherError) as error:  # the job or the instance has ended meanwhile
            log.info("Flux job %s: %s", self._id, error)


class FluxLauncher(Launcher):
    """Starts groups as jobs of this instance."""

    name = "flux"

    def __init__(self) -> None:
        self._handle = _connect()
        self._orphans = OrphanGuard()

    def command(self, shape: Shape, arguments: Sequence[str], options: LaunchOptions) -> list[str]:
        """Return the command of one rank; Flux starts it once per rank."""
        self._resources("up").check(shape)
        return python_worker(arguments)

    def start(
        self, shape: Shape, arguments: Sequence[str], options: LaunchOptions, variables: Mapping[str, str]
    ) -> GroupProcess:
        """Submit a job with one core per thread of each rank."""
        from flux.job import JobspecV1

        jobspec = JobspecV1.from_command(
            python_worker([*arguments, "--notice", f"{_kill_timeout(self._handle):g}"]),
            num_tasks=shape.ranks,
            cores_per_task=shape.threads,
            gpus_per_task=shape.gpus or None,
        )
        jobspec.cwd = options.cwd or os.getcwd()  # else the broker's
        jobspec.environment = {**rank_environment(shape), **variables}
        jobspec.setattr("system.job.name", "spool-worker")
        jobspec.setattr_shell_option("exit-on-error", 1)  # other ranks must not wait for a dead one
        jobspec.setattr_shell_option("gpu-affinity", "per-task")  # else each rank sees all GPUs of the job
        if pmi := self._pmi(shape):
            jobspec.setattr_shell_option("pmi", pmi)
        for each in options.extra:
            name, _, value = each.partition("=")
            jobspec.setattr_shell_option(name, value or 1)
        if options.nodes:
            ranks = [str(self._ranks[node]) for node in dict.fromkeys(options.nodes)]
            jobspec.setattr("system.constraints", {"ranks": [",".join(ranks)]})
        if options.output:
            jobspec.stdout = jobspec.stderr = options.output
        if options.relay is None:
            return FluxGroup(jobspec, options.urgency, (1, 2), self._orphans)
        output = options.relay.pipes(variables[settings.ENV_WORKER], options.nodes, r"(\d+): ")
        try:
            return FluxGroup(jobspec, options.urgency, output, self._orphans)
        finally:
            close_all(output)

    @staticmethod
    def _pmi(shape: Shape) -> str | None:
        """Return the shell option ``pmi``, or None for Flux's default.

        The default suits MPICH; the ranks of Open MPI 5 do not find each other by it, without an error: it needs
        flux-pmix.
        """
        if named := os.environ.get(settings.ENV_FLUX_PMI):
            return named
        return "pmix" if shape.ranks > 1 and mpi_of_library() == "openmpi" else None

    def allocation(self, options: LaunchOptions) -> Allocation:
        """Return the resources that no other job of the instance has now."""
        return self._resources("free")

    def _resources(self, state: str) -> Allocation:
        """Return the resources of every node in a state: ``up`` or ``free``."""
        import flux.resource

        resources = flux.resource.resource_list(self._handle).get()[state]
        nodes = [resources.copy_ranks(str(rank)) for rank in self._ranks.values()]
        return Allocation(
            system="flux",
            nodes=tuple(self._ranks),
            cores=tuple(node.ncores for node in nodes),
            gpus=tuple(node.ngpus for node in nodes),
        )

    @functools.cached_property
    def _ranks(self) -> dict[str, int]:
        """Ranks of the brokers by node name; only in an instance for tests a node has several brokers."""
        import flux.resource

        resources = flux.resource.resource_list(self._handle).get().all
        brokers = list(zip(resources.nodelist, resources.ranks, strict=True))
        counts = Counter(name for name, _ in brokers)
        return {name if counts[name] == 1 else f"{name}:{rank}": rank for name, rank in brokers}

    def seconds_left(self) -> float | None:
        """Return the seconds until the instance's own job ends, or one around it; None if none does."""
        from flux.job import timeleft

        around = super().seconds_left()
        try:
            left = float(timeleft(self._handle))
        except OSError:  # the instance is not a job of another instance
            return around
        return around if left in (0.0, math.inf) else min(left, math.inf if around is None else around)

    def notice(self) -> float:
        """Return the kill-timeout of the instance that runs this one as a job; infinite without one."""
        import flux

        try:
            return _kill_timeout(flux.Flux(self._handle.attr_get("parent-uri")))
        except OSError:
            return math.inf
