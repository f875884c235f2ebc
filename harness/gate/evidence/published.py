"""Evidence against published numbers: only the aggregate is known, so two one-sided tests (TOST) against the frozen margin.

The published value is widened by its rounding; our own error is the clustered one of the score exactly as lmms-eval reports it
(`upstream`). The gain over our own base run is paired, so it is known better than the score itself. Far above is as suspicious as far
below.
"""

from __future__ import annotations

import math

from harness import stats
from harness.gate.decision import Evidence, Question
from harness.gate.evidence.paired import credits, design_of
from harness.gate.settings import GateSettings
from harness.records import Evaluation

PUBLISHED_ROUNDING = 0.05
"""A number published with one decimal is known to +-0.05 points."""


def compare_score(candidate: Evaluation, published: float, margin: float, s: GateSettings) -> Evidence:
    """Is our score equal to the published one within the margin?"""
    d = design_of(candidate)
    mean = stats.cluster_mean(credits(candidate, "upstream"), d)
    # The stated score is compared; the records give its error (they differ only where upstream leaves answers out of its denominator).
    ours, se = candidate.score.upstream_pct, 100 * float(mean.se)
    return _equivalence("published_score", candidate, ours - published, PUBLISHED_ROUNDING, se, mean.df, d, margin, s, ours, published)


def compare_gain(candidate: Evaluation, base: Evaluation, published_gain: float, margin: float, s: GateSettings) -> Evidence:
    """Is our gain over our own base run equal to the published gain within the margin? Both published numbers were rounded."""
    d = design_of(base)
    mean = stats.cluster_mean(credits(candidate, "upstream", [r.question_id for r in base.records]) - credits(base, "upstream"), d)
    gain = candidate.score.upstream_pct - base.score.upstream_pct
    se = 100 * float(stats.paired_se(mean, d, margin / 100))
    return _equivalence(
        "published_gain", candidate, gain - published_gain, 2 * PUBLISHED_ROUNDING, se, mean.df, d, margin, s, gain, published_gain
    )


def _equivalence(
    question: Question,
    e: Evaluation,
    diff: float,
    rounding: float,
    se: float,
    df: int,
    d: stats.Design,
    margin: float,
    s: GateSettings,
    ours: float,
    theirs: float,
) -> Evidence:
    room = margin - rounding  # the true published value may be this much nearer or farther
    beyond = margin + rounding
    p_equal = max(float(stats.t_upper(diff, se, df, -room)), float(stats.t_lower(diff, se, df, room))) if room > 0 else 1.0
    p_far = min(1.0, 2 * min(float(stats.t_upper(diff, se, df, beyond)), float(stats.t_lower(diff, se, df, -beyond))))
    half = stats.t_quantile(1 - s.alpha, df) * se + rounding
    # Both one-sided tests must reject, so at a true difference of zero each needs power 1 - (1 - power) / 2.
    mde = stats.mde(se, df, s.alpha, 1 - (1 - s.power) / 2) + rounding
    return Evidence(
        question=question,
        benchmark=e.score.benchmark,
        n=d.n,
        videos=d.videos,
        estimate=diff,
        low=max(-100.0, diff - half),
        high=min(100.0, diff + half),
        margin=margin,
        mde=mde if math.isfinite(mde) else None,
        n_needed=stats.n_needed(d.n, mde - rounding, room) if math.isfinite(mde) else None,
        p_value=p_equal,
        p_fail=p_far,
        method=f"two one-sided t tests, clustered by video ({df} df), published value +-{rounding:g}",
        candidate_pct=ours,
        reference_pct=theirs,
    )
