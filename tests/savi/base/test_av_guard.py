"""Videos that end a process which opens them without care, in all places that open some."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.data.doctor import _fault
from benchmarks.overlap.hashes import UnreadableVideoError, _frames
from harness.report.browse.frames import contact_sheet
from tests.savi.clips import grey_frames, write_clip


def hashed(path: Path) -> object:
    try:
        return _frames(path)
    except UnreadableVideoError:
        return None


READERS: list[Callable[[Path], object]] = [lambda path: _fault(path, None) is None, hashed, contact_sheet]


@pytest.mark.parametrize("read", READERS, ids=["doctor", "overlap", "report"])
def test_an_unknown_codec_is_unreadable_and_a_latin_1_title_is_not(tmp_path: Path, read: Callable[[Path], object]) -> None:
    clip = write_clip(tmp_path / "clip.mp4", grey_frames(12), title="Ete QQ")
    data = clip.read_bytes()
    assert b"Ete QQ" in data
    clip.write_bytes(data.replace(b"Ete QQ", "Été QQ".encode("latin-1")))
    assert read(clip)
    at = data.find(b"stsd") + 16
    clip.write_bytes(data[:at] + b"zzzz" + data[at + 4 :])
    assert not read(clip)
