"""Files of a release, and the recipes for package managers."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import spoolpool

ROOT = Path(__file__).resolve().parents[2]
PACKAGING = ROOT / "packaging"
ELSEWHERE = {"xxhash": "python-xxhash"}
"""Names on conda-forge that differ."""


def requirements() -> dict[str, str]:
    """Return the lowest version of each requirement."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = text.split("\ndependencies = [", 1)[1].split("\n]", 1)[0]
    return dict(re.findall(r'"([a-z]+)>=([0-9.]+)', listed))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    for module in ("build", "hatchling"):
        pytest.importorskip(module)
    directory = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(directory), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return directory


def test_source_distribution_has_all_tracked_files(built: Path) -> None:
    [path] = built.glob("*.tar.gz")
    assert path.name == f"spoolpool-{spoolpool.__version__}.tar.gz"
    with tarfile.open(path) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True)
    tracked = {name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()}
    assert tracked - packed == set()


def test_wheel_has_the_package_with_its_data_alone(built: Path) -> None:
    [path] = built.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        names = {name for name in archive.namelist() if not name.partition("/")[0].endswith(".dist-info")}
    assert names >= {"spoolpool/py.typed", "spoolpool/launch/pbs_rsh.sh", "spoolpool/executor.py"}
    assert {name.partition("/")[0] for name in names} == {"spoolpool"}


def test_metadata_are_valid_for_pypi(built: Path) -> None:
    pytest.importorskip("twine")
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, built.iterdir())]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_recipe_for_conda_has_the_requirements_of_the_project() -> None:
    recipe = yaml.safe_load((PACKAGING / "conda" / "recipe.yaml").read_text(encoding="utf-8"))
    assert recipe["context"]["version"] == spoolpool.__version__
    found = dict(each.split(" >=") for each in recipe["requirements"]["run"] if " >=" in each and "python " not in each)
    assert found == {ELSEWHERE.get(name, name): version for name, version in requirements().items()}


def test_recipe_for_spack_has_the_requirements_of_the_project() -> None:
    text = (PACKAGING / "spack" / "package.py").read_text(encoding="utf-8")
    compile(text, "package.py", "exec")
    assert f'version("{spoolpool.__version__}"' in text
    for name, version in requirements().items():
        assert f'depends_on("py-{name}@{version}:"' in text


def test_recipe_for_easybuild_has_the_requirements_of_the_project() -> None:
    [path] = (PACKAGING / "easybuild").glob(f"spoolpool-{spoolpool.__version__}-*.eb")
    found: dict[str, object] = {}
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), found)
    assert found["version"] == spoolpool.__version__
    listed = {each[0]: each[1] for each in found["exts_list"]}  # type: ignore[attr-defined]
    of_new_pythons = {name: version for name, version in requirements().items() if name != "tomli"}
    for name, version in of_new_pythons.items():
        assert numbers(listed[name]) >= numbers(version)
    assert set(listed) == {*of_new_pythons, "spoolpool"}


def numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def test_citation_and_module_file_have_the_present_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == spoolpool.__version__
    assert (PACKAGING / "lmod" / f"{spoolpool.__version__}.lua").exists()
    assert f"=={spoolpool.__version__}" in (PACKAGING / "apptainer" / "spoolpool.def").read_text(encoding="utf-8")
