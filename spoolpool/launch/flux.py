"""Groups as jobs of the Flux instance around us, through Flux's own bindings."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from spoolpool import settings
from spoolpool.errors import LauncherError
from spoolpool.launch.allocation import Allocation
from spoolpool.launch.base import GroupProcess, Options, environment, python_worker
from spoolpool.launch.mpi_flavour import mpi_in_use
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
    """One group as a job. A thread waits for the job's events and for what it prints: nothing is polled."""

    def __init__(self, jobspec: Any, urgency: int, output: tuple[int, int]) -> None:
        """``output``: descriptors for what the ranks print; they are duplicated."""
        import flux.job

        self._id = flux.job.submit(_connect(), jobspec, urgency=urgency)
        self._output = dict(zip(("stdout", "stderr"), map(os.dup, output), strict=True))
        self._code = 1
        self._clean = threading.Event()
        threading.Thread(target=self._follow, name=f"flux-{self._id}", daemon=True).start()

    def _follow(self) -> None:
        """Read the job's events to their end; the last, ``clean``, comes when no process of it is left."""
        from flux.job import event_watch_async, output_event_watch_async

        try:
            handle = _connect()
            event_watch_async(handle, self._id).then(self._note)
            output_event_watch_async(handle, self._id).then(self._print)
            handle.reactor_run()
        except (OSError, LauncherError) as error:  # the instance ended, and its jobs with it
            log.warning("Flux job %s is not heard of any more: %s", self._id, error)
        finally:  # whatever ended this thread: without it the group would count as running for ever
            self._clean.set()
            for descriptor in self._output.values():
                os.close(descriptor)

    def _note(self, future: Any) -> None:
        event = future.get_event()
        if event is None:
            return
        if event.name == "finish":
            self._code = os.waitstatus_to_exitcode(event.context["status"])
        elif event.name == "exception" and event.context.get("severity") == 0:
            log.warning("Flux job %s: %s: %s", self._id, event.context.get("type"), event.context.get("note"))
        elif event.name == "clean":
            self._clean.set()

    def _print(self, future: Any) -> None:
        """Flux hands over whole lines, or the rest of one at the end of a rank."""
        try:
            event = future.get_event()
        except OSError as error:  # the job never started: its events say why
            log.debug("There is no output of Flux job %s: %s", self._id, error)
            return
        if event is not None and event.name == "data" and event.data:
            lines = "".join(f"{event.rank}: {line}\n" for line in event.data.splitlines())
            with contextlib.suppress(OSError):  # nobody reads it any more
                os.write(self._output[event.stream], lines.encode(errors="surrogateescape"))

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
        self._part("up").check(shape)
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
        for each in options.extra:
            name, _, value = each.partition("=")
            jobspec.setattr_shell_option(name, value or 1)
        if options.nodes:
            ranks = [str(self._ranks[node]) for node in dict.fromkeys(options.nodes)]
            jobspec.setattr("system.constraints", {"ranks": [",".join(ranks)]})
        if options.output:
            jobspec.stdout = jobspec.stderr = options.output
        if options.relay is None:
            return FluxGroup(jobspec, options.urgency, (1, 2))
        output = options.relay.pipes(variables[settings.ENV_WORKER], options.nodes, r"(\d+): ")
        try:
            return FluxGroup(jobspec, options.urgency, output)
        finally:
            for descriptor in output:
                os.close(descriptor)

    @staticmethod
    def _pmi(shape: Shape) -> str | None:
        """Flux's own is right for MPICH; Open MPI 5 finds nobody by it, silently, and needs flux-pmix."""
        if named := os.environ.get(settings.ENV_FLUX_PMI):
            return named
        return "pmix" if shape.ranks > 1 and mpi_in_use() == "openmpi" else None

    def allocation(self) -> Allocation:
        """What no other job of the instance holds now."""
        return self._part("free")

    def _part(self, state: str) -> Allocation:
        """Of every node what is in a state: ``up`` or ``free``."""
        import flux.resource

        resources = flux.resource.resource_list(self._handle).get()[state]
        nodes = [resources.copy_ranks(str(rank)) for rank in self._ranks.values()]
        return Allocation(
            kind="flux",
            nodes=tuple(self._ranks),
            cores=tuple(node.ncores for node in nodes),
            gpus=tuple(node.ngpus for node in nodes),
        )

    @functools.cached_property
    def _ranks(self) -> dict[str, int]:
        """Numbers of the brokers by the names of their nodes; a node may have several, in an instance for tests."""
        import flux.resource

        known = flux.resource.resource_list(self._handle).get().all
        brokers = list(zip(known.nodelist, known.ranks, strict=True))
        often = Counter(name for name, _ in brokers)
        return {name if often[name] == 1 else f"{name}:{rank}": rank for name, rank in brokers}

    def seconds_left(self) -> float | None:
        """Until the instance's own job ends."""
        from flux.job import timeleft

        try:
            left = float(timeleft(self._handle))
        except OSError:  # an instance that is no job of another one
            return None
        return None if left in (0.0, float("inf")) else left
