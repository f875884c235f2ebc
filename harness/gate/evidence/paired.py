"""Evidence from two own runs: the same questions, so paired differences, clustered by video.

`no_regression` tests the difference against the margin, `improved` tests it against zero (exact McNemar where every video has one
question). Works on evaluations that passed integrity; knows no files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from harness import stats
from harness.gate.decision import ALL, Evidence
from harness.gate.settings import GateSettings
from harness.records import Evaluation


@dataclass(frozen=True)
class PairEvidence:
    """Evidence on both questions of a benchmark, with what the mean over benchmarks needs."""

    no_regression: Evidence
    improved: Evidence
    totals: stats.Floats
    se: float


def credits(e: Evaluation, kind: Literal["strict", "upstream"], order: Sequence[str] | None = None) -> np.ndarray:
    """Credits [n] of the records (fractions), in the order of the given question ids."""
    if order is None:
        return np.array([getattr(r, kind) for r in e.records], dtype=np.float64)
    by_id = {r.question_id: getattr(r, kind) for r in e.records}
    return np.array([by_id[q] for q in order], dtype=np.float64)


def design_of(e: Evaluation) -> stats.Design:
    """Videos and tasks of an evaluation's questions, in the order of its records."""
    return stats.design([r.video_id for r in e.records], [r.task for r in e.records])


def compare_pair(candidate: Evaluation, baseline: Evaluation, margin: float, s: GateSettings) -> PairEvidence:
    """Evidence on `no_regression` and `improved` for one benchmark, on strict credit."""
    diff = credits(candidate, "strict", [r.question_id for r in baseline.records]) - credits(baseline, "strict")
    d = design_of(baseline)
    mean = stats.cluster_mean(diff, d)
    if _same_model(candidate, baseline):
        return PairEvidence(*_identical(candidate, d, margin), mean.totals, 0.0)
    se = float(stats.paired_se(mean, d, margin / 100))
    estimate = float(mean.estimate)
    common: dict[str, Any] = {
        "benchmark": candidate.score.benchmark,
        "n": d.n,
        "videos": d.videos,
        "margin": margin,
        "candidate_pct": candidate.score.strict_pct,
        "reference_pct": baseline.score.strict_pct,
        "gained": int((diff > 0).sum()),
        "lost": int((diff < 0).sum()),
    }
    no_regression = Evidence(
        question="no_regression",
        p_value=float(stats.t_upper(estimate, se, mean.df, -margin / 100)),
        p_fail=float(stats.t_lower(estimate, se, mean.df, -margin / 100)),
        method=f"paired t, clustered by video ({mean.df} df)" + (", error floored at the null's" if se > float(mean.se) else ""),
        **common,
        **spread(100 * estimate, 100 * se, mean.df, d.n, margin, s),
    )
    single = d.videos == d.n and not np.any((np.abs(diff) > 0) & (np.abs(diff) < 1)) and len(np.unique(d.weights)) == 1
    better, worse = stats.mcnemar(common["gained"], common["lost"]) if single else stats.sign_flip(mean.totals)
    improved = Evidence(
        question="improved",
        p_value=better,
        p_fail=worse,
        method="exact McNemar" if single else "cluster sign-flip permutation",
        **common,
        **spread(100 * estimate, 100 * (float(mean.se) or se), mean.df, d.n, margin, s),
    )
    return PairEvidence(no_regression, improved, mean.totals, se)


def spread(estimate: float, se: float, df: int, n: int, margin: float, s: GateSettings) -> dict[str, Any]:
    """Estimate, bounds, MDE and n needed (points), the bounds cut at what a difference of percentages can be."""
    half = stats.t_quantile(1 - s.alpha, df) * se
    mde = stats.mde(se, df, s.alpha, s.power)
    return {
        "estimate": estimate,
        "low": max(-100.0, estimate - half),
        "high": min(100.0, estimate + half),
        "mde": mde if math.isfinite(mde) else None,
        "n_needed": stats.n_needed(n, mde, margin) if se > 0 else None,
    }


def _same_model(a: Evaluation, b: Evaluation) -> bool:
    """Equal weights and equal answers throughout: the difference is zero by construction, not by luck."""
    p, q = a.score.provenance, b.score.provenance
    if not p.weights or p.weights != q.weights:
        return False
    mine = {r.question_id: (r.answer, r.strict) for r in a.records}
    return all(mine[r.question_id] == (r.answer, r.strict) for r in b.records)


def _identical(e: Evaluation, d: stats.Design, margin: float) -> tuple[Evidence, Evidence]:
    same = Evidence(
        question="no_regression",
        benchmark=e.score.benchmark,
        n=d.n,
        videos=d.videos,
        estimate=0.0,
        low=0.0,
        high=0.0,
        margin=margin,
        mde=0.0,
        n_needed=None,
        p_value=0.0,
        p_fail=1.0,
        method="exact: same weights, same answers",
        note="the same model gave the same answers to every question",
        candidate_pct=e.score.strict_pct,
        reference_pct=e.score.strict_pct,
        gained=0,
        lost=0,
    )
    return same, replace(same, question="improved", p_value=1.0)


def mean_evidence(pairs: Sequence[PairEvidence], s: GateSettings) -> tuple[Evidence, Evidence]:
    """The same two questions about the unweighted mean over benchmarks.

    The benchmarks' errors are added as independent; videos shared between two benchmarks would make them slightly correlated.
    """
    k = len(pairs)
    parts = [p.no_regression for p in pairs]
    est = sum(e.estimate for e in parts) / k
    se = 100 * math.sqrt(sum(p.se**2 for p in pairs)) / k
    margin = sum(e.margin for e in parts) / k
    n, videos = sum(e.n for e in parts), sum(e.videos for e in parts)
    df = videos - k
    better, worse = stats.sign_flip(np.concatenate([p.totals for p in pairs]) / k)
    no_regression = Evidence(
        question="no_regression",
        benchmark=ALL,
        n=n,
        videos=videos,
        margin=margin,
        p_value=float(stats.t_upper(est, se, df, -margin)),
        p_fail=float(stats.t_lower(est, se, df, -margin)),
        method="mean over benchmarks, clustered by video",
        candidate_pct=_mean([e.candidate_pct for e in parts]),
        reference_pct=_mean([e.reference_pct for e in parts]),
        gained=sum(e.gained or 0 for e in parts),
        lost=sum(e.lost or 0 for e in parts),
        **spread(est, se, df, n, margin, s),
    )
    method = "mean over benchmarks, cluster sign-flip permutation"
    return no_regression, replace(no_regression, question="improved", p_value=better, p_fail=worse, method=method)


def _mean(values: Sequence[float | None]) -> float:
    return sum(v for v in values if v is not None) / len(values)
