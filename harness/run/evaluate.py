"""Measure a model on the benchmarks: lmms-eval's own unmodified tasks, offline, one benchmark after the other, resumable at every batch.

    os.environ.update(offline_environment(hf_home))          # before anything imports datasets or lmms_eval
    evaluate("model/", benchmarks=None, hf_home=hf_home, out=Path("runs/x/base/eval"), num_frames=8, scale="micro")

A benchmark's folder is written when it is complete, its score last; one that is there already with the same inputs is not asked again.
While it runs, answers are journalled in the folder, so a killed process loses one batch at most.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.catalog import Benchmark, select
from benchmarks.data.layout import DatasetError, MediaIndex, check, expected_n, fix_command, has_twins
from benchmarks.data.layout import fingerprint as data_fingerprint
from harness.integrity import edited
from harness.reading import READING_VERSION
from harness.records import (
    QUESTIONS_FILE,
    SCORE_FILE,
    Evaluation,
    Provenance,
    QuestionRecord,
    ReadBy,
    RecordError,
    prompts_fingerprint,
    read_records,
    read_score,
    write_evaluation,
)
from harness.run.journal import Journal
from harness.run.offline import (
    Guesses,
    InfrastructureError,
    check_environment,
    default_arguments,
    offline_environment,
    quiet_upstream,
    refuse_network,
    task_manager,
)
from harness.scoring import Reply, describe, question_id, record, score, unique_ids
from savi.base.files import write_text_atomic

if TYPE_CHECKING:
    from harness.run.lmms_model import SaviLmms
    from savi.engine.video_lm import VideoLM

__all__ = ["InfrastructureError", "evaluate", "offline_environment"]

INPUTS_FILE = "inputs.json"
SMALL_MAX_NEW_TOKENS = 48
"""ours: the micro model's longest reply, a chain of facts and an answer, has about 30 tokens."""
PAPER_MAX_NEW_TOKENS = 1024
"""release: lmms-eval's internvl2 adapter, where a task sets no limit of its own (Perception Test, TempCompass, NExT-QA)."""

Progress = Callable[[str, int, int], None]
"""Called with benchmark, questions answered, questions in all."""


@dataclass(frozen=True)
class _Plan:
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


def evaluate(
    model: str | Path | VideoLM,
    *,
    benchmarks: Sequence[str] | None = None,
    hf_home: Path,
    out: Path,
    num_frames: int,
    scale: str,
    limit: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    batch: int | None = None,
    max_new_tokens: int | None = None,
) -> dict[str, Evaluation]:
    """Measure `model` (a checkpoint's path, or a `savi.VideoLM`) and write `out/<benchmark>/{questions.jsonl, score.json}`.

    `limit` caps the questions of each lmms-eval task; `batch` the questions asked together; `max_new_tokens` the answers of tasks that set
    no limit. `seed` seeds upstream's random guesses. Returns finished evaluations in catalog order; on ranks other than 0 of a
    multi-process run, nothing.

    Raises:
        UnknownBenchmarkError: a name is not in the catalog.
        InfrastructureError: the process is not set up (see `offline_environment`), or lmms-eval returned other documents than it was given.
        DatasetError: a data set is not there; the message has the command that mends it.
    """
    from harness.run.lmms_model import load_model, weights_of

    wanted = select(benchmarks)
    out, hf_home = Path(out), Path(hf_home).resolve()
    limit_tokens = max_new_tokens or (SMALL_MAX_NEW_TOKENS if has_twins(hf_home) else PAPER_MAX_NEW_TOKENS)
    name = str(model) if isinstance(model, (str, Path)) else model.name
    plan = _Plan(name, weights_of(model), hf_home, out, num_frames, scale, limit, seed, limit_tokens)
    media = MediaIndex(hf_home)
    inputs = {b.name: _inputs(plan, b) for b in wanted}
    done = {b.name: e for b in wanted if (e := _finished(plan, b, inputs[b.name], media)) is not None}
    todo = [b for b in wanted if b.name not in done]
    if todo:
        check_environment(hf_home)
        lm = load_model(model) if isinstance(model, (str, Path)) else model
        with refuse_network():
            adapter = _adapter(lm, plan, batch, media)
            with quiet_upstream():
                guesses = Guesses()
                manager = task_manager(guesses)
                for b in todo:
                    e = _run(adapter, plan, b, manager, guesses, progress)
                    if e is None:
                        continue
                    write_text_atomic(out / b.name / INPUTS_FILE, json.dumps(inputs[b.name], indent=1) + "\n")
                    write_evaluation(out, e)
                    Journal(out / b.name).delete()
                    done[b.name] = e
    return {b.name: done[b.name] for b in wanted if b.name in done}


def failures(evaluations: Mapping[str, Evaluation]) -> list[QuestionRecord]:
    """The questions that got no answer, for a run's list of failures (one video may be behind several)."""
    return [r for e in evaluations.values() for r in e.records if r.status == "failed"]


def versions() -> dict[str, str]:
    """Versions a score depends on."""
    out = {}
    for name, distribution in (
        ("savi", "videosavi-harness"),
        ("lmms_eval", "lmms_eval"),
        ("torch", "torch"),
        ("transformers", "transformers"),
    ):
        try:
            out[name] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            out[name] = "source"
    return out


def _inputs(plan: _Plan, b: Benchmark) -> dict[str, Any]:
    """What a finished benchmark is compared by, known without importing lmms-eval or loading the model. Versions of this package do not
    count."""
    return {
        "weights": plan.weights,
        "data": data_fingerprint(plan.hf_home, b),
        "num_frames": plan.num_frames,
        "scale": plan.scale,
        "limit": plan.limit,
        "seed": plan.seed,
        "max_new_tokens": plan.max_new_tokens,
        "versions": {k: v for k, v in versions().items() if k != "savi"},
    }


def _finished(plan: _Plan, b: Benchmark, inputs: Mapping[str, Any], media: MediaIndex) -> Evaluation | None:
    """A benchmark that is complete on disk with the same inputs and the same videos, or None."""
    folder = plan.out / b.name
    if not (folder / SCORE_FILE).exists():
        return None
    try:
        if json.loads((folder / INPUTS_FILE).read_text(encoding="utf-8")) != dict(inputs):
            return None
        e = Evaluation(read_score(folder / SCORE_FILE), read_records(folder / QUESTIONS_FILE))
    except (FileNotFoundError, ValueError, RecordError):
        return None  # half a result is none: it is measured again
    if edited(e) is not None or media.fingerprint(b, (r.video_path for r in e.records)) != e.score.provenance.media:
        return None
    Journal(folder).delete()  # a process killed between the score and this left it
    return e


def _adapter(lm: VideoLM, plan: _Plan, batch: int | None, media: MediaIndex) -> SaviLmms:
    from harness.run.lmms_model import SaviLmms

    adapter = SaviLmms(lm=lm, num_frames=plan.num_frames, rows=batch, max_new_tokens=plan.max_new_tokens, seed=plan.seed)
    adapter.media = media
    return adapter


def _run(adapter: SaviLmms, plan: _Plan, b: Benchmark, manager: Any, guesses: Guesses, progress: Progress | None) -> Evaluation | None:
    """Ask one benchmark and score it; None on ranks other than 0."""
    from lmms_eval.evaluator import simple_evaluate

    begin = time.monotonic()
    status = check(plan.hf_home, b)
    if status.n == 0:
        raise DatasetError(f"{b.title}: no questions below {plan.hf_home}; {fix_command(plan.hf_home, b.name)}")
    (plan.out / b.name / SCORE_FILE).unlink(missing_ok=True)
    adapter.notes.clear()
    adapter.journal = Journal(plan.out / b.name, rank=adapter.rank)
    adapter.progress = (lambda n, total: progress(b.name, n, total)) if progress is not None else None
    try:
        results = simple_evaluate(
            model=adapter,
            tasks=list(b.tasks),
            batch_size=1,
            limit=plan.limit,
            bootstrap_iters=0,
            log_samples=True,
            task_manager=manager,
            random_seed=plan.seed,
            verbosity="ERROR",
            process_docs_parallel=1,  # one thread: guesses are drawn in document order
            cli_args=default_arguments(),
        )
    finally:
        adapter.journal.close()
    if results is None:
        return None
    return _collect(adapter, plan, b, results, guesses, time.monotonic() - begin)


def _collect(adapter: SaviLmms, plan: _Plan, b: Benchmark, results: Mapping[str, Any], guesses: Guesses, wall_s: float) -> Evaluation:
    records: list[QuestionRecord] = []
    chances: list[float] = []
    upstream: dict[str, float] = {}
    for task in b.tasks:
        samples = results["samples"][task]
        guessed = guesses.by_task[task]
        if len(guessed) == len(samples):
            pairs = list(zip(samples, guessed, strict=True))
        elif adapter.world_size > 1:
            pairs = [(s, _guess_unknown(s)) for s in samples]  # other ranks' notes stay with them
        else:
            raise InfrastructureError(f"{task}: lmms-eval returned {len(samples)} samples for {len(guessed)} scored documents")
        pairs.sort(key=lambda p: p[0]["doc_id"])  # several ranks: samples come rank by rank
        asked = [describe(b, task, s["doc"]) for s, _ in pairs]
        ids = unique_ids([question_id(task, a) for a in asked])
        for (sample, read_by), a, qid in zip(pairs, asked, ids, strict=True):
            note = adapter.notes.get((task, int(sample["doc_id"])))
            frames, error = (note.frames, note.error) if note is not None else (plan.num_frames if text_of(sample) else 0, None)
            records.append(record(b, task, sample, Reply(text_of(sample), frames, error, read_by, raw_of(sample)), qid))
            chances.append(a.chance)
        upstream[task] = float(results["results"][task][f"{b.metric},none"]) * 100.0 / b.unit
    n_expected = expected_n(plan.hf_home, b, plan.limit)
    return score(
        b, records, chances, upstream, scale=plan.scale, n_expected=n_expected, provenance=_provenance(adapter, plan, b, records),
        wall_s=wall_s, data="micro" if has_twins(plan.hf_home) else "real",
    )  # fmt: skip


def text_of(sample: Mapping[str, Any]) -> str:
    """A sample's answer as lmms-eval scored it, its reasoning tags removed."""
    return str(sample["filtered_resps"][0])


def raw_of(sample: Mapping[str, Any]) -> str | None:
    """A sample's reply as the model gave it, where lmms-eval removed more than blanks around it."""
    raw = sample["resps"][0]
    while isinstance(raw, (list, tuple)):
        raw = raw[0]
    return None if str(raw).strip() == text_of(sample).strip() else str(raw)


def _guess_unknown(sample: Mapping[str, Any]) -> ReadBy:
    """For a sample scored on another rank: whether upstream guessed is not known, so only a plain letter or yes/no counts as read."""
    text = text_of(sample).strip(" .()").lower()
    return "rule" if text in {"a", "b", "c", "d", "e", "yes", "no"} else "guess"


def _provenance(adapter: SaviLmms, plan: _Plan, b: Benchmark, records: Sequence[QuestionRecord]) -> Provenance:
    media = adapter.media or MediaIndex(plan.hf_home)
    return Provenance(
        model=plan.name,
        weights=plan.weights,
        media=media.fingerprint(b, (r.video_path for r in records)),
        prompts=prompts_fingerprint(records),
        generation=dict(adapter.generation.get(b.tasks[0], {})),
        frames=adapter.frame_settings,
        versions=versions(),
        seed=plan.seed,
        reading={"reasoning_tags": str(default_arguments().reasoning_tags), "rule": READING_VERSION},
    )


def run_fingerprint(evaluations: Mapping[str, Evaluation]) -> str:
    """One hash over all answers, for telling two runs apart at a glance (times do not count)."""
    h = hashlib.sha256()
    for name in sorted(evaluations):
        for r in evaluations[name].records:
            h.update(f"{name}\t{r.question_id}\t{r.answer}\t{r.status}\n".encode())
    return h.hexdigest()
