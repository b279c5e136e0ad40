"""Directory watchers: the events that end a wait, and the behaviour without inotify."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from watchdog.observers import inotify_c

from spoolpool.system.watch import DirectoryWatcher
from tests.support.waiting import LIMIT


@pytest.fixture
def watch() -> Iterator[DirectoryWatcher]:
    watch = DirectoryWatcher()
    yield watch
    watch.close()


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> Iterator[DirectoryWatcher]:
    """A watcher after the limit of inotify instances is reached."""
    monkeypatch.setattr(inotify_c, "inotify_init", lambda: -1)
    watch = DirectoryWatcher()
    yield watch
    watch.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_new_name_ends_the_wait(watch: DirectoryWatcher, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    watch.add(str(here))
    (there / "file").touch()
    os.rename(there / "file", here / "file")
    assert watch.wait(LIMIT)
    (here / "directory").mkdir()
    assert watch.wait(LIMIT)


def test_a_change_before_the_wait_ends_it_at_once(watch: DirectoryWatcher, tmp_path: Path) -> None:
    watch.add(str(tmp_path))
    (tmp_path / "file").touch()
    assert watch.wait(0)
    assert not watch.wait(0)


def test_a_removed_name_does_not_end_the_wait(watch: DirectoryWatcher, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    watch.add(str(tmp_path))
    (tmp_path / "file").unlink()
    assert not watch.wait(0)


def test_cleared_changes_do_not_end_the_wait(watch: DirectoryWatcher, tmp_path: Path) -> None:
    watch.add(str(tmp_path))
    for number in range(600):  # more events than one read returns
        (tmp_path / f"{number:0200}").touch()
    watch.wake()
    watch.clear()
    assert not watch.wait(0)


def test_new_names_are_told_by_directory(watch: DirectoryWatcher, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    watch.keep({str(one), str(two)})
    assert watch.covers({str(one), str(two)})
    assert not watch.covers({str(tmp_path), str(one)})
    (one / "file").touch()
    names = {f"{number:0200}" for number in range(600)}  # more than one read returns
    for name in names:
        (two / name).touch()
    assert watch.wait(LIMIT)
    assert watch.new_names() == {str(one): {"file"}, str(two): names}
    assert not watch.wait(0)
    assert watch.new_names() == {}


def test_new_names_are_unknown_after_a_wake_or_the_loss_of_events(watch: DirectoryWatcher, tmp_path: Path) -> None:
    watch.add(str(tmp_path))
    (tmp_path / "file").touch()
    watch.wake()
    assert watch.wait(LIMIT)
    assert watch.new_names() is None
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    for _ in range(limit // 2 + 1):  # two names in turn, since the kernel merges equal events
        for name in ("one", "two"):
            (tmp_path / name).touch()
            (tmp_path / name).unlink()
    assert watch.wait(LIMIT)
    assert watch.new_names() is None


def test_a_removed_directory_is_not_covered_any_more(watch: DirectoryWatcher, tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    watch.keep({str(bucket)})
    bucket.rmdir()
    assert watch.wait(LIMIT)
    assert watch.new_names() is None
    assert not watch.covers({str(bucket)})
    bucket.mkdir()
    watch.keep({str(bucket)})
    (bucket / "file").touch()
    assert watch.wait(LIMIT)
    assert watch.new_names() == {str(bucket): {"file"}}


def test_a_wake_from_a_thread_ends_the_wait(watch: DirectoryWatcher) -> None:
    thread = threading.Thread(target=watch.wake)
    thread.start()
    assert watch.wait(LIMIT)
    thread.join()


def test_a_wake_from_a_signal_handler_ends_the_wait(watch: DirectoryWatcher) -> None:
    before = signal.signal(signal.SIGUSR1, lambda *_: watch.wake())
    try:
        threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        assert watch.wait(LIMIT)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_repeated_wakes_without_a_wait_do_not_block(watch: DirectoryWatcher) -> None:
    for _ in range(100_000):
        watch.wake()
    assert watch.wait(LIMIT)


def test_only_the_kept_directories_end_the_wait(watch: DirectoryWatcher, tmp_path: Path) -> None:
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    for directory in (one, two, three):
        directory.mkdir()
    watch.keep({str(one), str(two)})
    watch.keep({str(two), str(three)})
    watch.clear()
    (one / "file").touch()
    assert not watch.wait(0)
    for directory in (two, three):
        (directory / "file").touch()
        assert watch.wait(LIMIT)


def test_a_directory_that_is_made_again_is_watched_again(watch: DirectoryWatcher, tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    for _ in range(3):
        bucket.mkdir()
        watch.keep({str(tmp_path), str(bucket)})
        watch.clear()
        (bucket / "file").touch()
        assert watch.wait(LIMIT)
        (bucket / "file").unlink()
        bucket.rmdir()
        watch.keep({str(tmp_path)})


def test_a_missing_directory_is_no_error(watch: DirectoryWatcher, tmp_path: Path) -> None:
    watch.add(str(tmp_path / "missing"))
    watch.keep({str(tmp_path / "gone"), str(tmp_path)})
    (tmp_path / "file").touch()
    assert watch.wait(LIMIT)


def test_without_inotify_the_wait_ends_after_its_timeout_or_a_wake(blind: DirectoryWatcher, tmp_path: Path) -> None:
    blind.add(str(tmp_path))
    blind.keep({str(tmp_path)})
    (tmp_path / "file").touch()
    assert not blind.wait(0.001)
    blind.wake()
    assert blind.wait(LIMIT)
    blind.clear()
    assert not blind.wait(0)


def test_inotify_is_opened_with_the_first_directory_and_not_after_close(tmp_path: Path) -> None:
    watch = DirectoryWatcher()
    assert watch._inotify < 0
    watch.add(str(tmp_path))
    assert watch._inotify >= 0
    watch.close()
    watch.add(str(tmp_path))
    assert watch._inotify < 0
    unused = DirectoryWatcher()
    unused.close()
    unused.add(str(tmp_path))
    assert unused._inotify < 0


def test_close_releases_all_descriptors_and_may_be_repeated(tmp_path: Path) -> None:
    before = descriptors()
    for _ in range(20):
        watch = DirectoryWatcher()
        watch.add(str(tmp_path))
        watch.close()
        watch.close()
        watch.wake()
        watch.clear()
    assert descriptors() == before


def test_a_watcher_that_was_not_closed_releases_its_descriptors_when_collected() -> None:
    before = descriptors()
    watch = DirectoryWatcher()
    assert descriptors() > before
    del watch
    assert descriptors() == before


def test_a_child_program_inherits_no_descriptor_of_a_watcher(watch: DirectoryWatcher, tmp_path: Path) -> None:
    watch.add(str(tmp_path))
    fds = [watch._read, watch._write, watch._inotify]
    assert not any(os.get_inheritable(fd) for fd in fds)
