"""Output of commands of the host, for example of its batch system."""

from __future__ import annotations

import logging
from collections.abc import Sequence

log = logging.getLogger(__name__)


def output_of(command: Sequence[str], *, seconds: float = 60.0, errors: bool = False) -> str:
    """Return the standard output of a command; with ``errors`` followed by its standard error.

    Empty if there is no such command on this host, or if it does not end within these seconds.
    """
    import subprocess  # late: most jobs and hosts ask nothing

    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            # into a pipe of its own: a warning of the dynamic linker would come before the first line of the output
            stderr=subprocess.PIPE if errors else subprocess.DEVNULL,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        log.info("%s: %s", " ".join(command), error)
        return ""
    return done.stdout + (done.stderr or "")
