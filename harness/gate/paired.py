"""Decisions between two own runs: the same questions, so paired differences, clustered by video.

`no_regression` rejects "worse by the margin or more" (pass) or "worse by less than the margin" (fail); `improved` is a cluster sign-flip
test (exact McNemar where every video has one question). Works on evaluations that passed integrity; knows no files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from harness.gate import stats
from harness.gate.gate import ALL, Decision, GateSettings, Verdict, credits
from harness.records import Evaluation


@dataclass(frozen=True)
class PairDecided:
    """Both decisions on a benchmark, with what the mean over benchmarks needs."""

    decisions: tuple[Decision, Decision]
    totals: stats.Floats
    se: float
    margin: float
    p_worse: float


def decide_pair(candidate: Evaluation, baseline: Evaluation, margin: float, s: GateSettings) -> PairDecided:
    """`no_regression` and `improved` for one benchmark; p values not yet adjusted for several benchmarks."""
    order = [r.question_id for r in baseline.records]
    a, b = credits(candidate, "strict", order), credits(baseline, "strict", order)
    d = stats.design([r.video_id for r in baseline.records], [r.task for r in baseline.records])
    diff = a - b
    mean = stats.cluster_mean(diff, d)
    if _same_model(candidate, baseline):
        decisions = _identical(candidate, d, margin, s)
        return PairDecided(decisions, mean.totals, 0.0, margin, 1.0)
    se = float(stats.paired_se(mean, d, margin / 100))
    t = stats.t_quantile(1 - s.alpha, mean.df)
    est, low, high = _points(float(mean.estimate), t * se)
    common: dict[str, Any] = {
        "benchmark": candidate.score.benchmark,
        "n": d.n,
        "videos": d.videos,
        "estimate": est,
        "margin": margin,
        "candidate_pct": candidate.score.strict_pct,
        "reference_pct": baseline.score.strict_pct,
        "gained": int((diff > 0).sum()),
        "lost": int((diff < 0).sum()),
    }
    mde = 100 * stats.mde(se, mean.df, s.alpha, s.power)
    p_ok = float(stats.t_upper(mean.estimate, se, mean.df, -margin / 100))
    p_bad = float(stats.t_lower(mean.estimate, se, mean.df, -margin / 100))
    floored = se > float(mean.se)
    regression = Decision(
        question="no_regression",
        low=low,
        high=high,
        verdict=_verdict(p_ok, p_bad, s.alpha),
        mde=_finite_or_none(mde),
        n_needed=stats.n_needed(d.n, mde, margin),
        p_value=p_ok,
        p_adjusted=p_bad,  # for `adjust`, which puts the adjusted p_value here
        method=f"paired t, clustered by video ({mean.df} df)" + (", error floored at the null's" if floored else ""),
        **common,
    )
    single = d.videos == d.n and not np.any((np.abs(diff) > 0) & (np.abs(diff) < 1)) and len(np.unique(d.weights)) == 1
    better, worse = stats.mcnemar(common["gained"], common["lost"]) if single else stats.sign_flip(mean.totals)
    raw_se = float(mean.se) or se
    _, low, high = _points(float(mean.estimate), t * raw_se)
    mde0 = 100 * stats.mde(raw_se, mean.df, s.alpha, s.power)
    improved = Decision(
        question="improved",
        low=low,
        high=high,
        verdict="inconclusive",  # set by `adjust`
        mde=_finite_or_none(mde0),
        n_needed=stats.n_needed(d.n, mde0, margin),
        p_value=better,
        p_adjusted=better,
        method="exact McNemar" if single else "cluster sign-flip permutation",
        required=s.require_improvement,
        **common,
    )
    return PairDecided((regression, improved), mean.totals, se, margin, worse)


def _same_model(a: Evaluation, b: Evaluation) -> bool:
    """Equal weights and equal answers throughout: the difference is zero by construction, not by luck."""
    p, q = a.score.provenance, b.score.provenance
    if not p.weights or p.weights != q.weights:
        return False
    mine = {r.question_id: (r.answer, r.strict) for r in a.records}
    return all(mine[r.question_id] == (r.answer, r.strict) for r in b.records)


def _identical(e: Evaluation, d: stats.Design, margin: float, s: GateSettings) -> tuple[Decision, Decision]:
    base = Decision(
        question="no_regression",
        benchmark=e.score.benchmark,
        n=d.n,
        videos=d.videos,
        estimate=0.0,
        low=0.0,
        high=0.0,
        margin=margin,
        verdict="pass",
        mde=0.0,
        n_needed=None,
        p_value=0.0,
        p_adjusted=1.0,
        method="exact: same weights, same answers",
        note="the same model gave the same answers to every question",
        candidate_pct=e.score.strict_pct,
        reference_pct=e.score.strict_pct,
        gained=0,
        lost=0,
    )
    return base, replace(base, question="improved", verdict="inconclusive", p_value=1.0, p_adjusted=1.0, required=s.require_improvement)


def _points(estimate: float, half: float) -> tuple[float, float, float]:
    """Estimate and bounds in points, cut at what a difference of percentages can be."""
    return 100 * estimate, max(-100.0, 100 * (estimate - half)), min(100.0, 100 * (estimate + half))


def _finite_or_none(x: float) -> float | None:
    return x if math.isfinite(x) else None


def _verdict(p_pass: float, p_fail: float, alpha: float) -> Verdict:
    return "pass" if p_pass <= alpha else "fail" if p_fail <= alpha else "inconclusive"


def adjust(decisions: Sequence[Decision], s: GateSettings) -> list[Decision]:
    """Holm over the benchmarks, separately for each question.

    `no_regression`: the overall pass needs every benchmark to pass, so each is tested at alpha (intersection-union; Berger 1982) and
    `p_adjusted` is for quoting one benchmark alone; a fail of any benchmark fails all, so fails are Holm-adjusted. `improved`: a success
    in any benchmark is news, so passes are Holm-adjusted.
    """
    out: list[Decision] = []
    regressions = [d for d in decisions if d.question == "no_regression"]
    p_bad = stats.holm([d.p_adjusted for d in regressions])
    p_ok = stats.holm([d.p_value for d in regressions])
    for d, bad, ok in zip(regressions, p_bad, p_ok, strict=True):
        verdict = _verdict(d.p_value, float(bad), s.alpha)
        out.append(replace(d, verdict=verdict, p_adjusted=float(ok), note=d.note or _regression_note(d, verdict)))
    improvements = [d for d in decisions if d.question == "improved"]
    for d, p in zip(improvements, stats.holm([d.p_value for d in improvements]), strict=True):
        verdict = "pass" if p <= s.alpha else "fail" if d.high < 0 else "inconclusive"
        out.append(replace(d, verdict=verdict, p_adjusted=float(p), note=d.note or _improved_note(d, verdict)))
    return out


def _needs(d: Decision) -> str:
    need = f"; about {d.n_needed:,} questions would settle a difference of {d.margin:g}" if d.n_needed and d.n_needed > d.n else ""
    return (
        (f"smallest effect seen with this many questions: {d.mde:.1f} points{need}")
        if d.mde is not None
        else "too few videos for any statement"
    )


def _regression_note(d: Decision, verdict: Verdict) -> str:
    if verdict == "pass":
        return f"a loss of {d.margin:g} points or more is ruled out"
    if verdict == "fail":
        return f"worse by more than {d.margin:g} points ({d.estimate:+.1f})"
    return f"a loss of {d.margin:g} points is neither shown nor ruled out; {_needs(d)}"


def _improved_note(d: Decision, verdict: Verdict) -> str:
    if verdict == "pass":
        return f"better ({d.estimate:+.1f} points)"
    if verdict == "fail":
        return f"worse ({d.estimate:+.1f} points)"
    return f"no improvement shown; {_needs(d)}"


def decide_mean(pairs: Sequence[PairDecided], s: GateSettings) -> list[Decision]:
    """The same two questions about the unweighted mean over benchmarks, for information (`required` is False).

    The benchmarks' errors are added as independent; videos shared between two benchmarks would make them slightly correlated.
    """
    k = len(pairs)
    ds = [p.decisions[0] for p in pairs]
    est = sum(d.estimate for d in ds) / k
    se = 100 * math.sqrt(sum(p.se**2 for p in pairs)) / k
    margin = sum(p.margin for p in pairs) / k
    df = sum(d.videos for d in ds) - k
    half = stats.t_quantile(1 - s.alpha, df) * se
    p_ok = float(stats.t_upper(est, se, df, -margin))
    p_bad = float(stats.t_lower(est, se, df, -margin))
    better, _ = stats.sign_flip(np.concatenate([p.totals for p in pairs]) / k)
    mde = stats.mde(se, df, s.alpha, s.power)
    n = sum(d.n for d in ds)
    base = Decision(
        question="no_regression",
        benchmark=ALL,
        n=n,
        videos=sum(d.videos for d in ds),
        estimate=est,
        low=max(-100.0, est - half),
        high=min(100.0, est + half),
        margin=margin,
        verdict=_verdict(p_ok, p_bad, s.alpha),
        mde=_finite_or_none(mde),
        n_needed=stats.n_needed(n, mde, margin) if se > 0 else None,
        p_value=p_ok,
        p_adjusted=p_ok,
        method="mean over benchmarks, clustered by video",
        required=False,
        candidate_pct=_mean([d.candidate_pct for d in ds]),
        reference_pct=_mean([d.reference_pct for d in ds]),
        gained=sum(d.gained or 0 for d in ds),
        lost=sum(d.lost or 0 for d in ds),
    )
    base = replace(base, note=_regression_note(base, base.verdict))
    verdict: Verdict = "pass" if better <= s.alpha else "fail" if base.high < 0 else "inconclusive"
    improved = replace(
        base,
        question="improved",
        verdict=verdict,
        p_value=better,
        p_adjusted=better,
        method="mean over benchmarks, cluster sign-flip permutation",
    )
    return [base, replace(improved, note=_improved_note(improved, verdict))]


def _mean(values: Sequence[float | None]) -> float:
    return sum(v for v in values if v is not None) / len(values)
