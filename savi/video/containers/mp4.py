"""MP4 and MOV by their boxes (ISO/IEC 14496-12): whether the file's end is missing, and whether its tables contradict each other.

There is no checksum, and decoders believe the tables. But the tables say many things twice: the number of samples, which bytes are whose,
where the film ends. A damaged table nearly always disagrees with another.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from savi.video.containers.sizes import amount, shorter

_NEEDED_BOXES = {b"mdat", b"moov", b"moof"}
_PARENTS = {b"mdia", b"minf", b"stbl", b"edts"}
_MAX_BOXES = 100_000
"""A fragmented file has one box pair a few seconds; more than this is not a file worth walking."""
_MAX_INDEX = 256 << 20

Numbers = NDArray[np.int64]


class _DamageError(Exception):
    """What is wrong, in words."""


def mp4_cut(file: BinaryIO, size: int) -> str | None:
    """Why the end of the file must be missing, or None."""
    indexed = False
    for kind, _, end in _boxes(file, size):
        if end > size and kind in _NEEDED_BOXES:
            return shorter(size, than=end)
        indexed = indexed or kind in {b"moov", b"moof"}
    return None if indexed else f"truncated at {amount(size)}: its index (moov box) is missing"


def mp4_damage(file: BinaryIO, size: int) -> str | None:
    """What in the file contradicts itself, or None."""
    boxes = list(_boxes(file, size))
    fragmented = any(kind == b"moof" for kind, _, _ in boxes)
    media = [(start, stop) for kind, start, stop in boxes if kind == b"mdat"]
    try:
        _check_fragments(file, [(start, stop) for kind, start, stop in boxes if kind == b"moof"])
        for kind, start, stop in boxes:
            if kind == b"moov" and stop - start <= _MAX_INDEX:
                file.seek(start)
                inside = list(_children(file.read(stop - start)))
                fragmented |= any(name == b"mvex" for name, _ in inside)
                ticks_per_s = next((_ticks_per_s(content) for name, content in inside if name == b"mvhd"), 0)
                for name, content in inside:
                    if name == b"trak":
                        _check_track(dict(_tables(content)), media, ticks_per_s)
    except _DamageError as error:
        return str(error)
    end = min(boxes[-1][2], size)
    file.seek(end)
    if fragmented and len(rest := file.read(4096)) >= 8 and rest.strip(b"\0"):  # what follows may be fragments; a whole index needs none
        return f"its boxes end at {amount(end)} of {amount(size)}"
    return None


def _boxes(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int, int]]:
    """The outer boxes as (type, start of content, end by its own length)."""
    position = 0
    for _ in range(_MAX_BOXES):
        file.seek(position)
        head = file.read(16)
        if len(head) < 8 or not head[4:8].isalnum():
            return
        length, content = int.from_bytes(head[:4], "big"), 8
        if length == 1 and len(head) == 16:
            length, content = int.from_bytes(head[8:], "big"), 16
        elif length == 0:
            length = size - position
        if length < content:
            return
        yield head[4:8], position + content, position + length
        position += length


def _children(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = 0
    while position + 8 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        if length < 8 or position + length > len(data):
            if data[position:].strip(b"\0"):
                raise _DamageError("its index (moov box) does not fit together")
            return
        yield data[position + 4 : position + 8], data[position + 8 : position + length]
        position += length


def _tables(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """All boxes of a track, those that only hold others opened."""
    for kind, content in _children(data):
        if kind in _PARENTS:
            yield from _tables(content)
        else:
            yield kind, content


def _rows(content: bytes, columns: int, *, skip: int = 4, wide: bool = False) -> Numbers:
    """A table's rows [N, columns]: after `skip` bytes their number, then the rows."""
    count = int.from_bytes(content[skip : skip + 4], "big")
    kind = np.dtype(">u8" if wide else ">u4")
    need = count * columns * kind.itemsize
    data = content[skip + 4 : skip + 4 + need]
    if len(data) < need:
        raise _DamageError("a table of its index is shorter than it says")
    return np.frombuffer(data, kind).astype(np.int64).reshape(count, columns)


def _check_fragments(file: BinaryIO, fragments: list[tuple[int, int]]) -> None:
    """Fragments are numbered, and each has tracks with runs of samples."""
    numbers = []
    for start, stop in fragments:
        file.seek(start)
        inside = list(_children(file.read(min(stop - start, _MAX_INDEX))))
        tracks = [dict(_children(content)) for name, content in inside if name == b"traf"]
        if [name for name, _ in inside[:1]] != [b"mfhd"] or not tracks or not all({b"tfhd", b"trun"} <= track.keys() for track in tracks):
            raise _DamageError(f"its fragment at {amount(start)} has no samples")
        numbers.append(int.from_bytes(inside[0][1][4:8], "big"))
    if len(set(numbers)) == len(numbers) and any(after != before + 1 for before, after in pairwise(numbers)):
        raise _DamageError("a fragment is missing or out of order")


def _check_track(tables: dict[bytes, bytes], media: list[tuple[int, int]], ticks_per_s: int) -> None:
    """Raises _DamageError where the tables of a video track disagree. Tracks of fragments have empty ones."""
    if tables.get(b"hdlr", b"")[8:12] != b"vide" or b"stsz" not in tables:
        return
    fixed = int.from_bytes(tables[b"stsz"][4:8], "big")
    count = int.from_bytes(tables[b"stsz"][8:12], "big")
    if not count:
        return
    sizes = np.full(count, fixed, np.int64) if fixed and count < 1 << 24 else _rows(tables[b"stsz"], 1, skip=8)[:, 0]
    steps = _rows(tables[b"stts"], 2) if b"stts" in tables else np.zeros((0, 2), np.int64)
    delays = _rows(tables[b"ctts"], 2) if b"ctts" in tables else np.array([[count, 0]], np.int64)
    keys = _rows(tables[b"stss"], 1)[:, 0] if b"stss" in tables else np.zeros(0, np.int64)
    starts = _rows(tables[b"co64"], 1, wide=True)[:, 0] if b"co64" in tables else _rows(tables.get(b"stco", bytes(8)), 1)[:, 0]
    per_chunk = _per_chunk(_rows(tables.get(b"stsc", bytes(8)), 3), len(starts))
    for name, said in (("stts", steps[:, 0].sum()), ("ctts", delays[:, 0].sum()), ("stsc", per_chunk.sum())):
        if said != count:
            raise _DamageError(f"its index names {count:,} samples in one table (stsz) and {said:,} in another ({name})")
    if len(keys) and (keys[0] < 1 or keys[-1] > count or (np.diff(keys) < 1).any()):
        raise _DamageError("its table of key frames (stss) is out of order")
    ends = starts + np.add.reduceat(sizes, np.concatenate([[0], np.cumsum(per_chunk)[:-1]]))
    inside = np.zeros(len(starts), bool)
    for first, last in media:
        inside |= (starts >= first) & (ends <= last)
    order = np.argsort(starts, kind="stable")
    if not inside.all() or (ends[order][:-1] > starts[order][1:]).any():
        raise _DamageError("its index points at bytes that are not its pictures")
    signed = (delays[:, 1] ^ (1 << 31)) - (1 << 31)
    if np.abs(signed).max() > steps[:, 0] @ steps[:, 1]:
        raise _DamageError("its index shows a picture later than the film lasts")
    _check_edits(tables, np.repeat(steps[:, 1], steps[:, 0]), np.repeat(signed, delays[:, 0]), ticks_per_s)


def _per_chunk(runs: Numbers, chunks: int) -> Numbers:
    """Samples of each chunk from rows of (first chunk, samples a chunk, description)."""
    firsts = np.append(runs[:, 0], chunks + 1)
    repeats = np.diff(firsts)
    if not len(runs) or firsts[0] != 1 or (repeats < 1).any() or (runs[:, 1] < 1).any():
        raise _DamageError("its table of chunks (stsc) is out of order")
    return np.repeat(runs[:, 1], repeats)


def _check_edits(tables: dict[bytes, bytes], steps: Numbers, delays: Numbers, ticks_per_s: int) -> None:
    """A single edit must not reach beyond the last picture; `steps` and `delays` are those of each sample, in the track's ticks."""
    edits, header = tables.get(b"elst", b""), tables.get(b"mdhd", b"")
    wide = edits[:1] == b"\1"
    rows = [edits[at : at + (20 if wide else 12)] for at in range(8, len(edits), 20 if wide else 12)]
    half = 8 if wide else 4
    shown = [
        (int.from_bytes(row[:half], "big"), start)
        for row in rows
        if (start := int.from_bytes(row[half : 2 * half], "big", signed=True)) >= 0
    ]
    track_ticks_per_s = _ticks_per_s(header)
    if not track_ticks_per_s:
        raise _DamageError("its track has no clock")
    if len(shown) != 1 or not shown[0][0] or not ticks_per_s:
        return
    duration, start = shown[0]
    end = int((np.cumsum(steps) + delays).max())
    if start + duration * track_ticks_per_s / ticks_per_s > end + 0.75 * steps.mean() + track_ticks_per_s / ticks_per_s:
        raise _DamageError("its edit list reaches beyond its pictures")


def _ticks_per_s(header: bytes) -> int:
    """The clock of a movie or track header."""
    at = 20 if header[:1] == b"\1" else 12
    return int.from_bytes(header[at : at + 4], "big")
