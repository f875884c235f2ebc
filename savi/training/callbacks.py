"""What watches a training run: its log file, trackers, and the guard that ends a run that diverges.

A run whose loss, gradient or weights are no numbers any more has nothing to give: it ends at that step, before anything of it is saved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from savi.base.errors import ExitCode, SaviError
from savi.base.files import write_jsonl_atomic
from savi.base.torchvision import fix_torchvision
from savi.training.settings import DPOSettings
from savi.training.trackers import open_wandb_run, told

fix_torchvision()  # Trainer's module looks for torchvision when it is imported

from transformers import TrainerCallback  # noqa: E402

Progress = Callable[[int, int], None]
"""Called with (done, total)."""


class DivergedError(SaviError):
    """Training has left the range of numbers: names the step and the likely cause. Checkpoints of before are kept, nothing else is."""

    exit_code = ExitCode.MACHINE

    def __init__(self, step: int, what: str, learning_rate: float) -> None:
        super().__init__(
            f"step {step}: {what}, at a learning rate of {learning_rate:g}: training diverged and no model was saved; "
            "lower the learning rate (or max_grad_norm), or look for broken pairs"
        )


class LogFile(TrainerCallback):
    """Writes train/log.jsonl: no times in it, so that a resumed run leaves the file of an uninterrupted one. The last step is always
    logged."""

    def __init__(self, path: Path, settings: DPOSettings, progress: Progress | None) -> None:
        self._path, self._settings, self._progress = path, settings, progress

    def rows(self, state: Any) -> list[dict[str, float]]:
        """Trainer's rows with a loss; `epoch` counts passes over the pairs (Trainer sees one long epoch)."""
        kept = [row for row in state.log_history if "loss" in row]
        return [{**row, "epoch": round(row["epoch"] * self._settings.epochs, 6)} for row in kept]

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._write(state)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._write(state)

    def _write(self, state: Any) -> None:
        if state.is_world_process_zero:
            write_jsonl_atomic(self._path, self.rows(state))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_log = True
        if self._progress is not None and state.is_world_process_zero:
            self._progress(state.global_step, state.max_steps)


class Trackers(TrainerCallback):
    """transformers' own callbacks of trackers. One that fails is told of in a warning and left out from then on. A run of wandb that was
    not there before is ended with the training, which transformers leaves open: the next training would go on in it."""

    def __init__(self, names: Sequence[str]) -> None:
        from transformers.integrations import get_reporting_integration_callbacks

        self._callbacks: dict[str, Any] = {}
        self._users_run: Any = None
        for name in names:
            with told(name):
                (kind,) = get_reporting_integration_callbacks([name])
                self._callbacks[name] = kind()

    def _tell(self, event: str, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for name, callback in list(self._callbacks.items()):
            with told(name, partial(self._callbacks.pop, name)):
                getattr(callback, event)(args, state, control, **kwargs)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._users_run = open_wandb_run()
        self._tell("on_train_begin", args, state, control, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._tell("on_log", args, state, control, **kwargs)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._tell("on_save", args, state, control, **kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._tell("on_train_end", args, state, control, **kwargs)
        if "wandb" in self._callbacks and self._users_run is None and (run := open_wandb_run()) is not None:
            with told("wandb"):
                run.finish()


def largest(weights: Iterable[Tensor]) -> Tensor:
    """The largest absolute value among weights (of this process's shards of them), NaN where one is; one pass over them."""
    local = [getattr(weight.detach(), "_local_tensor", weight.detach()) for weight in weights]
    return torch.stack([norm.float() for norm in torch._foreach_norm([part for part in local if part.numel()], float("inf"))]).max()


def wrong_weight(value: float, limit: float) -> str | None:
    """What is wrong with the largest weight, if anything: it is not a number, or more than the checkpoint's dtype can hold (`limit`)."""
    if value <= limit:
        return None
    return f"a weight is {value:g}, more than the checkpoint can hold" if math.isfinite(value) else "a weight is not a finite number"
