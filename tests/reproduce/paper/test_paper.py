"""The experiment as a whole with the heavy parts replaced: what is run, skipped, refused, and what it leaves."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.catalog import select
from harness.gate.decision import GateResult
from reproduce.paper.console import RunConsole, duration
from reproduce.paper.experiment import Experiment, MissingInputError
from reproduce.paper.paper import build_stages, run_paper
from reproduce.run_dir import (
    OtherConfigurationError,
    RunDir,
    RunDirError,
    base_identity,
    git_state,
    machine,
    new_facts,
    versions,
)
from savi.base.files import FailureLog, read_jsonl
from savi.base.lock import LockedError
from tests.reproduce.fakes import FakeWork

Make = Callable[..., Experiment]
FACTS = {"scale": "smoke", "base_fingerprint": "x"}


def run(x: Experiment, work: FakeWork) -> None:
    x.run.path.mkdir(exist_ok=True)
    run_paper(x, build_stages(x, work), RunConsole())


def test_the_order_of_things(experiment: Make, work: FakeWork) -> None:
    run(experiment(), work)
    assert work.calls == [
        "prepare",
        "base",
        "evaluate 0",
        "videos 1",
        "propose 1",
        "train 1",
        "evaluate 1",
        "videos 2",
        "propose 2",
        "train 2",
        "evaluate 2",
        "report",
    ]


def test_second_run_does_nothing(experiment: Make, work: FakeWork) -> None:
    run(experiment(), work)
    work.calls.clear()
    run(experiment(), work)
    assert work.calls == []


def test_what_it_leaves(experiment: Make, work: FakeWork, capsys: pytest.CaptureFixture[str]) -> None:
    x = experiment()
    run(x, work)
    for name in (
        "base/eval/nextqa/score.json",
        "iter-2/gate.json",
        "tables/results.md",
        "tables/results.tex",
        "tables/results.csv",
        "report.html",
    ):
        assert (x.run.path / name).is_file(), name
    gate = json.loads((x.run.path / "iter-2/gate.json").read_text())
    assert set(gate) == {"previous", "base"}
    assert GateResult.from_json(gate["base"]).candidate == "iteration 2"
    assert GateResult.from_json(gate["previous"]).reference == "iteration 1"
    assert len((x.run.path / "failures.jsonl").read_text().splitlines()) == 2  # one a video; the row listed twice counts once
    assert set(json.loads((x.run.path / "timings.json").read_text())) == {s.name for s in build_stages(x, work)}
    out = capsys.readouterr().out
    assert "scale: smoke" in out
    assert "no number here reproduces a number of the paper" in out
    for part in ("base", "iteration 1", "iteration 2", "against previous: ", "2 failures listed in failures.jsonl", "report.html"):
        assert part in out, part
    assert "paper:" not in out


def test_a_broken_stage_keeps_the_finished_ones(experiment: Make) -> None:
    with pytest.raises(RuntimeError, match="boom"):
        run(experiment(), FakeWork(boom="train 1"))
    again = FakeWork()
    run(experiment(), again)
    assert again.calls[0] == "train 1"


def test_more_iterations_than_before_would_keep_the_first_ones(experiment: Make, work: FakeWork) -> None:
    run(experiment(loop__iterations=1), work)
    work.calls.clear()
    run(experiment(loop__iterations=2), work)
    assert work.calls == ["videos 2", "propose 2", "train 2", "evaluate 2", "report"]


def test_other_training_leaves_base_and_first_pairs(experiment: Make, work: FakeWork) -> None:
    run(experiment(loop__iterations=1), work)
    work.calls.clear()
    run(experiment(loop__iterations=1, training__beta=0.9), work)
    assert work.calls == ["train 1", "evaluate 1", "report"]


def test_user_videos_are_dealt_without_repeats(experiment: Make, work: FakeWork, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for i in range(7):
        (folder / f"{i}.mp4").write_bytes(b"x")
    base = experiment()
    x = Experiment(base.scale, base.run, base.hf_home, folder)
    for t in (1, 2):
        work.videos(x, t, lambda done, total: None)
    one, two = (set(x.video_list(t).read_text().split()) for t in (1, 2))
    assert len(one) == len(two) == 3
    assert not one & two
    assert work.videos(x, 3, lambda done, total: None).startswith("1 of 7 videos (3 were asked for)")
    with pytest.raises(MissingInputError, match="used up before iteration 4"):
        work.videos(x, 4, lambda done, total: None)


def test_odd_names_of_videos_come_back_from_the_lists(experiment: Make, work: FakeWork, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    names = {"a b.mp4", "two\nlines.mp4", "a\u2028b.mp4", os.fsdecode(b"caf\xe9.mp4"), '"quoted".mp4', "é.mp4"}
    for name in names:
        (folder / name).write_bytes(b"x")
    base = experiment(loop__videos_per_iteration=6)
    x = Experiment(base.scale, base.run, base.hf_home, folder)
    work.videos(x, 1, lambda done, total: None)
    assert {path.name for path in work._videos(x, 1)} == names
    assert all(path.is_file() for path in work._videos(x, 1))
    assert "é.mp4" in x.video_list(1).read_text().splitlines()


def test_rows_of_failures_stay_whole_whatever_the_names(experiment: Make) -> None:
    run = experiment().run
    parts = []
    for number, name in enumerate(("a\u2028b.mp4", "a\x85b.mp4", "a\x0cb.mp4")):
        parts.append(run.path / f"{number}.jsonl")
        FailureLog(parts[-1]).add(name, name, "truncated", "propose")
    assert run.collect_failures(parts) == 3
    assert [row["what"] for row in read_jsonl(run.path / "failures.jsonl")] == ["a\u2028b.mp4", "a\x85b.mp4", "a\x0cb.mp4"]


def test_run_json_holds_settings_with_sources_and_where_it_ran(experiment: Make) -> None:
    x = experiment()
    facts = new_facts(
        scale="smoke", data="micro", published=None, why="asked", title="t", seed=3, gpus=[], base_fingerprint="x", hf_home="data/hf_home"
    )
    x.run.path.mkdir()
    assert x.run.open(x.scale.settings(), facts)
    assert not x.run.open(x.scale.settings(), facts)
    found = json.loads(x.run.run_file.read_text())
    assert found["settings"]["loop.videos_per_iteration"] == {"value": 3, "source": "ours: test"}
    assert found["seeds"] == {"loop": 3}
    assert found["machine"]["cores"] >= 1
    assert found["versions"]["torch"] != "not installed"
    assert set(found["git"]) == {"commit", "dirty"}


def test_another_configuration_is_refused_by_name(experiment: Make) -> None:
    x = experiment()
    x.run.path.mkdir()
    x.run.open(x.scale.settings(), FACTS)
    with pytest.raises(OtherConfigurationError) as e:
        experiment(training__beta=0.9, loop__seed=4).run.open(experiment(training__beta=0.9, loop__seed=4).scale.settings(), FACTS)
    text = str(e.value)
    was = x.scale.training.beta.value
    assert f"training.beta: {was} there, 0.9 now" in text
    assert "loop.seed: 0 there, 4 now" in text
    assert len(e.value.differing) == 2
    with pytest.raises(OtherConfigurationError, match="base_fingerprint: x there, y now"):
        x.run.open(x.scale.settings(), {**FACTS, "base_fingerprint": "y"})


def test_what_only_changes_speed_is_the_same_experiment(experiment: Make) -> None:
    x = experiment()
    x.run.path.mkdir()
    x.run.open(x.scale.settings(), FACTS)
    assert not x.run.open(experiment(loop__chunk_videos=7, training__max_batch_tokens=99).scale.settings(), FACTS)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"schema_version": 99, "settings": {}}', '{"schema_version": 1}'])
def test_an_unreadable_run_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(RunDirError, match="--out"):
        RunDir(tmp_path).read()


def test_a_folder_with_other_things_is_refused(experiment: Make) -> None:
    x = experiment()
    x.run.path.mkdir()
    (x.run.path / "thesis.tex").write_text("")
    with pytest.raises(RunDirError, match=r"thesis\.tex"):
        x.run.open(x.scale.settings(), FACTS)


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    with RunDir(tmp_path).lock():
        with pytest.raises(LockedError, match="another run is at work"), RunDir(tmp_path).lock():
            pass
    with RunDir(tmp_path).lock():
        pass


def test_leftovers_of_killed_writers_are_swept(tmp_path: Path) -> None:
    for name in (
        "data/.base.json.5fg9pikb",
        "iter-1/.pairs.jsonl.a1b2c3d4.part",
        ".lock",
        ".stages/iter-1.propose.json",
        "data/hf/.media-sha256.json",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert RunDir(tmp_path).sweep() == 2
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} == {".lock", "iter-1.propose.json", ".media-sha256.json"}


def test_base_identity_sees_content(fake_base: Path, tmp_path: Path) -> None:
    before = base_identity(fake_base)
    (fake_base / "training.json").write_text("notes")
    assert base_identity(fake_base) == before
    (fake_base / "model.safetensors").write_bytes(b"WEIGHTS")
    assert base_identity(fake_base) != before
    with pytest.raises(RunDirError, match="no checkpoint here"):
        base_identity(tmp_path / "nowhere")


def test_versions_machine_and_git() -> None:
    assert set(versions()) >= {"python", "torch", "lmms_eval"}
    assert not {"hostname", "user"} & set(machine([]))
    assert git_state(Path("/")) == {"commit": None, "dirty": None}


@pytest.mark.parametrize(("seconds", "text"), [(12.4, "12 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_paper_scales_are_held_against_the_paper(experiment: Make, work: FakeWork, tmp_path: Path) -> None:
    from reproduce.scale import load_scale

    scale = load_scale("8b", {"loop.iterations": (1, "ours: test"), "evaluation.benchmarks": (["nextqa", "egoschema"], "ours: test")})
    x = Experiment(scale, RunDir(tmp_path / "run"), tmp_path / "hf")
    for t in (0, 1):
        work.evaluate(x, t, lambda done, total: None, tmp_path / "f.jsonl")
    work.gate(x, 1)
    gate = json.loads((x.run.path / "iter-1/gate.json").read_text())
    assert set(gate) == {"previous", "base", "paper"}
    assert {b.name for b in select(x.benchmarks)} == {"nextqa", "egoschema"}
    work.tables(x)
    assert "| *paper: VideoSAVi* " in (x.run.path / "tables/upstream.md").read_text()
    assert "paper" not in (x.run.path / "tables/results.md").read_text(), "published numbers are upstream scores"


@pytest.mark.parametrize("name", ["26b", "38b"])
def test_a_scale_the_paper_does_not_have_needs_its_yaml_alone(experiment: Make, work: FakeWork, tmp_path: Path, name: str) -> None:
    from harness.report.read import read_run
    from reproduce.scale import load_scale

    scale = load_scale(name, {"loop.iterations": (1, "ours: test")})
    x = Experiment(scale, RunDir(tmp_path / "run"), tmp_path / "hf")
    for t in (0, 1):
        work.evaluate(x, t, lambda done, total: None, tmp_path / "f.jsonl")
    work.gate(x, 1)
    assert set(json.loads((x.run.path / "iter-1/gate.json").read_text())) == {"previous", "base"}
    work.tables(x)
    for table in ("results.md", "leaderboard.md"):
        text = (x.run.path / "tables" / table).read_text()
        assert "paper" not in text
        assert "synthetic" not in text
    run = read_run(x.run.path)
    assert (run.published, run.synthetic, run.problems) == (None, False, [])


def test_scales_and_the_manifest_agree_on_published_rows() -> None:
    from harness.tables.published import load_published
    from reproduce.scale import load_scale, scale_names

    named = {name: row for name in scale_names() if (row := load_scale(name).published) is not None}
    assert set(named) == {"1b", "2b", "4b", "8b"}
    for name, row in named.items():
        assert {t.scale_of(row) for t in load_published().tables.values() if row in t.labels} >= {name}
