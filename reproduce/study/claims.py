"""The claims that a study can see fail, each as a contrast between two runs' answers: effect, interval, verdict. At micro scale only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from harness.stats import Floats, null_se
from reproduce.study.estimate import Estimate, estimate
from reproduce.study.records import Questions, Record
from reproduce.study.variants import METHOD

Verdict = Literal["holds", "does not hold", "not decided", "not run"]
LAST = -1
SMALLEST = 1.0
"""A difference below so many points is none worth having: an interval that ends below it says that a claim does not hold."""


@dataclass(frozen=True)
class Side:
    """What a contrast holds against another: a variant after an iteration (0: the base; `LAST`: the last one, on both sides the last that
    both have)."""

    variant: str
    iteration: int = LAST


@dataclass(frozen=True)
class Claim:
    """`better` is claimed to be above `worse`; `at_least`: iterations that it speaks of."""

    id: str
    text: str
    source: str
    better: Side
    worse: Side
    at_least: int = 1


def _over(name: str, other: str, text: str, source: str) -> Claim:
    return Claim(name, text, source, Side(METHOD), Side(other))


CLAIMS: dict[str, Claim] = {
    claim.id: claim
    for claim in (
        Claim("gain", "the aligned model is better than its base", "paper, abstract", Side(METHOD), Side(METHOD, 0)),
        Claim("rise-1", "iteration 1 is better than the base", "paper: iterations rise", Side(METHOD, 1), Side(METHOD, 0), 1),
        Claim("rise-2", "iteration 2 is better than 1", "paper: iterations rise", Side(METHOD, 2), Side(METHOD, 1), 2),
        Claim("rise-3", "iteration 3 is better than 2", "paper: iterations rise", Side(METHOD, 3), Side(METHOD, 2), 3),
        Claim("rise-4", "iteration 4 is better than 3", "paper: iterations rise", Side(METHOD, 4), Side(METHOD, 3), 4),
        Claim("four-over-one", "iteration 4 is better than 1", "paper: iterations rise", Side(METHOD, 4), Side(METHOD, 1), 4),
        _over("self-over-none", "no-critique", "self-critique is better than no critique", "paper, Table 5"),
        _over("self-over-other", "other-critic", "self-critique is better than another model's", "paper, Table 5"),
        _over("dpo-over-sft-plus", "sft", "DPO is better than SFT+", "paper, Table 1"),
        Claim("sft-plus-over-sft", "SFT+ is better than SFT", "paper, Table 1", Side("sft"), Side("sft-initial")),
        _over("dpo-over-sft", "sft-initial", "DPO is better than SFT", "paper, Table 1"),
        _over("both-over-spatial", "spatial", "both kinds of questions are better than spatial ones alone", "paper: both kinds"),
        _over("both-over-temporal", "temporal", "both kinds of questions are better than temporal ones alone", "paper: both kinds"),
        _over("dpo-over-blind", "blind", "the critique matters: better than revisions that ignore it", "ours"),
        _over("dpo-over-reversed", "reversed", "the preference matters: better than with pairs reversed", "ours"),
        _over("base-critic", "base-critic", "the newest critic is better than the base as the critic", "ours"),
    )
}


@dataclass(frozen=True)
class Held:
    """A claim and what came out; `effect` None: no base has both sides."""

    claim: Claim
    effect: Estimate | None
    verdict: Verdict


def runs_of(records: Sequence[Record], variant: str) -> dict[str, list[Record]]:
    """A variant's runs by base."""
    out: dict[str, list[Record]] = {}
    for record in records:
        if record.variant == variant:
            out.setdefault(record.base, []).append(record)
    return out


def units(found: Mapping[str, list[Record]]) -> dict[str, list[Record]]:
    """What an interval is over: bases, with the mean of their seeds; where there is one base alone, its loop seeds."""
    if len(found) != 1:
        return dict(found)
    ((base, records),) = found.items()
    return {f"{base}, seed {record.seed}": [record] for record in records}


def stage_answers(record: Record, iteration: int, n: int) -> Floats | None:
    """A run's answers after an iteration; None where it has none."""
    stage = record.iterations if iteration == LAST else iteration
    return record.answers(stage, n) if stage <= record.iterations else None


def contrast(records: Sequence[Record], questions: Questions, better: Side, worse: Side, part: str | None = None) -> Estimate | None:
    """The mean difference between two sides over the bases (or seeds) that have both, on the same questions and with the same loop seeds;
    `part`: on one benchmark's questions alone. None where none has both."""
    pairs: dict[str, list[Floats]] = {}
    others = {(record.base, record.seed): record for record in records if record.variant == worse.variant}
    mine = units(runs_of([r for r in records if r.variant == better.variant and (r.base, r.seed) in others], better.variant))
    for unit, runs in mine.items():
        for run in runs:
            other = others[run.base, run.seed]
            both = LAST if {better.iteration, worse.iteration} != {LAST} else min(run.iterations, other.iterations)
            a = stage_answers(run, both if better.iteration == LAST else better.iteration, questions.n)
            b = stage_answers(other, both if worse.iteration == LAST else worse.iteration, questions.n)
            if a is not None and b is not None:
                pairs.setdefault(unit, []).append(a - b)
    if not pairs:
        return None
    differences = np.stack([np.mean(runs, axis=0) for runs in pairs.values()])
    if part is None:
        return estimate(differences, questions.design)
    return estimate(differences[:, questions.part(part)], questions.design_of(part))


def verdict(effect: Estimate | None, bases: int, smallest: float = SMALLEST, least: float = 0.0) -> Verdict:
    """`holds`: the interval lies above 0. `does not hold`: it lies below the smallest difference worth having. Else not decided; with one
    base, whatever its seeds say, never more than that. `least`: half the width that an interval around no difference has at least."""
    if effect is None:
        return "not run"
    if bases < 2:
        return "not decided"
    if effect.low > 0:
        return "holds"
    return "does not hold" if max(effect.high, effect.points + least) < smallest else "not decided"


def hold(records: Sequence[Record], questions: Questions, names: Sequence[str], smallest: float = SMALLEST) -> list[Held]:
    """Every claim against the records. Answers that never change have no error to be seen: that so few questions show no difference of the
    smallest size worth having is decided with the error that such a difference would have (`harness.stats.null_se`)."""
    least = 196 * null_se(questions.design.cluster_weight, smallest / 100)
    iterations = max((r.iterations for r in records), default=0)
    out = []
    for claim in (CLAIMS[name] for name in names):
        if claim.at_least > iterations:
            continue
        effect = contrast(records, questions, claim.better, claim.worse)
        sides = [set(runs_of(records, side.variant)) for side in (claim.better, claim.worse)]
        out.append(Held(claim, effect, verdict(effect, len(sides[0] & sides[1]), smallest, least)))
    return out
