"""Costs of the operating system alone: renames that wake another process, bare system calls, a plain file.

They do no useful work; they are the least costs of any queue of files.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import queue
import struct
import time
from collections.abc import Callable
from typing import Any

from benchmarks import tasks
from benchmarks.contender import Contender, Job, Samples
from benchmarks.measures import APART, repeats
from spoolpool.system.backoff import Backoff

_CONTENT = bytes(512)  # about the size of one call


def _by_watchdog(directory: str) -> Callable[[str], None]:
    """Watch a directory through watchdog's observer; return a function that waits for a name in it."""
    from watchdog.events import FileSystemEvent, FileSystemEventHandler
    from watchdog.observers import Observer

    came: queue.SimpleQueue[str] = queue.SimpleQueue()

    class Note(FileSystemEventHandler):
        def on_any_event(self, event: FileSystemEvent) -> None:
            if event.event_type in {"created", "moved"}:
                came.put(os.path.basename(os.fsdecode(event.dest_path or event.src_path)))

    observer = Observer()
    observer.daemon = True
    observer.schedule(Note(), directory)
    observer.start()

    def wait(name: str) -> None:
        while came.get() != name:
            pass

    return wait


def _by_inotify(directory: str) -> Callable[[str], None]:
    """Watch a directory by bare calls of inotify(7); return a function that waits for a name in it."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_CLOEXEC)
    if fd < 0 or libc.inotify_add_watch(fd, os.fsencode(directory), 0x80) < 0:  # IN_MOVED_TO
        raise OSError(ctypes.get_errno(), "inotify")

    def wait(name: str) -> None:
        while True:
            data = os.read(fd, 65536)
            start = 0
            while start < len(data):
                length = struct.unpack_from("12xI", data, start)[0]
                if data[start + 16 : start + 16 + length].rstrip(b"\0").decode() == name:
                    return
                start += 16 + length

    return wait


def ping_pong(job: Job) -> Samples:
    """Measure two processes: each renames a file into the directory that the other watches."""
    watch: Any = {"watchdog": _by_watchdog, "inotify": _by_inotify}[job.variant]
    here, there, store = (f"{job.directory}/{name}" for name in ("here", "there", "store"))
    for path in (here, there, store):
        os.mkdir(path)
    count = job.warm + 2 * job.tasks
    for number in range(count):
        for side in ("ping", "pong"):
            with open(f"{store}/{side}.{number}", "wb"):
                pass
    ready, started = os.pipe()
    if os.fork() == 0:
        wait = watch(there)
        os.write(started, b"\0")
        for number in range(count):
            wait(str(number))
            os.rename(f"{store}/pong.{number}", f"{here}/{number}")
        os._exit(0)
    wait = watch(here)
    os.read(ready, 1)

    def once(number: int, pause: float) -> float:
        if pause:
            time.sleep(pause)
        before = time.perf_counter()
        os.rename(f"{store}/ping.{number}", f"{there}/{number}")
        wait(str(number))
        return time.perf_counter() - before

    for number in range(job.warm):
        once(number, 0.0)
    at_once = [once(job.warm + number, 0.0) for number in range(job.tasks)]
    after = [once(job.warm + job.tasks + number, APART) for number in range(job.tasks)]
    os.wait()
    return {"at once": at_once, "after a pause": after}


def polled(job: Job) -> Samples:
    """Measure two processes with separate mounts that pass one file to each other and find it by listing a directory.

    They list with the backoff of a submitter and of an idle group.
    """
    for name in ("here", "there"):
        os.mkdir(f"{job.directory}/{name}")
    with open(f"{job.directory}/here/file", "wb"):
        pass

    def wait(directory: str, last: float) -> None:
        backoff = Backoff(0.0005, last)
        while not os.listdir(directory):
            backoff.sleep()

    if os.fork() == 0:
        for _ in range(job.warm + 2 * job.tasks):
            wait(f"{job.elsewhere}/there", 2.0)
            os.rename(f"{job.elsewhere}/there/file", f"{job.elsewhere}/here/file")
        os._exit(0)

    def once(pause: float) -> float:
        time.sleep(pause)
        before = time.perf_counter()
        os.rename(f"{job.directory}/here/file", f"{job.directory}/there/file")
        wait(f"{job.directory}/here", 1.0)
        return time.perf_counter() - before

    for _ in range(job.warm):
        once(0.0)
    at_once = [once(0.0) for _ in range(job.tasks)]
    after = [once(APART) for _ in range(job.tasks)]
    os.wait()
    return {"at once": at_once, "after a pause": after}


def _write(path: str, *, synced: bool) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    os.write(fd, _CONTENT)
    if synced:
        os.fsync(fd)
    os.close(fd)


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    os.fsync(fd)
    os.close(fd)


def _way(job: Job) -> Callable[[int], None]:
    """Make the system calls of one task, from submission to collection, in one process without any waiting.

    Variant ``data`` syncs both files before their renames, ``full`` also the directories after them.
    """
    paths = [f"{job.directory}/{name}" for name in ("tmp", "ready", "claimed", "outgoing", "results")]
    tmp, ready, claimed, outgoing, results = paths
    for path in paths:
        os.mkdir(path)
    synced, full = job.variant in {"data", "full"}, job.variant == "full"

    def way(number: int) -> None:
        name = f"{number:020d}"
        _write(f"{tmp}/{name}", synced=synced)
        os.rename(f"{tmp}/{name}", f"{ready}/{name}")
        if full:
            _sync_directory(ready)
        held = os.open(f"{ready}/{name}", os.O_RDWR | os.O_CLOEXEC)
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(f"{ready}/{name}", f"{claimed}/{name}.w")
        os.pread(held, 65536, 0)
        _write(f"{outgoing}/{name}.w", synced=synced)
        os.rename(f"{claimed}/{name}.w", f"{results}/{name}.w")
        if full:
            _sync_directory(outgoing)
            _sync_directory(results)
        os.close(held)
        fd = os.open(f"{outgoing}/{name}.w", os.O_RDONLY | os.O_CLOEXEC)
        os.pread(fd, 65536, 0)
        os.close(fd)
        os.unlink(f"{results}/{name}.w")
        os.unlink(f"{outgoing}/{name}.w")

    return way


def protocol(job: Job) -> Samples:
    """Measure tasks in bare system calls: tasks per second, and CPU seconds of each."""
    way = _way(job)
    busy, before = time.process_time(), time.perf_counter()
    for number in range(job.tasks):
        way(number)
    took, busy = time.perf_counter() - before, time.process_time() - busy
    return {"rate": [job.tasks / took], "CPU": [busy / job.tasks], "calls": [job.tasks]}


def durability(job: Job) -> Samples:
    """Measure the seconds of each task in bare system calls, and tasks per second."""
    way = _way(job)
    taken = []
    for number in range(job.warm + job.tasks):
        before = time.perf_counter()
        way(number)
        taken.append(time.perf_counter() - before)
    taken = taken[job.warm :]
    return {"at once": taken, "rate": [len(taken) / sum(taken)]}


def plain_file(job: Job) -> Samples:
    """Write arrays to plain files, and sum them through a mapping, one at a time."""
    import numpy as np

    count = job.bytes // 8
    taken = []
    for number in range(1, 1 + repeats(job.bytes)):
        path = f"{job.directory}/array{number}"
        array = np.full(count, float(number))
        before = time.perf_counter()
        array.tofile(path)
        total = tasks.total(np.memmap(path, dtype=array.dtype, mode="r"))
        taken.append(time.perf_counter() - before)
        assert total == number * count
        del array
        os.unlink(path)
    return {"time": taken}


def passed_file(job: Job) -> Samples:
    """Pass arrays between two processes in plain files, one at a time; a rename wakes the other process by inotify.

    Variant ``argument``: the array is written here and summed there; ``result``: the other way round.
    """
    import numpy as np

    here, there, store = (f"{job.directory}/{name}" for name in ("here", "there", "store"))
    for path in (here, there, store):
        os.mkdir(path)
    back, count, numbers = job.variant == "result", job.bytes // 8, range(1, 1 + repeats(job.bytes))

    def send(directory: str, number: int, *, full: bool) -> Callable[[], None]:
        """Return a function that writes an array, or passes an empty file; the array is made before."""
        path = f"{store}/{os.getpid()}.{number}"
        array = np.full(count if full else 0, float(number))

        def write() -> None:
            array.tofile(path)
            os.rename(path, f"{directory}/{number}")

        return write

    def check(directory: str, number: int) -> None:
        assert tasks.total(np.memmap(f"{directory}/{number}", dtype=float, mode="r")) == number * count

    ready, started = os.pipe()
    if os.fork() == 0:
        try:
            wait = _by_inotify(there)
            for number in numbers:
                answer = send(here, number, full=back)
                os.write(started, b"\0")
                wait(str(number))
                if not back:
                    check(there, number)
                answer()
        finally:
            os._exit(0)
    wait = _by_inotify(here)
    taken = []
    for number in numbers:
        ask = send(there, number, full=not back)
        os.read(ready, 1)
        before = time.perf_counter()
        ask()
        wait(str(number))
        if back:
            check(here, number)
        taken.append(time.perf_counter() - before)
        os.unlink(f"{here if back else there}/{number}")
    os.wait()
    return {"time": taken}


def mapped_file(job: Job) -> Samples:
    """Write an array to a plain file; measure seconds of each of ``tasks`` sums through a new mapping."""
    import numpy as np

    path = f"{job.directory}/array"
    array = np.ones(job.bytes // 8)
    before = time.perf_counter()
    array.tofile(path)
    for _ in range(job.tasks):
        assert tasks.total(np.memmap(path, dtype=array.dtype, mode="r")) == len(array)
    return {"time": [(time.perf_counter() - before) / job.tasks], "calls": [job.tasks]}


CONTENDER = Contender(
    name="floor",
    module=__name__,
    measures={
        "latency": ping_pong,
        "polled": polled,
        "throughput": protocol,
        "durability": durability,
        "plain file": plain_file,
        "passed file": passed_file,
        "mapped file": mapped_file,
    },
)

if __name__ == "__main__":
    CONTENDER.main()
