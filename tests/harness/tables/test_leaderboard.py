"""Which folders enter a leaderboard, what may not and says why, and the command with its formats."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from benchmarks.catalog import CATALOG
from harness.tables.leaderboard.cli import register
from harness.tables.leaderboard.entry import LeaderboardError
from harness.tables.leaderboard.ranking import leaderboard, render
from harness.tables.leaderboard.read import discover
from tests.harness.tables.folders import credits, write_run, write_stock

REPO = Path(__file__).resolve().parents[3]


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
    for args in ([str(tmp_path / "nowhere")], [here], [here, "--benchmarks", "imagenet"], [here, "--format", "pdf"]):
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
