"""`python -m reproduce speed`: the engine against what a user would run instead, measured side by side.

Every case has named ways to do the same work. Rounds are interleaved (each round runs every way once), figures are medians, a ratio is
taken within its round and shown with its range. Opponents run as their users run them and are made no slower: their pixels are prepared
beforehand, TRL scores completion positions only and has its better batch size. Where an opponent's work is n times the same thing, a part
of it is timed and multiplied; the table says so.
"""

from __future__ import annotations

import gc
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from reproduce.speed.case import CASES, GPU_ONLY, Case, Preset, Row
from reproduce.speed.decode import decode_case
from reproduce.speed.dpo import dpo_case
from reproduce.speed.generation import evaluation_case, generation_case, prefetch_case, reading_case
from reproduce.speed.micro import micro_case
from reproduce.speed.model import shared_model
from reproduce.speed.peaks import copy_gb_per_s, matmul_tflops, synchronise
from reproduce.speed.pipeline import pipeline_case
from savi.base.kernels import flash_attn_installed

SHARING = ("reading", "generation-", "evaluation-", "prefetch", "decode-", "pipeline-")
"""Cases that leave their model as it is and share one."""


def measure(case: Case, rounds: int, device: str, *, warm_up: bool, memory_mb: Mapping[str, float] | None = None) -> Row:
    """Interleaved rounds of all ways. An opponent that runs out of memory is left out, with a note; ours may not.

    Raises:
        RuntimeError: no opponent fits.
    """
    seconds: dict[str, list[float]] = {way: [] for way in case.ways}
    grown, notes = dict(memory_mb or {}), list(case.notes)
    for number in range(rounds + (1 if warm_up else 0)):
        for way in list(seconds):
            took = _timed(case, way, device, grown if device == "cuda" and number == 0 else None)
            if took is None:
                del seconds[way]
                notes.append(f"{way}: out of memory")
            elif number >= (1 if warm_up else 0):
                seconds[way].append(took)
    others = [way for way in case.others if way in seconds]
    if not others:
        raise RuntimeError(f"{case.title}: out of memory in {' and '.join(case.others)}; there is nothing to compare with")
    against = min(others, key=lambda way: statistics.median(seconds[way]))
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
        grown,
        case.extras() if case.extras is not None else {},
        notes,
        case.memory_target,
        case.memory_against if case.memory_against in grown else against,
    )


def _timed(case: Case, way: str, device: str, grown: dict[str, float] | None) -> float | None:
    """Seconds of a way; None where an opponent does not fit. `grown` takes the memory it adds on a GPU (MB), where the case wants it."""
    from savi.engine.memory import is_out_of_memory

    gc.collect()
    synchronise(device)
    before = _gpu_bytes() if grown is not None and way in case.memory else None
    start = time.perf_counter()
    try:
        own = case.ways[way]()
        synchronise(device)
    except (RuntimeError, MemoryError) as error:
        if way == case.ours or not is_out_of_memory(error):
            raise
        own = float("nan")  # the error is let go first: its frames hold the tensors
    took = time.perf_counter() - start if own is None else own
    if math.isnan(took):
        _give_back(device)
        return None
    if before is not None and grown is not None:
        grown[way] = _gpu_bytes(peak=True) / 2**20 - before / 2**20
    return took * case.times.get(way, 1.0)


def _gpu_bytes(*, peak: bool = False) -> int:
    """Bytes allocated on the GPU, now (the peak is counted from here) or at the peak."""
    import torch

    if peak:
        return int(torch.cuda.max_memory_allocated())
    torch.cuda.reset_peak_memory_stats()
    return int(torch.cuda.memory_allocated())


def _give_back(device: str) -> None:
    gc.collect()
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()


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
    if name.startswith("decode-"):
        return decode_case(preset, name)
    if name == "reading":
        return reading_case(preset)
    if name.startswith("evaluation-"):
        return evaluation_case(preset, name)
    if name == "prefetch":
        return prefetch_case(preset)
    if name.startswith("pipeline-"):
        return pipeline_case(preset, name)
    if name.startswith("micro-"):
        return micro_case(preset, name)
    raise KeyError(name)


def wanted_cases(preset: Preset, names: Sequence[str]) -> list[str]:
    """The cases to run, in order; full fine-tuning only where the preset's memory allows it, the micro scale only on a CPU, flash-attn
    against torch only on a GPU where it is installed.

    Raises:
        KeyError: an unknown case is named.
    """
    for name in names:
        if name not in CASES:
            raise KeyError(name)
    left_out = set() if preset.full_fine_tuning else {name for name in CASES if name.endswith("-full")}
    if preset.device != "cuda" or not flash_attn_installed():
        left_out.add("reading")
    if preset.device != "cpu":
        left_out |= {name for name in CASES if name.startswith("micro-")}
    elif not names and preset.only is None:
        left_out |= set(GPU_ONLY)
    wanted = names or preset.only or CASES
    return [name for name in CASES if name in wanted and name not in left_out]


def run(preset: Preset, names: Sequence[str], say: Callable[[str], None], *, memory: bool = True) -> dict[str, Any]:
    """Run the cases and return the report as data."""
    peak, copy = matmul_tflops(preset.device, preset.training.dtype), copy_gb_per_s(preset.device)
    say(f"matmul peak here: {peak:.3f} TFLOP/s ({preset.training.dtype}); copy {copy:.1f} GB/s")
    rows = []
    for name in wanted_cases(preset, names):
        if not name.startswith(SHARING):
            shared_model.cache_clear()
            _give_back(preset.device)
        case = build(name, preset)
        measured = memory and (preset.memory_cases is None or name in preset.memory_cases)
        if not measured:
            case.memory = ()
        grown = {way: growth_mb(preset, name, way) for way in case.memory} if measured and preset.device == "cpu" else {}
        rounds = preset.dpo_rounds if name.startswith(("dpo-", "micro-", "pipeline-")) else preset.rounds
        row = measure(case, rounds, preset.device, warm_up=preset.name != "cpu", memory_mb=grown)
        rows.append(row)
        say(line(row))
        del case
    shared_model.cache_clear()
    return {
        "preset": preset.name,
        "machine": machine(preset),
        "matmul_peak_tflops": peak,
        "copy_gb_per_s": copy,
        "cases": [row.to_json() for row in rows],
    }


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
