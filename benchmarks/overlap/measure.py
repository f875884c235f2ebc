"""How well overlap is found: copies of known clips, changed as copies are, against clips that are no copies. Rates with their counts."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.micro.world.world import FPS, make_scene, render, scene_rng
from benchmarks.overlap.hashes import FRAMES, SIDE, Look, look
from benchmarks.overlap.search import find_pairs

Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class Rate:
    """Of `n` clips of a kind with one change, how many were found; of as many other clips, how many were taken for one of them."""

    clips: str
    change: str
    found: int
    n: int
    false_alarms: int


def natural_clip(seed: int, frames: int = 50, height: int = 120, width: int = 160) -> Frames:
    """A clip that looks like a filmed one: two scenes of coloured noise with the spectrum of photographs, the camera panning, something
    moving in front; frames `[T, H, W, 3]`."""
    rng = np.random.default_rng(seed)
    cut = int(rng.integers(frames // 3, 2 * frames // 3))
    out = np.empty((frames, height, width, 3), np.uint8)
    for start, end in ((0, cut), (cut, frames)):
        scene = _photograph(rng, height + 40, width + 40)
        patch = _photograph(rng, height // 3, width // 4)
        pan = rng.uniform(-0.5, 0.5, 2)
        at, speed = rng.uniform(0, 0.6, 2) * (height, width), rng.uniform(-1.5, 1.5, 2)
        for t in range(start, end):
            y, x = np.clip(np.round(20 + pan * (t - start)), 0, 40).astype(int)
            frame = scene[y : y + height, x : x + width].copy()
            py, px = np.clip(np.round(at + speed * (t - start)), 0, (height - height // 3, width - width // 4)).astype(int)
            frame[py : py + height // 3, px : px + width // 4] = patch
            out[t] = frame
    return out


def _photograph(rng: np.random.Generator, height: int, width: int) -> Frames:
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]
    fall = 1 / np.maximum(np.hypot(fy, fx), 1 / max(height, width)) ** 1.2
    channels = []
    common = rng.standard_normal((height, width))
    for _ in range(3):
        noise = np.fft.fft2(common + 0.5 * rng.standard_normal((height, width)))
        image = np.fft.ifft2(noise * fall).real
        channels.append(np.clip(127 + 50 * (image - image.mean()) / image.std(), 0, 255))
    return np.stack(channels, -1).astype(np.uint8)


def resized(frames: Frames, factor: float) -> Frames:
    from PIL import Image

    size = (round(frames.shape[2] * factor) // 2 * 2, round(frames.shape[1] * factor) // 2 * 2)
    return np.stack([np.asarray(Image.fromarray(f).resize(size, Image.Resampling.BICUBIC)) for f in frames])


def write_clip(path: Path, frames: Frames, fps: int, *, codec: str = "libx264", crf: int = 20) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.options = {"crf": str(crf)} if codec == "libx264" else {"qscale": "12"}
        stream.thread_count = 1
        for f in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(f, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


CHANGES: dict[str, Callable[[Frames], Frames]] = {
    "re-encoded (H.264, crf 36)": lambda f: f,
    "re-encoded (MPEG-4)": lambda f: f,
    "scaled to a half": lambda f: resized(f, 0.5),
    "scaled to 1.5": lambda f: resized(f, 1.5),
    "trimmed to the middle 60 %": lambda f: f[len(f) // 5 : len(f) - len(f) // 5],
    "mirrored": lambda f: f[:, :, ::-1],
    "scaled to a half, trimmed, mirrored": lambda f: resized(f[len(f) // 5 : len(f) - len(f) // 5, :, ::-1], 0.5),
}
_ENCODING: dict[str, tuple[str, int]] = {"re-encoded (H.264, crf 36)": ("libx264", 36), "re-encoded (MPEG-4)": ("mpeg4", 0)}


def _micro(index: int) -> Frames:
    return render(make_scene(scene_rng(0, index, "overlap measured")))


KINDS: dict[str, tuple[Callable[[int], Frames], int]] = {"micro world": (_micro, FPS), "real-looking": (natural_clip, 10)}


def measure(clips: int, *, progress: Callable[[int, int], None] = lambda done, total: None) -> tuple[list[Rate], dict[str, float]]:
    """Rates over `clips` clips, half of each kind, and as many others; seconds to decode and hash one clip of each kind."""
    rates: list[Rate] = []
    decode: dict[str, float] = {}
    each = clips // len(KINDS)
    done, total = 0, len(KINDS) * each * (len(CHANGES) + 2)
    with tempfile.TemporaryDirectory() as folder:
        for kind, (make, fps) in KINDS.items():
            known: list[Look] = []
            others: list[Look] = []
            changed: dict[str, list[Look]] = {c: [] for c in CHANGES}
            spent = 0.0
            for i in range(2 * each):
                frames = make(i)
                path = Path(folder) / f"{i}.mp4"
                write_clip(path, frames, fps)
                start = time.perf_counter()
                (known if i < each else others).append(look(path))
                spent += time.perf_counter() - start
                for change, how in CHANGES.items() if i < each else ():
                    codec, crf = _ENCODING.get(change, ("libx264", 23))
                    write_clip(path, np.ascontiguousarray(how(frames)), fps, codec=codec, crf=crf)
                    changed[change].append(look(path))
                    done += 1
                path.unlink()
                done += 1
                progress(done, total)
            decode[kind] = spent / (2 * each)
            alarms = len({p.first for p in find_pairs(others, known)})
            rates += [Rate(kind, change, _found(looks, known), each, alarms) for change, looks in changed.items()]
    return rates, decode


def _found(changed: Sequence[Look], known: Sequence[Look]) -> int:
    return len({p.first for p in find_pairs(changed, known) if p.first == p.second})


def time_comparison(first: int = 4_000, second: int = 12_000, *, workers: int = 2) -> float:
    """Seconds to compare so many videos with so many, all of the most frames, none alike (random hashes)."""
    rng = np.random.default_rng(0)

    def made(count: int) -> list[Look]:
        pictures = np.zeros((FRAMES, SIDE, SIDE, 3), np.uint8)
        return [Look(rng.integers(0, 2**64, FRAMES, dtype=np.uint64), pictures) for _ in range(count)]

    a, b = made(first), made(second)
    start = time.perf_counter()
    find_pairs(a, b, workers=workers)
    return time.perf_counter() - start
