"""Evidence against published numbers: only the aggregate is known, so two one-sided tests (TOST) against the frozen margin.

Both scores are of the same fixed questions, so drawing questions is no source of error here. What separates two measurements of one model
on one set is rounding (the published value is widened by it) and run noise: kernels, batch sizes and hardware flip some answers. That noise
is measured where reruns are given, and never taken below a stated floor. Far above is as suspicious as far below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from harness import stats
from harness.gate.decision import Evidence, Question
from harness.gate.evidence.clustered import credits, design_of, ids
from harness.gate.settings import GateSettings
from harness.records import Evaluation

PUBLISHED_ROUNDING = 0.05
"""A number published with one decimal is known to +-0.05 points."""
RERUN_FLIPS = 0.01
"""Least share of answers whose credit differs between two runs of one model (ours: what other kernels and batch sizes flip in bf16)."""
MANY = 1_000_000
"""Degrees of freedom of an error that is stated, not estimated."""


@dataclass(frozen=True)
class Noise:
    """Standard error (points) of the difference between two runs of one model, and where it comes from."""

    se: float
    source: str


def rerun_noise(candidate: Evaluation, reruns: Sequence[Evaluation] = ()) -> Noise:
    """The larger of the floor and what `reruns` of the same weights show, videos taken as one draw each."""
    d = design_of(candidate)
    floor = 100 * math.sqrt(RERUN_FLIPS * float((d.weights**2).sum()))
    source = f"rerun noise {floor:.2f} points, the floor ({100 * RERUN_FLIPS:g} % of the answers flip)"
    if not reruns:
        return Noise(floor, source)
    mine = credits(candidate, "upstream")
    squares = [float((d.totals(credits(e, "upstream", ids(candidate)) - mine) ** 2).sum()) for e in reruns]
    measured = 100 * math.sqrt(sum(squares) / len(squares))
    if measured <= floor:
        return Noise(floor, f"{source}; {len(reruns)} reruns show {measured:.2f}")
    return Noise(measured, f"rerun noise {measured:.2f} points, measured on {len(reruns)} reruns")


def compare_score(candidate: Evaluation, published: float, margin: float, noise: Noise, settings: GateSettings) -> Evidence:
    """Is our score equal to the published one within the margin?"""
    ours = candidate.score.upstream_pct
    return _equivalence("published_score", candidate, ours, published, PUBLISHED_ROUNDING, noise, margin, settings)


def compare_gain(
    candidate: Evaluation, base: Evaluation, published_gain: float, margin: float, noise: Noise, settings: GateSettings
) -> Evidence:
    """Is our gain over our own base run equal to the published gain within the margin? Both published numbers were rounded, and two runs
    of ours and two of theirs are noisy."""
    gain = candidate.score.upstream_pct - base.score.upstream_pct
    both = Noise(math.sqrt(2) * noise.se, f"twice {noise.source}")
    return _equivalence("published_gain", candidate, gain, published_gain, 2 * PUBLISHED_ROUNDING, both, margin, settings)


def _equivalence(
    question: Question,
    evaluation: Evaluation,
    ours: float,
    theirs: float,
    rounding: float,
    noise: Noise,
    margin: float,
    settings: GateSettings,
) -> Evidence:
    diff, se, d = ours - theirs, noise.se, design_of(evaluation)
    room = margin - rounding  # the true published value may be this much nearer or farther
    beyond = margin + rounding
    p_equal = max(float(stats.t_upper(diff, se, MANY, -room)), float(stats.t_lower(diff, se, MANY, room))) if room > 0 else 1.0
    p_far = min(1.0, 2 * min(float(stats.t_upper(diff, se, MANY, beyond)), float(stats.t_lower(diff, se, MANY, -beyond))))
    half = stats.t_quantile(1 - settings.alpha, MANY) * se + rounding
    # Both one-sided tests must reject, so at a true difference of zero each needs power 1 - (1 - power) / 2.
    mde = stats.mde(se, MANY, settings.alpha, 1 - (1 - settings.power) / 2) + rounding
    sampling = 100 * float(stats.cluster_mean(credits(evaluation, "upstream"), d).se)
    aside = f"; other questions like these would move our score by {sampling:.2f} (one SE, information)" if math.isfinite(sampling) else ""
    return Evidence(
        question=question,
        benchmark=evaluation.score.benchmark,
        n=d.n,
        videos=d.videos,
        estimate=diff,
        low=max(-100.0, diff - half),
        high=min(100.0, diff + half),
        margin=margin,
        mde=mde,
        n_needed=None,
        p_value=p_equal,
        p_fail=p_far,
        power=max(0.0, 2 * stats.t_power(room, se, MANY, settings.alpha) - 1) if room > 0 else 0.0,
        method=f"same questions, two one-sided tests; {noise.source}; published value +-{rounding:g}{aside}",
        candidate_pct=ours,
        reference_pct=theirs,
    )
