"""Published numbers as data: a folder of CSV tables with a `manifest.yaml` that says what they are.

The manifest names, for every table, its columns, how many questions each rests on, which rows belong to which scale, and what the
text claims of them, each with its source. Nothing here knows which paper it is; values are exact decimals, as printed.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from harness.tables.manifest import External, Manifest, TableInfo
from savi.base.errors import ExitCode, SaviError, one_line

MANIFEST_FILE = "manifest.yaml"
PAPER_DIR = Path(__file__).resolve().parents[2] / "results" / "paper"
"""This project's folder of published tables."""
MAX_FILE_BYTES = 5_000_000


class PublishedError(SaviError, ValueError):
    """A folder of published tables that cannot be read: names the file, the place and the fix."""

    exit_code = ExitCode.USAGE


class PublishedFileError(PublishedError):
    """A file among them that is not what its manifest says."""

    exit_code = ExitCode.BROKEN


@dataclass(frozen=True)
class PublishedTable:
    """A table as published: exact decimals by (row position, column); None where not reported.

    Rows are by position since a name may come twice (a row repeated under two headings).
    """

    info: TableInfo
    labels: tuple[str, ...]
    values: tuple[Mapping[str, Decimal | None], ...]
    texts: tuple[Mapping[str, str], ...]

    @property
    def numeric(self) -> tuple[str, ...]:
        """Numeric columns in the file's order."""
        return tuple(self.info.columns)

    def position(self, label: str) -> int:
        """Position of the first row of that name.

        Raises:
            PublishedError: no such row.
        """
        if label not in self.labels:
            raise PublishedError(f"{self.info.file}: no row {label!r} in column {self.info.label!r}; there are {sorted(set(self.labels))}")
        return self.labels.index(label)

    def scale_of(self, label: str) -> str | None:
        """The scale a row belongs to, None where the table's rows stand beside nothing measured."""
        return self.info.row_scales.get(label, self.info.scale)

    def by_benchmark(self, position: int) -> dict[str, float]:
        """A row as {benchmark: value}; what is not reported is left out."""
        return {self.info.columns[c]: float(v) for c, v in self.values[position].items() if v is not None and self.info.columns[c]}

    def excluded(self, position: int) -> str:
        """Why a row's numbers may rest on other questions; empty where nothing says so."""
        return next((x.reason for x in self.info.exclusions if self.texts[position].get(x.column) == x.value), "")

    def value(self, label: str, column: str) -> Decimal | None:
        """A cell.

        Raises:
            PublishedError: no such row or column.
        """
        if column not in self.info.columns:
            raise PublishedError(f"{self.info.file}: no numeric column {column!r}; there are {list(self.info.columns)}")
        return self.values[self.position(label)][column]


@dataclass(frozen=True)
class Published:
    """A folder of published tables."""

    folder: Path
    manifest: Manifest
    tables: Mapping[str, PublishedTable]
    """By file name."""
    external: tuple[External, ...] = ()
    """Measurements by others."""

    def table(self, file: str) -> PublishedTable:
        """The table of that file name.

        Raises:
            PublishedError: the manifest lists no such file.
        """
        if file not in self.tables:
            raise PublishedError(f"{self.folder / MANIFEST_FILE}: no table {file!r}; it lists {sorted(self.tables)}")
        return self.tables[file]


@dataclass(frozen=True)
class ScaleRows:
    """The two published rows that belong to a scale: the base model's and the aligned model's, in one table."""

    table: PublishedTable
    base: str
    aligned: str | None
    """None where only the base is reported."""

    def values(self, label: str | None) -> dict[str, float]:
        """A row as {benchmark: percent}; empty for None."""
        return self.table.by_benchmark(self.table.position(label)) if label is not None else {}


def widest_first(published: Published) -> list[PublishedTable]:
    """The tables, those of most columns first."""
    return sorted(published.tables.values(), key=lambda t: -len(t.info.columns))


def scale_rows(published: Published, scale: str) -> ScaleRows | None:
    """The pair of rows of a scale: the first claimed gain between two of its rows, in the table of most columns; without one, a row that
    is alone at its scale is its base. None where nothing is published at that scale, or nothing says which of the rows is the base."""
    lone: list[tuple[PublishedTable, str]] = []
    for t in widest_first(published):
        here = {label for label in t.labels if t.scale_of(label) == scale}
        for g in t.info.gains:
            if {g.candidate, g.baseline} <= here:
                return ScaleRows(t, g.baseline, g.candidate)
        lone += [(t, label) for label in here]
    return ScaleRows(*lone[0], None) if len(lone) == 1 else None


def base_rows(published: Published, base: str) -> ScaleRows:
    """The pair of rows that starts from the row `base`: the claimed gain over it, in the table of most columns; without a gain, it alone.

    Raises:
        PublishedError: no table has such a row.
    """
    having = [t for t in widest_first(published) if base in t.labels]
    if not having:
        raise PublishedError(f"{published.folder / MANIFEST_FILE}: no table has a row {base!r}")
    gains = ((t, g.candidate) for t in having for g in t.info.gains if g.baseline == base)
    table, aligned = next(gains, (having[0], None))
    return ScaleRows(table, base, aligned)


def load_published(folder: Path = PAPER_DIR) -> Published:
    """Read `folder/manifest.yaml` and every CSV file it lists.

    Raises:
        PublishedError: no manifest there.
        PublishedFileError: a file is missing, or not as the manifest says; the message names the place.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise PublishedError(
            f"{path}: not there. It says which column measures which benchmark, on how many questions; "
            f"results/paper/{MANIFEST_FILE} of this project is an example"
        )
    try:
        raw = yaml.safe_load(_read(path))
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        raise PublishedFileError(f"{path}: no valid YAML: {one_line(e)}") from e
    try:
        manifest = Manifest.model_validate(raw)
    except ValidationError as e:
        first = e.errors()[0]
        raise PublishedFileError(f"{path}: {'.'.join(map(str, first['loc'])) or 'manifest'}: {first['msg']}") from e
    tables = {t.file: _read_table(folder / t.file, t) for t in manifest.tables}
    return Published(folder, manifest, tables, _read_external(folder, manifest) if manifest.external else ())


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise PublishedFileError(f"{path}: {path.stat().st_size:,} bytes; a published table has at most {MAX_FILE_BYTES:,}")
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as e:
        raise PublishedFileError(f"{path}: not there, though {MANIFEST_FILE} lists it") from e
    except (OSError, UnicodeDecodeError) as e:
        raise PublishedFileError(f"{path}: cannot be read as UTF-8 text: {e}") from e


_NUMBER = re.compile(r"[+-]?\d{1,12}(\.\d{1,12})?")


def _read_csv(path: Path, wanted: set[str]) -> list[dict[str, Any]]:
    """The rows of a CSV file with exactly these columns; strict where pandas would fill up or cut a row of another length."""
    try:
        reader = csv.DictReader(io.StringIO(_read(path)), strict=True)
        header = list(reader.fieldnames or ())
        rows = list(reader)
    except csv.Error as e:
        raise PublishedFileError(f"{path}: no valid CSV: {e}") from e
    if set(header) != wanted or len(header) != len(wanted):
        raise PublishedFileError(f"{path}: columns are {header}, the manifest says {sorted(wanted)}")
    if not rows:
        raise PublishedFileError(f"{path}: no rows")
    for i, row in enumerate(rows, 2):
        if None in row or any(v is None for v in row.values()):
            raise PublishedFileError(f"{path}:{i}: not as many fields as the header has ({len(header)})")
    return rows


def _read_table(path: Path, info: TableInfo) -> PublishedTable:
    rows = _read_csv(path, {info.label, *info.columns, *info.text_columns})
    return PublishedTable(
        info,
        tuple(row[info.label] for row in rows),
        tuple({c: _number(path, i, c, row[c], info) for c in info.columns} for i, row in enumerate(rows, 2)),
        tuple({c: row[c] for c in info.text_columns} for row in rows),
    )


def _read_external(folder: Path, manifest: Manifest) -> tuple[External, ...]:
    path = folder / (manifest.external.file if manifest.external else "")
    out = []
    for i, row in enumerate(_read_csv(path, set(External.model_fields)), 2):
        try:
            out.append(External.model_validate(row))
        except ValidationError as e:
            raise PublishedFileError(f"{path}:{i}: {e.errors()[0]['loc'][0]}: {e.errors()[0]['msg']}") from e
        if out[-1].benchmark not in manifest.benchmarks:
            raise PublishedFileError(f"{path}:{i}: benchmark {out[-1].benchmark!r}; {MANIFEST_FILE} lists {sorted(manifest.benchmarks)}")
    return tuple(out)


def _number(path: Path, line: int, column: str, text: str, info: TableInfo) -> Decimal | None:
    text = text.strip()
    if not text:
        return None
    try:
        if not _NUMBER.fullmatch(text):
            raise InvalidOperation
        value = Decimal(text)
    except InvalidOperation as e:
        raise PublishedFileError(f"{path}:{line}, column {column!r}: {text[:60]!r} is no number (empty means not reported)") from e
    decimals = -int(value.as_tuple().exponent)
    if decimals > info.decimals:
        raise PublishedFileError(f"{path}:{line}, column {column!r}: {text} has {decimals} decimals, the manifest says {info.decimals}")
    is_gap = info.gap_row is not None  # a row of gaps holds differences, which may be negative
    if info.kind == "accuracy" and not is_gap and not 0 <= value <= 100:
        raise PublishedFileError(f"{path}:{line}, column {column!r}: {text} is no percentage")
    if info.kind == "counts" and (value < 0 or value != int(value)):
        raise PublishedFileError(f"{path}:{line}, column {column!r}: {text} is no count")
    return value
