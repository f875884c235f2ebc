"""Runs a study's plan: base models that are missing, then every run without a record, several at a time, one thread each.

What ends badly is listed and never ends the rest; what is finished is not run again. A run leaves a record of a few kB; its folder can go.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from harness.records import read_evaluations
from reproduce.run_dir import RunDir
from reproduce.runner import Runner, Task
from reproduce.study.plan import Base, Plan, Run, StudyError
from reproduce.study.records import Questions, Record, RecordsError, answers_of, questions_of, read_record, record_path, write_record

RUN_S = {"micro": 301.0, "smoke": 50.0}
"""Seconds of a core that a run takes: micro as the median of the method's in results/study, smoke as 25 s on two cores."""
BASE_S = 9 * 60.0
"""Seconds of a core that a base takes, before one of this study says so: as those of results/study took, two at a time on two cores."""


@dataclass(frozen=True)
class Times:
    """What is left of a study and how long it will take: `base_s`, `run_s` of one of them on one core, and where these are from."""

    bases: int
    runs: int
    base_s: float
    run_s: float
    source: str
    jobs: int

    @property
    def hours(self) -> float:
        return (self.bases * self.base_s + self.runs * self.run_s) / 3600 / self.jobs

    def line(self) -> str:
        """For people."""
        bases = f"{self.bases} base models of {self.base_s / 60:.0f} min and " if self.bases else ""
        left = f"{bases}{self.runs} runs of {self.run_s / 60:.1f} min"
        return f"{left} on one core, {self.jobs} at a time: about {self.hours:.1f} h ({self.source})"


def left_to_run(plan: Plan, keep: Path) -> list[Run]:
    """The runs without a record.

    Raises:
        RecordsError: a record was made with other settings, of another base, or under another freezing file.
    """
    return [run for run in plan.runs() if not _kept(plan, run, keep)]


def _kept(plan: Plan, run: Run, keep: Path) -> bool:
    path = record_path(keep, run.name)
    if not path.exists():
        return False
    record = read_record(path)
    named = [run.base, *([run.critic] if run.critic else [])]
    if not all(base.there for base in named):  # the record stands; without the model nothing can be compared
        return True
    differing = [
        name
        for name, there, now in (
            ("base model", record.base_fingerprint, run.base.fingerprint),
            ("settings", record.settings, plan.settings_digest(run)),
            ("freezing file", record.frozen, plan.frozen),
        )
        if there != now
    ]
    if differing:
        raise RecordsError(f"{path}: was made with another {' and another '.join(differing)}; take another --keep, or move it away")
    return True


def times(plan: Plan, keep: Path, jobs: int) -> Times:
    """How long what is left will take: by this study's own runs where there are any, else by the shipped figures."""
    left = left_to_run(plan, keep)
    missing = [base for base in plan.bases if not base.there]
    took = [minutes for base in plan.bases if base.recipe is not None and base.there and (minutes := _minutes(base.facts))]
    done = [read_record(path).wall_s for run in plan.runs() if (path := record_path(keep, run.name)).exists()]
    base_s = 60 * statistics.median(took) if took else BASE_S
    run_s = statistics.median(done) if done else RUN_S.get(plan.scale, RUN_S["micro"])
    source = "a run as " + (f"the median of this study's {len(done)}" if done else "those of results/study took")
    if missing:
        source += ", a base as " + (f"the median of this study's {len(took)}" if took else "those of results/study took")
    return Times(len(missing), len(left), base_s, run_s, source, jobs)


def _minutes(facts: Mapping[str, Any]) -> float:
    """How long a base's training took; 0 where it does not say."""
    found = facts.get("minutes")
    return float(found) if isinstance(found, int | float) else 0.0


def make_record(plan: Plan, run: Run) -> tuple[Record, Questions]:
    """The record of a finished run.

    Raises:
        RecordsError: it answered other questions after one iteration than after another, or an answer is half right.
    """
    from benchmarks.micro.analysis import judge_pairs
    from savi.loop.journal import read_unchanged
    from savi.loop.preferences import read_pairs

    folder = RunDir(plan.folder(run))
    stages, pairs, asked = [], [], []
    for t in range(plan.resolved(run).loop.iterations.value + 1):
        found = read_evaluations(folder.iteration(t))
        asked.append(questions_of(found))
        stages.append(answers_of(found))
        if t:
            made = [asdict(pair) for pair in read_pairs(folder.iteration(t) / "pairs.jsonl")]
            same = [asdict(pair) for pair in read_unchanged(folder.iteration(t) / "dropped.jsonl")]
            pairs.append(asdict(judge_pairs(made, same, 1000 * run.seed + t)))
    if any(questions.digest != asked[0].digest for questions in asked):
        raise RecordsError(f"{folder.path}: its stages answered different questions")
    facts = folder.read() or {}
    wall_s = sum(float(stage.get("wall_s", 0.0)) for stage in folder.timings().values())
    record = Record(
        scale=plan.scale, base=run.base.name, base_fingerprint=run.base.fingerprint, seed=run.seed, variant=run.variant,
        settings=plan.settings_digest(run), frozen=plan.frozen, questions=asked[0].digest, stages=stages, pairs=pairs,
        wall_s=round(wall_s, 1), versions=facts.get("versions") or {}, commit=str((facts.get("git") or {}).get("commit") or ""),
    )  # fmt: skip
    return record, asked[0]


def run_study(plan: Plan, keep: Path, *, jobs: int, tell: Callable[[str], None], discard: bool = False) -> int:
    """Make what is missing; returns how many runs were made now.

    Raises:
        StudyError: a base or a run ended badly; all others are finished.
        RecordsError: as `left_to_run`.
    """
    runner = Runner(plan.out, jobs, tell)
    runner.all([Task(base.name, base.command) for base in plan.bases if not base.there])
    left = left_to_run(plan, keep)
    ready = [run for run in left if run.base.there and (run.critic is None or run.critic.there)]
    for run in left:
        if run not in ready:
            lacking: Base = run.critic if run.base.there and run.critic else run.base
            runner.failed.append(f"{run.name}: base {lacking.name} is not there")

    def finish(run: Run) -> None:
        write_record(keep, *make_record(plan, run))
        if discard:
            shutil.rmtree(plan.folder(run))

    runner.all([Task(run.name, partial(plan.command, run), partial(finish, run)) for run in ready])
    if runner.failed:
        raise StudyError(f"{len(runner.failed)} failed: " + "; ".join(runner.failed) + "; fix the cause and run the study again")
    return len(ready)
