"""Every way a score can be one that must not be compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from harness.gate.gate import gate_runs
from harness.gate.settings import GateSettings
from harness.integrity import IntegrityProblem, StatusLimits, check_evaluation, check_pair, check_sets, edited
from harness.records import Evaluation, QuestionRecord
from tests.harness.made import evaluation, records


def edit(e: Evaluation, i: int, **kw: Any) -> Evaluation:
    """Change one record behind the score's back."""
    rs = list(e.records)
    rs[i] = replace(rs[i], **kw)
    return replace(e, records=rs)


def codes(problems: list[IntegrityProblem]) -> set[str]:
    return {p.code for p in problems}


def test_a_whole_evaluation_has_no_problem() -> None:
    e = evaluation(tasks=3)
    assert check_evaluation(e) == []
    assert check_pair(e, evaluation(tasks=3, weights="other")) == []


def right(e: Evaluation) -> int:
    return next(i for i, r in enumerate(e.records) if r.strict == 1 and r.target == "A")


def wrong(e: Evaluation) -> int:
    return next(i for i, r in enumerate(e.records) if r.strict == 0)


TAMPERED: dict[str, Callable[[Evaluation], Evaluation]] = {
    "answer": lambda e: edit(e, right(e), answer="B"),
    "answer and reading": lambda e: edit(e, right(e), answer="B", parsed="B"),
    "answer that reads the same": lambda e: edit(e, right(e), answer="A."),
    "checksum gone": lambda e: replace(e, score=replace(e.score, records_sha256="")),
    "another's checksum": lambda e: replace(e, score=replace(e.score, records_sha256="0" * 64)),
    "credit": lambda e: edit(e, wrong(e), strict=1.0, upstream=1.0),
    "whole record": lambda e: edit(
        e, wrong(e), answer=e.records[wrong(e)].target, parsed=e.records[wrong(e)].target, strict=1.0, upstream=1.0
    ),
    "question missing": lambda e: replace(e, records=e.records[:-1]),
    "question missing, counts mended": lambda e: replace(e, records=e.records[:-1], score=replace(e.score, n=e.score.n - 1)),
    "question twice": lambda e: replace(e, records=[*e.records[:-1], e.records[0]]),
    "other frames": lambda e: edit(e, 3, frames=4),
    "prompt": lambda e: edit(e, 3, prompt="Another question?"),
    "swapped lines": lambda e: replace(e, records=[e.records[1], e.records[0], *e.records[2:]]),
    "status": lambda e: edit(e, 3, status="unparsed", strict=0.0),
    "swallowed error": lambda e: edit(e, 3, error="out of memory"),
    "no video": lambda e: edit(e, 3, video_id=""),
    "another benchmark's record": lambda e: edit(e, 3, benchmark="nextqa"),
    "schema": lambda e: replace(e, score=replace(e.score, schema_version=2)),
    "score": lambda e: replace(e, score=replace(e.score, strict_pct=e.score.strict_pct + 0.5)),
    "upstream": lambda e: replace(e, score=replace(e.score, upstream_pct=e.score.upstream_pct + 0.5)),
    "subtask": lambda e: replace(e, score=replace(e.score, subtasks={"egoschema_subset": 1.0})),
    "frames unknown": lambda e: replace(e, score=replace(e.score, provenance=replace(e.score.provenance, frames={}))),
    "no records": lambda e: replace(e, records=[]),
    "videos": lambda e: replace(e, score=replace(e.score, videos=7)),
}


@pytest.mark.parametrize("how", TAMPERED)
def test_tampering_ends_with_exit_4(how: str) -> None:
    e = evaluation()
    bad = TAMPERED[how](e)
    assert check_evaluation(bad), how
    for r in (gate_runs({"egoschema": bad}, {"egoschema": e}), gate_runs({"egoschema": e}, {"egoschema": bad})):
        assert (r.verdict, r.exit_code, r.decisions) == ("integrity", 4, [])
        assert r.reasons


@pytest.mark.parametrize(
    "field", ["task", "doc_id", "question_id", "video_id", "prompt", "target", "answer", "parsed", "video_path", "error"]
)
def test_no_field_of_a_record_can_be_edited(field: str) -> None:
    e = evaluation()
    changed = edit(e, 3, **{field: 77 if field == "doc_id" else "x"})
    (p,) = [p for p in check_evaluation(changed) if p.code == "records"]
    assert "egoschema/questions.jsonl" in p.message
    assert "egoschema/score.json" in p.message
    assert "evaluate again" in p.message
    assert edited(e) is None


def other(**kw: Any) -> Evaluation:
    e = evaluation(weights="w1")
    return replace(e, score=replace(e.score, provenance=replace(e.score.provenance, **kw)))


DIFFERENT: dict[str, tuple[str, Evaluation]] = {
    "n": ("questions", evaluation(n=150)),
    "ids": ("questions", evaluation([replace(r, question_id=f"x{r.question_id}") for r in records()])),
    "prompts": ("prompts", evaluation([replace(r, prompt=r.prompt + " Answer with a letter.") for r in records()])),
    "targets": ("targets", evaluation([replace(r, target="C", strict=0.0, upstream=0.0) for r in records()])),
    "video ids": ("videos", evaluation(videos=25)),
    "tasks": ("tasks", evaluation([replace(r, task="other") for r in records()])),
    "media": ("media", other(media="else")),
    "reading": ("reading", other(reading={"rule": 2})),
    "reading of an older score": ("reading", other(reading={})),
    "generation": ("generation", other(generation={"temperature": 1.0})),
    "frame settings": ("frame_settings", other(frames={"num_frames": 8, "sampling": "uniform"})),
    "versions": ("versions", other(versions={"lmms_eval": "0.6.0"})),
    "seed": ("seed", other(seed=3)),
    "scale": ("scale", evaluation(scale="smoke", weights="w1")),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_runs_that_differ_in_more_than_weights_are_not_compared(what: str) -> None:
    code, candidate = DIFFERENT[what]
    assert check_evaluation(candidate) == [], "the candidate must be whole by itself, or the test shows nothing"
    assert code in codes(check_pair(candidate, evaluation()))
    assert gate_runs({"egoschema": candidate}, {"egoschema": evaluation()}).exit_code == 4


def test_different_frames_of_one_question_are_seen() -> None:
    both = [evaluation([replace(r, frames=f) for r in records()]) for f in (8, 8)]
    changed = edit(both[0], 5, frames=16)
    assert "frames" in codes(check_pair(changed, both[1]))


@pytest.mark.parametrize(
    ("version", "warns"), [("0.7.4", True), ("0.7.3+cpu", True), ("0.8.0", False), ("1.7.3", False), ("source", False)]
)
def test_a_patch_level_or_a_build_tag_warns_another_release_stops(version: str, warns: bool) -> None:
    candidate = other(versions={"lmms_eval": version, "savi": "0.1"})
    (p,) = check_pair(candidate, evaluation())
    assert (p.code, p.warns, p.stops) == ("versions", warns, not warns)
    r = gate_runs({"egoschema": candidate}, {"egoschema": evaluation()}, GateSettings(margin=40))
    assert r.exit_code == (0 if warns else 4)
    assert version in r.integrity[0].message


def test_a_version_only_one_side_states_warns() -> None:
    (p,) = check_pair(other(versions={"lmms_eval": "0.7.3", "torch": "2.13.0"}), evaluation())
    assert p.warns
    assert "torch: 2.13.0 against unknown" in p.message


def test_own_version_may_differ() -> None:
    assert check_pair(other(versions={"lmms_eval": "0.7.3", "savi": "9.9"}), evaluation()) == []


def test_only_benchmarks_wanted_must_be_on_both_sides() -> None:
    assert codes(check_sets({"a": 0}, {"a": 0, "b": 0})) == {"missing"}
    assert check_sets({"a": 0}, {"a": 0, "b": 0}, ["a"]) == []
    assert len(check_sets({}, {}, ["a"])) == 2


def doubtful(status: str, count: int) -> Evaluation:
    def change(r: QuestionRecord) -> QuestionRecord:
        texts = {"empty": "", "failed": "", "degenerate": "the the the the", "unparsed": "perhaps", "judged": "it moves"}
        error = "no frames" if status == "failed" else None
        return replace(
            r, status=status, answer=texts[status], parsed=None, strict=0.0, upstream=0.0, error=error, frames=0 if error else r.frames
        )

    rs = records(n=200, videos=50)
    return evaluation([change(r) if i < count else r for i, r in enumerate(rs)])


@pytest.mark.parametrize(("status", "too_many"), [("judged", 1), ("failed", 1)])
def test_answers_never_made_or_judged_have_limits(status: str, too_many: int) -> None:
    assert check_evaluation(doubtful(status, 0)) == []
    problems = check_evaluation(doubtful(status, too_many))
    assert codes(problems) == {status}
    assert "at most" in problems[0].message
    assert check_evaluation(doubtful(status, too_many), limits=StatusLimits(100, 100)) == []


@pytest.mark.parametrize("status", ["unparsed", "empty", "degenerate"])
def test_unreadable_answers_can_be_compared_and_their_rise_is_a_fail(status: str) -> None:
    """Before, 10 % unparsed or 1 % empty was "may not be compared" (exit 4), which hid every decision."""
    few, many = doubtful(status, 21), doubtful(status, 60)
    assert check_evaluation(many) == []
    r = gate_runs({"egoschema": many}, {"egoschema": few})
    assert (r.verdict, r.exit_code) == ("fail", 1)
    d = r.of("format", "egoschema")
    assert (d.verdict, d.estimate, d.veto, d.required) == ("fail", pytest.approx(19.5), True, False)
    assert "cannot be read" in d.note
    assert gate_runs({"egoschema": few}, {"egoschema": few}).of("format", "egoschema").verdict == "pass"
    assert gate_runs({"egoschema": few}, {"egoschema": many}).of("format", "egoschema").verdict == "pass"


def test_upstream_may_leave_empty_answers_out_of_its_denominator() -> None:
    e = doubtful("empty", 2)
    kept = [r for r in e.records if r.status != "empty"]
    looser = replace(e, score=replace(e.score, upstream_pct=100 * sum(r.upstream for r in kept) / len(kept)))
    assert looser.score.upstream_pct != e.score.upstream_pct
    assert check_evaluation(looser) == []


def test_a_part_that_says_so_is_compared_with_the_same_part() -> None:
    """Never with a number of the whole set: `check_whole` refuses it there."""
    part = evaluation(tasks=1)
    n = len(part.records)
    whole = replace(part, score=replace(part.score, n_expected=2 * n))
    limited = replace(part, score=replace(whole.score, limit=n))
    assert codes(check_evaluation(whole)) == {"count"}
    assert check_evaluation(limited) == []
    assert check_pair(limited, limited) == []
    assert codes(check_evaluation(replace(limited, score=replace(limited.score, limit=n - 1)))) == {"count"}
