"""Rows of a table and where each stands: JSON Lines, a JSON array, Parquet, a folder that `datasets` reads, or a data set of the hub.

Byte order marks and blank lines are no error; anything else that is no row is named with its line. The module knows no format of pairs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from savi.base.errors import FileFormatError, one_line

Row = tuple[dict[str, Any], str]
"""A row, and its place for messages."""


def file_rows(path: Path) -> Iterator[Row]:
    """The rows of a file.

    Raises:
        FileFormatError: it is not UTF-8, not JSON, or something in it is no object (names file and line).
    """
    if path.suffix == ".parquet":
        yield from _parquet(path)
        return
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path}: not UTF-8 at byte {error.start}; write it as UTF-8, JSON Lines or a JSON array") from error
    yield from _array(path, text) if text.lstrip()[:1] == "[" else _lines(path, text)


def _lines(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _object(_loads(line, f"{path}:{number}"), f"{path}:{number}")


def _loads(line: str, where: str) -> Any:
    try:
        return json.loads(line, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        said = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise FileFormatError(f"{where}: not a JSON object ({said}): {line[:80]!a}") from error


def _constant(name: str) -> float | None:
    """NaN is how pandas writes that there is nothing; as a text it would be trained on."""
    return None if name == "NaN" else float(name)


def _array(path: Path, text: str) -> Iterator[Row]:
    """One item after another, so that a fault is told with its line."""
    decoder, end, line, counted = json.JSONDecoder(parse_constant=_constant), text.index("[") + 1, 1, 0
    first = True
    while True:
        end = _skip(text, end)
        if text[end : end + 1] == "]" and _skip(text, end + 1) == len(text):
            return
        if not first:
            if text[end : end + 1] != ",":
                raise FileFormatError(f"{path}:{text.count(chr(10), 0, end) + 1}: the array does not go on here: {text[end : end + 80]!a}")
            end = _skip(text, end + 1)
        line, counted, first = line + text.count("\n", counted, end), end, False
        try:
            item, end = decoder.raw_decode(text, end)
        except (ValueError, RecursionError) as error:
            raise FileFormatError(f"{path}:{line}: not a JSON object: {text[end : end + 80]!a}") from error
        yield _object(item, f"{path}:{line}")


def _skip(text: str, at: int) -> int:
    while text[at : at + 1].isspace():
        at += 1
    return at


def _object(value: object, where: str) -> Row:
    if not isinstance(value, dict):
        raise FileFormatError(f"{where}: not a JSON object but a {type(value).__name__}")
    return value, where


def _parquet(path: Path) -> Iterator[Row]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        for batch in ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield row, f"{path}: row {number}"
    except (ArrowException, OSError) as error:
        raise FileFormatError(f"{path}: not a Parquet file that can be read ({one_line(error)})") from error


def dataset_rows(folder: Path, name: str) -> Iterator[Row]:
    """The rows of the split `train`, or of the only split, of a folder: saved by `datasets`, or as a data set lies on the hub.

    Raises:
        FileFormatError: `datasets` cannot read it, or it has several splits and none is `train`.
    """
    import datasets

    try:
        if any((folder / file).is_file() for file in ("state.json", "dataset_dict.json")):
            found = datasets.load_from_disk(str(folder))
        else:
            found = datasets.load_dataset(str(folder))
    except Exception as error:  # datasets raises kinds of its own, and those of the file formats' libraries
        raise FileFormatError(f"{name}: not a data set that `datasets` can read ({one_line(error)[:300]})") from error
    splits = {"train": found} if isinstance(found, datasets.Dataset) else dict(found)
    if "train" not in splits and len(splits) != 1:
        raise FileFormatError(f"{name}: has the splits {', '.join(splits)}, and none is 'train'; save one as Parquet and name that")
    table = splits.get("train") or next(iter(splits.values()))
    for column, feature in table.features.items():  # a video's name is wanted, not its frames
        if (plain := _undecoded(feature)) != feature:
            table = table.cast_column(column, plain)
    for number, row in enumerate(table, start=1):
        yield dict(row), f"{name}: row {number}"


def _undecoded(feature: Any) -> Any:
    import datasets

    if isinstance(feature, datasets.Video | datasets.Image | datasets.Audio):
        return type(feature)(decode=False)
    if isinstance(feature, datasets.List):
        return datasets.List(_undecoded(feature.feature), length=feature.length)
    return feature
