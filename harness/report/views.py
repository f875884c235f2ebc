"""What the report shows of scores and gates: the head, the score table, gains, verdicts, subtasks; rows, charts and words for the template.

Plain functions from `RunData` to values; escaping is left to the template (autoescape), drawing to `charts`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from markupsafe import Markup

from benchmarks.catalog import CATALOG
from harness.gate.decision import ALL, QUESTION_TEXT, Decision
from harness.records import Evaluation
from harness.report import charts
from harness.report.compare import Credit, Interval, StageChange, compare_all, mean_change, mean_score, score_interval
from harness.report.data import Gate, RunData, Stage, title_of


@dataclass(frozen=True)
class ScoreRow:
    """A benchmark's line in the score table."""

    title: str
    points: list[Interval | None]
    drawn: list[Interval | None]
    """What the charts show: upstream scores where they stand beside published ones, strict ones else."""
    upstream: list[float | None]
    change: Interval | None
    n: int
    videos: int
    chance: float | None
    paper: tuple[float | None, float | None]


@dataclass(frozen=True)
class Summary:
    """The head of the report: mean over the benchmarks from first to last stage, and the gate's verdict."""

    first: Interval | None
    last: Interval | None
    change: Interval | None
    benchmarks: int
    left_out: list[str]
    questions: int
    videos: int
    verdict: str
    verdict_note: str
    chart: Markup | None


def kind(interval: Interval | None) -> str:
    if interval is None or interval.low <= 0 <= interval.high:
        return "flat"
    return "better" if interval.value > 0 else "worse"


def complete(run: RunData) -> list[str]:
    """Benchmarks measured in every stage that was measured at all: the only ones a mean over stages may be of."""
    return [b for b in run.benchmarks if all(b in s.evaluations for s in run.measured)]


def _gate_for_summary(stage: Stage | None) -> Gate | None:
    if stage is None or not stage.gates:
        return None
    return next((g for g in stage.gates if g.against == "base"), stage.gates[0])


def summary(run: RunData, changes: dict[str, StageChange]) -> Summary:
    names = complete(run)
    stages = run.measured
    means = [mean_score(s.evaluations, names) for s in stages] if names else []
    matched = [changes[b] for b in names if b in changes]
    change = mean_change(matched) if matched and len(matched) == len(names) else None
    last = stages[-1] if stages else None
    gate = _gate_for_summary(last)
    records = [r for e in (last.evaluations.values() if last else ()) for r in e.records]
    counts = Counter(d.verdict for d in gate.result.decisions) if gate else Counter[str]()
    note = ", ".join(f"{n} {v}" for v, n in counts.most_common()) if gate else "no gate.json in the last iteration"
    if gate and gate.result.integrity:
        note = f"{len(gate.result.integrity)} integrity problem{'s' * (len(gate.result.integrity) > 1)}"
    return Summary(
        means[0] if means else None,
        means[-1] if means else None,
        change,
        len(names),
        [title_of(b) for b in run.benchmarks if b not in names],
        len(records),
        len({(r.benchmark, r.video_id) for r in records}),
        gate.result.verdict if gate else "",
        note,
        charts.hero_chart([s.short for s in stages], means) if means else None,
    )


def paper(run: RunData, benchmark: str) -> tuple[float | None, float | None]:
    return (run.published.base.get(benchmark), run.published.aligned.get(benchmark)) if run.published else (None, None)


def credit(run: RunData) -> Credit:
    """The score to draw: only upstream scores may be held against published ones."""
    return "upstream" if run.published else "strict"


def score_rows(run: RunData, changes: dict[str, StageChange]) -> list[ScoreRow]:
    rows = []
    for b in run.benchmarks:
        found: list[Evaluation | None] = [s.evaluations.get(b) for s in run.measured]
        e = next(x for x in reversed(found) if x is not None)
        rows.append(
            ScoreRow(
                title_of(b),
                [score_interval(x) if x else None for x in found],
                [score_interval(x, credit(run)) if x else None for x in found],
                [x.score.upstream_pct if x else None for x in found],
                changes[b].interval if b in changes else None,
                e.score.n,
                e.score.videos,
                e.score.chance_pct,
                paper(run, b),
            )
        )
    return rows


def score_charts(run: RunData, rows: Sequence[ScoreRow]) -> list[tuple[str, Markup]]:
    refs = []
    for b in run.benchmarks:
        base, aligned = paper(run, b)
        refs.append(
            charts.PaperScores(base, aligned, CATALOG[b].margin.points if b in CATALOG else 0.0)
            if base is not None or aligned is not None
            else None
        )
    shown = [v for r in refs if r for v in (r.base, r.aligned) if v is not None]
    domain = charts.score_domain([r.drawn for r in rows], [*shown, *(r.chance for r in rows if r.chance is not None)])
    labels = [s.short for s in run.measured]
    return [(r.title, charts.score_chart(r.title, labels, r.drawn, domain, r.chance, ref)) for r, ref in zip(rows, refs, strict=True)]


def gains(run: RunData) -> dict[str, object] | None:
    """Our paired gain, base to last, beside the paper's (at a paper scale only)."""
    stages = run.measured
    changes = compare_all(stages[0].evaluations, stages[-1].evaluations, run.benchmarks, credit(run)) if len(stages) > 1 else {}
    if not changes:
        return None
    mean = mean_change(list(changes.values()))
    rows: list[tuple[str, Interval, float | None, bool]] = []
    for b, c in changes.items():
        base, aligned = paper(run, b)
        rows.append((title_of(b), c.interval, aligned - base if base is not None and aligned is not None else None, False))
    if len(rows) > 1:
        papers = [p for _, _, p, _ in rows]
        rows.append(
            (
                f"Mean over {len(rows)}",
                mean,
                sum(p for p in papers if p is not None) / len(papers) if all(p is not None for p in papers) else None,
                True,
            )
        )
    domain = charts.points_domain([v for _, i, p, _ in rows for v in (i.low, i.high, p)])
    cells = [
        {
            "title": t,
            "interval": i,
            "paper": p,
            "total": last,
            "kind": kind(i),
            "svg": charts.interval_cell(domain, i.value, i.low, i.high, kind(i), paper=p),
        }
        for t, i, p, last in rows
    ]
    return {"axis": charts.interval_axis(domain, "Change, points"), "rows": cells, "paper": any(p is not None for _, _, p, _ in rows)}


def _margins(decision: Decision) -> list[float]:
    """Where to draw the margin: both sides for an equivalence, the loss side for a non-inferiority, nothing for a superiority."""
    if decision.question == "improved":
        return []
    return [-decision.margin, decision.margin] if decision.question.startswith("published") else [-decision.margin]


def _decision_row(decision: Decision, domain: tuple[float, float]) -> dict[str, object]:
    kind = _verdict_class(decision.verdict)
    title = "Mean over all" if decision.benchmark == ALL else title_of(decision.benchmark)
    svg = charts.interval_cell(domain, decision.estimate, decision.low, decision.high, kind, margins=_margins(decision))
    return {"d": decision, "title": title, "kind": kind, "svg": svg}


def _browse(run: RunData, stage: Stage, gate: Gate) -> str:
    """The part of an address that shows the two stages of a gate; empty where one of them is not in this run."""
    keys = [s.key for s in run.measured]
    if stage.key not in keys or gate.against not in ("base", "previous"):
        return ""
    at = keys.index(stage.key)
    other = "base" if gate.against == "base" else keys[at - 1] if at else ""
    return urlencode({"from": other, "to": stage.key}) if other in keys else ""


def _gate_view(run: RunData, stage: Stage, gate: Gate) -> dict[str, object]:
    r = gate.result
    domain = charts.points_domain([v for d in r.decisions for v in (d.estimate, d.low, d.high, *_margins(d))])
    questions: dict[str, list[dict[str, object]]] = {}
    for d in r.decisions:
        questions.setdefault(QUESTION_TEXT.get(d.question, d.question), []).append(_decision_row(d, domain))
    against = {"base": "the base model", "previous": "the iteration before", "paper": "the paper", "": "its baseline"}
    return {
        "title": f"{stage.title} against {against.get(gate.against, gate.against)}",
        "gate": r,
        "integrity": [
            f"{title_of(p.benchmark)}, {p.side}: {p.message}{f' (excused: {p.excused_by})' if p.excused_by else ''}" for p in r.integrity
        ],
        "axis": charts.interval_axis(domain),
        "browse": _browse(run, stage, gate),
        "groups": questions,
        "level": f"{100 * (1 - 2 * r.alpha):g}",
        "kind": _verdict_class(r.verdict),
    }


def _verdict_class(verdict: str) -> str:
    return verdict if verdict in ("pass", "fail", "inconclusive") else "other"


def gate_views(run: RunData) -> list[dict[str, object]]:
    """All comparisons, the last iteration against base first."""
    views = [(s, g) for s in reversed(run.stages) for g in sorted(s.gates, key=lambda g: g.against != "base")]
    return [_gate_view(run, s, g) for s, g in views]


def heat(run: RunData) -> list[dict[str, object]]:
    """Subtask scores of every stage and the change from first to last, as classes s0..s10 and d-5..d5."""
    groups: list[dict[str, object]] = []
    for b in run.benchmarks:
        found = [s.evaluations.get(b) for s in run.measured]
        tasks = sorted({t for e in found if e for t in e.score.subtasks})
        if len(tasks) < 2:
            continue
        counts = Counter(r.task for e in [next(e for e in found if e)] for r in e.records)
        rows = []
        for t in tasks:
            values = [e.score.subtasks.get(t) if e else None for e in found]
            a, z = values[0], values[-1]
            d = z - a if a is not None and z is not None and len(values) > 1 else None
            rows.append(
                {
                    "task": t.removeprefix(f"{b}_").replace("_", " "),
                    "n": counts[t],
                    "cells": [(v, None if v is None else min(10, max(0, int(v / 10 + 0.5)))) for v in values],
                    "change": d,
                    "bucket": None if d is None else max(-5, min(5, int(abs(d) / 4 + 0.5) * (1 if d > 0 else -1))),
                }
            )
        groups.append({"title": title_of(b), "rows": rows})
    return groups


def discordance(changes: dict[str, StageChange]) -> list[dict[str, object]]:
    most = max((max(c.better / c.n, c.worse / c.n) for c in changes.values()), default=0.0)
    # Bars are shares of a benchmark's questions, so that 200 questions and 19,000 can be looked at together; the numbers are counts.
    return [
        {"title": title_of(b), "key": b, "c": c, "svg": charts.discordance_cell(c.better, c.worse, max(1, round(most * c.n)))}
        for b, c in changes.items()
    ]
