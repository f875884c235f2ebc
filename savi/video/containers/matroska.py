"""Matroska and WebM by their elements (RFC 9559, RFC 8794): whether the file's end is missing, and whether its checksums are right."""

from __future__ import annotations

import zlib
from typing import BinaryIO

from savi.video.containers.sizes import amount, shorter

_SEGMENT = b"\x18\x53\x80\x67"
_PARTS = {
    bytes.fromhex(name)
    for name in ("114d9b74", "1549a966", "1654ae6b", "1f43b675", "1c53bb6b", "1043a770", "1941a469", "1254c367", "ec", "bf")
}
"""What a segment consists of: seek head, info, tracks, clusters, cues, chapters, attachments, tags, room."""
_CRC_32 = b"\xbf\x84"
"""The first element inside another, where there is one: CRC-32 of all that follows in it."""
_PIECE = 1 << 20


def matroska_cut(file: BinaryIO, size: int) -> str | None:
    """Why the end of the file must be missing, or None. All ones is an unknown length, as live recordings write it."""
    start = _segment(file, size)
    if isinstance(start, str):
        return start
    return None if start is None or start[1] is None else shorter(size, than=start[0] + start[1])


def matroska_damage(file: BinaryIO, size: int) -> str | None:
    """The first part of the segment whose checksum is wrong, or None. FFmpeg writes checksums into Matroska, and reads none."""
    start = _segment(file, size)
    if start is None or isinstance(start, str):
        return None
    position = start[0]
    end = size if start[1] is None else min(size, position + start[1])
    while position < end:
        file.seek(position)
        name = _name(file)
        length = _number(file) if name else None
        if length is None:
            return None
        if name not in _PARTS:
            return f"there is no such part as that at {amount(position)}"
        inside = file.tell()
        if file.read(2) == _CRC_32:
            stored, found, left = int.from_bytes(file.read(4), "little"), 0, length - 6
            while left > 0 and (piece := file.read(min(left, _PIECE))):
                found, left = zlib.crc32(piece, found), left - len(piece)
            if found != stored:
                return f"the checksum of its part at {amount(position)} is wrong"
        position = inside + length
    return None


def _segment(file: BinaryIO, size: int) -> tuple[int, int | None] | str | None:
    """(start, length or None where unknown) of the segment; words where the file was cut before it, None where it cannot be told."""
    file.seek(4)
    length = _number(file)
    if length is None:
        return None
    file.seek(length, 1)
    if file.read(4) != _SEGMENT:
        return f"truncated at {amount(size)}: it has no segment" if file.tell() >= size else None
    length = _number(file)
    return file.tell(), length


def _name(file: BinaryIO) -> bytes:
    """An element's ID, or nothing where there is none."""
    first = file.read(1)
    return first + file.read(8 - first[0].bit_length()) if first and first[0] >= 16 else b""


def _number(file: BinaryIO) -> int | None:
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    extra = 8 - first[0].bit_length()
    rest = file.read(extra)
    bits = 7 * (extra + 1)
    value = int.from_bytes(first + rest, "big") & ((1 << bits) - 1)
    return None if len(rest) < extra or value == (1 << bits) - 1 else value
