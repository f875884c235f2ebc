"""`savi pairs`, `train` and `align` as several processes: what one gives, whatever becomes of the processes."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.micro.pretrain.recipe import BASE_DIR
from benchmarks.micro.world.videos import build_videos
from savi.engine.video_lm import VideoLM
from tests.savi.launched import ENV, beats, ended, files, hit, torchrun
from tests.savi.started import start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MICRO = ("--model", BASE_DIR, "--prompts", "micro", "--questions-per-kind", 2)
FILES = ("pairs.jsonl", "dropped.jsonl", "pairs.journal.jsonl", "failures.jsonl", "pairs.card.md")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 videos; one is broken."""
    folder = tmp_path_factory.mktemp("videos")
    paths = build_videos(folder, 40, seed=7)
    paths[11].write_bytes(paths[11].read_bytes()[:200])
    return folder


@pytest.fixture(scope="module")
def one(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("one")
    with start(["savi", "pairs", videos, "--out", out / "pairs.jsonl", *MICRO], ENV) as process:
        ended(process)
    return files(out, FILES)


def everything(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


@pytest.mark.parametrize("count", [2, 3])
def test_the_files_of_one_process(count: int, videos: Path, one: dict[str, bytes], tmp_path: Path) -> None:
    with torchrun(count, "savi", "pairs", videos, "--out", tmp_path / "pairs.jsonl", *MICRO, "--json") as process:
        said, _ = ended(process)
    assert said.count('"pairs"') == 1, "the first process alone prints"
    assert files(tmp_path, FILES) == one
    assert everything(tmp_path) == sorted(FILES), "no parts and no heartbeats are left"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("then", [1, 3])
def test_a_dead_or_hung_process_is_named_and_the_rest_goes_on(
    number: signal.Signals, then: int, videos: Path, one: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "pairs.jsonl"

    def ready(found: dict[int, dict[str, object]]) -> bool:
        parts = list(tmp_path.glob("pairs.part-*.jsonl"))
        return len(parts) == 2 and all(part.read_bytes().count(b"\n") > 1 for part in parts)

    with torchrun(2, "savi", "pairs", videos, "--out", out, *MICRO) as process:
        seconds, errors, last = hit(process, tmp_path, number, ready)
    assert seconds < 60
    assert f"error: process 1 ({last['pid']} on " in errors
    assert ("is gone" if number == signal.SIGKILL else "has not been heard of for 4") in errors
    assert "it was at video " in errors
    assert ".mp4 (propose)" in errors
    asked = sum(part.read_text().count('"key"') for part in tmp_path.glob("pairs.part-*.jsonl"))
    assert asked >= 16
    with torchrun(then, "savi", "pairs", videos, "--out", out, *MICRO) as process:
        ended(process)
    assert files(tmp_path, FILES) == one
    assert everything(tmp_path) == sorted(FILES)
    assert not beats(tmp_path)


TRAIN = ("--learning-rate", "5e-6", "--pairs-per-step", 8, "--save-steps", 2)
"""The rate of the paper's scales."""
CLOSE = 5e-7
"""A tenth of what a step may change: Adam divides gradients that are nearly nothing by themselves, and sums differ in their last bits."""


@pytest.fixture(scope="module")
def pairs(one: dict[str, bytes], videos: Path) -> Path:
    """The pairs of one process, beside the videos that they name."""
    path = videos / "pairs.jsonl"
    rows = [json.loads(line) for line in one["pairs.jsonl"].decode().splitlines()]
    path.write_text("".join(json.dumps({**row, "video": Path(row["video"]).name}) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped base in float32: its own float16 would hide what differs, or show it as a whole step of 6e-5."""
    lm = VideoLM.from_pretrained(BASE_DIR, device="cpu", dtype="float32")
    lm.save_pretrained(folder := tmp_path_factory.mktemp("base") / "base")
    return folder


def train(pairs: Path, base: Path, out: Path) -> list[object]:
    return ["savi", "train", pairs, "--model", base, "--out", out, *TRAIN]


@pytest.fixture(scope="module")
def trained(pairs: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    with start(train(pairs, base, out), ENV) as process:
        ended(process)
    return out


def furthest(folder: Path, other: Path) -> float:
    """The largest difference between the weights of two checkpoints."""
    mine, theirs = (load_file(one / "model/model.safetensors") for one in (folder, other))
    assert mine.keys() == theirs.keys()
    return max(float((mine[name].float() - value.float()).abs().max()) for name, value in theirs.items())


def test_training_gives_the_weights_of_one_process(pairs: Path, base: Path, trained: Path, tmp_path: Path) -> None:
    """Up to the order of sums."""
    with torchrun(2, *train(pairs, base, tmp_path)) as process:
        ended(process)
    assert furthest(trained, tmp_path) < CLOSE
    assert {value.dtype for value in load_file(trained / "model/model.safetensors").values()} == {torch.float32}
    assert not beats(tmp_path / "train")


@pytest.mark.parametrize(("number", "then"), [(signal.SIGKILL, 2), (signal.SIGKILL, 1), (signal.SIGSTOP, 3)])
def test_a_dead_or_hung_process_ends_training_and_it_goes_on(
    number: signal.Signals, then: int, pairs: Path, base: Path, trained: Path, tmp_path: Path
) -> None:
    """From the last checkpoint, with any number of processes."""

    def ready(found: dict[int, dict[str, object]]) -> bool:
        return any((tmp_path / "train").glob("checkpoint-*/stamp.json"))

    with torchrun(2, *train(pairs, base, tmp_path), env={**ENV, "SAVI_SILENCE_S": "15"}) as process:
        seconds, errors, last = hit(process, tmp_path / "train", number, ready)
    assert seconds < 60
    assert f"error: process 1 ({last['pid']} on " in errors
    assert "it was at video " in errors
    assert ".mp4 (train)" in errors
    with torchrun(then, *train(pairs, base, tmp_path)) as process:
        ended(process)
    assert furthest(trained, tmp_path) < CLOSE


@pytest.mark.parametrize(("stage", "then"), [("propose", 3), ("train", 1)])
def test_align_goes_on_after_a_kill_in_either_stage(stage: str, then: int, videos: Path, base: Path, tmp_path: Path) -> None:
    arguments = (videos, *MICRO[2:], "--model", base, "--iterations", 1, "--learning-rate", "5e-6", "--json")
    out = tmp_path / "killed"
    with torchrun(2, "savi", "align", *arguments, "--out", out) as process:
        seconds, errors, last = hit(process, out, signal.SIGKILL, lambda found: f"({stage})" in str(found.get(1, {}).get("at")))
    assert seconds < 60
    assert f"error: process 1 ({last['pid']} on " in errors
    with torchrun(then, "savi", "align", *arguments, "--out", out) as process:
        ended(process)
    with start(["savi", "align", *arguments, "--out", tmp_path / "straight"], ENV) as process:
        ended(process)
    assert files(out / "iter-1", FILES[:3]) == files(tmp_path / "straight/iter-1", FILES[:3])
    assert furthest(out / "iter-1", tmp_path / "straight/iter-1") < CLOSE


def test_align_by_two_is_align_by_one(videos: Path, base: Path, tmp_path: Path) -> None:
    """The second iteration's pairs are made by weights that differ in their last bits."""
    arguments = (videos, *MICRO[2:], "--model", base, "--iterations", 2, "--learning-rate", "5e-6", "--json")
    made = {}
    for count in (1, 2):
        with torchrun(count, "savi", "align", *arguments, "--out", tmp_path / str(count)) as process:
            said, _ = ended(process)
        made[count] = json.loads(said)["iterations"]
    assert [row["videos"] for row in made[1]] == [row["videos"] for row in made[2]] == [20, 20]
    assert files(tmp_path / "1/iter-1", FILES[:3]) == files(tmp_path / "2/iter-1", FILES[:3])
    assert furthest(tmp_path / "1/iter-1", tmp_path / "2/iter-1") < CLOSE
