"""What surrounds a model's words in a reply, and how it is taken off: thinking, markdown, courtesies, labels, turns of others, a cut end.

English, as the prompts are. The module knows no question and no answer, only their texts; what it does not recognise it leaves as it is.
"""

from __future__ import annotations

import re

_THINKING = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"^\s*```.*$", re.MULTILINE)
_EMPHASIS = re.compile(r"(?<![\w*_])(\*\*\*|\*\*|\*|__)(?=\S)(.{1,300}?)(?<=\S)\1(?![\w*])", re.DOTALL)
_BULLET = re.compile(r"^\s*(?:#{1,6}\s+|>+\s*|[-*+•–]\s+)+")
_OWN_TURN = re.compile(r"^\s*(?:<\|?\w+\|?>\s*)?(?:assistant|ai|bot|model|system)\s*:\s*", re.IGNORECASE)
_OTHER_TURN = re.compile(r"^\s*(?:<\|?\w+\|?>\s*)?(?:user|human|assistant|ai|bot|system)\s*:", re.IGNORECASE)
_COURTESY = re.compile(
    r"^\W*(?:"
    r"(?:sure|okay|ok|certainly|of course),?\s+(?:here|i can|i(?:'d| would)|let me)\b[^.!?:\n]*[!.:]"
    r"|(?:sure(?: thing)?|certainly|of course|absolutely|okay|ok|great|alright|no problem|hey|hi|hello)(?: there)?\s*[!.,:]"
    r"|(?:here(?:'s| is| are)|this is|below is|i(?:'d| would) ask|my)\b[^.!?:\n]*\b"
    r"(?:questions?|answers?|critiques?|revisions?|responses?|version|sentence|one)\b[^.!?:\n]*:"
    r"|(?:that(?:'s| is)|what) an? (?:\w+ )?(?:great|good|interesting|wonderful|excellent)\b[^.!?\n]*[.!]"
    r"|thanks?(?: you)?\b[^.!?\n]*[.!]"
    r")\s*",
    re.IGNORECASE,
)
_LABEL = re.compile(
    r"^\W*(?:"
    r"(?:the\s+)?(?:(?:spatial|temporal|final|proposed|revised|rewritten|corrected|new|initial|my|first|possible)\s+)*"
    r"(?:question|answer|critique|revision|response|reply|part|step|sentence|query)"
    r"\s*(?:\(?\d+\)?|(?:to (?:this|the|your) question )?is)?\s*[:.\-–](?=\s)"
    r"|answer (?:the|this) question\s*:|what (?:is|was) the answer to (?:the|this) question\s*:"
    r"|[qQ]\s*\d*\s*:|\d+\s*[.):](?=\s)|\(\d+\)(?=\s)"
    r")\s*",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"\b(?:as an ai|i(?:'m| am) (?:sorry|an ai|unable|not able|just an?|only an?)|i apologi[sz]e"
    r"|i (?:can(?:no|')t|am unable to|do(?: not|n't) have (?:the ability|access)) [^.!?]{0,40}?"
    r"(?:see|view|watch|access|provide|assist|help|answer|process|analy[sz]e|feed)"
    r"|(?:could|can|would) you (?:please |kindly )?(?:provide|share|give|upload|clarify|specify)"
    r"|(?:the|this|your) question (?:can(?:no|')t|is impossible to) (?:be )?answer(?:ed)?"
    r"|please (?:provide|share|upload|specify|clarify))\b",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]*(?=\s|$)")
_REPEATED = re.compile(r"(?<!\S)(\S.{3,400}?)(?:\s+\1(?!\S)){3,}", re.DOTALL)
_FIRST_PERSON = re.compile(r"^\W*(?:i(?! (?:see|saw|notice))|i'm|i'll|i'd|let me|let's)\s[^.!?\n]*[.!:]\s+(?=\S)", re.IGNORECASE)
_TO_USER = re.compile(
    r"^\W*(?:do you (?:want|need)|would you like|are you ready|shall (?:we|i)|how (?:can|may) i (?:help|assist)|how about this"
    r"|what (?:\w+ )?(?:would|do) you (?:like|want)"
    r"|what (?:is|was) the answer to (?:this|the(?: following)?) question(?=\s*\?))\b[^.!?\n]*\?",
    re.IGNORECASE,
)
_TO_USER_FIRST = re.compile(_TO_USER.pattern + r"\s+(?=\S.*\?)", re.IGNORECASE)
_QUOTED = re.compile(r'(?::|\bquestion\b[^.!?"“]*\bis)\s*["“]([^"“”]*\?)(?:["”]|$)')
_ABOUT_THE_ANSWER = re.compile(r"^\W*(?:the|this|your) (?:proposed|revised|given|previous) answer\b", re.IGNORECASE)
_ECHO = re.compile(r"^\s*(?:question|proposed answer|critique)\s*:", re.IGNORECASE)
_INPUT = re.compile(r"\b(?:video|clip|image|picture|frame|question|context|information|detail|link|text)s?\b", re.IGNORECASE)


def spoken(text: str) -> str:
    """A reply without thinking, markdown and the turns of others that a model plays after its own. Lines are kept."""
    text = _FENCE.sub("", _THINKING.sub("", text)).strip()
    lines = [_BULLET.sub("", line) for line in _OWN_TURN.sub("", text).splitlines()]
    end = next((i for i, line in enumerate(lines) if i and _OTHER_TURN.match(line)), len(lines))
    return _EMPHASIS.sub(r"\2", "\n".join(lines[:end])).strip()


def without_lead_in(text: str) -> str:
    """A text without the courtesies ("Sure!", "Here is a question:") and labels ("Answer:", "1.") before it, one after another."""
    while True:
        shorter = _LABEL.sub("", _COURTESY.sub("", text, count=1), count=1)
        if shorter == text or not re.search(r"\w", shorter):
            return text
        text = shorter


def without_remarks(text: str) -> str:
    """A line with a question without what a model says, or asks the user, before it; a question in quotation marks is taken out of them."""
    while (shorter := _FIRST_PERSON.sub("", _TO_USER_FIRST.sub("", without_lead_in(text), count=1), count=1)) != text:
        text = shorter
    quoted = _QUOTED.search(text)
    return quoted[1] if quoted else text


def unquoted(text: str) -> str:
    """A text without the quotation marks around the whole of it."""
    return text[1:-1].strip() if re.fullmatch(r'["“][^"“”]+["”]', text) else text


def is_about_the_answer(text: str) -> bool:
    """Whether a text speaks of an answer that was proposed, in the place of giving one."""
    return _ABOUT_THE_ANSWER.match(text) is not None


def before_echo(text: str) -> str:
    """A text up to the first later line that begins as a line of the prompt does ("Question:", "Critique:")."""
    lines = text.splitlines()
    return "\n".join(lines[: next((i for i, line in enumerate(lines) if i and _ECHO.match(line)), len(lines))]).strip()


def cut_back(text: str) -> str:
    """A reply that was cut off, up to its last whole sentence; empty where it has none."""
    ends = list(_SENTENCE_END.finditer(text.rstrip()))
    whole = [end for end in ends if end.end() < len(text.rstrip())] or ends
    return re.sub(r"\n\s*\d+\.$", "", text[: whole[-1].end()]) if whole else ""  # the number of a point that was not made


def ends_in_a_loop(text: str) -> bool:
    """Whether the last whole sentence of a text was said in it before."""
    said = [" ".join(without_lead_in(sentence).casefold().split()) for sentence in re.split(r"(?<=[.!?])\s+|\n+", text)]
    said = [sentence for sentence in said if re.search(r"\w", sentence)]
    return len(said) > 1 and said[-1] in said[:-1]


def is_refusal(text: str) -> bool:
    """Whether a reply says, in its first sentence, that it cannot do what was asked, or asks for the video."""
    first = _SENTENCE_END.search(text)
    return bool(_REFUSAL.search(text if first is None else text[: first.end()]))


def asks_the_user(question: str) -> bool:
    """Whether a question is put to the user: what the model should work with, or whether it should go on."""
    return bool(_TO_USER.match(question)) or (is_refusal(question) and bool(_INPUT.search(question)))


def repeats_itself(text: str) -> bool:
    """Whether a text says the same words four times in a row or more."""
    return bool(_REPEATED.search(" ".join(text.split())[-4000:]))
