"""Every answer on disk before the next batch is asked: a killed evaluation goes on where it stopped.

JSON Lines, one answer a line, flushed and synced a batch at a time. A line's key hashes everything the answer depends on: weights, the
question's content, the video's bytes, the prompt, generation and frame settings. So an answer is found again only where it would be made
again. Failures (a video that could not be read) are not kept: they are tried again. The module knows no model and no lmms-eval.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from savi.base.errors import SaviError

JOURNAL = "journal"


class JournalError(SaviError, ValueError):
    """A journal with a broken line in its middle: somebody else wrote there. Names file and line."""


@dataclass(frozen=True)
class Answer:
    """A model's answer under its key. `finished`: the model ended its turn within the token limit."""

    key: str
    text: str
    tokens: int
    finished: bool
    frames: int


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
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


class Journal:
    """Answers below a folder, in `journal.jsonl` (`journal-1.jsonl` for rank 1, ...): each rank writes its own file and reads all.

    Raises:
        JournalError: a line in the middle of a file is no answer.
    """

    def __init__(self, folder: Path, *, rank: int = 0) -> None:
        self.folder = folder
        self.path = folder / f"{JOURNAL}{f'-{rank}' if rank else ''}.jsonl"
        self._answers: dict[str, Answer] = {}
        self._file: BinaryIO | None = None
        for path in _files(folder):
            self._read(path)

    def _read(self, path: Path) -> None:
        good = 0
        lines = path.read_bytes().split(b"\n")
        for i, line in enumerate(lines):
            last = i == len(lines) - 1
            if not line:
                continue
            try:
                if last:
                    raise ValueError("no line end")
                answer = Answer(**json.loads(line))
            except (ValueError, TypeError) as e:
                if not last:
                    raise JournalError(f"{path}:{i + 1}: no answer ({e}); delete the file to have its questions asked again") from e
                break
            self._answers[answer.key] = answer
            good += len(line) + 1
        if path == self.path and good < path.stat().st_size:
            with path.open("r+b") as f:  # cut what a killed writer left half done
                f.truncate(good)

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
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab")
        self._file.write("".join(json.dumps(asdict(a), ensure_ascii=False) + "\n" for a in answers).encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._answers.update({a.key: a for a in answers})

    def close(self) -> None:
        """Close the file; the journal can still be read."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def delete(self) -> None:
        """Remove the journal of every rank: its answers now stand in the records."""
        self.close()
        for path in _files(self.folder):
            path.unlink(missing_ok=True)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{JOURNAL}*.jsonl"))
