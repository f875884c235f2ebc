"""`python -m reproduce speed`: the engine against what a user would run instead, measured side by side.

Every case has named ways to do the same work. Rounds are interleaved (each round runs every way once), figures are medians, a ratio is
taken within its round and shown with its range. Opponents run as their users run them and are made no slower: their pixels are prepared
beforehand, TRL scores completion positions only and has its better batch size. Where an opponent's work is n times the same thing, a part
of it is timed and multiplied; the table says so.
"""

from __future__ import annotations

import gc
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from reproduce.speed.model import CPU, CPU_TRAINING, EIGHT_B, SMOKE, Shape

CASES = (
    "generation-6x150",
    "generation-18x16",
    "dpo-1-lora",
    "dpo-1-full",
    "dpo-6-lora",
    "dpo-6-full",
    "evaluation-mix",
    "evaluation-tempcompass",
    "prefetch",
    "micro-propose",
    "micro-train",
    "micro-evaluate",
    "micro-job",
)
"""All cases, in the order of the table."""


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
    full_fine_tuning: bool = True
    memory_cases: tuple[str, ...] | None = None
    """Cases whose memory is measured (None: all that have it); each way costs the start of a process."""


PRESETS: dict[str, Preset] = {
    "smoke": Preset("smoke", "cpu", SMOKE, SMOKE, 4, 8, 6, (6, 3), 2, 1, 2, memory_cases=("generation-6x150",)),
    "cpu": Preset("cpu", "cpu", CPU, CPU_TRAINING, 32, 80, 150, (150, 16), 3, 2, 3),
    "gpu": Preset("gpu", "cuda", EIGHT_B, EIGHT_B, 32, 80, 150, (150, 16), 5, 3, 18, full_fine_tuning=False),
}


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


def synchronise(device: str) -> None:
    """Wait for a GPU; nothing on a CPU."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def measure(case: Case, rounds: int, device: str, *, warm_up: bool, memory_mb: Mapping[str, float] | None = None) -> Row:
    """Interleaved rounds of all ways."""
    seconds: dict[str, list[float]] = {way: [] for way in case.ways}
    for number in range(rounds + (1 if warm_up else 0)):
        for way, run in case.ways.items():
            gc.collect()
            synchronise(device)
            start = time.perf_counter()
            own = run()
            synchronise(device)
            took = time.perf_counter() - start if own is None else own
            if number >= (1 if warm_up else 0):
                seconds[way].append(took * case.times.get(way, 1.0))
    against = min(case.others, key=lambda way: statistics.median(seconds[way]))
    ratios = [theirs / ours for ours, theirs in zip(seconds[case.ours], seconds[against], strict=True)]
    return Row(
        case.name,
        case.title,
        seconds,
        case.ours,
        against,
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        case.target,
        case.limit,
        dict(case.flops),
        dict(case.lengths),
        dict(memory_mb or {}),
        case.extras() if case.extras is not None else {},
        list(case.notes),
        case.memory_target,
        case.memory_against or against,
    )


def build(name: str, preset: Preset) -> Case:
    """A case with its model and inputs in memory.

    Raises:
        KeyError: no such case.
    """
    if name.startswith("generation-"):
        from reproduce.speed.generation import generation_case

        prompts, which = (6, 0) if name == "generation-6x150" else (18, 1)
        return generation_case(preset, name, prompts, preset.new_tokens[which])
    if name.startswith("dpo-"):
        from reproduce.speed.dpo import dpo_case

        _, pairs, method = name.split("-")
        return dpo_case(preset, name, int(pairs), lora=method == "lora")
    if name.startswith("evaluation-"):
        from reproduce.speed.generation import evaluation_case

        return evaluation_case(preset, name)
    if name == "prefetch":
        from reproduce.speed.generation import prefetch_case

        return prefetch_case(preset)
    if name.startswith("micro-"):
        from reproduce.speed.micro import micro_case

        return micro_case(preset, name)
    raise KeyError(name)


def wanted_cases(preset: Preset, names: Sequence[str]) -> list[str]:
    """The cases to run, in order; full fine-tuning only where the preset's memory allows it, the micro scale only on a CPU.

    Raises:
        KeyError: an unknown case is named.
    """
    for name in names:
        if name not in CASES:
            raise KeyError(name)
    left_out = () if preset.full_fine_tuning else tuple(name for name in CASES if name.endswith("-full"))
    left_out += () if preset.device == "cpu" else tuple(name for name in CASES if name.startswith("micro-"))
    return [name for name in CASES if (not names or name in names) and name not in left_out]


def run(preset: Preset, names: Sequence[str], say: Callable[[str], None], *, memory: bool = True) -> dict[str, Any]:
    """Run the cases and return the report as data."""
    peak = matmul_peak(preset)
    say(f"matmul peak here: {peak:.3f} TFLOP/s ({preset.training.dtype})")
    rows = []
    for name in wanted_cases(preset, names):
        case = build(name, preset)
        measured = memory and (preset.memory_cases is None or name in preset.memory_cases)
        grown = {way: growth_mb(preset, name, way) for way in case.memory} if measured else {}
        rounds = preset.dpo_rounds if name.startswith(("dpo-", "micro-")) else preset.rounds
        row = measure(case, rounds, preset.device, warm_up=preset.name != "cpu", memory_mb=grown)
        rows.append(row)
        say(line(row))
        del case
    return {"preset": preset.name, "machine": machine(preset), "matmul_peak_tflops": peak, "cases": [row.to_json() for row in rows]}


def line(row: Row) -> str:
    """A case in one line, as it is finished."""
    goal = "" if row.target is None else f" (target {row.target:g}x: {'met' if row.met else 'not met'})"
    return f"{row.title}: {row.ratio:.2f}x [{row.ratio_low:.2f}, {row.ratio_high:.2f}]{goal}"


def growth_mb(preset: Preset, name: str, way: str) -> float:
    """Peak memory that one run of a way adds, in a process of its own (MB)."""
    command = [sys.executable, "-m", "reproduce.speed.probe", preset.name, name, way]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"memory of {name}, {way}: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else 'no output'}")
    return float(json.loads(done.stdout.strip().splitlines()[-1])["growth_mb"])


def matmul_peak(preset: Preset) -> float:
    """Measured TFLOP/s of a large matrix product: the yardstick for what is achieved."""
    import torch

    size = 8192 if preset.device == "cuda" else 1024
    a = torch.randn(size, size, dtype=getattr(torch, preset.training.dtype), device=preset.device)
    times = []
    for _ in range(6):
        synchronise(preset.device)
        start = time.perf_counter()
        a @ a
        synchronise(preset.device)
        times.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(times[1:]) / 1e12


def machine(preset: Preset) -> dict[str, Any]:
    """What it was measured on."""
    import torch
    import transformers
    import trl

    name = torch.cuda.get_device_name() if preset.device == "cuda" else platform.processor() or platform.machine()
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "trl": trl.__version__,
    }
    return {"device": name, "threads": torch.get_num_threads(), **versions}
