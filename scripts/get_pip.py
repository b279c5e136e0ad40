"""Install pip into the environment of this interpreter, without ensurepip and without another pip.

Debian has both in separate packages, which an account without root cannot install. A wheel of pip can be run without
an installation: this program takes the newest wheel for this Python from PyPI (or PIP_INDEX_URL), compares its SHA-256
with the one in the index, and lets it install itself. scripts/venv calls this program.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
from typing import Any

INDEX = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/") + "/pip/"


def read(url: str, accept: str = "*/*") -> bytes:
    request = urllib.request.Request(url, headers={"Accept": accept})  # noqa: S310  a URL of the index
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        content: bytes = answer.read()
    return content


def version(file: dict[str, Any]) -> tuple[int, ...]:
    """Sort key of a wheel: its release, or nothing if this Python cannot use it."""
    release = re.fullmatch(r"pip-([0-9.]+)-py3-none-any\.whl", file["filename"])
    oldest = re.search(r">=3\.(\d+)", file.get("requires-python") or "")
    if not release or file.get("yanked") or (oldest and int(oldest[1]) > sys.version_info[1]):
        return ()
    return tuple(int(number) for number in release[1].split("."))


def main() -> int:
    page = json.loads(read(INDEX, "application/vnd.pypi.simple.v1+json"))
    wheel = max(page["files"], key=version)
    content = read(urllib.parse.urljoin(INDEX, wheel["url"]))
    if hashlib.sha256(content).hexdigest() != wheel["hashes"]["sha256"]:
        sys.exit(f"{wheel['filename']} is damaged: its SHA-256 is not the one that {INDEX} names")
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, wheel["filename"])
        with open(path, "wb") as file:
            file.write(content)
        pip = [sys.executable, os.path.join(path, "pip"), "install", "--quiet", "--no-index", path]
        return subprocess.call(pip)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except OSError as error:
        sys.exit(f"{INDEX} cannot be read: {error}")
