"""Experiment trackers: training is told to them by transformers' own callbacks, the loop's curves by this module.

A tracker is a package of its own and is imported only where it was asked for. The module knows names and numbers, not what they mean.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from savi.base.digests import sha256_bytes
from savi.base.errors import SaviError, UsageError

TRACKERS = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",), "trackio": ("trackio",)}
"""Trackers by name, with the packages that one of is needed."""
_PROJECT = "huggingface"
"""What transformers' callbacks call the project unless told otherwise: both kinds of runs are found in one place."""


class NoTrackerError(SaviError):
    """A tracker whose package is not installed."""


def read_trackers(text: str) -> tuple[str, ...]:
    """The trackers in a list with commas; none for "none".

    Raises:
        UsageError: one of them is not known.
        NoTrackerError: its package is not installed.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip() not in ("", "none")))
    for name in names:
        if name not in TRACKERS:
            raise UsageError(f"--report-to {name}: unknown; there are {', '.join(TRACKERS)}, none")
        if not any(importlib.util.find_spec(package) for package in TRACKERS[name]):
            raise NoTrackerError(f"--report-to {name}: the package is not installed: pip install {TRACKERS[name][0]}")
    return names


def report(names: Sequence[str], folder: Path, step: int, values: Mapping[str, float]) -> None:
    """Tell trackers the loop's values of one iteration, as one run for all iterations of `folder`; a run of training that is open is
    ended first, so that each iteration's training is a run of its own.

    TensorBoard's file is in `folder`/loop. The others get the project of WANDB_PROJECT, else transformers' own.
    """
    named = {f"loop/{name}": value for name, value in values.items()}
    if "tensorboard" in names:
        _to_tensorboard(folder, step, named)
    if "wandb" in names:
        _to_wandb(folder, step, named)
    if "trackio" in names:
        _to_trackio(folder, step, named)


def run_name(folder: Path) -> str:
    """What a tracker calls the runs of a folder."""
    return "/".join(Path(folder).resolve().parts[-2:])


def _to_tensorboard(folder: Path, step: int, values: Mapping[str, float]) -> None:
    writer: Any
    if importlib.util.find_spec("tensorboard"):
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(folder / "loop"))
    else:
        writer = importlib.import_module("tensorboardX").SummaryWriter(str(folder / "loop"))
    for name, value in values.items():
        writer.add_scalar(name, value, step)
    writer.close()


def _to_wandb(folder: Path, step: int, values: Mapping[str, float]) -> None:
    wandb = importlib.import_module("wandb")
    if wandb.run is not None:
        wandb.finish()
    same = sha256_bytes(str(folder.resolve()).encode())[:16]
    run = wandb.init(project=os.environ.get("WANDB_PROJECT", _PROJECT), name=f"{run_name(folder)}/loop", id=same, resume="allow")
    run.define_metric("loop/*", step_metric="iteration")
    run.log({**values, "iteration": step})
    wandb.finish()


def _to_trackio(folder: Path, step: int, values: Mapping[str, float]) -> None:
    trackio = importlib.import_module("trackio")
    trackio.init(project=_PROJECT, name=f"{run_name(folder)}/loop", resume="allow")
    trackio.log(dict(values), step=step)
    trackio.finish()
