"""The servers of tests.servers have the properties that tests of the spool depend on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import MODULES, NFS, SSHFS, FileServer, MooseFS, ServerError, Slurm, wait_for
from tests.servers.base import MountedFileServer
from tests.sharedfs.mounts import Place
from tests.sharedfs.running import running, traces


@pytest.fixture
def fs(place: Place) -> FileServer:
    return place.fs


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    with running("slurm", lambda directory: Slurm(directory, nodes=2, users=("alice",))) as server:
        yield server


def write(fs: FileServer, client: str, name: str) -> None:
    fs.run(client, ["sh", "-c", 'echo written >"$0"', fs.path(client) / name])


def wait_listed(fs: FileServer, client: str, name: str) -> None:
    def listed() -> bool:
        return name in fs.run(client, ["ls", fs.path(client)]).stdout.split()

    wait_for(listed, f"{client} lists {name}")


def try_lock(fs: FileServer, client: str) -> bool:
    result = fs.run(client, ["flock", "--nonblock", fs.path(client) / "lock", "true"], check=False)
    assert result.returncode in (0, 1), result.stderr
    return result.returncode == 0


def hold_lock(fs: FileServer, client: str) -> subprocess.Popen[str]:
    """Hold the lock until the standard input of the result is closed."""
    pipe = subprocess.PIPE
    hold = ["flock", fs.path(client) / "lock", "sh", "-c", "echo held; exec cat"]
    process = fs.popen(client, hold, stdin=pipe, stdout=pipe, text=True)
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.sharedfs
class TestEveryFileServer:
    def test_each_client_is_a_separate_host(self, fs):
        """With a name, pids and a network: in namespaces, or even a kernel, that no other client has."""
        script = "hostname; cat /proc/sys/kernel/random/boot_id; cd /proc/self/ns && readlink uts pid net"
        machine = subprocess.run(["sh", "-c", script], stdout=subprocess.PIPE, text=True, check=True).stdout.split()
        hosts = [fs.run(client, ["sh", "-c", script]).stdout.split() for client in fs.clients]
        assert [name for name, *_ in hosts] == list(fs.clients)
        spaces = [(kernel, space) for _, kernel, *own in [machine, *hosts] for space in own]
        assert len(set(spaces)) == 3 * (1 + len(fs.clients))

    def test_a_command_gets_its_environment_and_directory_and_gives_its_status(self, fs):
        script = 'echo "$WORD $PWD"; exit "$STATUS"'
        result = fs.run("A", ["sh", "-c", script], env={"WORD": "a 'b'", "STATUS": "7"}, cwd="/usr", check=False)
        assert (result.stdout, result.returncode) == ("a 'b' /usr\n", 7)
        with pytest.raises(ServerError, match="no-such-file"):
            fs.run("A", ["ls", fs.path("A") / "no-such-file"])

    def test_python_runs_on_a_client(self, fs):
        script = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(sys.argv[1])"
        fs.run("A", [sys.executable, "-c", script, fs.path("A") / "python"])
        wait_listed(fs, "B", "python")

    def test_a_file_written_on_one_client_is_listed_and_read_on_the_other(self, fs):
        write(fs, "A", "from-A")
        wait_listed(fs, "B", "from-A")
        assert fs.run("B", ["cat", fs.path("B") / "from-A"]).stdout == "written\n"

    def test_a_lock_excludes_the_other_client_except_on_sshfs(self, fs):
        with hold_lock(fs, "A") as holder:
            assert not try_lock(fs, "A")
            assert try_lock(fs, "B") == isinstance(fs, SSHFS)
            holder.stdin.close()
        wait_for(lambda: try_lock(fs, "B"), "B gets the lock that A gave back")

    def test_a_signal_reaches_a_command_on_a_client(self, fs):
        process = fs.popen("A", ["sleep", "infinity"])
        process.kill()
        assert process.wait(timeout=60) != 0
        assert "sleep infinity" not in fs.run("A", ["ps", "-e", "-o", "args"]).stdout

    def test_killed_client_loses_its_processes_and_restarts(self, fs):
        process = fs.popen("B", ["sleep", "infinity"])
        if isinstance(fs, MountedFileServer):  # the mount is lost before the programs of the node end
            fs.kill_mount("B")
            assert fs.run("B", ["ls", fs.path("B")]).stdout == ""
        fs.kill("B")
        assert process.returncode is not None
        with pytest.raises(ServerError, match="dead"):
            fs.run("B", ["true"])
        write(fs, "A", "while-B-was-dead")
        fs.restart("B")
        wait_listed(fs, "B", "while-B-was-dead")


@pytest.mark.sharedfs
class TestNetwork:
    @pytest.fixture(autouse=True)
    def needs_a_network(self, fs):
        if isinstance(fs, SSHFS):
            pytest.skip("sshfs is used without a network here")

    def test_write_of_a_disconnected_client_arrives_after_reconnection(self, fs):
        fs.cut("C")
        try:
            writer = fs.popen("C", ["sh", "-c", 'echo late >"$0"', fs.path("C") / "late"])
            assert "late" not in fs.run("B", ["ls", fs.path("B")]).stdout.split()
        finally:
            fs.mend("C")
        assert writer.wait(timeout=300) == 0
        wait_listed(fs, "B", "late")

    def test_a_restarted_server_knows_every_file(self, fs):
        write(fs, "A", "before")
        fs.restart_server()
        wait_listed(fs, "B", "before")
        fs.run("B", ["sh", "-c", 'echo >"$0"', fs.path("B") / "after"], timeout=300)
        wait_listed(fs, "A", "after")


@pytest.mark.sharedfs
@pytest.mark.slow
class TestNFS:
    @pytest.fixture(autouse=True)
    def needs_nfs(self, fs):
        if not isinstance(fs, NFS):
            pytest.skip("only guests have a clock of their own, and locks with a lease")

    def test_the_clock_of_a_client_can_be_wrong(self, fs):
        now = {client: int(fs.run(client, ["date", "+%s"]).stdout) for client in fs.clients}
        assert 3000 < now["B"] - now["A"] < 4000

    def test_the_lock_of_a_client_without_power_expires_on_nfs_4(self, fs):
        if fs.version == "3":
            pytest.skip("NFS 3 keeps it until the client is back")
        hold_lock(fs, "B")
        assert not try_lock(fs, "C")
        fs.kill("B")
        try:
            wait_for(lambda: try_lock(fs, "C"), "C gets the lock of B, which is dead", timeout=20 * fs.lease)
        finally:
            fs.restart("B")


@pytest.mark.sharedfs
class TestCleanUp:
    @pytest.mark.parametrize(("kind", "make"), [("moosefs", MooseFS), ("sshfs", SSHFS)])
    def test_an_error_leaves_no_process_and_no_mount(self, kind, make):
        with pytest.raises(ZeroDivisionError), running(kind, make) as server:
            raise ZeroDivisionError
        assert traces(server) == []

    def test_no_process_outlives_tests_that_are_killed(self, tmp_path):
        if reason := MODULES["sshfs"].missing():
            pytest.skip(reason)
        script = f"from tests.servers.__main__ import *; keep_up(SSHFS({str(tmp_path)!r}))"
        tests = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        with tests:
            assert b"up" in tests.stdout.readline()
            tests.kill()
        server = SSHFS(tmp_path)
        wait_for(lambda: all(trace.startswith("sshfs-") for trace in traces(server)), "only mounts are left")
        for client in server.clients:  # a mount is already gone if its process had time for an orderly end
            subprocess.run(["umount", "--lazy", server.path(client)], check=False, capture_output=True)
        for directory in Path("/dev/shm").glob(f"node-{tests.pid}-*"):
            directory.rmdir()
        wait_for(lambda: traces(server) == [], "nothing is left")


@pytest.mark.slurm
class TestSlurm:
    def test_every_node_has_its_own_name_and_shared_memory(self, slurm):
        script = "touch /dev/shm/$(hostname); ls /dev/shm"
        output = slurm.run(["srun", "-N2", "-n2", "--label", "sh", "-c", script])
        assert sorted(output.splitlines()) == ["0: n1", "1: n2"]

    def test_every_task_gets_a_gpu_of_its_own(self, slurm):
        script = "echo $(hostname) $CUDA_VISIBLE_DEVICES"
        output = slurm.run(["srun", "-N2", "-n4", "--gpus-per-task=1", "sh", "-c", script])
        assert sorted(output.splitlines()) == ["n1 0", "n1 1", "n2 0", "n2 1"]

    @pytest.mark.multiuser
    def test_a_user_can_submit_a_job(self, slurm):
        alice = slurm.accounts["alice"]
        home = slurm.home(alice)
        wrap = ["sbatch", "--wait", "-n3", f"--output={home}/output", "--wrap", "srun id -un"]
        slurm.run(wrap, user=alice, cwd=home)
        assert (home / "output").read_text() == f"{alice}\n" * 3

    def test_killed_node_restarts(self, slurm):
        slurm.restart("n2")
        assert slurm.run(["srun", "--nodelist=n2", "hostname"]) == "n2\n"
