"""Decisions, verdicts and exit codes on made-up runs."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.catalog import PAPER, select
from harness.gate.decide import decide
from harness.gate.decision import EXIT_CODES, Evidence, GateFileError, GateResult, GateUsageError
from harness.gate.exceptions import ApprovedException
from harness.gate.gate import gate_published, gate_runs
from harness.gate.multiplicity import RULES, Multiplicity
from harness.gate.settings import GateSettings
from tests.harness.made import evaluation, flipped, records


def pair(loss: float = 0.0, gain: float = 0.0, **kw: int):  # type: ignore[no-untyped-def]
    a = records(**({"n": 2000, "videos": 500} | kw))  # type: ignore[arg-type]
    return {"egoschema": evaluation(flipped(a, loss=loss, gain=gain), weights="w1")}, {"egoschema": evaluation(a)}


def test_the_same_model_twice_passes_exactly() -> None:
    small = {"egoschema": evaluation(n=33, videos=33), "nextqa": evaluation(benchmark="nextqa", n=40, videos=7)}
    r = gate_runs(small, small)
    assert (r.verdict, r.exit_code) == ("pass", 0)
    d = r.of("no_regression", "egoschema")
    assert (d.estimate, d.low, d.high, d.mde) == (0, 0, 0, 0)
    assert "same answers" in d.method


def test_equal_answers_of_other_weights_are_no_proof_when_few() -> None:
    a = records(n=33, videos=33)
    assert gate_runs({"egoschema": evaluation(a, weights="w1")}, {"egoschema": evaluation(a)}).verdict == "inconclusive"
    b = records(n=1000, videos=1000)
    r = gate_runs({"egoschema": evaluation(b, weights="w1")}, {"egoschema": evaluation(b)})
    assert r.verdict == "pass"
    assert r.of("no_regression", "egoschema").low < 0 < r.of("no_regression", "egoschema").high


@pytest.mark.parametrize(
    ("loss", "gain", "verdict"),
    [(0.06, 0.06, "pass"), (0.10, 0.02, "fail"), (0.07, 0.04, "inconclusive"), (0.02, 0.10, "pass")],
)
def test_verdicts_between_runs(loss: float, gain: float, verdict: str) -> None:
    r = gate_runs(*pair(loss, gain), GateSettings(margin=2.5))
    assert (r.verdict, r.exit_code) == (verdict, EXIT_CODES[verdict])
    d = r.of("no_regression", "egoschema")
    assert d.estimate == pytest.approx(100 * (gain - loss))
    assert (d.gained, d.lost) == (round(2000 * gain), round(2000 * loss))
    assert (d.verdict == "pass") == (d.low > -d.margin)
    assert (d.verdict == "fail") == (d.high < -d.margin)
    assert d.n_needed
    assert d.mde
    assert d.note


def test_improvement_is_told_and_can_be_required() -> None:
    r = gate_runs(*pair(0.02, 0.10))
    assert r.of("improved", "egoschema").verdict == "pass"
    assert not r.of("improved", "egoschema").required
    unchanged = gate_runs(*pair(0.06, 0.06), GateSettings(require_improvement=True))
    assert (unchanged.verdict, unchanged.exit_code) == ("inconclusive", 3)
    assert gate_runs(*pair(0.10, 0.02)).of("improved", "egoschema").verdict == "fail"


def test_mcnemar_where_every_video_has_one_question() -> None:
    r = gate_runs(*pair(0.02, 0.05, videos=2000))
    assert r.of("improved", "egoschema").method == "exact McNemar"
    assert "sign-flip" in gate_runs(*pair(0.02, 0.05)).of("improved", "egoschema").method


def test_six_benchmarks_are_holm_adjusted_and_a_mean_is_given() -> None:
    cand, base = {}, {}
    for i, name in enumerate(PAPER):
        a = records(name, n=600, videos=100, seed=i)
        base[name], cand[name] = evaluation(a), evaluation(flipped(a, loss=0.04, gain=0.075, seed=i), weights="w1")
    r = gate_runs(cand, base, GateSettings(margin=3))
    improved = [d for d in r.decisions if d.question == "improved" and d.benchmark != "all"]
    assert len(improved) == 6
    assert all(d.p_adjusted >= d.p_value for d in improved)
    assert any(d.p_adjusted > d.p_value for d in improved)
    mean = r.of("improved", "all")
    assert mean.verdict == "pass"
    assert not mean.required
    assert mean.estimate == pytest.approx(3.5)
    assert [d.benchmark for d in r.decisions[:6]] == list(PAPER)


def test_another_multiplicity_rule_is_one_object() -> None:
    parts = [e for i in range(6) for e in (_weak(f"b{i}", 0.02 if i == 0 else 0.5),)]
    verdicts = {name: decide(parts, alpha=0.05, rule=rule)[0].verdict for name, rule in RULES.items()}
    assert verdicts == {"holm": "inconclusive", "bonferroni": "inconclusive", "none": "fail"}
    mine = Multiplicity("half", "nothing", lambda p: np.asarray(p) / 2)
    assert decide(parts, alpha=0.01, rule=mine)[0].verdict == "fail"


def _weak(benchmark: str, p_fail: float) -> Evidence:
    return Evidence(
        question="improved", benchmark=benchmark, n=100, videos=100, estimate=-3, low=-5, high=-1, margin=2, mde=3, n_needed=200,
        p_value=0.9, p_fail=p_fail, method="made up",
    )  # fmt: skip


def test_worse_is_corrected_like_better() -> None:
    """Six comparisons of equal models, one of them by chance worse at p = 0.02: no verdict, as one in nine A/A comparisons has that."""
    decisions = decide([_weak(f"b{i}", 0.02 if i == 0 else 0.5) for i in range(6)], alpha=0.05, optional=frozenset({"improved"}))
    assert [d.verdict for d in decisions] == ["inconclusive"] * 6
    assert decisions[0].p_fail_adjusted == pytest.approx(0.12)
    assert decide([_weak("b", 0.02)], alpha=0.05)[0].verdict == "fail"


def test_a_benchmark_in_one_run_only_is_integrity() -> None:
    cand, base = pair()
    base["nextqa"] = evaluation(benchmark="nextqa")
    r = gate_runs(cand, base)
    assert (r.verdict, r.exit_code, r.decisions) == ("integrity", 4, [])
    assert r.integrity[0].code == "missing"
    assert gate_runs(cand, base, GateSettings(benchmarks=("egoschema",), margin=2)).exit_code != 4


def test_json_round_trip_and_tampering() -> None:
    r = gate_runs(*pair(0.10, 0.02))
    assert GateResult.from_json(r.to_json()) == r
    raw = json.loads(r.to_json())
    raw["verdict"] = "pass"
    with pytest.raises(GateFileError, match="changed"):
        GateResult.from_json(raw)
    for bad in ("{", "[]", "{}", '{"schema": 99}'):
        with pytest.raises(GateFileError):
            GateResult.from_json(bad)


def test_infinite_bounds_survive_json() -> None:
    r = gate_runs(*pair(n=5, videos=1), GateSettings(margin=2))
    assert r.verdict == "inconclusive"
    d = GateResult.from_json(r.to_json()).decisions[0]
    assert (d.low, d.high, d.mde) == (-100, 100, None)


@pytest.mark.parametrize(
    "bad", [{"alpha": 0.0}, {"alpha": 0.7}, {"alpha": float("nan")}, {"margin": -1.0}, {"margin": float("nan")}, {"power": 1.0}]
)
def test_settings_out_of_range_are_usage_errors(bad: dict[str, float]) -> None:
    with pytest.raises(GateUsageError):
        gate_runs(*pair(), GateSettings(**bad))  # type: ignore[arg-type]


def test_unknown_benchmarks_need_a_margin() -> None:
    x = {"mine": evaluation(benchmark="mine")}
    with pytest.raises(GateUsageError, match="no frozen margin"):
        gate_runs(x, x)
    assert gate_runs(x, x, GateSettings(margin=3)).verdict == "pass"
    with pytest.raises(GateUsageError, match="no evaluation"):
        gate_runs({}, {})


# Published numbers -------------------------------------------------------------------------------------------------------------------


def big(accuracy: float = 0.7, seed: int = 0):  # type: ignore[no-untyped-def]
    return records("perceptiontest", n=19140, videos=5900, accuracy=accuracy, seed=seed)


def test_published_scores_agree_drift_or_cannot_be_told() -> None:
    e = evaluation(big(), scale="8b")
    score = e.score.upstream_pct
    for published, verdict in ((score - 0.3, "pass"), (score + 5, "fail"), (score - 5, "fail"), (score + 1.5, "inconclusive")):
        r = gate_published({"perceptiontest": e}, None, {"perceptiontest": published})
        assert (r.verdict, r.exit_code) == (verdict, EXIT_CODES[verdict]), published
    assert "above" in gate_published({"perceptiontest": e}, None, {"perceptiontest": score - 5}).decisions[0].note


def test_published_values_are_widened_by_their_rounding() -> None:
    e = evaluation(big(), scale="8b")
    d = gate_published({"perceptiontest": e}, None, {"perceptiontest": e.score.upstream_pct}).decisions[0]
    assert (d.high - d.low) / 2 - 0.05 == pytest.approx(1.645 * 100 * (0.21 / 19140) ** 0.5, rel=0.05)


def test_five_hundred_questions_cannot_show_agreement() -> None:
    e = evaluation(n=500, videos=500, scale="8b")
    r = gate_published({"egoschema": e}, None, {"egoschema": round(e.score.upstream_pct, 1)})
    assert r.verdict == "inconclusive"
    assert (r.decisions[0].n_needed or 0) > 2000


def test_gains_are_compared_too() -> None:
    a = big()
    base = {"perceptiontest": evaluation(a, scale="8b")}
    cand = {"perceptiontest": evaluation(flipped(a, loss=0.04, gain=0.079), weights="w1", scale="8b")}
    ours = cand["perceptiontest"].score.upstream_pct
    r = gate_published(cand, base, {"perceptiontest": ours}, published_base={"perceptiontest": ours - 3.9})
    assert r.of("published_gain", "perceptiontest").verdict == "pass"
    wrong = gate_published(cand, base, {"perceptiontest": ours}, published_base={"perceptiontest": ours - 9})
    assert wrong.of("published_gain", "perceptiontest").verdict == "fail"
    assert wrong.exit_code == 1


@pytest.mark.parametrize("scale", ["micro", "smoke"])
def test_small_scales_are_never_compared_with_published_numbers(scale: str) -> None:
    with pytest.raises(GateUsageError, match="never compared"):
        gate_published({"egoschema": evaluation(scale=scale)}, None, {"egoschema": 50.0})
    with pytest.raises(GateUsageError, match="never compared"):
        gate_published({"egoschema": evaluation(scale="8b")}, {"egoschema": evaluation(scale=scale)}, {"egoschema": 50.0})


@pytest.mark.parametrize("value", [float("nan"), -1.0, 101.0, float("inf")])
def test_published_numbers_must_be_percentages(value: float) -> None:
    with pytest.raises(GateUsageError, match="percentage"):
        gate_published({"egoschema": evaluation(scale="8b")}, None, {"egoschema": value})
    with pytest.raises(GateUsageError, match="nothing in common"):
        gate_published({"egoschema": evaluation(scale="8b")}, None, {"nextqa": 50.0})


# Exceptions --------------------------------------------------------------------------------------------------------------------------


def exception(**kw: object) -> ApprovedException:
    fields = {
        "benchmark": "egoschema", "covers": "no_regression", "run": "r1", "reason": "known loss, mended in the next run",
        "approved_by": "Jane Doe", "expires": "2030-01-31",
    }  # fmt: skip
    return ApprovedException.model_validate(fields | kw)


def test_an_exception_excuses_what_it_names_and_is_printed() -> None:
    cand, base = pair(0.10, 0.02)
    day = dt.date(2030, 1, 1)
    r = gate_runs(cand, base, GateSettings(exceptions=(exception(),), run="r1", today=day))
    assert (r.verdict, r.exit_code) == ("pass", 0)
    assert r.of("no_regression", "egoschema").verdict == "fail"
    assert "Jane Doe" in r.exceptions[0]
    for other in ({"run": "r2"}, {"benchmark": "nextqa"}, {"covers": "improved"}, {"expires": "2029-12-31"}):
        assert gate_runs(cand, base, GateSettings(exceptions=(exception(**other),), run="r1", today=day)).exit_code == 1
    last_day = gate_runs(cand, base, GateSettings(exceptions=(exception(),), run="r1", today=dt.date(2030, 1, 31)))
    assert last_day.exit_code == 0


def test_versions_can_be_excused_but_questions_cannot() -> None:
    cand, base = pair()
    e = cand["egoschema"]
    other = replace(e.score.provenance, versions={"lmms_eval": "0.8.0"})
    cand["egoschema"] = replace(e, score=replace(e.score, provenance=other))
    assert gate_runs(cand, base).exit_code == 4
    s = GateSettings(exceptions=(exception(covers="versions"),), run="r1", today=dt.date(2030, 1, 1))
    r = gate_runs(cand, base, s)
    assert r.exit_code != 4
    assert r.integrity[0].excused_by
    with pytest.raises(ValueError, match="covers"):
        exception(covers="questions")


@pytest.mark.slow
def test_all_six_at_full_size() -> None:
    """How long it takes is for `python -m reproduce speed --case gate`."""
    cand, base = {}, {}
    for i, b in enumerate(select(None)):
        a = records(b.name, n=b.n, videos=b.videos, seed=i, tasks=len(b.tasks))
        base[b.name], cand[b.name] = evaluation(a), evaluation(flipped(a, loss=0.06, gain=0.06, seed=i), weights="w1")
    r = gate_runs(cand, base)
    assert r.integrity == []
    assert sum(d.n for d in r.decisions if d.question == "no_regression" and d.benchmark != "all") == 39_077
