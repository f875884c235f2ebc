"""The study's arithmetic on made-up runs, its commands, and what it says of runs that broke."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from scipy import stats
from typer.testing import CliRunner

from reproduce.__main__ import app
from reproduce.study import study
from reproduce.study.study import Plan, StudyError, benchmark_table, interval, pair_table, run_all, study_plot, study_table, summary


def _row(seed: int, control: str, means: list[float]) -> dict[str, object]:
    stages = [{"mean_pct": m, "mvbench": {"strict_pct": m, "upstream_pct": m, "n": 10}} for m in means]
    quality = {"asked": 10, "valid_pct": 80.0, "initial_pct": 40.0, "revised_pct": 70.0, "pairs": 4, "precision_pct": None}
    return {"seed": seed, "control": control, "stages": stages, "pairs": [quality] * (len(means) - 1)}


def test_interval_is_the_t_interval() -> None:
    values = [1.0, 2.5, 4.0]
    low, high = stats.t.interval(0.95, 2, loc=2.5, scale=stats.sem(values))
    assert interval(values) == pytest.approx((2.5, low, high), abs=1e-9)
    assert interval([3.0]) == (3.0, 3.0, 3.0)


def test_summary_takes_changes_run_by_run() -> None:
    rows = [_row(0, "none", [40, 42, 45]), _row(1, "none", [50, 51, 57]), _row(0, "reversed", [40, 39, 38])]
    got = summary(rows)
    assert got["none"]["runs"] == [[2, 5], [1, 7]] and got["none"]["base_pct"] == 45
    assert [c["points"] for c in got["none"]["change"]] == [1.5, 6.0]
    assert got["reversed"]["change"][1]["points"] == -2


def test_tables_name_the_scale_and_every_control() -> None:
    rows = [_row(0, "none", [40, 42]), _row(0, "blind", [40, 39])]
    text = study_table(rows, "micro").to_markdown()
    assert "micro" in text and "none" in text and "blind" in text and "+2.0" in text and "-1.0" in text
    assert "mvbench" in benchmark_table(rows, "micro").to_markdown()
    assert "70.0" in pair_table(rows, "micro").to_markdown()


def test_plot_draws_every_control() -> None:
    svg = study_plot([_row(0, "none", [40, 42]), _row(0, "blind", [40, 39])], "micro")
    assert "<svg" in svg and "none" in svg and "blind" in svg and "micro" in svg


def test_command_names_seed_control_and_folder(tmp_path: Path) -> None:
    words = Plan(tmp_path, (3,), ("blind",), iterations=2, twins_seed=5, settings=("training.epochs=2",)).command(3, "blind")
    text = " ".join(words[1:])
    assert (
        "--seed 3 --control blind" in text
        and "--iterations 2" in text
        and "--twins-seed 5" in text
        and "--set training.epochs=2" in text
        and str(tmp_path / "seed3-blind") in text
    )


def test_controls_take_the_first_seeds(tmp_path: Path) -> None:
    runs = Plan(tmp_path, (5, 6, 7), ("none", "blind"), control_seeds=2).runs()
    assert runs == [(5, "none"), (6, "none"), (7, "none"), (5, "blind"), (6, "blind")]


def test_a_broken_run_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study.Plan, "command", lambda self, s, c: ["python", "-c", "raise SystemExit(5)"])
    with pytest.raises(StudyError, match=r"seed0-none\.log.*code 5"):
        run_all(Plan(tmp_path, (0,), ("none",)))


def test_runs_side_by_side_share_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(study.os, "cpu_count", lambda: 8)
    code = "import os; print(os.environ.get('OMP_NUM_THREADS'))"
    monkeypatch.setattr(study.Plan, "command", lambda self, s, c: [sys.executable, "-c", code])
    for jobs, said in ((1, "None"), (2, "4"), (16, "1")):
        run_all(Plan(tmp_path / str(jobs), (0,), ("none",)), jobs=jobs)
        assert (tmp_path / str(jobs) / "seed0-none.log").read_text().strip() == said


@pytest.mark.parametrize(
    "args", [["--controls", "magic"], ["--scale", "8b"], ["--seeds", "one"], ["--controls", ""], ["--set", "training.epoch=2"]]
)
def test_usage_errors_exit_2(args: list[str]) -> None:
    assert CliRunner().invoke(app, ["study", *args]).exit_code == 2
