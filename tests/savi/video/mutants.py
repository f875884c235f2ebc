"""Films with a fault: bytes flipped, overwritten, zeroed, lost, repeated or moved, from a seed; and what their frames show."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from savi.video.frames import Frames, VideoError
from savi.video.prefetch import prefetch
from savi.video.read import read_frames
from tests.savi.video.films import Film, write_film

KINDS = ("bit", "bit", "bit", "byte", "8 bytes", "zeros", "lost", "repeated", "swapped", "cut")
OTHER_FRAME = 8.0
"""Mean levels of 255 within which a picture is taken for a frame of the clean film."""


def mutate(data: bytes, draw: random.Random) -> tuple[str, bytes]:
    """(kind of fault, the file with it)."""
    kind, out = draw.choice(KINDS), bytearray(data)
    at, length = draw.randrange(len(data)), draw.randrange(1, 400)
    if kind == "bit":
        out[at] ^= 1 << draw.randrange(8)
    elif kind == "byte":
        out[at] = draw.randrange(256)
    elif kind == "8 bytes":
        for _ in range(8):
            out[draw.randrange(len(out))] = draw.randrange(256)
    elif kind == "zeros":
        out[at : at + length] = bytes(len(out[at : at + length]))
    elif kind == "lost":
        del out[at : at + length]
    elif kind == "repeated":
        out[at:at] = out[at : at + length]
    elif kind == "swapped":
        other = draw.randrange(len(data))
        out[at : at + length], out[other : other + length] = out[other : other + length], out[at : at + length]
    else:
        del out[at:]
    return kind, bytes(out)


@dataclass
class Outcome:
    """What became of mutants: `counts` of errors by kind, of `identical` films, of those with `changed pixels` (up to garbage, at the
    right place), of those whose `length` differs though each frame is right, and of those that show another frame (`replaced`)."""

    counts: Counter[str] = field(default_factory=Counter)
    replaced: list[str] = field(default_factory=list)


def clean_frames(path: Path, length: int) -> np.ndarray:
    """Every frame of a whole film [length, H, W, 3], as numbers that can be subtracted."""
    frames = read_frames(path, num_frames=4 * length)
    by_index = dict(zip(frames.indices, frames.pixels, strict=True))
    return np.stack([by_index[index] for index in range(length)]).astype(np.int16)


def verdict(got: Frames | VideoError, clean: np.ndarray) -> str:
    if isinstance(got, VideoError):
        return f"error: {got.kind}"
    if got.pixels.shape[1:] != clean.shape[1:]:
        return "changed pixels"
    worst = "identical" if got.total == len(clean) else "other length"
    for pixels, index in zip(got.pixels, got.indices, strict=True):
        away = np.abs(clean - pixels).mean(axis=(1, 2, 3))
        own = away[index] if index < len(clean) else np.inf
        if away.min() < min(own, OTHER_FRAME) and own > OTHER_FRAME:
            return "replaced"
        worst = worst if own == 0 else "changed pixels"
    return worst


def mutants(films: Iterable[Film], count: int, seed: int, folder: Path) -> Iterator[tuple[str, Path, np.ndarray]]:
    """(name, file, clean frames) of `count` mutants, the films in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    every = list(films)
    whole = {film.name: write_film(folder, film) for film in every}
    clean = {film.name: clean_frames(whole[film.name], film.length) for film in every}
    for number in range(count):
        film = every[number % len(every)]
        kind, data = mutate(whole[film.name].read_bytes(), draw)
        path = folder / f"{number:04}-{film.name}"
        path.write_bytes(data)
        yield f"{number} {film.name} {kind}", path, clean[film.name]


def judge(films: Iterable[Film], count: int, seed: int, folder: Path) -> Outcome:
    """Read mutants as `savi pairs` reads videos."""
    made = list(mutants(films, count, seed, folder))
    outcome = Outcome()
    paths = [path for _, path, _ in made]
    for (name, _, clean), (_, got) in zip(made, prefetch(paths, num_frames=8, depth=4), strict=True):
        found = verdict(got, clean)
        outcome.counts[found] += 1
        if found == "replaced":
            outcome.replaced.append(name)
    return outcome
