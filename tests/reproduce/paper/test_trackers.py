"""What `paper --report-to` tells of each iteration: the loop's curves and the scores, the base as step 0."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from reproduce.paper.experiment import Experiment
from reproduce.paper.work import RealWork
from reproduce.run_dir import RunDir
from reproduce.scale import load_scale
from savi.loop.journal import AlignCounts, Journal


def test_scores_and_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[dict[str, float], int]] = []
    trackio: Any = SimpleNamespace(init=lambda **_: None, log=lambda values, step: told.append((values, step)), finish=lambda: None)
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    experiment = Experiment(load_scale("smoke", {}), RunDir(tmp_path), tmp_path, report_to=("trackio",))
    RealWork()._report(experiment, 0, {"score": 50.5, "score/mvbench": 40.0})
    assert told == [({"loop/score": 50.5, "loop/score/mvbench": 40.0}, 0)]
    folder = experiment.run.iteration(1)
    journal = Journal(folder / "pairs.jsonl", None, model="m", settings={}, videos=["a.mp4"])
    journal.add([], [], [], 1, AlignCounts(videos=1, questions=4, dropped={"unreadable question": 3, "unchanged": 1}))
    RealWork()._report(experiment, 1, {"score": 51.0})
    values, step = told[1]
    assert step == 1 and values["loop/score"] == 51.0 and values["loop/validity"] == 0.25 and values["loop/pairs"] == 0
