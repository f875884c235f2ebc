"""Video files below allowed folders, opened so that nothing outside them can be reached, and parts of them for players that seek.

A path is refused where it climbs out, is absolute, leads out through a link, is no regular file, or is no video. Every folder on the way
is opened relative to the one before without following links, so a path changed in between gains nothing.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from harness.report.browse.media import PLAYABLE

CONTENT_TYPES = {
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".webm": "video/webm",
    ".mkv": "video/x-matroska",
    ".mov": "video/quicktime",
    ".avi": "video/x-msvideo",
    ".ogv": "video/ogg",
}
_FLAGS = (
    os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
)
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


class NotAllowed(Exception):
    """A path that is not served. Why is for tests and the curious; the client is told "not found" all the same."""


@dataclass(frozen=True)
class Part:
    """Bytes `first` to `last` (included) of a file."""

    first: int
    last: int

    @property
    def length(self) -> int:
        return self.last - self.first + 1


def is_plain(relative: str) -> bool:
    """Whether a path is made of ordinary names only: nothing that climbs, starts at the top, or hides a separator."""
    if not relative or "\0" in relative or "\\" in relative or len(relative) > 4096:
        return False
    return all(part not in ("", ".", "..") and ":" not in part for part in relative.split("/"))


def open_video(root: Path, relative: str) -> BinaryIO:
    """A video file below `root`, open for reading.

    Raises:
        NotAllowed: for every path that is not served, see the module.
    """
    if not is_plain(relative):
        raise NotAllowed("not a plain relative path")
    if Path(relative).suffix.lower() not in PLAYABLE:
        raise NotAllowed("not a video")
    try:
        top = root.resolve(strict=True)
        path = (top / relative).resolve(strict=True)
        if not path.is_relative_to(top):
            raise NotAllowed("leads out of the folder")
        if path.suffix.lower() not in PLAYABLE and not _is_blob(path):
            raise NotAllowed("not a video")
        handle = _open_below(top, path.relative_to(top).parts)
    except (OSError, RuntimeError, ValueError) as e:
        raise NotAllowed(str(e)) from e
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise NotAllowed("not a regular file")
    return os.fdopen(handle, "rb")


def _is_blob(path: Path) -> bool:
    """A hub cache keeps a file under its hash and links to it by name."""
    return path.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{40,64}", path.name) is not None


def _open_below(top: Path, parts: tuple[str, ...]) -> int:
    if os.open not in os.supports_dir_fd:  # Windows
        return os.open(top.joinpath(*parts), _FLAGS)
    handle = os.open(top, _FLAGS)
    try:
        for part in parts:
            inner = os.open(part, _FLAGS, dir_fd=handle)
            os.close(handle)
            handle = inner
    except OSError:
        os.close(handle)
        raise
    return handle


def part_asked(header: str | None, size: int) -> Part | None:
    """The part that a Range header asks for; None for the whole file: no header, several parts, or no range of bytes at all.

    Raises:
        ValueError: the range lies outside of the file (HTTP 416).
    """
    found = _RANGE.fullmatch(header.strip()) if header else None
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        length = min(int(found[2]), size)
        if length == 0:
            raise ValueError("no byte of the file is asked for")
        return Part(size - length, size - 1)
    first, last = int(found[1]), int(found[2]) if found[2] else size - 1
    if found[2] and last < first:
        return None  # not a range: RFC 9110 has it ignored
    if first >= size:
        raise ValueError("starts behind the file's end")
    return Part(first, min(last, size - 1))
