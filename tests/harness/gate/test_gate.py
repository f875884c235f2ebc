"""Decisions, verdicts and exit codes on made-up runs."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.catalog import PAPER, select
from harness.gate.decide import decide
from harness.gate.decision import Evidence, GateFileError, GateResult, GateUsageError
from harness.gate.evidence.published import RERUN_FLIPS
from harness.gate.exceptions import ApprovedException
from harness.gate.gate import gate_published, gate_runs
from harness.gate.multiplicity import RULES, Multiplicity
from harness.gate.policy import EXIT_CODES
from harness.gate.settings import GateSettings
from harness.records import Evaluation
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
    assert "sign flips" in gate_runs(*pair(0.02, 0.05)).of("improved", "egoschema").method


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
    verdicts = {name: decide(parts, GateSettings(multiplicity=rule))[0].verdict for name, rule in RULES.items()}
    assert verdicts == {"holm": "inconclusive", "bonferroni": "inconclusive", "none": "fail"}
    mine = Multiplicity("half", "nothing", lambda p: np.asarray(p) / 2)
    assert decide(parts, GateSettings(alpha=0.01, multiplicity=mine))[0].verdict == "fail"


def _weak(benchmark: str, p_fail: float) -> Evidence:
    return Evidence(
        question="improved", benchmark=benchmark, n=100, videos=100, estimate=-3, low=-5, high=-1, margin=2, mde=3, n_needed=200,
        p_value=0.9, p_fail=p_fail, method="made up",
    )  # fmt: skip


def test_worse_is_corrected_like_better() -> None:
    """Six comparisons of equal models, one of them by chance worse at p = 0.02: no verdict, as one in nine A/A comparisons has that."""
    decisions = decide([_weak(f"b{i}", 0.02 if i == 0 else 0.5) for i in range(6)], GateSettings())
    assert [d.verdict for d in decisions] == ["inconclusive"] * 6
    assert decisions[0].p_fail_adjusted == pytest.approx(0.12)
    assert decide([_weak("b", 0.02)], GateSettings())[0].verdict == "fail"


def six(change: dict[str, tuple[float, float]], n: int = 250) -> tuple[dict[str, Evaluation], dict[str, Evaluation]]:
    """Candidate and baseline of six benchmarks; (loss, gain) of those named, others 4 % each way."""
    cand, base = {}, {}
    for i, name in enumerate(PAPER):
        a = records(name, n=n, videos=n // 2, seed=i)
        loss, gain = change.get(name, change.get("others", (0.04, 0.04)))
        base[name], cand[name] = evaluation(a), evaluation(flipped(a, loss=loss, gain=gain, seed=i), weights="w1")
    return cand, base


def test_a_clear_gain_of_the_mean_passes_where_no_benchmark_alone_could() -> None:
    """Before, exit 3: six small benchmarks each had to pass."""
    cand, base = six({"others": (0.08, 0.11)})
    r = gate_runs(cand, base)
    assert (r.verdict, r.exit_code) == ("pass", 0)
    mean = r.of("no_regression", "all")
    assert (mean.required, mean.estimate, mean.margin) == (True, pytest.approx(3.2), pytest.approx(1.75))
    assert "unweighted mean of 6 benchmarks" in mean.method
    singles = [d for d in r.decisions if d.question == "no_regression" and d.benchmark != "all"]
    assert not any(d.required for d in singles)
    assert all(d.veto for d in singles)
    for require in ("each", "both"):
        assert gate_runs(cand, base, GateSettings(require=require)).verdict == "inconclusive"  # type: ignore[arg-type]


def test_a_clear_loss_of_the_mean_fails_where_no_benchmark_alone_does() -> None:
    cand, base = six({"others": (0.10, 0.04)})
    r = gate_runs(cand, base)
    assert (r.verdict, r.exit_code) == ("fail", 1)
    assert {d.benchmark for d in r.decisions if d.question == "no_regression" and d.verdict == "fail"} == {"all"}


def test_without_a_mean_each_benchmark_is_required() -> None:
    a = {n: evaluation(records(n, n=400, videos=100)) for n in ("nextqa", "videomme")}
    b = {n: evaluation(flipped(e.records, loss=0.05, gain=0.05), weights="w1") for n, e in a.items()}
    r = gate_runs(b, a, GateSettings(margin=2))
    assert [d.required for d in r.decisions if d.question == "no_regression"] == [True, True], "an optional benchmark is in no mean"


def test_one_benchmark_that_falls_fails_and_is_named_though_the_mean_rises() -> None:
    cand, base = six({"nextqa": (0.2, 0.0), "others": (0.02, 0.12)})
    r = gate_runs(cand, base)
    assert r.of("no_regression", "all").verdict == "pass"
    assert (r.verdict, r.exit_code) == ("fail", 1)
    assert len(r.reasons) == 1
    assert r.reasons[0].startswith("nextqa: worse")


@pytest.mark.parametrize(("policy", "code"), [("fail", 3), ("warn", 0), ("pass", 0)])
def test_what_an_inconclusive_verdict_does_is_chosen(policy: str, code: int) -> None:
    cand, base = six({"others": (0.1, 0.09)})
    r = gate_runs(cand, base, GateSettings(inconclusive=policy))  # type: ignore[arg-type]
    assert (r.verdict, r.exit_code) == ("inconclusive", code)
    assert "power 0." in r.reasons[0]
    assert "questions would settle" in r.reasons[0]
    assert GateResult.from_json(r.to_json()) == r


def test_a_result_names_the_questions_gained_and_lost() -> None:
    r = gate_runs(*pair(0.01, 0.02, n=200, videos=50))
    found = r.changed["egoschema"]
    assert (len(found.gained), len(found.lost)) == (4, 2)
    assert all(x.startswith("egoschema_subset/") and " on v" in x for x in found.lost)
    assert GateResult.from_json(r.to_json()).changed == r.changed


def test_a_gate_json_from_before_is_still_read() -> None:
    raw = json.loads(gate_runs(*pair(0.10, 0.02)).to_json())
    for name in ("inconclusive", "changed"):
        raw.pop(name)
    for d in raw["decisions"]:
        for name in ("p_fail", "p_fail_adjusted", "veto", "power"):
            d.pop(name)
    assert GateResult.from_json(raw).verdict == "fail"


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
    assert (d.high - d.low) / 2 - 0.05 == pytest.approx(1.645 * 100 * (RERUN_FLIPS / 19140) ** 0.5, rel=0.001)


def ego(right: int = 294, n: int = 500) -> Evaluation:
    """An EgoSchema evaluation of known score (294 of 500: 58.8)."""
    rows = records(n=n, videos=n, accuracy=1.0)
    wrong = [replace(r, answer="E", parsed="E", strict=0.0, upstream=0.0) for r in rows[right:]]
    return evaluation([*rows[:right], *wrong], scale="8b")


def test_both_scores_are_of_the_same_questions_so_drawing_them_is_no_error() -> None:
    """Before, 58.8 against 58.8 was inconclusive, and so was 64.0."""
    for published, verdict in ((58.8, "pass"), (64.0, "fail"), (53.0, "fail"), (61.0, "inconclusive")):
        r = gate_published({"egoschema": ego()}, None, {"egoschema": published})
        assert r.of("published_score", "egoschema").verdict == verdict, published


def test_rerun_noise_is_measured_and_has_a_floor() -> None:
    e = ego()
    other = [replace(r, answer="E", parsed="E", strict=0.0, upstream=0.0) if i < 40 else r for i, r in enumerate(e.records)]
    far, same = evaluation(other, scale="8b"), replace(e)
    floor = gate_published({"egoschema": e}, None, {"egoschema": 58.8}).decisions[0]
    assert gate_published({"egoschema": e}, None, {"egoschema": 58.8}, reruns=[{"egoschema": same}]).decisions[0].high == floor.high
    measured = gate_published({"egoschema": e}, None, {"egoschema": 58.8}, reruns=[{"egoschema": far}]).decisions[0]
    assert measured.high - measured.estimate - 0.05 == pytest.approx(1.645 * 100 * 40**0.5 / 500, rel=0.001)
    assert "measured on 1 reruns" in measured.method
    stranger = evaluation(other, scale="8b", weights="w9")
    assert gate_published({"egoschema": e}, None, {"egoschema": 58.8}, reruns=[{"egoschema": stranger}]).exit_code == 4


@pytest.mark.parametrize("n", [5, 499])
def test_a_part_of_a_benchmark_is_not_compared_with_a_published_number(n: int) -> None:
    """Before, five EgoSchema questions all right passed against 98.0, as a limit sets the expected number too."""
    r = gate_published({"egoschema": ego(n, n)}, None, {"egoschema": 98.0})
    assert (r.verdict, r.exit_code, r.decisions) == ("integrity", 4, [])
    assert f"{n} of 500" in r.integrity[0].message
    odd = evaluation([replace(r, task="egoschema_other") for r in ego().records], scale="8b")
    assert "egoschema_other: 500 of 0" in gate_published({"egoschema": odd}, None, {"egoschema": 58.8}).integrity[0].message


def test_unreadable_answers_of_a_run_without_a_baseline_have_a_limit() -> None:
    e = ego()
    broken = evaluation([replace(r, status="unparsed", parsed=None, strict=0.0) if i % 4 == 0 else r for i, r in enumerate(e.records)],
                        scale="8b")  # fmt: skip
    r = gate_published({"egoschema": broken}, None, {"egoschema": 58.8})
    assert (r.of("published_score", "egoschema").verdict, r.of("format", "egoschema").verdict, r.exit_code) == ("pass", "fail", 1)


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


def test_no_improvement_is_shown_over_a_baseline_that_was_not_read() -> None:
    """Most of what is gained there may be the reading alone."""
    good = records(accuracy=0.7)
    unread = [replace(q, parsed=None, strict=0.0, status="unparsed") if i % 3 == 0 else q for i, q in enumerate(good)]
    few = [replace(q, parsed=None, strict=0.0, status="unparsed") if i % 11 == 0 else q for i, q in enumerate(good)]
    settings = GateSettings(require_improvement=True)
    for baseline, wanted in ((unread, "inconclusive"), (few, "pass")):
        result = gate_runs({"egoschema": evaluation(good, weights="new")}, {"egoschema": evaluation(baseline, weights="old")}, settings)
        assert {d.verdict for d in result.decisions if d.question == "improved"} == {wanted}
        assert result.verdict == wanted
    fallen = gate_runs(
        {"egoschema": evaluation(flipped(unread, loss=0.2), weights="new")}, {"egoschema": evaluation(unread, weights="old")}
    )
    assert fallen.of("improved", "egoschema").note.startswith("worse ("), "a fail says so, however the baseline was read"


@pytest.mark.parametrize("text", ["[" * 100_000, '{"schema": ' + "9" * 5000 + "}"])
def test_json_that_python_refuses_is_a_broken_file(text: str, tmp_path: Path) -> None:
    """Nested too deep, or a number of too many digits: no JSONDecodeError, but a broken file all the same."""
    from harness.gate.files import load_reference
    from harness.records import RecordError
    from harness.tables.table import TableError, from_json

    with pytest.raises(GateFileError):
        GateResult.from_json(text)
    with pytest.raises(TableError):
        from_json(text)
    (tmp_path / "reference.json").write_text(text)
    with pytest.raises(RecordError):
        load_reference(tmp_path / "reference.json")
