"""A real browser without a window: Chromium, driven over a pair of pipes, so that no port is opened.

The protocol is that of its developer tools: a JSON object per message, each ended by a NUL byte.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.support.waiting import LIMIT

PACKAGES = ("chromium",)
_PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


def missing() -> str | None:
    """Return the reason why no browser can run here, or None."""
    return None if any(map(shutil.which, _PROGRAMS)) else "no Chromium is installed (Debian package: chromium)"


class Browser:
    """Page in a browser, with the messages of its console and its network requests."""

    def __init__(self, directory: Path) -> None:
        program = next(filter(None, map(shutil.which, _PROGRAMS)))
        from_us, self._out = os.pipe()
        self._in, to_us = os.pipe()
        command = [
            program,
            "--headless",
            "--no-sandbox",  # root cannot use the sandbox
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--window-size=1200,1000",
            f"--user-data-dir={directory}",
            "--remote-debugging-pipe",  # descriptors 3 and 4
            "about:blank",
        ]
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{from_us} 4>&{to_us}', "bash", *command],
            pass_fds=(from_us, to_us),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(from_us)
        os.close(to_us)
        self._rest = b""
        self._number = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        """Events of the open page."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def close(self) -> None:
        """End the browser."""
        for fd in (self._out, self._in):
            os.close(fd)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _message(self) -> dict[str, Any]:
        end = time.monotonic() + LIMIT
        while b"\0" not in self._rest:
            poll = select.poll()  # select takes no descriptor above 1023
            poll.register(self._in, select.POLLIN)
            ready = poll.poll(max(0.0, end - time.monotonic()) * 1000)
            piece = os.read(self._in, 1 << 20) if ready else b""
            assert piece, f"the browser says nothing more ({self._process.poll()})"
            self._rest += piece
        text, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(text)
        return found

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._message()).get("id") != number:
            self.events.append(answer)
        assert "error" not in answer, answer
        found: dict[str, Any] = answer["result"]
        return found

    def open(self, path: Path) -> None:
        """Load a page completely."""
        self.events.clear()
        self._call("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._message())
        self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def complaints(self) -> list[str]:
        """Return errors, warnings and console output of the page."""
        found = [event for event in self.events if event.get("method") in _COMPLAINTS]
        return [json.dumps(event["params"])[:500] for event in found]

    def requests(self) -> list[str]:
        """Return the network requests of the page."""
        sent = [
            each["params"]["request"]["url"]
            for each in self.events
            if each.get("method") == "Network.requestWillBeSent"
        ]
        return [url for url in sent if not url.startswith("data:")]

    def run(self, script: str) -> Any:
        """Return the value of an expression in the page; await it if it is a promise."""
        answer = self._call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """Send a real mouse event: ``mouseMoved``, ``mousePressed``, ``mouseReleased`` or ``mouseWheel``."""
        self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)
        self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def key(self, name: str) -> None:
        """Press and release a key, such as ``ArrowDown``, ``Tab`` or ``+``."""
        text = {"text": name} if len(name) == 1 else {}
        code = {"Tab": 9, "Enter": 13}.get(name, 0)
        for kind in ("keyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, key=name, windowsVirtualKeyCode=code, **text)
        self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def resize(self, width: int, height: int) -> None:
        """Set the size of the window."""
        mobile = width < 600
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)

    def screenshot(self, path: Path) -> None:
        """Return a screenshot."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot")["data"]))


_COMPLAINTS = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded", "Network.loadingFailed")
