"""The picture of the report in the README: `tox -e picture -- RUN`, in a headless Chromium.

A module of the tests, as it needs their browser; the package itself never starts one.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

from harness.report.page import write_report
from savi.base.files import write_bytes_atomic
from tests.harness.browser import READY, Browser, find_browser

SIZE = (1280, 980)
COLOURS = 96


def take_picture(run: Path, out: Path) -> int:
    """Write a PNG of the report's question browser and return its size in bytes.

    Raises:
        SystemExit: no browser is installed.
    """
    binary = find_browser()
    if binary is None:
        raise SystemExit("no Chromium or Chrome is installed here")
    with tempfile.TemporaryDirectory() as folder, Browser(binary) as browser:
        page = write_report(run, Path(folder) / "report.html")
        browser.show(*SIZE)
        browser.open(page, ready=READY)
        browser.run("document.documentElement.style.scrollBehavior = 'auto'; document.getElementById('questions').scrollIntoView()")
        browser.run("new Promise(r => setTimeout(r, 1500))")  # the video shows its first frame
        png = browser.picture()
    with Image.open(io.BytesIO(png)) as whole:
        few = whole.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
        data = io.BytesIO()
        few.save(data, "PNG", optimize=True)
    write_bytes_atomic(out, data.getvalue())
    return len(data.getvalue())


if __name__ == "__main__":
    run, out = Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "docs/report.png")
    print(f"{out}: {take_picture(run, out):,} bytes")
