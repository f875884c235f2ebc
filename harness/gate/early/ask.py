"""The real `Ask` of `harness.gate.early.check`: lmms-eval's own tasks on the questions of some videos, answers kept in the journal.

Only this module joins early stopping to a model. Each call runs lmms-eval's unmodified tasks over the documents of the videos named, so
that prompts and scoring are exactly those of a full evaluation.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.benchmark import Benchmark
from benchmarks.catalog import CATALOG
from benchmarks.data.layout import MediaIndex, has_twins
from harness.records import Evaluation, QuestionRecord
from harness.run.collect import reply_of
from harness.run.evaluate import own_journal, run_tasks
from harness.run.made_from import PAPER_MAX_NEW_TOKENS, SMALL_MAX_NEW_TOKENS
from harness.run.offline import Guesses, check_environment, quiet_upstream, refuse_network, task_manager
from harness.run.processes import PartDone, as_if_alone
from harness.scoring import describe, question_id, record, unique_ids
from savi.base.processes import current

if TYPE_CHECKING:
    from harness.run.lmms_model import SaviLmms
    from savi.engine.video_lm import VideoLM


class VideoAsker:
    """Asks a model the questions on chosen videos of a benchmark; answers are journalled below `out`.

    Settings (frames, token limit, seed) are taken from the baseline's provenance, since only then can the two be compared.
    """

    def __init__(
        self, model: str | Path | VideoLM, baseline: Mapping[str, Evaluation], *, hf_home: Path, out: Path, batch: int | None = None
    ) -> None:
        """Load the model; `batch` is the number of questions asked together.

        Raises:
            InfrastructureError: the process is not set up for an evaluation.
            ValueError: the baseline's benchmarks were asked with different settings.
        """
        from harness.run.lmms_model import SaviLmms, load_model

        check_environment(hf_home)
        self.hf_home, self.out = Path(hf_home).resolve(), Path(out)
        settings = {(e.score.provenance.frames.get("num_frames"), e.score.provenance.seed, e.score.scale) for e in baseline.values()}
        if len(settings) != 1:
            raise ValueError(f"the baseline's benchmarks differ in frames, seed or scale: {sorted(map(str, settings))}")
        num_frames, self.seed, _ = settings.pop()
        processes = current()
        lm = load_model(model, device=processes.device) if isinstance(model, str | Path) else model
        self.adapter: SaviLmms = SaviLmms(
            lm=lm,
            num_frames=int(num_frames or 0),
            rows=batch,
            max_new_tokens=SMALL_MAX_NEW_TOKENS if has_twins(self.hf_home) else PAPER_MAX_NEW_TOKENS,
            seed=self.seed,
            media=MediaIndex(self.hf_home),
            processes=processes,
        )
        self._wanted = {name: {r.question_id for r in e.records} for name, e in baseline.items()}
        self.guesses = Guesses()
        self._ids: dict[tuple[str, str], list[str]] = {}
        self._where: dict[str, dict[str, list[tuple[str, int]]]] = {}

    def __call__(self, benchmark: str, videos: Sequence[str]) -> list[QuestionRecord]:
        """Records of all questions on `videos`; processes that were joined share the asking, and all get all records.

        Raises:
            KeyError: a video the benchmark does not have.
        """
        b = CATALOG[benchmark]
        with refuse_network(), quiet_upstream(), as_if_alone():
            where = self._index(b)
            chosen: dict[str, list[int]] = defaultdict(list)
            for v in videos:
                for task, doc in where[v]:
                    chosen[task].append(doc)
            manager = task_manager(self.guesses)
            load = manager.load_task_or_group
            manager.load_task_or_group = lambda *a, **k: _narrowed(load(*a, **k), chosen)
            self.guesses.by_task.clear()
            results: Mapping[str, Any] = {}
            with suppress(PartDone), self.adapter.session(own_journal(self.adapter, self.out / b.name, warnings.warn)):
                results = run_tasks(self.adapter, [t for t in b.tasks if chosen[t]], manager, seed=self.seed)
        return current().by_first(lambda: self._records(b, chosen, results))

    def _records(self, b: Benchmark, chosen: Mapping[str, list[int]], results: Mapping[str, Any]) -> list[QuestionRecord]:
        out: list[QuestionRecord] = []
        for task in (t for t in b.tasks if chosen[t]):
            guessed = self.guesses.by_task[task]
            for sample, read_by, doc in zip(results["samples"][task], guessed, sorted(chosen[task]), strict=True):
                key = task, int(sample["doc_id"])
                reply = reply_of(sample, self.adapter.answers[key], read_by)
                out.append(record(b, task, {**sample, "doc_id": doc}, self.adapter.asked[key], reply, self._ids[b.name, task][doc]))
        return out

    def _index(self, benchmark: Benchmark) -> dict[str, list[tuple[str, int]]]:
        """Documents of each video: [(task, position)]; read once."""
        if benchmark.name not in self._where:
            from benchmarks.data.layout import read_docs

            where: dict[str, list[tuple[str, int]]] = defaultdict(list)
            for task, config in zip(benchmark.tasks, benchmark.configs, strict=True):
                asked = [describe(benchmark, task, doc) for doc in read_docs(self.hf_home, benchmark, config)]
                self._ids[(benchmark.name, task)] = unique_ids([question_id(task, a) for a in asked])
                for i, (a, qid) in enumerate(zip(asked, self._ids[(benchmark.name, task)], strict=True)):
                    if qid in self._wanted[benchmark.name]:  # a baseline made with a limit asked fewer
                        where[benchmark.video_id(a.video)].append((task, i))
            self._where[benchmark.name] = where
        return self._where[benchmark.name]


def _narrowed(loaded: dict[str, Any], chosen: dict[str, list[int]]) -> dict[str, Any]:
    """Tasks with only the chosen documents, in document order."""
    for name, task in loaded.items():
        split = task.config.test_split if task.has_test_docs() else task.config.validation_split
        for docs in {id(x): x for x in (task.dataset, task.dataset_no_image)}.values():
            docs[split] = docs[split].select(sorted(chosen[str(name)]))
    return loaded
