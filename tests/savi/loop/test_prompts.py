"""What is asked, and how replies are read."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from savi.loop.prompts import (
    KINDS,
    LETTERS,
    PROMPTS,
    STEPS,
    PromptSet,
    Question,
    Unreadable,
    choice,
    parse_answer,
    parse_critique,
    parse_question,
    prompt_set,
    question_shape,
    same_answer,
)


def read(text: str) -> Question:
    question = parse_question(text)
    assert isinstance(question, Question), question
    return question


def test_micro_questions() -> None:
    question = read("what shape is the red object ? A circle B square C cross")
    assert question.options == (("A", "circle"), ("B", "square"), ("C", "cross"))
    assert question.text == "what shape is the red object ? A circle B square C cross"
    assert read("is the red object a circle ?") == Question("is the red object a circle ?")
    assert read("where does it go ? A to the left B to the right").options == (("A", "to the left"), ("B", "to the right"))


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("What is left of the cup?\n(A) a plate\n(B) a spoon", (("A", "a plate"), ("B", "a spoon"))),
        ("What is left of the cup?\nA. a plate\nB. a spoon\n\nAnswer: A", (("A", "a plate"), ("B", "a spoon"))),
        ("What is left of the cup? A) a plate B) a spoon", (("A", "a plate"), ("B", "a spoon"))),
        ("What is left of the cup?", ()),
    ],
)
def test_options_as_people_write_them(text: str, options: tuple[tuple[str, str], ...]) -> None:
    assert read(text).options == options


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("Question: What falls first?", "What falls first?"),
        ("1. What falls first?", "What falls first?"),
        ('Here is one:\n\n**Question:** "What falls first?"', "What falls first?"),
        ("What falls first? It is the cup.", "What falls first?"),
        ("What falls first?\nWhat falls last?", "What falls first?"),
    ],
)
def test_what_stands_around_a_question_is_dropped(text: str, question: str) -> None:
    assert read(text).text.rstrip('"') == question


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no question mark"),
        ("the red circle", "no question mark"),
        ("? A red B blue", "nothing before"),
        ("what colour ? A red", "one option"),
        ("what colour ? B red C blue", "option letters B C"),
        ("what colour ? A red C blue", "option letters A C"),
        ("what colour ? A red A blue", "option letters A A"),
        ("what colour ? A red B", "option B is empty"),
        ("what colour ? A red B Red", "the same"),
    ],
)
def test_unreadable_questions(text: str, reason: str) -> None:
    question = parse_question(text)
    assert isinstance(question, Unreadable)
    assert reason in question.reason
    assert not question


CHOICE = Question("what shape ? A circle B square", (("A", "circle"), ("B", "square")))
OPEN = Question("is it red ?")


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("A", "A"),
        ("(B)", "B"),
        ("B. square", "B"),
        ("the square", "B"),
        ("so it is B", "B"),
        ("circle or square", None),
        ("C", None),
        ("triangle", None),
        ("squares", None),
    ],
)
def test_choices(answer: str, letter: str | None) -> None:
    assert choice(answer, CHOICE) == letter
    assert bool(parse_answer(answer, CHOICE)) == (letter is not None)


def test_answers() -> None:
    assert parse_answer(" yes ", OPEN) == "yes"
    assert parse_answer("Answer: yes", OPEN) == "yes"
    assert parse_answer("Revised answer: It is red.", OPEN) == "It is red."
    for empty in ("", "  ", ".", "?!"):
        assert isinstance(parse_answer(empty), Unreadable)
        assert isinstance(parse_critique(empty), Unreadable)
    assert isinstance(parse_answer("B", OPEN), Unreadable), "an option letter where there are no options"
    assert parse_critique("red goes up so A") == "red goes up so A"
    assert same_answer("Yes.", " yes")
    assert not same_answer("yes", "no")


def test_shapes() -> None:
    assert question_shape(CHOICE) == "choice-2"
    assert question_shape(OPEN) == "yes-no"
    assert question_shape(Question("How many?")) == "open-how"


@given(st.text(max_size=200))
def test_any_reply_is_read_or_refused(text: str) -> None:
    question = parse_question(text)
    if isinstance(question, Question):
        assert "?" in question.text
        assert "".join(question.letters) == LETTERS[: len(question.letters)]
        assert len({option.casefold() for _, option in question.options}) == len(question.options)
        assert all(option for _, option in question.options)
        assert parse_question(question.text) == question, "a question is read again as itself"
    for parse in (parse_answer, parse_critique):
        assert isinstance(parse(text), (str, Unreadable))


@given(
    st.lists(st.text("abcdefg ", min_size=1, max_size=8).filter(str.strip), min_size=2, max_size=5, unique_by=lambda s: " ".join(s.split()))
)
def test_written_options_are_read_back(texts: list[str]) -> None:
    plain = [" ".join(text.split()) for text in texts]
    written = "what is it ? " + " ".join(f"{letter} {text}" for letter, text in zip(LETTERS, plain, strict=False))
    assert [text for _, text in read(written).options] == plain


def test_prompt_sets() -> None:
    for name, prompts in PROMPTS.items():
        assert prompts.name == name
        assert prompts.source
        assert prompts.fill("ask", "spatial") != prompts.fill("ask", "temporal")
    micro = prompt_set("micro")
    assert micro.fill("critique", "spatial", question="is it red ?", answer="yes") == "is it red ? answer yes critique"
    assert (
        micro.fill("revise", "temporal", question="q ?", answer="{critique}", critique="so no")
        == "q ? answer {critique} critique so no revise"
    )
    asked = {kind: prompt_set("videosavi").fill("critique", kind, question="Where is it?", answer="Left.") for kind in KINDS}
    assert "space" in asked["spatial"] and "order" in asked["temporal"], "the paper criticises each kind with a prompt of its own"
    assert "one sentence" in prompt_set("videosavi").answer
    with pytest.raises(ValueError, match="there are micro, videosavi"):
        prompt_set("nano")


def test_a_template_must_have_its_fields() -> None:
    fields = PROMPTS["micro"].model_dump()
    with pytest.raises(ValueError, match="needs exactly"):
        PromptSet(**{**fields, "critique_temporal": "{question} critique"})
    with pytest.raises(ValueError, match="needs exactly"):
        PromptSet(**{**fields, "answer": "{question} {truth}"})
    with pytest.raises(ValueError, match="extra"):
        PromptSet(**{**fields, "more": "x"})


def test_prompts_of_later_steps_have_little_in_common_with_earlier_ones() -> None:
    """Why a prompt's keys and values are not kept for the next step (`savi.loop.propose`)."""
    fields = {"question": "What falls first?", "answer": "The cup falls first.", "critique": "The cup falls, then the plate."}
    filled = [prompt_set("videosavi").fill(step, "temporal", **fields).split() for step in STEPS]
    common = [
        next(i for i, (one, other) in enumerate(zip(filled[a], filled[b], strict=False)) if one != other)
        for a, b in itertools.combinations(range(len(STEPS)), 2)
    ]
    assert max(common) == 6
