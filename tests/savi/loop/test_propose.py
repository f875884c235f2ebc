"""From videos to pairs: every question accounted for, nothing depends on chunks, nothing is lost to a crash."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from savi.base.errors import ResumeError, UsageError
from savi.base.files import FailureLog
from savi.engine.sampling import GenerationSettings
from savi.engine.video_lm import VideoLM
from savi.engine.watched import ContextError, Reply
from savi.loop.journal import is_complete, journal_path, read_counts, read_unchanged
from savi.loop.preferences import read_pairs
from savi.loop.prompts import PROMPTS
from savi.loop.propose import AlignSettings, propose, video_keys
from savi.video.frames import Frames
from tests.savi.scripted import FRAMES, ScriptedLM, micro_reply, write_clips
from tests.savi.tiny import tiny_video_lm

ROOT = Path(__file__).parents[3]
SETTINGS = AlignSettings(num_frames=FRAMES, questions_per_kind=2, prompts="micro", chunk_videos=3, seed=5)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Seven clips; the third is broken."""
    paths = write_clips(tmp_path_factory.mktemp("clips"), 7)
    paths[2].write_bytes(paths[2].read_bytes()[:200])
    return paths


def run(lm: object, clips: list[Path], folder: Path, settings: AlignSettings = SETTINGS) -> dict[str, bytes]:
    list(propose(lm, clips, settings, out=folder / "pairs.jsonl", failures=FailureLog(folder / "failures.jsonl")))  # type: ignore[arg-type]
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_question_leaves_one_row(clips: list[Path], tmp_path: Path) -> None:
    lm = ScriptedLM(micro_reply)
    run(lm, clips, tmp_path)
    counts = read_counts(tmp_path / "pairs.jsonl")
    pairs, dropped = read_pairs(tmp_path / "pairs.jsonl"), rows(tmp_path / "dropped.jsonl")
    assert counts.videos == 7
    assert counts.broken == 1
    assert counts.questions == 6 * 2 * 2 == len(pairs) + len(dropped)
    assert counts.pairs == len(pairs) > 3
    assert sum(counts.dropped.values()) == len(dropped)
    assert {"unreadable question", "unchanged"} <= set(counts.dropped)
    assert f"{len(pairs)} pairs" in counts.line()
    names = [(Path(str(row["video"])).name, row["kind"], row["meta"]["index"]) for row in dropped]  # type: ignore[index]
    names += [(Path(pair.video).name, pair.kind, pair.meta["index"]) for pair in pairs]
    assert len(set(names)) == counts.questions
    assert is_complete(tmp_path / "pairs.jsonl")
    assert lm.seeds == {5}


def test_pairs_are_what_the_model_said(clips: list[Path], tmp_path: Path) -> None:
    run(ScriptedLM(micro_reply), clips, tmp_path)
    for pair in read_pairs(tmp_path / "pairs.jsonl"):
        key = f"{Path(pair.video).name}/{pair.kind}/{pair.meta['index']}"
        assert pair.question == micro_reply("", f"ask {pair.kind}", f"{key}/ask")
        assert pair.rejected == pair.initial == micro_reply("", pair.question, f"{key}/answer")
        asked = PROMPTS["micro"].fill("critique", pair.kind, question=pair.question, answer=pair.initial)
        assert pair.critique == micro_reply("", asked, f"{key}/critique")
        asked = PROMPTS["micro"].fill("revise", pair.kind, question=pair.question, answer=pair.initial, critique=pair.critique)
        assert pair.chosen == micro_reply("", asked, f"{key}/revise") != pair.rejected
        assert Path(pair.video) in clips
        assert pair.meta["num_frames"] == FRAMES


def test_broken_videos_are_listed_and_the_rest_goes_on(clips: list[Path], tmp_path: Path) -> None:
    run(ScriptedLM(micro_reply), clips, tmp_path)
    (failure,) = rows(tmp_path / "failures.jsonl")
    assert failure["what"] == "clip02.mp4"
    assert failure["stage"] == "propose"
    assert failure["why"]
    videos = {Path(pair.video).name for pair in read_pairs(tmp_path / "pairs.jsonl")}
    assert "clip02.mp4" not in videos
    assert len(videos) > 2


def test_stages_are_batched_over_a_chunk_and_chunks_change_nothing(clips: list[Path], tmp_path: Path) -> None:
    found = []
    for chunk in (1, 3, 100):
        lm = ScriptedLM(micro_reply)
        (tmp_path / str(chunk)).mkdir()
        written = run(lm, clips, tmp_path / str(chunk), replace(SETTINGS, chunk_videos=chunk))
        found.append({name: data for name, data in written.items() if "journal" not in name})
        if chunk == 100:
            assert len(lm.batches) == 4, "one batch a stage"
            assert len(lm.batches[0]) == 6 * 4
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("stage", "reply", "reason"),
    [
        ("ask", "no question", "unreadable question"),
        ("answer", "", "unreadable answer"),
        ("critique", " . ", "unreadable critique"),
        ("revise", "?", "unreadable revision"),
    ],
)
def test_an_unreadable_reply_at_each_step(clips: list[Path], stage: str, reply: str, reason: str, tmp_path: Path) -> None:
    def say(video: str, prompt: str, key: str) -> str:
        if key.endswith(f"/{stage}"):
            return reply
        return {"ask": f"what is {key[-6:-4]} ?", "answer": "one", "critique": "so two", "revise": "two"}[key.rsplit("/", 1)[1]]

    run(ScriptedLM(say), clips[:2], tmp_path)
    dropped = rows(tmp_path / "dropped.jsonl")
    assert read_pairs(tmp_path / "pairs.jsonl") == []
    assert {row["reason"] for row in dropped} <= {reason, "duplicate"}
    kept = {"ask": "question", "answer": "initial", "critique": "critique", "revise": "revision"}[stage]
    assert all(row[kept] == reply and row["detail"] for row in dropped if row["reason"] == reason)


def test_a_reply_that_was_cut_off_is_unreadable(clips: list[Path], tmp_path: Path) -> None:
    def say(video: str, prompt: str, key: str) -> str:
        return {"ask": f"what is {key[-6:-4]} ?", "answer": "one", "critique": "so two", "revise": "two"}[key.rsplit("/", 1)[1]]

    lm = ScriptedLM(say, unfinished=("clip00.mp4/spatial/0/revise",))
    run(lm, clips[:1], tmp_path, replace(SETTINGS, questions_per_kind=1))
    row = next(row for row in rows(tmp_path / "dropped.jsonl") if row["reason"] == "unreadable revision")
    assert "cut off after 2 tokens" in str(row["detail"])


def test_duplicates_and_unchanged_answers(clips: list[Path], tmp_path: Path) -> None:
    def say(video: str, prompt: str, key: str) -> str:
        return {"ask": "Is it  red ?", "answer": "yes", "critique": "so yes", "revise": "Yes."}[key.rsplit("/", 1)[1]]

    run(ScriptedLM(say), clips[:2], tmp_path)
    counts = read_counts(tmp_path / "pairs.jsonl")
    assert counts.dropped == {"duplicate": 2 * 3, "unchanged": 2}
    unchanged = read_unchanged(tmp_path / "dropped.jsonl")
    assert [(pair.rejected, pair.chosen, Path(pair.video)) for pair in unchanged] == [("yes", "Yes.", clips[0]), ("yes", "Yes.", clips[1])]
    (tmp_path / "equal").mkdir()
    run(ScriptedLM(say), clips[:2], tmp_path / "equal", replace(SETTINGS, keep_equal=True))
    counts = read_counts(tmp_path / "equal" / "pairs.jsonl")
    assert (counts.pairs, counts.equal) == (2, 2) and "2 pairs (2 of unchanged answers)" in counts.line()
    equal = read_pairs(tmp_path / "equal" / "pairs.jsonl")
    assert {(pair.initial, pair.rejected, pair.chosen) for pair in equal} == {("yes", "Yes.", "Yes.")}, "nothing to prefer"


def test_without_files(clips: list[Path]) -> None:
    pairs = list(propose(ScriptedLM(micro_reply), clips, SETTINGS))  # type: ignore[arg-type]
    assert len(pairs) > 3


def test_run_again_asks_nothing_and_yields_the_same(clips: list[Path], tmp_path: Path) -> None:
    before = run(ScriptedLM(micro_reply), clips, tmp_path)
    lm = ScriptedLM(micro_reply)
    again = list(propose(lm, clips, SETTINGS, out=tmp_path / "pairs.jsonl"))  # type: ignore[arg-type]
    assert lm.batches == []
    assert again == read_pairs(tmp_path / "pairs.jsonl")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("what", ["model", "settings", "videos"])
def test_files_of_another_run_are_refused(clips: list[Path], what: str, tmp_path: Path) -> None:
    run(ScriptedLM(micro_reply), clips, tmp_path)
    lm = ScriptedLM(micro_reply, fingerprint="other" if what == "model" else "scripted")
    settings = replace(SETTINGS, answer=GenerationSettings(temperature=0.5)) if what == "settings" else SETTINGS
    with pytest.raises(ResumeError, match=f"another {what}"):
        run(lm, clips[:-1] if what == "videos" else clips, tmp_path, settings)


def test_a_file_that_this_loop_did_not_write_is_left_alone(clips: list[Path], tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text("mine\n")
    with pytest.raises(ResumeError, match="no journal speaks of"):
        run(ScriptedLM(micro_reply), clips, tmp_path)
    assert (tmp_path / "pairs.jsonl").read_text() == "mine\n"


@dataclass
class ShortLM(ScriptedLM):
    """Its context holds neither some videos nor the prompts of some questions."""

    long_videos: tuple[str, ...] = ()
    long_keys: tuple[str, ...] = ()

    def watch_batch(self, videos: Sequence[Frames]) -> list[str]:
        if any(Path(video.path).name in self.long_videos for video in videos):
            raise ContextError("prefix 99 + 1 new tokens = 100, but short has a context of 50")
        return super().watch_batch(videos)

    def ask(self, items: Sequence[tuple[Any, str]], settings: GenerationSettings, *, keys: Sequence[str]) -> list[Reply]:
        if any(key in self.long_keys for key in keys):
            raise ContextError("prefix 49 + prompt 9 = 58, but short has a context of 50")
        return super().ask(items, settings, keys=keys)


def test_what_the_context_cannot_hold_does_not_end_the_rest(clips: list[Path], tmp_path: Path) -> None:
    whole = run(ScriptedLM(micro_reply), clips, tmp_path / "whole")
    asked = next(pair for pair in read_pairs(tmp_path / "whole" / "pairs.jsonl") if Path(pair.video).name != "clip00.mp4")
    key = f"{Path(asked.video).name}/{asked.kind}/{asked.meta['index']}/critique"
    run(ShortLM(micro_reply, long_videos=("clip00.mp4",), long_keys=(key,)), clips, tmp_path / "short")
    failed = {str(row["what"]): str(row["why"]) for row in rows(tmp_path / "short" / "failures.jsonl")}
    assert set(failed) == {"clip00.mp4", "clip02.mp4"}
    assert failed["clip00.mp4"].startswith("too long: prefix 99")
    (row,) = [row for row in rows(tmp_path / "short" / "dropped.jsonl") if row["reason"] == "too long"]
    assert row["pair_id"] == asked.pair_id and "context of 50" in str(row["detail"])
    kept = {pair.pair_id for pair in read_pairs(tmp_path / "short" / "pairs.jsonl")}
    made = {pair.pair_id for pair in read_pairs(tmp_path / "whole" / "pairs.jsonl") if Path(pair.video).name != "clip00.mp4"}
    assert kept == made - {asked.pair_id}
    assert whole["pairs.jsonl"]


def test_where_nothing_fits_it_is_said_before_all_videos_are_gone_through(clips: list[Path], tmp_path: Path) -> None:
    lm = ShortLM(micro_reply, long_videos=tuple(clip.name for clip in clips))
    with pytest.raises(ContextError, match="context of 50"):
        run(lm, clips, tmp_path)
    assert read_counts(tmp_path / "pairs.jsonl").videos == 0
    some = run(ShortLM(micro_reply, long_videos=("clip06.mp4",)), clips, tmp_path / "some")  # alone in its chunk, after others that fit
    assert some["pairs.jsonl"] and read_counts(tmp_path / "some" / "pairs.jsonl").broken == 2


def test_a_video_named_twice_is_wrong_use(clips: list[Path]) -> None:
    with pytest.raises(UsageError, match=r"clip00\.mp4 is in the list more than once: name each file once"):
        video_keys([*clips, clips[0]])


def test_two_files_in_one_folder_do_not_touch_each_others_questions(clips: list[Path], tmp_path: Path) -> None:
    def make(name: str, videos: list[Path]) -> dict[str, bytes]:
        list(propose(ScriptedLM(micro_reply), videos, SETTINGS, out=tmp_path / name))
        return {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    make("none.jsonl", clips[2:3])  # the broken one: no question, so nothing dropped
    make("pairs.jsonl", clips[3:])
    made = make("some.jsonl", clips)
    assert made["dropped.jsonl"] and made["some.dropped.jsonl"] and not made["none.dropped.jsonl"]
    for name, videos in (("none.jsonl", clips[2:3]), ("pairs.jsonl", clips[3:]), ("some.jsonl", clips)):
        assert make(name, videos) == made  # run again: nothing is cut off


def test_settings_of_speed_may_change_in_between(clips: list[Path], tmp_path: Path) -> None:
    run(ScriptedLM(micro_reply), clips, tmp_path)
    faster = replace(SETTINGS, chunk_videos=1, answer=replace(SETTINGS.answer, max_batch=2))
    run(ScriptedLM(micro_reply), clips, tmp_path, faster)


def test_a_pairs_file_shorter_than_its_journal_is_refused(clips: list[Path], tmp_path: Path) -> None:
    run(ScriptedLM(micro_reply), clips, tmp_path)
    (tmp_path / "pairs.jsonl").write_bytes(b"")
    with pytest.raises(ResumeError, match=r"0 bytes, but its journal says"):
        run(ScriptedLM(micro_reply), clips, tmp_path)


KILLED = """
import os, signal, sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
sys.path.insert(0, os.getcwd())
from savi.base.files import FailureLog
from savi.loop.propose import propose
from tests.savi.scripted import ScriptedLM, micro_reply
from tests.savi.loop.test_propose import SETTINGS
folder, kill_at, *clips = sys.argv[1:]
def say(video, prompt, key):
    if key == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return micro_reply(video, prompt, key)
out = Path(folder)
list(propose(ScriptedLM(say), [Path(c) for c in clips], SETTINGS, out=out / "pairs.jsonl", failures=FailureLog(out / "failures.jsonl")))
"""


@pytest.mark.parametrize("torn", [False, True])
def test_killed_and_resumed_is_uninterrupted(clips: list[Path], torn: bool, tmp_path: Path) -> None:
    """SIGKILL in the second chunk's last stage; then also with rows and half a line that the journal does not know of."""
    (tmp_path / "straight").mkdir()
    straight = run(ScriptedLM(micro_reply), clips, tmp_path / "straight")
    last = max(row["video"] for row in rows(tmp_path / "straight" / "pairs.jsonl") if "clip05" in str(row["video"]))
    pair = next(pair for pair in read_pairs(tmp_path / "straight" / "pairs.jsonl") if Path(str(last)).name in pair.video)
    kill_at = f"clip05.mp4/{pair.kind}/{pair.meta['index']}/revise"
    killed = tmp_path / "killed"
    killed.mkdir()
    arguments = [sys.executable, "-c", KILLED, str(killed), kill_at, *map(str, clips)]
    assert subprocess.run(arguments, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    assert len(rows(journal_path(killed / "pairs.jsonl"))) == 2, "the header and the first chunk"
    if torn:
        with (killed / "pairs.jsonl").open("ab") as file:
            file.write((tmp_path / "straight" / "pairs.jsonl").read_bytes().splitlines()[-1] + b'\n{"half')
        with journal_path(killed / "pairs.jsonl").open("ab") as file:
            file.write(b'{"videos_done": 6, "pairs')
    lm = ScriptedLM(micro_reply)
    assert run(lm, clips, killed) == straight
    assert all(not key.startswith("clip00") for batch in lm.batches for key in batch), "the first chunk is not asked again"


def test_names_of_videos() -> None:
    assert video_keys([Path("a/x.mp4"), Path("a/y.mp4")]) == ["x.mp4", "y.mp4"]
    assert video_keys([Path("r/a/x.mp4"), Path("r/b/x.mp4"), Path("r/b/y.mp4")]) == ["a/x.mp4", "b/x.mp4", "y.mp4"]
    with pytest.raises(ValueError, match="more than once"):
        video_keys([Path("a/x.mp4"), Path("a/x.mp4")])


@pytest.mark.parametrize("change", [{"num_frames": 0}, {"chunk_videos": 0}, {"prompts": "nano"}])
def test_settings_are_checked(change: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        replace(SETTINGS, **change)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def lm() -> VideoLM:
    return tiny_video_lm(layers=2)


def test_a_real_model_gives_the_same_whatever_the_chunks(lm: VideoLM, clips: list[Path], tmp_path: Path) -> None:
    """A tiny random model never asks a readable question; all its replies are dropped, and they are the same in any chunking."""
    short = GenerationSettings(max_new_tokens=6, temperature=1.0)
    found = []
    for chunk in (1, 4):
        (tmp_path / str(chunk)).mkdir()
        settings = replace(SETTINGS, ask=short, chunk_videos=chunk)
        run(lm, clips[:4], tmp_path / str(chunk), settings)
        found.append((tmp_path / str(chunk) / "dropped.jsonl").read_bytes())
    assert found[0] == found[1]
    replies = [row["question"] for row in rows(tmp_path / "1" / "dropped.jsonl")]
    assert len(set(replies)) > len(replies) / 2


def test_a_broken_video_is_tried_again_only_when_asked(clips: list[Path], tmp_path: Path) -> None:
    out, settings = tmp_path / "again", replace(SETTINGS, questions_per_kind=8)
    run(ScriptedLM(micro_reply), clips, tmp_path / "once", settings)  # as it is when nothing is tried again
    broken = clips[2].read_bytes()
    run(ScriptedLM(micro_reply), clips, out, settings)
    clips[2].write_bytes(clips[0].read_bytes())
    lm = ScriptedLM(micro_reply)
    run(lm, clips, out, settings)
    assert lm.batches == []
    assert (out / "pairs.jsonl").read_bytes() == (tmp_path / "once" / "pairs.jsonl").read_bytes()
    before = read_counts(out / "pairs.jsonl")
    failures = FailureLog(out / "failures.jsonl")
    made = list(propose(lm, clips, settings, out=out / "pairs.jsonl", failures=failures, retry_failed=True))  # type: ignore[arg-type]
    after = read_counts(out / "pairs.jsonl")
    assert (before.videos, before.broken, after.videos, after.broken) == (7, 1, 7, 0)
    assert after.pairs == len(made) == len(rows(out / "pairs.jsonl")) > before.pairs
    assert {Path(pair.video).name for pair in made[before.pairs :]} == {clips[2].name}
    assert (out / "failures.jsonl").read_bytes() == b""
    run(ScriptedLM(micro_reply), clips, out, settings)  # and is not listed again
    assert read_counts(out / "pairs.jsonl") == after
    clips[2].write_bytes(broken)


def test_names_that_are_no_utf_8_go_through_the_files(clips: list[Path], tmp_path: Path) -> None:
    odd = clips[0].with_name(os.fsdecode(b"\xc9t\xe9.mp4"))
    cut = clips[0].with_name(os.fsdecode(b"cut\xff.mp4"))
    odd.write_bytes(clips[0].read_bytes())
    cut.write_bytes(clips[0].read_bytes()[:500])
    for _ in range(2):
        run(ScriptedLM(micro_reply), [odd, cut], tmp_path, replace(SETTINGS, questions_per_kind=12))
        pairs = read_pairs(tmp_path / "pairs.jsonl")
        assert pairs
        assert {Path(pair.video).name for pair in pairs} == {odd.name}
        assert [failure["what"] for failure in rows(tmp_path / "failures.jsonl")] == [cut.name]
