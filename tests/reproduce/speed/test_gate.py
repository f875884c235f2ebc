"""Timing gate and report as commands: made-up runs that the gate takes as real, figures held to their targets, the wiring."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from benchmarks.catalog import CATALOG, PAPER
from harness.gate.gate import gate_runs
from harness.records import read_evaluations
from reproduce.speed import cli as speed_cli
from reproduce.speed import gate as speed_gate
from reproduce.speed.gate import DISCORDANT, Timed, line, made_records, make_run, run_commands, timed

app = typer.Typer()
speed_cli.register(app)


@app.command("other")
def other() -> None:
    """A second command, so that typer keeps the first one's name."""


def test_a_made_up_run_is_one_the_gate_compares(tmp_path: Path) -> None:
    n = make_run(tmp_path, 0.02)
    base, last = (read_evaluations(tmp_path / s) for s in ("base", "iter-1"))
    assert set(base) == set(PAPER)
    assert sum(len(e.records) for e in base.values()) == n
    result = gate_runs(last, base)
    assert result.integrity == []
    changed = sum((d.gained or 0) + (d.lost or 0) for d in result.decisions if d.question == "no_regression" and d.benchmark != "all")
    assert changed / n == pytest.approx(DISCORDANT, abs=0.04)


def test_full_size_is_the_catalogs() -> None:
    for name in ("egoschema", "longvideobench"):
        b = CATALOG[name]
        records = made_records(b, 1.0, changed=False)
        assert (len(records), len({r.video_id for r in records})) == (b.n, b.videos)


def test_a_figure_over_its_target_is_not_met() -> None:
    def row(seconds: list[float], mb: float) -> Timed:
        return Timed("report", "report run", 10, seconds, seconds, 30.0, mb, 15.0)

    assert row([10.0, 29.0, 90.0], 14.0).met
    assert not row([10.0, 31.0, 31.0], 14.0).met
    assert not row([1.0], 16.0).met
    assert "not met" in line(row([1.0], 16.0).to_json())


def test_a_command_that_breaks_is_no_time(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ended with 2"):
        timed(["gate", "nowhere", "--against", "nowhere"], tmp_path, allowed=(0,))


def test_both_commands_are_timed_from_outside() -> None:
    said: list[str] = []
    gate, report = run_commands(["report", "gate"], 1, said.append, share=0.005)
    assert [gate["name"], report["name"]] == ["gate", "report"]
    assert all(len(r["seconds"]) == 1 and r["seconds"][0] > 0 and r["cpu_seconds"][0] > 0 for r in (gate, report))
    assert report["megabytes"] > 0
    assert gate["megabytes"] is None
    assert len(said) == 2


def test_named_alone_they_need_no_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    row = Timed("gate", "gate", 7, [1.0], [1.0], 10.0).to_json()
    asked: list[object] = []

    def instead(names: list[str], rounds: int, say: object, *, share: float) -> list[dict[str, object]]:
        asked.append((names, rounds, share))
        return [row]

    monkeypatch.setattr(speed_gate, "run_commands", instead)
    monkeypatch.setattr("reproduce.speed.cases.run", lambda *a, **k: pytest.fail("no engine case was asked for"))
    file = tmp_path / "speed.json"
    for preset, share in (("smoke", speed_gate.SMALL_SHARE), ("cpu", 1.0), ("gpu", 1.0)):
        done = CliRunner().invoke(app, ["speed", "--preset", preset, "--case", "gate", "--rounds", "1", "--out", str(file)])
        assert done.exit_code == 0, done.output
        assert asked.pop() == (["gate"], 1, share)
        assert json.loads(file.read_text())["commands"] == [row]
    assert CliRunner().invoke(app, ["speed", "--case", "gate", "--svg", str(file)]).exit_code == 2
    plan = CliRunner().invoke(app, ["speed", "--dry-run"]).output
    assert plan.split()[-3:] == ["gate", "report", "start"]
