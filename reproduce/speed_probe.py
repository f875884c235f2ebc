"""Memory that one way of one case adds at its peak, measured in this process: `python -m reproduce.speed_probe PRESET CASE WAY`."""

from __future__ import annotations

import json
import resource
import sys

from reproduce.speed import PRESETS, build


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
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        way()
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    sys.stdout.write(json.dumps({"growth_mb": grown}) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
