"""Batch system to which the command ``qsub`` of this host belongs: PBS and Grid Engine have one, with other options."""

from __future__ import annotations

import shutil
import subprocess
from typing import Literal

from spoolpool.errors import LauncherError

_SECONDS = 60.0


def system_of_qsub() -> Literal["pbs", "sge"]:
    """Return the batch system. Raises :class:`LauncherError` if there is no qsub, or that of another system."""
    if shutil.which("qsub") is None:
        raise LauncherError("There is no command qsub on PATH: load the module of the batch system, or set PATH.")
    if "pbs_version" in (version := _output("--version")):
        return "pbs"
    # the first line is the name of the product and its version: SGE, GE, OGS/GE, UGE or OCS
    first = next(iter(_output("-help").splitlines()), "")
    if "GE" in first.partition(" ")[0] or first.startswith(("OCS", "Altair Grid")):
        return "sge"
    raise LauncherError(
        f"The command {shutil.which('qsub')} is neither that of PBS Professional, OpenPBS nor Grid Engine: it says "
        f"{(version or first).strip()[:200]!r}. Name the system: pbs or sge."
    )


def _output(option: str) -> str:
    try:
        done = subprocess.run(
            ["qsub", option],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stdout + done.stderr
