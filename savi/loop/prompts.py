"""What a model is asked at the four steps of self-alignment, and how its replies are read.

A reply that cannot be read is a value (`Unreadable`, with the reason), not an exception: the loop counts it and goes on. The module knows
no model, no video and no right answers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

from savi.loop.replies import (
    asks_the_user,
    before_echo,
    cut_back,
    ends_in_a_loop,
    is_about_the_answer,
    is_refusal,
    repeats_itself,
    spoken,
    unquoted,
    without_lead_in,
    without_remarks,
)

Kind = Literal["spatial", "temporal"]
KINDS: tuple[Kind, ...] = ("spatial", "temporal")
Step = Literal["ask", "answer", "critique", "revise"]
STEPS: tuple[Step, ...] = ("ask", "answer", "critique", "revise")

LETTERS = "ABCDEFGH"
"""Option letters that are looked for; more than eight options are not asked by any benchmark here."""

_OPTION = re.compile(rf"(?<!\S)\(?([{LETTERS}])(?:[).:]+)?(?=\s|$)")
_ASKED = re.compile(r"\?(?=[\s\"'”’)\]*_?!]|$)")
"""A question mark that ends a question; one in the midst of a word, as in an address, does not."""
_ASKED_BY_WORDS = re.compile(
    r"(?:what|where|which|who|whose|when|why|how)(?:'s|\s+(?:\w+\s+)?(?:is|are|was|were|do|does|did|can|could|will|would|should|might"
    r"|has|have|had|happens|occurs|causes))\b[^.!?:\n]*\.",
    re.IGNORECASE,
)
"""A whole line that asks by its words and ends in a full stop."""
_TO_THE_USER = "put to the user, not about the video"
_ANSWERED = re.compile(r"^A:\s+(?=\S)")
_LONE_LETTER = re.compile(rf"^\(?[{LETTERS}][).:]*$")


@dataclass(frozen=True)
class Unreadable:
    """A reply that cannot be used, and why; falsy, so that `if parsed:` reads as it should."""

    reason: str

    def __bool__(self) -> bool:
        return False


@dataclass(frozen=True)
class Question:
    """A readable question: its `text` as it is asked again, and its `options` as (letter, text), empty for an open or yes/no question."""

    text: str
    options: tuple[tuple[str, str], ...] = ()

    @property
    def letters(self) -> tuple[str, ...]:
        return tuple(letter for letter, _ in self.options)


class PromptSet(BaseModel):
    """The templates of one way of asking; asking and critique have one for each kind. Fields in braces: {question}, {answer}, {critique}.

    Raises:
        ValueError: a template names a field its step does not have, or lacks one that it needs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    ask_spatial: str
    ask_temporal: str
    answer: str
    critique_spatial: str
    critique_temporal: str
    revise: str
    source: str

    @model_validator(mode="after")
    def _check_fields(self) -> PromptSet:
        needed = {
            "ask_spatial": set(),
            "ask_temporal": set(),
            "answer": {"question"},
            "critique_spatial": {"question", "answer"},
            "critique_temporal": {"question", "answer"},
            "revise": {"question", "answer", "critique"},
        }
        for step, fields in needed.items():
            found = set(re.findall(r"\{(\w*)\}", getattr(self, step)))
            if found != fields:
                raise ValueError(f"prompts {self.name!r}, {step}: has the fields {sorted(found)}, needs exactly {sorted(fields)}")
        return self

    def fill(self, step: Step, kind: Kind, **fields: str) -> str:
        """A step's prompt for a kind of question. Replies are put in as they are: braces inside them are text, not fields."""
        template: str = getattr(self, f"{step}_{kind}" if step in ("ask", "critique") else step)
        return re.sub(r"\{(\w+)\}", lambda match: fields[match.group(1)], template)


PROMPTS: dict[str, PromptSet] = {
    "videosavi": PromptSet(
        name="videosavi",
        ask_spatial=(
            "Watch the video closely. Write one question that can only be answered by looking at where things are: the position of "
            "objects or people, what is next to, behind, above or inside what, their shape, colour or number. The answer must be "
            "visible in the video. Do not ask about names, places or anything outside the video. Reply with the question alone, ending "
            "in a question mark."
        ),
        ask_temporal=(
            "Watch the video closely. Write one question that can only be answered by following it over time: the order of events, what "
            "happens before or after something, how something moves or changes, what causes what. The answer must be visible in the video. "
            "A single frame must not be enough to answer it. Reply with the question alone, ending in a question mark."
        ),
        answer="{question}\nAnswer the question from what the video shows, in one sentence.",
        critique_spatial=(
            "Here is a question about the video and a proposed answer to it.\nQuestion: {question}\nProposed answer: {answer}\n"
            "Check the proposed answer against the video, for what it says about space. First write down which objects and people "
            "this question is about, where each is, and how they look. Then say which statements of the proposed answer agree with that, "
            "which contradict it, and what is missing or made up."
        ),
        critique_temporal=(
            "Here is a question about the video and a proposed answer to it.\nQuestion: {question}\nProposed answer: {answer}\n"
            "Check the proposed answer against the video, for what it says about time. First write down the events that this question is "
            "about, in the order in which they happen, and what changes or moves in each. Then say which statements of the proposed answer "
            "agree with that, which contradict it, and what is missing or made up."
        ),
        revise=(
            "Here is a question about the video, a proposed answer and a critique of it.\nQuestion: {question}\nProposed answer: {answer}\n"
            "Critique: {critique}\nRewrite the answer, in one sentence, so that it agrees with the video and corrects every error the "
            "critique found. Keep what was right. Reply with the answer alone."
        ),
        source="ours (the paper's wording is not released; its figure has spatial and temporal critiques and one-sentence answers)",
    ),
    "micro": PromptSet(
        name="micro",
        ask_spatial="ask spatial",
        ask_temporal="ask temporal",
        answer="{question}",
        critique_spatial="{question} answer {answer} critique",
        critique_temporal="{question} answer {answer} critique",
        revise="{question} answer {answer} critique {critique} revise",
        source="ours (the micro model's own vocabulary)",
    ),
}


def prompt_set(name: str) -> PromptSet:
    """A prompt set by name.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in PROMPTS:
        raise ValueError(f"prompts {name!r}: unknown; there are {', '.join(sorted(PROMPTS))}")
    return PROMPTS[name]


def parse_question(text: str, *, finished: bool = True) -> Question | Unreadable:
    """Read a question out of a reply: the first one, where there are several.

    Readable: it has a question mark (or a line that asks by its words), something before it, and, if option letters follow, these start
    with A, are consecutive, at least two, and have distinct texts that are not empty. Both `... ? A circle B square` and
    `...?\\n(A) circle\\n(B) square` are read. Courtesies and labels ("Sure!", "Question:", "1.") and whatever stands before the line with
    the question mark are dropped; so are later lines that are no options. Of a reply that was cut off (`finished` False), a question
    without options is read: it ended before the cut.
    """
    lines = [_bare(line) for line in spoken(text).splitlines()]
    found: Question | Unreadable = Unreadable("no question mark")
    for start, line in enumerate(lines):
        if _ASKED.search(line):
            found = _question_at(lines[start:], finished=finished)
            if isinstance(found, Question) or found.reason != _TO_THE_USER:
                return found
    asked = next((line for line in map(without_remarks, lines) if _ASKED_BY_WORDS.fullmatch(line)), None)
    return found if asked is None else Question(f"{asked[:-1]}?")


def _question_at(lines: Sequence[str], *, finished: bool) -> Question | Unreadable:
    """The question that the first of these lines has."""
    kept = [_bare(_ANSWERED.sub("", without_remarks(lines[0])))]
    for line in filter(None, lines[1:]):
        if not _OPTION.match(line):
            break
        kept.append(line)
    if len(kept) == 2 and _ANSWERED.match(kept[1]):
        del kept[1]  # "A:" before an answer
    whole = "\n".join(kept)
    marks = [mark.start() for mark in _ASKED.finditer(whole)]
    options = _read_options(whole[marks[-1] + 1 :])
    if isinstance(options, Unreadable):
        return options
    stem = whole[: marks[-1 if options else 0]]
    if not re.search(r"\w", stem):
        return Unreadable("nothing before the question mark")
    if options:
        return Question(whole.strip(), options) if finished else Unreadable("cut off among the options")
    if asks_the_user(f"{stem}?"):
        return Unreadable(_TO_THE_USER)
    return Question(f"{stem}?" + ('"' if stem.count('"') % 2 else ""))  # a quotation that the question ends in


def _bare(line: str) -> str:
    """A line without the quotes and marks around it."""
    return line.strip("*_\"'`“”‘’ \t\r\f\v")


def _read_options(rest: str) -> tuple[tuple[str, str], ...] | Unreadable:
    """The options after the question mark; () when there is no option letter."""
    marks = list(_OPTION.finditer(rest))
    if not marks:
        return ()
    letters = "".join(mark.group(1) for mark in marks)
    if letters == "A" and re.match(r"\s*A\s+\w.*[.!]\s*$", rest, re.DOTALL):
        return ()  # the article of a sentence
    if len(marks) < 2:
        return Unreadable("one option only")
    if letters != LETTERS[: len(marks)]:
        return Unreadable(f"option letters {' '.join(letters)} instead of {' '.join(LETTERS[: len(marks)])}")
    ends = [mark.start() for mark in marks[1:]] + [len(rest)]
    texts = [" ".join(rest[mark.end() : end].split()) for mark, end in zip(marks, ends, strict=True)]
    if not all(texts):
        return Unreadable(f"option {letters[texts.index('')]} is empty")
    if len({text.casefold() for text in texts}) < len(texts):
        return Unreadable("two options are the same")
    return tuple(zip(letters, texts, strict=True))


def parse_answer(text: str, question: Question | None = None) -> str | Unreadable:
    """Read an answer (initial or revised): without courtesies, labels, markdown, the question repeated before it and other turns after it.

    Readable: it has a word, is no refusal and does not say one thing over and over; given a question with options, it names one of its
    letters or the text of one of its options; given one without options, it is no lone option letter.
    """
    answer = before_echo(without_lead_in(spoken(text)).strip())
    if not re.search(r"\w", answer):
        return Unreadable("empty")
    if is_refusal(answer):
        return Unreadable("a refusal")
    if is_about_the_answer(answer):
        return Unreadable("speaks of the proposed answer, and is none")
    if repeats_itself(answer):
        return Unreadable("repeats itself")
    if question is None:
        return answer
    answer = _without_question(answer, question)
    if not re.search(r"\w", answer):
        return Unreadable("repeats the question")
    if question.options:
        if choice(answer, question) is None:
            return Unreadable("names none of the options")
        return answer
    if _LONE_LETTER.match(answer):
        return Unreadable("an option letter to a question without options")
    return unquoted(_ANSWERED.sub("", answer))


def _without_question(answer: str, question: Question) -> str:
    """An answer without the question that it repeats before it; a question with options is asked again in its answer too seldom to look."""
    mark = next(_ASKED.finditer(answer), None)
    if mark is None or question.options or _words(answer[: mark.start()]) != _words(question.text):
        return answer
    return without_lead_in(answer[mark.end() :].strip("\"'”’)]*_ \t\n")).strip()


def choice(answer: str, question: Question) -> str | None:
    """The letter an answer picks: the first of the question's letters that stands alone in it, else the option whose text it has."""
    for mark in _OPTION.finditer(answer):
        if mark.group(1) in question.letters:
            return mark.group(1)
    said = _words(answer)
    named = [letter for letter, text in question.options if _words(text) in said]
    return named[0] if len(named) == 1 else None


def _words(text: str) -> str:
    """Its words in lower case with a blank around each, so that `in` finds whole words."""
    return " " + " ".join(re.findall(r"[^\W_]+", text.casefold())) + " "


def parse_critique(text: str, answer: str | None = None, *, finished: bool = True) -> str | Unreadable:
    """Read a critique: any reply with a word in it that is no refusal and not the answer again.

    Nothing is trained on a critique, so one that was cut off is kept up to its last whole sentence, unless it was saying one thing over and
    over. Its verdict is not read: a model's own "right" or "wrong" proved worth nothing.
    """
    critique = spoken(text)
    if not re.search(r"\w", critique):
        return Unreadable("empty")
    if is_refusal(critique):
        return Unreadable("a refusal")
    if answer is not None and same_answer(without_lead_in(critique), answer):
        return Unreadable("repeats the answer")
    if finished:
        return critique
    whole = cut_back(critique)
    if repeats_itself(critique) or ends_in_a_loop(whole):
        return Unreadable("repeats itself")
    return whole or Unreadable("cut off in its first sentence")


def same_answer(one: str, other: str) -> bool:
    """Whether two answers say the same but for case, blanks and a final full stop."""
    return _plain(one) == _plain(other)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(" .")


def question_shape(question: Question) -> str:
    """What questions "of the same shape" share: the number of options, else yes/no or the first word (what, where, how, ...)."""
    if question.options:
        return f"choice-{len(question.options)}"
    words = re.findall(r"[^\W\d_]+", question.text.casefold())
    first = words[0] if words else ""
    yes_no = {"is", "are", "was", "were", "does", "do", "did", "can", "could", "has", "have", "had", "will", "would", "should"}
    return "yes-no" if first in yes_no else f"open-{first}"
