"""The command line: what it says first, what it refuses, and with which exit code."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from benchmarks.data.layout import DatasetError
from reproduce.__main__ import app
from reproduce.paper import cli, launch
from reproduce.paper.work import RealWork
from reproduce.run_dir import RunDir
from savi.training.callbacks import DivergedError
from tests.reproduce.fakes import FakeWork

ROOT = Path(__file__).resolve().parents[3]
Invoke = Callable[..., Result]
SMALL = ("--scale", "smoke", "--benchmarks", "nextqa,egoschema", "--iterations", "1")


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, work: FakeWork, fake_base: Path, tmp_path: Path) -> Invoke:
    """paper with a fake model, in tmp_path/run, without becoming another process."""
    monkeypatch.setattr(cli, "make_work", lambda: work)
    monkeypatch.setattr(launch, "become_worker", lambda *_, **__: None)
    monkeypatch.setattr("reproduce.scale.find_gpus", list)
    monkeypatch.chdir(tmp_path)

    def call(*args: str, out: str = "run") -> Result:
        return CliRunner().invoke(app, ["paper", *args, "--base", str(fake_base), "--out", out])

    return call


def test_a_whole_run_and_the_same_again(invoke: Invoke, work: FakeWork, tmp_path: Path) -> None:
    first = invoke(*SMALL)
    assert first.exit_code == 0, first.output
    assert first.output.startswith("scale smoke: ")
    assert "new run in run" in first.output
    work.calls.clear()
    started = time.monotonic()
    second = invoke(*SMALL)
    assert time.monotonic() - started < 10
    assert second.exit_code == 0
    assert work.calls == []
    assert "stages are done" in second.output
    assert "iteration 1" in second.output


def test_the_report_reads_what_a_run_writes(invoke: Invoke, tmp_path: Path) -> None:
    from harness.report.browse.media import find_data_folder
    from harness.report.read import read_run

    invoke(*SMALL)
    found = read_run(tmp_path / "run")
    written = json.loads((tmp_path / "run/run.json").read_text())
    timed = json.loads((tmp_path / "run/timings.json").read_text())
    assert {s.name: s.source for s in found.settings} == {k: v["source"] for k, v in written["settings"].items()}
    assert {t.stage: t.wall_s for t in found.timings or []} == {k: v["wall_s"] for k, v in timed.items()}
    assert ("data", "micro") in found.facts
    assert found.problems == []
    (tmp_path / "run/data/hf_home").mkdir(parents=True, exist_ok=True)
    assert find_data_folder(found.path, found.run) == tmp_path / "run/data/hf_home"


def test_auto_says_which_scale_and_why_in_its_first_lines(invoke: Invoke, tmp_path: Path) -> None:
    lines = invoke("--benchmarks", "nextqa", "--iterations", "1").output.splitlines()
    assert lines[0].startswith("scale micro: ")
    assert lines[1].strip() == "chosen because: no CUDA GPU found (the paper's scales need one with 16 GB or more)"


def test_the_runs_settings_name_the_command_line(invoke: Invoke, tmp_path: Path) -> None:
    invoke(*SMALL, "--seed", "5", "--limit", "7", "--control", "reversed", "--set", "training.epochs=2")
    settings = json.loads((tmp_path / "run/run.json").read_text())["settings"]
    assert settings["loop.seed"] == {"value": 5, "source": "command line: --seed"}
    assert settings["evaluation.limit"] == {"value": 7, "source": "command line: --limit"}
    assert settings["training.control"] == {"value": "reversed", "source": "command line: --control"}
    assert settings["training.epochs"] == {"value": 2, "source": "command line: --set"}


def test_another_configuration_exits_2_and_names_the_settings(invoke: Invoke) -> None:
    invoke(*SMALL)
    again = invoke(*SMALL, "--seed", "5")
    assert again.exit_code == 2
    assert "loop.seed: 0 there, 5 now" in again.stderr


def test_a_run_takes_from_another_what_would_come_out_the_same(invoke: Invoke, work: FakeWork, tmp_path: Path) -> None:
    """All but what reads other training settings."""
    assert invoke(*SMALL).exit_code == 0
    work.calls.clear()
    other = invoke(*SMALL, "--set", "training.beta=0.3", "--take-from", "run", out="other")
    assert other.exit_code == 0, other.output
    assert "stages taken from run" in other.output
    made = [call.split()[0] if isinstance(call, str) else call[0] for call in work.calls]
    assert "prepare" not in made
    assert "train" in made
    assert (tmp_path / "other" / "report.html").is_file()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--scale", "9b"), "unknown scale '9b'"),
        (("--benchmarks", "imagenet"), "unknown benchmark 'imagenet'"),
        (("--control", "magic"), "unknown control 'magic'"),
        (("--scale", "8b"), "give --videos DIR"),
        (("--scale", "8b", "--videos", "nowhere"), "no such folder"),
        (("--take-from", "nowhere"), "no run"),
        (("--scale", "smoke", "--videos", "."), "is for scales of real data"),
        (("--iterations", "0"), "iterations"),
        (("--set", "training.epoch=2"), "did you mean training.epochs"),
        (("--set", "training.epochs=many"), "command line: --set: training.epochs"),
    ],
)
def test_usage_errors_exit_2_without_a_traceback(invoke: Invoke, args: tuple[str, ...], says: str) -> None:
    result = invoke(*args)
    assert result.exit_code == 2
    assert says in result.stderr
    assert "Traceback" not in result.output
    assert not Path("run").exists()


def test_a_base_without_weights_is_refused(invoke: Invoke, fake_base: Path) -> None:
    (fake_base / "model.safetensors").unlink()
    result = invoke(*SMALL)
    assert result.exit_code == 2
    assert "no checkpoint here" in result.stderr


def test_a_finished_run_without_its_stamps_is_kept_and_started_over_only_when_told(invoke: Invoke, work: FakeWork, tmp_path: Path) -> None:
    invoke(*SMALL)
    shutil.rmtree(tmp_path / "run" / "stages")
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    work.calls.clear()
    refused = invoke(*SMALL)
    assert refused.exit_code == 2
    assert "no stamps in stages/" in refused.stderr
    assert "--start-over" in refused.stderr
    assert work.calls == []
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before
    assert invoke(*SMALL, "--start-over").exit_code == 0
    assert len(work.calls) > 5
    assert invoke(*SMALL).exit_code == 0


def test_a_locked_folder_exits_5(invoke: Invoke, tmp_path: Path) -> None:
    with RunDir(tmp_path / "run").lock():
        result = invoke(*SMALL)
    assert result.exit_code == 5
    assert "another run is at work here" in result.stderr


def test_something_missing_exits_5_with_its_fix_and_the_run_goes_on_after(invoke: Invoke, work: FakeWork) -> None:
    work.boom, work.error = "evaluate 1", DatasetError("nextqa: no Arrow file; run: python -m benchmarks micro --build-twins X")
    result = invoke(*SMALL)
    assert result.exit_code == 5
    assert "python -m benchmarks micro --build-twins" in result.stderr
    assert not Path("run/crash.txt").exists()
    work.boom = ""
    work.calls.clear()
    assert invoke(*SMALL).exit_code == 0
    assert work.calls == ["evaluate 1", "report"]


def test_a_bug_exits_5_and_its_traceback_is_in_a_file(invoke: Invoke, work: FakeWork) -> None:
    work.boom, work.error = "propose 1", ZeroDivisionError("division by zero")
    result = invoke(*SMALL)
    assert result.exit_code == 5
    assert "ZeroDivisionError: division by zero" in result.stderr
    assert "Traceback" not in result.output
    assert "ZeroDivisionError" in Path("run/crash.txt").read_text()


def test_training_that_diverges_is_told_to_change_the_settings(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same command again would diverge again."""

    def diverge(*args: object, **kwargs: object) -> None:
        raise DivergedError(3, "the loss is nan", 1e-3)

    monkeypatch.setattr("savi.iterate.train_stage", diverge)
    monkeypatch.setattr(FakeWork, "train", RealWork.train)
    result = invoke(*SMALL, "--set", "training.learning_rate=0.001")
    assert result.exit_code == 5
    assert "iteration 1, step 3: the loss is nan" in result.stderr
    assert "--set training.learning_rate=... below 0.001, and another --out" in result.stderr
    assert "run the same command" not in result.stderr
    assert invoke(*SMALL, "--set", "training.learning_rate=0.0001").exit_code == 2  # hence "another --out"
    assert not Path("run/crash.txt").exists()


def test_an_interrupt_exits_130(invoke: Invoke, work: FakeWork) -> None:
    work.boom, work.error = "train 1", KeyboardInterrupt()  # type: ignore[assignment]
    result = invoke(*SMALL)
    assert result.exit_code == 130
    assert "run the same command to go on" in result.stderr


def test_records_that_contradict_each_other_exit_4(invoke: Invoke, work: FakeWork) -> None:
    work.media[1] = "other videos"
    result = invoke(*SMALL)
    assert result.exit_code == 4
    assert "not comparable: iteration 1 against previous, nextqa: the videos differ" in result.output


def test_a_tampered_record_is_noticed_and_the_benchmark_measured_again(invoke: Invoke, tmp_path: Path) -> None:
    invoke(*SMALL)
    path = tmp_path / "run/base/eval/nextqa/questions.jsonl"
    kept = path.read_text()
    path.write_text("".join(kept.splitlines(keepends=True)[:-1]))
    assert invoke(*SMALL).exit_code == 0
    assert path.read_text() == kept


def test_dry_run_needs_nothing_and_leaves_nothing(invoke: Invoke, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    result = invoke("--dry-run")
    assert result.exit_code == 0
    for part in ("dry run", "scale micro: no CUDA GPU", "PFLOP", "8b", "disk GB", "unlabelled videos", "assumed:"):
        assert part in result.output, part
    assert sorted(tmp_path.iterdir()) == before


def test_dry_run_as_json(invoke: Invoke) -> None:
    found = json.loads(invoke("--dry-run", "--json", "--scale", "8b").output)
    assert found["chosen"] == "8b"
    assert [p["scale"] for p in found["plans"]] == ["smoke", "micro", "1b", "2b", "4b", "8b", "26b", "38b"]
    assert all(p["total"]["pflop"] > 0 for p in found["plans"])


def test_tables(invoke: Invoke, tmp_path: Path) -> None:
    invoke(*SMALL)
    kept = (tmp_path / "run/tables/results.csv").read_bytes()
    (tmp_path / "run/tables/results.csv").unlink()
    for fmt, part in (("text", "iteration 1"), ("md", "| base"), ("latex", "\\begin{tabular}"), ("csv", "base,"), ("json", '"scale"')):
        result = CliRunner().invoke(app, ["tables", str(tmp_path / "run"), "--format", fmt])
        assert result.exit_code == 0, result.output
        assert part in result.output
    assert (tmp_path / "run/tables/results.csv").read_bytes() == kept
    assert CliRunner().invoke(app, ["tables", str(tmp_path)]).exit_code == 2
    assert CliRunner().invoke(app, ["tables", str(tmp_path / "run"), "--format", "docx"]).exit_code == 2
    (tmp_path / "run/base/eval/nextqa/score.json").write_text("{}")
    assert CliRunner().invoke(app, ["tables", str(tmp_path / "run")]).exit_code == 4


def test_what_the_worker_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    wanted = launch.worker_environment(tmp_path, device="cpu", small=True)
    assert wanted["HF_HOME"] == str(tmp_path)
    assert wanted["HF_HUB_OFFLINE"] == wanted["HF_DATASETS_OFFLINE"] == "1"
    assert wanted["CUDA_VISIBLE_DEVICES"] == "" and wanted["OMP_NUM_THREADS"] == "1"
    assert launch.worker_environment(tmp_path, device="cuda").keys().isdisjoint({"CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"})


@pytest.mark.parametrize(("imported", "begun"), [("json", 1), ("tokenizers", 2)])
def test_a_process_begins_again_only_where_a_library_has_read_its_environment(imported: str, begun: int, tmp_path: Path) -> None:
    code = (
        f"import os, {imported}\nfrom pathlib import Path\nfrom reproduce.paper.launch import become_worker\n"
        f"print('begun', flush=True)\nbecome_worker(Path({str(tmp_path)!r}), device='cpu', small=True)\n"
        "print(os.environ['HF_HOME'], os.environ['OMP_NUM_THREADS'])"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "OMP_"))} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=60, check=True)
    assert done.stdout.splitlines() == ["begun"] * begun + [f"{tmp_path} 1"]


def test_a_finished_run_imports_nothing_heavy(invoke: Invoke, tmp_path: Path, fake_base: Path) -> None:
    invoke(*SMALL)
    code = (
        "import sys; sys.argv = ['reproduce', 'paper', *sys.argv[1:]]\n"
        "from reproduce.__main__ import app\n"
        "try:\n    app()\nexcept SystemExit as e:\n    assert e.code == 0, e.code\n"
        "print([m for m in ('torch', 'lmms_eval', 'transformers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *SMALL, "--base", str(fake_base), "--out", "run"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_in_every_stage_and_run_again_gives_the_same_files(tmp_path: Path) -> None:
    """The real thing, small: the process group is killed as soon as a stage has begun (and once more a moment later)."""
    command = [
        sys.executable,
        "-m",
        "reproduce",
        "paper",
        "--scale",
        "smoke",
        "--iterations",
        "1",
        "--benchmarks",
        "egoschema",
        "--benchmarks",
        "nextqa",
        "--limit",
        "8",
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    whole = tmp_path / "whole" / "run"  # the same name twice: the leaderboard shows it
    first = subprocess.run([*command, "--out", str(whole)], env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    names = [line.split("] ")[1].split(":")[0] for line in first.stdout.splitlines() if line.startswith("[")]
    killed = tmp_path / "killed" / "run"
    for name in names:
        for wait in (0.0, 0.7):
            process = subprocess.Popen(
                [*command, "--out", str(killed)], env=env, cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True
            )
            assert process.stdout is not None
            for line in process.stdout:
                if f"] {name}:" in line:
                    time.sleep(wait)
                    os.killpg(process.pid, signal.SIGKILL)
                    break
            process.wait()
    last = subprocess.run([*command, "--out", str(killed)], env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert last.returncode == 0, last.stderr
    for path in sorted(p.relative_to(whole) for p in whole.rglob("*") if p.is_file()):
        if path.parts[0] in ("stages", "timings.json", "run.json", "report.html") or path.name.startswith(".") or path.suffix == ".lock":
            continue
        a, b = (whole / path).read_text("latin-1"), (killed / path).read_text("latin-1")
        if path.name == "score.json":
            a, b = (json.dumps({**json.loads(text), "wall_s": 0}) for text in (a, b))
        if path.name == "log.jsonl":
            a, b = (
                json.dumps([{k: v for k, v in json.loads(row).items() if not k.endswith(("_s", "seconds"))} for row in text.splitlines()])
                for text in (a, b)
            )
        assert a == b, path
