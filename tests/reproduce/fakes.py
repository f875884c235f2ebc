"""Stands in for the model and lmms-eval, so that the whole job runs in milliseconds: files of the real kind, made from the seed."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.catalog import select
from harness.records import (
    Evaluation,
    Provenance,
    QuestionRecord,
    Score,
    prompts_fingerprint,
    read_evaluations,
    records_sha256,
    write_evaluation,
)
from reproduce.paper.experiment import Experiment
from reproduce.paper.results import score_line
from reproduce.paper.work import RealWork
from reproduce.stages import Progress
from savi.base.files import write_text_atomic

N, PER_VIDEO = 40, 4


def fake_evaluation(benchmark: str, scale: str, skill: float, seed: str, *, n: int = N, media: str = "media") -> Evaluation:
    """`n` questions, 4 on a video, right with probability `skill`; the same questions whatever the skill."""
    rng = random.Random(f"{benchmark}/{seed}")
    records = []
    for i in range(n):
        right = float(rng.random() < skill)
        task = select([benchmark])[0].tasks[i % len(select([benchmark])[0].tasks)]
        records.append(
            QuestionRecord(
                benchmark=benchmark,
                task=task,
                doc_id=i,
                question_id=f"q{i}",
                video_id=f"v{i // PER_VIDEO}",
                prompt=f"question {i}",
                target="A",
                answer="A" if right else "B",
                parsed="A" if right else "B",
                upstream=right,
                strict=right,
                status="ok",
                frames=8,
            )
        )
    tasks = sorted({r.task for r in records})
    means = {t: 100 * sum(r.strict for r in records if r.task == t) / sum(r.task == t for r in records) for t in tasks}
    pct = sum(means.values()) / len(means)
    statuses = {"ok": n, "unparsed": 0, "empty": 0, "degenerate": 0, "judged": 0, "failed": 0}
    provenance = Provenance("m", seed, media, prompts_fingerprint(records), {"max_new_tokens": 8}, {"num_frames": 8}, {"savi": "0"})
    score = Score(benchmark, scale, n, n, n // PER_VIDEO, pct, pct, 1.0, 25.0, means, statuses, provenance, 0.0, records_sha256(records))
    return Evaluation(score, records)


@dataclass
class FakeWork(RealWork):
    """Real gate and tables; videos, model and evaluation are made up. `calls` counts what was run; `boom` names a stage that
    breaks; `media` gives an iteration other videos than the base had."""

    calls: list[str] = field(default_factory=list)
    boom: str = ""
    media: dict[int, str] = field(default_factory=dict)
    error: Exception = field(default_factory=lambda: RuntimeError("boom"))

    def _call(self, name: str) -> None:
        if name == self.boom:
            raise self.error
        self.calls.append(name)

    def prepare(self, experiment: Experiment, progress: Progress) -> str:
        self._call("prepare")
        write_text_atomic(experiment.hf_home / "twins.json", "{}")
        write_text_atomic(experiment.run.path / "data" / "benchmarks.json", "{}")
        return "fake twins"

    def base(self, experiment: Experiment, progress: Progress) -> str:
        self._call("base")
        write_text_atomic(experiment.run.path / "data" / "base.json", "{}")
        return "fake base"

    def videos(self, experiment: Experiment, iteration: int, progress: Progress) -> str:
        self._call(f"videos {iteration}")
        if experiment.videos is not None:
            return super().videos(experiment, iteration, progress)
        for i in range(experiment.scale.loop.videos_per_iteration.value):
            progress(i, 3)
            write_text_atomic(experiment.video_folder(iteration) / f"{i:04d}.mp4", f"{iteration} {i} {experiment.scale.loop.seed.value}")
        return "fake videos"

    def propose(self, experiment: Experiment, iteration: int, progress: Progress, failures: Path) -> str:
        self._call(f"propose {iteration}")
        for name in ("pairs.jsonl", "dropped.jsonl", "pairs.journal.jsonl"):
            write_text_atomic(experiment.run.iteration(iteration) / name, f'{{"t": {iteration}}}\n')
        row = {"what": f"video {iteration}", "where": "here", "why": "truncated", "stage": "propose"}
        write_text_atomic(failures, (json.dumps(row) + "\n") * 2)
        return "fake pairs"

    def train(self, experiment: Experiment, iteration: int, progress: Progress, failures: Path) -> str:
        self._call(f"train {iteration}")
        write_text_atomic(experiment.run.iteration(iteration) / "train" / "log.jsonl", '{"step": 1, "loss": 0.7}\n')
        write_text_atomic(experiment.model(iteration) / "weights.txt", f"weights {iteration} beta {experiment.scale.training.beta.value}")
        return "fake training"

    def evaluate(self, experiment: Experiment, iteration: int, progress: Progress, failures: Path) -> str:
        self._call(f"evaluate {iteration}")
        for b in select(experiment.benchmarks):
            progress(0, 1)
            write_evaluation(
                experiment.run.iteration(iteration) / "eval",
                fake_evaluation(
                    b.name, experiment.scale.name, 0.5 + 0.1 * iteration, str(iteration), media=self.media.get(iteration, "media")
                ),
            )
        found = read_evaluations(experiment.run.iteration(iteration))
        return score_line(found, read_evaluations(experiment.run.iteration(0)) if iteration else None)

    def report(self, experiment: Experiment) -> str:
        self._call("report")
        write_text_atomic(experiment.run.path / "report.html", "<p>report</p>")
        return "fake report"
