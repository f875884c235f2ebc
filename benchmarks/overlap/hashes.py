"""What a video looks like, in 64 bits a frame: the signs of a frame's lowest cosine coefficients, and a small picture to check with.

Signs survive re-encoding and scaling; mirroring a frame flips the signs of the odd horizontal frequencies and nothing else, so a mirrored
video is found without decoding again. Frames are taken at a fixed rate, so that a trimmed copy shares some of them nearly.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from savi.base.av_guard import open_video
from savi.base.errors import ExitCode, SaviError

FRAMES = 32
"""Most frames taken of a video."""
RATE = 2.0
"""Frames a second, where that makes no more than `FRAMES`."""
SIDE = 16
"""Width and height of the picture kept of each frame, in colour."""
_GRID = 32
_SKIP_S = 4.0
"""Seconds between frames from which on seeking is quicker than decoding through."""
_FLAT = 3.0
"""Standard deviation (of 255) below which a frame shows nothing to compare."""

_LUMA = np.array([0.299, 0.587, 0.114])

Hashes = NDArray[np.uint64]
Pictures = NDArray[np.uint8]


class UnreadableVideoError(SaviError):
    """A video of which no frame can be decoded."""

    exit_code = ExitCode.BROKEN


@dataclass(frozen=True)
class Look:
    """Frames of a video: hashes [K] and pictures [K, SIDE, SIDE, 3]."""

    hashes: Hashes
    pictures: Pictures


NOTHING = Look(np.empty(0, np.uint64), np.empty((0, SIDE, SIDE, 3), np.uint8))
"""A video without a frame to compare."""


def look(path: Path) -> Look:
    """Decode a video and hash its frames; a video of flat frames has none.

    Raises:
        UnreadableVideoError: no frame can be decoded.
    """
    frames = np.stack(_frames(path)).astype(np.float64)
    grey = frames @ _LUMA
    frames, grey = (x[grey.std((1, 2)) >= _FLAT] for x in (frames, grey))
    if not len(grey):
        return NOTHING
    small = frames.reshape(len(frames), SIDE, _GRID // SIDE, SIDE, _GRID // SIDE, 3).mean((2, 4))
    return Look(hash_frames(grey), small.round().astype(np.uint8))


def hash_frames(grey: NDArray[np.float64]) -> Hashes:
    """Hashes [K] of grey frames [K, 32, 32]."""
    from scipy.fft import dctn

    low = dctn(grey, axes=(1, 2), norm="ortho")[:, _rows(), _columns()]
    return np.ascontiguousarray(np.packbits(low > 0, axis=1)).view(np.uint64)[:, 0]


def mirrored(hashes: Hashes) -> Hashes:
    """The hashes of the same frames seen in a mirror (left and right changed)."""
    odd = (_columns() % 2 == 1).astype(np.uint8)
    return hashes ^ np.packbits(odd).view(np.uint64)[0]


@cache
def _order() -> tuple[tuple[int, int], ...]:
    """The 64 lowest frequencies without the mean, lowest first."""
    every = sorted(((r, c) for r in range(_GRID) for c in range(_GRID)), key=lambda x: (x[0] + x[1], x))
    return tuple(every[1:65])


def _rows() -> NDArray[np.intp]:
    return np.array([r for r, _ in _order()])


def _columns() -> NDArray[np.intp]:
    return np.array([c for _, c in _order()])


def _frames(path: Path) -> list[Pictures]:
    import av

    if path.is_dir():
        return _frame_files(path)
    out: list[Pictures] = []
    try:
        with open_video(path) as (container, stream):
            stream.thread_type = "AUTO"
            step = _step(container, stream)
            for frame in itertools.islice(_sampled(container, stream, step), FRAMES):
                small = frame.reformat(width=_GRID, height=_GRID, format="rgb24", interpolation="AREA")
                out.append(small.to_ndarray())
    except (av.error.FFmpegError, IndexError, OSError, ValueError) as e:
        if not out:
            raise UnreadableVideoError(f"{path}: no frame can be decoded ({type(e).__name__}); left out of the comparison") from e
    if not out:
        raise UnreadableVideoError(f"{path}: no frame can be decoded; left out of the comparison")
    return out


def _sampled(container: Any, stream: Any, step: float) -> Iterator[Any]:
    """Frames at least `step` seconds apart; where that is long, what lies between is skipped and not decoded."""
    due, start = 0.0, float((stream.start_time or 0) * (stream.time_base or 0))
    while True:
        found = None
        for i, frame in enumerate(container.decode(stream)):
            at = frame.time - start if frame.time is not None else i / 25
            if at + 1e-6 < due:
                continue
            found, due = frame, at + step
            yield frame
            if step > _SKIP_S:
                break
        if found is None or step <= _SKIP_S:
            return
        container.seek(int((start + due) / stream.time_base), stream=stream)


def _step(container: Any, stream: Any) -> float:
    """Seconds between frames taken."""
    seconds = float(stream.duration * stream.time_base) if stream.duration else (container.duration or 0) / 1_000_000
    return max(1 / RATE if seconds > 4 else 1 / (4 * RATE), seconds / FRAMES)


def _frame_files(folder: Path) -> list[Pictures]:
    """Frames kept as picture files."""
    from PIL import Image

    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in (".jpg", ".png"))
    chosen = files[:: max(1, len(files) // FRAMES)][:FRAMES]
    if not chosen:
        raise UnreadableVideoError(f"{folder}: no frame files; left out of the comparison")
    return [np.asarray(Image.open(p).convert("RGB").resize((_GRID, _GRID), Image.Resampling.BOX)) for p in chosen]
