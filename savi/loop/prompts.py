"""What a model is asked at the four steps of self-alignment, and how its replies are read.

A reply that cannot be read is a value (`Unreadable`, with the reason), not an exception: the loop counts it and goes on. The module knows
no model, no video and no right answers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

Kind = Literal["spatial", "temporal"]
KINDS: tuple[Kind, ...] = ("spatial", "temporal")
Step = Literal["ask", "answer", "critique", "revise"]
STEPS: tuple[Step, ...] = ("ask", "answer", "critique", "revise")

LETTERS = "ABCDEFGH"
"""Option letters that are looked for; more than eight options are not asked by any benchmark here."""

_OPTION = re.compile(rf"(?<!\S)\(?([{LETTERS}])(?:[).:]+)?(?=\s|$)")
_LEAD_IN = re.compile(r"^\W*(?:(?:the\s+)?(?:question|answer|critique|revised answer|revision)\s*\d*\s*:|\d+\s*[.)])\s*", re.IGNORECASE)
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


def parse_question(text: str) -> Question | Unreadable:
    """Read a question out of a reply.

    Readable: it has a question mark, something before it, and, if option letters follow, these start with A, are consecutive, at least two,
    and have distinct texts that are not empty. Both `... ? A circle B square` and `...?\\n(A) circle\\n(B) square` are read. A lead-in
    ("Question:", "1.") and whatever stands before the line with the question mark are dropped; so are later lines that are no options.
    """
    lines = [_bare(line) for line in text.strip().splitlines()]
    start = next((i for i, line in enumerate(lines) if "?" in line), None)
    if start is None:
        return Unreadable("no question mark")
    kept = [_bare(_LEAD_IN.sub("", lines[start], count=1))]
    for line in lines[start + 1 :]:
        if line and not _OPTION.match(line):
            break
        if line:
            kept.append(line)
    whole = "\n".join(kept)
    stem, _, rest = whole.rpartition("?")
    if not re.search(r"\w", stem):
        return Unreadable("nothing before the question mark")
    options = _read_options(rest)
    if isinstance(options, Unreadable):
        return options
    return Question(text=whole.strip() if options else f"{stem}?", options=options)


def _bare(line: str) -> str:
    """A line without the quotes and stars around it."""
    return line.strip("*\"'` \t\r\f\v")


def _read_options(rest: str) -> tuple[tuple[str, str], ...] | Unreadable:
    """The options after the question mark; () when there is no option letter."""
    marks = list(_OPTION.finditer(rest))
    if not marks:
        return ()
    letters = "".join(mark.group(1) for mark in marks)
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
    """Read an answer (initial or revised).

    Readable: it has a word; given a question with options, it names one of its letters or the text of one of its options; given one without
    options, it is no lone option letter.
    """
    answer = _LEAD_IN.sub("", text.strip(), count=1).strip()
    if not re.search(r"\w", answer):
        return Unreadable("empty")
    if question is None:
        return answer
    if question.options:
        if choice(answer, question) is None:
            return Unreadable("names none of the options")
    elif _LONE_LETTER.match(answer):
        return Unreadable("an option letter to a question without options")
    return answer


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


def parse_critique(text: str) -> str | Unreadable:
    """Read a critique: any reply with a word in it. Its verdict is not read: a model's own "right" or "wrong" proved worth nothing."""
    critique = text.strip()
    return critique if re.search(r"\w", critique) else Unreadable("empty")


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
