"""What is known before anything is asked: the videos in a random order, and a sequence for each benchmark and for their mean.

One order serves all sequences: videos are drawn one after another with known probabilities, so those of one benchmark are too. It
depends on the baseline, the candidate's weights and a nonce, so nobody can know it before the candidate exists, and a run that is killed
and started again with the same nonce draws the same videos.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from benchmarks.catalog import in_mean
from harness import stats
from harness.gate.decision import ALL
from harness.gate.early import sequence
from harness.gate.evidence.clustered import credits, design_of
from harness.gate.settings import GateSettings
from harness.records import Evaluation, QuestionRecord


@dataclass
class Track:
    """A sequence on its way: the population and the order it is drawn in, and the totals so far (the only thing that grows)."""

    name: str
    margin: float
    """Fraction."""
    population: sequence.Population
    order: NDArray[np.intp]
    of: int
    """Questions of the whole set."""
    reference_pct: float
    totals: list[float] = field(default_factory=list)

    def look(self, *, alpha: float, alpha_fail: float) -> sequence.Look:
        """What is known after the draws so far."""
        return sequence.look(np.array(self.totals), self.order, self.population, margin=self.margin, alpha=alpha, alpha_fail=alpha_fail)


@dataclass(frozen=True)
class Known:
    """A benchmark's known half: its questions by video (in the order of video names) and each question's weight."""

    names: list[str]
    questions: list[list[QuestionRecord]]
    weight: dict[str, float]


@dataclass(frozen=True)
class Plan:
    """The drawing order as (benchmark, video index), what is known of each benchmark, and the sequences."""

    order: list[tuple[str, int]]
    known: dict[str, Known]
    tracks: dict[str, Track]
    averaged: tuple[str, ...]
    """Benchmarks in the mean; empty where there is no decision on a mean."""


def order_seed(baseline: Mapping[str, Evaluation], weights: str, nonce: str) -> int:
    """Seed of the drawing order."""
    answers = (f"{n} {q} {a}" for n, e in sorted(baseline.items()) for q, a in sorted((r.question_id, r.answer) for r in e.records))
    content = [nonce, weights, *answers]
    return int.from_bytes(hashlib.sha256("\n".join(content).encode(errors="surrogatepass")).digest()[:8], "big")


def plan(baseline: Mapping[str, Evaluation], names: Sequence[str], settings: GateSettings, seed: int) -> Plan:
    """Order and sequences for the named benchmarks."""
    averaged = tuple(in_mean(names)) if settings.require in ("mean", "both") else ()
    averaged = averaged if len(averaged) > 1 else ()
    # Sorted by content, so that the order in which records lie in a file does not matter.
    ordered = {n: sorted(baseline[n].records, key=lambda r: (r.video_id, r.question_id)) for n in names}
    sets = {n: Evaluation(baseline[n].score, ordered[n]) for n in names}
    designs = {n: design_of(sets[n]) for n in names}
    right = {n: credits(sets[n], "strict") for n in names}
    rates = _rates(designs, right, names, averaged, settings)
    rng = np.random.default_rng(seed)
    clock = {n: rng.exponential(size=len(rates[n])) / rates[n] for n in sorted(names)}
    order = sorted(((n, int(v)) for n in names for v in range(len(clock[n]))), key=lambda x: clock[x[0]][x[1]])
    tracks = {
        n: Track(
            n,
            settings.margin_of(n) / 100,
            sequence.population(designs[n], right[n], margin=settings.margin_of(n) / 100, draw=rates[n]),
            np.argsort(clock[n]),
            len(ordered[n]),
            baseline[n].score.strict_pct,
        )
        for n in names
    }
    if averaged:
        margin = sum(settings.margin_of(n) for n in averaged) / len(averaged) / 100
        together, all_right = stats.combined([designs[n] for n in averaged]), np.concatenate([right[n] for n in averaged])
        rate = np.concatenate([rates[n] for n in averaged])
        tracks[ALL] = Track(
            ALL,
            margin,
            sequence.population(together, all_right, margin=margin, draw=rate),
            np.argsort(np.concatenate([clock[n] for n in averaged])),
            sum(len(ordered[n]) for n in averaged),
            sum(baseline[n].score.strict_pct for n in averaged) / len(averaged),
        )
    return Plan(order, {n: _known(ordered[n], designs[n]) for n in names}, tracks, averaged)


def _rates(
    designs: Mapping[str, stats.Design],
    right: Mapping[str, stats.Floats],
    names: Sequence[str],
    averaged: Sequence[str],
    settings: GateSettings,
) -> dict[str, stats.Floats]:
    """How often each video is drawn, chosen for the fewest questions: for the mean where there is one, else benchmark by benchmark."""
    total = sum(d.n for d in designs.values())
    alone = [n for n in names if n not in averaged]
    out = {n: sequence.population(designs[n], right[n], margin=settings.margin_of(n) / 100).draw * designs[n].n / total for n in alone}
    if averaged:
        margin = sum(settings.margin_of(n) for n in averaged) / len(averaged) / 100
        together = stats.combined([designs[n] for n in averaged])
        draw = sequence.population(together, np.concatenate([right[n] for n in averaged]), margin=margin).draw
        parts = np.split(draw, np.cumsum([designs[n].videos for n in averaged])[:-1])
        out |= {n: part * sum(designs[m].n for m in averaged) / total for n, part in zip(averaged, parts, strict=True)}
    return out


def _known(records: Sequence[QuestionRecord], design: stats.Design) -> Known:
    questions: list[list[QuestionRecord]] = [[] for _ in range(design.videos)]
    for r, c in zip(records, design.clusters, strict=True):
        questions[int(c)].append(r)
    weight = {r.question_id: float(w) for r, w in zip(records, design.weights, strict=True)}
    return Known([q[0].video_id for q in questions], questions, weight)
