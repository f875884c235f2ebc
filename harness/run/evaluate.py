"""Measure a model on the benchmarks: lmms-eval's own unmodified tasks, offline, one benchmark after the other, resumable at every batch.

    os.environ.update(offline_environment(hf_home))          # before anything imports datasets or lmms_eval
    evaluate("model/", benchmarks=None, hf_home=hf_home, out=Path("runs/x/base/eval"), num_frames=8, scale="micro")

A benchmark's folder is written when it is complete, its score last; one that is there already with the same inputs is not asked again.
While it runs, answers are journalled in the folder, so a killed process loses one batch at most.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.benchmark import Benchmark
from benchmarks.catalog import select
from benchmarks.data.layout import DatasetError, MediaIndex, check, fix_command, has_twins
from harness.records import SCORE_FILE, Evaluation, QuestionRecord, write_evaluation
from harness.run.collect import collect
from harness.run.journal import Journal, delete_journals
from harness.run.made_from import INPUTS_FILE, PAPER_MAX_NEW_TOKENS, SMALL_MAX_NEW_TOKENS, Plan, finished, inputs, made_by
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
from harness.run.processes import PartDone, as_if_alone
from savi.base.files import write_text_atomic
from savi.base.lock import lock_folder
from savi.base.processes import Processes, joined

if TYPE_CHECKING:
    from harness.run.lmms_model import SaviLmms
    from savi.engine.video_lm import VideoLM

__all__ = ["InfrastructureError", "evaluate", "offline_environment"]

Progress = Callable[[str, int, int], None]
"""Called with benchmark, questions answered, questions in all."""


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
    replace: bool = False,
    retry_failed: bool = False,
    held: bool = False,
    tell: Callable[[str], None] = warnings.warn,
) -> dict[str, Evaluation]:
    """Measure `model` (a checkpoint's path, or a `savi.VideoLM`) and write `out/<benchmark>/{questions.jsonl, score.json}`.

    `limit` caps the questions of each lmms-eval task; `batch` the questions asked together; `max_new_tokens` the answers of tasks that set
    no limit. `seed` seeds upstream's random guesses. A finished result that was made from something else is replaced only with `replace`.
    Videos that could not be read are not tried again when the work goes on, unless `retry_failed`: then a finished result with failed
    questions is measured anew, too. `held`: `out` is held by a process that this one works for, and that measures other benchmarks there.
    `tell` is given a sentence where a file is set aside. Returns the evaluations in catalog order. In
    several processes (`torchrun`) videos are dealt out; the first process scores, writes and returns, the others return nothing.

    Raises:
        UnknownBenchmarkError: a name is not in the catalog.
        OtherResultError: `out` holds a result that was made from something else.
        LockedError: another evaluation is at work in `out`.
        InfrastructureError: the process is not set up (see `offline_environment`), or lmms-eval returned other documents than it was given.
        DatasetError: a data set is not there; the message has the command that fixes it.
    """
    from harness.run.lmms_model import load_model, weights_of

    wanted = select(benchmarks)
    hf_home = Path(hf_home).resolve()
    media = MediaIndex(hf_home)
    limit_tokens = max_new_tokens or (SMALL_MAX_NEW_TOKENS if has_twins(hf_home) else PAPER_MAX_NEW_TOKENS)
    name = str(model) if isinstance(model, (str, Path)) else model.name

    def look() -> tuple[Plan, dict[str, dict[str, Any]], dict[str, Evaluation]]:
        plan = Plan(name, weights_of(model), hf_home, Path(out), num_frames, scale, limit, seed, limit_tokens)
        made_from = {b.name: inputs(plan, b) for b in wanted}
        found = {b.name: finished(plan, b, made_from[b.name], media, replace=replace, tell=tell) for b in wanted}
        return plan, made_from, {n: e for n, e in found.items() if e is not None and not (retry_failed and failures({n: e}))}

    with joined(Path(out)) as processes, as_if_alone(), ExitStack() as locks:
        if not held:
            processes.by_first(lambda: locks.enter_context(lock_folder(Path(out))))
        plan, made_from, done = processes.by_first(look)
        todo = [b for b in wanted if b.name not in done]
        if todo:
            check_environment(hf_home)
            lm = load_model(model, device=processes.device) if isinstance(model, (str, Path)) else model
            adapter = _adapter(lm, plan, batch, media, processes, retry_failed=retry_failed)
            for b, e in _measure_all(adapter, plan, todo, made_from, progress, tell):
                _keep(plan, b, e, made_from[b.name])
                done[b.name] = e
    return {b.name: done[b.name] for b in wanted if b.name in done} if processes.rank == 0 else {}


def failures(evaluations: Mapping[str, Evaluation]) -> list[QuestionRecord]:
    """The questions that got no answer, for a run's list of failures (several may be about one video)."""
    return [r for e in evaluations.values() for r in e.records if r.status == "failed"]


def run_tasks(adapter: SaviLmms, tasks: Sequence[str], manager: Any, *, seed: int, limit: int | None = None) -> Mapping[str, Any]:
    """lmms-eval's own evaluation of some tasks, with the defaults of its command line."""
    from lmms_eval.evaluator import simple_evaluate

    results: Mapping[str, Any] = simple_evaluate(
        model=adapter,
        tasks=list(tasks),
        batch_size=1,
        limit=limit,
        bootstrap_iters=0,
        log_samples=True,
        task_manager=manager,
        random_seed=seed,
        verbosity="ERROR",
        process_docs_parallel=1,  # one thread: guesses are drawn in document order
        cli_args=default_arguments(),
    )
    return results


def _adapter(lm: VideoLM, plan: Plan, batch: int | None, media: MediaIndex, processes: Processes, *, retry_failed: bool) -> SaviLmms:
    from harness.run.lmms_model import SaviLmms

    return SaviLmms(
        lm=lm,
        num_frames=plan.num_frames,
        rows=batch,
        max_new_tokens=plan.max_new_tokens,
        seed=plan.seed,
        media=media,
        processes=processes,
        retry_failed=retry_failed,
    )


def _measure_all(
    adapter: SaviLmms,
    plan: Plan,
    todo: Sequence[Benchmark],
    made_from: Mapping[str, Mapping[str, Any]],
    progress: Progress | None,
    tell: Callable[[str], None],
) -> Iterator[tuple[Benchmark, Evaluation]]:
    """Ask and score one benchmark after the other; only the first of several processes gives them out."""
    with refuse_network(), quiet_upstream():
        guesses = Guesses()
        manager = task_manager(guesses)
        for b in todo:
            begin = time.monotonic()
            if check(plan.hf_home, b).n == 0:
                raise DatasetError(f"{b.title}: no questions below {plan.hf_home}; {fix_command(plan.hf_home, b.name)}")
            try:
                journal = own_journal(adapter, plan.out / b.name, tell, made_from[b.name])
                with adapter.session(journal, partial(progress, b.name) if progress is not None else None):
                    results = run_tasks(adapter, b.tasks, manager, seed=plan.seed, limit=plan.limit)
            except PartDone:
                continue
            yield b, collect(adapter, plan, b, results, guesses, time.monotonic() - begin)


def own_journal(adapter: SaviLmms, folder: Path, tell: Callable[[str], None], inputs: Mapping[str, Any] | None = None) -> Journal:
    """This process's journal; the first process looks at all of them before the others begin to write."""
    rank = adapter.processes.rank
    if rank > 0:
        adapter.processes.wait()
    journal = Journal(folder, rank=rank, made_by=made_by(), tell=tell, inputs=inputs)
    if rank == 0:
        adapter.processes.wait()
    return journal


def _keep(plan: Plan, benchmark: Benchmark, evaluation: Evaluation, made_from: Mapping[str, Any]) -> None:
    """Write a finished benchmark; its score last, so that its presence means complete."""
    folder = plan.out / benchmark.name
    (folder / SCORE_FILE).unlink(missing_ok=True)
    write_text_atomic(folder / INPUTS_FILE, json.dumps(dict(made_from), indent=1) + "\n")
    write_evaluation(plan.out, evaluation)
    delete_journals(folder)
