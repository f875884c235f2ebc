"""The training folder: a checkpoint counts only while it is what was written."""

from __future__ import annotations

from pathlib import Path

import pytest

from savi.training.checkpoints import SEAL_FILE, last_checkpoint, seal


def checkpoint(folder: Path, step: int) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    (path / "model.safetensors").write_bytes(bytes([step]) * 64)
    (path / "trainer_state.json").write_text(f'{{"global_step": {step}}}')
    return path


@pytest.mark.parametrize("damage", ["zeros", "cut", "gone", "no stamp"])
def test_a_damaged_checkpoint_is_not_gone_on_from(tmp_path: Path, damage: str) -> None:
    """A power loss leaves zeros of the right length where weights were never flushed."""
    for step in (2, 4):
        seal(checkpoint(tmp_path, step), "plan", {})
    assert last_checkpoint(tmp_path, "plan", "none") == tmp_path / "checkpoint-4"
    weights = tmp_path / "checkpoint-4" / "model.safetensors"
    if damage == "zeros":
        weights.write_bytes(bytes(64))
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:10])
    elif damage == "gone":
        weights.unlink()
    else:
        (tmp_path / "checkpoint-4" / SEAL_FILE).unlink()
    assert last_checkpoint(tmp_path, "plan", "none") == tmp_path / "checkpoint-2"
    assert not (tmp_path / "checkpoint-4").exists()
