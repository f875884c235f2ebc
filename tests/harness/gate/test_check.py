"""Early stopping with answers from a table instead of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmarks.catalog import PAPER
from harness.gate.decision import GateUsageError
from harness.gate.early.check import Ask, CheckResult
from harness.gate.early.check import check as check_runs
from harness.gate.early.plan import plan
from harness.gate.settings import GateSettings
from harness.reading import READING_VERSION
from harness.records import Evaluation, QuestionRecord
from tests.harness.made import evaluation, flipped, records


def check(baseline: Mapping[str, Evaluation], ask: Ask, settings: GateSettings | None = None, **kw: Any) -> CheckResult:
    """`check` with a known order."""
    return check_runs(baseline, ask, settings, **({"nonce": "0"} | kw))


class Table:
    """A stand-in model: hands over prepared records of the videos asked for, and notes what was asked."""

    def __init__(self, *runs: Evaluation, edit: Callable[[QuestionRecord], QuestionRecord] | None = None) -> None:
        self.records = {e.score.benchmark: e.records for e in runs}
        self.edit = edit or (lambda r: r)
        self.calls: list[tuple[str, tuple[str, ...]]] = []

    def __call__(self, benchmark: str, videos: Sequence[str]) -> list[QuestionRecord]:
        self.calls.append((benchmark, tuple(videos)))
        return [self.edit(r) for r in self.records[benchmark] if r.video_id in videos]


def runs(loss: float = 0.06, gain: float = 0.06, n: int = 3000, videos: int = 600) -> tuple[Evaluation, Evaluation]:
    a = records(n=n, videos=videos)
    return evaluation(flipped(a, loss=loss, gain=gain), weights="w1"), evaluation(a)


@pytest.mark.parametrize(
    ("loss", "gain", "verdict", "most"), [(0.01, 0.11, "pass", 0.3), (0.12, 0.02, "fail", 0.6), (0.06, 0.06, "pass", 0.9)]
)
def test_stops_early_with_the_full_sets_verdict(loss: float, gain: float, verdict: str, most: float) -> None:
    cand, base = runs(loss, gain)
    table = Table(cand)
    r = check({"egoschema": base}, table, GateSettings(margin=2.5))
    assert r.gate.verdict == verdict
    assert 0 < r.share < most
    asked = [v for _, videos in table.calls for v in videos]
    assert len(asked) == len(set(asked)) == r.asked[0].videos, "no video is asked twice"
    d = r.gate.decisions[0]
    assert d.low <= 100 * (gain - loss) <= d.high
    assert d.low <= d.estimate <= d.high
    assert d.n == r.asked[0].questions
    assert (d.p_value <= 0.05) == (verdict == "pass")


def test_a_close_case_is_asked_to_the_end_and_is_exact() -> None:
    cand, base = runs(0.085, 0.06, n=400, videos=80)
    r = check({"egoschema": base}, Table(cand), GateSettings(margin=2.5))
    d = r.gate.decisions[0]
    assert r.gate.verdict == "fail", "a loss of exactly the margin is not below it"
    assert r.share > 0.9
    if r.share == 1:
        assert d.low == d.high == pytest.approx(-2.5)


def test_the_same_nonce_draws_the_same_videos_and_another_nonce_or_candidate_others() -> None:
    cand, base = runs()
    calls = []
    for key in ({}, {}, {"nonce": "1"}, {"weights": "w1"}):
        table = Table(cand)
        check({"egoschema": base}, table, GateSettings(margin=2.5), **key)
        calls.append(table.calls)
    assert calls[0] == calls[1]
    assert len({str(c) for c in calls}) == 3, "nonce and weights both move the order"


def test_the_order_does_not_depend_on_the_order_of_records() -> None:
    cand, base = runs()
    shuffled = evaluation(list(reversed(base.records)))
    a, b = Table(cand), Table(cand)
    check({"egoschema": base}, a, GateSettings(margin=2.5))
    check({"egoschema": shuffled}, b, GateSettings(margin=2.5))
    assert a.calls == b.calls


class KilledError(RuntimeError):
    """Stands for the process's end."""


def test_a_killed_check_goes_on_where_it_was() -> None:
    cand, base = runs()
    journal: dict[str, list[QuestionRecord]] = {}
    model_calls: list[str] = []

    def run(limit: int | None) -> object:
        table = Table(cand)

        def ask(benchmark: str, videos: Sequence[str]) -> list[QuestionRecord]:
            new = [v for v in videos if v not in journal]
            if new and limit is not None and len(model_calls) >= limit:
                raise KilledError
            for v in new:
                model_calls.append(v)
                journal[v] = table(benchmark, [v])
            return [r for v in videos for r in journal[v]]

        return check({"egoschema": base}, ask, GateSettings(margin=2.5))

    with pytest.raises(KilledError):
        run(50)
    resumed = run(None)
    assert len(model_calls) == len(set(model_calls))
    straight = check({"egoschema": base}, Table(cand), GateSettings(margin=2.5))
    assert resumed == straight


EDITS: dict[str, tuple[str, Callable[[QuestionRecord], QuestionRecord]]] = {
    "prompt": ("prompts", lambda r: replace(r, prompt="Else?")),
    "frames": ("frames", lambda r: replace(r, frames=4)),
    "target": ("targets", lambda r: replace(r, target="D", strict=0.0)),
    "question": ("questions", lambda r: replace(r, question_id=f"x{r.question_id}")),
    "failure": ("failed", lambda r: replace(r, status="failed", error="no frames", answer="", parsed=None, strict=0.0, upstream=0.0)),
    "judge": ("judged", lambda r: replace(r, status="judged", parsed=None, strict=0.0)),
}


@pytest.mark.parametrize("what", EDITS)
def test_answers_that_may_not_be_compared_end_with_exit_4(what: str) -> None:
    code, edit = EDITS[what]
    cand, base = runs(n=300, videos=60)
    r = check({"egoschema": base}, Table(cand, edit=edit), GateSettings(margin=2.5))
    assert (r.gate.verdict, r.gate.exit_code) == ("integrity", 4)
    assert code in {p.code for p in r.gate.integrity}


def test_missing_answers_and_a_broken_baseline_are_integrity() -> None:
    cand, base = runs(n=300, videos=60)
    fewer = Table(replace(cand, records=cand.records[::2]))
    assert check({"egoschema": base}, fewer, GateSettings(margin=2.5)).gate.exit_code == 4
    table = Table(cand)
    broken = replace(base, records=base.records[:-1])
    assert check({"egoschema": broken}, table, GateSettings(margin=2.5)).gate.exit_code == 4
    assert table.calls == [], "nothing is asked where the baseline cannot be trusted"


def test_a_baseline_read_by_an_older_rule_is_not_compared() -> None:
    """The candidate's replies are read by this version's rule."""
    cand, base = runs(n=300, videos=60)
    table = Table(cand)
    for reading in ({}, {"rule": READING_VERSION - 1}):
        older = replace(base, score=replace(base.score, provenance=replace(base.score.provenance, reading=reading)))
        r = check({"egoschema": older}, table, GateSettings(margin=2.5))
        assert (r.gate.exit_code, [p.code for p in r.gate.integrity], table.calls) == (4, ["reading"], [])


@pytest.mark.parametrize(("now", "code"), [("0.8.0", 4), ("0.7.4", 0), ("0.7.3", 0)])
def test_a_baseline_of_another_release_is_not_compared_and_a_patch_level_warns(now: str, code: int) -> None:
    cand, base = runs(0.0, 0.1)
    table = Table(cand)
    r = check({"egoschema": base}, table, GateSettings(margin=2.5), versions={"lmms_eval": now, "savi": "9"})
    assert r.gate.exit_code == code
    assert (table.calls == []) == (code == 4)
    assert [p.warns for p in r.gate.integrity] == ([] if now == "0.7.3" else [code == 0])


def many(change: dict[str, tuple[float, float]], n: int = 1200) -> tuple[dict[str, Evaluation], Table]:
    """Baselines of six benchmarks and a candidate that loses and gains those shares."""
    base, cand = {}, []
    for i, name in enumerate(PAPER):
        a = records(name, n=n, videos=n // 4, seed=i)
        loss, gain = change.get(name, change.get("others", (0.05, 0.05)))
        base[name] = evaluation(a)
        cand.append(evaluation(flipped(a, loss=loss, gain=gain, seed=i), weights="w1"))
    return base, Table(*cand)


def test_the_mean_is_decided_by_a_sequence_of_its_own_and_sooner() -> None:
    base, table = many({})
    r = check(base, table)
    mean = r.gate.of("no_regression", "all")
    assert (r.gate.exit_code, mean.verdict, mean.required) == (0, "pass", True)
    assert mean.low <= 0 <= mean.high
    assert r.share < 0.6
    each = check(base, table, GateSettings(require="each"))
    assert r.share < each.share
    assert {d.required for d in each.gate.decisions if d.question == "no_regression"} == {True}
    assert sum(len(a.ids) for a in r.asked) == mean.n, "it says which questions it asked"


def test_it_stops_at_the_first_fail() -> None:
    """Before, 82.9 % of the questions were asked after the first benchmark had failed."""
    base, table = many({"nextqa": (0.4, 0.0)})
    for require in ("mean", "each", "both"):
        r = check(base, table, GateSettings(require=require))  # type: ignore[arg-type]
        assert (r.gate.verdict, r.gate.exit_code) == ("fail", 1)
        assert r.share < 0.25
        assert "fail" in {d.verdict for d in r.gate.decisions if d.benchmark in ("nextqa", "all")}


def unreadable(run: Evaluation, share: float, *, right: bool) -> Evaluation:
    """The run with that share of all answers not to be read any more, among those that were right, or wrong."""
    pool = [r.question_id for r in run.records if bool(r.strict) == right]
    gone = set(np.random.default_rng(5).permutation(pool)[: round(share * len(run.records))])
    return evaluation(
        [
            replace(r, answer="well", parsed=None, status="unparsed", strict=0.0, upstream=0.0) if r.question_id in gone else r
            for r in run.records
        ],
        weights="w2",
    )


def test_answers_that_can_no_longer_be_read_fail_early_though_no_score_falls() -> None:
    """Before, `check` had no decision about them: answers that were wrong anyway might become anything."""
    _, base = runs(0, 0)
    r = check({"egoschema": base}, Table(unreadable(base, 0.1, right=False)), GateSettings(margin=2.5))
    d = r.gate.of("format", "egoschema")
    assert (r.gate.exit_code, d.verdict, d.required, d.veto) == (1, "fail", False, True)
    assert r.gate.reasons[0].startswith("egoschema: unreadable answers rose by 1 points or more")
    assert r.share < 0.4
    assert d.low <= 10 <= d.high
    assert d.estimate > 1
    assert (d.gained, d.lost) == (0, d.lost)
    assert d.lost
    assert r.gate.of("no_regression", "egoschema").verdict != "fail"


def test_few_unreadable_answers_are_no_fail_and_where_all_is_asked_their_share_is_exact() -> None:
    _, base = runs(0, 0, n=400, videos=80)
    for share, wanted in ((0.0, "pass"), (0.0075, "pass"), (0.01, "fail")):
        r = check({"egoschema": base}, Table(unreadable(base, share, right=False)), GateSettings(margin=0.2))
        d = r.gate.of("format", "egoschema")
        assert d.reference_pct == 0
        assert d.verdict == wanted
        assert r.gate.verdict == wanted, "the score is the same, so only unreadable answers can fail"
        if d.n == 400:
            assert d.low == d.high == pytest.approx(100 * share)


def test_unreadable_answers_of_the_mean_have_a_decision_too_and_a_baseline_full_of_them_is_no_fail() -> None:
    base, table = many({})
    r = check(base, table)
    assert r.gate.of("format", "all").verdict in ("pass", "inconclusive")
    assert len(r.gate.decisions) == 14
    worse = {n: unreadable(e, 0.3, right=True) for n, e in base.items()}
    again = check(worse, Table(*base.values()))
    d = again.gate.of("format", "all")
    assert d.verdict == "pass"
    assert d.reference_pct == pytest.approx(30, abs=0.1)
    assert d.estimate < 0


def test_losses_placed_behind_the_first_draws_of_a_known_order_are_found() -> None:
    """Before, the order was that of seed 0 for everyone: an 8-point loss behind its first 300 draws passed after 118 of 500 questions."""
    a = records(n=500, videos=500, accuracy=0.7)
    first = plan({"egoschema": evaluation(a)}, ["egoschema"], GateSettings(), seed=0)
    position = {first.known["egoschema"].names[v]: i for i, (_, v) in enumerate(first.order)}
    late = [r for r in a if position[r.video_id] >= 300 and r.strict][:40]
    lost = {r.question_id for r in late}
    cand = evaluation(
        [replace(r, answer="E", parsed="E", strict=0.0, upstream=0.0) if r.question_id in lost else r for r in a], weights="w1"
    )
    passes = sum(check({"egoschema": evaluation(a)}, Table(cand), nonce=str(i)).gate.verdict == "pass" for i in range(40))
    assert passes <= 5


def test_usage_errors() -> None:
    _, base = runs(n=100, videos=20)
    with pytest.raises(GateUsageError, match="has no"):
        check({"egoschema": base}, Table(), GateSettings(benchmarks=("nextqa",)))
    with pytest.raises(GateUsageError, match="batch"):
        check({"egoschema": base}, Table(base), batch=0)
    with pytest.raises(GateUsageError, match="benchmark"):
        check({}, Table())
