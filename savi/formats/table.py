"""The table of formats, and reading and writing pairs by it: a format is a module with an object in `FORMATS`.

A file's format is seen by the columns of its first row; one that fits two, or none, is refused until `--from-format` says which it is.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from savi.base.digests import canonical_json, parse_json
from savi.base.errors import FileFormatError, UsageError
from savi.base.files import make_folder, write_bytes_atomic
from savi.base.hub import fetch_dataset, is_hub_id
from savi.formats.conversation import Format, conversation_of, pair_of
from savi.formats.llama_factory import LLAMA_FACTORY, describe, described, standard
from savi.formats.llava_hound import LLAVA_HOUND
from savi.formats.ms_swift import MS_SWIFT
from savi.formats.rows import Row, dataset_rows, file_rows
from savi.formats.trl import CONVERSATIONAL, FLAT, IMPLICIT
from savi.loop.preferences import PreferencePair, pair_from_row, pair_row

FORMATS: dict[str, Format] = {one.name: one for one in (CONVERSATIONAL, IMPLICIT, FLAT, MS_SWIFT, LLAMA_FACTORY, LLAVA_HOUND)}
SAVI = "savi"
"""The project's own format, `savi.loop.preferences`."""
NAMES = (SAVI, *FORMATS)
_VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov")


def read_any_pairs(
    source: str | Path, *, name: str | None = None, videos: Path | None = None, tell: Callable[[str], None] | None = None
) -> list[PreferencePair]:
    """The pairs of a file, folder or hub data set in any format of the table, or in the project's own.

    `name`: the format, where it is not to be seen by the first row. `videos`: where relative paths of videos start, if not at the file's
    folder. `tell` is called with a sentence before the network is used.

    Raises:
        UsageError: nothing of that name; a format that is not in the table.
        FileFormatError: a row is no pair, or holds what a pair has no place for (names file and line).
    """
    if name is not None and name not in NAMES:
        raise UsageError(f"--from-format {name}: no such format; there are {', '.join(NAMES)}")
    rows, folder, repository = _open(source, tell)
    base = folder if videos is None else videos
    pairs: list[PreferencePair] = []
    for number, (row, where) in enumerate(rows, start=1):
        name = name or _recognise(row, where)
        if name == SAVI:
            pairs.append(pair_from_row(_whole(row, where), base, where))
        else:
            pairs.append(pair_of(FORMATS[name].read(row, where), base, where, number))
    pairs = [replace(pair, video=_with_suffix(pair.video)) for pair in pairs] if name == LLAVA_HOUND.name else pairs
    if repository is not None and videos is None:
        absent = {os.path.relpath(pair.video, folder) for pair in pairs if not _is_there(pair.video)}
        if absent:
            fetch_dataset(repository, [glob.escape(path) for path in sorted(absent)], tell=tell)
    return pairs


def _open(source: str | Path, tell: Callable[[str], None] | None) -> tuple[Iterator[Row], Path, str | None]:
    """The rows, the folder that relative paths start at, and the hub's name where it came from there."""
    path = Path(source).expanduser()
    if path.is_dir():
        return dataset_rows(path, str(source)), path, None
    if not path.exists() and is_hub_id(str(source)):
        folder = fetch_dataset(str(source), ["*.parquet", "*.jsonl", "*.json", "README.md"], tell=tell)
        return dataset_rows(folder, str(source)), folder, str(source)
    if not path.is_file():
        raise UsageError(f"{source}: no such file or folder, and not a hub id (owner/name)")
    entry = described(path)
    rows = file_rows(path) if entry is None else ((standard(row, entry), where) for row, where in file_rows(path))
    return rows, path.parent, None


def _recognise(row: Mapping[str, Any], where: str) -> str:
    there = {key: value for key, value in row.items() if value is not None}
    if {"pair_id", "schema_version"} <= there.keys():
        return SAVI
    found = [name for name, one in FORMATS.items() if one.holds(there)]
    if len(found) == 1:
        return found[0]
    columns = ", ".join(sorted(map(str, there))) or "none"
    if found:
        raise FileFormatError(f"{where}: may be {' or '.join(found)} (columns: {columns}); say which with --from-format")
    raise FileFormatError(f"{where}: pairs in no known format (columns: {columns}); the formats are {', '.join(NAMES)}")


def _whole(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A row of the project's own out of a table, which has a place for every field, and `meta` as text."""
    there = {key: value for key, value in row.items() if value is not None}
    if not isinstance(there.get("meta"), str):
        return there
    try:
        return {**there, "meta": parse_json(there["meta"])}
    except ValueError as error:
        raise FileFormatError(f"{where}: meta: not JSON ({error})") from error


def _with_suffix(video: str) -> str:
    """LLaVA-Hound names videos without the suffix of their files."""
    if _is_there(video) or Path(video).suffix.lower() in _VIDEO_SUFFIXES:
        return video
    return next((video + suffix for suffix in _VIDEO_SUFFIXES if _is_there(video + suffix)), video)


def _is_there(name: str) -> bool:
    try:
        return Path(name).exists()
    except OSError:  # a name that is too long to be one
        return False


def write_any_pairs(path: str | Path, pairs: Iterable[PreferencePair], name: str, *, relative: bool | None = None) -> list[Path]:
    """Write pairs in a format, as a JSON array (.json), Parquet (.parquet), else JSON Lines; returns the files written.

    `relative`: paths of videos relative to the file's folder, or absolute; None: as the format's tool resolves them.

    Raises:
        UsageError: no such format, or the file holds something else already.
        FileFormatError: a pair has what the format has no place for (names it).
    """
    target = Path(path)
    if name not in NAMES:
        raise UsageError(f"--format {name}: no such format; there are {', '.join(NAMES)}")
    make_folder(target.parent)
    if name == SAVI:
        rows = [pair_row(pair, target.parent) for pair in pairs]
        if relative is False:
            rows = [{**row, "video": Path(os.path.normpath(target.parent.absolute() / row["video"])).as_posix()} for row in rows]
    else:
        one = FORMATS[name]
        near = one.relative if relative is None else relative
        rows = [one.write(conversation_of(pair, target.parent, relative=near)) for pair in pairs]
    data = _bytes(target.suffix, rows)
    if target.is_dir() or (target.exists() and target.read_bytes() != data):
        raise UsageError(f"{target}: is there already and holds something else; name a new file, or remove it")
    write_bytes_atomic(target, data)
    return [target, describe(target)] if name == LLAMA_FACTORY.name else [target]


def _bytes(suffix: str, rows: list[dict[str, Any]]) -> bytes:
    """What a file of this suffix holds."""
    match suffix:
        case ".json":
            text = json.dumps(rows, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
        case ".parquet":
            from io import BytesIO

            import pyarrow  # an empty object, or one of other keys in each row, has no place in a table
            from pyarrow.parquet import write_table

            buffer = BytesIO()
            plain = [{**row, "meta": canonical_json(row["meta"])} if "meta" in row else row for row in rows]
            columns = dict.fromkeys(key for row in plain for key in row)
            write_table(pyarrow.Table.from_pylist([{**dict.fromkeys(columns), **row} for row in plain]), buffer)
            return buffer.getvalue()
        case _:
            text = "".join(canonical_json(row) + "\n" for row in rows)
    return text.encode("utf-8", "backslashreplace")
