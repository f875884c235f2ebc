"""The values of this folder: the frames of a video, the error of one that gives none, and which frame numbers are taken.

Nothing is decoded here. The folder must not know torch or any model: resizing and normalising belong to the model's family.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from savi.base.errors import ExitCode, SaviError
from savi.base.files import visible_files

Decoder = Literal["pyav", "decord", "torchcodec"]
DECODERS: tuple[str, ...] = get_args(Decoder)
Pixels = NDArray[np.uint8]
VideoErrorKind = Literal[
    "missing", "empty", "not_a_video", "no_video_stream", "zero_frames", "truncated", "unreadable", "damaged", "too_large", "timeout",
    "crashed",
]  # fmt: skip
"""`damaged`: what would be shown is not what was recorded. `too_large`, `timeout`: above the limits. `crashed`: it ended the worker."""

_SUFFIXES = "mp4 m4v f4v mov qt mkv webm avi mpg mpeg mpe m2v vob ts mts m2ts flv wmv asf 3gp 3g2 ogv gif"
VIDEO_SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES.split())


class VideoError(SaviError):
    """A file that gives no frames: `path`, a `reason` in words (equal from run to run), and its `kind` for counting."""

    def __init__(self, path: str | Path, reason: str, kind: VideoErrorKind) -> None:
        super().__init__(str(path), reason, kind)
        self.path, self.reason, self.kind = str(path), reason, kind
        self.exit_code = ExitCode.USAGE if kind == "missing" else ExitCode.BROKEN

    def __str__(self) -> str:
        return f"{printable(self.path)}: {self.reason}"


@dataclass(frozen=True, eq=False)
class Frames:
    """Frames of one video.

    `pixels`: uint8 [T, H, W, 3], RGB, in display orientation (the file's rotation applied); `indices`: the frame number of each in the
    file, a frame repeated where the clip has fewer than asked for; `fps`: the average rate; `duration_s`; `total`: frames in the file;
    `decoder`: the library that decoded these pixels ("pyav", "decord", "torchcodec"), empty where they were not read from a file.
    """

    pixels: Pixels
    indices: tuple[int, ...]
    fps: float
    duration_s: float
    total: int
    path: str
    decoder: str = ""


def printable(text: str) -> str:
    """Text for one line of any stream: bytes of a file name that are no UTF-8, and what moves a cursor, are written as \\xNN."""
    readable = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in readable)


def segment_indices(total: int, num_frames: int) -> list[int]:
    """The frame at the middle of each of `num_frames` equal segments of a clip of `total` frames; a short clip repeats frames.

    The release's rule (its `get_index`, from InternVL's `load_video`), rounding included: segments of (total - 1) / num_frames.

    Raises:
        ValueError: either number is below 1.
    """
    if total < 1 or num_frames < 1:
        raise ValueError(f"segment_indices needs at least 1 frame in and out, got total={total}, num_frames={num_frames}")
    segment = (total - 1) / num_frames
    return [int(segment / 2 + round(segment * index)) for index in range(num_frames)]


def find_videos(folder: str | Path) -> list[Path]:
    """The video files (by name) in a folder and below it, sorted by path; hidden ones left out. A link to nothing is one of them: reading
    it says that it is missing.

    Raises:
        VideoError: there is no such folder, or no video in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise VideoError(folder, "is a file, not a folder of videos" if root.exists() else "no such folder", "missing")
    videos = sorted(path for path in visible_files(root) if path.suffix.lower() in VIDEO_SUFFIXES)
    if not videos:
        raise VideoError(folder, f"no video in this folder (looked for {', '.join(sorted(VIDEO_SUFFIXES))})", "empty")
    return videos
