"""Which container a file is, and what its own lengths, tables and checksums say of its state."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from savi.video.containers.matroska import matroska_cut, matroska_damage
from savi.video.containers.mp4 import mp4_cut, mp4_damage
from savi.video.containers.sizes import shorter

_PACKET = 188
"""Bytes of a packet of an MPEG transport stream."""
_EBML = b"\x1a\x45\xdf\xa3"


@dataclass(frozen=True)
class Container:
    """`kind` is "mp4", "matroska", "avi", "mpegts", "gif" or None for any other; `cut` says in words why the end must be missing;
    `damage` what in it contradicts itself."""

    kind: str | None
    cut: str | None = None
    damage: str | None = None


def inspect(path: str | Path) -> Container:
    """Name the container, and find a missing end or damage outside of the pictures.

    Raises:
        OSError: the file cannot be read.
    """
    with Path(path).open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        head = file.read(12)
        if head[4:8] == b"ftyp":
            cut = mp4_cut(file, size)
            return Container("mp4", cut, None if cut else mp4_damage(file, size))
        if head[:4] == _EBML:
            cut = matroska_cut(file, size)
            return Container("matroska", cut, None if cut else matroska_damage(file, size))
        if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
            return Container("avi", shorter(size, than=8 + int.from_bytes(head[4:8], "little")))
        if head[:1] == b"G" and _is_transport_stream(file):
            return Container("mpegts", f"truncated: {size % _PACKET} bytes are left of its last packet" if size % _PACKET else None)
        if head[:4] == b"GIF8":
            file.seek(max(0, size - 1024))
            end_there = b";" in file.read()[-16:]  # a few bytes may follow it
            return Container("gif", None if end_there else "truncated: its end mark is missing")
    return Container(None)


def _is_transport_stream(file: BinaryIO) -> bool:
    file.seek(0)
    start = file.read(4 * _PACKET)
    return start[::_PACKET] == b"GGGG"
