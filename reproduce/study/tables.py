"""A study's tables, made from its records alone: gains, claims, benchmarks, bases, pairs; and what of it goes into README.md."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from harness.tables.table import Cell, Row, Table
from reproduce.study.claims import LAST, METHOD, SMALLEST, Held, Side, contrast, runs_of
from reproduce.study.estimate import ESTIMATOR, LEVEL, Estimate
from reproduce.study.records import Questions, Record
from reproduce.study.variants import VARIANTS

PAIR_COLUMNS = {
    "asked": "questions", "valid_pct": "valid %", "initial_pct": "initial right %", "revised_pct": "revised right %",
    "pairs": "pairs", "precision_pct": "precision %", "initial_yes_pct": "initial yes %", "revised_yes_pct": "revised yes %",
}  # fmt: skip
NOT_FROZEN = "NOT FROZEN: no freezing file was committed before these runs; settings may have been chosen on the same numbers."
GROUPS = {"method": "", "control": "controls", "rival": "rivals", "keeper": "what might keep the loop going"}


def variants_of(records: Sequence[Record]) -> list[str]:
    """The variants that were run, the method first."""
    there = {record.variant for record in records}
    return [name for name in VARIANTS if name in there]


def score(record: Record, questions: Questions, stage: int) -> float:
    """A run's mean over the benchmarks, percent."""
    return 100 * float(questions.design.weights @ record.answers(stage, questions.n))


def base_scores(records: Sequence[Record], questions: Questions) -> dict[str, float]:
    """Each base's mean over the benchmarks before any training, percent."""
    return {record.base: score(record, questions, 0) for record in records}


def shipped_by_rule(records: Sequence[Record], questions: Questions) -> str:
    """The base that ships: the (lower) median by mean score."""
    ranked = sorted(base_scores(records, questions).items(), key=lambda item: (item[1], item[0]))
    return ranked[(len(ranked) - 1) // 2][0]


def frozen_line(records: Sequence[Record], dates: dict[str, str]) -> str:
    """What to say of the freezing of these runs. `dates`: of the freezing files at hand, by digest."""
    found = sorted({record.frozen for record in records})
    if found == [""]:
        return NOT_FROZEN
    said = [f"{dates.get(digest, 'a file that is not here')} ({digest[:12]})" if digest else "NOT FROZEN" for digest in found]
    return f"Settings frozen before the runs: {said[0]}." if len(said) == 1 else f"MIXED: these runs were frozen as {'; '.join(said)}."


def _over(records: Sequence[Record]) -> str:
    bases = {record.base for record in records}
    return "base models" if len(bases) > 1 else f"the loop seeds of one base model ({bases.pop()}): nothing is said of others"


def _notes(records: Sequence[Record], frozen: str) -> tuple[str, ...]:
    over = f"{100 * LEVEL:.0f} % intervals over {_over(records)}, and over questions; {ESTIMATOR}. Not adjusted for their number."
    shorter = sorted({record.iterations for record in records if VARIANTS[record.variant].kind in ("control", "rival")})
    steps = max(record.iterations for record in records)
    fewer = (
        f" Controls and rivals: {shorter[-1]} iterations, compared with the method after as many."
        if shorter and shorter[-1] < steps
        else ""
    )
    return (
        frozen,
        over + fewer,
        "Strict scores. Micro numbers measure the method on synthetic data; they reproduce no number of the paper.",
    )


def _cell(effect: Estimate | None) -> Cell:
    return Cell(None, "–") if effect is None else Cell(effect.points, effect.text(), (effect.low, effect.high), source="derived")


def gains_table(records: Sequence[Record], questions: Questions, frozen: str) -> Table:
    """A row a variant: the change of the mean from the base to each iteration, and what it is above the method at the end."""
    steps, rows = max(record.iterations for record in records), []
    for name in variants_of(records):
        mine = runs_of(records, name)
        cells = [Cell(len(mine), str(len(mine))), Cell(sum(map(len, mine.values())), str(sum(map(len, mine.values()))))]
        base = statistics.fmean(score(runs[0], questions, 0) for runs in mine.values())
        cells.append(Cell(base, f"{base:.1f}"))
        cells += [_cell(contrast(records, questions, Side(name, t), Side(name, 0))) for t in range(1, steps + 1)]
        cells.append(_cell(None if name == METHOD else contrast(records, questions, Side(name, LAST), Side(METHOD, LAST))))
        variant = VARIANTS[name]
        rows.append(Row(f"{name}: {variant.title}", tuple(cells), GROUPS[variant.kind]))
    return Table(
        title="Change of the mean over the benchmarks against the base, points",
        scale=records[0].scale,
        label_title="training",
        columns=("bases", "runs", "base", *(f"iteration {t}" for t in range(1, steps + 1)), "last, above dpo"),
        rows=tuple(rows),
        notes=(*_notes(records, frozen), *_spread(records, questions)),
    )


def _spread(records: Sequence[Record], questions: Questions) -> tuple[str, ...]:
    """Where the error of the method's gain comes from."""
    gain = contrast(records, questions, Side(METHOD, LAST), Side(METHOD, 0))
    if gain is None or gain.base_sd is None:
        return ()
    between = f"between {gain.bases} it differs by SD {gain.base_sd:.1f} (their loop seeds included)"
    return (f"The method's last gain: {between}; standard error from them {gain.base_se:.1f}, from the questions {gain.question_se:.1f}.",)


def claims_table(held: Sequence[Held], records: Sequence[Record], frozen: str, smallest: float = SMALLEST) -> Table:
    """A row a claim: effect, interval, verdict."""
    rows = []
    for one in held:
        n = 0 if one.effect is None else one.effect.bases
        cells = (_cell(one.effect), Cell(n, str(n)), Cell(one.verdict, one.verdict), Cell(one.claim.source, one.claim.source))
        rows.append(Row(one.claim.text, cells))
    decided = f"Holds: the interval lies above 0. Does not hold: it lies below +{smallest:g}, the smallest difference worth having."
    return Table(
        title="Claims that can fail here, at this scale only",
        scale=records[0].scale,
        label_title="claim",
        columns=("effect, points", "n", "verdict", "source"),
        rows=tuple(rows),
        notes=(decided, *_notes(records, frozen)[:2]),
    )


def benchmarks_table(records: Sequence[Record], questions: Questions) -> Table:
    """The method on each benchmark: the base's mean, and the change to the last iteration."""
    rows = []
    mine = [record for record in records if record.variant == METHOD]
    for name, asked in questions.benchmarks.items():
        weights, part = questions.design_of(name).weights, questions.part(name)
        base = statistics.fmean({r.base: 100 * float(weights @ r.answers(0, questions.n)[part]) for r in mine}.values())
        change = contrast(records, questions, Side(METHOD, LAST), Side(METHOD, 0), name)
        rows.append(Row(name, (Cell(asked.n, str(asked.n)), Cell(base, f"{base:.1f}"), _cell(change))))
    return Table(
        title="The method by benchmark, base and change to the last iteration",
        scale=records[0].scale,
        label_title="benchmark",
        columns=("n", "base", "change"),
        rows=tuple(rows),
    )


def bases_table(records: Sequence[Record], questions: Questions) -> Table:
    """A row a base: its score, its gap, and what the method gained on it."""
    rows = []
    for base, runs in sorted(runs_of(records, METHOD).items(), key=lambda item: score(item[1][0], questions, 0)):
        first = score(runs[0], questions, 0)
        gaps = [run.gap for run in runs if run.gap is not None]
        gain = statistics.fmean(score(run, questions, run.iterations) - first for run in runs)
        gap = statistics.fmean(gaps) if gaps else None
        cells = (Cell(first, f"{first:.1f}"), Cell(gap, "–" if gap is None else f"{gap:+.1f}"), Cell(gain, f"{gain:+.1f}"))
        rows.append(Row(base, cells))
    return Table(
        title="Base models by their mean before training",
        scale=records[0].scale,
        label_title="base",
        columns=("mean", "gap", "gain"),
        rows=tuple(rows),
        notes=(
            "Gap: of its own questions, how many more points of its answers are right after its critique than at first. "
            "Gain: mean over its loop seeds, no interval.",
            f"By the rule (median by mean score) {shipped_by_rule(records, questions)} ships.",
        ),
    )


def pairs_table(records: Sequence[Record]) -> Table:
    """What the method's questions, critiques and pairs were worth, means over its runs."""
    mine, rows = [record.pairs for record in records if record.variant == METHOD], []
    for t in range(min(map(len, mine), default=0)):
        cells = []
        for key in PAIR_COLUMNS:
            values = [float(value) for pairs in mine if (value := pairs[t].get(key)) is not None]
            mean = statistics.fmean(values) if values else None
            cells.append(Cell(mean, "–" if mean is None else f"{mean:.1f}" if key.endswith("pct") else f"{mean:.0f}"))
        rows.append(Row(f"iteration {t + 1}", tuple(cells)))
    return Table(
        title="The method's questions and pairs, judged afterwards against the truth it never saw",
        scale=records[0].scale,
        label_title="pairs of",
        columns=tuple(PAIR_COLUMNS.values()),
        rows=tuple(rows),
        notes=(
            "Right %: of the valid questions. Precision: corrected mistakes among pairs that corrected or spoilt an answer. Yes %: of the "
            "replies to questions answered yes or no, at first and after revision.",
        ),
    )


def all_tables(records: Sequence[Record], questions: Questions, held: Sequence[Held], frozen: str, smallest: float) -> list[Table]:
    """Every table of a study, the gains first."""
    out = [gains_table(records, questions, frozen), claims_table(held, records, frozen, smallest)]
    if any(record.variant == METHOD for record in records):
        out += [benchmarks_table(records, questions), bases_table(records, questions), pairs_table(records)]
    return out


def summary(records: Sequence[Record], questions: Questions, held: Sequence[Held], frozen: str) -> dict[str, Any]:
    """The study in numbers, for programs."""

    def said(effect: Estimate | None) -> dict[str, Any] | None:
        if effect is None:
            return None
        shown = ("points", "low", "high", "df", "base_se", "question_se", "base_sd")
        return {"n": effect.bases} | {k: None if (v := getattr(effect, k)) is None else round(v, 3) for k in shown}

    steps = max(record.iterations for record in records)
    return {
        "scale": records[0].scale,
        "frozen": frozen,
        "over": _over(records),
        "questions": questions.n,
        "runs": len(records),
        "bases": {name: round(value, 3) for name, value in base_scores(records, questions).items()},
        "ships": shipped_by_rule(records, questions),
        "gains": {
            name: [said(contrast(records, questions, Side(name, t), Side(name, 0))) for t in range(1, steps + 1)]
            for name in variants_of(records)
        },
        "claims": [{"id": one.claim.id, "claim": one.claim.text, "effect": said(one.effect), "verdict": one.verdict} for one in held],
    }
