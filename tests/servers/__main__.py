"""Install the requirements of the servers, or run one of them by hand; see README.md."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.servers import MODULES, NFS, SSHFS, FileServer, GridEngine, MooseFS, Server, ServerError, Slurm
from tests.support import browser

KINDS: dict[str, Callable[[Path], Server]] = {
    "nfs": NFS,
    "nfs3": lambda directory: NFS(directory, version="3"),
    "moosefs": MooseFS,
    "moosefs-cached": lambda directory: MooseFS(directory, caches=3),
    "sshfs": SSHFS,
    "slurm": Slurm,
    "gridengine": GridEngine,
}


@contextlib.contextmanager
def _services_not_started() -> Iterator[None]:
    """Prevent packages from starting their system services, which the servers here do not use."""
    policy = Path("/usr/sbin/policy-rc.d")  # see invoke-rc.d(8)
    if policy.exists():
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink()


def install() -> int:
    """Install the packages of all servers, and a browser; return how many of them still cannot run."""
    modules = {**MODULES, "browser": browser}
    wanted = sorted({package for module in modules.values() for package in module.PACKAGES})
    apt = ["apt-get", "install", "-y", "-q", "--no-install-recommends"]
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        with _services_not_started():
            print("installing:", *wanted, flush=True)
            if subprocess.call([*apt, *wanted], env=env):
                print("not all together; one by one:", flush=True)
                failed = [p for p in wanted if subprocess.call([*apt, p], env=env)]
                print("could not be installed:", *failed or ["(none)"])
    except OSError as error:  # no apt-get, or not root
        print(f"nothing could be installed: {error}")
    reasons = {name: module.missing() for name, module in modules.items()}
    for name, reason in reasons.items():
        print(f"{name}: {'missing: ' + reason if reason else 'can run'}")
    return sum(reason is not None for reason in reasons.values())


def _obey(server: Server, words: list[str]) -> None:
    """Execute an input line: "CLIENT COMMAND...", or a method and its argument, as in "kill A"."""
    if isinstance(server, FileServer) and words[0] in server.clients:
        print(f"status {server.popen(words[0], words[1:]).wait()}")
    elif words[0] in ("kill", "restart", "cut", "mend", "restart_server"):
        getattr(server, words[0])(*words[1:])
    else:
        print("want CLIENT COMMAND..., kill, restart, cut or mend CLIENT, or restart_server")


def keep_up(server: Server) -> None:
    """Start the server, execute the input lines, and stop the server at Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # even in the background
    with contextlib.suppress(KeyboardInterrupt), server:
        if isinstance(server, FileServer):
            print("up:", *(f"{client} sees {server.path(client)};" for client in server.clients))
        elif isinstance(server, Slurm):
            print(f"up: export SLURM_CONF={server.env['SLURM_CONF']}")
        elif isinstance(server, GridEngine):
            print(f"up: export PATH={server.directory}/bin:$PATH")
        sys.stdout.flush()
        for line in sys.stdin:
            if words := shlex.split(line):
                try:
                    _obey(server, words)
                except (AttributeError, KeyError, OSError, ServerError, TypeError) as error:
                    print(f"{type(error).__name__}: {error}")
        signal.pause()  # the input has ended; a signal ends the wait


def main() -> int:
    """Run ``python -m tests.servers``."""
    parser = argparse.ArgumentParser(prog="python -m tests.servers", description=__doc__)
    parser.add_argument("what", choices=["install", *KINDS])
    parser.add_argument("directory", nargs="?", type=Path, help="an empty one; a short path")
    arguments = parser.parse_args()
    if arguments.what == "install":
        return install()
    if arguments.directory is None:
        parser.error("which directory?")
    if reason := MODULES[arguments.what.split("-")[0].rstrip("3")].missing():
        parser.error(reason)
    keep_up(KINDS[arguments.what](arguments.directory))
    return 0


if __name__ == "__main__":
    sys.exit(main())
