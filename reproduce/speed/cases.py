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
from typing import Any

from reproduce.speed.case import CASES, Case, Preset, Row
from reproduce.speed.dpo import dpo_case
from reproduce.speed.generation import evaluation_case, generation_case, prefetch_case
from reproduce.speed.micro import micro_case


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
        prompts, which = (6, 0) if name == "generation-6x150" else (18, 1)
        return generation_case(preset, name, prompts, preset.new_tokens[which])
    if name.startswith("dpo-"):
        _, pairs, method = name.split("-")
        return dpo_case(preset, name, int(pairs), lora=method == "lora")
    if name.startswith("evaluation-"):
        return evaluation_case(preset, name)
    if name == "prefetch":
        return prefetch_case(preset)
    if name.startswith("micro-"):
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
