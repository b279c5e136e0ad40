"""One Flux instance for all tests of this folder."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="package")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment within an instance of invented cores and GPUs."""
    directory = tmp_path_factory.mktemp("flux")
    resources = directory / "R"
    with resources.open("w") as file:
        subprocess.run(
            ["flux", "R", "encode", "-r0", "-c0-7", "-g0-3", "-H", os.uname().nodename], stdout=file, check=True
        )
    config = directory / "flux.toml"
    config.write_text(f'[resource]\npath = "{resources}"\nnoverify = true\nnorestrict = true\n')
    instance = subprocess.Popen(
        ["flux", "start", f"--config-path={config}", "sh", "-c", "echo $FLUX_URI; exec sleep inf"],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    assert instance.stdout is not None
    uri = instance.stdout.readline().strip()
    bindings = subprocess.run(["flux", "env", "printenv", "PYTHONPATH"], capture_output=True, text=True).stdout.strip()
    path = os.pathsep.join(filter(None, (bindings, os.environ.get("PYTHONPATH"), str(Path(__file__).parents[2]))))
    yield {**os.environ, "FLUX_URI": uri, "PYTHONPATH": path}
    instance.send_signal(signal.SIGTERM)
    instance.wait(60)
