"""Every answer on disk before the next batch is asked: a killed evaluation goes on where it stopped.

JSON Lines: a header that says what makes the answers (versions, code), then one answer a line, flushed and synced a batch at a time. An
answer's key hashes everything else it depends on: weights, the question's content, the video's bytes, the prompt, generation and frame
settings. So an answer is found again only where it would be made again; a file of another header is set aside, never mixed. Failures (a
video that could not be read) are kept too. The module knows no model and no lmms-eval.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from savi.base.errors import FileFormatError
from savi.base.files import make_folder, set_aside, sync_folder

JOURNAL = "journal"
_NAME = re.compile(rf"{JOURNAL}(-\d+)?\.jsonl")


class JournalError(FileFormatError):
    """A journal with a broken line in its middle: somebody else wrote there. Names file and line."""


@dataclass(frozen=True)
class Answer:
    """A model's answer under its key. `finished`: the model ended its turn within the token limit; `decoder`: what read the frames;
    `error`: why there is no answer (empty: there is one)."""

    key: str
    text: str
    tokens: int
    finished: bool
    frames: int
    decoder: str = ""
    error: str = ""


_TYPES = {"key": str, "text": str, "tokens": int, "finished": bool, "frames": int}
_LATER = {"decoder": str, "error": str}
"""Fields that older journals lack."""


def answer_key(*, weights: str, question: str, media: str, prompt: str, generation: Mapping[str, Any], frames: Mapping[str, Any]) -> str:
    """Hash of all that an answer depends on."""
    parts = {
        "weights": weights,
        "question": question,
        "media": media,
        "prompt": prompt,
        "generation": dict(generation),
        "frames": dict(frames),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode(errors="surrogatepass")).hexdigest()


class Journal:
    """Answers below a folder, in `journal.jsonl` (`journal-1.jsonl` for rank 1, ...): each rank writes its own file and reads all.

    `made_by` is the header; `tell` is given a sentence where a file of another header is set aside. `inputs` is noted beside the header:
    what the evaluation is of (`begun_from`).

    Raises:
        JournalError: a line in the middle of a file is no answer.
    """

    def __init__(
        self,
        folder: Path,
        *,
        rank: int = 0,
        made_by: Mapping[str, str] | None = None,
        tell: Callable[[str], None] | None = None,
        inputs: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.path = folder / f"{JOURNAL}{f'-{rank}' if rank else ''}.jsonl"
        self._made_by = dict(made_by or {})
        self._inputs = {"inputs": dict(inputs)} if inputs else {}
        self._answers: dict[str, Answer] = {}
        self._file: BinaryIO | None = None
        for path in _files(folder):
            other = self._read(path)
            if other is not None and (path == self.path or rank == 0):
                kept = set_aside(path)
                if tell is not None:
                    tell(f"{path}: its answers were made by {other}; kept as {kept.name}, those questions are asked again")

    def _read(self, path: Path) -> str | None:
        """Take a file's answers; where its header is another one, take nothing and return how it differs."""
        lines = path.read_bytes().split(b"\n")
        torn = lines.pop()
        header, rows = _header_of(lines)
        if rows and header != self._made_by:
            return _difference(header, self._made_by)
        for i, line in rows:
            try:
                answer = _answer(json.loads(line))
            except (ValueError, RecursionError) as e:
                raise JournalError(f"{path}:{i}: no answer ({e}); delete the file to have its questions asked again") from e
            self._answers[answer.key] = answer
        if path == self.path and (torn or not rows):
            with path.open("r+b") as f:  # cut what a killed writer left half done
                f.truncate(path.stat().st_size - len(torn) if rows else 0)
        return None

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> Answer | None:
        """The answer made under this key, or None."""
        return self._answers.get(key)

    def add(self, answers: Sequence[Answer]) -> None:
        """Append a batch; it is on disk when this returns."""
        if not answers:
            return
        if self._file is None:
            make_folder(self.folder)
            self._file = self.path.open("ab")
            if self._file.tell() == 0:
                self._file.write(_line({"made_by": self._made_by, **self._inputs}))
                sync_folder(self.folder)
        self._file.write(b"".join(_line(asdict(a)) for a in answers))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._answers.update({a.key: a for a in answers})

    def close(self) -> None:
        """Close the file; the journal can still be read."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def delete(self) -> None:
        """Close and remove the journal of every rank."""
        self.close()
        delete_journals(self.folder)


def begun_from(folder: Path) -> Mapping[str, Any] | None:
    """The inputs of an evaluation that has answers in a journal here; None where there is none, or where it does not say."""
    for path in _files(folder):
        with path.open("rb") as file:
            first, second = file.readline(), file.readline()
        try:
            header = json.loads(first)
        except (ValueError, RecursionError):
            continue
        if second and isinstance(header, dict) and isinstance(inputs := header.get("inputs"), dict):
            return inputs
    return None


def delete_journals(folder: Path) -> None:
    """Remove the journal of every rank: its answers now stand in the records. Files that were set aside stay."""
    for path in _files(folder):
        path.unlink(missing_ok=True)


def _line(row: Mapping[str, Any]) -> bytes:
    """Escaped to ASCII: lone surrogates come back as they were."""
    return (json.dumps(row) + "\n").encode()


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob(f"{JOURNAL}*.jsonl") if _NAME.fullmatch(p.name))


def _header_of(lines: Sequence[bytes]) -> tuple[dict[str, str], list[tuple[int, bytes]]]:
    """What the first line says made the answers (nothing in journals older than headers), and the numbered rows after it."""
    rows = [(i, line) for i, line in enumerate(lines, 1) if line]
    if rows:
        try:
            first = json.loads(rows[0][1])
        except (ValueError, RecursionError):
            return {}, rows
        if isinstance(first, dict) and isinstance(made_by := first.get("made_by"), dict):
            return {str(k): str(v) for k, v in made_by.items()}, rows[1:]
    return {}, rows


def _answer(row: object) -> Answer:
    """A row as an answer, its types checked by hand: pydantic takes no lone surrogates, which a model may have written.

    Raises:
        ValueError: it is none; says why.
    """
    types = _TYPES | _LATER
    if not isinstance(row, dict) or not _TYPES.keys() <= row.keys() <= types.keys():
        raise ValueError(f"its fields are not {', '.join(types)}")
    wrong = [name for name in row if type(row[name]) is not types[name]]
    if wrong:
        raise ValueError(f"{wrong[0]} is no {types[wrong[0]].__name__}")
    return Answer(**row)


def _difference(there: Mapping[str, str], here: Mapping[str, str]) -> str:
    if not there:
        return "an older version, which does not say its parts"
    names = [k for k in sorted({*there, *here}) if there.get(k) != here.get(k)]
    return ", ".join(f"{k} {there.get(k, 'absent')} (now {here.get(k, 'absent')})" for k in names)
