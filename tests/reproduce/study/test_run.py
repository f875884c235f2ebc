"""Running a study: what is made, what is not made again, and what becomes of runs that break; commands are stand-ins that take no time."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import textwrap
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.micro.pretrain.recipe import Recipe
from harness.records import write_evaluation
from harness.tables.study import STUDY_DIR
from reproduce.__main__ import app
from reproduce.runner import Runner, Task
from reproduce.study.plan import Plan, Run, StudyError, read_bases
from reproduce.study.records import RecordsError, read_records, record_path, write_record
from reproduce.study.run import RUN_S, run_study, times
from savi.base.errors import UsageError
from savi.base.files import write_text_atomic
from tests.reproduce.fakes import fake_evaluation
from tests.reproduce.study.made import QUESTIONS, made_records

ROOT = Path(__file__).parents[3]


def folder(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(path.name.encode())
    return path


def fake_run(plan: Plan, run: Run) -> None:
    """The files of a finished run: base and one iteration of two benchmarks."""
    at = plan.folder(run)
    for t in range(2):
        for name in ("nextqa", "egoschema"):
            evaluation = fake_evaluation(name, "smoke", 0.5 + 0.1 * t, f"{run.base.name if t == 0 else run.name}")
            write_evaluation(at / ("base" if t == 0 else "iter-1") / "eval", evaluation)
    for name in ("pairs.jsonl", "dropped.jsonl"):
        write_text_atomic(at / "iter-1" / name, "")
    write_text_atomic(at / "timings.json", '{"base/evaluate": {"wall_s": 40.0}, "iter-1/train": {"wall_s": 2.5}}')
    write_text_atomic(
        at / "run.json", json.dumps({"schema_version": 1, "settings": {}, "versions": {"python": "3"}, "git": {"commit": "c"}})
    )


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """Two bases, the method and a control, one iteration; a run is made by a command that does nothing, after its files are there."""
    bases = read_bases(f"{folder(tmp_path / 'one')},{folder(tmp_path / 'two')}", "1", tmp_path)
    made = Plan(tmp_path / "out", bases, ("dpo", "sft"), "smoke", {"loop.iterations": 1})
    monkeypatch.setattr(Plan, "command", lambda self, run: (fake_run(self, run), [sys.executable, "-c", "pass"])[1])
    return made


def said(plan: Plan, **more: object) -> list[str]:
    lines: list[str] = []
    run_study(plan, plan.out / "kept", jobs=2, tell=lines.append, **more)  # type: ignore[arg-type]
    return lines


def test_every_run_leaves_a_record_and_is_not_run_again(plan: Plan) -> None:
    lines = said(plan)
    assert len(lines) == 5
    assert lines[0].startswith("4 to do, 2 at a time")
    assert "(4 of 4, 0 failed)" in lines[-1]
    questions, records = read_records(plan.out / "kept")
    assert [r.name for r in records] == ["one-seed100-dpo", "one-seed100-sft", "two-seed200-dpo", "two-seed200-sft"]
    assert questions.n == 80
    assert {r.iterations for r in records} == {1}
    assert {r.wall_s for r in records} == {42.5}
    assert said(plan) == []


def test_a_folder_can_go_once_its_record_is_kept(plan: Plan) -> None:
    said(plan, discard=True)
    assert not any((plan.out / "runs").iterdir())
    assert said(plan) == []


def test_one_broken_run_never_ends_the_rest(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Plan.command

    def command(self: Plan, run: Run) -> list[str]:
        broken = [sys.executable, "-c", "import sys; print('error: no room left'); sys.exit(5)"]
        return broken if run.name == plan.runs()[0].name else whole(self, run)

    monkeypatch.setattr(Plan, "command", command)
    with pytest.raises(StudyError, match=r"1 failed: one-seed100-dpo: exit code 5: error: no room left \(log: .*one-seed100-dpo.log"):
        said(plan)
    assert len(read_records(plan.out / "kept")[1]) == 3
    assert "one-seed100-dpo" in (plan.out / "failures.jsonl").read_text()
    monkeypatch.setattr(Plan, "command", whole)
    assert len(said(plan)) == 2
    assert (plan.out / "failures.jsonl").read_text() == ""


def test_a_run_whose_files_are_broken_is_listed_too(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Plan.command

    def command(self: Plan, run: Run) -> list[str]:
        words = whole(self, run)
        if run.name == plan.runs()[1].name:
            (plan.folder(run) / "iter-1" / "eval" / "nextqa" / "questions.jsonl").write_text("{}\n")
        return words

    monkeypatch.setattr(Plan, "command", command)
    with pytest.raises(StudyError, match="1 failed"):
        said(plan)
    assert len(read_records(plan.out / "kept")[1]) == 3


@pytest.mark.parametrize("what", ["settings", "base model", "freezing file"])
def test_records_of_something_else_are_refused_and_kept(what: str, plan: Plan, tmp_path: Path) -> None:
    said(plan)
    before = {p.name: p.read_bytes() for p in (plan.out / "kept" / "records").iterdir()}
    other = plan
    if what == "settings":
        other = Plan(plan.out, plan.bases, plan.variants, "smoke", {"loop.iterations": 1, "training.beta": 0.7})
    elif what == "freezing file":
        other = Plan(plan.out, plan.bases, plan.variants, "smoke", plan.settings, "f" * 64)
    else:
        (tmp_path / "one" / "model.safetensors").write_bytes(b"other weights")
        other = Plan(plan.out, read_bases(f"{tmp_path / 'one'},{tmp_path / 'two'}", "1", tmp_path), ("dpo",), "smoke", plan.settings)
        for record in (plan.out / "kept" / "records").glob("two-*"):
            record.unlink()
            del before[record.name]
    with pytest.raises(RecordsError, match=f"another {what}"):
        said(other)
    assert {p.name: p.read_bytes() for p in (plan.out / "kept" / "records").iterdir()} == before


def test_tables_are_written_of_what_there_is_where_a_run_failed(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Plan.command
    fails = [sys.executable, "-c", "raise SystemExit(5)"]
    monkeypatch.setattr(Plan, "command", lambda self, run: fails if run.variant == "sft" else whole(self, run))
    args = ["--scale", "smoke", "--iterations", "1", "--controls", "sft", "--out", str(plan.out), "--jobs", "2"]
    done = CliRunner().invoke(app, ["study", "--bases", ",".join(str(base.path) for base in plan.bases), *args])
    assert done.exit_code == 5, done.output
    assert "2 failed" in done.output
    assert "dpo: the method" in (plan.out / "README.md").read_text()


def test_a_base_that_cannot_be_made_costs_its_runs_alone(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Plan(plan.out, (plan.bases[0], *read_bases("7,", "1", tmp_path / "bases")), ("dpo",), "smoke", plan.settings)
    monkeypatch.setattr(type(made.bases[1]), "command", lambda self: [sys.executable, "-c", "raise SystemExit('no memory')"])
    with pytest.raises(StudyError, match=r"2 failed: recipe-7: exit code 1: no memory.*recipe-7-seed700-dpo: base recipe-7 is not there"):
        said(made)
    assert [r.name for r in read_records(plan.out / "kept")[1]] == ["one-seed100-dpo"]


def test_hours_are_said_before_and_then_by_what_runs_took(plan: Plan) -> None:
    needed = times(plan, plan.out / "kept", 2)
    assert (needed.bases, needed.runs, needed.run_s) == (0, 4, RUN_S["smoke"])
    assert needed.hours == pytest.approx(4 * RUN_S["smoke"] / 3600 / 2)
    assert "a run as those of results/study took" in needed.line()
    said(plan)
    record_path(plan.out / "kept", plan.runs()[0].name).unlink()
    needed = times(plan, plan.out / "kept", 1)
    assert (needed.runs, needed.run_s) == (1, 42.5)
    assert "the median of this study's 3" in needed.line()


def test_a_missing_base_counts(tmp_path: Path) -> None:
    made = Plan(tmp_path, read_bases("3", "1", tmp_path / "bases"), ("dpo",))
    needed = times(made, tmp_path, 1)
    assert needed.bases == 3
    assert needed.hours > 3 * 0.1
    folder(tmp_path / "bases" / "seed-2")
    facts = {"recipe": asdict(replace(Recipe(), seed=2)), "minutes": 7.5}
    (tmp_path / "bases" / "seed-2" / "training.json").write_text(json.dumps(facts))
    needed = times(Plan(tmp_path, read_bases("3", "1", tmp_path / "bases"), ("dpo",)), tmp_path, 1)
    assert (needed.bases, needed.base_s) == (2, 450)
    assert "a base as the median of this study's 1" in needed.line()
    (tmp_path / "bases" / "seed-2" / "training.json").write_text(json.dumps({"recipe": {"seed": 2}}))
    with pytest.raises(UsageError, match="another recipe"):
        times(Plan(tmp_path, read_bases("3", "1", tmp_path / "bases"), ("dpo",)), tmp_path, 1)


def test_every_run_has_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    runner = Runner(tmp_path, 2, lambda line: None)
    runner.all([Task("a", lambda: [sys.executable, "-c", "import os; print(os.environ['OMP_NUM_THREADS'])"])])
    assert (tmp_path / "logs" / "a.log").read_text().strip() == "1"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_ends_the_runs_too(number: signal.Signals, tmp_path: Path) -> None:
    """One that would take minutes is gone when the study is, and nothing else is begun."""
    script = textwrap.dedent(
        f"""
        import sys
        from pathlib import Path
        from reproduce.runner import Runner, Task
        from savi.base.cli import stop_signals, Stopped
        slow = [sys.executable, "-c", "import os, time, pathlib; pathlib.Path('pid').write_text(str(os.getpid())); time.sleep(300)"]
        later = [sys.executable, "-c", "import pathlib; pathlib.Path('begun').touch()"]
        try:
            with stop_signals():
                Runner(Path({str(tmp_path)!r}), 1, print).all([Task("slow", lambda: slow), Task("later", lambda: later)])
        except Stopped as stopped:
            sys.exit(int(stopped.exit_code))
        """
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    restore = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, env=environment, preexec_fn=restore) as process:
        until = time.monotonic() + 60
        while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()) and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(30) == (143 if number == signal.SIGTERM else 130)
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not (tmp_path / "begun").exists()


def kept(tmp_path: Path) -> Path:
    for record in made_records({"dpo": [6, 8], "reversed": [-5, -6]}, 5):
        write_record(tmp_path, record, QUESTIONS)
    return tmp_path


def test_table_and_figures_are_made_from_the_records_by_one_command_each(tmp_path: Path) -> None:
    at = kept(tmp_path)
    figures = CliRunner().invoke(app, ["study-figures", str(at)])
    assert figures.exit_code == 0, figures.output
    assert sorted(p.name for p in at.glob("*.svg")) == ["curves.svg", "gain_by_gap.svg", "pairs.svg"]
    table = CliRunner().invoke(app, ["study-table", str(at)])
    assert table.exit_code == 0, table.output
    text = (at / "README.md").read_text()
    assert "NOT FROZEN" in text
    assert "](curves.svg)" in text
    assert (at / "gains.csv").read_text().startswith("scale,group,training,bases")
    as_json = CliRunner().invoke(app, ["study-table", str(at), "--json"])
    assert json.loads(as_json.stdout)["gains"]["dpo"][1]["n"] == 5


def test_no_records_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    for command in ("study-table", "study-figures"):
        done = CliRunner().invoke(app, [command, str(tmp_path)])
        assert done.exit_code == 2
        assert "questions.json" in done.output


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--controls", "magic"], "unknown variant magic"),
        (["--scale", "8b"], "real data"),
        (["--seeds", "one"], "--seeds"),
        (["--set", "training.epoch=2"], "training.epochs"),
        (["--set", "training.epochs=0"], "training.epochs"),
        (["--bases", "nowhere"], "no checkpoint"),
        (["--rivals", "other-critic"], "at least two"),
        (["--frozen", "nowhere.yaml"], "nowhere.yaml"),
        (["--freeze", "f.yaml", "--tuned-on", "base"], "--tuned-on"),
    ],
)
def test_usage_errors_exit_2_and_run_nothing(args: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["study", *args])
    assert done.exit_code == 2, done.output
    assert said in done.output
    assert not list(tmp_path.iterdir())


def test_a_dry_run_says_hours_and_runs_and_makes_nothing(tmp_path: Path) -> None:
    args = ["study", "--bases", "12", "--rivals", "no-critique", "--out", str(tmp_path / "out"), "--dry-run", "--jobs", "2"]
    done = CliRunner().invoke(app, [*args, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["bases"] == 12
    assert len(found["runs"]) == 12 * 5
    assert found["hours"] > 2
    text = CliRunner().invoke(app, args).output
    assert "12 base models" in text
    assert "NOT FROZEN" in text or "not frozen" in text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("beside", ["", "study.json"])
def test_a_readme_of_something_else_is_not_replaced(beside: str, tmp_path: Path) -> None:
    at = kept(tmp_path)
    text = "# Study at scale micro\n" if beside else "# My project\n"
    (at / "README.md").write_text(text)
    if beside:
        (at / beside).write_text("{}")
    for args in (["study-table", str(at)], ["study", "--keep", str(at), "--out", str(tmp_path / "out"), "--dry-run"]):
        done = CliRunner().invoke(app, args)
        assert done.exit_code == 2, done.output
        assert "README.md" in done.output
    assert (at / "README.md").read_text() == text


def test_a_frozen_studys_claims_are_those_of_the_file(tmp_path: Path) -> None:
    """One more variant, run later, adds no claim."""
    at, frozen = kept(tmp_path), tmp_path / "frozen.yaml"
    CliRunner().invoke(app, ["study", "--bases", "5", "--controls", "none", "--freeze", str(frozen)])
    found = json.loads(CliRunner().invoke(app, ["study-table", str(at), "--json"]).stdout)
    assert "gain" in {claim["id"] for claim in found["claims"]}
    assert "dpo-over-reversed" not in {claim["id"] for claim in found["claims"]}
    frozen.unlink()
    found = json.loads(CliRunner().invoke(app, ["study-table", str(at), "--json"]).stdout)
    assert "dpo-over-reversed" in {claim["id"] for claim in found["claims"]}


def test_freezing_and_running_something_else(tmp_path: Path) -> None:
    study = ["study", "--bases", "3", "--out", str(tmp_path / "out"), "--keep", str(tmp_path)]
    frozen = tmp_path / "frozen.yaml"
    done = CliRunner().invoke(app, [*study, "--freeze", str(frozen), "--tuned-on", "recipe-101:10100,10101", "--tuned-twins-seed", "7"])
    assert done.exit_code == 0, done.output
    assert CliRunner().invoke(app, [*study, "--dry-run"]).exit_code == 0  # found in KEEP
    done = CliRunner().invoke(app, [*study, "--dry-run", "--set", "training.beta=0.9"])
    assert done.exit_code == 2
    assert "training.beta: 0.2 is frozen, 0.9 now" in done.output


def test_the_shipped_figures_are_those_of_the_kept_study() -> None:
    took = [record.wall_s for record in read_records(STUDY_DIR)[1] if record.variant == "dpo"]
    assert statistics.median(took) == pytest.approx(RUN_S["micro"], abs=1)
