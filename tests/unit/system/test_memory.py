"""Memory that a process uses and may use."""

import resource

import pytest

from spoolpool.system import memory
from spoolpool.system.memory import Memory


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Files of ``/proc`` and ``/sys`` by their paths."""
    found = {"/proc/meminfo": "MemTotal: 10000 kB\nMemAvailable: 6000 kB", "/proc/self/statm": "100 30 10 0 0 0 0"}
    monkeypatch.setattr(memory, "read_proc", lambda path: found.get(path, ""))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return found


def test_pages_of_files_do_not_count(machine):
    assert memory.private() == 20 * resource.getpagesize()


def test_memory_of_the_host_is_usable(machine):
    assert memory.usable() == Memory(10000 << 10, 6000 << 10)


def test_nothing_is_known_without_proc(machine):
    machine.clear()
    assert (memory.private(), memory.usable()) == (0, None)


@pytest.mark.parametrize("place", ["/job", "/job/step"])
def test_limit_of_a_control_group_around_counts_without_its_pages_of_files(machine, place):
    machine["/proc/self/cgroup"] = "0::/job/step"
    machine[f"/sys/fs/cgroup{place}/memory.max"] = "500000"
    machine[f"/sys/fs/cgroup{place}/memory.current"] = "400000"
    machine[f"/sys/fs/cgroup{place}/memory.stat"] = "anon 1\nfile 100000"
    assert memory.usable() == Memory(500000, 200000)


def test_files_of_a_tmpfs_use_memory(machine):
    machine["/proc/self/cgroup"] = "0::/job"
    machine["/sys/fs/cgroup/job/memory.max"] = "500000"
    machine["/sys/fs/cgroup/job/memory.current"] = "400000"
    machine["/sys/fs/cgroup/job/memory.stat"] = "anon 1\nfile 100000\nshmem 70000"
    assert memory.usable() == Memory(500000, 130000)


def test_control_group_without_a_limit_changes_nothing(machine):
    machine["/proc/self/cgroup"] = "0::/"
    machine["/sys/fs/cgroup/memory.max"] = "max"
    assert memory.usable() == Memory(10000 << 10, 6000 << 10)


def test_control_group_of_version_1_is_read(machine):
    machine["/proc/self/cgroup"] = "5:cpu:/\n4:memory:/job"
    machine["/sys/fs/cgroup/memory/job/memory.limit_in_bytes"] = "500000"
    machine["/sys/fs/cgroup/memory/job/memory.usage_in_bytes"] = "300000"
    assert memory.usable() == Memory(500000, 200000)


def test_limit_of_the_address_space_counts(machine, monkeypatch):
    size = 200 * resource.getpagesize()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (size, size))
    assert memory.usable() == Memory(size, size // 2)
