"""Questions of the micro world: exactly one right option, balanced keys, and a judge that agrees with the questions' own keys."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from benchmarks.micro.analysis import judge_pairs, judge_question
from benchmarks.micro.pretrain.lessons import DRILLS, IGNORE, WORDS, Lesson, Mix, critique_text, drill, prefix_ids, video_lessons
from benchmarks.micro.pretrain.wording import INSTRUCTIONS, THOUGHT
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


NONE = Mix(critique=0, revise=0, direct=0, letter=0, match=0, ask=0, caption=0)


def test_every_lesson_is_in_the_vocabulary_and_ends_its_turn() -> None:
    rng = random.Random(0)
    mix = Mix(critique=2, revise=2, direct=4, letter=2, match=2, ask=2, caption=1)
    for s in SCENES[:60]:
        for prompt, reply in video_lessons(s, rng, mix):
            assert WORDS.vocab[prompt[-1]] == "<assistant>" and WORDS.vocab[reply[-1]] == "<eos>"
            assert WORDS.ids["<unk>"] not in prompt + reply


def _said(lesson: Lesson) -> tuple[str, str]:
    """A lesson's question without the tasks' fixed sentences, and its reply."""
    text = WORDS.decode(lesson[0])
    for sentence in INSTRUCTIONS:
        text = text.replace(sentence, "")
    return text, WORDS.decode(lesson[1])


@pytest.mark.parametrize("kind", ["direct", "letter"])
def test_answers_are_true_at_once_or_after_a_thought(kind: str) -> None:
    rng = random.Random(1)
    for s in SCENES[:100]:
        for text, answer in map(_said, video_lessons(s, rng, replace(NONE, **{kind: 3}))):
            j = judge_question(s, text)
            assert j is not None and j.key == answer.split()[-1], text
            if kind == "letter":  # the task takes what follows the thought, and reads nothing but a letter, or yes or no
                thought, _, read = answer.partition(f" {THOUGHT} ")
                assert read == j.key
                assert " so " in thought and thought.split()[-1] == j.key, "what is seen and what follows from it come first"


def test_the_better_caption_is_true_and_the_other_is_not() -> None:
    rng = random.Random(1)
    for s in SCENES[:100]:
        for text, said in map(_said, video_lessons(s, rng, replace(NONE, match=3))):
            answer = said.partition(f" {THOUGHT} ")[2]
            first, second = (part.strip() for part in text.replace("Caption A", "").split("Caption B"))
            assert answer in (first, second) and first != second
            keys = [getattr(judge_question(s, f"is it true that {caption} ?"), "key", None) for caption in (first, second)]
            assert keys == (["yes", "no"] if answer == first else ["no", "yes"]), text


def test_critiques_end_in_the_true_answer() -> None:
    """No lesson holds a planted error: reasoned answers are true, whatever reply they are about."""
    rng = random.Random(1)
    for s in SCENES[:100]:
        for text, answer in map(_said, video_lessons(s, rng, replace(NONE, critique=2, revise=2))):
            question, given = text.split(" answer ")
            j = judge_question(s, question)
            verdict = answer.split()[-1]
            key = answer.split()[-2] if verdict in ("right", "wrong") else verdict
            assert j is not None and key == j.key, text
            if "revise" not in given:
                assert (verdict == "right") == (given.removesuffix(" critique").split()[-1] == key)


def test_the_share_of_direct_answers_is_stated() -> None:
    mix = Mix(critique=3, revise=1, direct=0.5, letter=0.25, match=0.25, ask=9, caption=9)
    assert mix.share == pytest.approx(0.1)  # of five that answer; letter and match answer after a thought


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
