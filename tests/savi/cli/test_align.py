"""`savi export`, `train` and `align` from the command line, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from savi.base.lock import lock_file, lock_folder
from savi.conversion.checkpoint import weights_fingerprint
from savi.engine.video_lm import Reply
from savi.formats.table import read_any_pairs
from savi.loop.preferences import read_pairs, write_pairs
from tests.savi.cli.test_cli import failed, run
from tests.savi.scripted import ScriptedLM, micro_reply, random_pairs, write_clips
from tests.savi.tiny import tiny_checkpoint
from tests.savi.training.test_trackers import scalars

SMALL = ("--num-frames", 4, "--learning-rate", 1e-3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    return write_pairs(folder / "pairs.jsonl", random_pairs(write_clips(folder, 2)))


@pytest.mark.parametrize("style", ["trl", "ms-swift"])
def test_exported_pairs_train_the_same_model(pairs: Path, model: Path, style: str) -> None:
    """The way to another tool's format and back loses nothing: the same weights come of it."""
    out = pairs.with_name(f"{style}.jsonl")
    assert run("export", pairs, "--out", out, "--format", style).exit_code == 0
    assert read_any_pairs(out) == read_pairs(pairs)
    made = []
    for source in (pairs, out):
        folder = pairs.with_name(f"trained-{style}-{source.stem}")
        result = run("train", source, "--model", model, "--out", folder, *SMALL, "--json")
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["pairs"] == len(read_pairs(pairs))
        made.append(weights_fingerprint(folder / "model"))
    assert made[0] == made[1] != weights_fingerprint(model)
    again = ("train", pairs, "--model", model, "--out", folder, *SMALL, "--json")
    assert json.loads(run(*again).stdout) == json.loads(result.stdout), "a finished command run again is done"
    assert "another settings" in failed(run(*again, "--seed", 1), 2)


def test_train_and_what_can_be_wrong(pairs: Path, model: Path, tmp_path: Path) -> None:
    assert "no such file" in failed(run("train", tmp_path / "absent.jsonl", "--model", model, "--out", tmp_path / "x"), 2)
    (empty := tmp_path / "empty.jsonl").write_text("")
    assert "holds no pair" in failed(run("train", empty, "--model", model, "--out", tmp_path / "x"), 1)
    (strange := tmp_path / "strange.jsonl").write_text('{"question": "where?"}\n')
    assert "strange.jsonl:1" in failed(run("train", strange, "--model", model, "--out", tmp_path / "x"), 4)
    assert "rpo_alpha" in failed(run("train", pairs, "--model", model, "--out", tmp_path / "x", "--method", "sft", "--rpo-alpha", 1), 2)
    assert "'kto': unknown; there are sigmoid" in failed(
        run("train", pairs, "--model", model, "--out", tmp_path / "x", "--loss-type", "kto"), 2
    )
    simpo = ("train", pairs, "--model", model, "--out", tmp_path / "x", "--loss-type", "simpo", "--loss-parameter")
    assert "write NAME=VALUE" in failed(run(*simpo, "gamma"), 2)
    assert "no parameter 'delta'" in failed(run(*simpo, "delta=1"), 2)
    assert not (tmp_path / "x").exists()
    assert run(*simpo, "gamma=0.8", *SMALL).exit_code == 0


def test_align_deals_videos_and_goes_on_where_it_stopped(model: Path, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    write_clips(videos, 5)
    arguments = ("align", videos, "--model", model, "--prompts", "micro", "--out", tmp_path / "run", "--iterations", 2, *SMALL, "--json")
    first = run(*arguments)
    rows = json.loads(first.stdout)["iterations"]
    assert [row["videos"] for row in rows] == [3, 2]
    assert first.exit_code == (0 if any(row["trained_on"] for row in rows) else 1)
    for row in rows:
        assert weights_fingerprint(Path(row["model"])) != "" and row["questions"] == row["pairs"] + sum(row["dropped"].values())
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.safetensors")}
    assert json.loads(run(*arguments).stdout)["iterations"] == rows
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.safetensors")} == files
    assert "fewer --iterations" in failed(run(*arguments, "--iterations", 9), 2)


def test_a_launcher_that_does_not_say_how_processes_meet_is_refused(model: Path, tmp_path: Path) -> None:
    """`mpirun -m savi pairs` wrote each pair twice."""
    write_clips(tmp_path / "videos", 4)
    for command in ("pairs", "align"):
        arguments = (command, tmp_path / "videos", "--model", model, "--out", tmp_path / "out.jsonl", "--prompts", "micro")
        said = failed(run(*arguments, OMPI_COMM_WORLD_SIZE="2"), 2)
        assert "OMPI_COMM_WORLD_SIZE is 2, but RANK, WORLD_SIZE and MASTER_ADDR are not set: start it with torchrun" in said
    assert not (tmp_path / "out.jsonl").exists()


def test_the_second_at_work_in_one_place_ends_with_5(pairs: Path, model: Path, tmp_path: Path) -> None:
    """Two runs into one file double its pairs."""
    videos = tmp_path / "videos"
    write_clips(videos, 2)
    out = tmp_path / "out"
    for locked, arguments in (
        (lock_file(tmp_path / "p.jsonl"), ("pairs", videos, "--out", tmp_path / "p.jsonl", "--prompts", "micro")),
        (lock_folder(out / "train"), ("train", pairs, "--out", out)),
        (lock_folder(out / "iter-1"), ("align", videos, "--out", out, "--prompts", "micro", "--iterations", 1)),
    ):
        with locked:
            assert "another run is at work here (process" in failed(run(*arguments, "--model", model, "--num-frames", 4), 5)
    assert not list(tmp_path.rglob("*.jsonl"))


def test_align_tells_trackers(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training by iteration, and the loop's curves over both; run again, nothing is told twice."""
    pytest.importorskip("tensorboard")
    from savi.engine.video_lm import VideoLM

    def ask(self: VideoLM, items: list[tuple[object, str]], settings: object, *, keys: list[str]) -> list[Reply]:
        return ScriptedLM(micro_reply).ask(items, settings, keys=keys)  # type: ignore[arg-type]

    monkeypatch.setattr(VideoLM, "ask", ask)
    write_clips(tmp_path / "videos", 6)
    arguments = ("align", tmp_path / "videos", "--model", model, "--prompts", "micro", "--out", tmp_path / "run", "--iterations", 2, *SMALL)
    assert "there are tensorboard, wandb, trackio, none" in failed(run(*arguments, "--report-to", "mlflow"), 2)
    told = run(*arguments, "--report-to", "tensorboard")
    assert told.exit_code == 0, told.output
    curves = scalars(tmp_path / "run" / "loop")
    assert curves["loop/pairs"] == {t: len(read_pairs(tmp_path / f"run/iter-{t}/pairs.jsonl")) for t in (1, 2)}
    assert {"loop/validity", "loop/critique_changed", "loop/length_drift", "loop/kl", "loop/reward_chosen"} <= set(curves)
    for t in (1, 2):
        assert "train/loss" in scalars(tmp_path / f"run/iter-{t}/train")
    files = sorted((tmp_path / "run").rglob("events.out*"))
    assert run(*arguments, "--report-to", "tensorboard").exit_code == 0
    assert sorted((tmp_path / "run").rglob("events.out*")) == files
