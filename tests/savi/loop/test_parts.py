"""What several processes made: read back as it was, set aside where it belongs to another run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from savi.base.errors import FileFormatError
from savi.base.files import FailureLog
from savi.loop.journal import Journal, read_counts
from savi.loop.parts import Made, PartWriter, read_parts
from savi.loop.propose import AlignSettings, propose, propose_part, video_keys
from tests.savi.scripted import FRAMES, ScriptedLM, micro_reply, write_clips

SETTINGS = AlignSettings(num_frames=FRAMES, questions_per_kind=2, prompts="micro", chunk_videos=2, seed=5)
HEADER = {"model": "m", "settings": "s", "videos": "v"}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    paths = write_clips(tmp_path_factory.mktemp("clips"), 7)
    paths[2].write_bytes(paths[2].read_bytes()[:200])
    return paths


def run(lm: ScriptedLM, clips: list[Path], folder: Path, **more: object) -> dict[str, bytes]:
    failures = FailureLog(folder / "failures.jsonl")
    list(propose(lm, clips, SETTINGS, out=folder / "pairs.jsonl", failures=failures, **more))  # type: ignore[arg-type]
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith(".lock")}


class InHere:
    """A helper in this process. `dies`: after so many chunks."""

    def __init__(self, out: Path, dies: int = 99) -> None:
        self.lm, self.out, self.dies = ScriptedLM(micro_reply), out, dies

    def begin(self, chunks: list[list[tuple[str, Path]]], header: dict[str, str]) -> None:
        propose_part(self.lm, chunks[: self.dies], SETTINGS, self.out, header)  # type: ignore[arg-type]

    def wait(self) -> None:
        pass


@pytest.mark.parametrize("dies", [0, 1, 99])
def test_a_helper_changes_nothing_even_if_it_dies(dies: int, clips: list[Path], tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    alone, lm, helper = ScriptedLM(micro_reply), ScriptedLM(micro_reply), InHere(tmp_path / "two/pairs.jsonl", dies)
    assert run(lm, clips, tmp_path / "two", helper=helper) == run(alone, clips, tmp_path / "one")
    asked = sorted(key for one in (lm, helper.lm) for batch in one.batches for key in batch)
    assert asked == sorted(key for batch in alone.batches for key in batch), "nothing is asked twice"
    assert bool(helper.lm.batches) == (dies > 0)


def test_what_a_killed_launch_left_is_used_and_nothing_asked_again(clips: list[Path], tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    whole = run(ScriptedLM(micro_reply), clips, tmp_path / "one")
    out = tmp_path / "two/pairs.jsonl"
    keys = video_keys(clips)
    journal = Journal(out, None, model="scripted", settings=SETTINGS.content(), videos=keys)
    first = ScriptedLM(micro_reply)
    propose_part(first, [list(zip(keys, clips, strict=True))[2:5]], SETTINGS, out, journal.header)  # type: ignore[arg-type]
    part = next(out.parent.glob("*.part-*"))
    part.write_bytes(part.read_bytes() + b'{"key": "torn')
    second = ScriptedLM(micro_reply)
    assert run(second, clips, tmp_path / "two") == whole
    asked = [{key.split("/")[0] for batch in lm.batches for key in batch} for lm in (first, second)]
    assert asked == [{"clip03.mp4", "clip04.mp4"}, {"clip00.mp4", "clip01.mp4", "clip05.mp4", "clip06.mp4"}]


def test_a_failure_in_a_part_is_tried_again_on_request_only(clips: list[Path], tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    own = [tmp_path / "videos" / clip.name for clip in clips]
    for source, target in zip(clips, own, strict=True):
        target.write_bytes(source.read_bytes())
    out = tmp_path / "pairs.jsonl"
    journal = Journal(out, None, model="scripted", settings=SETTINGS.content(), videos=video_keys(own))
    propose_part(ScriptedLM(micro_reply), [list(zip(video_keys(own), own, strict=True))[1:4]], SETTINGS, out, journal.header)  # type: ignore[arg-type]
    own[2].write_bytes(clips[3].read_bytes())
    failures = FailureLog(tmp_path / "failures.jsonl")
    list(propose(ScriptedLM(micro_reply), own, SETTINGS, out=out, failures=failures, retry_failed=True))  # type: ignore[arg-type]
    assert not failures.failures
    assert (read_counts(out).videos, read_counts(out).broken) == (7, 0)


def test_a_part_of_another_run_is_set_aside(clips: list[Path], tmp_path: Path) -> None:
    with PartWriter(tmp_path / "pairs.jsonl", HEADER) as part:
        part.add({"clip.mp4": Made(broken=[{"what": "clip.mp4", "where": "clip.mp4", "why": "empty", "stage": "propose"}])})
    assert list(read_parts(tmp_path / "pairs.jsonl", HEADER, print)) == ["clip.mp4"]
    said: list[str] = []
    assert read_parts(tmp_path / "pairs.jsonl", {**HEADER, "model": "other"}, said.append) == {}
    assert "was made with another model" in said[0]
    assert [path.name.split(".")[-1] for path in tmp_path.iterdir()] == ["old-1"]


@pytest.mark.parametrize("row", ['{"key":"a"}', '{"key":"a","pairs":[{"video":"x"}],"dropped":[],"broken":[],"usage":{}}', '{"pairs":3}'])
def test_a_damaged_part_is_one_line(row: str, tmp_path: Path) -> None:
    with PartWriter(tmp_path / "pairs.jsonl", HEADER):
        pass
    part = next(tmp_path.glob("*.part-*"))
    part.write_text(part.read_text() + row + "\n")
    with pytest.raises(FileFormatError, match=r"part-.*:2: .*delete the file"):
        read_parts(tmp_path / "pairs.jsonl", HEADER, print)


def test_chunks_are_cut_where_a_process_would_get_none(clips: list[Path], tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    helper, lm = InHere(tmp_path / "a/pairs.jsonl"), ScriptedLM(micro_reply)
    settings = replace(SETTINGS, chunk_videos=100)
    list(propose(lm, clips, settings, out=tmp_path / "a/pairs.jsonl", helper=helper))  # type: ignore[arg-type]
    assert helper.lm.batches
    assert lm.batches
