"""Checkpoints: what of a run is written every `save_steps`, and what is trusted when a run goes on.

A checkpoint counts once it is sealed: its last file names every other one with its hash, and the plan it belongs to. What is not sealed,
or is no longer what was sealed, is removed, and the one before it is taken. So a kill or a power failure
loses only the steps since the last whole checkpoint.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from savi.base.digests import sha256_json
from savi.base.errors import FileFormatError, ResumeError
from savi.base.files import follow_umask, sync_files
from savi.base.stamp import Stamp, files_below, read_stamp
from savi.training.examples import Example
from savi.training.sharding import Sharding, ShardingError, sharding_of

WEIGHTS_FILE = "trained.safetensors"
SEAL_FILE = "stamp.json"


def plan_digest(inputs: Mapping[str, Any], examples: Sequence[Example]) -> str:
    """Hash of the steps a run goes through: its inputs, and the pairs that are left of them (a video may have become unreadable)."""
    rows = [[example.pair_id, example.tokens.question, example.tokens.chosen, example.tokens.rejected] for example in examples]
    return sha256_json({"inputs": dict(inputs), "examples": rows})


def save_weights(model: nn.Module, folder: Path) -> None:
    """Write the weights that are trained, by their names in memory: the language model's, or the adapters."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: weight.detach().contiguous() for name, weight in _trained(model).items()}, folder / WEIGHTS_FILE)


def load_weights(model: nn.Module, folder: Path) -> None:
    """Put a checkpoint's weights into the model.

    Raises:
        FileFormatError: it has not exactly the weights that are trained, in their shapes.
    """
    path = folder / WEIGHTS_FILE
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise FileFormatError(f"{path}: cannot be read ({error}); delete {folder.name} to go on from the one before it") from error
    trained = _trained(model)
    missing, extra = sorted(trained.keys() - stored.keys()), sorted(stored.keys() - trained.keys())
    other = [name for name in sorted(trained.keys() & stored.keys()) if trained[name].shape != stored[name].shape]
    wrong = {"missing": missing, "unexpected": extra, "of another shape": other}
    if any(wrong.values()):
        counts = "; ".join(f"{len(names)} weights {kind}, e.g. {names[0]}" for kind, names in wrong.items() if names)
        raise FileFormatError(f"{path}: is not this model's ({counts}); delete {folder.name} to train without it")
    with torch.no_grad():
        for name, weight in trained.items():
            weight.copy_(stored[name])


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def seal(checkpoint: Path, plan: str, sums: Mapping[str, float]) -> None:
    """Declare a checkpoint whole. `sums`: what the log's next row has summed so far."""
    follow_umask(checkpoint)
    files = files_below(checkpoint)
    sync_files(files, checkpoint)
    Stamp.of({"plan": plan}, checkpoint, files, {"sums": dict(sums)}).write(checkpoint / SEAL_FILE)


def read_sums(checkpoint: Path) -> dict[str, float]:
    """The sums a whole checkpoint was sealed with."""
    stamp = read_stamp(checkpoint / SEAL_FILE)
    return {} if stamp is None else dict(stamp.facts["sums"])


def last_checkpoint(folder: Path, plan: str, sharding: Sharding) -> Path | None:
    """The last whole checkpoint; others are removed. One process calls it.

    Raises:
        ResumeError: it belongs to another plan.
        ShardingError: it holds shards, or whole weights, and this run needs the other.
    """
    numbers = {path: path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")}
    found = stamp = None
    for path in sorted((path for path, number in numbers.items() if number.isdecimal()), key=lambda path: int(numbers[path]), reverse=True):
        stamp = read_stamp(path / SEAL_FILE)
        if stamp is not None and stamp.done and not stamp.changed(path):
            found = path
            break
        shutil.rmtree(path)
    if found is None:
        return None
    if stamp is None or stamp.differing({"plan": plan}):
        raise ResumeError(f"{found}: was left by a run on other pairs (can all videos still be read?); delete {folder} to start over")
    if sharding_of(found) != sharding:
        raise ShardingError(
            f"{found}: was left by a run with sharding {sharding_of(found)!r}, this one has {sharding!r}; go on as before, or delete it"
        )
    return found


def remove_checkpoints(folder: Path) -> None:
    """Take the checkpoints of a finished run away."""
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path)
