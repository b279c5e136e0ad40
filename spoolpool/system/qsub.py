"""Batch system to which the command ``qsub`` of this host belongs: PBS and Grid Engine have one, with other options."""

from __future__ import annotations

import shutil
from typing import Literal

from spoolpool.errors import LauncherError
from spoolpool.system.command_output import output_of


def system_of_qsub() -> Literal["pbs", "sge"]:
    """Return the batch system. Raises :class:`LauncherError` if there is no qsub, or that of another system."""
    if shutil.which("qsub") is None:
        raise LauncherError("There is no command qsub on PATH: load the module of the batch system, or set PATH.")
    if "pbs_version" in (version := output_of(["qsub", "--version"], errors=True)):
        return "pbs"
    # the first line is the name of the product and its version: SGE, GE, OGS/GE, UGE or OCS
    first = next(iter(output_of(["qsub", "-help"], errors=True).splitlines()), "")
    if "GE" in first.partition(" ")[0] or first.startswith(("OCS", "Altair Grid")):
        return "sge"
    raise LauncherError(
        f"The command {shutil.which('qsub')} is neither that of PBS Professional, OpenPBS nor Grid Engine: it says "
        f"{(version or first).strip()[:200]!r}. Name the system: pbs or sge."
    )
