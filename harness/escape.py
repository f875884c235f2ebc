"""Text of unknown origin made safe to show: model names and answers come from files anyone can write.

Two steps, always in this order: `visible` turns what would act (terminal escapes, control characters, direction marks) into
characters that can be seen, then the format's own escape turns what the format would read as markup into text. HTML has its
escape in jinja2 (autoescape); the others are here.
"""

from __future__ import annotations

import re
import unicodedata

MAX_CHARS = 400
"""Longest text shown in a table's cell; the middle of a longer one is left out, and said to be."""

# Cc: control, Cf: format (direction marks, zero-width joiners, tags), Cs: lone surrogates, Co: private use, Zl/Zp: line separators.
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
_BLANKS = re.compile(r"[ \t\r\n\v\f\x85\u2028\u2029]+")
_MARKDOWN = re.compile(r"([\\`*_\[\]|~$#])")
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "\"": r"\textquotedbl{}", "`": r"\textasciigrave{}",
    "±": r"$\pm$", "−": r"$-$", "×": r"$\times$", "–": "--", "≥": r"$\geq$", "≤": r"$\leq$",
    "†": r"\textdagger{}", "‡": r"\textdaggerdbl{}", "·": r"\textperiodcentered{}",
}  # fmt: skip
_LATEX_KNOWN = {chr(c) for c in (*range(0xA1, 0x180), 0x2013, 0x2014, 0x2018, 0x2019, 0x201C, 0x201D, 0x2022, 0x2026, 0x20AC)}
_LATEX_KNOWN -= set("\xadŉſ")
_FORMULA_START = ("=", "+", "-", "@", "\t", "\r")


def visible(text: str, limit: int = MAX_CHARS) -> str:
    r"""One line of `text` in which nothing acts: unseen characters appear as `\xNN`, `\uNNNN`; runs of blanks are one blank.

    A text of more than `limit` characters keeps its start and its end, with the number of all its characters between them.
    """
    total = len(text)
    if total > 4 * limit:  # a megabyte of text is not walked character by character
        text = text[: 2 * limit] + text[-2 * limit :]
    text = _BLANKS.sub(" ", text).strip()
    text = "".join(_shown(c) for c in text)
    if len(text) <= limit and total <= 4 * limit:
        return text
    half = max(1, (limit - 30) // 2)
    return f"{text[:half]} … ({total:,} characters) … {text[-half:]}"


def _shown(char: str) -> str:
    if char.isascii() and char.isprintable():
        return char
    if unicodedata.category(char) not in _UNSEEN:
        return char
    n = ord(char)
    return f"\\x{n:02x}" if n < 0x100 else f"\\u{n:04x}" if n < 0x10000 else f"\\U{n:08x}"


def markdown(text: str, limit: int = MAX_CHARS) -> str:
    """Text for one cell of a Markdown pipe table: no markup, no HTML, no new column."""
    text = visible(text, limit).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = _MARKDOWN.sub(r"\\\1", text)
    # GitHub turns bare addresses and @names into links and mentions; an entity keeps them text.
    return text.replace("://", "&#58;//").replace("www.", "www&#46;").replace("@", "&#64;")


def latex(text: str, limit: int = MAX_CHARS) -> str:
    """Text for LaTeX (pdflatex with UTF-8 and T1 fonts, or any newer engine): all ten special characters escaped, and letters that those
    fonts do not have named by their number."""
    return "".join(
        _LATEX.get(c) or (c if c.isascii() or c in _LATEX_KNOWN else rf"\texttt{{U+{ord(c):04X}}}") for c in visible(text, limit)
    )


def csv_text(text: str, limit: int = MAX_CHARS) -> str:
    """Text for a CSV field: a spreadsheet must not take it for a formula."""
    text = visible(text, limit)
    return "'" + text if text.startswith(_FORMULA_START) else text


def safe_link(link: str | None) -> str | None:
    """`link` where it is http(s) or a relative path, else None: no scheme that could run something."""
    if not link or any(unicodedata.category(c) in _UNSEEN or c in " <>\"'`\\(){}[]|^" for c in link):
        return None
    if re.match(r"https?://[^/]", link, re.IGNORECASE):
        return link
    head = link.split("/", 1)[0]
    return None if ":" in head or link.startswith("//") else link
