"""A headless Chromium over the DevTools protocol's pipe, with nothing but the standard library: load, look, press keys, take pictures.

Used by the tests marked `browser`; `find_browser()` is None where no browser is installed, and those tests are skipped.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
TIMEOUT_S = 60.0
READY = "document.documentElement.dataset.ready === 'yes'"
"""True once a page of the report or the viewer has drawn everything."""


def find_browser() -> str | None:
    """The path of an installed Chromium or Chrome, or None."""
    return next((p for p in map(shutil.which, NAMES) if p), None)


class BrowserError(RuntimeError):
    """The browser said no, said nothing in time, or ended."""


class Browser:
    """One page of one browser with a profile of its own. Collects console errors, exceptions and every request made."""

    def __init__(self, binary: str) -> None:
        self.binary = binary
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._profile = tempfile.mkdtemp(prefix="chromium-")
        here_read, there_write = os.pipe()
        there_read, here_write = os.pipe()
        # The browser reads commands from descriptor 3 and writes to 4; high copies first, since 3 and 4 may be in use here.
        there_read, there_write = (fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (there_read, there_write))

        def hand_over() -> None:
            os.dup2(there_read, 3)
            os.dup2(there_write, 4)

        self._process = subprocess.Popen(
            [binary, *FLAGS, f"--user-data-dir={self._profile}", "about:blank"],
            close_fds=False,
            preexec_fn=hand_over,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(there_read)
        os.close(there_write)
        self._in, self._out, self._buffer, self._next = here_read, here_write, b"", 0
        self._session: str | None = None
        target = next(t for t in self._call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self._session = self._call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        os.close(self._out)
        shutil.rmtree(self._profile, ignore_errors=True)

    def _call(self, method: str, **params: object) -> dict[str, Any]:
        self._next += 1
        wanted = self._next
        message: dict[str, object] = {"id": wanted, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + TIMEOUT_S
        while time.monotonic() < end:
            reply = self._read(end)
            if reply.get("id") == wanted:
                if "error" in reply:
                    raise BrowserError(f"{method}: {reply['error']['message']}")
                result: dict[str, Any] = reply["result"]
                return result
        raise BrowserError(f"{method}: no answer in {TIMEOUT_S:.0f} s")

    def _read(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0.0, end - time.monotonic()))
            chunk = os.read(self._in, 1 << 20) if ready else b""
            if not chunk:
                raise BrowserError("the browser ended or is silent")
            self._buffer += chunk
        raw, self._buffer = self._buffer.split(b"\0", 1)
        message: dict[str, Any] = json.loads(raw)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, method: str, params: Mapping[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.errors.append(
                str(params["exceptionDetails"].get("exception", {}).get("description") or params["exceptionDetails"]["text"])
            )
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.errors.append(" ".join(str(a.get("value", a.get("description"))) for a in params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"][:200])

    def show(self, width: int = 1280, height: int = 900, *, dark: bool = False, scale: float = 1, mobile: bool = False) -> None:
        """Set the window's size in CSS pixels and the preferred colour scheme."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=mobile)
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    def open(self, path: Path | str, *, ready: str = "document.readyState === 'complete'", at: str = "") -> None:
        """Load a local file, or an address of this machine, and wait until the expression `ready` is true. `at`: the address's fragment."""
        url = path if isinstance(path, str) else path.resolve().as_uri()
        self._call("Page.navigate", url=url + at)
        end = time.monotonic() + TIMEOUT_S
        while not self.run(f"document.documentElement !== null && location.protocol !== 'about:' && ({ready})"):
            if time.monotonic() > end:
                raise BrowserError(f"{url}: never became ready")
            time.sleep(0.05)

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        r = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in r:
            raise BrowserError(r["exceptionDetails"].get("exception", {}).get("description", "exception"))
        return r["result"].get("value")

    def wait(self, expression: str, seconds: float = 8.0) -> None:
        """Until a JavaScript expression is true; between two pages there is none."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if self.run(expression):
                    return
            except BrowserError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"never true: {expression}")

    def press(self, key: str) -> None:
        """Press one key on whatever has the focus."""
        text = key if len(key) == 1 else ""
        self._call("Input.dispatchKeyEvent", type="keyDown", key=key, text=text)
        self._call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def picture(self, path: Path | None = None, *, whole: bool = False) -> bytes:
        """A PNG of the window, or of the whole page."""
        png = base64.b64decode(self._call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"])
        if path:
            path.write_bytes(png)
        return png

    def pdf(self) -> bytes:
        """The page as it prints."""
        return base64.b64decode(self._call("Page.printToPDF", printBackground=True)["data"])
