"""A run with everything heavy replaced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reproduce.paper.experiment import Experiment
from reproduce.run_dir import RunDir
from reproduce.scale import load_scale
from tests.reproduce.fakes import FakeWork


@pytest.fixture(autouse=True)
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """No second process: it would do the real work beside the made-up one."""
    monkeypatch.setattr("reproduce.paper.jobs.cores", lambda: 1)


@pytest.fixture
def fake_base(tmp_path: Path) -> Path:
    folder = tmp_path / "base-checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def work() -> FakeWork:
    return FakeWork()


@pytest.fixture
def experiment(tmp_path: Path, fake_base: Path) -> Callable[..., Experiment]:
    """experiment(**overrides) -> a small one below tmp_path/run; keys are dotted names with __ for the dot."""

    def make(**overrides: Any) -> Experiment:
        values = {"model.base": str(fake_base), "loop.videos_per_iteration": 3, "evaluation.benchmarks": ["nextqa", "egoschema"]}
        values |= {key.replace("__", "."): value for key, value in overrides.items()}
        scale = load_scale("smoke", {key: (value, "ours: test") for key, value in values.items()})
        run = tmp_path / "run"
        return Experiment(scale, RunDir(run), run / "data" / "hf_home")

    return make
