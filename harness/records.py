"""What an evaluation writes: one `QuestionRecord` a question, one `Score` a benchmark, as files anyone can read.

Everything that decides or tells (gate, tables, leaderboard, report) reads only these. The module must not know torch,
lmms-eval or any model: a record made elsewhere is as good as ours. Files are JSON Lines (questions) and JSON (score),
validated on reading, so that a tampered or half-written file is an error with a place and not a number.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from harness.escape import visible
from savi.base.digests import sha256_bytes
from savi.base.errors import ExitCode, SaviError
from savi.base.files import write_text_atomic

SCHEMA_VERSION = 1
QUESTIONS_FILE = "questions.jsonl"
SCORE_FILE = "score.json"

Status = Literal["ok", "unparsed", "empty", "degenerate", "judged", "failed"]
"""How an answer was read. `ok`: it names one option beyond doubt. `unparsed`: it names none, several or a rejected one, or lmms-eval's rule
read another. `empty`: no text. `degenerate`: one token repeated. `judged`: an outside judge decided. `failed`: no answer was made (see
`error`)."""

ReadBy = Literal["rule", "guess", "judge"]
"""How lmms-eval came to its credit. `guess`: none of its rules read the answer, so it drew an option. `judge`: none did, so it would have
asked an outside judge; no judge is asked here, which it counts as wrong."""

Data = Literal["", "real", "micro"]
"""What was measured on: the data sets themselves, or their synthetic twins; empty in scores older than the field."""
_OLD_SYNTHETIC = ("micro", "smoke")
"""The scales of synthetic data that scores without `data` may name."""

Key = tuple[str, str, int]
"""What names a question in a benchmark: its task, its `question_id`, and its occurrence index (0 unless the id is repeated)."""

_STRICT = ConfigDict(extra="forbid")
Count = Annotated[int, Field(ge=0)]
Credit = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Checksum = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]


class RecordError(SaviError, ValueError):
    """A record file that cannot be trusted: names the file, the line and what is wrong with it."""

    exit_code = ExitCode.BROKEN


@dataclass(frozen=True, config=_STRICT)
class QuestionRecord:
    """One question, its answer and why it was scored so.

    `upstream` is the credit lmms-eval itself gave (0-1; random guesses included), `strict` the credit of the strict rule
    (unparsed, empty, failed = 0). `question_id` is a hash of the question's content (see `harness.scoring.question_id`), equal
    between runs whatever the order; `video_id` is the cluster of the paired tests.
    """

    benchmark: str
    task: str
    doc_id: Count
    question_id: str
    video_id: str
    prompt: str
    target: str
    answer: str
    parsed: str | None
    upstream: Credit
    strict: Credit
    status: Status
    frames: Count
    """Frames decoded and shown to the model; 0 where decoding failed."""
    video_path: str = ""
    """Relative to the data folder (HF_HOME), for the report's pictures; empty where unknown."""
    error: str | None = None
    read_by: ReadBy = "rule"
    raw: str | None = None
    """The reply before lmms-eval removed its reasoning tags, where that changed it."""
    decoder: str = ""
    """What decoded the video: pyav, decord or torchcodec; empty where it was not read from a file, or before the field was made."""


@dataclass(frozen=True, config=_STRICT)
class Provenance:
    """What a score depends on; two scores are comparable where these are equal (all but `weights` and `model`)."""

    model: str
    """Path or hub id, as given."""
    weights: str
    """SHA-256 over the weight files' content."""
    media: str
    """SHA-256 over the videos' bytes as used by this benchmark."""
    prompts: str
    """SHA-256 over (question_id, prompt) in order."""
    generation: dict[str, str | int | float | bool | None]
    frames: dict[str, str | int | float | bool | None]
    """num_frames, sampling rule, size."""
    versions: dict[str, str]
    """savi, lmms_eval, torch, transformers."""
    seed: int = 0
    reading: dict[str, str | int | float | bool | None] = Field(default_factory=dict)
    """How replies were read: lmms-eval's `reasoning_tags`, and the version of the strict `rule`; empty in scores older than the field."""


@dataclass(frozen=True, config=_STRICT)
class Score:
    """A benchmark's result, percentages 0-100 throughout.

    `upstream_pct` is exactly what lmms-eval reports, brought to 0-100 (MVBench: mean of its 20 subtasks; TempCompass: mean of
    its three rule-scored subtasks); `strict_pct` the same aggregation over `QuestionRecord.strict`. `se_pct` is the standard error of
    `strict_pct`, clustered by video.
    """

    benchmark: str
    scale: str
    n: Count
    n_expected: Count
    videos: Count
    upstream_pct: Percent
    strict_pct: Percent
    se_pct: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    chance_pct: Percent
    subtasks: dict[str, float]
    """Strict percentage of each lmms-eval task in the benchmark."""
    statuses: dict[str, int]
    """Number of records of each `Status`."""
    provenance: Provenance
    wall_s: Annotated[float, Field(ge=0)] = 0.0
    records_sha256: Checksum = ""
    """`records_sha256` of the records this score was made of, which is `sha256sum questions.jsonl`. Set when the score is made; empty in
    scores older than the field. A checksum, no signature: it shows an edited record, not an edited record with an edited checksum."""
    schema_version: int = SCHEMA_VERSION
    data: Data = ""
    limit: Count | None = None
    """At most so many questions of each lmms-eval task were asked for; `n_expected` is the whole set's number all the same."""
    to_judge: Count = 0
    """Answers that lmms-eval would send to an outside judge; `upstream_pct` is lmms-eval's only where no judge answers."""

    @property
    def synthetic(self) -> bool:
        """Whether this was measured on synthetic twins, so that no published number is a reference for it."""
        return self.data == "micro" or (not self.data and self.scale in _OLD_SYNTHETIC)


@dataclass(frozen=True, config=_STRICT)
class Evaluation:
    """A benchmark's score with the records it came from."""

    score: Score
    records: list[QuestionRecord]


_RECORD = TypeAdapter(QuestionRecord)
_SCORE = TypeAdapter(Score)


def _first_error(error: ValidationError) -> str:
    x = error.errors()[0]
    return visible(f"{'.'.join(map(str, x['loc'])) or 'record'}: {x['msg']}", 300)


_RECORD_FIELDS = tuple(f.name for f in fields(QuestionRecord))  # type: ignore[arg-type]
_LEFT_OUT = {"read_by": "rule", "raw": None, "decoder": ""}
"""Fields that are not written at these values, so that records older than the fields keep their bytes and checksums."""


def _line(record: QuestionRecord) -> str:
    row = {name: getattr(record, name) for name in _RECORD_FIELDS}
    kept = {k: v for k, v in row.items() if k not in _LEFT_OUT or v != _LEFT_OUT[k]}
    return json.dumps(kept, ensure_ascii=False) + "\n"


def records_sha256(records: Iterable[QuestionRecord]) -> str:
    """SHA-256 over the records in order, every field of each, as `write_records` writes them."""
    h = hashlib.sha256()
    for r in records:
        h.update(_line(r).encode(errors="surrogatepass"))
    return h.hexdigest()


def prompts_fingerprint(records: Iterable[QuestionRecord]) -> str:
    """SHA-256 over (question_id, prompt) in order; lone surrogates count as they stand in the file."""
    return sha256_bytes("".join(f"{r.question_id}\t{r.prompt}\n" for r in records).encode(errors="surrogatepass"))


def index_records(records: Iterable[QuestionRecord]) -> dict[Key, QuestionRecord]:
    """Records by their `Key`, in task and document order: a question asked twice stays two questions."""
    seen: Counter[tuple[str, str]] = Counter()
    out: dict[Key, QuestionRecord] = {}
    for r in sorted(records, key=lambda r: (r.task, r.doc_id)):
        k = (r.task, r.question_id)
        out[(*k, seen[k])] = r
        seen[k] += 1
    return out


def write_records(path: Path, records: Iterable[QuestionRecord]) -> None:
    """Write questions.jsonl atomically, one record a line, in the given order."""
    write_text_atomic(path, "".join(map(_line, records)))


def read_records(path: Path) -> list[QuestionRecord]:
    """Read questions.jsonl.

    Raises:
        RecordError: a line is no valid record (names file, line and field).
        FileNotFoundError: there is no such file.
    """
    out: list[QuestionRecord] = []
    with path.open("rb") as f:
        for i, line in enumerate(f, 1):
            try:
                out.append(_RECORD.validate_json(line))
            except ValidationError as e:
                raise RecordError(f"{path}:{i}: {_first_error(e)}") from e
    return out


def write_score(path: Path, score: Score) -> None:
    """Write score.json atomically."""
    write_text_atomic(path, json.dumps(asdict(score), indent=1, ensure_ascii=False) + "\n")  # type: ignore[call-overload]


def read_score(path: Path) -> Score:
    """Read score.json.

    Raises:
        RecordError: the file is no valid score.
    """
    try:
        return _SCORE.validate_json(path.read_bytes())
    except ValidationError as e:
        raise RecordError(f"{path}: {_first_error(e)}") from e


def write_evaluation(folder: Path, evaluation: Evaluation) -> None:
    """Write `folder/<benchmark>/{questions.jsonl, score.json}`; the score last, so that its presence means complete.

    A score without the checksum of its records gets it; one that has it keeps it, so that copying an edited evaluation does not hide the
    edit.
    """
    d, score = folder / evaluation.score.benchmark, evaluation.score
    write_records(d / QUESTIONS_FILE, evaluation.records)
    write_score(d / SCORE_FILE, score if score.records_sha256 else replace(score, records_sha256=records_sha256(evaluation.records)))


def evaluation_folder(folder: Path) -> Path:
    """The folder of `<benchmark>/score.json`s that `folder` names: an eval folder, an iteration's folder (`iter-2/`, `base/`) or a run
    folder (its last finished iteration is taken).

    Raises:
        RecordError: nothing of the kind there.
    """
    stages = [p for p in folder.glob("iter-*/eval") if p.parent.name.removeprefix("iter-").isdecimal()]
    its = sorted(stages, key=lambda p: int(p.parent.name.removeprefix("iter-")), reverse=True)
    for d in (folder, folder / "eval", *its, folder / "base" / "eval"):
        if any(d.glob(f"*/{SCORE_FILE}")):
            return d
    raise RecordError(f"{folder}: no evaluation here (looked for <benchmark>/{SCORE_FILE}, eval/, iter-N/eval/, base/eval/)")


def read_evaluations(folder: Path) -> dict[str, Evaluation]:
    """Read every `<benchmark>/score.json` with its records below the `evaluation_folder` that `folder` names, by benchmark name.

    Raises:
        RecordError: nothing readable there, or a file that cannot be trusted.
    """
    scores = sorted(evaluation_folder(folder).glob(f"*/{SCORE_FILE}"))
    return {s.parent.name: Evaluation(read_score(s), read_records(s.parent / QUESTIONS_FILE)) for s in scores}
