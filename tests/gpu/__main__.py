"""`python -m tests.gpu`: the GPU checks as a plain script; with `--out DIR` the quick speed table and this machine's figures too.

Meant to take under six minutes on a fresh machine.

    python -m tests.gpu --out DIR                  # on a GPU
    python -m tests.gpu --device cpu --out DIR     # the same at the smoke shape, to try it

Exit code 1 where a check fails; the others still run.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import traceback
from pathlib import Path


def main() -> int:
    """Run all checks, each named with its time as it ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, help="also measure, and keep the figures here")
    asked = parser.parse_args()
    start = time.perf_counter()
    from tests.gpu.checks import CHECKS

    say(f"imports {time.perf_counter() - start:.1f} s")
    failed = 0
    for check in CHECKS:
        start = time.perf_counter()
        try:
            check(asked.device)
        except Exception:
            failed += 1
            say(traceback.format_exc())
            say(f"FAIL {check.__name__} {time.perf_counter() - start:.1f} s")
        else:
            say(f"pass {check.__name__} {time.perf_counter() - start:.1f} s")
    if asked.out is not None:
        failed += measured(asked.out, asked.device)
    return 1 if failed else 0


def measured(out: Path, device: str) -> int:
    """The commands that measure, each in a process of its own; how many of them failed."""
    out.mkdir(parents=True, exist_ok=True)
    tried = ["--try-on-cpu"] if device == "cpu" else []
    scale = "micro" if device == "cpu" else "8b"
    commands = [
        ["speed", "--preset", "gpu-quick", "--out", str(out / "speed.json"), *tried],
        ["paper", "--dry-run", "--scale", scale, "--calibrate"],
    ]
    failed = 0
    for words in commands:
        start = time.perf_counter()
        code = subprocess.run([sys.executable, "-m", "reproduce", *words], check=False).returncode
        say(f"{'pass' if code == 0 else 'FAIL'} reproduce {' '.join(words[:3])} {time.perf_counter() - start:.1f} s")
        failed += code != 0
    return failed


def say(text: str) -> None:
    """One line, at once."""
    print(text, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
