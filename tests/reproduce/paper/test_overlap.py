"""Training videos that are benchmark videos: found before anything is trained, left out on request, said below the tables."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.micro.twins.twins import build_twins
from benchmarks.micro.world.videos import build_videos
from reproduce.__main__ import app
from reproduce.paper import cli
from reproduce.paper.experiment import Experiment
from reproduce.paper.overlap import find_overlap, notes
from reproduce.paper.paper import build_stages
from reproduce.paper.work import RealWork
from reproduce.run_dir import RunDir
from reproduce.scale import Gpu, load_scale
from tests.reproduce.fakes import FakeWork

Make = Callable[..., Experiment]
runner = CliRunner()


def quiet(done: int, total: int) -> None:
    pass


@pytest.fixture
def mine(experiment: Make, tmp_path: Path) -> Experiment:
    """A run on the user's videos, two of which are benchmark videos."""
    x = experiment(loop__iterations=1)
    build_twins(x.hf_home, seed=1, size="smoke")
    folder = tmp_path / "mine"
    build_videos(folder, 6, seed=3)
    for i, name in enumerate(("nextqa/NExTVideo", "egoschema/videos")):
        shutil.copy(sorted((x.hf_home / name).iterdir())[0], folder / f"x{i}.mp4")
    return replace(x, videos=folder)


def test_the_table_is_made_before_anything_is_trained(mine: Experiment) -> None:
    names = [s.name for s in build_stages(mine, FakeWork())]
    assert names[:3] == ["prepare", "overlap", "base/model"]
    assert "overlap" not in [s.name for s in build_stages(replace(mine, videos=None), FakeWork())]
    line = RealWork().overlap(mine, quiet)
    assert line == (
        "2 of 8 training videos are benchmark videos (NExT-QA 1, EgoSchema 1), listed in data/overlap.csv; they are trained on "
        "(--exclude leaves them out)"
    )
    assert "x0.mp4,nextqa,nextqa/NExTVideo/" in mine.overlap_file.read_text()


def test_excluded_videos_are_not_dealt(mine: Experiment) -> None:
    left_out = replace(mine, exclude=True)
    assert RealWork().overlap(left_out, quiet).endswith("they are left out")
    dealt: set[str] = set()
    for t in (1, 2):
        RealWork().videos(left_out, t, quiet)
        dealt |= set(left_out.video_list(t).read_text().split())
    assert dealt == {f"{i:04d}.mp4" for i in range(6)}
    RealWork().videos(mine, 1, quiet)
    RealWork().videos(mine, 2, quiet)
    RealWork().videos(mine, 3, quiet)
    assert {"x0.mp4", "x1.mp4"} <= {n for t in (1, 2, 3) for n in mine.video_list(t).read_text().split()}
    with_, without = ({s.name: s for s in build_stages(x, FakeWork())}["iter-1/videos"] for x in (left_out, mine))
    assert with_.after == ("overlap",)
    assert without.after == ()
    assert with_.settings != without.settings


def test_what_the_tables_say(mine: Experiment) -> None:
    RealWork().overlap(mine, quiet)
    ours = "Trained on videos of the benchmarks (NExT-QA 1, EgoSchema 1): these scores are not of unseen videos."
    assert notes(mine.overlap_file, ["egoschema"], paper=False, exclude=False) == [ours]
    assert notes(mine.overlap_file, ["egoschema"], paper=True, exclude=True) == []
    (paper,) = notes(mine.run.path / "none.csv", None, paper=True, exclude=False)
    assert "STAR" in paper
    assert "600 of 4,000 questions" in paper


def test_stars_share_of_mvbench_is_counted() -> None:
    from benchmarks.mvbench import BENCHMARK, SUBTASKS

    n = sum(size for size, s in zip(BENCHMARK.sizes, SUBTASKS.values(), strict=True) if s.folder.startswith("star/"))
    assert f"{n} of {BENCHMARK.n:,} questions" in BENCHMARK.shared_videos
    assert f"{100 * n // BENCHMARK.n} %" in BENCHMARK.shared_videos


def test_none_found(mine: Experiment, tmp_path: Path) -> None:
    videos = build_videos(tmp_path / "other", 3, seed=9)
    line = find_overlap(videos, tmp_path / "other", mine.hf_home, ["egoschema"], tmp_path / "o.csv", quiet, exclude=False)
    assert line == "none of 3 training videos is among the benchmarks' 34"


def test_the_tables_note_reaches_the_table(mine: Experiment, work: FakeWork, tmp_path: Path) -> None:
    RealWork().overlap(mine, quiet)
    x = replace(mine, scale=load_scale("8b", {"loop.iterations": (1, "ours: test"), "evaluation.benchmarks": (["nextqa"], "ours: test")}))
    for t in (0, 1):
        work.evaluate(x, t, quiet, tmp_path / "f.jsonl")
    work.tables(x)
    assert "these scores are not of unseen videos" in (x.run.path / "tables/results.md").read_text()


def test_no_gpu_is_said_before_any_data_set_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, 367 GB of data sets were asked for first, on a machine that cannot run the scale."""
    args = ["paper", "--scale", "8b", "--videos", str(tmp_path), "--out", str(tmp_path / "run")]
    monkeypatch.setattr("reproduce.scale.find_gpus", list)
    refused = runner.invoke(app, args)
    assert refused.exit_code == 5
    assert "scale 8b needs a CUDA GPU with 70 GB, and this machine has none" in refused.stderr
    assert not (tmp_path / "run").exists()
    begun: list[Experiment] = []
    monkeypatch.setattr(cli, "execute", lambda x, **_: begun.append(x) or 0)
    assert runner.invoke(app, [*args, "--set", "machine.device=cpu"]).exit_code == 0
    monkeypatch.setattr("reproduce.scale.find_gpus", lambda: [Gpu("H100", 80.0)])
    assert runner.invoke(app, [*args, "--exclude"]).exit_code == 0
    assert [x.exclude for x in begun] == [False, True]
    assert runner.invoke(app, ["paper", "--scale", "micro", "--exclude"]).exit_code == 2


def test_run_json_says_it(mine: Experiment, monkeypatch: pytest.MonkeyPatch, work: FakeWork, tmp_path: Path) -> None:
    monkeypatch.setattr(cli, "make_work", lambda: work)
    run = RunDir(tmp_path / "fresh")
    x = replace(mine, exclude=True, run=run, hf_home=run.path / "data/hf_home")
    monkeypatch.setattr("reproduce.paper.launch.become_worker", lambda *_, **__: None)
    code = cli.execute(x, why="asked", asked="smoke", gpus=[])
    assert code == 0
    settings = json.loads((x.run.path / "run.json").read_text())["settings"]
    assert settings["loop.exclude"] == {"value": True, "source": "command line: --exclude"}
