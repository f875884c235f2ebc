"""Which looks are alike: every frame of one side against every frame of the other by Hamming distance, then the small pictures of those
that are near. Exact, no index: four thousand videos against twelve thousand take minutes on two cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from benchmarks.overlap.hashes import SIDE, Hashes, Look, Pictures, mirrored

NEAR_BITS = 10
"""Frames that differ in at most so many of 64 bits are looked at closer."""
ALIKE = 0.97
"""Correlation of two small pictures from which on they show the same."""
SHARE = 0.3
"""Share of the frames of the video with fewer frames that must be alike."""
LEAST = 2
"""Frames that must be alike (or all there are)."""
_ROWS = 512


@dataclass(frozen=True)
class Pair:
    """Two videos that look alike: positions in the two lists, the share of alike frames, and whether one mirrors the other."""

    first: int
    second: int
    share: float
    mirrored: bool


def find_pairs(first: Sequence[Look], second: Sequence[Look], *, workers: int = 2) -> list[Pair]:
    """Pairs of `first` and `second` that look alike, best first."""
    if not first or not second:
        return []
    a, owner_a, pictures_a = _joined(first)
    b, owner_b, pictures_b = _joined(second)
    out: dict[tuple[int, int], Pair] = {}
    for flip in (False, True):
        query = mirrored(a) if flip else a
        shown = pictures_a[:, :, ::-1] if flip else pictures_a
        votes: dict[tuple[int, int], set[int]] = {}
        starts = range(0, len(query), _ROWS)
        with ThreadPoolExecutor(workers) as pool:
            for rows, columns in pool.map(_near, [query[i : i + _ROWS] for i in starts], repeat(b), starts):
                same = _correlation(shown[rows], pictures_b[columns]) >= ALIKE
                for x, y in zip(rows[same].tolist(), columns[same].tolist(), strict=True):
                    votes.setdefault((int(owner_a[x]), int(owner_b[y])), set()).add(x)
        for (i, j), frames in votes.items():
            fewer = min(len(first[i].hashes), len(second[j].hashes))
            share = min(1.0, len(frames) / fewer)
            if len(frames) >= min(LEAST, fewer) and share >= SHARE and ((i, j) not in out or share > out[i, j].share):
                out[i, j] = Pair(i, j, share, flip)
    return sorted(out.values(), key=lambda p: (-p.share, p.first, p.second))


def _joined(looks: Sequence[Look]) -> tuple[Hashes, NDArray[np.intp], Pictures]:
    owner = np.repeat(np.arange(len(looks)), [len(x.hashes) for x in looks])
    return np.concatenate([x.hashes for x in looks]), owner, np.concatenate([x.pictures for x in looks])


def _near(query: Hashes, other: Hashes, start: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """(rows, columns) of frames within `NEAR_BITS`; numpy lets go of the interpreter's lock, so threads share the work."""
    rows: list[NDArray[np.intp]] = []
    columns: list[NDArray[np.intp]] = []
    for i, value in enumerate(query):
        found = np.flatnonzero(np.bitwise_count(other ^ value) <= NEAR_BITS)
        if len(found):
            rows.append(np.full(len(found), start + i))
            columns.append(found)
    if not rows:
        return np.empty(0, np.intp), np.empty(0, np.intp)
    return np.concatenate(rows), np.concatenate(columns)


def _correlation(a: Pictures, b: Pictures) -> NDArray[np.float64]:
    """Correlation of pictures [N, SIDE, SIDE, 3], pair by pair."""
    x = a.reshape(len(a), 3 * SIDE * SIDE).astype(np.float64)
    y = b.reshape(len(b), 3 * SIDE * SIDE).astype(np.float64)
    x -= x.mean(1, keepdims=True)
    y -= y.mean(1, keepdims=True)
    scale = np.sqrt((x * x).sum(1) * (y * y).sum(1))
    return np.asarray((x * y).sum(1) / np.where(scale > 0, scale, np.inf))
