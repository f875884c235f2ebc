"""What several processes made of one run's videos, before the first of them puts it in order (`savi.loop.propose`).

Each process writes a file of its own, a row a video, on disk before the next videos are begun. Whoever goes on, alone or as any number of
processes, finds the rows of all of them and asks no video's questions again. The module knows no model.
"""

from __future__ import annotations

import glob
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError

from savi.base.errors import FileFormatError, one_line
from savi.base.files import JsonlWriter, read_jsonl, set_aside, whole_failure
from savi.engine.watched import Reply
from savi.loop.preferences import PreferencePair, pair_from_row, pair_row
from savi.server.usage import Usage, total_usage


@dataclass(frozen=True)
class _Row:
    """A part's row. Texts may hold lone surrogates, as names of files may be any bytes: their checks are ours."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]
    key: Any
    pairs: list[dict[str, Any]]
    dropped: list[dict[str, Any]]
    broken: list[Annotated[dict[str, Any], AfterValidator(whole_failure)]]
    usage: dict[str, Usage]


_ROW = TypeAdapter(_Row)


@dataclass
class Made:
    """All that came of one video: its pairs and its dropped questions, or the failure of one that could not be read; `usage`: what was
    asked of servers about it."""

    pairs: list[PreferencePair] = field(default_factory=list)
    dropped: list[dict[str, Any]] = field(default_factory=list)
    broken: list[dict[str, str]] = field(default_factory=list)
    usage: dict[str, Usage] = field(default_factory=dict)

    def count(self, who: str, reply: Reply) -> None:
        """Add what a reply cost."""
        if (used := total_usage([reply])).requests:
            self.usage[who] = self.usage.get(who, Usage()) + used


class PartWriter:
    """A new part beside `out`. `header`: what the run is made from, as its journal says. Use as a context manager."""

    def __init__(self, out: Path, header: Mapping[str, str]) -> None:
        self._folder = out.parent
        self._rows = JsonlWriter(out.with_name(f"{out.stem}.part-{secrets.token_hex(4)}.jsonl"))
        self._rows.write(header)

    def add(self, made: Mapping[str, Made]) -> None:
        """What came of some videos, by their keys; on disk when this returns."""
        self._rows.write(*(self._row(key, one) for key, one in made.items()))

    def _row(self, key: str, made: Made) -> dict[str, Any]:
        dropped = [{**row, "video": Path(os.path.relpath(row["video"], self._folder)).as_posix()} for row in made.dropped]
        pairs = [pair_row(pair, self._folder) for pair in made.pairs]
        usage = {who: asdict(used) for who, used in made.usage.items()}
        return {"key": key, "pairs": pairs, "dropped": dropped, "broken": made.broken, "usage": usage}

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._rows.close()


def _paths(out: Path) -> list[Path]:
    return sorted(out.parent.glob(f"{glob.escape(out.stem)}.part-*.jsonl"))


def read_parts(out: Path, header: Mapping[str, str], tell: Callable[[str], None]) -> dict[str, Made]:
    """What the parts beside `out` hold, by video; a part of a run with another header is set aside, which `tell` is told.

    Raises:
        FileFormatError: a part is damaged; names file and line.
    """
    found: dict[str, Made] = {}
    for path in _paths(out):
        rows = list(read_jsonl(path))
        if rows and rows[0] != dict(header):
            tell(f"{path}: was made with another model, other settings or other videos; kept as {set_aside(path).name}, and not used")
            continue
        for number, row in enumerate(rows[1:], start=2):
            found[str(row.get("key"))] = _made(row, out.parent, f"{path}:{number}")
    return found


def _made(row: Mapping[str, Any], folder: Path, where: str) -> Made:
    try:
        found = _ROW.validate_python(dict(row))
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(str(part) for part in first["loc"])
        raise FileFormatError(f"{where}: {at}: {one_line(first['msg'])}; delete the file to have its videos asked again") from error
    for dropped in found.dropped:
        if not isinstance(dropped.get("video"), str) or not isinstance(dropped.get("reason"), str):
            raise FileFormatError(f"{where}: a dropped question has no video or no reason; delete the file to have its videos asked again")
    try:
        pairs = [pair_from_row(pair, folder, where) for pair in found.pairs]
    except FileFormatError as error:
        raise FileFormatError(f"{error}; delete the file to have its videos asked again") from error
    return Made(pairs, [{**one, "video": os.path.normpath(folder / one["video"])} for one in found.dropped], found.broken, found.usage)


def rewrite_parts(out: Path, header: Mapping[str, str], made: Mapping[str, Made]) -> None:
    """Leave one part that holds this, and no other."""
    old = _paths(out)
    with PartWriter(out, header) as part:
        part.add(made)
    for path in old:
        path.unlink()


def delete_parts(out: Path) -> None:
    """Remove the parts: what they hold stands in `out`."""
    for path in _paths(out):
        path.unlink(missing_ok=True)
