"""Bases by seed: made once, checked against limits that can fail, and the command's exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.micro.pretrain import recipe as pretrain
from benchmarks.micro.pretrain.recipe import Recipe
from reproduce.__main__ import app
from reproduce.bases import limits, make
from reproduce.bases.cli import parse_seeds
from reproduce.bases.limits import Measured, Twin, read_measured, write_measured
from savi.base.errors import FileFormatError, UsageError

GOOD = Measured({"tempcompass": Twin(60.0, 42.0), "nextqa": Twin(50.0, 20.0)}, 1200, 92.0, 95.0, 40.0, 88.0)


def test_seeds_are_read() -> None:
    assert parse_seeds(["1-3,7", "2"]) == (1, 2, 3, 7)
    for bad in ("", "x", "3-1"):
        with pytest.raises(ValueError):
            parse_seeds([bad])


@pytest.mark.parametrize(
    ("worse", "name"),
    [
        (replace(GOOD, twins={**GOOD.twins, "tempcompass": Twin(51.9, 42.0)}), "tempcompass"),
        (replace(GOOD, readable_pct=84.9), "read"),
        (replace(GOOD, revised_pct=84.9), "revised"),
    ],
)
def test_each_limit_can_fail(worse: Measured, name: str) -> None:
    assert GOOD.passed and GOOD.gap == 48.0 and GOOD.mean_pct == 55.0
    missed = [limit.name for limit in worse.limits if not limit.met]
    assert not worse.passed and len(missed) == 1 and name in missed[0]
    text = make.limits_table({"seed-1": GOOD, "seed-2": worse}).to_markdown()
    assert "(below)" in text and "not met" in text and text.count("(below)") == 1


def test_what_was_measured_is_read_back(tmp_path: Path) -> None:
    write_measured(tmp_path / "check.json", GOOD)
    assert read_measured(tmp_path / "check.json") == GOOD
    (tmp_path / "check.json").write_text("{}")
    with pytest.raises(FileFormatError, match="delete it and check again"):
        read_measured(tmp_path / "check.json")


def _pretend(log: list[int]) -> Callable[[Path, Recipe], dict[str, object]]:
    def rebuild(out: Path, recipe: Recipe) -> dict[str, object]:
        log.append(recipe.seed)
        out.mkdir(parents=True, exist_ok=True)
        (out / "training.json").write_text(json.dumps({"recipe": asdict(recipe)}))
        (out / "config.json").write_text("{}")
        return {}

    return rebuild


def test_a_base_is_made_once_and_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(pretrain, "rebuild", _pretend(made))
    for seed in (3, 4, 3):
        make.make_base(tmp_path, seed)
    assert made == [3, 4]
    path = make.base_folder(tmp_path, 3) / "training.json"
    path.write_text(json.dumps({"recipe": asdict(replace(Recipe(seed=3), batch=7))}))
    with pytest.raises(UsageError, match=r"another recipe \(batch differ"):
        make.make_base(tmp_path, 3)
    path.write_text("{")
    with pytest.raises(UsageError, match="does not say by which recipe"):
        make.make_base(tmp_path, 3)
    assert made == [3, 4]


@pytest.mark.parametrize(("found", "code"), [(GOOD, 0), (replace(GOOD, readable_pct=57.0), 1)])
def test_the_command_makes_checks_and_says_so(found: Measured, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(pretrain, "rebuild", _pretend(made))
    monkeypatch.setattr("reproduce.paper.launch.become_worker", lambda *_, **__: None)
    monkeypatch.setattr(limits, "prepare", lambda _: None)
    monkeypatch.setattr(make, "measure", lambda *_: found)
    done = CliRunner().invoke(app, ["bases", "--seeds", "5", "--out", str(tmp_path)])
    assert done.exit_code == code, done.output
    assert made == [5] and "seed-5" in done.output
    assert ("57.0 (below)" in done.output) == (code == 1)
    again = CliRunner().invoke(app, ["bases", "--check", str(tmp_path / "seed-5"), "--out", str(tmp_path)])
    assert again.exit_code == code and made == [5]


@pytest.mark.parametrize("arguments", [["--seeds", "one"], ["--check", "nowhere"]])
def test_wrong_use(arguments: list[str], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["bases", *arguments, "--out", str(tmp_path)])
    assert done.exit_code == 2 and arguments[1] in done.output
