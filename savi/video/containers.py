"""What a video file's outermost bytes say about it, read without a decoder: which container it is, and whether its end is missing.

FFmpeg opens a file that was cut off and reports the cut, if at all, as a decoding error somewhere inside. The outer boxes of the usual
containers carry their own lengths, so a missing end is seen exactly and at once. The module must not decode anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_EBML = b"\x1a\x45\xdf\xa3"
_SEGMENT = b"\x18\x53\x80\x67"
_NEEDED_BOXES = {b"mdat", b"moov", b"moof"}
_MAX_BOXES = 100_000
"""A fragmented file has one box pair a few seconds; more than this is not a file worth walking."""


@dataclass(frozen=True)
class Container:
    """`kind` is "mp4", "matroska", "avi" or None for any other; `cut` says in words why the end must be missing, or is None;
    `damage` what in it contradicts itself."""

    kind: str | None
    cut: str | None
    damage: str | None = None


def inspect(path: str | Path) -> Container:
    """Name the container and find a missing end, from its own lengths.

    Raises:
        OSError: the file cannot be read.
    """
    with Path(path).open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        head = file.read(12)
        if head[4:8] == b"ftyp":
            return Container("mp4", _mp4_cut(file, size))
        if head[:4] == _EBML:
            return Container("matroska", _matroska_cut(file, size))
        if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
            return Container("avi", _short(8 + int.from_bytes(head[4:8], "little"), size))
    return Container(None, None)


def _short(expected: int, size: int) -> str | None:
    return f"truncated at {_amount(size)} of at least {_amount(expected)}" if expected > size else None


def _amount(size: int) -> str:
    return f"{size} bytes" if size < 10_000 else f"{size / 1000:.0f} kB" if size < 10_000_000 else f"{size / 1e6:.0f} MB"


def _mp4_boxes(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int]]:
    """The outer boxes (ISO/IEC 14496-12, section 4.2) as (type, end position by its own length)."""
    position = 0
    for _ in range(_MAX_BOXES):
        file.seek(position)
        head = file.read(16)
        if len(head) < 8:
            return
        length = int.from_bytes(head[:4], "big")
        if length == 1 and len(head) == 16:
            length = int.from_bytes(head[8:], "big")
        elif length == 0:
            length = size - position
        if length < 8:
            return
        position += length
        yield head[4:8], position


def _mp4_cut(file: BinaryIO, size: int) -> str | None:
    indexed = False
    for kind, end in _mp4_boxes(file, size):
        if end > size and kind in _NEEDED_BOXES:
            return _short(end, size)
        indexed = indexed or kind in {b"moov", b"moof"}
    return None if indexed else f"truncated at {_amount(size)}: its index (moov box) is missing"


def _matroska_cut(file: BinaryIO, size: int) -> str | None:
    """EBML header, then the segment with its length (RFC 8794, section 6; all ones = unknown, as live recordings write it)."""
    file.seek(4)
    length = _ebml_size(file)
    if length is None:
        return None
    file.seek(length, 1)
    if file.read(4) != _SEGMENT:
        return f"truncated at {_amount(size)}: it has no segment" if file.tell() >= size else None
    length = _ebml_size(file)
    return None if length is None else _short(file.tell() + length, size)


def _ebml_size(file: BinaryIO) -> int | None:
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    extra = 8 - first[0].bit_length()
    rest = file.read(extra)
    bits = 7 * (extra + 1)
    value = int.from_bytes(first + rest, "big") & ((1 << bits) - 1)
    return None if len(rest) < extra or value == (1 << bits) - 1 else value
