"""Text made elsewhere, made safe to look at: control characters, escape sequences and direction marks become visible signs.

A model's answer may hold anything. Escaping against HTML is the template's business (autoescape) and the page's (textContent only);
this module removes what even plain text can do: hide, reorder, or swamp.
"""

from __future__ import annotations

import base64
import json
import zlib

_BIDI = {
    0x061C: "ALM", 0x200E: "LRM", 0x200F: "RLM", 0x202A: "LRE", 0x202B: "RLE", 0x202C: "PDF", 0x202D: "LRO", 0x202E: "RLO",
    0x2066: "LRI", 0x2067: "RLI", 0x2068: "FSI", 0x2069: "PDI", 0x200B: "ZWSP", 0x200C: "ZWNJ", 0x2060: "WJ", 0xFEFF: "BOM",
}  # fmt: skip
# Names and not the Unicode pictures of control characters: few fonts have those.
_CONTROLS = (
    "NUL", "SOH", "STX", "ETX", "EOT", "ENQ", "ACK", "BEL", "BS", "TAB", "LF", "VT", "FF", "CR", "SO", "SI", "DLE", "DC1",
    "DC2", "DC3", "DC4", "NAK", "SYN", "ETB", "CAN", "EM", "SUB", "ESC", "FS", "GS", "RS", "US",
)  # fmt: skip
_VISIBLE: dict[int, str] = {c: f"⟨{name}⟩" for c, name in enumerate(_CONTROLS) if c not in (9, 10)}
_VISIBLE |= {0x7F: "⟨DEL⟩", 0x2028: "\n", 0x2029: "\n\n"}
_VISIBLE |= {c: f"⟨{c:02X}⟩" for c in range(0x80, 0xA0)} | {c: f"⟨{name}⟩" for c, name in _BIDI.items()}
_VISIBLE |= {
    c: f"⟨{c:04X}⟩"
    for c in (0xAD, 0x180E, *range(0x2061, 0x2065), *range(0x206A, 0x2070), *range(0xFFF9, 0xFFFC), *range(0xE0000, 0xE0080))
}


def legible(text: str, limit: int | None = None) -> str:
    """`text` with invisible characters shown by name (⟨NUL⟩, ⟨ESC⟩, ⟨RLO⟩), lone surrogates replaced, and at most `limit` characters kept.

    What is cut is said at the end, so that nobody takes a part for the whole.
    """
    cut = 0
    if limit is not None and len(text) > limit:
        cut, text = len(text) - limit, text[:limit]
    if not (text.isascii() and text.isprintable()):
        text = text.replace("\r\n", "\n").translate(_VISIBLE).encode("utf-8", "replace").decode("utf-8")
    return f"{text}… [+{cut:,} characters]" if cut else text


def script_json(data: object) -> str:
    """JSON that may stand inside a script element: no `<`, `>`, `&`, U+2028, U+2029, and ASCII throughout."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def packed_json(data: object, *, plain_below: int) -> str:
    """`script_json`, deflated and in base64 where the plain form is longer than `plain_below` characters.

    The page unpacks it with the browser's own DecompressionStream; small data stay readable by eye.
    """
    text = script_json(data)
    if len(text) <= plain_below:
        return f'{{"encoding":"json","data":{text}}}'
    packed = base64.b64encode(zlib.compress(text.encode("ascii"), 6)).decode("ascii")
    return f'{{"encoding":"deflate","data":"{packed}"}}'
