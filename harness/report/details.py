"""What the report shows of how a run was made: pairs, training curves, statuses of answers, costs, provenance.

Plain functions from `RunData` to values, as in `views`.
"""

from __future__ import annotations

from collections import Counter

from markupsafe import Markup

from harness.records import Status
from harness.report import charts
from harness.report.data import Pairs, RunData, Stage, title_of
from harness.report.text import legible

STATUSES: tuple[Status, ...] = ("ok", "unparsed", "empty", "degenerate", "judged", "failed")
_CURVES = (
    "loss",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
    "rewards/chosen",
    "rewards/rejected",
    "nll_loss",
    "grad_norm",
    "learning_rate",
)
_CURVE_TITLES = {
    "loss": "Loss",
    "rewards/accuracies": "Chosen preferred, share",
    "accuracy": "Chosen preferred, share",
    "rewards/margins": "Reward margin",
    "margin": "Reward margin",
    "logps/chosen": "log p of chosen",
    "logps/rejected": "log p of rejected",
    "rewards/chosen": "Reward of chosen",
    "rewards/rejected": "Reward of rejected",
    "nll_loss": "NLL term",
    "grad_norm": "Gradient norm",
    "learning_rate": "Learning rate",
}
_NOT_CURVES = {"step", "epoch", "total_flos", "time", "wall_s"}
MAX_CURVES = 9
MAX_DROP_REASONS = 14


def pair_view(run: RunData) -> dict[str, object] | None:
    """Outcomes of the model's own questions as rows, iterations as columns."""
    found: list[tuple[Stage, Pairs]] = [(s, s.pairs) for s in run.stages if s.pairs is not None]
    if not found:
        return None
    made = sum((Counter(p.kinds) for _, p in found), Counter[str]())
    dropped = sum((Counter(p.dropped) for _, p in found), Counter[str]())
    shown = [
        *((f"{k} pair", k, "better") for k, _ in made.most_common(6)),
        *((legible(k, 90), k, "dropped") for k, _ in dropped.most_common(MAX_DROP_REASONS)),
    ]
    most = max((n for _, p in found for n in (*p.kinds.values(), *p.dropped.values())), default=1)
    rows = []
    for label, k, cls in shown:
        counts = [(p.kinds if cls == "better" else p.dropped).get(k, 0) for _, p in found]
        rows.append(
            {"label": label, "dropped": cls == "dropped", "cells": [(n, charts.bar_cell(n, most, f"{label}: {n}", cls)) for n in counts]}
        )
    columns = [
        {"title": s.title, "p": p, "asked": p.n + sum(p.dropped.values()), "share": 100 * p.n / max(p.n + sum(p.dropped.values()), 1)}
        for s, p in found
    ]
    return {"columns": columns, "rows": rows, "left_out": max(0, len(dropped) - MAX_DROP_REASONS)}


def curves(run: RunData) -> list[tuple[str, Markup]]:
    names: Counter[str] = Counter(
        k for s in run.stages for row in s.log for k in row if k not in _NOT_CURVES and not k.startswith("train_")
    )
    order = [k for k in _CURVES if k in names] + sorted(k for k in names if k not in _CURVES)
    out = []
    for k in order[:MAX_CURVES]:
        series = [(s.short, [(row.get("step", float(i)), row[k]) for i, row in enumerate(s.log, 1) if k in row]) for s in run.stages]
        title = _CURVE_TITLES.get(k, legible(k.replace("_", " "), 60))
        if any(pts for _, pts in series):
            out.append((title, charts.line_chart(title, series)))
    return out


def statuses(run: RunData) -> dict[str, object] | None:
    """How answers were read, by stage and status, over all benchmarks; statuses that never occur are left out."""
    if not run.measured:
        return None
    totals = {s.title: Counter(r.status for e in s.evaluations.values() for r in e.records) for s in run.measured}
    shown = [x for x in STATUSES if x == "ok" or any(c[x] for c in totals.values())]
    by_benchmark = []
    last = run.measured[-1]
    for b in run.benchmarks:
        if b in last.evaluations:
            c = Counter(r.status for r in last.evaluations[b].records)
            by_benchmark.append((title_of(b), [c[x] for x in shown], sum(c.values())))
    return {
        "statuses": shown,
        "stages": [(t, [c[x] for x in shown], sum(c.values())) for t, c in totals.items()],
        "benchmarks": by_benchmark,
        "last": last.title,
    }


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    m, s = divmod(round(seconds), 60)
    return f"{m // 60} h {m % 60:02d} min" if m >= 60 else f"{m} min {s:02d} s"


def costs(run: RunData) -> dict[str, object] | None:
    rows = [(t.stage, t.wall_s, t.extra) for t in run.timings or []]
    source = "timings.json"
    if not rows:
        # An evaluation notes its own wall time, so the larger part of a run's cost is known without timings.json.
        rows = [
            (f"{s.title}: {title_of(b)}", e.score.wall_s, "") for s in run.measured for b, e in s.evaluations.items() if e.score.wall_s > 0
        ]
        source = "the evaluations' own times"
    if not rows:
        return None
    most = max(t for _, t, _ in rows)
    cells = [
        {
            "name": legible(n, 120),
            "time": duration(t),
            "extra": legible(x, 240),
            "svg": charts.bar_cell(t, most, f"{legible(n, 120)}: {duration(t)}"),
        }
        for n, t, x in rows
    ]
    return {"rows": cells, "total": duration(sum(t for _, t, _ in rows)), "source": source}


def provenance(run: RunData) -> list[dict[str, object]]:
    rows = []
    for s in run.measured:
        for b, e in s.evaluations.items():
            p = e.score.provenance
            rows.append(
                {
                    "stage": s.title,
                    "benchmark": title_of(b),
                    "model": legible(p.model, 200),
                    "weights": p.weights[:12],
                    "media": p.media[:12],
                    "prompts": p.prompts[:12],
                    "seed": p.seed,
                    "frames": ", ".join(f"{k} {v}" for k, v in p.frames.items()),
                    "generation": ", ".join(f"{k} {v}" for k, v in p.generation.items()),
                    "versions": ", ".join(f"{k} {v}" for k, v in p.versions.items()),
                }
            )
    return rows
