"""`savi pairs` as several processes: the files of one, whatever becomes of the processes."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from benchmarks.micro.pretrain.recipe import BASE_DIR
from benchmarks.micro.world.videos import build_videos
from tests.savi.launched import ENV, beats, ended, files, hit, torchrun
from tests.savi.started import start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MICRO = ("--model", BASE_DIR, "--prompts", "micro", "--questions-per-kind", 2)
FILES = ("pairs.jsonl", "dropped.jsonl", "pairs.journal.jsonl", "failures.jsonl")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 videos: one is broken, one long."""
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
