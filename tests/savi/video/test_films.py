"""Every codec and container gives the frames asked for, known by the number each shows; other decoders are taken only where they do too."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from savi.video import crosscheck
from savi.video.frames import Frames, segment_indices
from savi.video.read import read_frames
from tests.savi.video.films import FILMS, Film, numbers_of, write_film

WRONG_IN_DECORD = {"h264-opengop.mp4", "h264-opengop.mkv", "h264-refresh.mkv", "hevc.mp4", "hevc-opengop.mkv", "hevc-10bit.mp4"}
"""Trusted codecs in trusted containers whose frames decord takes from elsewhere: groups that need pictures from before their key frame."""


@pytest.fixture(scope="module")
def film_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Film], Path]:
    folder = tmp_path_factory.mktemp("films")
    return cache(lambda name: write_film(folder, next(film for film in FILMS if film.name == name)))


@pytest.mark.parametrize("decoder", ["pyav", "decord", "torchcodec"])
@pytest.mark.parametrize("film", FILMS, ids=lambda film: film.name)
def test_each_frame_is_the_one_asked_for(film: Film, decoder: str, film_of: Callable[[str], Path]) -> None:
    path = film_of(film.name)
    for num_frames in (9, film.length):
        frames = read_frames(path, num_frames=num_frames, decoder=decoder)
        assert frames.total == film.length
        assert list(frames.indices) == segment_indices(film.length, num_frames)
        assert numbers_of(frames.pixels) == list(frames.indices)


def test_decord_is_taken_where_it_is_right_and_gives_the_same_bytes(film_of: Callable[[str], Path]) -> None:
    pytest.importorskip("decord", reason="decord has no wheel for this machine")
    taken = {}
    for film in FILMS:
        path = film_of(film.name)
        first, second = (read_frames(path, num_frames=9, decoder=decoder) for decoder in ("pyav", "decord"))
        assert first.decoder == "pyav"
        np.testing.assert_array_equal(first.pixels, second.pixels, err_msg=film.name)
        taken[film.name] = second.decoder
    assert taken["h264.mp4"] == taken["h264.mkv"] == taken["vp9.webm"] == "decord"
    assert {taken[name] for name in WRONG_IN_DECORD} == {"pyav"}
    assert {taken[name] for name in ("mpeg4.mp4", "mpeg2.mkv", "h264.avi", "h264.ts", "av1.mp4", "vp9-live.webm")} == {"pyav"}


def frames_by(decoder: str, path: Path, monkeypatch: pytest.MonkeyPatch, give: Callable[..., object]) -> Frames:
    """`read_frames` with a stand-in for another decoder, in this process."""
    from savi.base.limits import Limits
    from savi.video.decode import decode_video

    monkeypatch.setattr(crosscheck, f"_by_{decoder}", give)
    return decode_video(path, num_frames=9, decoder=decoder, limits=Limits())


def test_another_decoder_that_is_right_is_named(film_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = film_of("av1.mp4")
    right = read_frames(path, num_frames=9)
    frames = frames_by("torchcodec", path, monkeypatch, lambda file, track, wanted: right.pixels + (right.pixels < 250))
    assert frames.decoder == "torchcodec"
    assert not np.array_equal(frames.pixels, right.pixels)  # its own pixels, one level off


@pytest.mark.parametrize("fault", ["next frame", "one pixel", "nothing", "other size"])
def test_another_decoder_that_is_wrong_is_not_taken(fault: str, film_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = film_of("h264.mp4")
    right = read_frames(path, num_frames=9)
    other = right.pixels.copy()
    other[5, 0, 0] ^= 64
    wrong = {"next frame": np.roll(right.pixels, 1, axis=0), "one pixel": other, "nothing": None, "other size": right.pixels[:, ::2]}[fault]
    frames = frames_by("decord", path, monkeypatch, lambda file, track, wanted: wrong)
    assert frames.decoder == "pyav"
    np.testing.assert_array_equal(frames.pixels, right.pixels)
