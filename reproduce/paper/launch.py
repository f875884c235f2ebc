"""Gives the process that does the work what it needs: variables that libraries read once, when they are imported, and glibc's malloc.

A person types one command. Where one of those libraries is imported already, the process replaces itself by the same command with the
variables set.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

from harness.run.offline import offline_environment
from savi.base.memory import keep_freed_memory

READ_AT_IMPORT = ("datasets", "huggingface_hub", "tokenizers", "torch", "transformers")
"""Libraries that read the variables when they are imported."""


def worker_environment(hf_home: Path, *, device: str, small: bool = False) -> dict[str, str]:
    """What the worker's environment must hold. On a CPU, a GPU that may be there is hidden, so that numbers do not depend on the machine. A
    small model gets one thread (unless OMP_NUM_THREADS says otherwise): a second one only waits, and long beside a busy neighbour."""
    env = offline_environment(hf_home)
    env["TOKENIZERS_PARALLELISM"] = "false"
    if device == "cpu":
        env["CUDA_VISIBLE_DEVICES"] = ""
        if small:
            env["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS") or "1"
    else:
        env["PYTORCH_CUDA_ALLOC_CONF"] = os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    return env


def become_worker(hf_home: Path, *, device: str, small: bool = False) -> None:
    """Make this process ready for the work; where it is too late for that, become the same command with the environment it needs."""
    wanted = worker_environment(hf_home, device=device, small=small)
    ready = all(os.environ.get(k) == v for k, v in wanted.items())
    if not ready and any(name in sys.modules for name in READ_AT_IMPORT):
        _reexec(wanted)
    os.environ.update(wanted)
    if device == "cpu":
        keep_freed_memory()


def _reexec(wanted: Mapping[str, str]) -> None:
    """Become the same command with another environment."""
    sys.stdout.flush()
    sys.stderr.flush()
    command = [sys.executable, *sys.orig_argv[1:]]
    env = {**os.environ, **wanted}
    if platform.system() == "Windows":  # exec there returns to the shell before the work is done
        import subprocess

        sys.exit(subprocess.run(command, env=env, check=False).returncode)
    os.execve(sys.executable, command, env)  # noqa: S606
