"""What is kept of a study: a file of a few kB for each run, and one that says what was asked. Small enough for git, enough for every table.

A run's answers to all questions are bits (right or wrong by the strict rule), packed into text, one string a stage; what the questions were
(benchmark, task, video) stands once, in questions.json. The module knows evaluations, and no run's folder.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from benchmarks.catalog import CATALOG, in_mean
from harness.records import Evaluation, QuestionRecord, index_records
from harness.stats import Design, Floats, combined, design
from savi.base.digests import sha256_json
from savi.base.errors import ExitCode, SaviError, UsageError
from savi.base.files import write_text_atomic

SCHEMA = 1
QUESTIONS_FILE = "questions.json"
RECORDS_FOLDER = "records"
T = TypeVar("T", bound=BaseModel)
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class RecordsError(SaviError, ValueError):
    """Records that cannot be used: names the file and what is wrong with it."""

    exit_code = ExitCode.BROKEN


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Asked(_Model):
    """The questions of one benchmark, in the order of the bits: [task, how many], and the number of each one's video."""

    tasks: list[tuple[str, Annotated[int, Field(ge=1)]]]
    videos: str
    ids: Digest
    """SHA-256 over the questions' ids in order."""

    @property
    def n(self) -> int:
        return sum(count for _, count in self.tasks)

    @property
    def video_numbers(self) -> list[int]:
        return [int(word) for word in self.videos.split()]

    @model_validator(mode="after")
    def _whole(self) -> Asked:
        if len(self.video_numbers) != self.n:
            raise ValueError(f"{len(self.video_numbers)} videos for {self.n} questions")
        return self


class Questions(_Model):
    """All questions that every run of a study answered."""

    schema_version: int = SCHEMA
    benchmarks: dict[str, Asked]

    @model_validator(mode="after")
    def _known(self) -> Questions:
        if unknown := set(self.benchmarks) - set(CATALOG):
            raise ValueError(f"unknown benchmark {sorted(unknown)[0]!r}")
        return self

    @property
    def digest(self) -> str:
        return sha256_json(self.model_dump(mode="json"))

    @property
    def n(self) -> int:
        return sum(asked.n for asked in self.benchmarks.values())

    @cached_property
    def design(self) -> Design:
        """Weights, videos and tasks of all questions: the unweighted mean over the benchmarks."""
        return combined([self.design_of(name) for name in self.benchmarks])

    def design_of(self, name: str) -> Design:
        """The same of one benchmark."""
        asked = self.benchmarks[name]
        tasks = [task for task, count in asked.tasks for _ in range(count)]
        return design(np.array(asked.video_numbers, dtype=np.int64), tasks)

    def part(self, name: str) -> slice:
        """Where a benchmark's questions are among all."""
        start = 0
        for other, asked in self.benchmarks.items():
            if other == name:
                return slice(start, start + asked.n)
            start += asked.n
        raise KeyError(name)


class Record(_Model):
    """One run: which it was, what it answered after each iteration (stage 0: the base), and what its pairs were worth."""

    schema_version: int = SCHEMA
    scale: str
    base: str
    base_fingerprint: str
    seed: int
    variant: str
    settings: Digest
    """SHA-256 over the settings that decide the result (`reproduce.study.plan.settings_digest`)."""
    frozen: str
    """SHA-256 of the freezing file that the run was made under; empty where there was none."""
    questions: Digest
    stages: Annotated[list[str], Field(min_length=1)]
    pairs: list[dict[str, float | int | None]]
    wall_s: Annotated[float, Field(ge=0)]
    versions: dict[str, str]
    commit: str = ""

    @property
    def name(self) -> str:
        """Of the file and of the run's folder."""
        return f"{self.base}-seed{self.seed}-{self.variant}"

    @property
    def iterations(self) -> int:
        return len(self.stages) - 1

    @property
    def gap(self) -> float | None:
        """How much more of its own questions the base gets right after its critique than at first, in points; None where it is unknown."""
        first: Mapping[str, Any] = self.pairs[0] if self.pairs else {}
        before, after = first.get("initial_pct"), first.get("revised_pct")
        return None if before is None or after is None else float(after) - float(before)

    def answers(self, stage: int, n: int) -> Floats:
        """0 or 1 for each of the n questions."""
        return unpack(self.stages[stage], n)


def pack(values: Sequence[float]) -> str:
    """0s and 1s as text.

    Raises:
        RecordsError: a credit is neither.
    """
    found = np.asarray(values, dtype=np.float64)
    if not np.isin(found, (0.0, 1.0)).all():
        raise RecordsError("a question's strict credit is neither 0 nor 1: a study's records hold bits only")
    return base64.b64encode(np.packbits(found.astype(np.uint8)).tobytes()).decode("ascii")


def unpack(text: str, n: int) -> Floats:
    """What was packed, as floats [n].

    Raises:
        RecordsError: the text holds another number of answers, or none.
    """
    try:
        raw = np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8)
    except (binascii.Error, ValueError) as error:
        raise RecordsError(f"answers that cannot be unpacked ({error})") from error
    if len(raw) != (n + 7) // 8:
        raise RecordsError(f"answers to {8 * len(raw) - 7} to {8 * len(raw)} questions, where {n} were asked")
    return np.unpackbits(raw, count=n).astype(np.float64)


def questions_of(found: Mapping[str, Evaluation]) -> Questions:
    """What an evaluation asked, benchmarks in the catalog's order."""
    return Questions(benchmarks={name: _asked(_ordered(found[name])) for name in _names(found)})


def answers_of(found: Mapping[str, Evaluation]) -> str:
    """What an evaluation answered, packed in the same order."""
    return pack([record.strict for name in _names(found) for record in _ordered(found[name])])


def _names(found: Mapping[str, Evaluation]) -> list[str]:
    averaged = set(in_mean(found))
    return [name for name in CATALOG if name in averaged]


def _ordered(evaluation: Evaluation) -> list[QuestionRecord]:
    return list(index_records(evaluation.records).values())


def _asked(records: Sequence[QuestionRecord]) -> Asked:
    videos = {video: i for i, video in enumerate(dict.fromkeys(r.video_id for r in records))}
    tasks = list(dict.fromkeys(r.task for r in records))
    counts = [(task, sum(r.task == task for r in records)) for task in tasks]
    ids = sha256_json([r.question_id for r in records])
    return Asked(tasks=counts, videos=" ".join(str(videos[r.video_id]) for r in records), ids=ids)


def record_path(folder: Path, name: str) -> Path:
    """Where a run's record is kept."""
    return folder / RECORDS_FOLDER / f"{name}.json"


def write_record(folder: Path, record: Record, questions: Questions) -> Path:
    """Keep a run, and what was asked where that is not kept yet.

    Raises:
        RecordsError: other questions were asked of the runs that are kept there.
    """
    path = folder / QUESTIONS_FILE
    if path.exists():
        if read_questions(folder).digest != questions.digest:
            raise RecordsError(f"{path}: other questions than run {record.name} was asked; keep it in another folder (--keep)")
    else:
        _write(path, questions)
    return _write(record_path(folder, record.name), record)


def _write(path: Path, model: BaseModel) -> Path:
    return write_text_atomic(path, json.dumps(model.model_dump(mode="json"), indent=0, ensure_ascii=False, allow_nan=False) + "\n")


def read_questions(folder: Path) -> Questions:
    """questions.json.

    Raises:
        UsageError: it is missing.
        RecordsError: it is damaged.
    """
    return _read(folder / QUESTIONS_FILE, Questions)


def read_record(path: Path) -> Record:
    """One run's record.

    Raises:
        UsageError: it is missing.
        RecordsError: it is damaged.
    """
    return _read(path, Record)


def read_records(folder: Path) -> tuple[Questions, list[Record]]:
    """What was asked and every run's record, in the order of their names.

    Raises:
        UsageError: there is none.
        RecordsError: one is damaged, or of other questions or another scale than the rest.
    """
    questions = read_questions(folder)
    paths = sorted((folder / RECORDS_FOLDER).glob("*.json"))
    if not paths:
        raise UsageError(f"{folder / RECORDS_FOLDER}: no record here; run python -m reproduce study first")
    found = [read_record(path) for path in paths]
    for path, record in zip(paths, found, strict=True):
        if record.questions != questions.digest:
            raise RecordsError(f"{path}: was asked other questions than {folder / QUESTIONS_FILE} has; move it away")
        if record.scale != found[0].scale:
            raise RecordsError(f"{path}: scale {record.scale}, and {paths[0].name} is of scale {found[0].scale}; keep them apart")
        if path.stem != record.name:
            raise RecordsError(f"{path}: holds run {record.name}; rename it, or make it again")
        try:
            for text in record.stages:
                unpack(text, questions.n)
        except RecordsError as error:
            raise RecordsError(f"{path}: {error}") from error
    return questions, found


def _read(path: Path, kind: type[T]) -> T:
    try:
        found = kind.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file; name the folder that a study keeps its records in") from error
    except OSError as error:
        raise RecordsError(f"{path}: {error.strerror or error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise RecordsError(f"{path}: {where + ': ' if where else ''}{first['msg']}") from error
    if getattr(found, "schema_version", SCHEMA) != SCHEMA:
        raise RecordsError(f"{path}: of another schema version than {SCHEMA}")
    return found
