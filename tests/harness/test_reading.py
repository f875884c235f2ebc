"""The one rule for reading a reply, on a table of forms with the value that a person would give.

The values of `reply_forms.jsonl` were thought out, not taken from the rule. Options of its letter questions: red ball, blue cube,
green cone, yellow disc; of its captions: it goes up, it goes down.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.benchmark import Form
from harness import reading
from harness.reading import read_letter, read_reply, read_yes_no

OPTIONS: dict[str, tuple[str, ...]] = {
    "letter": ("red ball", "blue cube", "green cone", "yellow disc"),
    "yes_no": ("yes", "no"),
    "caption": ("it goes up", "it goes down"),
}
FORMS = [json.loads(line) for line in Path(__file__).with_name("reply_forms.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_table_is_whole() -> None:
    assert len(FORMS) >= 100
    assert {f["form"] for f in FORMS} == set(OPTIONS)
    assert sum(f["value"] is None for f in FORMS) >= 40


@pytest.mark.parametrize("row", FORMS, ids=lambda r: f"{r['form']}: {r['reply'][:40]}")
def test_forms(row: dict[str, str]) -> None:
    form: Form = row["form"]  # type: ignore[assignment]
    assert read_reply(form, OPTIONS[form], row["reply"]) == row["value"]
    spaced = f"\n {row['reply']} \n"
    assert read_reply(form, OPTIONS[form], spaced) == row["value"], "blanks around a reply say nothing"


@pytest.mark.parametrize("letter", "ABCD")
@pytest.mark.parametrize("other", "ABCD")
def test_a_rejected_option_is_never_the_answer(letter: str, other: str) -> None:
    if letter == other:
        return
    for text in (
        f"({other}) is wrong, ({letter}) is right",
        f"Option {other} can be excluded. The answer is {letter}.",
        f"It is not {other}. {letter}",
        f"{letter}, not {other}.",
    ):
        assert read_letter(text, OPTIONS["letter"]) == letter, text
    for text in (f"{letter}, {other}", f"{letter} or {other}", f"{letter} and {other}", f"{letter}/{other}", f"{letter}; {other}"):
        assert read_letter(text, OPTIONS["letter"]) is None, text


def test_options_that_hold_letters_negations_and_articles() -> None:
    assert read_letter("(B) not moving", ("moving", "not moving")) == "B"
    assert read_letter("not moving", ("moving", "not moving")) == "B"
    assert read_letter("C. goes to point B", ("stops", "turns", "goes to point B")) == "C"
    assert read_letter("goes to point B", ("stops", "turns", "goes to point B")) == "C"
    assert read_letter("A person runs", ("a dog runs", "a person runs")) == "B"
    assert read_letter("No", ("Yes", "No", "Maybe")) == "B"
    assert read_letter("red cube", ("red", "red cube")) == "B"
    assert read_letter("2", ("1", "2", "3")) == "B"
    assert read_letter("A. No", ("Yes", "No", "Maybe")) is None, "a letter with another option's text"
    assert read_letter("B. the man runs", ("the man", "the man runs fast")) == "B", "another's text that only begins its own"


def test_an_option_the_question_does_not_have() -> None:
    assert read_letter("E", ("x1", "x2", "x3")) is None
    assert read_letter("The answer is D.", ("x1", "x2", "x3")) is None


@given(text=st.text(max_size=200), n=st.integers(2, 5))
def test_any_text_gives_an_option_or_nothing(text: str, n: int) -> None:
    assert read_letter(text, [f"thing {i}" for i in range(n)]) in {None, *"ABCDE"[:n]}
    assert read_yes_no(text) in {None, "yes", "no"}


def test_long_replies_take_no_time_and_are_read_by_their_end() -> None:
    import time

    begin = time.monotonic()
    for filler in (", ", "A, ", "A or ", "not ", "( ", "\n", " - ", "<b", "option "):
        read_letter(filler * 100_000, OPTIONS["letter"])
        read_yes_no(filler * 100_000)
    assert time.monotonic() - begin < 20
    assert read_letter("x " * 50_000 + "The answer is B.", OPTIONS["letter"]) == "B"


WORDS = st.lists(st.sampled_from(["red", "ball", "Blue", "it's", "A", "(B)", "ſ", "İ", "ς", ".", "\n", "the answer is"]), max_size=14)


@given(text=WORDS, options=st.lists(st.sampled_from(["red", "ball", "red ball", "Blue it's", "ς ſ", "İ"]), min_size=2, max_size=5))
def test_a_reply_too_short_to_repeat_the_options_is_not_searched_for_them(text: list[str], options: list[str]) -> None:
    """As it is where the pattern is tried on it."""
    said, choices = " ".join(text), tuple(options)
    echo = reading._echo(choices)
    rest = said if echo is None else echo.sub("\n", said)
    assert reading._without_echo(said, choices) == (rest if re.search(r"\w", rest) else said)


def test_a_short_reply_costs_no_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_echo", lambda options: pytest.fail("compiled a pattern"))
    assert read_letter("(B)", OPTIONS["letter"]) == "B"
    assert read_letter("The answer is B.", OPTIONS["letter"]) == "B"
