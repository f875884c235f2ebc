"""What CANDIDATE and --against may name, and gate.json: the files around the gate.

A run folder (ours), a reference file (a run's records in one file, to be committed), a file of published scores, or `paper` (the numbers in
results/paper). Every file is validated on reading; one that cannot be trusted is an error with a place, never a number.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from harness.gate.decision import GateResult, GateUsageError
from harness.gate.stock import has_stock, load_stock
from harness.records import SCORE_FILE, Evaluation, RecordError, read_evaluations
from harness.tables.published import PAPER_DIR, PublishedError, load_published, scale_rows, widest_first
from savi.base.files import write_bytes_atomic, write_text_atomic

REFERENCE_SCHEMA = 1
_EVALUATIONS = TypeAdapter(dict[str, Evaluation])
_INNER = ("eval", "model")


class PublishedFile(BaseModel):
    """A file of published scores (percent, 0-100), one number a benchmark, and those of the model it started from."""

    model_config = ConfigDict(extra="forbid")

    kind: str = Field(pattern="^published$")
    source: str = Field(min_length=3)
    scores: dict[str, float]
    base: dict[str, float] = {}


@dataclass(frozen=True)
class Reference:
    """What a candidate is compared with: another run's `evaluations`, or `published` scores (with `published_base`)."""

    name: str
    evaluations: dict[str, Evaluation] | None = None
    published: dict[str, float] | None = None
    published_base: dict[str, float] | None = None


def run_name(path: Path) -> str:
    """Name of the run a folder belongs to: the first folder upwards that is no eval, base or iter-N."""
    p = path.resolve()
    while p.name in (*_INNER, "base") or p.name.startswith("iter-"):
        p = p.parent
    return p.name.removesuffix(".gz").removesuffix(".json")


def is_base(path: Path) -> bool:
    """Whether a path names a run's base evaluation (`RUN/base` or `RUN/base/eval`)."""
    p = path.resolve()
    return p.name == "base" or (p.name == "eval" and p.parent.name == "base")


def load_run(path: Path) -> dict[str, Evaluation]:
    """Evaluations of a run folder, a reference file, or a folder of stock lmms-eval results with samples.

    Raises:
        GateUsageError: there is nothing of the kind (exit 2).
        RecordError: there is, but it cannot be trusted (exit 4).
    """
    if not path.exists():
        raise GateUsageError(f"{path}: no such file or folder")
    if path.is_file():
        return load_reference(path)
    if not any(path.rglob(SCORE_FILE)):
        if has_stock(path):
            return load_stock(path)
        raise GateUsageError(f"{path}: no evaluation here (looked for <benchmark>/{SCORE_FILE}, and for *_results.json of lmms-eval)")
    try:
        return read_evaluations(path)
    except FileNotFoundError as e:
        raise RecordError(f"{e.filename}: missing beside its {SCORE_FILE}; the evaluation is not whole") from e
    except UnicodeDecodeError as e:
        raise RecordError(f"{path}: a record file is not UTF-8 ({e.reason} at byte {e.start})") from e


def base_of(path: Path) -> dict[str, Evaluation] | None:
    """The base evaluation of the run that `path` lies in; None where there is none."""
    for p in (path, *list(path.resolve().parents)[:3]):
        if any((p / "base" / "eval").glob(f"*/{SCORE_FILE}")):
            return load_run(p / "base" / "eval")
    return None


def load_against(against: str, *, scale: str, row: str | None = None, base: bool = False) -> Reference:
    """What `--against` names: `paper`, a run folder, a reference file or a published-scores file. `base`: the candidate is a base run.

    Raises:
        GateUsageError: nothing of the kind there, or no paper number for this scale.
        RecordError: a file there that cannot be trusted.
    """
    if against == "paper":
        return paper_reference(scale, row=row, base=base)
    path = Path(against)
    if path.is_file():
        raw = _read_json(path)
        if isinstance(raw, dict) and raw.get("kind") == "published":
            try:
                f = PublishedFile.model_validate(raw)
            except ValidationError as e:
                raise RecordError(f"{path}: {'.'.join(map(str, e.errors()[0]['loc']))}: {e.errors()[0]['msg']}") from e
            return Reference(f"{path.name} ({f.source})", published=f.scores, published_base=f.base or None)
    return Reference(run_name(path), evaluations=load_run(path))


def paper_reference(scale: str, *, row: str | None = None, base: bool = False, folder: Path = PAPER_DIR) -> Reference:
    """The published scores for a scale, from the table with most benchmarks: the row of the claimed gain, or (`base`) the one it started
    from.

    `row` names another row of that scale.

    Raises:
        GateUsageError: a scale without published numbers, or a row that does not exist.
    """
    try:
        published = load_published(folder)
        rows = {label: t for t in reversed(widest_first(published)) for label in t.labels if t.scale_of(label) == scale}
        pair = scale_rows(published, scale)
        wanted = row or (pair and (pair.base if base else pair.aligned))
        if wanted not in rows:
            if not rows:
                raise GateUsageError(f"scale {scale!r} has no published rows; compare with another run of the same scale: --against RUN")
            raise GateUsageError(f"scale {scale!r}: no published {wanted or 'candidate'}; name a row of it with --row: {', '.join(rows)}")
        scores = rows[wanted].by_benchmark(rows[wanted].position(wanted))
        start = pair.values(pair.base) if pair and wanted == pair.aligned else None
    except PublishedError as e:
        raise GateUsageError(str(e)) from e
    return Reference(f"paper: {wanted}", published=scores, published_base=start)


def save_reference(path: Path, evaluations: Mapping[str, Evaluation], *, name: str) -> None:
    """Write a run's scores and records into one file (gzip where the name ends in .gz), small enough to commit."""
    body = {"kind": "reference", "schema": REFERENCE_SCHEMA, "name": name, "evaluations": {k: asdict(v) for k, v in evaluations.items()}}  # type: ignore[call-overload]
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    if path.suffix == ".gz":
        write_bytes_atomic(path, gzip.compress(text.encode(), mtime=0))  # no time stamp: the same run gives the same bytes
    else:
        write_text_atomic(path, text)


def load_reference(path: Path) -> dict[str, Evaluation]:
    """Read what `save_reference` wrote.

    Raises:
        RecordError: it is no valid reference file.
    """
    raw = _read_json(path)
    if not isinstance(raw, dict) or raw.get("kind") != "reference" or raw.get("schema") != REFERENCE_SCHEMA:
        raise RecordError(f"{path}: not a reference file of schema {REFERENCE_SCHEMA} (made by `python -m harness reference`)")
    try:
        return _EVALUATIONS.validate_python(raw.get("evaluations"))
    except ValidationError as e:
        first = e.errors()[0]
        raise RecordError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from e


def _read_json(path: Path) -> object:
    try:
        data = path.read_bytes()
        return json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as e:
        raise RecordError(f"{path}: cannot be read as JSON ({e})") from e


def write_gates(path: Path, results: Mapping[str, GateResult]) -> None:
    """Write gate.json: gate results by what they compare with (`previous`, `base`, ...)."""
    write_text_atomic(path, json.dumps({k: json.loads(r.to_json()) for k, r in results.items()}, indent=1, ensure_ascii=False) + "\n")
