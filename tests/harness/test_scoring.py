"""Every scoring trap of lmms-eval's six tasks: what upstream credits, what the strict rule takes away.

The metrics in these samples are what lmms-eval 0.7.3's own functions return for such answers; `test_evaluate_slow.py` runs those functions.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.catalog import CATALOG
from harness.records import Provenance, QuestionRecord, read_records, write_records
from harness.scoring import (
    ScoredReply,
    ScoringError,
    clustered_se_pct,
    describe,
    is_degenerate,
    question_id,
    record,
    score,
    unique_ids,
    upstream_credit,
)

MV = {"video": "a.mp4", "question": "What moves?", "candidates": ["red ball", "blue cube", "green cone"], "answer": "blue cube"}
PT = {"video_name": "v1", "question": "q", "question_id": "0", "options": ["Yes", "No", "Maybe"], "answer_id": "1"}
NX = {"video": 7, "question": "why", "answer": 3, "qid": 1, **{f"a{k}": x for k, x in enumerate(("play", "run", "eat", "sleep", "swim"))}}
EGO = {"video_idx": "u", "question": "q", "option": [f"{x}. thing {i}" for i, x in enumerate("ABCDE")], "answer": "2"}
LVB = {
    "video_path": "x.mp4",
    "question": "q",
    "id": "x_0",
    "correct_choice": 3,
    **{f"option{k}": f"o{k}" if k < 4 else "N/A" for k in range(5)},
}
TC_MC = {"video_id": "1", "question": "Which way?\nA. up\nB. down\nC. left", "answer": "A. up", "dim": "direction"}
TC_YN = {"video_id": "1", "question": "Is it moving up?", "answer": "no", "dim": "direction"}
TC_CM = {
    "video_id": "1",
    "question": "Which caption matches the video better?\nCaption A: it goes up\nCaption B: it goes down",
    "answer": "Caption B: it goes down",
    "dim": "direction",
}


def made(name: str, doc: dict[str, Any], metric: Any, answer: str, *, task: str | None = None, **reply: Any) -> QuestionRecord:
    b = CATALOG[name]
    sample = {"doc_id": 0, "doc": doc, "arguments": ["the prompt"], b.metric: metric}
    task = task or b.tasks[0]
    return record(b, task, sample, describe(b, task, doc), ScoredReply(answer, 8, **reply), "id")


def mvbench(answer: str, score: int) -> QuestionRecord:
    return made("mvbench", MV, {"pred_answer": answer, "gt_answer": "B", "score": score}, answer, task="mvbench_state_change")


@pytest.mark.parametrize(("answer", "is_one"), [("A A A A", True), ("!!!!!!!!", True), ("A A B A", False), ("no no", False), ("A", False)])
def test_degenerate(answer: str, is_one: bool) -> None:
    assert is_degenerate(answer) is is_one


# the traps


def test_mvbench_reads_it_is_a_blue_cube_as_option_a() -> None:
    r = mvbench("It is a blue cube", 0)  # right in fact, wrong for upstream
    assert (r.upstream, r.strict, r.parsed, r.status) == (0, 0, None, "unparsed")
    doc = {**MV, "answer": "red ball"}  # wrong in fact, right for upstream: "a" is read as A
    r = made("mvbench", doc, {"score": 1}, "It is a blue cube", task="mvbench_state_change")
    assert (r.upstream, r.strict) == (1, 0)


def test_mvbench_empty_answers_are_wrong_not_absent() -> None:
    b = CATALOG["mvbench"]
    records, upstream = [], {}
    for t in b.tasks:
        for i in range(10):
            right = i == 0
            doc = {**MV, "video": f"{i}.mp4"}
            sample = {"doc_id": i, "doc": doc, "arguments": ["p"], b.metric: {"score": int(right)}}
            records.append(record(b, t, sample, describe(b, t, sample["doc"]), ScoredReply("B" if right else "", 8), f"{t}{i}"))
        upstream[t] = 100.0  # one right, nine empty: upstream says 100
    e = score(b, records, [1 / 3] * 200, upstream, scale="micro", n_expected=200, provenance=provenance(), wall_s=1)
    assert e.score.upstream_pct == 100
    assert e.score.strict_pct == pytest.approx(10)
    assert e.score.statuses == {"empty": 180, "ok": 20}
    assert e.score.chance_pct == pytest.approx(100 / 3)


def test_lone_surrogates_reach_the_file_as_replacement_characters(tmp_path: Path) -> None:
    r = made("nextqa", NX, True, "D \ud83d\u2028 \ud83d\ude00", error="bad \udcff")
    assert r.answer == "D \ufffd\u2028 \U0001f600"
    write_records(tmp_path / "questions.jsonl", [r])
    assert read_records(tmp_path / "questions.jsonl") == [r]


def test_failed_answers_earn_nothing_and_say_why() -> None:
    r = made("mvbench", MV, {"score": 0}, "", task="mvbench_state_change", error="missing: a.mp4")
    assert (r.status, r.strict, r.error) == ("failed", 0, "missing: a.mp4")


def test_perceptiontest_takes_the_article_for_a_letter() -> None:
    doc = {**PT, "answer_id": "0"}
    r = made("perceptiontest", doc, {"pred_id": 0, "answer_id": "0", "correct": 1}, "A person does B")
    assert (r.upstream, r.strict) == (1, 0)
    r = made("perceptiontest", PT, {"pred_id": -1, "answer_id": "1", "correct": 0}, "b")  # right, and read by this rule alone
    assert (r.upstream, r.strict, r.status, r.parsed) == (0, 0, "unparsed", None)


def test_tempcompass_not_sure_counts_as_no() -> None:
    r = made("tempcompass", TC_YN, {"rating": 1, "match_success": True}, "Not sure", task="tempcompass_yes_no")
    assert (r.upstream, r.strict, r.status, r.target) == (1, 0, "unparsed", "no")
    r = made("tempcompass", TC_YN, {"rating": 1, "match_success": True}, "No.", task="tempcompass_yes_no")
    assert (r.upstream, r.strict, r.status) == (1, 1, "ok")


@pytest.mark.parametrize(
    ("doc", "task", "answer"),
    [(TC_MC, "tempcompass_multi_choice", "(A) up"), (TC_CM, "tempcompass_caption_matching", "B. it goes down")],
)
def test_what_tempcompass_would_send_to_its_judge_is_not_read_and_is_counted(doc: dict[str, Any], task: str, answer: str) -> None:
    r = made("tempcompass", doc, {"rating": 0, "match_success": False}, answer, task=task, read_by="judge")
    assert (r.upstream, r.strict, r.status, r.parsed, r.read_by) == (0, 0, "unparsed", None, "judge")
    b = CATALOG["tempcompass"]
    rows = [replace(r, task=t, doc_id=i) for i, t in enumerate(b.tasks)]
    e = score(
        b, rows, [0.5] * 3, dict.fromkeys(b.tasks, 0.0), scale="micro", n_expected=3, provenance=provenance(), wall_s=0
    )  # fmt: skip
    assert e.score.to_judge == 3


@pytest.mark.parametrize("answer", ["Caption B: it goes down", "it goes down", "Caption B", "B", "B."])
def test_tempcompass_captions(answer: str) -> None:
    r = made("tempcompass", TC_CM, {"rating": 1, "match_success": True}, answer, task="tempcompass_caption_matching")
    assert (r.strict, r.status, r.parsed, r.target) == (1, "ok", "B", "B")


def test_tempcompass_rating_minus_one_is_no_credit() -> None:
    assert made("tempcompass", TC_MC, {"rating": -1}, "A").upstream == 0


@pytest.mark.parametrize(
    ("name", "doc", "metric"),
    [
        ("nextqa", NX, True),
        ("egoschema", EGO, {"pred": 2, "ground_truth": "2"}),
        ("longvideobench", LVB, {"answer": "D", "parsed_pred": "D"}),
    ],
)
def test_random_choice_is_free_credit_upstream_and_none_here(name: str, doc: dict[str, Any], metric: Any) -> None:
    r = made(name, doc, metric, "hm", read_by="guess")
    assert (r.upstream, r.strict, r.status) == (1, 0, "unparsed")


def test_longvideobench_reads_answer_d_as_a() -> None:
    r = made("longvideobench", LVB, {"answer": "D", "parsed_pred": "A"}, "Answer: D")
    assert (r.upstream, r.strict, r.parsed, r.status) == (0, 0, None, "unparsed")
    doc = {**LVB, "correct_choice": 0}
    r = made("longvideobench", doc, {"answer": "A", "parsed_pred": "A"}, "Answer: D")
    assert (r.upstream, r.strict, r.parsed, r.status) == (1, 0, None, "unparsed")


@pytest.mark.parametrize(("key", "upstream"), [("B", 1), ("A", 0), ("C", 0)])
def test_a_reply_that_rejects_an_option_earns_nothing_for_it(key: str, upstream: int) -> None:
    """MVBench's rule takes the first letter; the reply rejects it and names another."""
    doc = {**MV, "answer": MV["candidates"]["ABC".index(key)]}
    r = made(
        "mvbench", doc, {"score": upstream}, "(B) is not what the video shows. The correct answer is (A).", task="mvbench_state_change"
    )
    assert r.strict == 0
    assert (r.status, r.parsed) == (("ok", "A") if key == "C" else ("unparsed", None)), "read only where both rules agree on the credit"


def test_repeated_token_is_degenerate_whatever_upstream_reads() -> None:
    r = made("nextqa", NX, True, "D D D D D D")
    assert (r.upstream, r.strict, r.status) == (1, 0, "degenerate")


def test_egoschema_compares_as_text() -> None:
    assert made("egoschema", EGO, {"pred": 2, "ground_truth": "2"}, "C").strict == 1
    assert made("egoschema", EGO, {"pred": -1, "ground_truth": "2"}, "C").upstream == 0


@given(
    answer=st.text(alphabet="ABCDEabcdeno ().:yes1", max_size=20),
    credit=st.booleans(),
    read_by=st.sampled_from(["rule", "guess", "judge"]),
    error=st.sampled_from([None, "x"]),
)
def test_strict_never_exceeds_upstream(answer: str, credit: bool, read_by: str, error: str | None) -> None:
    r = made("nextqa", NX, credit, answer, read_by=read_by, error=error)
    assert r.strict <= r.upstream
    assert r.status == "ok" or r.strict == 0


# documents


def test_longvideobench_pads_are_no_options() -> None:
    asked = describe(CATALOG["longvideobench"], "longvideobench_val_v", LVB)
    assert asked.options == ("o0", "o1", "o2", "o3")
    assert asked.chance == 0.25
    assert asked.target == "D"
    assert asked.video == "datasets/longvideobench/videos/x.mp4"


def test_unexpected_documents_are_named() -> None:
    with pytest.raises(ScoringError, match=r"nextqa_mc_test.*KeyError.*fields: video"):
        describe(CATALOG["nextqa"], "nextqa_mc_test", {"video": 1})
    with pytest.raises(ScoringError, match="exact_match"):
        upstream_credit(CATALOG["nextqa"], {"doc_id": 3, "doc": NX, "arguments": ["p"]})


def test_question_ids_depend_on_content_only() -> None:
    b = CATALOG["nextqa"]
    same = question_id("t", describe(b, "t", NX))
    assert question_id("t", describe(b, "t", {**NX, "qid": 99, "frame_count": 4})) == same
    for change in ({"question": "how"}, {"a0": "jump"}, {"answer": 1}, {"video": 8}):
        assert question_id("t", describe(b, "t", {**NX, **change})) != same
    assert unique_ids(["a", "b", "a", "a"]) == ["a", "b", "a-2", "a-3"]


# aggregation


def provenance() -> Provenance:
    return Provenance("m", "w", "v", "p", {}, {"num_frames": 8}, {})


def row(i: int, strict: float, video: str, task: str = "nextqa_mc_test") -> QuestionRecord:
    return QuestionRecord("nextqa", task, i, str(i), video, "p", "A", "A", "A", strict, strict, "ok", 8)


def test_se_of_independent_videos_is_the_textbook_one() -> None:
    rows = [row(i, float(i % 2), f"v{i}") for i in range(40)]
    assert clustered_se_pct(rows) == pytest.approx(100 * (0.25 / 39) ** 0.5)


def test_se_counts_a_video_once() -> None:
    independent = [row(i, float(i % 2), f"v{i}") for i in range(40)]
    tripled = [row(3 * i + k, r.strict, r.video_id) for i, r in enumerate(independent) for k in range(3)]
    assert clustered_se_pct(tripled) == pytest.approx(clustered_se_pct(independent))
    assert clustered_se_pct([row(i, float(i % 2), "one") for i in range(9)]) == 0


def test_tempcompass_is_the_mean_of_its_three_tasks() -> None:
    b = CATALOG["tempcompass"]
    records = []
    for t, doc, n, right in (
        (b.tasks[0], TC_MC, 4, 4),
        (b.tasks[1], TC_YN, 2, 0),
        (b.tasks[2], TC_CM, 10, 5),
    ):
        for i in range(n):
            answer = {0: "A", 1: "no", 2: "B"}[b.tasks.index(t)]
            sample = {"doc_id": i, "doc": doc, "arguments": ["p"], b.metric: {"rating": int(i < right)}}
            records.append(record(b, t, sample, describe(b, t, sample["doc"]), ScoredReply(answer, 8), f"{t}{i}"))
    upstream = {b.tasks[0]: 100.0, b.tasks[1]: 0.0, b.tasks[2]: 50.0}
    e = score(b, records, [0.5] * 16, upstream, scale="micro", n_expected=16, provenance=provenance(), wall_s=0)
    assert e.score.strict_pct == pytest.approx(50)
    assert e.score.upstream_pct == pytest.approx(50)
    assert e.score.n == 16
    with pytest.raises(ScoringError, match="tempcompass_yes_no"):
        score(b, records[:4], [0.5] * 4, upstream, scale="micro", n_expected=16, provenance=provenance(), wall_s=0)
