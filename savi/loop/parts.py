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
from typing import Any

from savi.base.errors import FileFormatError
from savi.base.files import JsonlWriter, read_jsonl, set_aside
from savi.engine.watched import Reply
from savi.loop.preferences import PreferencePair, pair_row
from savi.server.usage import Usage, total_usage

_FIELDS = {"key": str, "pairs": list, "dropped": list, "broken": list, "usage": dict}


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
    if row.keys() != _FIELDS.keys() or any(type(row[name]) is not kind for name, kind in _FIELDS.items()):
        raise FileFormatError(f"{where}: not what came of a video; delete the file to have its videos asked again")
    try:
        pairs = [PreferencePair(**_placed(pair, folder)) for pair in row["pairs"]]
        usage = {who: Usage(**used) for who, used in row["usage"].items()}
        return Made(pairs, [_placed(one, folder) for one in row["dropped"]], row["broken"], usage)
    except (TypeError, KeyError) as error:
        raise FileFormatError(f"{where}: {error}; delete the file to have its videos asked again") from error


def _placed(row: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    return {**row, "video": os.path.normpath(folder / row["video"])}


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
