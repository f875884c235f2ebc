"""A launch of several processes (`torchrun`, `accelerate launch`, MPI), as the environment tells it. The module starts none."""

from __future__ import annotations

import os

from savi.base.errors import UsageError


def refuse_several_processes(command: str) -> None:
    """Stop a command that would do the same work in each process of a `torchrun`.

    Raises:
        UsageError: there are several processes.
    """
    for name in ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"):
        if (count := os.environ.get(name, "1")) not in ("", "0", "1"):
            raise UsageError(f"{command} runs in one process, and {name} is {count}: start it without torchrun or accelerate launch")
