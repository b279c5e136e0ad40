"""Register this process as a worker of a spool, and request workers to stop."""

from __future__ import annotations

import contextlib
import os
from typing import Literal, get_args

import msgspec

from spoolpool import settings
from spoolpool.errors import SpoolDenied
from spoolpool.format.names import is_job_name
from spoolpool.protocol.heartbeat import Heartbeat, heartbeat_interval
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.workers import WorkerInfo, lack_file, remove_worker
from spoolpool.security.trust import Trust
from spoolpool.system import file_content, files, records
from spoolpool.system.accounts import account_name
from spoolpool.system.processes import ProcessId

End = Literal["done", "renew"]
"""Why a worker ended by itself: it has nothing more to do, or its group is to be replaced."""

_END = "end"  # name of its file in the entry
_ENDS: tuple[End, ...] = get_args(End)
_UNFINISHED = "unfinished"  # second word in it: recoverers must still see an entry
_MOST_LACKS = 100  # files that say which packages are missing


class Registration:
    """Entry of this process among the workers, with a heartbeat that a busy Python cannot hold up.

    So a worker whose function keeps the GIL for an hour in C code is still seen to be alive, even if locks do not reach
    other hosts.
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
        self._lacks: set[str] = set()
        with files.translate_errors(f"announce a worker group in {spool.path}"):
            try:
                spool.make_directories(self._directory)
                spool.write_public(f"{self._directory}/beat", [])
                source = f"{spool.layout.tmp}/{info.worker}.info"
                data = msgspec.json.encode(info)
                spool.in_directory(spool.layout.tmp, lambda: spool.write_public(source, [data]))
                files.move(source, f"{self._directory}/info.json")
            except OSError:
                remove_worker(spool, info.worker)
                raise
        if is_job_name(info.batch):
            with contextlib.suppress(OSError):  # another group of the job was first; or the job counts as a failed one
                spool.write_own(started_mark(spool, info.batch), [])
        self._heartbeat = self._start()

    def _start(self) -> Heartbeat:
        return Heartbeat(f"{self._directory}/beat", heartbeat_interval(self._spool))

    @property
    def directory(self) -> str:
        """Directory of the entry; a file called ``stop`` in it requests the worker to end."""
        return self._directory

    def report_lack(self, tag: str, instead: str) -> None:
        """Record in the entry why this worker takes no tasks with this tag; harmless when repeated.

        Only so many tags are recorded: other accounts may ask for any number of packages.
        """
        if tag in self._lacks or len(self._lacks) >= _MOST_LACKS:
            return
        self._lacks.add(tag)
        with contextlib.suppress(OSError):  # it exists already; or the server is away: nothing depends on it
            self._spool.write_public(f"{self._directory}/{lack_file(tag)}", [instead.encode()])

    def is_stop_requested(self) -> bool:
        """Return whether this worker is to end after its task: on request, or because its entry is gone."""
        found = files.list_names(self._directory)
        # an empty list can also be the answer for a stale handle
        return "stop" in found or ("info.json" not in found and (bool(found) or files.is_missing(self._directory)))

    def keep_heartbeat(self) -> bool:
        """Start the heartbeat again if it ended; return False if its file was removed."""
        return self._heartbeat.keep()

    def close(self, *, unfinished: bool = False, end: End | None = None) -> None:
        """Remove the entry: this worker claims no task any more. Harmless when repeated.

        ``unfinished`` leaves an empty entry, so that recoverers continue for this worker: an outcome in its name is
        still to be discarded. ``end`` leaves an entry that tells the supervisor that the worker ended by itself.
        """
        if end is not None and not unfinished:
            report_end(self._spool, self._worker, end)
        self._heartbeat.close()
        remove_worker(self._spool, self._worker, keep=_END if end is not None and not unfinished else "")
        if unfinished:
            with contextlib.suppress(OSError):
                files.make_directory(self._directory, self._spool.rights.entry)
            if end is not None:
                report_end(self._spool, self._worker, end, unfinished=True)


def started_mark(spool: Spool, job: str) -> str:
    """Return the path of an empty file that exists once a group of a batch job has registered."""
    return f"{spool.layout.jobs}/{job}.started"


def request_stop(spool: Spool, worker: str) -> bool:
    """Request a worker to end after its task; it checks for that when it is idle or done with a task.

    Returns whether it is asked, now or before, or has ended; False if this account cannot ask it.
    """
    try:
        spool.write_public(f"{spool.layout.worker(worker)}/stop", [])
    except FileExistsError:  # requested before
        return True
    except OSError as error:
        return error.errno in files.GONE
    return True


_owner_decoder = msgspec.json.Decoder(ProcessId)


def decode_owner(text: str | None) -> ProcessId | None:
    """Return the process in :data:`spoolpool.settings.ENV_OWNER`, which :func:`encode_own_id` returned."""
    return records.decode(_owner_decoder, text.encode(errors="replace"), settings.ENV_OWNER) if text else None


def report_end(spool: Spool, worker: str, end: End, *, unfinished: bool = False) -> None:
    """Record for the supervisor that a worker ends by itself, whatever the exit status of its process will be.

    The status says nothing: a function of a task can end the process with any. Any rank may call this, repeatedly.
    """
    text = f"{end} {_UNFINISHED}" if unfinished else end
    with contextlib.suppress(OSError):  # recorded already; or the supervisor takes it for a death
        spool.write_public(f"{spool.layout.worker(worker)}/{_END}", [text.encode()])


def has_end(spool: Spool, worker: str) -> bool:
    """Return whether a worker has recorded that it ends by itself."""
    return files.exists(f"{spool.layout.worker(worker)}/{_END}")


def take_end(spool: Spool, worker: str) -> End | None:
    """Return how a worker ended by itself, and remove the entry that it left for that; None if it died."""
    directory = spool.layout.worker(worker)
    words: list[str] = []
    with contextlib.suppress(OSError, ValueError):
        if _END in files.list_names(directory):
            with files.reading(f"{directory}/{_END}") as (fd, status):
                if status.st_uid == os.geteuid():
                    words = file_content.read_at(fd, 64, 0).decode(errors="replace").split()
    end = next((each for each in _ENDS if each in words[:1]), None)
    if end is not None and files.is_missing(f"{directory}/info.json"):
        remove_worker(spool, worker)
        if _UNFINISHED in words[1:]:
            with contextlib.suppress(OSError):
                files.make_directory(directory, spool.rights.entry)
    return end


def report_start_error(spool: Spool, worker: str, reason: str) -> None:
    """Record for the supervisor why this group cannot work as it was started."""
    with contextlib.suppress(OSError):  # it is printed on standard error as well
        spool.make_directories(spool.layout.worker(worker))
        spool.write_public(f"{spool.layout.worker(worker)}/error", [reason.encode()])


def take_start_error(spool: Spool, worker: str) -> str | None:
    """Return the recorded reason why a group failed to start, and remove its entry."""
    reason = records.read_text(f"{spool.layout.worker(worker)}/error", records.LIMIT, check=Trust().check)
    if reason is not None:  # else it failed before it could record one
        remove_worker(spool, worker)
    return reason
