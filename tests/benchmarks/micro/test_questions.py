"""Questions of the micro world: exactly one right option, balanced keys, and a judge that agrees with the questions' own keys."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from benchmarks.micro.analysis import judge_pairs, judge_question
from benchmarks.micro.pretrain.lessons import DRILLS, IGNORE, WORDS, Mix, critique_text, drill, prefix_ids, video_lessons
from benchmarks.micro.world import questions as q
from benchmarks.micro.world.world import Scene, make_scene, scene_rng

SCENES = [make_scene(random.Random(f"q/{i}")) for i in range(300)]


def _questions(form: q.Form, n: int = 4) -> list[tuple[Scene, q.Question]]:
    rng = random.Random(3)
    made = [(s, q.make_question(s, rng, None, form, n)) for s in SCENES]
    return [(s, x) for s, x in made if x]


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_one_right_option(n: int) -> None:
    for scene, x in _questions("choice", n):
        assert len(set(x.options)) == len(x.options) <= n
        true = q.truth(scene, x.family, x.args)
        assert true is not None and [o == true.value for o in x.options].count(True) == 1
        assert x.options[x.answer] == true.value


@pytest.mark.parametrize("family", q.FAMILIES)
def test_each_family_occurs_and_offers_what_it_promises(family: str) -> None:
    rng = random.Random(5)
    made = [x for s in SCENES if (x := q.make_question(s, rng, family, "choice", 5))]
    assert len(made) > 20
    assert {len(x.options) for x in made} == {min(5, len(q.VALUES[family]))}


def test_letters_are_balanced() -> None:
    rng = random.Random(8)
    keys = Counter(x.answer for _ in range(5) for s in SCENES if (x := q.make_question(s, rng, "shape", "choice", 5)))
    n = sum(keys.values())
    assert all(0.15 < keys[i] / n < 0.25 for i in range(5))


def test_yes_and_no_are_balanced_and_right() -> None:
    made = _questions("yes_no")
    yes = sum(x.key == "yes" for _, x in made)
    assert 0.4 < yes / len(made) < 0.6
    for _, x in made:
        assert (x.statement == x.value) == (x.key == "yes")


def test_judge_agrees_with_the_key() -> None:
    for form in ("choice", "yes_no"):
        for scene, x in _questions(form):  # type: ignore[arg-type]
            j = judge_question(scene, x.lettered())
            assert j is not None and (j.key, j.form, j.family) == (x.key, x.form, x.family)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello ?",
        "what shape is the red object ?",
        "what shape is the red object ? A circle B circle",
        "what shape is the red object ? B circle A ring",
        "is it true that the red object is a red ?",
        "how many objects are there ? A left B right",
    ],
)
def test_judge_refuses_what_has_no_answer(text: str) -> None:
    scene = next(s for s in SCENES if s.by_color("red"))
    assert judge_question(scene, text) is None


def test_judge_refuses_what_is_not_there() -> None:
    scene = next(s for s in SCENES if not s.by_color("red"))
    assert judge_question(scene, "what shape is the red object ? A circle B square C ring D cross E triangle") is None


def test_pair_quality_counts() -> None:
    scene = make_scene(scene_rng(4, 0, "unlabelled"))
    x = q.make_question(scene, random.Random(1), "count", "choice", 4)
    assert x is not None
    right, (a, b) = x.key, [c for c in "ABCD" if c != x.key][:2]
    row = {"video": "0000.mp4", "question": x.lettered()}
    right, a, b = (x.reply_of("ABCD".index(k)) for k in (right, a, b))
    pairs = [
        row | {"rejected": a, "chosen": right},
        row | {"rejected": right, "chosen": a},
        row | {"rejected": a, "chosen": b},
        row | {"question": "nonsense ?", "rejected": a, "chosen": b},
    ]
    got = judge_pairs(pairs, [row | {"initial": right}], seed=4)
    assert (got.asked, got.pairs, got.pairs_valid, got.good, got.bad, got.neutral) == (5, 4, 3, 1, 1, 1)
    assert (got.valid_pct, got.initial_pct, got.revised_pct, got.precision_pct) == (80.0, 50.0, 50.0, 50.0)
    assert judge_pairs([*pairs, row | {"rejected": right, "chosen": right}], [], seed=4) == got, "equal answers are no preference"
    stated = {"video": "0000.mp4", "question": "is it so ?"}
    leaning = [stated | {"rejected": "yes", "chosen": "no"}, stated | {"rejected": "yes", "chosen": "yes"}]
    got = judge_pairs([*pairs, *leaning], [stated | {"initial": "no"}], seed=4)
    assert (got.initial_yes_pct, got.revised_yes_pct) == (66.67, 33.33), "letters are not counted"


def test_every_lesson_is_in_the_vocabulary_and_ends_its_turn() -> None:
    rng = random.Random(0)
    mix = Mix(2, 2, 4, 2)
    for s in SCENES[:60]:
        for prompt, reply in video_lessons(s, rng, mix):
            assert WORDS.vocab[prompt[-1]] == "<assistant>" and WORDS.vocab[reply[-1]] == "<eos>"
            assert WORDS.ids["<unk>"] not in prompt + reply


def test_lessons_hold_no_planted_errors() -> None:
    """Every direct answer that is taught is the true one."""
    rng = random.Random(1)
    for s in SCENES[:100]:
        for prompt, reply in video_lessons(s, rng, Mix(0, 0, 3, 0)):
            text, answer = WORDS.decode(prompt), WORDS.decode(reply)
            for words in (
                "Question:",
                "Option:",
                "Only give the best option.",
                "Please answer yes or no:",
                "Please directly give the best option:",
                "Answer with the option's letter from the given choices directly.",
            ):
                text = text.replace(words, "")
            if "caption" in text:
                continue
            j = judge_question(s, text)
            assert j is not None and j.key == answer.split()[-1], text


def test_critique_text_states_facts_value_key_and_verdict() -> None:
    _, x = _questions("choice")[0]
    assert critique_text(x, x.reply) == f"{x.fact} so {x.value} {x.key} right"
    assert critique_text(x, x.reply_of(1 - x.answer if x.answer < 2 else 0)).endswith(f"{x.key} wrong")


@pytest.mark.parametrize("kind", DRILLS)
def test_drill_labels_follow_from_its_text(kind: str) -> None:
    rng = random.Random(2)
    for _ in range(50):
        ids, labels = drill(rng, kind)
        assert len(ids) == len(labels)
        at = [i for i, y in enumerate(labels) if y != IGNORE]
        assert at and all(labels[i] == ids[i] for i in at)
        if kind == "letters":  # the letter stands right before its option in the list
            for i in at:
                first = ids.index(ids[i - 1], ids.index(WORDS.ids["?"]))
                assert ids[first - 1] == ids[i]


def test_prefix_has_the_visual_tokens() -> None:
    assert [WORDS.vocab[i] for i in prefix_ids()].count("<img>") == 32
