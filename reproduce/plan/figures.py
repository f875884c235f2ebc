"""What a machine can do, as a plan counts with it: measured there (`calibrate`), or on the machine named in the table here."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from savi.base.files import user_cache, write_text_atomic


@dataclass(frozen=True)
class Figures:
    """`prefill`, `vision`, `train`: TFLOP/s of reading a prefix, of the vision tower and of a training step (its second forward pass under
    checkpointing counted). A step of decoding takes `layer_ms` a layer beside what it reads and computes, and `video_layer_ms` more for
    each video of its batch. `frame_ms`: one core's time to decode and scale a shown frame; `cores`: those that do it beside the model.
    """

    measured_on: str
    prefill: float
    vision: float
    train: float
    read_gb_s: float
    layer_ms: float
    video_layer_ms: float
    frame_ms: float
    cores: int

    def step_s(self, *, weight_bytes: float, prefix_bytes: float, videos: float, rows: float, row_flop: float, layers: int) -> float:
        """Seconds of a decoding step: weights and each video's prefix read once, every row computed, and what each layer costs anyway."""
        read = (weight_bytes + videos * prefix_bytes) / (self.read_gb_s * 1e9)
        return read + rows * row_flop / (self.prefill * 1e12) + layers * (self.layer_ms + videos * self.video_layer_ms) / 1e3


TABLE = {
    "cuda": Figures("one NVIDIA H200 (decoding: the decoder's prototype)", 558, 298, 281, 4200, 0.184, 0.0004, 60.0, 2),
    "cpu": Figures("one core of an x86_64 machine with busy neighbours", 0.061, 0.069, 0.038, 7.0, 0.49, 0.14, 0.2, 1),
}
"""By the device a scale asks for. GPU: 8B's shape in bfloat16, 32 frames, measured 2026-11-26; a long video takes one to three seconds of
a core for its 32 frames. CPU: the shipped base, by `python -m reproduce paper --scale micro --dry-run --calibrate`."""


def kept_in(device: str) -> Path:
    """The file where a machine's own figures are kept."""
    return user_cache() / f"figures-{device}.json"


def keep(figures: Figures, device: str) -> Path:
    """Keep measured figures for the plans to come."""
    path = kept_in(device)
    write_text_atomic(path, json.dumps(asdict(figures), indent=1) + "\n")
    return path


def figures_for(device: str) -> Figures:
    """This machine's own, where they were measured; else the table's. A file that cannot be read counts as none."""
    try:
        raw = json.loads(kept_in(device).read_text(encoding="utf-8"))
        kinds = {f.name: type(getattr(TABLE[device], f.name)) for f in fields(Figures)}
        found = Figures(**{name: kind(raw[name]) for name, kind in kinds.items()})
    except (OSError, ValueError, TypeError, KeyError):
        return TABLE[device]
    positive = [found.prefill, found.vision, found.train, found.read_gb_s, found.cores]
    return (
        found if all(value > 0 for value in positive) and min(found.layer_ms, found.video_layer_ms, found.frame_ms) >= 0 else TABLE[device]
    )
