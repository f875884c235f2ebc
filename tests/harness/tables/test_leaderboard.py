"""Ranks against planted truths, stock folders as lmms-eval 0.7.3 leaves them, scales apart, and everything that may not enter."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import typer
from typer.testing import CliRunner

from benchmarks.catalog import CATALOG
from harness.records import Evaluation, Provenance, QuestionRecord, Score, write_evaluation
from harness.tables.leaderboard.cli import register
from harness.tables.leaderboard.entry import Answers, Entry, EntryScore, LeaderboardError
from harness.tables.leaderboard.ranking import Designs, Difference, leaderboard, p_value, rank_benchmark, rank_intervals, render
from harness.tables.leaderboard.read import discover

REPO = Path(__file__).resolve().parents[3]


def credits(n: int, right: int, seed: int = 0) -> list[int]:
    out = [1] * right + [0] * (n - right)
    random.Random(seed).shuffle(out)
    return out


def write_run(
    folder: Path,
    right: Sequence[int],
    *,
    benchmark: str = "egoschema",
    scale: str = "micro",
    a_video: int = 1,
    salt: str = "",
    data: Literal["", "real", "micro"] = "",
    expected: int | None = None,
) -> Path:
    """An eval folder of ours with one benchmark."""
    task = CATALOG[benchmark].tasks[0]
    records = [
        QuestionRecord(
            benchmark=benchmark, task=task, doc_id=i, question_id=f"{salt}{i:064d}", video_id=f"v{i // a_video}", prompt="?", target="A",
            answer="A", parsed="A", upstream=float(r), strict=float(r), status="ok", frames=8,
        )
        for i, r in enumerate(right)
    ]  # fmt: skip
    pct = 100 * sum(right) / len(right)
    score = Score(
        benchmark=benchmark, scale=scale, n=len(right), n_expected=expected or len(right),
        videos=len({r.video_id for r in records}), upstream_pct=pct,
        strict_pct=pct, se_pct=1.0, chance_pct=20.0, subtasks={task: pct}, statuses={"ok": len(right)},
        provenance=Provenance(model="m", weights="w", media="x", prompts="p", generation={}, frames={}, versions={}), data=data,
    )  # fmt: skip
    write_evaluation(folder, Evaluation(score, records))
    return folder


def sample(benchmark: str, i: int, right: int) -> dict[str, Any]:
    """A line of samples jsonl: the metric as each task's process_results leaves it."""
    metric: Any = {
        "mvbench": {"pred_answer": "A", "gt_answer": "A" if right else "B", "score": right},
        "perceptiontest": {"video_name": f"v{i // 3}", "question": "?", "pred_id": 0, "answer_id": "0", "correct": right},
        "tempcompass": {"video_id": f"v{i // 3}", "question": "?", "gt-answer": "A", "match_success": True, "rating": right, "dim": "x"},
        "nextqa": float(right),
        "egoschema": {"pred": 0, "ground_truth": "0" if right else "1"},
        "videomme": {"question_id": f"q{i}", "videoID": f"v{i // 3}", "pred_answer": "A", "answer": "A", "score": float(right)},
        "longvideobench": {"id": f"q{i}", "duration_group": 15, "answer": "A", "parsed_pred": "A" if right else "B"},
    }[benchmark]
    return {"doc_id": i, "target": "A", "filtered_resps": ["A"], "doc_hash": "x", "input": "?", CATALOG[benchmark].metric: metric}


def write_stock(
    folder: Path,
    right: Sequence[int],
    *,
    benchmark: str = "egoschema",
    model: str = "org/stock",
    samples: bool = True,
    date: str = "20261122_100000",
) -> Path:
    """A folder as lmms-eval's own command line leaves it."""
    b = CATALOG[benchmark]
    folder.mkdir(parents=True, exist_ok=True)
    value = b.unit * sum(right) / len(right)
    raw = {
        "results": {t: {"alias": t, f"{b.metric},none": value, f"{b.metric}_stderr,none": "N/A"} for t in b.tasks},
        "configs": {t: {"task": t} for t in b.tasks},
        "n-samples": {t: {"original": len(right), "effective": len(right)} for t in b.tasks},
        "config": {"model": "savi", "model_args": f"pretrained={model}"},
        "model_name": model, "lmms_eval_version": "unknown@unknown", "date": date,
    }  # fmt: skip
    (folder / f"{date}_results.json").write_text(json.dumps(raw))
    if samples:
        for t in b.tasks:
            lines = [json.dumps(sample(benchmark, i, r)) + "\n" for i, r in enumerate(right)]
            (folder / f"{date}_samples_{t}.jsonl").write_text("".join(lines))
    return folder


def ranks(tmp: Path, **options: Any) -> dict[str, int | None]:
    (table,) = leaderboard(discover([tmp], **options).entries)
    return {r.label: r.cells[1].rank for r in table.rows}


def test_a_part_of_the_questions_never_beats_the_whole(tmp_path: Path) -> None:
    write_run(tmp_path / "whole", credits(200, 90))
    for name in ("part1", "part2"):  # two of them, so that the questions most entries share are the part's
        write_run(tmp_path / name, [1, 1, 1], expected=200, salt=name)
    (table,) = leaderboard(discover([tmp_path]).entries)
    assert {r.label: r.cells[0].rank for r in table.rows} == {"whole": 1, "part1": None, "part2": None}
    assert table.rows[0].label == "whole"
    assert "(part)" in table.rows[1].cells[1].text
    assert "a part only, 3 of 200" in table.rows[1].cells[1].note


def test_a_clear_winner_and_two_alike(tmp_path: Path) -> None:
    low = credits(200, 90)
    twin = [1 - c if i in (3, 60, 90, 140) else c for i, c in enumerate(low)]
    high = [1 if i % 2 else c for i, c in enumerate(low)]
    for name, c in (("low", low), ("twin", twin), ("high", high)):
        write_run(tmp_path / name, c)
    assert ranks(tmp_path) == {"high": 1, "low": 2, "twin": 2}
    (table,) = leaderboard(discover([tmp_path]).entries)
    assert table.rows[0].label == "high"
    assert [r.cells[0].text for r in table.rows] == ["1", "2–3", "2–3"]
    assert "better than 2 and worse than 0 of 2 others" in table.rows[0].cells[0].note
    assert "better than 0 and worse than 1 of 2 others" in table.rows[1].cells[1].note
    assert list(csv.DictReader(io.StringIO(table.to_csv())))[1]["EgoSchema worst rank"] == "3"


def test_pairing_sees_what_intervals_do_not(tmp_path: Path) -> None:
    """16 of 300 answers better, none worse: the scores' own intervals overlap widely, the paired difference is clear."""
    base = credits(300, 150)
    better = list(base)
    for i in [i for i, c in enumerate(base) if not c][:16]:
        better[i] = 1
    write_run(tmp_path / "plain", base)
    write_run(tmp_path / "better", better)
    assert ranks(tmp_path) == {"better": 1, "plain": 2}


def test_questions_on_one_video_are_not_independent(tmp_path: Path) -> None:
    """The same 16 answers, all on two videos of eight questions: two coin tosses, so one rank."""
    base = credits(300, 150)
    base[:16] = [0] * 16
    better = [1] * 16 + base[16:]
    write_run(tmp_path / "plain", base, benchmark="nextqa", a_video=8)
    write_run(tmp_path / "better", better, benchmark="nextqa", a_video=8)
    assert set(ranks(tmp_path).values()) == {1}
    write_run(tmp_path / "plain", base, benchmark="nextqa")
    write_run(tmp_path / "better", better, benchmark="nextqa")
    assert ranks(tmp_path) == {"better": 1, "plain": 2}, "on sixteen videos it is a difference"


def test_rank_intervals_by_hand() -> None:
    def rank(beats: set[tuple[int, int]]) -> dict[int, tuple[int, int]]:
        return rank_intervals([0, 1, 2], {(x, y): (x, y) in beats for x in range(3) for y in range(3) if x != y})

    assert rank({(0, 1), (0, 2), (1, 2)}) == {0: (1, 1), 1: (2, 2), 2: (3, 3)}
    assert rank({(0, 2)}) == {0: (1, 2), 1: (1, 3), 2: (2, 3)}, "0 is above 2, and 1 may stand anywhere"
    assert rank({(0, 1), (0, 2)}) == {0: (1, 1), 1: (2, 3), 2: (2, 3)}
    assert rank(set()) == {0: (1, 3), 1: (1, 3), 2: (1, 3)}


def made_entries(accuracies: Sequence[float], n: int, rng: random.Random) -> list[Entry]:
    """Models that share each question's difficulty, so that answers are alike as those of real models are."""
    keys = tuple(("egoschema_subset", i) for i in range(n))
    names = tuple(str(i) for i in range(n))
    luck = [rng.random() for _ in range(n)]
    rows = [tuple(float((u if rng.random() < 0.8 else rng.random()) < p) for u in luck) for p in accuracies]
    made = [Answers(keys, row, names, "question ids", names) for row in rows]
    return [Entry(str(i), "run", "micro", {"egoschema": EntryScore(100 * sum(a.credits) / n, n, n, a)}, str(i)) for i, a in enumerate(made)]


def test_sixteen_models_one_point_apart_are_not_all_first() -> None:
    """By chaining, the best and the worst of them (15 points) shared rank 1."""
    entries = made_entries([0.7 - 0.01 * i for i in range(16)], 4000, random.Random(3))
    ranking = rank_benchmark([e.scores["egoschema"] for e in entries], "egoschema", 0.05, Designs(entries))
    assert ranking.ranks[0][0] == 1
    assert ranking.ranks[15][1] == 16
    assert ranking.ranks[0][1] < ranking.ranks[15][0]
    assert all(best <= i + 1 <= worst for i, (best, worst) in ranking.ranks.items())


@pytest.mark.parametrize("accuracies", [[0.5] * 4, [0.5, 0.52, 0.55, 0.55]])
def test_rank_intervals_hold_together(accuracies: list[float]) -> None:
    """150 simulations: every model's true rank lies in its interval but in about alpha of them."""
    rng = random.Random(7)
    wrong = 0
    for _ in range(150):
        entries = made_entries(accuracies, 120, rng)
        ranking = rank_benchmark([e.scores["egoschema"] for e in entries], "egoschema", 0.05, Designs(entries))
        for i, (best, worst) in ranking.ranks.items():
            above, below = (sum(a > accuracies[i] for a in accuracies), sum(a < accuracies[i] for a in accuracies))
            if best > 1 + above or worst < len(accuracies) - below:  # equal models may take either place
                wrong += 1
                break
    assert wrong <= 150 * 0.05 + 2 * (150 * 0.05 * 0.95) ** 0.5


def test_few_changed_videos_need_the_exact_test() -> None:
    import numpy as np

    from harness.stats import cluster_mean, design

    d = design([str(i) for i in range(500)], ["t"] * 500)
    m = cluster_mean(np.array([1.0] * 5 + [0.0] * 495), d)
    assert p_value([Difference(m.estimate, m.se, m.df, m.totals)]) == pytest.approx(2 * 0.5**5), "5 against 0: two-sided sign test"


def test_stages_of_a_run(tmp_path: Path) -> None:
    for stage, right in (("base", 20), ("iter-1", 25), ("iter-2", 30), ("iter-10", 35)):
        write_run(tmp_path / "r" / stage / "eval", credits(40, right))
    (tmp_path / "r" / "iter-2" / "model" / "egoschema").mkdir(parents=True)
    assert {e.label for e in discover([tmp_path]).entries} == {"r/base", "r/iter-10"}
    assert len(discover([tmp_path], all_stages=True).entries) == 4
    for place in ("r", "r/iter-10", "r/iter-10/eval", "r/iter-10/eval/egoschema"):
        assert "r/iter-10" in {e.label for e in discover([tmp_path / place]).entries}, place


def test_one_base_of_two_seeds_is_one_entry(tmp_path: Path) -> None:
    for seed in ("s0", "s1"):
        write_run(tmp_path / seed / "base" / "eval", credits(40, 20))
        write_run(tmp_path / seed / "iter-1" / "eval", credits(40, 25, seed=int(seed[1])))
    entries = discover([tmp_path]).entries
    assert [e.label for e in entries] == ["s0/base", "s0/iter-1", "s1/iter-1"]
    assert "s1/base" in entries[0].notes[0]


def test_scales_are_never_mixed(tmp_path: Path) -> None:
    write_run(tmp_path / "small", credits(40, 20))
    write_run(tmp_path / "large", credits(500, 260), scale="8b")
    tables = leaderboard(discover([tmp_path, REPO / "results" / "paper"]).entries)
    assert [t.scale for t in tables] == ["8b", "4b", "2b", "1b", "micro"]
    by = {t.scale: t for t in tables}
    assert [r.label for r in by["micro"].rows] == ["small"]
    assert "large" in {r.label for r in by["8b"].rows}
    assert "VideoSAVi" in {r.label for r in by["8b"].rows}
    (tmp_path / "large" / "nextqa").mkdir()
    write_run(tmp_path / "large", credits(40, 20), benchmark="nextqa", scale="micro")
    assert any("scales are never mixed" in p for p in discover([tmp_path]).problems)


def test_published_rows_are_marked_and_have_no_rank(tmp_path: Path) -> None:
    write_run(tmp_path / "large", credits(500, 260), scale="8b")
    table = leaderboard(discover([tmp_path, REPO / "results" / "paper"]).entries)[0]
    row = next(r for r in table.rows if r.label == "VideoSAVi")
    assert row.group == "published (not ranked)"
    assert row.cells[0].text == "published"
    assert all(c.rank is None for c in row.cells)
    assert {c.source for c in row.cells} == {"published", "derived"}
    assert any(r.label == "Kangaroo †" for r in table.rows), "not run with lmms-eval"
    assert any("documented nowhere" in n for n in table.notes), "TempCompass's aggregation"
    assert not discover([tmp_path, REPO / "results" / "paper"], rule="strict").problems
    assert {e.kind for e in discover([tmp_path, REPO / "results" / "paper"], rule="strict").entries} == {"run"}


@pytest.mark.parametrize("benchmark", list(CATALOG))
def test_stock_folders_of_every_benchmark(tmp_path: Path, benchmark: str) -> None:
    write_stock(tmp_path / "org__stock", credits(40, 10), benchmark=benchmark)
    (entry,) = discover([tmp_path], stock_scale="micro", stock_data="micro").entries
    s = entry.scores[benchmark]
    assert (entry.kind, entry.scale, entry.label) == ("lmms-eval", "micro", "org/stock")
    assert s.pct == pytest.approx(25.0)
    assert s.answers is not None
    assert sum(s.answers.credits) == 10 * len(CATALOG[benchmark].tasks)
    assert s.n == 40 * len(CATALOG[benchmark].tasks)


def test_stock_and_own_are_paired_by_question(tmp_path: Path) -> None:
    own = credits(200, 80)
    write_run(tmp_path / "own", own)
    write_stock(tmp_path / "org__stock", [1 if i % 2 else c for i, c in enumerate(own)])
    assert ranks(tmp_path, stock_scale="micro", stock_data="micro") == {"org/stock": 1, "own": 2}
    assert len(leaderboard(discover([tmp_path]).entries)) == 2, "without a stated scale they do not meet"


def test_unknown_videos_take_the_worst_clustering(tmp_path: Path) -> None:
    """LongVideoBench's samples name no video: sd grows by sqrt(1337/753); the same answers of ours, with videos, are told apart."""
    low = credits(120, 50)
    high = list(low)
    for i in [i for i, c in enumerate(low) if not c][:9]:
        high[i] = 1
    for name, c in (("low", low), ("high", high)):
        write_stock(tmp_path / "stock" / name, c, benchmark="nextqa", model=name)
        write_run(tmp_path / "own" / name, c, benchmark="nextqa")
    assert set(ranks(tmp_path / "stock", stock_scale="micro", stock_data="micro").values()) == {1}
    assert ranks(tmp_path / "own") == {"high": 1, "low": 2}
    (table,) = leaderboard(discover([tmp_path / "stock"]).entries)
    assert any("worst clustering" in n for n in table.notes)


def test_other_questions_are_shown_but_not_ranked(tmp_path: Path) -> None:
    write_run(tmp_path / "a", credits(100, 50))
    write_run(tmp_path / "b", credits(100, 60))
    write_run(tmp_path / "short", credits(80, 60))
    write_run(tmp_path / "other", credits(100, 90), salt="x")
    write_stock(tmp_path / "mute", credits(100, 70), samples=False, model="mute")
    (table,) = leaderboard(discover([tmp_path], stock_scale="micro", stock_data="micro").entries)
    got = {r.label: r.cells[1] for r in table.rows}
    assert {k for k, c in got.items() if c.rank is not None} == {"a", "b"}
    assert "other questions" in got["short"].note
    assert "stand for other questions" in got["other"].note
    assert "log_samples" in got["mute"].note
    assert got["mute"].value == 70.0


def test_empty_answers_of_mvbench_are_told(tmp_path: Path) -> None:
    """lmms-eval leaves them out of the denominator: 10 of 40 right, 20 empty, is 50 there."""
    folder = write_stock(tmp_path / "m", credits(40, 10), benchmark="mvbench")
    for f in folder.glob("*_samples_*"):
        rows = [json.loads(x) for x in f.read_text().splitlines()]
        for r in [r for r in rows if not r["mvbench_accuracy"]["score"]][:20]:
            r["mvbench_accuracy"]["pred_answer"] = ""
        f.write_text("".join(json.dumps(r) + "\n" for r in rows))
    results = next(folder.glob("*_results.json"))
    raw = json.loads(results.read_text())
    for r in raw["results"].values():
        r["mvbench_accuracy,none"] = 50.0
    results.write_text(json.dumps(raw))
    (entry,) = discover([tmp_path]).entries
    assert entry.scores["mvbench"].pct == 50.0
    assert "400 empty answers" in entry.scores["mvbench"].note


def _spoil(folder: Path, what: str) -> None:
    results, samples = next(folder.glob("*_results.json")), next(folder.glob("*_samples_*"))
    text, rows = results.read_text(), samples.read_text().splitlines(keepends=True)
    {
        "not json": lambda: results.write_text("{"),
        "binary": lambda: results.write_bytes(b"\xff\xfe\x00"),
        "another tool": lambda: results.write_text('{"results": {"egoschema_subset": {"acc,none": 1}}}'),
        "nan": lambda: results.write_text(text.replace("0.25", "NaN")),
        "over": lambda: results.write_text(text.replace("0.25", "25.0")),
        "text": lambda: results.write_text(text.replace("0.25", '"25"')),
        "other metric": lambda: results.write_text(text.replace("score,none", "acc,none")),
        "no counts": lambda: results.write_text(text.replace('"effective": 40', '"effective": "all"')),
        "torn line": lambda: samples.write_text("".join(rows)[:-20]),
        "twice": lambda: samples.write_text("".join([*rows[:-1], rows[0]])),
        "one missing": lambda: samples.write_text("".join(rows[:-1])),
        "tampered": lambda: samples.write_text("".join(rows).replace('"ground_truth": "1"', '"ground_truth": "0"', 1)),
        "no doc_id": lambda: samples.write_text("".join(rows).replace("doc_id", "id")),
        "no metric": lambda: samples.write_text("".join(rows).replace('"pred"', '"prod"')),
        "deep": lambda: results.write_text("[" * 200_000),
    }[what]()


@pytest.mark.parametrize(
    "what",
    ["not json", "binary", "another tool", "nan", "over", "text", "other metric", "no counts", "torn line", "twice", "one missing",
     "tampered", "no doc_id", "no metric", "deep"],
)  # fmt: skip
def test_what_cannot_be_trusted_is_exit_4_with_its_place(tmp_path: Path, what: str) -> None:
    _spoil(write_stock(tmp_path / "bad", credits(40, 10)), what)
    write_run(tmp_path / "good", credits(40, 20))
    out = CliRunner().invoke(_app(), ["leaderboard", str(tmp_path)])
    assert out.exit_code == 4, out.output
    assert "bad" in out.stderr
    assert "Traceback" not in out.output
    assert out.stdout == ""
    out = CliRunner().invoke(_app(), ["leaderboard", str(tmp_path), "--keep-going"])
    assert out.exit_code == 4
    assert "good" in out.stdout


def test_a_paper_scale_needs_the_papers_questions(tmp_path: Path) -> None:
    write_stock(tmp_path / "m", credits(40, 10))
    assert any("at scale 8b it has 500" in p for p in discover([tmp_path], stock_scale="8b").problems)
    write_stock(tmp_path / "m", credits(500, 100))
    assert not discover([tmp_path], stock_scale="8b").problems


def test_synthetic_and_real_data_are_never_ranked_together(tmp_path: Path) -> None:
    write_stock(tmp_path / "m", credits(500, 100))
    write_run(tmp_path / "own", credits(500, 100))
    assert any("never ranked together" in p for p in discover([tmp_path], stock_scale="micro").problems)
    assert not discover([tmp_path], stock_scale="micro", stock_data="micro").problems


def test_what_a_table_is_of_is_read_from_the_scores_and_not_from_the_name_of_the_scale(tmp_path: Path) -> None:
    write_run(tmp_path / "own", credits(500, 100), scale="26b")
    write_run(tmp_path / "made", credits(500, 100), scale="26b-trial", data="micro")
    tables = {t.scale: " ".join(t.notes) for t in leaderboard(discover([tmp_path]).entries)}
    assert list(tables) == ["26b", "26b-trial"]
    assert "synthetic data" not in tables["26b"]
    assert "synthetic data" in tables["26b-trial"]


def test_the_shipped_results_are_listed(tmp_path: Path) -> None:
    found = discover([REPO / "results"], rule="strict")
    assert found.problems == []
    tables = {t.scale: t for t in leaderboard(found.entries, rule="strict")}
    assert list(tables) == ["micro"]
    rows = {r.label: r for r in tables["micro"].rows}
    assert rows["micro: base"].cells[-1].text == "50.5", "as the README says"
    assert rows["micro: none, iteration 4"].cells[0].text == "–"
    assert any("no answers" in n for n in tables["micro"].notes)
    assert any("read by rule 1" in n for n in tables["micro"].notes), "made when 'no yes' was still an answer"
    assert {t.scale for t in leaderboard(discover([REPO / "results"]).entries)} == {"8b", "4b", "2b", "1b", "micro"}
    (tmp_path / "study.json").write_text('{"runs": [{}]}')
    assert any("no study of this project" in p for p in discover([tmp_path]).problems)


def test_a_benchmark_run_again_counts_once(tmp_path: Path) -> None:
    write_stock(tmp_path / "m", credits(40, 10), date="20261101_000000")
    write_stock(tmp_path / "m", credits(40, 20), date="20261102_000000")
    write_stock(tmp_path / "m", credits(40, 30), benchmark="nextqa", date="20261103_000000")
    (entry,) = discover([tmp_path]).entries
    assert {b: s.pct for b, s in entry.scores.items()} == {"egoschema": 50.0, "nextqa": 75.0}
    assert "the latest counts" in entry.notes[0]


def test_own_files_that_were_touched(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", credits(40, 20)) / "egoschema"
    questions = folder / "questions.jsonl"
    lines = questions.read_text().splitlines(keepends=True)
    questions.write_text("".join(lines[:-1]))
    assert "39 questions, score.json says 40" in discover([tmp_path]).problems[0]
    questions.write_text("".join([*lines[:-1], lines[0]]))
    assert "there twice" in discover([tmp_path]).problems[0]
    questions.write_text("".join(lines).replace('"answer": "A"', '"answer": "(A)"', 1))
    assert "egoschema/questions.jsonl was edited" in discover([tmp_path]).problems[0]
    questions.write_text("{}\n")
    assert "questions.jsonl:1" in discover([tmp_path]).problems[0]
    questions.unlink()
    (entry,) = discover([tmp_path]).entries
    assert entry.scores["egoschema"].answers is None


def _app() -> typer.Typer:
    app = typer.Typer()
    register(app)
    app.command("other")(lambda: None)
    return app


def test_usage_errors(tmp_path: Path) -> None:
    run = CliRunner()
    here = str(tmp_path)
    for args in ([str(tmp_path / "nowhere")], [here], [here, "--benchmark", "imagenet"], [here, "--format", "pdf"]):
        out = run.invoke(_app(), ["leaderboard", *args])
        assert out.exit_code == 2, args
    with pytest.raises(LeaderboardError, match="nothing to rank"):
        discover([tmp_path])


HOSTILE = "<img src=x onerror=alert(1)>|\x1b[2J\u202e\\input{x}\x00"


def test_every_format_with_a_hostile_name(tmp_path: Path) -> None:
    write_stock(tmp_path / "m", credits(40, 20), model=HOSTILE)
    write_stock(tmp_path / "n", credits(40, 30), model="=cmd()")
    texts = {}
    for fmt in ("md", "latex", "html", "csv", "json"):
        out = CliRunner().invoke(_app(), ["leaderboard", str(tmp_path), "--format", fmt])
        assert out.exit_code == 0, out.output
        texts[fmt] = out.stdout
        assert not any(c in out.stdout for c in "\x1b\u202e\x00")
    assert "<img" not in texts["html"]
    assert "&lt;img" in texts["html"]
    assert "<img" not in texts["md"]
    assert r"\input{x}" not in texts["latex"]
    rows = list(csv.DictReader(io.StringIO(texts["csv"])))
    assert {r["model"][0] for r in rows} <= {"<", "'"}
    assert json.loads(texts["json"])["tables"][0]["scale"] == "unstated"
    assert json.loads(texts["json"])["tables"][0]["rows"][1]["label"] == HOSTILE, "data keep the text as it was"


def test_csv_of_several_scales_is_one_file(tmp_path: Path) -> None:
    write_run(tmp_path / "small", credits(40, 20))
    tables = leaderboard(discover([tmp_path, REPO / "results" / "paper"]).entries)
    rows = list(csv.DictReader(io.StringIO(render(tables, "csv"))))
    assert {r["scale"] for r in rows} == {"8b", "4b", "2b", "1b", "micro"}
    assert len(rows) == sum(len(t.rows) for t in tables)


def test_out_file(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "a", credits(40, 20))
    out = CliRunner().invoke(_app(), ["leaderboard", str(tmp_path / "runs"), "--format", "html", "--out", str(tmp_path / "board.html")])
    assert out.exit_code == 0
    page = (tmp_path / "board.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "http" not in page.split("<body>")[0].replace("http-equiv", ""), "nothing is fetched"


@pytest.mark.slow
def test_a_folder_lmms_eval_itself_writes(tmp_path: Path) -> None:
    """lmms-eval's own tracker writes results and samples of two benchmarks; both are read, and its score is the one shown."""
    import subprocess
    import sys

    code = """
import sys
from savi.base.torchvision import fix_torchvision
fix_torchvision()
from lmms_eval.loggers.evaluation_tracker import EvaluationTracker
from lmms_eval.tasks.egoschema.utils import egoschema_aggregate_score
from lmms_eval.tasks.mvbench.utils import mvbench_aggregate_results
from benchmarks.catalog import CATALOG
t = EvaluationTracker(output_path=sys.argv[1])
t.general_config_tracker.log_experiment_args("savi", "pretrained=org/name", None, None, None)
rows = {"egoschema_subset": [("score", {"pred": i % 3, "ground_truth": "0"}) for i in range(12)]}
rows |= {k: [("mvbench_accuracy", {"pred_answer": "A" if i else "", "gt_answer": "A", "score": int(bool(i))}) for i in range(4)]
         for k in CATALOG["mvbench"].tasks}
made = {"score": egoschema_aggregate_score, "mvbench_accuracy": lambda r, a: mvbench_aggregate_results(r)}
samples, results = {}, {}
for task, values in rows.items():
    metric = values[0][0]
    results[task] = {"alias": task, metric + ",none": made[metric]([v for _, v in values], None)}
    samples[task] = [{"doc_id": i, "doc": {}, "target": "0", "arguments": ["?"], "resps": [["A"]], "filtered_resps": ["A"], "doc_hash": "h",
                      metric: v} for i, (_, v) in enumerate(values)]
counts = {k: {"original": len(v), "effective": len(v)} for k, v in rows.items()}
whole = {"results": results, "configs": {k: {} for k in rows}, "n-samples": counts, "config": {"model": "savi", "model_args": "x"}}
t.save_results_aggregated(results=whole, samples=samples, datetime_str="20261122_1000:00")
for k in rows:
    t.save_results_samples(task_name=k, samples=samples[k])
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=REPO, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = discover([tmp_path], stock_scale="micro", stock_data="micro")
    assert not found.problems
    (entry,) = found.entries
    assert entry.label == "org/name"
    assert entry.scores["egoschema"].pct == pytest.approx(100 / 3)
    assert entry.scores["mvbench"].pct == 100.0
    assert "20 empty answers" in entry.scores["mvbench"].note
