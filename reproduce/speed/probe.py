"""Memory that one way of one case adds at its peak, measured in this process: `python -m reproduce.speed.probe PRESET CASE WAY`."""

from __future__ import annotations

import ctypes
import gc
import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path

from reproduce.speed.case import PRESETS
from reproduce.speed.cases import build

M_MMAP_THRESHOLD = -3
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def main(arguments: list[str]) -> int:
    """Build the case, run the way once, print `{"growth_mb": ...}`."""
    preset = PRESETS[arguments[0]]
    give_back_freed_tensors()
    case = build(arguments[1], preset)
    grown = (cuda_growth_mb if preset.device == "cuda" else cpu_growth_mb)(case.ways[arguments[2]])
    sys.stdout.write(json.dumps({"growth_mb": grown}) + "\n")
    return 0


def give_back_freed_tensors() -> None:
    """Let glibc map every block over 128 KB by itself, so that resident memory is what is in use and not what an arena has kept of it."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 1 << 17)


def cuda_growth_mb(way: Callable[[], object]) -> float:
    """Peak of allocated GPU memory over what was allocated before (MB)."""
    import torch

    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    way()
    return float(torch.cuda.max_memory_allocated() - before) / 2**20


def cpu_growth_mb(way: Callable[[], object]) -> float:
    """Peak of resident memory over what was resident before (MB).

    Linux's `ru_maxrss` will not do: a process inherits that of the one that started it, and building a case may have peaked higher. So
    freed memory is given back, the kernel's high-water mark is reset, and the mark is read afterwards. Where there is no /proc, `ru_maxrss`
    is all there is.
    """
    gc.collect()
    if not (STATUS.exists() and RESET.exists()):
        start = _peak_kb()
        way()
        return (_peak_kb() - start) / 1024
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)  # what building left to the allocator would hide as much growth
    RESET.write_text("5", encoding="ascii")
    before = _status_kb("VmRSS")
    way()
    return max(0, _status_kb("VmHWM") - before) / 1024


def _peak_kb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024 if sys.platform == "darwin" else float(peak)


def _status_kb(name: str) -> int:
    return next(int(line.split()[1]) for line in STATUS.read_text(encoding="ascii").splitlines() if line.startswith(f"{name}:"))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
