"""The README's recording: drawn from what commands said, whole, and small; asks the reader's browser for nothing."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.documents.blocks import ROOT
from tests.documents.recording import COMMANDS, OUT, PAUSE_S, Line, draw, record

SVG = "{http://www.w3.org/2000/svg}"


def words(svg: str) -> str:
    """The text of a picture, as a reader sees it."""
    return " ".join(" ".join(ET.fromstring(svg).itertext()).replace("\xa0", " ").split())


def test_what_a_command_says_is_recorded(tmp_path: Path) -> None:
    lines = record(("python -c \"print('a <b> & c'); import sys; print('last', file=sys.stderr)\"",), tmp_path)
    assert [line.text for line in lines[1:]] == ["a <b> & c", "last", ""]
    assert lines[0].typed
    assert "a <b> & c last" in words(draw(lines, "title"))
    with pytest.raises(RuntimeError, match="exit code 7"):
        record(("python -c \"print('gone'); raise SystemExit(7)\"",), tmp_path)


def test_every_line_appears_after_the_one_before_it_and_no_pause_is_long() -> None:
    lines = [Line("one", 0.0, typed=True), Line("two " * 50, 100.0), Line("three", 100.1), Line("", 100.2)]
    svg = draw(lines, "title")
    shown = {int(n): float(s) for n, s in re.findall(r'line-(\d+)\)" style="animation:show 1ms ([\d.]+)s', svg)}
    assert shown == {0: 0.5, 1: 0.5 + PAUSE_S, 2: 0.5 + PAUSE_S, 3: pytest.approx(0.6 + PAUSE_S), 4: pytest.approx(0.7 + PAUSE_S)}
    assert "one two" in words(svg)
    assert "three" in words(svg)


def test_the_readmes_recording_is_of_its_commands() -> None:
    svg = OUT.read_text(encoding="utf-8")
    said = words(svg)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert OUT.relative_to(ROOT).as_posix() in readme
    for command in COMMANDS:
        assert " ".join(command.split()) in said.replace("$ ", "")
        assert command.removesuffix(" --scale smoke") in readme
    assert "red C" in said
    assert len(svg.encode()) < 150_000
    assert "http" not in re.sub(r"xmlns=\S+|<!--.*?-->", "", svg), "nothing is fetched"
