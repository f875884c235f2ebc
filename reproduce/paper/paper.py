"""The experiment: prepare, measure the base, then for each iteration propose, train, measure, decide; at the end tables and a report.

`build_stages` is the whole method, top to bottom; what a stage does is in `reproduce.paper.work`, whether it has to be done in
`reproduce.stages`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.tables.study import read_study
from reproduce.paper.console import RunConsole, duration
from reproduce.paper.experiment import Experiment
from reproduce.paper.overlap import OVERLAP_FILE
from reproduce.paper.results import TABLES, all_evaluations
from reproduce.paper.work import Work
from reproduce.run_dir import FAILURES_FILE, base_identity
from reproduce.stages import Ahead, Stage, StageContext, failures_path, run_stages
from savi.base.processes import current
from savi.video.prefetch import waited_s


def build_stages(experiment: Experiment, work: Work, *, base_fingerprint: str | None = None) -> list[Stage]:
    """Every stage of the run in order. Settings are given to the stages that depend on them, so that a change of the training, say,
    leaves the base's evaluation standing."""
    s = experiment.scale
    data = {k: s.section("evaluation")[k] for k in ("twins", "twins_seed", "benchmarks")}
    small = s.evaluation.twins.value is not None
    measure = s.section("evaluation") | {"scale": s.name}
    loop = {k: v for k, v in s.section("loop").items() if k not in ("iterations", "videos_per_iteration", "chunk_videos", "early_stop")}
    if (critic := experiment.critic(1)) is not None:
        loop["critic"] = base_identity(critic)
    deal: dict[str, Any] = {
        "n": s.loop.videos_per_iteration.value,
        "seed": s.loop.seed.value,
        "folder": str(experiment.videos) if experiment.videos else None,
    }
    if experiment.exclude:
        deal["exclude"] = True
    train = {k: v for k, v in s.section("training").items() if k not in ("max_batch_tokens", "sharding")} | {"seed": s.loop.seed.value}

    stages = [
        Stage(
            "prepare",
            "benchmark data",
            data,
            (),
            ("data/benchmarks.json", *(("data/hf_home",) if small else ())),
            lambda context: work.prepare(experiment, context.progress),
        ),
        *([_overlap(experiment, work)] if experiment.videos else []),
        Stage(
            "base/model",
            "base model",
            {"base": s.model.base.value, "fingerprint": base_fingerprint},
            (),
            ("data/base.json",),
            lambda context: work.base(experiment, context.progress),
        ),
        Stage(
            "base/evaluate",
            "measure the base model",
            measure,
            ("prepare", "base/model"),
            ("base/eval",),
            lambda context: work.evaluate(experiment, 0, context.progress, context.failures),
            beside="iter-1/train",
            shared=True,
        ),
    ]
    for t in range(1, experiment.iterations + 1):
        stages += _iteration(experiment, work, t, loop=loop, deal=deal, train=train, measure=measure)
    evaluations = ("base/evaluate", *(f"iter-{t}/evaluate" for t in range(1, experiment.iterations + 1)))
    gates = tuple(f"iter-{t}/gate" for t in range(1, experiment.iterations + 1))
    stages.append(Stage("tables", "tables", {"scale": s.name}, evaluations, (TABLES,), lambda context: work.tables(experiment)))

    def report(context: StageContext) -> str:
        experiment.run.collect_failures([failures_path(experiment.run.path, stage.name) for stage in stages])
        return work.report(experiment)

    trained = tuple(f"iter-{t}/{name}" for t in range(1, experiment.iterations + 1) for name in ("propose", "train"))
    stages.append(Stage("report", "report", {}, (*evaluations, *trained, *gates, "tables"), ("report.html", FAILURES_FILE), report))
    return stages


def _overlap(experiment: Experiment, work: Work) -> Stage:
    compared = {"folder": str(experiment.videos), "benchmarks": experiment.benchmarks}
    return Stage(
        "overlap",
        "training videos in the benchmarks",
        compared,
        ("prepare",),
        (OVERLAP_FILE,),
        lambda context: work.overlap(experiment, context.progress),
    )


def _iteration(
    experiment: Experiment,
    work: Work,
    iteration: int,
    *,
    loop: dict[str, Any],
    deal: dict[str, Any],
    train: dict[str, Any],
    measure: dict[str, Any],
) -> list[Stage]:
    here, before = f"iter-{iteration}", "base" if iteration == 1 else f"iter-{iteration - 1}"
    model_before = "base/model" if iteration == 1 else f"{before}/train"
    videos = f"data/videos/{here}" + (".txt" if experiment.videos else "")
    proposed = [f"{here}/propose"]
    if experiment.scale.loop.early_stop.value:  # decided by all pairs so far
        train = train | {"early_stop": True}
        proposed = [f"iter-{t}/propose" for t in range(1, iteration + 1)]
    gate_after = tuple(dict.fromkeys((f"{here}/evaluate", f"{before}/evaluate", "base/evaluate")))
    return [
        Stage(
            f"{here}/videos",
            "unlabelled videos",
            deal,
            ("overlap",) if experiment.exclude else (),
            (videos,),
            lambda context: work.videos(experiment, iteration, context.progress),
            beside="prepare" if iteration == 1 else f"{before}/train",
        ),
        Stage(
            f"{here}/propose",
            "ask, answer, criticise, revise",
            loop,
            (f"{here}/videos", model_before),
            tuple(f"{here}/{f}" for f in ("pairs.jsonl", "dropped.jsonl", "pairs.journal.jsonl")),
            lambda context: work.propose(experiment, iteration, context.progress, context.failures),
            shared=True,
        ),
        Stage(
            f"{here}/train",
            "train on the pairs",
            train,
            (*proposed, model_before),
            (f"{here}/train", f"{here}/model"),
            lambda context: work.train(experiment, iteration, context.progress, context.failures),
            shared=True,
        ),
        Stage(
            f"{here}/evaluate",
            f"measure iteration {iteration}",
            measure,
            ("prepare", f"{here}/train"),
            (f"{here}/eval",),
            lambda context: work.evaluate(experiment, iteration, context.progress, context.failures),
            beside=f"iter-{iteration + 1}/train",
            shared=True,
        ),
        Stage(
            f"{here}/gate",
            "decide",
            {"alpha": measure["alpha"], "last": iteration == experiment.iterations, "scale": experiment.scale.name},
            gate_after,
            (f"{here}/gate.json",),
            lambda context: work.gate(experiment, iteration),
        ),
    ]


@dataclass(frozen=True)
class Outcome:
    """What a run came to: the gate's verdicts of every iteration by what it was held against; `integrity`: records that contradict each
    other (not: answers no rule could read, which are a finding about a model and not a fault of the run), in words; failures listed."""

    verdicts: dict[str, dict[str, str]]
    integrity: list[str]
    failures: int


def run_paper(experiment: Experiment, stages: list[Stage], console: RunConsole, ahead: Ahead | None = None) -> Outcome:
    """Run what is not done and print the summary. The processes of a launch share the stages that can be shared; `ahead` is another process
    of this machine.

    Raises: whatever a stage raises; finished stages stay finished.
    """
    led = [led_by_first(stage) for stage in stages]
    before = [waited_s()]

    def note(stage: str, values: Mapping[str, Any]) -> None:
        """A stage's timing, with the seconds in which this process's model waited for frames."""
        waited, before[0] = waited_s() - before[0], waited_s()
        experiment.run.note_timing(stage, {**values, **({"waited_for_frames_s": round(waited, 2)} if waited else {})})

    run_stages(experiment.run.path, led, console, note_timing=note, ahead=ahead)
    return summarise(experiment, stages, console)


def led_by_first(stage: Stage) -> Stage:
    """A stage that tells the other processes of a launch to join in."""

    def run(context: StageContext) -> str:
        current().from_first(stage.name)
        return stage.run(context)

    return replace(stage, run=run) if stage.shared and current().count > 1 else stage


def follow(experiment: Experiment, stages: list[Stage]) -> None:
    """What the other processes of a launch do: the stages that the first one names, until there are no more."""
    by_name = {stage.name: stage for stage in stages}
    while name := current().from_first(""):
        by_name[name].run(StageContext(experiment.run.path, lambda done, total, /: None, failures_path(experiment.run.path, name)))


def summarise(experiment: Experiment, stages: list[Stage], console: RunConsole) -> Outcome:
    """Print the table, the verdicts and where things are."""
    failures = experiment.run.collect_failures([failures_path(experiment.run.path, stage.name) for stage in stages])
    console.say("")
    print_table(experiment.run.path, experiment.scale.name, console, experiment.benchmarks, experiment.iterations)
    verdicts, integrity = read_verdicts(experiment)
    console.say("")
    for name, by in verdicts.items():
        console.say(f"  {name}: " + "; ".join(f"against {other}: {verdict}" for other, verdict in by.items()))
    for problem in integrity:
        console.say(f"  not comparable: {problem}")
    if not integrity and any("integrity" in by.values() for by in verdicts.values()):
        console.say("  integrity: some scores are not comparable; each reason is in iter-*/gate.json and the report")
    timings = experiment.run.timings()
    spent = sum(float(v.get("wall_s", 0)) for v in timings.values())
    memory = max((float(v.get("peak_memory_gb", 0)) for v in timings.values()), default=0.0)
    console.say("")
    console.say(f"  {duration(spent)} of work in {len(timings)} stages, peak memory {memory:.1f} GB")
    console.say(f"  {failures} failures listed in {FAILURES_FILE}")
    console.say(f"  report  {shown(experiment.run.path / 'report.html')}")
    console.say(f"  tables  {shown(experiment.run.path / TABLES)} (md, tex, csv)")
    console.say(f"  run     {shown(experiment.run.path)} (settings and sources in run.json)")
    if study := read_study(experiment.scale.name):
        console.say(f"  {study.line}")
    return Outcome(verdicts, integrity, failures)


def shown(path: Path) -> str:
    """A path as short as it can be said from here."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def print_table(run: Path, scale: str, console: RunConsole, benchmarks: list[str] | None = None, iterations: int | None = None) -> None:
    """The main table on the terminal, with what the table itself says about scale and intervals: upstream scores where published ones stand
    beside them, strict ones else."""
    from rich.table import Table as RichTable

    from reproduce.published import experiment_table, shown_rule

    rows = all_evaluations(run, iterations)
    table = experiment_table(rows, scale=scale, rule=shown_rule(scale, rows), benchmarks=benchmarks, intervals=False)
    view = RichTable(title=table.caption, title_justify="left", show_edge=False, pad_edge=False)
    view.add_column("", no_wrap=True)
    for column in table.columns:
        view.add_column(column, justify="right")
    for row in table.rows:
        view.add_row(row.label, *(cell.text for cell in row.cells))
    console.rich.print(view)
    for note in table.notes:
        console.rich.print(note, style="dim", markup=False)


def read_verdicts(experiment: Experiment) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Verdicts of every finished iteration, and the integrity problems the gate found."""
    from harness.gate.decision import GateResult
    from harness.gate.exceptions import EXCUSABLE_PROBLEMS

    verdicts: dict[str, dict[str, str]] = {}
    integrity: list[str] = []
    for t in range(1, experiment.iterations + 1):
        path = experiment.run.iteration(t) / "gate.json"
        if not path.is_file():
            continue
        by: dict[str, str] = {}
        for name, raw in json.loads(path.read_text(encoding="utf-8")).items():
            result = GateResult.from_json(raw)
            by[name] = result.verdict
            integrity += [
                f"iteration {t} against {name}, {p.benchmark}: {p.message}"
                for p in result.integrity
                if p.excused_by is None and p.code not in EXCUSABLE_PROBLEMS
            ]
        verdicts[f"iteration {t}"] = by
    return verdicts, list(dict.fromkeys(integrity))
