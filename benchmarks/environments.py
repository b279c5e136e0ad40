"""Libraries of the peers: from PyPI, each in its own virtual environment in one cache directory."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contender import OURS, Environment

CACHE = "SPOOLPOOL_BENCH_CACHE"
"""Environment variable for another cache directory."""

_LIMIT = 900.0


class NotToBeHad(Exception):
    """An environment could not be created; the message is the reason."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """Complete environment."""

    python: str
    """Its interpreter."""
    versions: dict[str, str]
    """Installed versions of the requirements."""


def cache() -> Path:
    """Return the directory that keeps environments between runs."""
    named = os.environ.get(CACHE)
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "spoolpool-bench")


def have(environment: Environment, say: Callable[[str], None]) -> Made:
    """Find or create an environment. Raises :class:`NotToBeHad` with the reason of a failure.

    It has the interpreter of this process, so that all contenders run the same Python.
    """
    if environment == OURS:
        wanted = ("spoolpool", "mpi4py", "mpich", "openmpi", "numpy")
        return Made(python=sys.executable, versions=_versions(sys.executable, wanted))
    folder = cache() / f"{environment.name}-{sys.version_info[0]}.{sys.version_info[1]}"
    folder.mkdir(parents=True, exist_ok=True)
    python = str(folder / "bin" / "python")
    stamp = folder / "installed.json"
    wanted_text = json.dumps([sys.base_prefix, sys.version, *environment.requires])
    with open(folder / "lock", "w", encoding="ascii") as lock:  # two runs may do this at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted_text:
            say(f"installing {' '.join(environment.requires)} into {folder}")
            stamp.unlink(missing_ok=True)
            _call([_base(), "-m", "venv", "--without-pip", "--clear", str(folder)])
            pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
            _call([*pip, "install", "--quiet", *environment.requires])
            stamp.write_text(wanted_text, encoding="utf-8")
    return Made(python=python, versions=_versions(python, environment.requires))


def _base() -> str:
    return str(getattr(sys, "_base_executable", sys.executable))


def _call(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=_LIMIT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotToBeHad(str(error)) from error
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        said = [line for line in lines if line.startswith("ERROR")] or lines[-1:]
        raise NotToBeHad(" ".join(said) or f"{' '.join(command[:4])} ended with {done.returncode}")


_ASK = """
import importlib.metadata, json, re, sys
found = {}
for wanted in sys.argv[1:]:
    name = re.split(r"[^A-Za-z0-9._-]", wanted)[0]
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def _versions(python: str, wanted: tuple[str, ...]) -> dict[str, str]:
    done = subprocess.run([python, "-c", _ASK, *wanted], capture_output=True, text=True, cwd="/", check=False)
    versions: dict[str, str] = json.loads(done.stdout) if done.returncode == 0 else {}
    return versions
