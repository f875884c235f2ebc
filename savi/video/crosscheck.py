"""Other decoders than PyAV, for those who want them: their frames are taken only where they are those that PyAV gives.

decord counts frames by itself and reports no damage. It returns other frames than asked for from MPEG-4 and MPEG-2, from H.264 and HEVC
whose groups need pictures from before their key frame (with some, others at each read), and from broken files; it cannot open AV1 or files
without a duration. Where it is right its pixels are PyAV's, byte for byte. torchcodec is its successor and optional.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from savi.video.frames import Decoder, Pixels
from savi.video.track import Track

TRUSTED_CODECS = {"decord": {"h264", "hevc", "vp8", "vp9"}, "torchcodec": {"h264", "hevc", "vp8", "vp9", "av1", "libdav1d"}}
TRUSTED_CONTAINERS = {"mp4", "matroska"}
_LEVELS = 2
"""A pixel may differ by so much, of 255: decoders round colours in their own way."""


def cross_checked(decoder: Decoder, file: Path, track: Track, indices: Sequence[int], pixels: Pixels) -> bool:
    """Replace `pixels` [T, H, W, 3] by those of another decoder where it can be trusted, and say whether they were.

    Trusted is what is known right: codec and container, a single video track, all its frames shown and not turned, as many frames at the
    same times, and each picture that of PyAV.
    """
    codec_known = track.codec.removeprefix("lib") in TRUSTED_CODECS[decoder] or track.codec in TRUSTED_CODECS[decoder]
    if not codec_known or track.kind not in TRUSTED_CONTAINERS or not track.alone or len(track.shown) < len(track.packets):
        return False
    wanted = sorted(set(indices))
    found = (_by_decord if decoder == "decord" else _by_torchcodec)(file, track, wanted)
    if found is None:
        return False
    place = {index: number for number, index in enumerate(wanted)}
    other = found[[place[index] for index in indices]]
    if other.shape != pixels.shape or not all(_same(a, b) for a, b in zip(other, pixels, strict=True)):
        return False
    pixels[:] = other
    return True


def _same(one: Pixels, other: Pixels) -> bool:
    return int(np.abs(one.astype(np.int16) - other).max()) <= _LEVELS


def _times_s(track: Track, wanted: Sequence[int]) -> list[float]:
    """When the wanted frames are shown, in seconds after the first."""
    times = [track.packets[number].pts or 0 for number in track.shown]
    return [(times[index] - times[0]) * track.tick_s for index in wanted]


def _by_decord(file: Path, track: Track, wanted: Sequence[int]) -> Pixels | None:
    try:
        import decord
    except ModuleNotFoundError:  # it has wheels for x86-64 Linux and Windows alone
        return None
    decord.logging.set_level(decord.logging.FATAL)
    try:
        reader = decord.VideoReader(str(file), ctx=decord.cpu(0), num_threads=1)
        if len(reader) != len(track.shown):
            return None
        starts = np.asarray(reader.get_frame_timestamp([0, *wanted]))[:, 0]
        if not np.allclose(starts[1:] - starts[0], _times_s(track, wanted), atol=0.5 / track.fps):
            return None
        batch = reader.get_batch(wanted)
    except (decord.DECORDError, RuntimeError, StopIteration, UnicodeError):
        return None
    found: Pixels = batch.asnumpy() if hasattr(batch, "asnumpy") else np.asarray(batch)  # a bridge may have made it a tensor
    return found


def _by_torchcodec(file: Path, track: Track, wanted: Sequence[int]) -> Pixels | None:
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, RuntimeError, OSError):  # absent, or its libraries do not fit torch or FFmpeg
        return None
    try:
        reader: Any = VideoDecoder(str(file), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
        if reader.metadata.num_frames != len(track.shown):
            return None
        batch = reader.get_frames_at([0, *wanted])
        starts = np.asarray(batch.pts_seconds)
        if not np.allclose(starts[1:] - starts[0], _times_s(track, wanted), atol=0.5 / track.fps):
            return None
        found: Pixels = np.asarray(batch.data)[1:]
    except (RuntimeError, ValueError, IndexError, UnicodeError):
        return None
    return found
