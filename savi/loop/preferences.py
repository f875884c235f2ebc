"""A preference pair and its file (`savi.formats` has the formats of other tools).

A pair says: to this question about this video, the model's revised answer (`chosen`) is preferred to its initial one (`rejected`). The
module knows no model; videos are only named.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from savi.base.digests import sha256_json
from savi.base.errors import FileFormatError
from savi.base.files import read_jsonl, write_jsonl_atomic
from savi.loop.prompts import Kind, prompt_set

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class PreferencePair:
    """One preference.

    `video` is a path (in files: relative to the file's folder). `initial` and `critique` are kept as the model wrote them; `rejected`
    equals `initial` and `chosen` the revision unless a control changed them (see `savi.iterate`). `meta` holds what belongs to the
    making (index of the question, the revision before a control) and must be JSON. `system` (instead of the model's own system message) and
    `history` (earlier turns, each a question and its answer) only pairs made elsewhere have; where there are none, files do not name them.
    """

    pair_id: str
    video: str
    question: str
    kind: Kind
    initial: str
    critique: str
    chosen: str
    rejected: str
    meta: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION
    system: str | None = None
    history: tuple[tuple[str, str], ...] = ()

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]  # read by TypeAdapter: unknown fields in a file are errors

    @property
    def prompt(self) -> str:
        """What the model was asked when it gave its initial answer, and is asked in training: the answer template of `meta["prompts"]`
        around the question, the question alone where no prompt set is named.

        Raises:
            ValueError: a prompt set of that name is not known.
        """
        name = self.meta.get("prompts")
        return self.question if name is None else prompt_set(str(name)).fill("answer", self.kind, question=self.question)


_ADAPTER = TypeAdapter(PreferencePair)


def make_pair_id(video: str, kind: str, index: int, question: str) -> str:
    """A pair's name: stable over runs and machines as long as the video's name and the question are."""
    return f"{Path(video).stem}-{kind}-{index}-{sha256_json([video, kind, index, question])[:8]}"


def pair_row(pair: PreferencePair, folder: str | Path) -> dict[str, Any]:
    """A pair as a file's row, its video relative to the folder of that file, so that a run's folder can be moved."""
    row = {key: value for key, value in vars(pair).items() if key not in ("system", "history") or value}
    row["video"] = Path(os.path.relpath(pair.video, folder)).as_posix()
    return row


def pair_from_row(row: Mapping[str, Any], folder: str | Path, where: str = "pair") -> PreferencePair:
    """The pair in a row; its video relative to `folder` becomes a path.

    Raises:
        FileFormatError: a field is missing, unknown or of another type, or the schema is of another version.
    """
    version = row.get("schema_version")
    if version != SCHEMA_VERSION:
        raise FileFormatError(f"{where}: schema_version {version!r}, this program reads {SCHEMA_VERSION}; make the pairs again")
    try:
        pair = _ADAPTER.validate_python(dict(row))
    except ValidationError as error:
        first = error.errors()[0]
        raise FileFormatError(f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    try:
        _ = pair.prompt
    except ValueError as error:
        raise FileFormatError(f"{where}: meta: {error}") from error
    return replace(pair, video=os.path.normpath(Path(folder) / pair.video))


def write_pairs(path: str | Path, pairs: Iterable[PreferencePair]) -> Path:
    """Write pairs as JSON Lines, at once (`propose` appends chunk by chunk instead)."""
    folder = Path(path).parent
    return write_jsonl_atomic(path, (pair_row(pair, folder) for pair in pairs))


def read_pairs(path: str | Path) -> list[PreferencePair]:
    """Read a pairs file.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: a line is not a pair of this schema (names file, line and field).
    """
    folder = Path(path).parent
    return [pair_from_row(row, folder, f"{path}:{number}") for number, row in enumerate(read_jsonl(path), start=1)]
