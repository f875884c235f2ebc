"""The controls: which pairs each makes, and that the blind one does not see the critique."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from savi.engine.sampling import GenerationSettings
from savi.loop.controls import transform_pairs
from savi.loop.journal import read_unchanged
from savi.loop.preferences import PreferencePair
from savi.loop.prompts import Question, choice, parse_question, same_answer
from savi.loop.propose import AlignSettings, propose
from tests.savi.scripted import FRAMES, ScriptedLM, micro_reply, random_pairs, write_clips

SHORT = GenerationSettings(max_new_tokens=6, temperature=1.0)
SETTINGS = AlignSettings(
    num_frames=FRAMES, questions_per_kind=3, prompts="micro", chunk_videos=2, ask=SHORT, answer=SHORT, critique=SHORT, revise=SHORT
)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_clips(tmp_path_factory.mktemp("clips"), 12)


@pytest.fixture(scope="module")
def made(clips: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Pairs and unchanged questions of a scripted micro model."""
    folder = tmp_path_factory.mktemp("made")
    pairs = list(propose(ScriptedLM(micro_reply), clips, SETTINGS, out=folder / "pairs.jsonl"))  # type: ignore[arg-type]
    return pairs, read_unchanged(folder / "dropped.jsonl")


def question_of(pair: PreferencePair) -> Question:
    question = parse_question(pair.question)
    assert isinstance(question, Question)
    return question


def test_none_and_sft_leave_the_pairs_alone(made: tuple[list[PreferencePair], list[PreferencePair]]) -> None:
    assert transform_pairs(made[0], "none") == made[0]
    assert transform_pairs(made[0], "sft") == made[0]
    with pytest.raises(ValueError, match="there are none, reversed, blind, sft"):
        transform_pairs(made[0], "shuffled")  # type: ignore[arg-type]


def test_reversed(made: tuple[list[PreferencePair], list[PreferencePair]]) -> None:
    for before, after in zip(made[0], transform_pairs(made[0], "reversed"), strict=True):
        assert (after.chosen, after.rejected) == (before.rejected, before.chosen)
        assert (after.pair_id, after.question, after.initial, after.critique) == (
            before.pair_id,
            before.question,
            before.initial,
            before.critique,
        )
        assert after.meta["control"] == "reversed"


def test_blind_pairs_are_answers_but_not_the_critiques(made: tuple[list[PreferencePair], list[PreferencePair]]) -> None:
    pairs, unchanged = made
    blind = transform_pairs(pairs, "blind", seed=1, unchanged=unchanged)
    assert len(blind) == len(pairs) > 20
    assert len({pair.pair_id for pair in blind}) == len(blind)
    for pair in blind:
        question = question_of(pair)
        assert pair.rejected == pair.initial
        assert not same_answer(pair.chosen, pair.rejected)
        if question.options:
            assert choice(pair.chosen, question) in set(question.letters) - {choice(pair.initial, question)}
        else:
            assert pair.chosen in {"yes", "no"}
    drawn = {pair.pair_id for pair in blind} & {pair.pair_id for pair in unchanged}
    assert drawn, "questions the critique left alone are drawn too, or the choice of questions would hand on its verdict"
    assert transform_pairs(list(reversed(pairs)), "blind", seed=1, unchanged=unchanged) == blind
    assert transform_pairs(pairs, "blind", seed=2, unchanged=unchanged) != blind


def test_blind_keeps_as_many_answers_as_the_critique_did(made: tuple[list[PreferencePair], list[PreferencePair]]) -> None:
    pairs, unchanged = made
    kept = [replace(pair, rejected=pair.chosen) for pair in unchanged]
    blind = transform_pairs([*pairs, *kept], "blind", seed=1, unchanged=[])
    assert len({pair.pair_id for pair in blind}) == len(blind) == len(pairs) + len(kept)
    assert sum(pair.chosen != pair.rejected for pair in blind) == len(pairs)
    assert all(pair.chosen == pair.initial for pair in blind if pair.chosen == pair.rejected)
    assert {pair.pair_id for pair in blind if pair.chosen != pair.rejected} != {pair.pair_id for pair in pairs}


def test_blind_does_not_read_its_own_critique(made: tuple[list[PreferencePair], list[PreferencePair]]) -> None:
    """With critique and revision of the choice questions replaced by anything, their blind pairs stay the same."""
    pairs, unchanged = made

    def cover(pair: PreferencePair) -> PreferencePair:
        return replace(pair, critique="?", chosen="whatever") if question_of(pair).options else replace(pair, critique="?")

    before = transform_pairs(pairs, "blind", seed=3, unchanged=unchanged)
    after = transform_pairs([cover(pair) for pair in pairs], "blind", seed=3, unchanged=[cover(pair) for pair in unchanged])
    assert [(pair.pair_id, pair.chosen) for pair in before] == [(pair.pair_id, pair.chosen) for pair in after]


def test_blind_options_are_spread(made: tuple[list[PreferencePair], list[PreferencePair]]) -> None:
    letters = Counter(
        pair.chosen
        for seed in range(5)
        for pair in transform_pairs(made[0], "blind", seed=seed, unchanged=made[1])
        if question_of(pair).options
    )
    assert set(letters) == {"A", "B", "C"}
    assert max(letters.values()) < 0.6 * sum(letters.values())


def test_blind_needs_the_unchanged_questions(made: tuple[list[PreferencePair], list[PreferencePair]]) -> None:
    with pytest.raises(ValueError, match="unchanged"):
        transform_pairs(made[0], "blind")


def test_blind_keeps_the_form_of_the_answer(clips: list[Path]) -> None:
    (pair,) = random_pairs(clips[:1], 1)
    asked = replace(pair, question="what is it ? A red cup B blue cup", chosen="what the critique made of it")
    for initial, expected in (("A", "B"), ("(A) red cup.", "(B) blue cup."), ("the red cup falls", "the blue cup falls"), ("B", "A")):
        (blind,) = transform_pairs([replace(asked, initial=initial, rejected=initial)], "blind", unchanged=[])
        assert blind.chosen == expected
