"""Entry of this process among the workers of a spool, and requests to stop it."""

from __future__ import annotations

import contextlib
import os
import subprocess

import msgspec

from spoolpool import settings
from spoolpool.errors import SpoolDenied
from spoolpool.protocol.heartbeat import start_heartbeat
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.workers import _LACKS, WorkerInfo, remove_worker
from spoolpool.system import files
from spoolpool.system.accounts import account_name
from spoolpool.system.processes import ProcessId


class Registration:
    """This process's entry among the workers, with a sign of life that no busy Python can hold up.

    A small process of its own touches the beat; it ends when its parent does. So a function that
    keeps the GIL for an hour in C code is still seen to live, also where locks exclude nobody.
    """

    def __init__(self, spool: Spool, info: WorkerInfo) -> None:
        if not spool.sees_all:
            raise SpoolDenied(
                f"The workers of the dropbox {spool.path} run as its owner, {account_name(spool.owner)}; this is "
                f"{account_name(os.geteuid())}. To run your own tasks yourself, use a spool of your own."
            )
        self._spool = spool
        self._worker = info.worker
        self._directory = spool.layout.worker(info.worker)
        self._stop = f"{self._directory}/stop"
        self._interval = spool.config.lease / settings.BEATS_PER_LEASE
        with files.translate_errors(f"announce a worker group in {spool.path}"):
            try:
                spool.make_directories(self._directory)
                spool.write_public(f"{self._directory}/beat", [])
                source = f"{spool.layout.tmp}/{info.worker}.info"
                spool.write_public(source, [msgspec.json.encode(info)])
                files.move(source, f"{self._directory}/info.json")
            except OSError:
                remove_worker(spool, info.worker)
                raise
        self._beat = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        return start_heartbeat(f"{self._directory}/beat", self._interval)

    @property
    def directory(self) -> str:
        """Where the entry lies; a file called ``stop`` in it asks the worker to end."""
        return self._directory

    def note_lack(self, tag: str, instead: str) -> None:
        """Tell those who wait for tasks with this tag why this worker takes none; harmless when repeated."""
        with contextlib.suppress(OSError):  # it stands there already; or the server is away: nobody depends on it
            self._spool.write_public(f"{self._directory}/{_LACKS}{tag}", [instead.encode()])

    def told_to_stop(self) -> bool:
        """Whether a file asks this worker to finish what it does and end, or its entry is gone."""
        found = files.list_names(self._directory)
        # an empty list can also be the answer for a stale handle
        return "stop" in found or ("info.json" not in found and (bool(found) or files.is_missing(self._directory)))

    def beats(self) -> bool:
        """Whether the sign of life still goes out; the process that sends it is started again once it ended."""
        if self._beat.poll() is None:
            return True
        if files.is_missing(f"{self._directory}/beat"):
            return False
        self._beat = self._start()
        return True

    def close(self, *, unfinished: bool = False) -> None:
        """Take the entry away: this worker claims nothing any more. Harmless when repeated.

        ``unfinished`` leaves an empty one, so that recoverers go on for this worker: something in its name is still to
        be discarded.
        """
        self._beat.kill()
        self._beat.communicate()
        remove_worker(self._spool, self._worker)
        if unfinished:
            with contextlib.suppress(OSError):
                files.make_directory(self._directory, self._spool.rights.entry)


def request_stop(spool: Spool, worker: str) -> None:
    """Ask a worker to finish what it does and end; it looks when it is idle or done with a task."""
    with contextlib.suppress(OSError):  # FileExistsError: asked already; gone: it ended
        spool.write_public(f"{spool.layout.worker(worker)}/stop", [])


def encode_owner() -> str:
    """What :data:`spoolpool.settings.ENV_OWNER` says about this process."""
    return msgspec.json.encode(ProcessId.of(os.getpid())).decode()


def decode_owner(text: str | None) -> ProcessId | None:
    """Read what :func:`owner_text` made."""
    return msgspec.json.decode(text, type=ProcessId) if text else None


def report_start_error(spool: Spool, worker: str, reason: str) -> None:
    """Tell the supervisor why this group cannot work as it was started."""
    with contextlib.suppress(OSError):  # it is told on standard error as well
        spool.make_directories(spool.layout.worker(worker))
        spool.write_public(f"{spool.layout.worker(worker)}/error", [reason.encode()])


def take_start_error(spool: Spool, worker: str) -> str | None:
    """What a group said about its failure to start; its entry is taken away."""
    try:
        reason = files.read_small(f"{spool.layout.worker(worker)}/error").decode(errors="replace")
    except (OSError, ValueError):  # it never got so far as to say something
        return None
    remove_worker(spool, worker)
    return reason
