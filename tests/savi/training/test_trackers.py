"""Trackers are told what the logs say, and only those that were asked for."""

from __future__ import annotations

import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest

from savi.base.errors import ExitCode, UsageError
from savi.curves import iteration_curves
from savi.loop.journal import AlignCounts, Journal
from savi.training.settings import DPOSettings
from savi.training.trackers import NoTrackerError, read_trackers, report
from savi.training.trainer import train
from tests.savi.scripted import FRAMES, random_pairs, write_clips
from tests.savi.tiny import tiny_video_lm

SETTINGS = DPOSettings(learning_rate=1e-3, pairs_per_step=2, logging_steps=1, num_frames=FRAMES)


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    module.__dict__.update(members)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Name -> step -> value of all event files below a folder, as TensorBoard itself reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[str, dict[int, float]] = {}
    for file in sorted(folder.rglob("events.out.tfevents.*")):
        events = EventAccumulator(str(file))
        events.Reload()
        for name in events.Tags()["scalars"]:
            found.setdefault(name, {}).update({event.step: event.value for event in events.Scalars(name)})
    return found


def test_tensorboard_has_the_training_log(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    pairs = random_pairs(write_clips(tmp_path, 3))
    result = train(tiny_video_lm(layers=2), pairs, SETTINGS, tmp_path / "out", report_to=read_trackers("tensorboard"))
    found = scalars(tmp_path / "out" / "train")
    assert len(result.log) > 1
    for key in ("loss", "rewards/chosen", "rewards/margins", "learning_rate"):
        assert found[f"train/{key}"] == pytest.approx({int(row["step"]): row[key] for row in result.log}, rel=1e-5, abs=1e-7)


def test_without_trackers_nothing_is_written_for_them(tmp_path: Path) -> None:
    train(tiny_video_lm(layers=2), random_pairs(write_clips(tmp_path, 1)), SETTINGS, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out" / "train").iterdir()} <= {"log.jsonl", "result.json", ".lock"}


def test_tensorboard_has_the_loops_curves_in_one_run(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    for step, pairs in ((1, 10), (2, 7)):
        report(["tensorboard"], tmp_path, step, {"pairs": pairs, "score": 50.5 + step})
    assert scalars(tmp_path / "loop") == {"loop/pairs": {1: 10, 2: 7}, "loop/score": {1: 51.5, 2: 52.5}}


def wandb_stand_in(monkeypatch: pytest.MonkeyPatch, mode: str) -> list[Any]:
    """What it is told, in order."""
    told: list[Any] = []
    run = SimpleNamespace(define_metric=lambda *a, **k: None, log=told.append, finish=lambda: told.append("finish"))

    def init(**options: Any) -> Any:
        told.append(options)
        return run

    setup = SimpleNamespace(settings=SimpleNamespace(mode=mode))
    stand_in(monkeypatch, "wandb", run=None, init=init, setup=lambda: setup, login=lambda: told.append("login"))
    return told


def test_wandb_gets_one_run_for_all_iterations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = wandb_stand_in(monkeypatch, "online")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    for step, pairs in ((1, 10), (2, 7)):
        report(["wandb"], tmp_path / "aligned", step, {"pairs": pairs})
    first, second = told[0], told[3]
    assert first == second and first["project"] == "mine" and first["resume"] == "allow" and first["name"].endswith("aligned/loop")
    assert [told[1], told[4]] == [{"loop/pairs": 10, "iteration": 1}, {"loop/pairs": 7, "iteration": 2}]
    assert [told[2], told[5]] == ["finish", "finish"] and len(told) == 6


def test_wandb_offline_gets_all_iterations_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is opened again there, and what is sent later takes the place of what was sent before."""
    told = wandb_stand_in(monkeypatch, "offline")
    assert read_trackers("wandb") == ("wandb",) and not told, "offline, no key is needed"
    for step, pairs in ((1, 10), (2, 7), (2, 8)):
        report(["wandb"], tmp_path / "aligned", step, {"pairs": pairs})
    assert "resume" not in told[0]
    rows = [row for row in told if "iteration" in row]
    assert [(row["iteration"], row["loop/pairs"]) for row in rows] == [(1, 10), (1, 10), (2, 7), (1, 10), (2, 8)]


def test_damaged_curves_are_left_alone_and_the_trackers_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = wandb_stand_in(monkeypatch, "offline")
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop" / "curves.jsonl").write_text("{no json\n{}\n")
    with pytest.warns(UserWarning, match=r"curves\.jsonl is told no more"):
        report(["wandb"], tmp_path, 3, {"pairs": 10})
    assert told[1] == {"loop/pairs": 10, "iteration": 3}
    assert (tmp_path / "loop" / "curves.jsonl").read_text() == "{no json\n{}\n"


def test_wandb_without_an_account_is_told_of_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    told = wandb_stand_in(monkeypatch, "online")
    assert read_trackers("wandb") == ("wandb",) and told == ["login"]

    def refuse() -> None:
        raise RuntimeError("No API key configured.\nUse `wandb login` to log in.")

    monkeypatch.setattr(sys.modules["wandb"], "login", refuse)
    with pytest.raises(NoTrackerError, match=r"No API key configured\. Use `wandb login` to log in\. Or keep .* WANDB_MODE=offline"):
        read_trackers("wandb")


class Failing:
    """A tracker that is gone after the first values."""

    told: ClassVar[list[str]] = []

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.told.append("begin")

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        self.told.append("log")
        raise ConnectionError("no way\nto the server")


def test_a_tracker_that_fails_ends_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations import integration_utils

    stand_in(monkeypatch, "trackio", init=lambda **_: 1 / 0)
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "trackio", Failing)
    with pytest.warns(UserWarning, match=r"^trackio is told no more: ConnectionError: no way to the server$"):
        result = train(
            tiny_video_lm(layers=2),
            random_pairs(write_clips(tmp_path, 3)),
            SETTINGS,
            tmp_path / "out",
            report_to=("trackio", "tensorboard"),
        )
    assert result.steps > 1 and Failing.told == ["begin", "log"]
    assert len(scalars(tmp_path / "out" / "train")["train/loss"]) == result.steps, "the others are told all"
    with pytest.warns(UserWarning, match="trackio is told no more: ZeroDivisionError"):
        report(["trackio", "tensorboard"], tmp_path / "out", 1, {"pairs": 3})
    assert scalars(tmp_path / "out" / "loop") == {"loop/pairs": {1: 3}}


def test_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    stand_in(
        monkeypatch,
        "trackio",
        init=lambda **options: told.append(options),
        log=lambda values, step: told.append((values, step)),
        finish=lambda: told.append("finish"),
    )
    assert read_trackers("trackio") == ("trackio",)
    report(["trackio"], tmp_path / "aligned", 3, {"kl": 0.5})
    assert told[0]["resume"] == "allow" and told[1:] == [({"loop/kl": 0.5}, 3), "finish"]


def test_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_trackers("none") == read_trackers("") == ()
    with pytest.raises(UsageError, match="there are tensorboard, wandb, trackio, none"):
        read_trackers("mlflow")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NoTrackerError, match="pip install trackio") as error:
        read_trackers("trackio")
    assert error.value.exit_code == ExitCode.MACHINE


def test_the_curves_of_an_iteration(tmp_path: Path) -> None:
    pairs = random_pairs([tmp_path / "a.mp4", tmp_path / "b.mp4"])
    journal = Journal(tmp_path / "pairs.jsonl", None, model="m", settings={}, videos=["a.mp4", "b.mp4"])
    counts = AlignCounts(videos=2, broken=0, questions=8, pairs=4, dropped={"unchanged": 2, "unreadable answer": 2})
    journal.add(pairs, [], [], 2, counts)
    (tmp_path / "train").mkdir()
    rows = [{"loss": 0.7, "rewards/rejected": 0.0}, {"loss": 0.6, "rewards/chosen": 0.02, "rewards/rejected": -0.05, "step": 4}]
    (tmp_path / "train/log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = iteration_curves(tmp_path, DPOSettings(beta=0.1))
    assert (found["pairs"], found["validity"], found["critique_changed"]) == (4, 6 / 8, 4 / 6)
    chosen, rejected = (sum(len(getattr(pair, side).split()) for pair in pairs) for side in ("chosen", "rejected"))
    assert found["length_drift"] == pytest.approx(chosen / rejected)
    assert found["kl"] == pytest.approx(0.5) and found["reward_chosen"] == 0.02
    assert "kl" not in iteration_curves(tmp_path, DPOSettings(loss_type="simpo"))
