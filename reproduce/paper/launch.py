"""Starts the worker with the environment it needs: libraries read these variables once, at import, and malloc at process start.

A person types one command; the process replaces itself by the same command with the variables set. Nothing is changed in a process that
has them already.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

from harness.run.offline import offline_environment


def worker_environment(hf_home: Path, *, device: str, small: bool = False) -> dict[str, str]:
    """What the worker's environment must hold. On a CPU, memory given back to the system after every step halves the speed of training:
    glibc is told to keep it. A GPU that may be there is hidden then, so that numbers do not depend on the machine. A small model gets one
    thread (unless OMP_NUM_THREADS says otherwise): a second one only waits, and long beside a busy neighbour."""
    env = offline_environment(hf_home)
    env["TOKENIZERS_PARALLELISM"] = "false"
    if device == "cpu":
        env |= {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(4 << 30), "CUDA_VISIBLE_DEVICES": ""}
        if small:
            env["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS") or "1"
    else:
        env["PYTORCH_CUDA_ALLOC_CONF"] = os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    return env


def is_ready(wanted: Mapping[str, str]) -> bool:
    """Whether this process has it all."""
    return all(os.environ.get(k) == v for k, v in wanted.items())


def reexec(wanted: Mapping[str, str]) -> None:
    """Become the same command with the environment it needs; returns only where the process has it already."""
    if is_ready(wanted):
        return
    sys.stdout.flush()
    sys.stderr.flush()
    command = [sys.executable, *sys.orig_argv[1:]]
    env = {**os.environ, **wanted}
    if platform.system() == "Windows":  # exec there returns to the shell before the work is done
        import subprocess

        sys.exit(subprocess.run(command, env=env, check=False).returncode)
    os.execve(sys.executable, command, env)  # noqa: S606
