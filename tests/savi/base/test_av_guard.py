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


@pytest.mark.parametrize("read", READERS, ids=["doctor", "overlap", "report"])
def test_a_list_of_other_files_is_no_video(tmp_path: Path, read: Callable[[Path], object]) -> None:
    write_clip(tmp_path / "clip.mp4", grey_frames(12))
    listing = tmp_path / "list.mp4"
    for text in ("ffconcat version 1.0\nfile clip.mp4\n", "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.2,\nclip.mp4\n#EXT-X-ENDLIST\n"):
        listing.write_text(text)
        assert not read(listing)


@pytest.mark.parametrize("read", READERS, ids=["doctor", "overlap", "report"])
def test_a_picture_above_the_limit_is_not_decoded(tmp_path: Path, read: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch) -> None:
    clip = write_clip(tmp_path / "clip.mp4", grey_frames(12))
    monkeypatch.setenv("SAVI_MAX_PIXELS", str(64 * 48 - 1))
    assert not read(clip)
    monkeypatch.setenv("SAVI_MAX_PIXELS", str(64 * 48))
    assert read(clip)
