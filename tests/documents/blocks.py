"""The code blocks of README and docs/, and the commands in them, as a Markdown reader sees them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "results").rglob("*.md"))]
_COMMAND = re.compile(r"(?:[A-Z_]+=\S+ )*(?:python|pip|tox|git|torchrun|accelerate|bash|sbatch|transformers)\b")


@dataclass(frozen=True)
class Block:
    """A block of code: its page, its line there, what its fence names, its text."""

    page: str
    line: int
    language: str
    text: str

    @property
    def first(self) -> str:
        """Its first line."""
        return self.text.splitlines()[0].strip()

    @property
    def commands(self) -> list[str]:
        """Its command lines without their comments, one that goes on in further lines as one; none where a line is no command."""
        lines: list[str] = []
        for line in (re.sub(r"\s+#(\s.*|$)", "", written) for written in self.text.splitlines()):
            if line.startswith(" ") and lines:
                lines[-1] += " " + line.strip()
            elif line.strip():
                lines.append(line.strip())
        return lines if all(map(_COMMAND.match, lines)) else []


def blocks(path: Path) -> list[Block]:
    """The fenced and the indented blocks of a page."""
    page = path.relative_to(ROOT).as_posix()
    found = [token for token in MarkdownIt().parse(path.read_text(encoding="utf-8")) if token.type in ("fence", "code_block")]
    return [Block(page, (token.map or [0])[0] + 1, token.info.strip(), token.content) for token in found]


def is_synopsis(command: str) -> bool:
    """Whether a line says what may be written, with brackets and bars, and is no command itself."""
    return bool(re.search(r"[\[(|]", re.sub(r"\"[^\"]*\"|'[^']*'", "", command)))
