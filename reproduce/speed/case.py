"""What a case of the speed table is: its preset, the ways that do the same work, and the row that is measured.

Values only; the cases themselves are made by `generation`, `dpo` and `micro`, and run by `cases`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from reproduce.speed.model import CPU, CPU_TRAINING, EIGHT_B, SMOKE, Shape

CASES = (
    "reading",
    "generation-6x150",
    "generation-18x16",
    "dpo-1-lora",
    "dpo-1-full",
    "dpo-6-lora",
    "dpo-6-full",
    "evaluation-mix",
    "evaluation-tempcompass",
    "prefetch",
    "decode-1x6",
    "decode-1x18",
    "decode-4x6",
    "decode-16x6",
    "decode-64x6",
    "pipeline-propose",
    "pipeline-evaluate",
    "micro-propose",
    "micro-train",
    "micro-evaluate",
    "micro-job",
)
"""All cases, in the order of the table."""
GPU_ONLY = ("decode-1x18", "decode-4x6", "decode-16x6", "decode-64x6", "pipeline-propose", "pipeline-evaluate")
"""Cases that say little on a CPU and take long there: run where they are named."""


@dataclass(frozen=True)
class Preset:
    """Shapes, lengths and effort of a run of the table."""

    name: str
    device: str
    shape: Shape
    training: Shape
    frames: int
    question: int
    answer: int
    new_tokens: tuple[int, int]
    rounds: int
    dpo_rounds: int
    most_opponent_prompts: int
    """How many of an opponent's equal prompts are timed; the rest is multiplied."""
    decode_tokens: int = 9
    """Tokens of a reply where one step of decoding is measured."""
    pipeline_videos: int = 6
    pipeline_chunk: int = 2
    """Videos of a pipeline, and how many of them are proposed on together."""
    pipeline_rows: int | None = 2
    """Questions that are evaluated together, at least (None: by the model's size, as the harness has it)."""
    pipeline_tokens: int | None = 6
    """Tokens of every reply in proposing (None: as the plan of the 8b scale has it)."""
    clip_frames: int = 8
    """Frames in the file of each of those videos."""
    full_fine_tuning: bool = True
    checkpointing: bool = False
    """DPO with gradient checkpointing, on both sides: without it TRL's step needs more than 140 GB at the 8B shape."""
    trl_batches: tuple[int, ...] = (1, 6)
    """TRL's batch sizes that are tried; the best one that fits counts."""
    most_opponent_pairs: int = 6
    """How many of a step's equal pairs TRL's batch of one is timed on; the rest is multiplied."""
    only: tuple[str, ...] | None = None
    """The cases that are run by default (None: all that the device allows)."""
    memory_cases: tuple[str, ...] | None = None
    """Cases whose memory is measured (None: all that have it); each way costs the start of a process."""


PRESETS: dict[str, Preset] = {
    "smoke": Preset("smoke", "cpu", SMOKE, SMOKE, 4, 8, 6, (6, 3), 2, 1, 2, memory_cases=("generation-6x150",), decode_tokens=3),
    "cpu": Preset("cpu", "cpu", CPU, CPU_TRAINING, 32, 80, 150, (150, 16), 3, 2, 3),
    "gpu": Preset(
        "gpu", "cuda", EIGHT_B, EIGHT_B, 32, 80, 150, (150, 16), 5, 2, 6,
        decode_tokens=33, full_fine_tuning=False, checkpointing=True, trl_batches=(1, 2, 3, 6), most_opponent_pairs=2,
        pipeline_videos=48, pipeline_chunk=16, pipeline_rows=None, pipeline_tokens=None, clip_frames=160,
    ),
    "gpu-quick": Preset(
        "gpu-quick", "cuda", EIGHT_B, EIGHT_B, 32, 80, 150, (150, 16), 1, 1, 1,
        decode_tokens=33, full_fine_tuning=False, checkpointing=True, trl_batches=(1,), most_opponent_pairs=1,
        only=("generation-6x150", "decode-1x6", "decode-16x6", "dpo-6-lora"), memory_cases=("dpo-6-lora",),
    ),
}  # fmt: skip
"""`gpu-quick` is `gpu` in under four minutes on a fresh machine: one round, a part of the cases, one of each opponent's equal parts."""


def on_cpu(preset: Preset) -> Preset:
    """A GPU preset at the smoke shape on a CPU, everything else as it is: to try it where there is no GPU."""
    small = PRESETS["smoke"]
    only = preset.only or tuple(
        name for name in CASES if not name.startswith("micro-") and not name.endswith("-full") and name != "reading"
    )
    return replace(
        preset, name=f"{preset.name} (tried on a CPU)", device="cpu", shape=small.shape, training=small.training, frames=small.frames,
        question=small.question, answer=small.answer, new_tokens=small.new_tokens, decode_tokens=small.decode_tokens, only=only,
        memory_cases=(), pipeline_videos=small.pipeline_videos, pipeline_chunk=small.pipeline_chunk,
        pipeline_rows=small.pipeline_rows, pipeline_tokens=small.pipeline_tokens, clip_frames=small.clip_frames,
    )  # fmt: skip


@dataclass
class Case:
    """One row of the table: `ways` do the same work; `ours` is compared with the fastest of the `others`.

    A way may return seconds of its own making (a weighted sum); else its wall time counts. `times` multiplies a way's seconds where only a
    part of its equal work is run. `limit`: the ratio by matrix-product FLOPs of this shape.
    """

    name: str
    title: str
    ways: Mapping[str, Callable[[], float | None]]
    ours: str
    others: tuple[str, ...]
    target: float | None
    times: Mapping[str, float] = field(default_factory=dict)
    limit: float | None = None
    flops: Mapping[str, float] = field(default_factory=dict)
    lengths: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    extras: Callable[[], dict[str, float]] | None = None
    """Further figures, read after the last round."""
    memory: tuple[str, ...] = ()
    """Ways whose memory growth is measured, each in a process of its own."""
    memory_target: float | None = None
    """How many times smaller our memory growth has to be at least."""
    memory_against: str | None = None
    """The way whose memory counts (None: the one whose speed does)."""


@dataclass(frozen=True)
class Row:
    """A measured case."""

    name: str
    title: str
    seconds: dict[str, list[float]]
    ours: str
    against: str
    ratio: float
    ratio_low: float
    ratio_high: float
    target: float | None
    limit: float | None
    flops: dict[str, float]
    lengths: dict[str, int]
    memory_mb: dict[str, float]
    extras: dict[str, float]
    notes: list[str]
    memory_target: float | None = None
    memory_against: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None without one."""
        return None if self.target is None else self.ratio >= self.target

    @property
    def memory_ratio(self) -> float | None:
        """How many times smaller our memory growth is; None where it was not measured, or nothing grew."""
        ours, theirs = self.memory_mb.get(self.ours), self.memory_mb.get(self.memory_against)
        return theirs / ours if ours and theirs is not None else None

    @property
    def memory_met(self) -> bool | None:
        """Whether the memory target is reached; None without one, or without a measurement."""
        ratio = self.memory_ratio
        return None if self.memory_target is None or ratio is None else ratio > self.memory_target

    def to_json(self) -> dict[str, Any]:
        """As data, with what follows from it."""
        achieved = {way: self.flops[way] / statistics.median(self.seconds[way]) / 1e12 for way in self.flops if way in self.seconds}
        share = None if not self.limit else self.ratio / self.limit
        memory = {"memory_ratio": self.memory_ratio, "memory_met": self.memory_met}
        return {**asdict(self), "met": self.met, "tflops_per_s": achieved, "share_of_limit": share, **memory}
