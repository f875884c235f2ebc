"""The folder a training run leaves: its log, its checkpoints on the way, and the model at the end.

A folder that is there is whole: files are written beside their place first, and torn checkpoints are taken away.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from savi.base.digests import sha256_json
from savi.base.files import write_json_atomic, write_jsonl_atomic
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


def claim(folder: Path, lm: VideoLM, examples: Sequence[Example], settings: DPOSettings) -> None:
    """Write down what the checkpoints in a folder are made from.

    Raises:
        ValueError: the folder holds checkpoints made from something else.
    """
    made_from = sha256_json(
        {
            "model": lm.fingerprint,
            "settings": settings.model_dump(mode="json", exclude=set(SPEED_ONLY)),
            "examples": [
                [example.pair_id, example.tokens.question, example.tokens.chosen, example.tokens.rejected] for example in examples
            ],
        }
    )
    path = folder / "made_from.json"
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != made_from and any(folder.glob("checkpoint-*")):
        raise ValueError(f"{folder}: holds checkpoints of another model, other pairs or other settings; take another folder or delete it")
    write_json_atomic(path, made_from)


def last_checkpoint(folder: Path, sharding: Sharding, *, tidy: bool) -> str | None:
    """The last complete checkpoint; torn ones (killed while saving) are removed where `tidy` (one process does). trainer_state.json is
    written last.

    Raises:
        ShardingError: the checkpoint holds shards, or whole weights, and this run needs the other.
    """
    complete: dict[int, Path] = {}
    for path in folder.glob("checkpoint-*"):
        try:
            complete[int(json.loads((path / "trainer_state.json").read_text())["global_step"])] = path
        except (OSError, ValueError, KeyError):
            if tidy:
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
    put_in_place(folder, lambda partial: lm.save_pretrained(partial, state=state))


def put_in_place(folder: Path, write: Callable[[Path], object]) -> Path:
    """Have `write` fill a folder beside its place and move it there, so that a folder of that name is always whole; what stood there is
    removed only then."""
    partial, old = folder.with_name(folder.name + ".partial"), folder.with_name(folder.name + ".old")
    for left in (partial, old):
        shutil.rmtree(left, ignore_errors=True)
    write(partial)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder
