"""The kinds of replies that language models give to the natural-language prompts, each read as a person would read it."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from savi.base.files import read_jsonl
from savi.loop.prompts import STEPS, Question, Unreadable, parse_answer, parse_critique, parse_question, same_answer
from savi.loop.replies import cut_back, is_refusal, repeats_itself, spoken, without_lead_in


@pytest.mark.parametrize(
    ("reply", "question"),
    [
        # courtesies and labels
        ("Sure! What is left of the cup?", "What is left of the cup?"),
        ("Sure, here is a question about the video:\n\nWhat is left of the cup?", "What is left of the cup?"),
        ("Certainly! Here's one: What is left of the cup?", "What is left of the cup?"),
        ("Hey! That's a wonderful question, and I would love to. What is left of the cup?", "What is left of the cup?"),
        ("Spatial question 1: What is left of the cup?", "What is left of the cup?"),
        ("Part 1: I cannot feed you\n\nPart 2: What is left of the cup?", "What is left of the cup?"),
        ("Q: What is left of the cup?\nA: A plate.", "What is left of the cup?"),
        ("I'm here to help. I will ask about the cup: What is left of the cup?", "What is left of the cup?"),
        ("What is left of the cup ?\n\nA: easy, easy", "What is left of the cup ?"),
        # markdown
        ("**What is left of the cup?**", "What is left of the cup?"),
        ("### Question\n\n> **What** is left of the *cup*?", "What is left of the cup?"),
        ("```\nWhat is left of the cup?\n```", "What is left of the cup?"),
        # lists, several questions, the same one again
        ("1. What is left of the cup?\n2. What falls?\n3. Who is there?", "What is left of the cup?"),
        ("- What is left of the cup?\n- What falls?", "What is left of the cup?"),
        ("(1) What is left of the cup?", "What is left of the cup?"),
        ("What is left of the cup? What falls?", "What is left of the cup?"),
        ("What is left of the cup? What is left of the cup?", "What is left of the cup?"),
        ("What is left of the cup?\n\nWhat is left of the cup?", "What is left of the cup?"),
        ("What is left of the cup?? I am not sure?", "What is left of the cup?"),
        ("Do you want to know the answer?\nWhat is left of the cup?", "What is left of the cup?"),
        ("Are you ready? What is left of the cup?", "What is left of the cup?"),
        ("What is the answer to this question?\nWhat is left of the cup?", "What is left of the cup?"),
        ('To keep it simple, ask: "What is left of the cup?" and wait.', "What is left of the cup?"),
        ('The question to be answered is "What is left of the cup?"', "What is left of the cup?"),
        ("Answer the question: What is left of the cup?", "What is left of the cup?"),
        ('A: "What is left of the cup?"\n\nQuestion: What is left of the cup?', "What is left of the cup?"),
        # what stands after it
        ("What is left of the cup? A plate stands there.", "What is left of the cup?"),
        ("What is left of the cup?\nAnswer: A plate.", "What is left of the cup?"),
        # what belongs to it
        ("A man picks up a cup. What does he do next?", "A man picks up a cup. What does he do next?"),
        ("“What is left of the cup?”", "What is left of the cup?"),
        ('What is left of the sign "Why not?"', 'What is left of the sign "Why not?"'),
        # roles and thinking
        ("Assistant: What is left of the cup?", "What is left of the cup?"),
        ("What is left of the cup?\nUser: A plate.\nAssistant: Right!", "What is left of the cup?"),
        ("<think>Is it a cup? Maybe.</think>\nWhat is left of the cup?", "What is left of the cup?"),
        ("What is left of the cup.", "What is left of the cup?"),
        ("Sure! What happens to the cup when it falls.", "What happens to the cup when it falls?"),
        # a question mark that asks nothing
        ("See https://a.org/x?y=1\nWhat is left of the cup?", "What is left of the cup?"),
    ],
)
def test_questions(reply: str, question: str) -> None:
    assert parse_question(reply) == Question(question)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("The cup is left of the plate.", "no question mark"),
        ("See https://a.org/x?y=1", "no question mark"),
        ("When a cup falls, it breaks.", "no question mark"),
        ("What to do: move the cup.", "no question mark"),
        ("<think>What is left of the cup? Let me see", "no question mark"),
        ("Could you please provide the video?", "put to the user"),
        ("I'm ready to help. What question would you like me to assist with?", "put to the user"),
        ("I'm sorry, can you share more context?", "put to the user"),
        ("?", "nothing before"),
    ],
)
def test_replies_without_a_question(reply: str, reason: str) -> None:
    read = parse_question(reply)
    assert isinstance(read, Unreadable) and reason in read.reason


def test_a_question_that_ended_before_the_cut() -> None:
    assert parse_question("What is left of the cup? I ask since the cu", finished=False) == Question("What is left of the cup?")
    assert isinstance(parse_question("What is left of the", finished=False), Unreadable)
    cut = parse_question("What is left of the cup? A. a plate B. a sp", finished=False)
    assert isinstance(cut, Unreadable) and "options" in cut.reason, "the last option may go on"


OPEN = Question("What is left of the cup?")


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("Sure! A plate.", "A plate."),
        ("Sure, I can help with that. A plate.", "A plate."),
        ("Answer: A plate.", "A plate."),
        ("A: A plate.", "A plate."),
        ("The answer is: A plate.", "A plate."),
        ("The answer to this question is: A plate.", "A plate."),
        ('A: "A plate."', "A plate."),
        ('It says "stop".', 'It says "stop".'),
        ("Here is the revised answer:\n\nA plate.", "A plate."),
        ("Final answer: **A plate.**", "A plate."),
        ("What is left of the cup? A plate.", "A plate."),
        ("Question: What is left of the cup?\nAnswer: A plate.", "A plate."),
        ("A plate.\nCritique: It is right.", "A plate."),
        ("A plate.\n\nUser: And right?\nAssistant: A spoon.", "A plate."),
        ("Assistant: A plate.", "A plate."),
        ("- a plate\n- a spoon", "a plate\na spoon"),
        ("<think>A cup, a plate.</think>A plate.", "A plate."),
        # what looks like a label or a courtesy and is the answer
        ("3.", "3."),
        ("3.5 metres", "3.5 metres"),
        ("10:30 in the morning", "10:30 in the morning"),
        ("Sure.", "Sure."),
        ("Great care is taken. Then it falls.", "Great care is taken. Then it falls."),
        ("This is what falls: a plate.", "This is what falls: a plate."),
        ("Here are three cups: red, blue, white.", "Here are three cups: red, blue, white."),
        ("Part of the plate.", "Part of the plate."),
        ("Hello Kitty, on a bag.", "Hello Kitty, on a bag."),
        ("5 * 3 * 2 cups", "5 * 3 * 2 cups"),
        ("It says snake_case_name.", "It says snake_case_name."),
    ],
)
def test_answers(reply: str, answer: str) -> None:
    assert parse_answer(reply, OPEN) == answer


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("I'm sorry, but I cannot see the video.", "a refusal"),
        ("As an AI language model, I do not watch videos.", "a refusal"),
        ("I'm an AI designed to help clarify and provide conciseness", "a refusal"),
        ("Please provide the video.", "a refusal"),
        ("The question cannot be answered with the given options.", "a refusal"),
        ("What is left of the cup?", "repeats the question"),
        ("The plate is red. The plate is red. The plate is red. The plate is red. The plate is red.", "repeats itself"),
        ("The proposed answer is that the plate is left of it.", "speaks of the proposed answer, and is none"),
        ("text-based text-based text-based text-based text-based", "repeats itself"),
        ("**", "empty"),
        ("<think>a plate", "empty"),
    ],
)
def test_replies_without_an_answer(reply: str, reason: str) -> None:
    read = parse_answer(reply, OPEN)
    assert isinstance(read, Unreadable) and read.reason == reason


@pytest.mark.parametrize(
    ("reply", "finished", "critique"),
    [
        ("The plate is right of the cup, not left.", True, "The plate is right of the cup, not left."),
        ("1. The cup is red.\n2. The plate is not seen.", True, "1. The cup is red.\n2. The plate is not seen."),
        ("The cup is red. The plate is not seen. The spo", False, "The cup is red. The plate is not seen."),
        ("The points:\n1. The cup is red.\n2. It falls.\n3. Th", False, "The points:\n1. The cup is red.\n2. It falls."),
        ("**Objects:** a cup.\n\n- a plate.\n- a sp", False, "Objects: a cup.\n\na plate."),
    ],
)
def test_critiques(reply: str, finished: bool, critique: str) -> None:
    assert parse_critique(reply, "A plate.", finished=finished) == critique


@pytest.mark.parametrize(
    ("reply", "finished", "reason"),
    [
        ("A plate", True, "repeats the answer"),
        ("The proposed answer is: A plate.", True, "repeats the answer"),
        ("I'm sorry, I can't watch videos.", True, "a refusal"),
        ("text-based text-based text-based text-based text-based tex", False, "repeats itself"),
        ("The cup is red. The cup is red. The cup is red. The cup is red. The", False, "repeats itself"),
        ("A cup stands there. It is red. It is seen.\nA cup stands there. It is red. It is se", False, "repeats itself"),
        ("The points are:\n1. The cup is red.\n2. The cup is red.\n3. The", False, "repeats itself"),
        ("The cup is left of the", False, "cut off in its first sentence"),
    ],
)
def test_replies_without_a_critique(reply: str, finished: bool, reason: str) -> None:
    read = parse_critique(reply, "A plate.", finished=finished)
    assert isinstance(read, Unreadable) and read.reason == reason


def test_parts() -> None:
    assert cut_back("One. Two") == "One." and cut_back("One") == "" and cut_back("It is 3.5 m") == ""
    assert cut_back("One. Two.") == "One.", "the end may be an abbreviation's"
    assert not is_refusal("The man refuses. I can't see more.") and is_refusal("I can't see it.")
    assert not repeats_itself("left, right, left, right") and not repeats_itself("very very very good")
    assert without_lead_in("Answer:") == "Answer:"
    assert spoken("*a* and **b** and __c__") == "a and b and c"


@pytest.mark.parametrize("text", ["*" * 20_000, "a " * 20_000, "<think>" * 5_000, "Sure " * 10_000, "? " * 20_000, "- " * 20_000])
def test_no_reply_takes_long_to_read(text: str) -> None:
    began = time.process_time()
    parse_question(text), parse_answer(text), parse_critique(text, finished=False)
    assert time.process_time() - began < 2


LABELLED = list(read_jsonl(Path(__file__).with_name("smollm_replies.jsonl")))
"""315 replies of SmolLM2-135M-Instruct (Q4_1) to the four prompts of "videosavi" on 40 clips of the micro world that it could not see,
asked as tests/savi/smollm.py has it: 23 clips with the default settings, 17 at temperature 0.7 (six of these only asked for questions).
`read` is what a person took from the reply as the question, answer, critique or revised answer (null: nothing), `why` the reason for
nothing. A made-up or senseless answer is an answer. The readers were written with these replies in view: this holds what they read, and
measures no other model."""


def read_as_the_loop_does(row: dict[str, Any]) -> str | None:
    if row["step"] == "ask":
        question = parse_question(row["reply"], finished=row["finished"])
        return question.text if isinstance(question, Question) else None
    if row["step"] == "critique":
        read = parse_critique(row["reply"], row["answer"], finished=row["finished"])
    elif not row["finished"]:
        return None
    else:
        read = parse_answer(row["reply"], Question(row["question"]))
    if row["step"] == "revise" and isinstance(read, str) and same_answer(read, row["critique"]):
        return None
    return None if isinstance(read, Unreadable) else read


def test_a_models_replies_are_read_as_a_person_read_them() -> None:
    assert len(LABELLED) >= 300
    assert {row["step"] for row in LABELLED} == set(STEPS)
    wrong = [(row, read) for row in LABELLED if (read := read_as_the_loop_does(row)) != row["read"]]
    assert len(wrong) <= MISREAD, wrong
    assert all(row["why"] for row in LABELLED if row["read"] is None)
    kinds = Counter(row["step"] for row in LABELLED if row["read"] is not None)
    assert min(kinds.values()) >= 20, "the labels are of both kinds at every step"


MISREAD = 2
"""Replies that the readers do not read as the person did."""
