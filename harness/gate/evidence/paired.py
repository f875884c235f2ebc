"""Evidence from two own runs: the same questions, so paired differences, clustered by video.

`no_regression` tests the difference against the margin, `improved` against zero, `format` the rise of answers that cannot be read. Each is
asked of every benchmark and of their mean. Works on evaluations that passed integrity; knows no files.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness import stats
from harness.gate.decision import ALL, Evidence
from harness.gate.evidence.clustered import credits, design_of, ids, spread
from harness.gate.evidence.formats import FORMAT_MARGIN, MOST_UNREADABLE, rise, unreadable_pct
from harness.gate.settings import GateSettings
from harness.records import Evaluation


@dataclass(frozen=True)
class Pair:
    """A benchmark's paired differences and what is said beside them; `parts` benchmarks where it is their mean."""

    benchmark: str
    n: int
    margin: float
    difference: stats.ClusterMean
    unreadable: stats.ClusterMean
    counts: Mapping[str, int]
    """gained, lost; better and worse formatted."""
    strict_pct: tuple[float, float]
    unreadable_pct: tuple[float, float]
    same: bool
    single: bool = False
    """Every video has one question of equal weight."""
    parts: int = 1
    unread: bool = False
    """More of the baseline's answers than `MOST_UNREADABLE` could not be read (of any part, where it is a mean)."""

    @property
    def videos(self) -> int:
        """Clusters."""
        return len(self.difference.weights)


def pair(candidate: Evaluation, baseline: Evaluation, margin: float) -> Pair:
    """The paired differences of one benchmark, on strict credit. `margin` in points."""
    order = ids(baseline)
    diff = credits(candidate, "strict", order) - credits(baseline, "strict")
    unreadable = rise(candidate, baseline)
    d = design_of(baseline)
    return Pair(
        benchmark=candidate.score.benchmark,
        n=d.n,
        margin=margin,
        difference=stats.cluster_mean(diff, d),
        unreadable=stats.cluster_mean(unreadable, d),
        counts={
            "gained": int((diff > 0).sum()),
            "lost": int((diff < 0).sum()),
            "readable": int((unreadable < 0).sum()),
            "unreadable": int((unreadable > 0).sum()),
        },
        strict_pct=(candidate.score.strict_pct, baseline.score.strict_pct),
        unreadable_pct=(unreadable_pct(candidate), unreadable_pct(baseline)),
        same=_same_model(candidate, baseline),
        unread=unreadable_pct(baseline) > MOST_UNREADABLE + 1e-9,
        single=d.videos == d.n and set(np.unique(diff)) <= {-1.0, 0.0, 1.0} and len(np.unique(d.weights)) == 1,
    )


def mean_of(pairs: Sequence[Pair]) -> Pair:
    """The unweighted mean of the benchmarks as one pair."""
    k = len(pairs)
    return Pair(
        benchmark=ALL,
        n=sum(p.n for p in pairs),
        margin=sum(p.margin for p in pairs) / k,
        difference=stats.pool([p.difference for p in pairs]),
        unreadable=stats.pool([p.unreadable for p in pairs]),
        counts={name: sum(p.counts[name] for p in pairs) for name in pairs[0].counts},
        strict_pct=(sum(p.strict_pct[0] for p in pairs) / k, sum(p.strict_pct[1] for p in pairs) / k),
        unreadable_pct=(sum(p.unreadable_pct[0] for p in pairs) / k, sum(p.unreadable_pct[1] for p in pairs) / k),
        same=all(p.same for p in pairs),
        parts=k,
        unread=any(p.unread for p in pairs),
    )


def paired_evidence(pairs: Sequence[Pair], averaged: Collection[str], settings: GateSettings) -> list[Evidence]:
    """Evidence on all three questions about every benchmark and about the mean of those `averaged`, where there are several."""
    parts = [p for p in pairs if p.benchmark in averaged]
    asked = [*pairs, mean_of(parts)] if len(parts) > 1 else list(pairs)
    return [make(p, settings) for make in (_no_regression, _improved, _format) for p in asked]


def _same_model(candidate: Evaluation, baseline: Evaluation) -> bool:
    """Equal weights and equal answers throughout: the difference is zero by construction, not by luck."""
    p, q = candidate.score.provenance, baseline.score.provenance
    if not p.weights or p.weights != q.weights:
        return False
    mine = {r.question_id: (r.answer, r.strict, r.status) for r in candidate.records}
    return all(mine[r.question_id] == (r.answer, r.strict, r.status) for r in baseline.records)


def _common(paired: Pair) -> dict[str, Any]:
    return {
        "benchmark": paired.benchmark,
        "n": paired.n,
        "videos": paired.videos,
        "margin": paired.margin,
        "candidate_pct": paired.strict_pct[0],
        "reference_pct": paired.strict_pct[1],
        "gained": paired.counts["gained"],
        "lost": paired.counts["lost"],
    }


def _zero(p_value: float) -> dict[str, Any]:
    """The figures where the same model gave the same answers."""
    return {
        "estimate": 0.0,
        "low": 0.0,
        "high": 0.0,
        "mde": 0.0,
        "n_needed": None,
        "power": 1.0,
        "p_value": p_value,
        "p_fail": 1.0,
        "method": "exact: same weights, same answers",
        "note": "the same model gave the same answers to every question",
    }


def _over(paired: Pair) -> str:
    return f"unweighted mean of {paired.parts} benchmarks, " if paired.parts > 1 else ""


def _method(paired: Pair, test: stats.MeanTest) -> str:
    floor = ", error floored at what whole videos that break would give" if test.floored else ""
    return f"{_over(paired)}paired t and tilting, clustered by video ({test.df:.0f} df){floor}"


def _spread(mean: stats.ClusterMean, se: float, df: float, n: int, margin: float, settings: GateSettings) -> dict[str, Any]:
    beyond = 100 * float(stats.beyond_t(mean, se, df, settings.alpha))
    return spread(100 * float(mean.estimate), 100 * se, df, n, margin, settings, beyond=beyond)


def _no_regression(paired: Pair, settings: GateSettings) -> Evidence:
    if paired.same:
        return Evidence(question="no_regression", **_common(paired), **_zero(0.0))
    test = stats.mean_test(paired.difference, -paired.margin / 100)
    return Evidence(
        question="no_regression",
        p_value=float(test.p_above),
        p_fail=float(test.p_below),
        method=_method(paired, test),
        **_common(paired),
        **_spread(paired.difference, float(test.se), test.df, paired.n, paired.margin, settings),
    )


def _improved(paired: Pair, settings: GateSettings) -> Evidence:
    """Sign flips test symmetry and the t test is approximate, so each p value is the larger of both; McNemar's test is exact. Over a
    baseline whose answers were not read no improvement is shown: what was gained may be the reading alone."""
    if paired.same:
        return Evidence(question="improved", **_common(paired), **_zero(1.0))
    test = stats.mean_test(paired.difference, 0.0)
    if paired.single:
        better, worse = stats.mcnemar(paired.counts["gained"], paired.counts["lost"])
    else:
        better, worse = (
            max(flip, float(t)) for flip, t in zip(stats.sign_flip(paired.difference.totals), (test.p_above, test.p_below), strict=True)
        )
    # Where nothing changed the data give no error; the margin's floor still bounds what could be seen.
    se = float(test.se) or float(stats.mean_test(paired.difference, -paired.margin / 100).se)
    return Evidence(
        question="improved",
        p_value=1.0 if paired.unread else better,
        p_fail=worse,
        method=_over(paired) + ("exact McNemar" if paired.single else "cluster sign flips and paired t, the larger p"),
        note=f"over {MOST_UNREADABLE:g} % of the baseline's answers cannot be read: no improvement over it is shown"
        if paired.unread and paired.difference.estimate > 0
        else "",
        **_common(paired),
        **_spread(paired.difference, se, test.df, paired.n, paired.margin, settings),
    )


def _format(paired: Pair, settings: GateSettings) -> Evidence:
    common = {
        **_common(paired),
        "margin": FORMAT_MARGIN,
        "candidate_pct": paired.unreadable_pct[0],
        "reference_pct": paired.unreadable_pct[1],
        "gained": paired.counts["readable"],
        "lost": paired.counts["unreadable"],
    }
    if paired.same:
        return Evidence(question="format", **common, **_zero(0.0))
    test = stats.mean_test(paired.unreadable, FORMAT_MARGIN / 100)
    return Evidence(
        question="format",
        p_value=float(test.p_below),
        p_fail=float(test.p_above),
        method=_method(paired, test),
        **common,
        **_spread(paired.unreadable, float(test.se), test.df, paired.n, FORMAT_MARGIN, settings),
    )
