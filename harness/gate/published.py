"""Decisions against published numbers: only the aggregate is known, so two one-sided tests (TOST) against the frozen margin.

The published value is widened by its rounding; our own error is the clustered one of the score exactly as lmms-eval reports it
(`upstream`). The gain over our own base run is paired, so it is known better than the score itself. Far above is as suspicious as far
below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from harness.gate import stats
from harness.gate.gate import PUBLISHED_ROUNDING, Decision, GateSettings, Question, credits
from harness.gate.paired import _finite_or_none
from harness.records import Evaluation


def decide_score(candidate: Evaluation, published: float, margin: float, s: GateSettings) -> Decision:
    """Is our score equal to the published one within the margin?"""
    d = stats.design([r.video_id for r in candidate.records], [r.task for r in candidate.records])
    mean = stats.cluster_mean(credits(candidate, "upstream"), d)
    # The stated score is compared; the records give its error (they differ only where upstream leaves answers out of its denominator).
    ours, se = candidate.score.upstream_pct, 100 * float(mean.se)
    return _equivalence("published_score", candidate, ours - published, PUBLISHED_ROUNDING, se, mean.df, d, margin, s, ours, published)


def decide_gain(candidate: Evaluation, base: Evaluation, published_gain: float, margin: float, s: GateSettings) -> Decision:
    """Is our gain over our own base run equal to the published gain within the margin? Both published numbers were rounded."""
    order = [r.question_id for r in base.records]
    d = stats.design([r.video_id for r in base.records], [r.task for r in base.records])
    mean = stats.cluster_mean(credits(candidate, "upstream", order) - credits(base, "upstream", order), d)
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
) -> Decision:
    room = margin - rounding  # the true published value may be this much nearer or farther
    beyond = margin + rounding
    p_equal = max(float(stats.t_upper(diff, se, df, -room)), float(stats.t_lower(diff, se, df, room))) if room > 0 else 1.0
    p_far = min(1.0, 2 * min(float(stats.t_upper(diff, se, df, beyond)), float(stats.t_lower(diff, se, df, -beyond))))
    half = stats.t_quantile(1 - s.alpha, df) * se + rounding
    # Both one-sided tests must reject, so at a true difference of zero each needs power 1 - (1 - power) / 2.
    mde = stats.mde(se, df, s.alpha, 1 - (1 - s.power) / 2) + rounding
    return Decision(
        question=question,
        benchmark=e.score.benchmark,
        n=d.n,
        videos=d.videos,
        estimate=diff,
        low=max(-100.0, diff - half),
        high=min(100.0, diff + half),
        margin=margin,
        verdict="inconclusive",  # set by `adjust_published`
        mde=_finite_or_none(mde),
        n_needed=stats.n_needed(d.n, mde - rounding, room) if math.isfinite(mde) else None,
        p_value=p_equal,
        p_adjusted=p_far,
        method=f"two one-sided t tests, clustered by video ({df} df), published value +-{rounding:g}",
        candidate_pct=ours,
        reference_pct=theirs,
    )


def adjust_published(decisions: Sequence[Decision], s: GateSettings) -> list[Decision]:
    """Set verdicts: equivalence at alpha each (all must pass), drift alarms Holm-adjusted over the benchmarks of the same question."""
    out: list[Decision] = []
    for question in ("published_score", "published_gain"):
        group = [d for d in decisions if d.question == question]
        far = stats.holm([d.p_adjusted for d in group])
        equal = stats.holm([d.p_value for d in group])
        for d, p_far, p_equal in zip(group, far, equal, strict=True):
            what = "score" if question == "published_score" else "gain"
            if d.p_value <= s.alpha:
                verdict, note = "pass", f"the {what} agrees with the published one within {d.margin:g} points"
            elif p_far <= s.alpha:
                side = "above" if d.estimate > 0 else "below"
                verdict, note = (
                    "fail",
                    (f"the {what} is {abs(d.estimate):.1f} points {side} the published one (either way means a different measurement)"),
                )
            else:
                need = f"; about {d.n_needed:,} questions would be needed" if d.n_needed and d.n_needed > d.n else ""
                seen = f"{d.mde:.1f} points" if d.mde is not None else "nothing"
                verdict, note = (
                    "inconclusive",
                    (f"neither agreement nor difference is shown; this many questions can show agreement within {seen}{need}"),
                )
            out.append(replace(d, verdict=verdict, p_adjusted=float(p_equal), note=note))  # type: ignore[arg-type]
    return out
