"""Memory that one way of one case adds at its peak, measured in this process: `python -m reproduce.speed_probe PRESET CASE WAY`."""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from pathlib import Path

from reproduce.speed import PRESETS, build


def settled_mb() -> float:
    """Resident memory now, after what building left behind was given back; the kernel's peak counter starts anew from here.

    Without the second the peak of building would hide that of the way itself.

    Raises:
        OSError: not Linux (no /proc/self/clear_refs).
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # see proc(5): resets VmHWM
    return _status_mb("VmRSS")


def peak_mb() -> float:
    """The largest resident memory since `settled_mb`."""
    return _status_mb("VmHWM")


def _status_mb(name: str) -> float:
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(f"{name}:"))
    return float(line.split()[1]) / 1024


def main(arguments: list[str]) -> int:
    """Build the case, run the way once, print `{"growth_mb": ...}`."""
    preset = PRESETS[arguments[0]]
    case = build(arguments[1], preset)
    way = case.ways[arguments[2]]
    if preset.device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        way()
        grown = (torch.cuda.max_memory_allocated() - before) / 2**20
    else:
        before = settled_mb()
        way()
        grown = peak_mb() - before
    sys.stdout.write(json.dumps({"growth_mb": grown}) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
