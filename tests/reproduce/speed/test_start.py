"""Timing the start: every way in every round, ratios taken within a round, and the wiring; nothing heavy is started here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from reproduce.speed import cli as speed_cli
from reproduce.speed import start
from reproduce.speed.start import CASE, IMPORTS, PYTHON, WAYS, row, run_start, table


def test_every_way_is_run_in_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []

    def instead(arguments: list[str], cwd: Path, *, allowed: tuple[int, ...]) -> tuple[float, float]:
        assert allowed == (0,)
        assert (cwd / "clips/0007.mp4").is_file() or ran
        ran.append(arguments)
        return float(len(ran)), 0.0

    monkeypatch.setattr(start, "timed_python", instead)
    said: list[str] = []
    rows = run_start(2, said.append)
    assert ran == [*WAYS.values(), *WAYS.values()]
    assert [one["name"] for one in rows] == list(WAYS)
    assert rows[0]["seconds"] == [1.0, 1.0 + len(WAYS)]
    assert rows[0]["cpu_seconds"] == [0.0, 0.0]
    assert said == [table(rows)]


def test_a_ratio_is_taken_within_a_round() -> None:
    seconds = {PYTHON: [1.0, 30.0, 1.0], IMPORTS: [2.0, 60.0, 4.0], "savi --help": [0.5, 6.0, 0.5]}
    assert row(PYTHON, seconds)["ratio"] == 0.5
    assert row(PYTHON, seconds)["met"] is None
    assert row("savi --help", seconds)["ratio"] == 0.125
    assert row("savi --help", seconds)["met"]
    assert not row("savi --help", {**seconds, "savi --help": [1.1, 1.1, 0.1]})["met"]
    assert "| 0.50 [0.50, 6.00] | 0.30 | 0.12 | under 1 s: met |" in table([row("savi --help", seconds) | {"cpu_seconds": [0.3, 0.4, 0.2]}])


def test_the_quick_ways_run_as_they_stand(tmp_path: Path) -> None:
    for name in (PYTHON, "import savi", "benchmarks --help"):
        assert start.timed_python(WAYS[name], tmp_path, allowed=(0,))[0] > 0


def test_it_is_a_case_of_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    app = typer.Typer()
    speed_cli.register(app)
    app.command("other")(lambda: None)
    asked: list[int] = []
    monkeypatch.setattr(start, "run_start", lambda rounds, say: asked.append(rounds) or [{"name": PYTHON}])
    file = tmp_path / "speed.json"
    done = CliRunner().invoke(app, ["speed", "--preset", "smoke", "--case", CASE, "--rounds", "3", "--out", str(file)])
    assert done.exit_code == 0, done.output
    assert asked == [3]
    assert json.loads(file.read_text())["start"] == [{"name": PYTHON}]
