"""What a result was made from, and whether one that is on disk already may stand for the one that is asked for.

The inputs are a file of their own and no `savi.base.stamp`: the score beside it holds the checksum of the records already, and results of
earlier versions must stay readable.

A finished result is never replaced in silence: where another one lies in the folder, both are named and nothing is touched. Knows no model
and no lmms-eval.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.benchmark import Benchmark
from benchmarks.data.layout import MediaIndex
from benchmarks.data.layout import fingerprint as data_fingerprint
from harness.escape import visible
from harness.integrity import edited
from harness.reading import READING_VERSION
from harness.records import QUESTIONS_FILE, SCORE_FILE, Evaluation, RecordError, read_records, read_score
from harness.run.journal import begun_from, delete_journals
from savi.base.digests import sha256_bytes
from savi.base.errors import UsageError

INPUTS_FILE = "inputs.json"
SMALL_MAX_NEW_TOKENS = 48
"""ours: the micro model's longest reply, a chain of facts and an answer, has about 30 tokens."""
PAPER_MAX_NEW_TOKENS = 1024
"""release: lmms-eval's internvl2 adapter, where a task sets no limit of its own (Perception Test, TempCompass, NExT-QA)."""
_PACKAGES = {"savi": "videosavi-harness", "lmms_eval": "lmms_eval", "torch": "torch", "transformers": "transformers"}
_ANSWERING = ("savi/engine/**/*.py", "savi/families/**/*.py", "savi/video/**/*.py", "harness/run/lmms_model.py", "harness/run/requests.py")
"""Where an answer is made, from a video's bytes and a prompt to its text."""


class OtherResultError(UsageError):
    """The folder holds a finished result that was made from something else; names both and the fix."""


@dataclass(frozen=True)
class Plan:
    """What a run depends on beside the benchmark."""

    name: str
    weights: str
    hf_home: Path
    out: Path
    num_frames: int
    scale: str
    limit: int | None
    seed: int
    max_new_tokens: int


def versions() -> dict[str, str]:
    """Versions a score depends on."""
    return {name: _version(distribution) for name, distribution in _PACKAGES.items()}


@cache
def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "source"


def answering_code(root: Path) -> list[Path]:
    """The modules between a video and its answer."""
    return sorted(p for pattern in _ANSWERING for p in root.glob(pattern))


@cache
def made_by() -> dict[str, str]:
    """What makes answers in this installation: versions, and a digest of the code between a video and its answer."""
    root = Path(__file__).resolve().parents[2]
    code = sha256_bytes(b"".join(p.relative_to(root).as_posix().encode() + p.read_bytes() for p in answering_code(root)))
    readers = {name: v for name in ("decord", "av") if (v := _version(name)) != "source"}
    return {**versions(), **readers, "code": code[:16]}


def inputs(plan: Plan, benchmark: Benchmark) -> dict[str, Any]:
    """What a finished benchmark is compared by, known without importing lmms-eval or loading the model. Versions of this package do not
    count."""
    return {
        "weights": plan.weights,
        "data": data_fingerprint(plan.hf_home, benchmark),
        "num_frames": plan.num_frames,
        "scale": plan.scale,
        "limit": plan.limit,
        "seed": plan.seed,
        "max_new_tokens": plan.max_new_tokens,
        "reading": READING_VERSION,
        "versions": {k: v for k, v in versions().items() if k != "savi"},
    }


def finished(
    plan: Plan, benchmark: Benchmark, wanted: Mapping[str, Any], media: MediaIndex, *, replace: bool, tell: Callable[[str], None]
) -> Evaluation | None:
    """A benchmark that is complete on disk, made from the same; None where there is none, or where it may be replaced.

    A result that is damaged or was edited is set aside, with a sentence to `tell`, and measured again.

    Raises:
        OtherResultError: a result made from something else lies there, finished or begun, and `replace` is not set.
    """
    folder = plan.out / benchmark.name
    if not (folder / SCORE_FILE).exists():
        if not replace:
            _refuse_begun(plan, folder, wanted)
        return None
    try:
        found = Evaluation(read_score(folder / SCORE_FILE), read_records(folder / QUESTIONS_FILE))
        damage = edited(found)
    except (FileNotFoundError, RecordError) as e:
        damage = str(e)
    if damage is not None:
        tell(f"{damage}; kept as {', '.join(_set_aside(folder))}, measured again")
        return None
    differences = _differences(wanted, _read_inputs(folder / INPUTS_FILE))
    if media.fingerprint(benchmark, (r.video_path for r in found.records)) != found.score.provenance.media:
        differences.append("videos: other bytes")
    if differences and not replace:
        raise OtherResultError(
            f"{folder} holds a finished result of {found.score.provenance.model} ({found.score.n:,} questions); what is asked for, "
            f"{plan.name}, differs in {'; '.join(differences)}. Give another --out, or --replace to lose that result"
        )
    if differences:
        return None
    delete_journals(folder)  # a process killed between the score and this left it
    return found


def _refuse_begun(plan: Plan, folder: Path, wanted: Mapping[str, Any]) -> None:
    """An evaluation deletes the journal when it is finished, other answers with it."""
    made = begun_from(folder)
    if made is None:
        return
    same: dict[str, Any] = {"versions": {}, "reading": None}  # answers of other versions are set aside by the journal itself
    if differences := _differences({**wanted, **same}, {**made, **same}):
        raise OtherResultError(
            f"{folder} holds answers of an evaluation that was not finished; what is asked for, {plan.name}, differs in "
            f"{'; '.join(differences)}. Give another --out, or --replace to lose those answers"
        )


def _read_inputs(path: Path) -> Mapping[str, Any]:
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return made if isinstance(made, dict) else {}


def _differences(wanted: Mapping[str, Any], made: Mapping[str, Any]) -> list[str]:
    """Each input that differs, with both values; a result that does not say what it was made from differs in that."""
    if not made:
        return [f"its inputs, which no {INPUTS_FILE} states"]
    pairs = {k: (made.get(k, 1 if k == "reading" else None), v) for k, v in wanted.items() if k != "versions"}
    there = made.get("versions")
    pairs |= {k: ((there if isinstance(there, dict) else {}).get(k), v) for k, v in wanted["versions"].items()}
    return [f"{k}: {_short(a)} there, {_short(b)} here" for k, (a, b) in pairs.items() if a != b]


def _short(value: object) -> str:
    return "none" if value is None else visible(str(value), 40)


def _set_aside(folder: Path) -> list[str]:
    """Rename a result's files so that nothing reads them; their new names."""
    number = 1
    while any((folder / f"{name}.damaged-{number}").exists() for name in (SCORE_FILE, QUESTIONS_FILE)):
        number += 1
    kept = []
    for name in (SCORE_FILE, QUESTIONS_FILE):
        if (folder / name).exists():
            kept.append(str((folder / name).rename(folder / f"{name}.damaged-{number}")))
    return kept
