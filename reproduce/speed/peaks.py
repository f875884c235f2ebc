"""What a device can do at most, measured: matrix products and copies. The yardsticks of the speed table and of a plan."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def synchronise(device: str) -> None:
    """Wait for a GPU; nothing on a CPU."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def seconds_of(work: Callable[[], object], device: str, rounds: int = 5) -> float:
    """Median wall time of a call, after one to warm up."""
    times = []
    for _ in range(rounds + 1):
        synchronise(device)
        start = time.perf_counter()
        work()
        synchronise(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def matmul_tflops(device: str, dtype: str) -> float:
    """TFLOP/s of a large matrix product."""
    import torch

    size = 8192 if device == "cuda" else 1024
    a = torch.randn(size, size, dtype=getattr(torch, dtype), device=device)
    return 2 * size**3 / seconds_of(lambda: a @ a, device) / 1e12


def copy_gb_per_s(device: str) -> float:
    """GB/s of a copy larger than any cache, read and written bytes counted."""
    import torch

    source = torch.ones(2**30 if device == "cuda" else 2**27, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / seconds_of(lambda: target.copy_(source), device) / 1e9
