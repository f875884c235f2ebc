"""The form of `manifest.yaml`, which says what a folder of published tables holds: columns, question counts, scales, claims, sources.

pydantic models and nothing else; `published` reads the files.
"""

from __future__ import annotations

import math
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Variant(_Model):
    """Another question count that a benchmark's number may rest on, where the source does not say which."""

    n: int = Field(gt=0)
    meaning: str


class BenchmarkInfo(_Model):
    """What a column rests on: number of questions and videos, and whether a score is a share of n right answers."""

    title: str
    n: int = Field(gt=0)
    videos: int | None = Field(default=None, gt=0)
    source: str
    granularity: Literal["single", "mean", "unknown"] = "single"
    """single: right answers / n. mean: unweighted mean of subtasks. unknown: aggregation undocumented."""
    subtasks: tuple[int, ...] = ()
    """Questions of each subtask of a mean; equal ones where none are given, so that the mean is a multiple of 1/n."""
    variants: tuple[Variant, ...] = ()
    undocumented: str = ""
    """What is not documented about how the number came about; becomes a finding of its own."""

    @property
    def grid(self) -> int:
        """The score is a multiple of 1 / grid: n, or for a mean of m unequal subtasks m times the least common multiple of their sizes."""
        return len(self.subtasks) * math.lcm(*self.subtasks) if len(set(self.subtasks)) > 1 else self.n

    @model_validator(mode="after")
    def _subtasks_add_up(self) -> BenchmarkInfo:
        if self.subtasks and (self.granularity != "mean" or min(self.subtasks) < 1 or sum(self.subtasks) != self.n):
            raise ValueError(f"subtasks {list(self.subtasks)} belong to granularity mean and have n = {self.n} questions together")
        return self


class Exclusion(_Model):
    """Rows whose numbers may rest on other questions: no check that needs n speaks of them, and each says this reason."""

    column: str
    value: str
    reason: str


class GapRow(_Model):
    """A row that states the mean of all other rows minus one reference row."""

    label: str
    reference: str


class Gain(_Model):
    """A candidate row claimed to be better than a baseline row of the same table."""

    candidate: str
    baseline: str
    family: str = ""
    """Gains of one family are corrected together (Holm); empty: this gain's own benchmarks are the family."""


class TableInfo(_Model):
    """One CSV file and what is in it."""

    file: str
    title: str
    label: str
    """Column with the rows' names."""
    kind: Literal["accuracy", "counts"]
    decimals: int = Field(default=1, ge=0, le=6)
    columns: dict[str, str] = {}
    """Numeric column -> benchmark it measures; columns of no benchmark map to ''."""
    text_columns: tuple[str, ...] = ()
    group: str = ""
    """Text column that names each row's group; empty where rows have none."""
    scale: str | None = None
    """Scale of every row (8b, ...), for standing beside measured rows; None: no row does, but those in `row_scales`."""
    row_scales: dict[str, str] = {}
    exclusions: tuple[Exclusion, ...] = ()
    total_row: str | None = None
    gap_row: GapRow | None = None
    gains: tuple[Gain, ...] = ()


class CellRef(_Model):
    """One cell of one table."""

    table: str
    row: str
    column: str


class _Claim(_Model):
    id: str
    text: str
    """What is stated, in our words with the source's numbers."""
    source: str


class ValueClaim(_Claim):
    """The text restates a table's value."""

    kind: Literal["value"]
    cell: CellRef
    value: Decimal


class DifferenceClaim(_Claim):
    """The text states cell minus other."""

    kind: Literal["difference"]
    cell: CellRef
    other: CellRef
    value: Decimal
    unit: Literal["points", "percent"] = "points"
    """What the text calls the difference; a difference of percentages called `%` is noted."""


class BestClaim(_Claim):
    """The text states that a row leads a column (`among`: only these rows; all by default)."""

    kind: Literal["best"]
    cell: CellRef
    among: tuple[str, ...] = ()


class AboveClaim(_Claim):
    """The text states that one row is above another in all the named columns (`comparable`: or not clearly below)."""

    kind: Literal["above"]
    table: str
    row: str
    other: str
    columns: tuple[str, ...]
    comparable: bool = False


class SameClaim(_Claim):
    """Two tables give the same rows, so shared columns must agree."""

    kind: Literal["same"]
    table: str
    row: str
    other_table: str
    other_row: str


Claim = Annotated[ValueClaim | DifferenceClaim | BestClaim | AboveClaim | SameClaim, Field(discriminator="kind")]


class ExternalInfo(_Model):
    """A CSV file of measurements by others, and which published row each of their models is."""

    file: str
    title: str
    rows: dict[str, str] = {}
    """Model as the file names it -> row of the published tables; other models' measurements are shown nowhere."""


class External(_Model):
    """One measurement by others (a line of the CSV file). Empty: not stated."""

    model: str
    benchmark: str
    value: Decimal = Field(ge=0, le=100)
    grade: Literal["same protocol", "same questions", "other questions"]
    """How far it can be compared with the published column; measurements on other questions are named and enter no arithmetic."""
    split: str
    n: str
    frames: str
    prompt: str
    harness: str
    measured_by: str = Field(min_length=1)
    source: str = Field(min_length=1)
    note: str


class Manifest(_Model):
    """What manifest.yaml holds."""

    title: str
    source: str
    link: str | None = None
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    benchmarks: dict[str, BenchmarkInfo]
    tables: tuple[TableInfo, ...]
    claims: tuple[Claim, ...] = ()
    external: ExternalInfo | None = None
    missing: tuple[str, ...] = ()
    """What is known to be left out, and why."""

    @model_validator(mode="after")
    def _names_exist(self) -> Manifest:
        files = [t.file for t in self.tables]
        if len(set(files)) != len(files):
            raise ValueError("a file is listed twice in tables")
        for t in self.tables:
            unknown = sorted({b for b in t.columns.values() if b and b not in self.benchmarks})
            if unknown:
                raise ValueError(f"table {t.file}: columns measure {unknown}, which benchmarks does not list")
            named = sorted({*(x.column for x in t.exclusions), *([t.group] if t.group else [])} - set(t.text_columns))
            if named:
                raise ValueError(f"table {t.file}: exclusions or group name {named}, which text_columns does not list")
            if Path(t.file).name != t.file:
                raise ValueError(f"table file {t.file!r} must be a plain file name next to the manifest")
        ids = [c.id for c in self.claims]
        if len(set(ids)) != len(ids):
            raise ValueError("two claims share an id")
        return self
