"""The folder a training run leaves: its log, its checkpoints on the way, and the model at the end.

A folder that is there is whole: files are written beside their place first, and torn checkpoints are taken away.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from savi.base.digests import sha256_json
from savi.base.files import new_folder, sync_files, write_jsonl_atomic
from savi.base.stamp import Stamp, files_below, read_stamp
from savi.base.torchvision import fix_torchvision
from savi.training.examples import Example
from savi.training.settings import SPEED_ONLY, DPOSettings
from savi.training.sharding import Sharding, ShardingError, sharding_of

fix_torchvision()  # Trainer's module looks for torchvision when it is imported

from transformers import TrainerCallback  # noqa: E402

if TYPE_CHECKING:
    from savi.engine.video_lm import VideoLM

Progress = Callable[[int, int], None]
"""Called with (done, total)."""

TRAIN_FOLDER = "train"
MODEL_FOLDER = "model"
LOG_FILE = "log.jsonl"
CLAIM_FILE = "made_from.json"
CHECKPOINT_STAMP = "stamp.json"


class LogFile(TrainerCallback):
    """Writes train/log.jsonl: no times in it, so that a resumed run leaves the file of an uninterrupted one."""

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
        if self._progress is not None and state.is_world_process_zero:
            self._progress(state.global_step, state.max_steps)


class DurableCheckpoints(TrainerCallback):
    """Makes each checkpoint durable and stamps it with the digests of its files: one without a stamp is torn."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # every process has written its part
        if state.is_world_process_zero:
            stamp_checkpoint(Path(args.output_dir, f"checkpoint-{state.global_step}"), state.global_step)


def stamp_checkpoint(folder: Path, step: int) -> None:
    """Say that a checkpoint is complete."""
    files = files_below(folder)
    sync_files(files, folder)
    Stamp.of({"step": step}, folder, files, {}).write(folder / CHECKPOINT_STAMP)


def claim(folder: Path, lm: VideoLM, examples: Sequence[Example], settings: DPOSettings) -> None:
    """Write down what the checkpoints in a folder are made from.

    Raises:
        ValueError: the folder holds checkpoints made from something else.
    """
    made_from = {
        "model": lm.fingerprint,
        "settings": settings.model_dump(mode="json", exclude=set(SPEED_ONLY)),
        "examples": sha256_json(
            [[example.pair_id, example.tokens.question, example.tokens.chosen, example.tokens.rejected] for example in examples]
        ),
    }
    path = folder / CLAIM_FILE
    if any(folder.glob("checkpoint-*")):
        there = read_stamp(path)
        differing = ["unknown inputs"] if there is None else [f"another {name}" for name in there.differing(made_from)]
        if differing:
            raise ValueError(f"{folder}: holds checkpoints made from {', '.join(differing)}; take another folder or delete it")
    Stamp(made_from).write(path)


def last_checkpoint(folder: Path, sharding: Sharding, *, tidy: bool) -> str | None:
    """The last complete checkpoint; torn ones (killed while saving, or files damaged since) are removed where `tidy` (one process does).

    Raises:
        ShardingError: the checkpoint holds shards, or whole weights, and this run needs the other.
    """
    complete: dict[int, Path] = {}
    for path in folder.glob("checkpoint-*"):
        stamp = read_stamp(path / CHECKPOINT_STAMP)
        if stamp is not None and stamp.done and not stamp.changed(path):
            complete[int(stamp.made_from["step"])] = path
        elif tidy:
            shutil.rmtree(path)
    if not complete:
        return None
    path = complete[max(complete)]
    if sharding_of(path) != sharding:
        raise ShardingError(
            f"{path}: was left by a run with sharding {sharding_of(path)!r}, this one has {sharding!r}; go on as before, or delete it"
        )
    return str(path)


def save(lm: VideoLM, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
    """Write the checkpoint. `state`: as in `save_pretrained`."""
    with new_folder(folder) as partial:
        lm.save_pretrained(partial, state=state)
