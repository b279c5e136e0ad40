"""Flux instances for the tests of this folder; most tests share one."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def started(directory: Path, *options: str, cores: int, gpus: int = 0, brokers: int = 1) -> Iterator[dict[str, str]]:
    """Start an instance and yield its environment; each of its brokers has simulated cores and GPUs."""
    ranks, numbers, devices = (",".join(map(str, range(count))) for count in (brokers, cores, gpus))
    encode = ["flux", "R", "encode", f"-r{ranks}", f"-c{numbers}", *([f"-g{devices}"] if gpus else [])]
    resources = directory / "R"
    with resources.open("w") as file:
        subprocess.run([*encode, "-H", ",".join([os.uname().nodename] * brokers)], stdout=file, check=True)
    config = directory / "flux.toml"
    config.write_text(f'[resource]\npath = "{resources}"\nnoverify = true\nnorestrict = true\n')
    instance = subprocess.Popen(
        ["flux", "start", f"--config-path={config}", *options, "sh", "-c", "echo $FLUX_URI; exec cat"],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
    )
    assert instance.stdout is not None
    assert instance.stdin is not None
    uri = instance.stdout.readline().strip()
    bindings = subprocess.run(["flux", "env", "printenv", "PYTHONPATH"], capture_output=True, text=True).stdout.strip()
    path = os.pathsep.join(filter(None, (bindings, os.environ.get("PYTHONPATH"), str(Path(__file__).parents[2]))))
    yield {**os.environ, "FLUX_URI": uri, "PYTHONPATH": path}
    # this ends its program, and all brokers with it; after a signal those of a test instance would go on
    instance.stdin.close()
    instance.wait(60)


@pytest.fixture(scope="package")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment of an instance with one broker."""
    with started(tmp_path_factory.mktemp("flux"), cores=8, gpus=4) as environment:
        yield environment


@pytest.fixture
def two_nodes(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Environment of an instance with two brokers in place of nodes."""
    directory = tmp_path / "flux"
    directory.mkdir()
    with started(directory, "--test-size=2", cores=2, brokers=2) as environment:
        yield environment
