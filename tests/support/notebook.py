"""Small server in place of Jupyter: it makes an executor, as a cell of a notebook would, and records what that has.

A line of a page that starts ``jupyter`` runs with this server under that name.
"""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from tests.support.environment import ROOT

PAGE = ROOT / "docs" / "installation.md"


def documented_line(comment: str) -> str:
    """Return the command of the page that starts a notebook, by the comment behind it."""
    section = PAGE.read_text(encoding="utf-8").partition("## Jupyter within an allocation")[2].partition("\n## ")[0]
    [line] = re.findall(rf"^(.*\bjupyter\b.*?) +# {re.escape(comment)}$", section, re.MULTILINE)
    return str(line)


def start_line(line: str, directory: Path, environment: dict[str, str], groups: int) -> str:
    """Run a line on a terminal of its own, with this server as ``jupyter``; return the output."""
    command = directory / "bin" / "jupyter"
    command.parent.mkdir()
    command.write_text(f"#!/bin/sh\nexec {sys.executable} -m {__name__} {directory} {groups}\n")
    command.chmod(0o755)
    path = os.pathsep.join([str(command.parent), environment["PATH"]])
    modules = os.pathsep.join(filter(None, [environment.get("PYTHONPATH"), str(ROOT)]))
    terminal, side = pty.openpty()
    process = subprocess.Popen(
        ["bash", "-euc", line],
        cwd=directory,
        env={**environment, "PATH": path, "PYTHONPATH": modules},
        stdin=side,
        stdout=side,
        stderr=side,
        start_new_session=True,
    )
    os.close(side)
    output: list[bytes] = []

    def read() -> None:
        try:
            while data := os.read(terminal, 4096):
                output.append(data)
        except OSError:  # the other side is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    try:
        status = process.wait(240)
    finally:
        process.kill()
        reader.join(10)
        os.close(terminal)
    text = b"".join(output).decode(errors="replace")
    assert status == 0, text
    return text


def notebooks(directory: Path) -> list[dict[str, Any]]:
    """Return the records of the servers that were started."""
    return [json.loads(path.read_text() or "{}") for path in directory.glob("notebook-*.json")]


def where() -> str:
    """Return the host, and the number of the broker where the hosts of an instance have one name."""
    if "FLUX_URI" not in os.environ:
        return os.uname().nodename
    broker = subprocess.run(["flux", "getattr", "rank"], capture_output=True, text=True).stdout.strip()
    return f"{os.uname().nodename} {broker}"


def main(directory: str, groups: str) -> None:
    """Serve one call after the other until both nodes have run one."""
    from spoolpool import Executor
    from tests.support.waiting import wait_until

    record = Path(directory, f"notebook-{os.uname().nodename}-{os.getpid()}.json")
    record.touch()
    seen: set[str] = set()
    with Executor(max_workers=int(groups)) as executor:

        def both() -> bool:
            seen.update(future.result(60) for future in [executor.submit(where) for _ in range(int(groups))])
            return len(seen) >= 2

        wait_until(both, "both nodes have run a call", 120)
    record.write_text(json.dumps({"server": os.uname().nodename, "hosts": sorted(seen)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
