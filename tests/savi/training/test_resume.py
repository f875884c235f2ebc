"""A run that is killed, or that diverges: it goes on to the bytes of an uninterrupted one, or leaves nothing that looks like a model."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from savi.base.errors import FileFormatError, ResumeError
from savi.base.lock import is_lock
from savi.base.stamp import read_stamp
from savi.engine.video_lm import ModelError, VideoLM
from savi.loop.preferences import PreferencePair, write_pairs
from savi.training.callbacks import DivergedError
from savi.training.checkpoints import SEAL_FILE, WEIGHTS_FILE, load_weights, seal
from savi.training.settings import DPOSettings
from savi.training.trainer import train, trainable
from tests.savi.scripted import random_pairs, write_clips
from tests.savi.tiny import tiny_checkpoint, tiny_video_lm

ROOT = Path(__file__).parents[3]
QUICK = DPOSettings(learning_rate=1e-3, epochs=4, pairs_per_step=4, logging_steps=3, warmup_ratio=0.0, beta=0.5, save_steps=2)
KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"lora_r": 2},
    "sft": {"method": "sft"},
    "micro-batches": {"max_batch_tokens": 1, "rpo_alpha": 0.3},  # several forward passes a step: gradients are accumulated
    "simpo": {"loss_type": "simpo", "beta": 2.0},
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[PreferencePair]:
    return random_pairs(write_clips(tmp_path_factory.mktemp("clips"), 4))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("base") / "model", layers=1)


def files(folder: Path) -> dict[str, bytes]:
    found = [path for path in sorted(folder.rglob("*")) if path.is_file() and not is_lock(path.name)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def load(base: Path) -> VideoLM:
    return VideoLM.from_pretrained(base, device="cpu")


KILLED = """
import os, signal, sys
from pathlib import Path
from savi.training.settings import DPOSettings
from savi.loop.preferences import read_pairs
from savi.training.trainer import train
from savi.engine.video_lm import VideoLM
base, pairs, out, settings, kill_at = sys.argv[1:]
def progress(done, total):
    if done == int(kill_at):
        os.kill(os.getpid(), signal.SIGKILL)
lm = VideoLM.from_pretrained(Path(base), device="cpu")
train(lm, read_pairs(pairs), DPOSettings.model_validate_json(settings), out, progress=progress)
"""


def run_killed(base: Path, pairs: list[PreferencePair], out: Path, settings: DPOSettings, kill_at: int) -> None:
    write_pairs(out.parent / "pairs.jsonl", pairs)
    arguments = [str(base), str(out.parent / "pairs.jsonl"), str(out), settings.model_dump_json(), str(kill_at)]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], cwd=ROOT, check=False, stderr=sys.stderr)
    assert done.returncode == -signal.SIGKILL


class Stopped(Exception):
    """Raised in the middle of training."""


def stop_at(step: int) -> Any:
    def stop(done: int, total: int) -> None:
        if done == step:
            raise Stopped

    return stop


@pytest.mark.parametrize("kind", list(KINDS))
def test_stopped_and_resumed_is_uninterrupted(kind: str, base: Path, pairs: list[PreferencePair], tmp_path: Path) -> None:
    """Full fine-tuning too, whose checkpoints would otherwise be loaded under names the model in memory does not have; and a log row that
    spans the stop (rows every third step, checkpoints every second)."""
    settings = QUICK.model_copy(update=KINDS[kind])
    straight = train(load(base), pairs, settings, tmp_path / "straight")
    assert straight.steps == 8
    with pytest.raises(Stopped):
        train(load(base), pairs, settings, tmp_path / "stopped", progress=stop_at(5))
    checkpoints = sorted(path.name for path in (tmp_path / "stopped" / "train").glob("checkpoint-*"))
    assert checkpoints == ["checkpoint-2", "checkpoint-4"], "save_steps says 2"
    seen: list[int] = []
    resumed = train(load(base), pairs, settings, tmp_path / "stopped", progress=lambda done, _: seen.append(done))
    assert seen == [5, 6, 7, 8], "the first four steps are not done again"
    assert resumed.log == straight.log
    assert files(tmp_path / "stopped") == files(tmp_path / "straight")


def test_killed_and_resumed_is_uninterrupted(base: Path, pairs: list[PreferencePair], tmp_path: Path) -> None:
    """A real SIGKILL; with a checkpoint torn while it was written and one damaged afterwards left behind."""
    straight, out = tmp_path / "straight", tmp_path / "killed"
    train(load(base), pairs, QUICK, straight)
    run_killed(base, pairs, out, QUICK, kill_at=7)
    assert sorted(path.name for path in out.glob("train/checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
    (out / "train" / "checkpoint-6" / "optimizer.pt").write_bytes(b"")
    (torn := out / "train" / "checkpoint-8").mkdir()
    (torn / WEIGHTS_FILE).write_bytes(b"half")
    seen: list[int] = []
    train(load(base), pairs, QUICK, out, progress=lambda done, _: seen.append(done))
    assert seen[0] == 5, "the damaged checkpoint is not trusted"
    assert files(out) == files(straight)


def test_a_finished_run_is_not_done_again(base: Path, pairs: list[PreferencePair], tmp_path: Path) -> None:
    lm = load(base)
    first = train(lm, pairs, QUICK, tmp_path)
    before = files(tmp_path)
    again = load(base)
    result = train(again, list(reversed(pairs)), QUICK.model_copy(update={"save_steps": 3}), tmp_path, progress=stop_at(1))
    assert result == first
    assert files(tmp_path) == before
    for name, value in again.model.state_dict().items():
        torch.testing.assert_close(value, lm.model.state_dict()[name], rtol=0, atol=2e-3, msg=name)  # stored in float16
    with pytest.raises(ResumeError, match="another settings"):
        train(load(base), pairs, QUICK.model_copy(update={"beta": 0.2}), tmp_path)
    assert files(tmp_path) == before


def test_a_model_that_no_training_left_is_not_replaced(base: Path, pairs: list[PreferencePair], tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("mine")
    with pytest.raises(ResumeError, match="was made from unknown inputs"):
        train(load(base), pairs, QUICK, tmp_path)
    assert files(tmp_path) == {"model/mine.txt": b"mine"}


def test_checkpoints_of_something_else_are_refused(base: Path, pairs: list[PreferencePair], tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(load(base), pairs, QUICK, tmp_path, progress=stop_at(3))
    with pytest.raises(ResumeError, match="another settings"):
        train(load(base), pairs, QUICK.model_copy(update={"beta": 0.2}), tmp_path)
    clip = Path(pairs[0].video)
    kept = clip.read_bytes()
    clip.write_bytes(b"no video any more")
    try:
        with pytest.raises(ResumeError, match="can all videos still be read"):
            train(load(base), pairs, QUICK, tmp_path)
    finally:
        clip.write_bytes(kept)


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_a_checkpoint_without_exactly_the_trained_weights_is_refused(
    change: str, base: Path, pairs: list[PreferencePair], tmp_path: Path
) -> None:
    with pytest.raises(Stopped):
        train(load(base), pairs, QUICK, tmp_path, progress=stop_at(3))
    path = tmp_path / "train" / "checkpoint-2" / WEIGHTS_FILE
    stored = load_file(path)
    name = next(name for name in stored if name.endswith("q_proj.weight"))
    if change == "missing":
        del stored[name]
    else:
        stored["model.more" if change == "extra" else name] = torch.zeros(2, 2)
    save_file(stored, path)
    stamp = read_stamp(path.parent / SEAL_FILE)
    assert stamp is not None
    (path.parent / SEAL_FILE).unlink()
    seal(path.parent, stamp.made_from["plan"], stamp.facts["sums"])
    kind = {"missing": "missing", "extra": "unexpected", "shape": "of another shape"}[change]
    with pytest.raises(FileFormatError, match=rf"1 weights {kind}, e.g. "):
        train(load(base), pairs, QUICK, tmp_path)


def test_weights_are_put_back_in_place(base: Path, tmp_path: Path) -> None:
    """Tied weights (one tensor, two names) and a tensor in another dtype come back as they were."""
    lm = load(base)
    model = trainable(lm, QUICK)
    from savi.training.checkpoints import save_weights

    save_weights(model, tmp_path)
    stored = load_file(tmp_path / WEIGHTS_FILE)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1)
    load_weights(model, tmp_path)
    now = dict(model.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in stored.items())
    assert not any("vision" in name for name in stored), "what is frozen is not kept"


# divergence


@pytest.mark.parametrize("lora", [0, 2])
def test_a_run_that_diverges_leaves_no_model(lora: int, base: Path, pairs: list[PreferencePair], tmp_path: Path) -> None:
    """Whatever goes first, loss, gradient or weights: the step is named, and neither a model nor a checkpoint of it is left."""
    for rate in (1e6, 1e30):
        out = tmp_path / f"{rate:g}"
        settings = QUICK.model_copy(update={"learning_rate": rate, "save_steps": 1, "lora_r": lora})
        with pytest.raises(DivergedError, match=r"^step \d+: .* diverged and no model was saved; lower the learning rate"):
            train(load(base), pairs, settings, out)
        assert not (out / "model").exists()
        for checkpoint in out.glob("train/checkpoint-*"):
            assert all(torch.isfinite(value).all() for value in load_file(checkpoint / WEIGHTS_FILE).values())


def test_a_loss_that_is_no_number_ends_the_run_before_the_weights_change(
    base: Path, pairs: list[PreferencePair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from savi.training import packed_trainer

    calls: list[int] = []

    def broken(*arguments: Any, **more: Any) -> torch.Tensor:
        calls.append(1)
        return real(*arguments, **more) * (float("nan") if len(calls) == 3 else 1.0)

    real = packed_trainer.step_loss
    monkeypatch.setattr(packed_trainer, "step_loss", broken)
    with pytest.raises(DivergedError, match="step 3: the loss is nan, at a learning rate of"):
        train(load(base), pairs, QUICK, tmp_path)
    assert [path.name for path in tmp_path.glob("train/checkpoint-*")] == ["checkpoint-2"]
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("what", ["nan", "one nan", "zero", "zero embeddings", "zero tower"])
def test_broken_weights_are_refused_when_loaded(what: str, base: Path, tmp_path: Path) -> None:
    """All of a model, one number of it, or one matrix of the language model (as a power loss leaves zeros in a file)."""
    import shutil

    shutil.copytree(base, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if name.endswith({"zero embeddings": "embed_tokens.weight"}.get(what, "mlp.up_proj.weight")))
    if what == "zero tower":
        weights |= {key: torch.zeros_like(value) for key, value in weights.items() if "vision" in key}
    elif what == "nan":
        weights = {key: torch.full_like(value, float("nan")) for key, value in weights.items()}
    else:
        weights[name][0] = float("nan")
        if what.startswith("zero"):
            weights[name].zero_()
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="zero" if what.startswith("zero") else "no finite number"):
        load(tmp_path / "model")


# files


def test_saved_files_follow_the_umask(base: Path, pairs: list[PreferencePair], tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with pytest.raises(Stopped):
            train(load(base), pairs, QUICK, tmp_path / "a", progress=stop_at(3))
        train(load(base), pairs, QUICK, tmp_path / "a")
        tiny_video_lm(layers=1).save_pretrained(tmp_path / "b")
    finally:
        os.umask(before)
    modes = {str(path): stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_file()}
    assert set(modes.values()) == {0o640}, modes
