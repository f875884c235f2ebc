"""The files of a proposing run: its pairs, its dropped questions, and the journal that says what they were made from and how far they got.

Pairs and dropped questions are on disk before the journal says so; what follows the journal's last row in them is cut off and made again.
So a run that was killed ends in the bytes of one that was not. A journal is no `savi.base.stamp`, which is written whole: a row is appended
for each chunk, and says how long the files are. The module knows no model.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError

from savi.base.digests import sha256_json
from savi.base.errors import FileFormatError, ResumeError, one_line
from savi.base.files import JsonlWriter, read_jsonl, whole_failure
from savi.loop.preferences import PreferencePair, pair_row, read_pairs
from savi.server.usage import Usage


@dataclass(frozen=True)
class AlignCounts:
    """What became of the questions. videos = broken + read; questions = pairs + sum of dropped; `equal` of the pairs are unchanged
    answers (`AlignSettings.keep_equal`)."""

    videos: int = 0
    broken: int = 0
    questions: int = 0
    pairs: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    equal: int = 0

    def __add__(self, other: AlignCounts) -> AlignCounts:
        return AlignCounts(
            self.videos + other.videos,
            self.broken + other.broken,
            self.questions + other.questions,
            self.pairs + other.pairs,
            dict(sorted((Counter(self.dropped) + Counter(other.dropped)).items())),
            self.equal + other.equal,
        )

    def line(self) -> str:
        """One line for people."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items())
        pairs = f"{self.pairs} pairs" + (f" ({self.equal} of unchanged answers)" if self.equal else "")
        return f"{self.videos} videos ({self.broken} broken), {self.questions} questions, {pairs}, dropped: {reasons or 'none'}"


@dataclass(frozen=True)
class _Chunk:
    """A journal's row: how far a run got."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]
    videos_done: int
    pairs_bytes: int
    dropped_bytes: int
    counts: AlignCounts
    failures: list[Annotated[dict[str, Any], AfterValidator(whole_failure)]]
    again: list[Any] = field(default_factory=list)
    usage: dict[str, Usage] = field(default_factory=dict)


_CHUNK = TypeAdapter(_Chunk)


def _chunk(row: Mapping[str, Any], path: Path) -> _Chunk:
    try:
        return _CHUNK.validate_python(row)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise FileFormatError(f"{path}: {where}: {one_line(first['msg'])}; move it away to have the pairs made again") from error


def journal_path(out: str | Path) -> Path:
    """The journal beside a pairs file: what it was made from, and how far it got."""
    return Path(out).with_suffix(".journal.jsonl")


def dropped_path(out: str | Path) -> Path:
    """The dropped questions beside a pairs file: dropped.jsonl beside pairs.jsonl; with another name, as several may lie in one folder,
    beside any other file."""
    path = Path(out)
    return path.with_name("dropped.jsonl") if path.stem == "pairs" else path.with_suffix(".dropped.jsonl")


def read_counts(out: str | Path) -> AlignCounts:
    """The counts of a pairs file, finished or not, from its journal."""
    path = journal_path(out)
    return sum((_chunk(row, path).counts for row in read_jsonl(path) if "counts" in row), AlignCounts())


def read_usage(out: str | Path) -> dict[str, Usage]:
    """What was asked of servers for a pairs file so far, by "model" and "critic"; empty where all models were local."""
    path, found = journal_path(out), dict[str, Usage]()
    for row in read_jsonl(path):
        if "counts" in row:
            for who, usage in _chunk(row, path).usage.items():
                found[who] = found.get(who, Usage()) + usage
    return found


def is_complete(out: str | Path) -> bool:
    """Whether a pairs file was finished."""
    path = journal_path(out)
    return path.exists() and any(row.get("done") for row in read_jsonl(path))


def read_unchanged(dropped: str | Path) -> list[PreferencePair]:
    """The questions of a dropped.jsonl whose answer was not changed, as pairs of equal answers; controls need them."""
    folder = Path(dropped).parent
    found: list[PreferencePair] = []
    for row in read_jsonl(dropped):
        if row["reason"] == "unchanged":
            fields = {key: value for key, value in row.items() if key not in ("reason", "detail", "revision")}
            fields |= {"chosen": row["revision"], "rejected": row["initial"], "video": os.path.normpath(folder / row["video"])}
            found.append(PreferencePair(**fields))
    return found


class Journal:
    """The files of one run, opened to go on: `videos_done` and `failures` are what it finished before, `header` what it is made from.

    Raises:
        ResumeError: the files were begun with another model, other settings or other videos, or are not this loop's.
    """

    def __init__(
        self,
        out: Path,
        dropped: Path | None,
        *,
        model: str,
        settings: Mapping[str, Any],
        videos: Sequence[str],
        critic: str | None = None,
    ) -> None:
        self.out = Path(out)
        self._dropped = Path(dropped) if dropped is not None else dropped_path(out)
        self._path = journal_path(out)
        self.videos_done = 0
        self.failures: list[dict[str, str]] = []
        self.done = False
        header = {"model": model, "settings": sha256_json(dict(settings)), "videos": sha256_json(list(videos)), "critic": critic}
        self.header = {key: value for key, value in header.items() if value is not None}
        sizes = {"pairs_bytes": 0, "dropped_bytes": 0}
        rows = list(read_jsonl(self._path)) if self._path.exists() else []
        if rows:
            different = [key for key in header if rows[0].get(key) != header[key]]
            if different:
                raise ResumeError(f"{self.out}: was begun with another {' and other '.join(different)}; take another folder or delete it")
            for row in rows[1:]:
                if row.get("done"):
                    self.done = True
                    continue
                chunk = _chunk(row, self._path)
                self.videos_done = chunk.videos_done
                self.failures = [failure for failure in self.failures if failure["what"] not in chunk.again] + chunk.failures
                sizes = {"pairs_bytes": chunk.pairs_bytes, "dropped_bytes": chunk.dropped_bytes}
        for path, size in ((self.out, sizes["pairs_bytes"]), (self._dropped, sizes["dropped_bytes"])):
            _cut(path, size, begun=bool(rows))
        if not rows:
            with JsonlWriter(self._path) as writer:
                writer.write(self.header)

    def stored_pairs(self) -> list[PreferencePair]:
        return read_pairs(self.out)

    def add(
        self,
        pairs: Sequence[PreferencePair],
        dropped: Sequence[dict[str, Any]],
        failures: Sequence[dict[str, str]],
        videos_done: int,
        counts: AlignCounts,
        again: Sequence[str] = (),
        usage: Mapping[str, Usage] | None = None,
    ) -> None:
        """Append a chunk; it is on disk when this returns. `again`: the videos of a chunk that had failed before; `usage`: what was asked
        of servers."""
        with JsonlWriter(self.out) as writer:
            writer.write(*(pair_row(pair, self.out.parent) for pair in pairs))
        folder = self._dropped.parent
        with JsonlWriter(self._dropped) as writer:
            writer.write(*({**row, "video": Path(os.path.relpath(row["video"], folder)).as_posix()} for row in dropped))
        with JsonlWriter(self._path) as writer:
            writer.write(
                {
                    "videos_done": videos_done,
                    "pairs_bytes": self.out.stat().st_size,
                    "dropped_bytes": self._dropped.stat().st_size,
                    "counts": asdict(counts),
                    "failures": list(failures),
                    **({"again": list(again)} if again else {}),
                    **({"usage": {who: asdict(used) for who, used in usage.items()}} if usage else {}),
                }
            )

    def finish(self) -> None:
        if not self.done:
            with JsonlWriter(self._path) as writer:
                writer.write({"done": True})


def _cut(path: Path, size: int, *, begun: bool) -> None:
    """Make a file `size` bytes long, dropping what a killed run left after its last whole chunk.

    Raises:
        ResumeError: the file is shorter than the journal says, or holds something though no journal speaks of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    found = path.stat().st_size if path.exists() else 0
    if found and not begun:
        raise ResumeError(f"{path}: holds {found} bytes that no journal speaks of; take another name, or move it away")
    if found < size:
        raise ResumeError(f"{path}: {found} bytes, but its journal says {size}; delete the folder to have it made again")
    with path.open("ab") as file:
        file.truncate(size)
