"""Writes micro scenes as real mp4 files (H.264, yuv420p). A folder made by `build_videos` holds mp4 files and nothing else: the
self-alignment loop that reads it cannot meet a ground truth there."""

from __future__ import annotations

import os
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from benchmarks.micro.world.world import FPS, make_scene, render, scene_rng


def write_mp4(path: Path, frames: NDArray[np.uint8], fps: int = FPS) -> None:
    """Encode RGB frames `[T, H, W, 3]` uint8 as H.264; written under a temporary name and moved, so that no half file stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f".{path.stem}.{os.getpid()}.mp4")
    try:
        with av.open(str(tmp), "w") as c:
            s = c.add_stream("libx264", rate=fps)
            s.width, s.height, s.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
            # mbtree off: with it x264 now and then gives other bytes for the same frames, and media fingerprints would differ
            s.options = {"crf": "12", "preset": "veryfast", "g": "8", "x264-params": "mbtree=0"}
            s.thread_count = 1  # the same bytes on every machine, and no thread start for eight tiny frames
            for f in frames:
                for packet in s.encode(av.VideoFrame.from_ndarray(f, format="rgb24")):
                    c.mux(packet)
            for packet in s.encode():
                c.mux(packet)
        tmp.replace(path)
    finally:
        tmp.unlink(missing_ok=True)


def build_videos(folder: Path, count: int, seed: int) -> list[Path]:
    """Make `count` unlabelled videos `0000.mp4`.. in `folder` (those that are there already are kept) and return their paths in order."""
    for half in folder.glob(".*.mp4"):
        half.unlink()  # left by a process that was killed while it wrote
    out = []
    for i in range(count):
        p = folder / f"{i:04d}.mp4"
        if not p.exists():
            write_mp4(p, render(make_scene(scene_rng(seed, i, "unlabelled"))))
        out.append(p)
    return out
