"""Answers that cannot be read (unparsed, empty, degenerate) are a way to be worse, so their rise is measured like any other difference.

Strict credit counts them as wrong already; this tells a model that answers wrongly from one that no longer answers in the right form.
"""

from __future__ import annotations

from harness import stats
from harness.gate.decision import Evidence
from harness.gate.evidence.clustered import design_of, ids, spread, values
from harness.gate.settings import GateSettings
from harness.records import Evaluation, QuestionRecord

UNREADABLE = frozenset({"unparsed", "empty", "degenerate"})
FORMAT_MARGIN = 1.0
"""Points by which the share of unreadable answers may rise (ours: below every benchmark's own margin)."""
MOST_UNREADABLE = 10.0
"""Percent of answers that may be unreadable where there is no baseline to compare with (ours)."""


def readable(record: QuestionRecord) -> float:
    """1 where the answer can be read, else 0."""
    return float(record.status not in UNREADABLE)


def _unreadable(record: QuestionRecord) -> float:
    return 1.0 - readable(record)


def rise(candidate: Evaluation, baseline: Evaluation) -> stats.Floats:
    """Of each question in the baseline's order [n]: 1 where its answer became unreadable, -1 where it became readable."""
    order = ids(baseline)
    return values(candidate, _unreadable, order) - values(baseline, _unreadable, order)


def unreadable_pct(evaluation: Evaluation) -> float:
    """Share of unreadable answers in percent, tasks weighing equally as in the score."""
    return 100 * float(stats.cluster_mean(values(evaluation, _unreadable, ids(evaluation)), design_of(evaluation)).estimate)


def format_evidence(candidate: Evaluation, settings: GateSettings) -> Evidence:
    """Unreadable answers of a run that has no baseline, against `MOST_UNREADABLE`."""
    d = design_of(candidate)
    mean = stats.cluster_mean(values(candidate, _unreadable, ids(candidate)), d)
    test = stats.mean_test(mean, MOST_UNREADABLE / 100)
    share = 100 * float(mean.estimate)
    return Evidence(
        question="format",
        benchmark=candidate.score.benchmark,
        n=d.n,
        videos=d.videos,
        margin=MOST_UNREADABLE,
        p_value=float(test.p_below),
        p_fail=float(test.p_above),
        method=f"share against {MOST_UNREADABLE:g} %, clustered by video ({test.df:.0f} df)",
        candidate_pct=share,
        **spread(share, 100 * float(test.se), test.df, d.n, MOST_UNREADABLE, settings),
    )
