"""Variants of the loop: one kind of question, no critique, another critic, critiques taught again, when to stop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from savi.base.digests import sha256_json
from savi.loop.controls import transform_pairs
from savi.loop.early_stop import stopped_at
from savi.loop.journal import AlignCounts, read_unchanged
from savi.loop.preferences import PreferencePair, read_pairs
from savi.loop.prompts import PROMPTS
from savi.loop.propose import AlignSettings, propose, propose_part
from savi.loop.replay import critique_lessons
from tests.savi.scripted import FRAMES, ScriptedLM, micro_reply, write_clips

SETTINGS = AlignSettings(num_frames=FRAMES, questions_per_kind=2, prompts="micro", chunk_videos=3, seed=5)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_clips(tmp_path_factory.mktemp("clips"), 6)


def made(clips: list[Path], settings: AlignSettings, lm: ScriptedLM | None = None) -> list[PreferencePair]:
    return list(propose(lm or ScriptedLM(micro_reply), clips, settings))  # type: ignore[arg-type]


def test_one_kind_of_questions_asks_the_same_as_both_do(clips: list[Path]) -> None:
    """But for questions that had been asked as one of the other kind."""
    both = made(clips, SETTINGS)
    for kind in ("spatial", "temporal"):
        alone = made(clips, replace(SETTINGS, kinds=(kind,)))
        assert {pair.kind for pair in alone} == {kind}
        assert [pair for pair in both if pair.kind == kind] == [pair for pair in alone if pair in both]


@pytest.mark.parametrize("kinds", [(), ("spatial", "spatial"), ("causal",)])
def test_kinds_are_checked(kinds: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="spatial, temporal"):
        replace(SETTINGS, kinds=kinds)


def test_without_a_critique_the_question_is_asked_once_more(clips: list[Path]) -> None:
    lm = ScriptedLM(micro_reply)
    asked: list[str] = []
    lm.reply = lambda video, prompt, key: asked.append(prompt) or micro_reply(video, prompt, key)  # type: ignore[func-returns-value]
    pairs = made(clips, replace(SETTINGS, criticise=False), lm)
    assert pairs
    assert not any("critique" in prompt for prompt in asked)
    assert not any(key.endswith("/critique") for batch in lm.batches for key in batch)
    for pair in pairs:
        assert pair.critique == ""
        assert pair.chosen == micro_reply("", pair.question, f"{Path(pair.video).name}/{pair.kind}/{pair.meta['index']}/revise")


def test_the_usual_settings_are_what_older_files_were_made_of() -> None:
    """A journal begun before there was a choice goes on: its settings have the same digest."""
    assert not {"kinds", "criticise"} & set(SETTINGS.content())
    others = [replace(SETTINGS, kinds=("spatial",)), replace(SETTINGS, criticise=False)]
    assert len({sha256_json(one.content()) for one in (SETTINGS, *others)}) == 3


def test_a_helper_asks_the_critic_too(clips: list[Path], tmp_path: Path) -> None:
    """Otherwise half of the pairs would be criticised by the model itself."""
    critic = ScriptedLM(lambda video, prompt, key: "the object is a cross so B", fingerprint="another")
    alone = list(propose(ScriptedLM(micro_reply), clips, SETTINGS, critic=critic, out=tmp_path / "alone" / "pairs.jsonl"))  # type: ignore[arg-type]

    class Helper:
        def begin(self, chunks: list[list[tuple[str, Path]]], header: dict[str, str]) -> None:
            propose_part(ScriptedLM(micro_reply), chunks, SETTINGS, tmp_path / "two" / "pairs.jsonl", header, critic)  # type: ignore[arg-type]

        def wait(self) -> None:
            return None

    out = tmp_path / "two" / "pairs.jsonl"
    two = list(propose(ScriptedLM(micro_reply), clips, SETTINGS, critic=critic, out=out, helper=Helper()))  # type: ignore[arg-type]
    assert two == alone
    assert {pair.critique for pair in two} == {"the object is a cross so B"}


def test_sft_on_initial_answers_takes_all_readable_questions(clips: list[Path], tmp_path: Path) -> None:
    pairs = list(propose(ScriptedLM(micro_reply), clips, SETTINGS, out=tmp_path / "pairs.jsonl"))  # type: ignore[arg-type]
    unchanged = read_unchanged(tmp_path / "dropped.jsonl")
    assert unchanged
    lessons = transform_pairs(pairs, "sft-initial", unchanged=unchanged)
    assert {lesson.pair_id for lesson in lessons} == {pair.pair_id for pair in (*pairs, *unchanged)}
    assert all(lesson.chosen == lesson.rejected == lesson.initial for lesson in lessons)
    assert {lesson.meta["revision"] for lesson in lessons} == {pair.chosen for pair in (*pairs, *unchanged)}
    with pytest.raises(ValueError, match="unchanged"):
        transform_pairs(pairs, "sft-initial")


def test_a_replayed_critique_is_the_reply_to_its_own_prompt(clips: list[Path], tmp_path: Path) -> None:
    list(propose(ScriptedLM(micro_reply), clips, SETTINGS, out=tmp_path / "pairs.jsonl"))  # type: ignore[arg-type]
    pairs = read_pairs(tmp_path / "pairs.jsonl")
    lessons = critique_lessons(pairs, 1.0)
    assert len(lessons) == len(pairs)
    for pair, lesson in zip(pairs, lessons, strict=True):
        assert lesson.prompt == PROMPTS["micro"].fill("critique", pair.kind, question=pair.question, answer=pair.initial)
        assert lesson.chosen == lesson.rejected == pair.critique
        assert lesson.video == pair.video
        assert lesson.pair_id != pair.pair_id
    assert critique_lessons(pairs, 0.0) == []
    some = critique_lessons(pairs, 0.5, seed=3)
    assert 0 < len(some) < len(pairs)
    backwards = critique_lessons(pairs[::-1], 0.5, seed=3)
    assert {one.pair_id for one in some} == {one.pair_id for one in backwards}
    assert critique_lessons([replace(pair, critique="") for pair in pairs], 1.0) == []


def counts(changed: int, readable: int, *, keep_equal: bool) -> AlignCounts:
    if keep_equal:
        return AlignCounts(pairs=readable, equal=readable - changed)
    return AlignCounts(pairs=changed, dropped={"unchanged": readable - changed, "unreadable answer": 7})


@pytest.mark.parametrize("keep_equal", [True, False])
@pytest.mark.parametrize(
    ("changed", "at"),
    [
        ([977, 892, 901, 1101], 4),  # of 1,800: the numbers of the kept micro run, whose critiques were worse at the fourth
        ([977, 892, 901, 900], None),  # rises that chance explains
        ([900, 1000, 800], 2),
        ([900], None),
        ([], None),
        ([0, 0], None),
        ([1800, 1800], None),
    ],
)
def test_the_loop_stops_where_critiques_change_more_answers_again(changed: list[int], at: int | None, keep_equal: bool) -> None:
    assert stopped_at([counts(c, 1800, keep_equal=keep_equal) for c in changed]) == at


def test_nothing_readable_stops_nothing() -> None:
    assert stopped_at([AlignCounts(), counts(5, 10, keep_equal=True), AlignCounts()]) is None
