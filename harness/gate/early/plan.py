"""What is known before anything is asked: the videos in a random order, and a sequence for each benchmark and for their mean.

One order serves all sequences: videos are drawn one after another with known probabilities, so those of one benchmark are too. It
depends on the baseline, the candidate's weights and a nonce, so nobody can know it before the candidate exists, and a run that is killed
and started again with the same nonce draws the same videos.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from benchmarks.catalog import in_mean
from harness import stats
from harness.gate.decision import ALL, Question
from harness.gate.early import sequence
from harness.gate.evidence.clustered import design_of, ids, values
from harness.gate.evidence.formats import FORMAT_MARGIN, readable
from harness.gate.settings import GateSettings
from harness.records import Evaluation, QuestionRecord

CREDITS: dict[Question, Callable[[QuestionRecord], float]] = {"no_regression": lambda record: record.strict, "format": readable}
"""What is followed, by the question it answers: a score that falls, and answers that can no longer be read."""
FORMAT_DISCORDANCE = 0.02
"""Share of answers expected to become readable or unreadable; it only tunes the bets."""


@dataclass
class Track:
    """A sequence on its way: the population and the order it is drawn in, and the totals so far (the only thing that grows)."""

    question: Question
    name: str
    margin: float
    """Fraction."""
    population: sequence.Population
    order: NDArray[np.intp]
    of: int
    """Questions of the whole set."""
    reference_pct: float
    """The baseline's score, or its share of unreadable answers."""
    totals: list[float] = field(default_factory=list)

    def look(self, *, alpha: float, alpha_fail: float, bounds: bool) -> sequence.Look:
        """What is known after the draws so far."""
        return sequence.look(
            np.array(self.totals), self.order, self.population, margin=self.margin, alpha=alpha, alpha_fail=alpha_fail, bounds=bounds
        )


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
    tracks: dict[tuple[Question, str], Track]
    """By question and benchmark (or `all`)."""
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
    credit = {q: {n: values(sets[n], of, ids(sets[n])) for n in names} for q, of in CREDITS.items()}
    rates = _rates(designs, credit["no_regression"], names, averaged, settings)
    rng = np.random.default_rng(seed)
    clock = {n: rng.exponential(size=len(rates[n])) / rates[n] for n in sorted(names)}
    order = sorted(((n, int(v)) for n in names for v in range(len(clock[n]))), key=lambda x: clock[x[0]][x[1]])
    tracks = {}
    for question, right in credit.items():
        margin = {n: (FORMAT_MARGIN if question == "format" else settings.margin_of(n)) / 100 for n in names}
        for name, parts in [*((n, (n,)) for n in names), *([(ALL, averaged)] if averaged else [])]:
            known = np.concatenate([right[n] for n in parts])
            design = designs[name] if name != ALL else stats.combined([designs[n] for n in parts])
            tracks[question, name] = Track(
                question,
                name,
                mean := sum(margin[n] for n in parts) / len(parts),
                sequence.population(
                    design,
                    known,
                    margin=mean,
                    draw=np.concatenate([rates[n] for n in parts]),
                    discordance=FORMAT_DISCORDANCE if question == "format" else sequence.DISCORDANCE,
                ),
                np.argsort(np.concatenate([clock[n] for n in parts])),
                design.n,
                100 * float(design.weights @ (1 - known if question == "format" else known)),
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
