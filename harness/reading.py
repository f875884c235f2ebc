"""What a reply says: the one option it settles on, or nothing.

The rule is what a careful person would do. A letter that the reply rejects ("(A) is wrong", "not B") is not its answer; two answers
("A, C", "A or B", the options repeated) are none; a stated conclusion ("the answer is B") counts more than letters mentioned on the way.
Wherever that leaves doubt, nothing is read. Knows no single benchmark and no lmms-eval.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from benchmarks.benchmark import LETTERS, Form

READING_VERSION = 3
"""Raised where the same reply may be read differently; stands in a score's provenance, and scores of two rules are not compared. 1: before
rejected options were understood, in scores that state no rule. 2: "no yes" was its first word. 3: it is no answer."""

MAX_CHARS = 20_000
"""A longer reply is read by its last characters, where an answer stands."""

# While a reply is read, private-use characters stand for what it names: an option's letter, an option's text, options named together.
_LETTER_0, _TEXT_0, _GROUP_0 = 0xE000, 0xE080, 0xE100
_MAX_GROUPS = 0x700
_OTHER = "\uf8ff"
_PRIVATE = re.compile("[\ue000-\uf8ff]")
_LETTER_MARK, _TEXT_MARK, _GROUP_MARK = "[\ue000-\ue004]", "[\ue080-\ue084]", "[\ue100-\ue7ff]"

_MARKUP = re.compile(r"</?[A-Za-z_]{2,}>|\\(?:boxed|text|textbf|mathrm|mathbf)\b|[*`${}\"“”«»]")
_LETTER = re.compile(
    r"""(?x)
      [\[(]\s*([A-Ea-e])\s*[\])]                                                    # (B), [b]
    | (?i:\b(?:option|choice|caption|letter)\s+)([A-Ea-e])(?![\w'-])                # option b
    | (?i:\banswer(?:\s+is)?\s*:?\s*)([b-e]|a(?=\s*(?:[.,;)\n]|$)))(?![\w'-])       # answer: b (not: the answer is a cube)
    | \A\s*([a-e])(?=\s*(?:$|[.):,]))                                               # b    b.    b)
    | (?<![A-Za-z0-9_'-])(?<![A-Za-z]\.)([A-E])(?![A-Za-z0-9_'-])                   # B
    """
)
_NO_ARTICLE = re.compile(
    r"\s*(?:$|[^\sa-z]|(?:is|was|are|would|will|does|do|did|has|seems?|looks?|can|can't|cannot|isn't|doesn't|may|must|should|fits?|"
    r"matches|describes|shows|because|since|as|for|which|and|or|nor|but|not|than|if|so|while|best|again|too|instead|only|then)\b)"
)
"""What follows the letter A, but not the article ("A person does it")."""

_AND = r"(?:\s*(?:,|/|&|、|\band\b|\bor\b|\bnor\b|和|或))+\s*(?:\b(?:option|choice|caption|letter|the)\s+)*"
_TOGETHER = re.compile(rf"{_LETTER_MARK}(?:{_AND}{_LETTER_MARK})*", re.IGNORECASE)
_SET_ASIDE = re.compile(rf"\b((?:unlike|besides|except|apart from)\s+{_LETTER_MARK}\s*),", re.IGNORECASE)
_CLAUSE_END = re.compile(
    rf"(?<={_GROUP_MARK})\s*[:)]|[.!?;\n。！？；,，、–—]|\s-+\s"
    r"|\b(?:(?<!anything )but|while|whereas|however|although|though|because|since|and|or)\b|(?=\b(?:so|therefore|thus|hence)\b)",
    re.IGNORECASE,
)
_REJECTED_BEFORE = re.compile(
    r"n't\b|\b(?:not|cannot|never|neither|nor|wrong|incorrect|false|doubt|reject(?:s|ed|ing)?|exclud(?:e|es|ed|ing)|"
    r"eliminat(?:e|es|ed|ing)|discard(?:s|ed|ing)?|dismiss(?:es|ed|ing)?|rul(?:e|es|ed|ing) out|other than|"
    r"than|instead of|over|unlike|except|apart from|besides|anything but)\b|不是|不选|排除",
    re.IGNORECASE,
)
_REJECTED_AFTER = re.compile(
    r"n't\b|\b(?:not|cannot|never|wrong|incorrect|false|impossible|unlikely|out|excluded|eliminated|rejected|discarded|dismissed|"
    r"contradict(?:s|ed)?|fails)\b|不对|错|不正确|不符合|排除",
    re.IGNORECASE,
)
_CONCLUDED_BEFORE = re.compile(
    r"\b(?:answer|final|finally|correct|right|best|better|choose|chose|pick|select|selected|go with|going with|opt for|choice is|"
    r"conclude|therefore|thus|hence|so|must be|only)\b|答案|选",
    re.IGNORECASE,
)
_CONCLUDED_AFTER = re.compile(r"\b(?:correct|right|best|better|true|answer|choice|fits|matches|most likely)\b|正确|对", re.IGNORECASE)
_SUPPOSED = re.compile(r"\b(?:if|whether|suppose|could it|could the|might it|is it|would it|at first|first thought)\b", re.IGNORECASE)
_TAKEN_BACK = re.compile(r"\s*(?:no|wait|actually|sorry|correction|hmm|on second thoughts?|on reflection)\s*", re.IGNORECASE)

_UNDECIDED = re.compile(
    r"\b(?:cannot|can't|can not|could not|couldn't|unable to) (?:tell|say|determine|see|be (?:sure|determined|certain)|answer|decide)\b|"
    r"\bnot (?:sure|certain|clear)\b|\b(?:unsure|uncertain|unclear|maybe|perhaps|don't know|do not know|hard to (?:say|tell))\b|"
    r"无法|不确定|不知道"
)
_OPENS_YES_NO = re.compile(r"\W*(yes|no)\b(?!\s+(?:idea|answer|comment|clue|information|opinion)\b)")
_BOTH = re.compile(r"\W*(yes|no)\s*(?:[,/;.!?&|\n-]+\s*(?:(?:and|or|but)\b)?|\band\b|\bor\b|\s)\s*(?:maybe\s+)?(yes|no)\s*(?:$|[.,;!?/])")
_CONCLUDES_YES_NO = re.compile(r"\b(?:answer|reply|it|think|say)\b[\s:=,']*(?:(?:is|be|would be)\b[\s:]*)?(yes|no)(?=\s*(?:$|[.,;:!\n]))")
_CHINESE_YES_NO = re.compile(r"\W*(?:(是的?|对的?|正确)|(不是的?|不对|不|否|没有))\s*(?:$|[。,，.!！])")


@dataclass(frozen=True)
class _Clause:
    """The options that a clause names together, and what it says of them."""

    named: frozenset[int]
    rejected: bool
    concluded: bool
    supposed: bool


def read_reply(form: Form, options: Sequence[str], answer: str) -> str | None:
    """What a reply to a question of this form settles on: a letter, or yes/no; None where a person could not tell."""
    return read_yes_no(answer) if form == "yes_no" else read_letter(answer, options)


def read_letter(answer: str, options: Sequence[str]) -> str | None:
    """The letter of the option that a reply settles on, or None.

    A reply that is an option's text, with or without its letter, names it. Else the options named by letter are gathered clause by
    clause, or, where no letter is left, those named by their text. Rejected ones go, conclusions count before mere mentions, and exactly
    one must remain; it must be one of the options.
    """
    text = _unwrapped(answer)
    k = _whole(text, options)
    if k is None:
        text = _mark_texts(text, tuple(options))
        clauses = _clauses(re.sub(_TEXT_MARK, _OTHER, _mark_letters(text)))
        k = _settled(clauses)
        if not any(c.named for c in clauses if not c.rejected):
            k = _settled([*clauses, *_clauses(re.sub(_TEXT_MARK, lambda m: chr(ord(m.group()) - _TEXT_0 + _LETTER_0), text))])
    return LETTERS[k] if k is not None and k < len(options) else None


def read_yes_no(answer: str) -> str | None:
    """ "yes" or "no": the reply's first word or its stated conclusion, unless it says both or says that it cannot tell."""
    text = _unwrapped(answer).lower()
    if chinese := _CHINESE_YES_NO.match(text):
        return "yes" if chinese.group(1) else "no"
    both = _BOTH.match(text)
    if _UNDECIDED.search(text) or (both and both.group(1) != both.group(2)):
        return None
    if first := _OPENS_YES_NO.match(text):
        return first.group(1)
    said = set(_CONCLUDES_YES_NO.findall(text))
    if not said and not re.search(r"\bnot\b|n't\b|\bor\b", text):
        last = re.search(r"\b(yes|no)\W*$", text)
        said = set(re.findall(r"\b(?:yes|no)\b", text)) if last else set()
    return said.pop() if len(said) == 1 else None


def _unwrapped(answer: str) -> str:
    """The reply without Markdown, LaTeX, tags, quotes and full-width forms, which change nothing about what it says."""
    text = unicodedata.normalize("NFKC", answer[-MAX_CHARS:]).replace("’", "'")
    return re.sub(r":\s*\n\s*", ": ", _MARKUP.sub(" ", _PRIVATE.sub(" ", text))).strip()


def _plain(text: str) -> str:
    """Lower-case words with single blanks, punctuation dropped."""
    return " ".join(re.findall(r"[\w'-]+", text.lower()))


def _whole(text: str, options: Sequence[str]) -> int | None:
    """The option whose text is the whole reply, with or without its letter before it."""
    plain = _plain(text)
    found = []
    for k, option in enumerate(map(_plain, options)):
        letter = LETTERS[k].lower()
        if len(option) > 1 and plain in (option, *(f"{label}{letter} {option}" for label in ("", "option ", "caption ", "answer "))):
            found.append(k)
    return found[0] if len(found) == 1 else None


@lru_cache(maxsize=256)
def _option_texts(options: tuple[str, ...]) -> tuple[re.Pattern[str], dict[str, int | None]] | None:
    """A pattern that finds the options' texts, longest first, and the option each stands for (None: two share it)."""
    where: dict[str, int | None] = {}
    for k, option in enumerate(map(_plain, options)):
        if len(option) > 1 or option.isdigit():
            where[option] = None if option in where else k
    if not where:
        return None
    longest = sorted(where, key=len, reverse=True)
    return re.compile("|".join(r"(?<!\w)" + r"\W+".join(map(re.escape, o.split())) + r"(?!\w)" for o in longest), re.IGNORECASE), where


def _mark_texts(text: str, options: tuple[str, ...]) -> str:
    known = _option_texts(options)
    if known is None:
        return text
    pattern, where = known

    def mark(match: re.Match[str]) -> str:
        k = where.get(_plain(match.group()))
        return _OTHER if k is None else chr(_TEXT_0 + k)

    return pattern.sub(mark, text)


def _mark_letters(text: str) -> str:
    def mark(match: re.Match[str]) -> str:
        bare = match.group(5)
        if bare == "A" and not _no_article(text[match.end() :]):
            return match.group()
        letter = next(g for g in match.groups() if g)
        return match.group()[: match.start(match.lastindex or 0) - match.start()] + chr(_LETTER_0 + LETTERS.index(letter.upper())) + " "

    return _LETTER.sub(mark, text)


def _no_article(rest: str) -> bool:
    """Whether an A before this is a letter; before an option's text it is one only where that is option A's."""
    after = rest.lstrip()[:1]
    return after == chr(_TEXT_0) if re.fullmatch(f"{_TEXT_MARK}|{_OTHER}", after) else _NO_ARTICLE.match(rest) is not None


def _clauses(text: str) -> list[_Clause]:
    """What each clause says of the options named in it; all before a word that takes back ("wait", "no") is dropped."""
    groups: list[frozenset[int]] = []

    def hold(match: re.Match[str]) -> str:
        groups.append(frozenset(ord(c) - _LETTER_0 for c in match.group() if _LETTER_0 <= ord(c) < _TEXT_0))
        return chr(_GROUP_0 + min(len(groups) - 1, _MAX_GROUPS - 1))

    text = _TOGETHER.sub(hold, _SET_ASIDE.sub(r"\1;", text))
    if len(groups) >= _MAX_GROUPS:
        return []
    out: list[_Clause] = []
    kept_from = start = 0
    ends = [*((m.start(), m.end()) for m in _CLAUSE_END.finditer(text)), (len(text), len(text))]
    for end, following in ends:
        piece = text[start:end]
        if _TAKEN_BACK.fullmatch(piece):
            kept_from = len(out)
        out += _named_in(piece, groups, asked=text[end : end + 1] == "?")
        start = following
    return out[kept_from:] or out


def _named_in(piece: str, groups: Sequence[frozenset[int]], *, asked: bool) -> list[_Clause]:
    found = list(re.finditer(_GROUP_MARK, piece))
    out = []
    for i, m in enumerate(found):
        before = piece[found[i - 1].end() if i else 0 : m.start()]
        after = piece[m.end() : found[i + 1].start() if i + 1 < len(found) else len(piece)]
        out.append(
            _Clause(
                named=groups[ord(m.group()) - _GROUP_0],
                rejected=bool(_REJECTED_BEFORE.search(before) or _REJECTED_AFTER.search(after)),
                concluded=bool(_CONCLUDED_BEFORE.search(before) or _CONCLUDED_AFTER.search(after)),
                supposed=bool(_SUPPOSED.search(before)) or (asked and bool((before + after).strip())),
            )
        )
    return out


def _settled(clauses: Sequence[_Clause]) -> int | None:
    """The one option that is left, or None."""
    rejected = {k for c in clauses if c.rejected for k in c.named}
    live = [c for c in clauses if not c.rejected and not c.supposed]
    for pool in ([c for c in live if c.concluded], live):
        named = {k for c in pool for k in c.named} - rejected
        if named:
            return named.pop() if len(named) == 1 else None
    return None
