"""Grid Engine: a master and several virtual nodes with their own host names, pids and networks.

They share the files of the machine. Its commands (``qsub``, ``qstat`` and so on) are in ``DIRECTORY/bin``: each enters
the network of the master first, since nothing listens outside of these networks. Slots are only claimed, and no process
is bound to any.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from tests.servers.base import PATH, Argv, Node, Server, ServerError, absent, command

PACKAGES = ("gridengine-master", "gridengine-exec", "gridengine-client", "iproute2")

_NET = "10.95.0"
_PROGRAMS = Path("/usr/lib/gridengine")
_SHARED = Path("/usr/share/gridengine")
_PORTS = {"SGE_QMASTER_PORT": "6444", "SGE_EXECD_PORT": "6445"}  # in networks without other services
_COMMANDS = ("qsub", "qstat", "qdel", "qacct", "qconf", "qhost", "qmod", "qrsh", "qselect")


def missing() -> str | None:
    """Return why Grid Engine cannot run on this machine, or None."""
    return absent(("sge_qmaster", "sge_execd", "qsub", "qconf"), PACKAGES)


class GridEngine(Server):
    """A Grid Engine of ``nodes`` nodes n1, n2, ..., each with ``slots`` slots in the queue ``all.q``.

    It has the parallel environments ``smp`` (all slots on one node) and ``mpi`` (all slots of as many nodes as needed).
    ``env`` is the environment to run ``qsub``, ``qstat`` and so on with.
    """

    def __init__(self, directory: str | Path, nodes: int = 2, slots: int = 4) -> None:
        super().__init__(directory)
        self.names = tuple(f"n{i + 1}" for i in range(nodes))
        self._slots = slots
        self._root = self.directory / "root"
        self._hosts = self.directory / "hosts"
        self._own = {"SGE_ROOT": str(self._root), "SGE_CELL": "default", **_PORTS}
        self.env = {**os.environ, "PATH": f"{self.directory / 'bin'}:{PATH}", **self._own}

    def run(self, argv: Argv, *, timeout: float = 60, **options: Any) -> str:
        """Run a command with :attr:`env`; return its output, or raise ServerError if it fails."""
        return command(["env", f"PATH={self.env['PATH']}", *argv], timeout=timeout, env=self.env, **options)

    def start(self) -> None:
        for name in ("bin", "etc", "spool", "root/default/common"):
            (self.directory / name).mkdir(parents=True)
        architecture = command(["sh", _SHARED / "util/arch"]).strip()
        for name in ("bin", "lib", "utilbin"):
            (self._root / name).mkdir()
            (self._root / name / architecture).symlink_to(_PROGRAMS)
        (self._root / "util").symlink_to(_SHARED / "util")
        names = [f"{_NET}.{11 + i} {name}\n" for i, name in enumerate(self.names)]
        self._hosts.write_text(f"127.0.0.1 localhost\n{_NET}.1 ctl\n" + "".join(names))
        master = self.nodes["ctl"] = Node("ctl", hosts=self._hosts)
        master.make_switch(f"{_NET}.1/24")
        self._write_configuration()
        self._write_commands(master)
        daemon = self.daemon(
            master, "qmaster", ["env", "-i", f"PATH={PATH}", *self._words(), _PROGRAMS / "sge_qmaster"]
        )
        self.wait_up("qmaster", self._answers, daemon)
        for name in self.names:
            self.run(["qconf", "-ah", name])
            self.boot(name)
        self.run(["qconf", "-as", ",".join(("ctl", *self.names))])  # hosts that may submit and ask
        self._configure()
        self.wait_up("qmaster", self._all_nodes_up, daemon)

    def boot(self, name: str) -> None:
        node = self.nodes[name] = Node(name, hosts=self._hosts)
        node.plug_into(self.nodes["ctl"], f"{_NET}.{11 + self.names.index(name)}/24")
        self.daemon(node, name, ["env", "-i", f"PATH={PATH}", *self._words(), _PROGRAMS / "sge_execd"])

    def _words(self) -> list[str]:
        return [f"{key}={value}" for key, value in {**self._own, "SGE_ND": "1"}.items()]  # SGE_ND: in the foreground

    def _write_configuration(self) -> None:
        common = self._root / "default/common"
        settings: dict[str, Any] = {
            "admin_user": "none",
            "default_domain": "none",
            "ignore_fqdn": "false",
            "spooling_method": "classic",
            "spooling_lib": "libspoolc",
            "spooling_params": f"{common};{self.directory}/spool/qmaster",
            "binary_path": _PROGRAMS,
            "qmaster_spool_dir": f"{self.directory}/spool/qmaster",
            "security_mode": "none",
            "listener_threads": 2,
            "worker_threads": 2,
            "scheduler_threads": 1,
        }
        (common / "bootstrap").write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
        (common / "act_qmaster").write_text("ctl\n")
        changed = {
            "execd_spool_dir": f"{self.directory}/spool",
            "min_uid": "0",
            "min_gid": "0",
            "load_report_time": "00:00:02",
            "reporting_params": "accounting=true reporting=false flush_time=00:00:00 joblog=false sharelog=00:00:00",
            "execd_params": "NOTIFY_SUSP=SIGUSR1",
        }
        lines = []
        for line in (_SHARED / "default-configuration").read_text().splitlines():
            key = line.partition(" ")[0].strip()
            lines.append(f"{key} {changed[key]}" if key in changed else line)
        configuration = self.directory / "etc/configuration"
        configuration.write_text("\n".join(lines) + "\n")
        (self.directory / "spool/qmaster").mkdir()
        steps: list[list[Any]] = [
            ["spoolinit", "classic", "libspoolc", settings["spooling_params"], "init"],
            ["spooldefaults.bin", "configuration", configuration],
            ["spooldefaults.bin", "complexes", _SHARED / "util/resources/centry"],
            ["spooldefaults.bin", "usersets", _SHARED / "util/resources/usersets"],
            ["spooldefaults.bin", "managers", "root"],
        ]
        for words in steps:
            environment = {**self._own, "LD_LIBRARY_PATH": str(_PROGRAMS)}
            process = self.nodes["ctl"].popen([str(_PROGRAMS / words[0]), *map(str, words[1:])], env=environment)
            if process.wait(60):
                raise ServerError(f"{words} failed")

    def _write_commands(self, master: Node) -> None:
        words = " ".join(f"{key}={value}" for key, value in self._own.items())
        enter = f"export {words}\nexec nsenter --target={master.pid} --net --uts unshare --mount"
        for name in _COMMANDS:
            path = self.directory / "bin" / name
            inside = f'mount --bind {self._hosts} /etc/hosts && exec {_PROGRAMS}/{name} "$@"'
            path.write_text(f"#!/bin/sh\n{enter} sh -c '{inside}' {name} \"$@\"\n")
            path.chmod(0o755)

    def _configure(self) -> None:
        self._set("-Msconf", "scheduler", {"schedule_interval": "0:0:1", "flush_submit_sec": 1, "flush_finish_sec": 1})
        for name, rule in (("smp", "$pe_slots"), ("mpi", "$fill_up")):
            self._set("-Ap", name, {"slots": 999, "allocation_rule": rule, "control_slaves": "TRUE"})
        hosts = " ".join(self.names)
        queue = {"hostlist": hosts, "pe_list": "smp mpi", "slots": self._slots, "notify": "00:00:10"}
        self._set("-Aq", "all.q", {**queue, "shell": "/bin/sh", "load_thresholds": "NONE"})

    def _set(self, option: str, name: str, changed: dict[str, Any]) -> None:
        """Set an object of Grid Engine: its default, with some values changed."""
        show = {"-Msconf": ["-ssconf"], "-Ap": ["-sp", name], "-Aq": ["-sq"]}[option]
        defaults = _PE.format(name=name) if option == "-Ap" else self.run(["qconf", *show])
        lines = []
        for line in defaults.splitlines():
            key = line.split()[0]
            value = name if key == "qname" else changed.get(key)
            lines.append(line if value is None else f"{key} {value}")
        path = self.directory / "etc" / name
        path.write_text("\n".join(lines) + "\n")
        self.run(["qconf", option, path])

    def _answers(self) -> bool:
        try:
            return bool(self.run(["qconf", "-sss"], timeout=5))
        except ServerError:
            return False

    def _all_nodes_up(self) -> bool:
        # the last column of a queue instance is its state, empty if there is nothing to say
        rows = [line.split() for line in self.run(["qstat", "-f"]).splitlines() if line.startswith("all.q@")]
        return len(rows) == len(self.names) and all(len(row) == 5 and row[3] != "-NA-" for row in rows)

    def stop(self) -> None:
        super().stop()
        shutil.rmtree(self._root, ignore_errors=True)


_PE = """\
pe_name {name}
slots 0
user_lists NONE
xuser_lists NONE
start_proc_args NONE
stop_proc_args NONE
allocation_rule $pe_slots
control_slaves FALSE
job_is_first_task TRUE
urgency_slots min
accounting_summary FALSE
qsort_args NONE
"""
