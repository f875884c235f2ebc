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

READING_VERSION = 4
"""Raised where the same reply may be read differently; stands in a score's provenance, and scores of two rules are not compared. 1: before
rejected options were understood, in scores that state no rule. 2: "no yes" was its first word. 3: it is no answer. 4: reasoning between
tags, an option's letter with another's text, options repeated before the answer, words taken back."""

MAX_CHARS = 20_000
"""A longer reply is read by its last characters, where an answer stands."""

# While a reply is read, private-use characters stand for what it names: an option's letter, an option's text, options named together.
_LETTER_0, _TEXT_0, _GROUP_0 = 0xE000, 0xE080, 0xE100
_MAX_GROUPS = 0x700
_OTHER = "\uf8ff"
_PRIVATE = re.compile("[\ue000-\uf8ff]")
_LETTER_MARK, _TEXT_MARK, _GROUP_MARK = "[\ue000-\ue004]", "[\ue080-\ue084]", "[\ue100-\ue7ff]"

_REASONING = re.compile(r"<(/?)(?:think|thinking|thought|reasoning|analysis)>", re.IGNORECASE)
_MARKUP = re.compile(r"~~[^~\n]*~~|</?[A-Za-z_]{2,}>|\\(?:boxed|text|textbf|mathrm|mathbf)\b|[*`${}\"“”«»「」『』【】]|(?<!\w)'|'(?!\w)")
_LETTER = re.compile(
    r"""(?x)
      [\[(]\s*([A-Ea-e])\s*[\])]                                                    # (B), [b]
    | (?i:\b(?:option|choice|caption|letter)\s+)([A-Ea-e])(?![\w'-])                # option b
    | (?i:\bans(?:wer(?:\s+is)?)?\s*:?\s*)([b-e]|a(?=\s*(?:[.,;)\n]|$)))(?![\w'-])  # answer: b (not: the answer is a cube)
    | \A\s*([a-e])(?=\s*(?:$|[.):,]))                                               # b    b.    b)
    | (?<![A-Za-z0-9_'-])(?<![A-Za-z]\.)([A-E])(?![A-Za-z0-9_'-]|\+\+)               # B
    """
)
_NO_ARTICLE = re.compile(
    r"\s*(?:$|[^\sa-z]|(?:is|was|are|would|will|does|do|did|has|seems?|looks?|can|can't|cannot|isn't|doesn't|may|must|should|fits?|"
    r"matches|describes|shows|because|since|as|for|which|and|or|nor|to|through|vs|plus|but|not|than|if|so|while|best|again|too|instead|only|then)\b)"
)
"""What follows the letter A, but not the article ("A person does it")."""

_LETTERS_ALONE = re.compile(r"(?:\(?\b(?:[a-e]|and|or)\b[\s.,;:/&)]{0,3})+")
_AND = r"(?:\s*(?:,|/|&|、|–|\b(?:and|or|nor|to|through|vs|plus)\b|和|或))+\s*(?:\b(?:option|choice|caption|letter|the)\s+)*"
_LIST = rf"{_LETTER_MARK}(?:{_AND}{_LETTER_MARK})*"
_TOGETHER = re.compile(rf"\(\s?{_LIST}\s?\)|{_LIST}", re.IGNORECASE)
_PLAINLY = tuple(
    (re.compile(pattern, re.IGNORECASE), plain)
    for pattern, plain in (
        (rf"\b((?:unlike|besides|except|apart from|instead of|rather than)\s+{_LETTER_MARK}\s*),", r"\1;"),
        (r"\b(?:(?:without|beyond) (?:a|any)|no) (?:doubt|question)\b", "surely"),
        (r"\bif i (?:had|have) to (?:guess|choose|pick)\b", "the answer is"),
        (rf"\b(?:(?:I'd|I would|I'll) say|(?:most )?likely|probably)((?:\s+it(?:'s| is))?\s*\(?{_LETTER_MARK})", r"the answer is\1"),
        (r"\b(?:less\s+\w+|worse|weaker)\s+than\b", "is wrong;"),
        (
            rf"\b(?:all|every|everything|each)(?:\s+[a-z]+){{0,3}}\s+(?:but|except(?:\s+for)?|apart from)\s+\(?({_LETTER_MARK})"
            r"(?=[^.;\n]{0,40}\b(?:wrong|incorrect|false|out|excluded|eliminated|rejected)\b)[^.;\n]*",
            r"the answer is \1",
        ),
    )
)
"""Turns of phrase, and what they say in words that the rest of the rule knows."""
_ANOTHERS_TEXT = re.compile(
    rf"(?:^|\b(?:answer|is|option|caption|choice)\b)[\s:(]{{0,4}}({_LETTER_MARK})[\s.):,-]{{0,4}}({_TEXT_MARK})\s{{0,4}}(?=$|[.,;:!?)])",
    re.IGNORECASE | re.MULTILINE,
)
_CLAUSE_END = re.compile(
    rf"(?<={_GROUP_MARK})\s*[:)]|[.!?;\n。！？；,，、–—]|\s-+\s|\((?=\s?[a-z])"
    r"|\b(?:(?<!anything )but|while|whereas|however|although|though|because|since|and|or)\b|(?=\b(?:so|therefore|thus|hence)\b)",
    re.IGNORECASE,
)
_REJECTED_BEFORE = re.compile(
    r"n't\b|\b(?:not|cannot|never|neither|nor|wrong|incorrect|false|doubt|reject(?:s|ed|ing)?|exclud(?:e|es|ed|ing)|"
    r"eliminat(?:e|es|ed|ing)|discard(?:s|ed|ing)?|dismiss(?:es|ed|ing)?|rul(?:e|es|ed|ing) out|other than|"
    r"than|instead of|over|unlike|except|apart from|besides|without|anything but)\b|不是|不选|排除|"
    r"\b(?:no|non|nicht|kein\w*|pas|não|не)(?:\s+(?:es|è|é))?\s*(?:\b(?:option|choice|caption)\s*)?\(?$",
    re.IGNORECASE,
)
_REJECTED_AFTER = re.compile(
    r"n't\b|\b(?:not|cannot|never|wrong|incorrect|false|impossible|unlikely|out|excluded|eliminated|rejected|discarded|dismissed|"
    r"contradict(?:s|ed)?|fails)\b|不对|错|不正确|不符合|排除|ではな|ではありません|아니|아닙",
    re.IGNORECASE,
)
_CONCLUDED_BEFORE = re.compile(
    r"\b(?:answer|final|finally|correct|right|best|better|choose|chose|pick|select|selected|go with|going with|opt for|choice is|"
    r"conclude|therefore|thus|hence|so|must be|only)\b|答案|选",
    re.IGNORECASE,
)
_CONCLUDED_AFTER = re.compile(r"\b(?:correct|right|best|better|true|answer|choice|fits|matches|most likely)\b|正确|对", re.IGNORECASE)
_SUPPOSED = re.compile(r"\b(?:if|whether|suppose|could it|could the|might it|is it|would it|at first|first thought)\b", re.IGNORECASE)
_SORRY = r"(?:no|wait|actually|sorry|correction|hmm|on second thoughts?|on reflection)"
_TAKEN_BACK = re.compile(rf"\s*(?:{_SORRY}\b[\s:]*)+(?:$|(?={_GROUP_MARK}))", re.IGNORECASE)

_UNDECIDED = re.compile(
    r"\b(?:cannot|can't|can not|could not|couldn't|unable to) (?:tell|say|determine|see|be (?:sure|determined|certain)|answer|decide)\b|"
    r"\bnot (?:sure|certain|clear)\b|\b(?:unsure|uncertain|unclear|maybe|perhaps|don't know|do not know|hard to (?:say|tell))\b|"
    r"无法|不确定|不知道"
)
_REFUSED_TO_SAY = r"idea|answer|comment|clue|information|opinion"
_NO_MATTER = re.compile(r"^\W*no (?:problem|worries|doubt|question|issue)s?(?: (?:about|of) (?:it|that))?\s*[,:;.!]\s*(?=\w)")
_OTHER_WORDS = ((re.compile(r"\b(?:yeah|yep|yup)\b"), "yes"), (re.compile(r"\b(?:nope|nah)\b"), "no"))
_WHOLE_YES_NO = re.compile(r"\W*(?:(true|correct)|(false|incorrect))\W*")
_OPENS_YES_NO = re.compile(rf"\W*(yes|no)\b(?!\s+(?:{_REFUSED_TO_SAY})\b)")
_INSTEAD_YES_NO = re.compile(rf"[.,;!?\n]\s*(?:no,?\s+)?{_SORRY}\b[\s,:.]*(?=(?:yes|no)\W*(?:$|[.,;!\n]))")
_CONDITIONAL = re.compile(r"^\W*(?:yes|no)\s+(?:only\s+)?(?:if|unless)\b|^\W*(?:if|unless)\b|\bit depends\b")
_BOTH = re.compile(r"\W*(yes|no)\s*(?:[,/;.!?&|\n-]+\s*(?:(?:and|or|but)\b)?|\band\b|\bor\b|\s)\s*(?:maybe\s+)?(yes|no)\s*(?:$|[.,;!?/])")
_ENDS_YES_NO = re.compile(
    r"(?:^|[,:;.!?)\n]|\b(?:so|therefore|thus|hence|definitely|certainly|clearly|absolutely|probably|surely|likely))\s*(yes|no)\W*$"
)
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
    one must remain; it must be one of the options. A letter with another option's text names none.
    """
    text = _unwrapped(answer)
    k = _whole(text, options)
    if k is None:
        marked = _mark_letters(_mark_texts(_without_echo(text, tuple(options)), tuple(options)))
        if any(ord(letter) - _LETTER_0 != ord(words) - _TEXT_0 for letter, words in _ANOTHERS_TEXT.findall(marked)):
            return None
        clauses = _clauses(re.sub(_TEXT_MARK, _OTHER, marked))
        k = _settled(clauses)
        if not any(c.named for c in clauses if not c.rejected):
            texts = _mark_texts(text, tuple(options))
            k = _settled([*clauses, *_clauses(re.sub(_TEXT_MARK, lambda m: chr(ord(m.group()) - _TEXT_0 + _LETTER_0), texts))])
    return LETTERS[k] if k is not None and k < len(options) else None


def read_yes_no(answer: str) -> str | None:
    """ "yes" or "no": the reply's first word or its stated conclusion, unless it says both or says that it cannot tell."""
    text = _NO_MATTER.sub("", _unwrapped(answer).lower())
    if chinese := _CHINESE_YES_NO.match(text):
        return "yes" if chinese.group(1) else "no"
    if whole := _WHOLE_YES_NO.fullmatch(text):
        return "yes" if whole.group(1) else "no"
    for words, plain in _OTHER_WORDS:
        text = words.sub(plain, text)
    text = _INSTEAD_YES_NO.split(text)[-1]
    both = _BOTH.match(text)
    if _UNDECIDED.search(text) or _CONDITIONAL.search(text) or (both and both.group(1) != both.group(2)):
        return None
    said = set(_CONCLUDES_YES_NO.findall(text))
    if first := _OPENS_YES_NO.match(text):
        said.add(first.group(1))
    elif not said and (last := _ENDS_YES_NO.search(text)):
        said.add(last.group(1))
    return said.pop() if len(said) == 1 else None


def _unwrapped(answer: str) -> str:
    """The reply without its reasoning between tags, and without Markdown, LaTeX, tags, quotes and full-width forms, which change nothing
    about what it says."""
    text = unicodedata.normalize("NFKC", _answered(answer)[-MAX_CHARS:]).replace("’", "'")
    text = re.sub(r":\s*\n\s*", ": ", _MARKUP.sub(" ", _PRIVATE.sub(" ", text))).strip()
    return text.upper() if _LETTERS_ALONE.fullmatch(text) else text


def _answered(answer: str) -> str:
    """What follows the last reasoning between tags, up to one that never ends: a reply cut there has not answered."""
    tags = list(_REASONING.finditer(answer))
    start = max((tag.end() for tag in tags if tag.group(1)), default=0)
    return answer[start : next((tag.start() for tag in tags if tag.start() >= start), len(answer))]


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


@lru_cache(maxsize=256)
def _echo(options: tuple[str, ...]) -> re.Pattern[str] | None:
    """All options in their order, with or without their letters."""
    words = [_plain(option).split() for option in options]
    if len(options) < 3 or not all(words):
        return None
    lines = (
        rf"(?:\b(?:option|choice|caption)\s)?[(\[]?(?:\b{LETTERS[k]}\b\W{{0,3}})?(?<!\w)" + r"\W{1,3}".join(map(re.escape, w)) + r"(?!\w)"
        for k, w in enumerate(words)
    )
    return re.compile(r"\W{1,6}".join(lines), re.IGNORECASE)


def _without_echo(text: str, options: tuple[str, ...]) -> str:
    """The reply without the options repeated before or after its answer; as it is where nothing else is said."""
    if len(text) < sum(len(_plain(option)) for option in options):
        return text  # too short to repeat them: most replies are, and each question's pattern takes milliseconds to compile
    echo = _echo(options)
    rest = text if echo is None else echo.sub("\n", text)
    return rest if re.search(r"\w", rest) else text


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

    for phrase, plain in _PLAINLY:
        text = phrase.sub(plain, text)
    text = _TOGETHER.sub(hold, text)
    if len(groups) >= _MAX_GROUPS:
        return []
    out: list[_Clause] = []
    kept_from = start = 0
    denied = False
    ends = [*((m.start(), m.end()) for m in _CLAUSE_END.finditer(text)), (len(text), len(text))]
    for end, following in ends:
        piece = text[start:end]
        if _TAKEN_BACK.match(piece):
            kept_from, denied = len(out), piece.strip().lower() == "no"
        out += _named_in(piece, groups, asked=text[end : end + 1] == "?")
        start = following
    later = out[kept_from:]
    if denied and not later:  # "B? No."
        return []
    return later if any(not c.rejected for c in later) else out


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
