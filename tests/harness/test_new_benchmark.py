"""Adding a benchmark needs its file alone: a made-up one, registered here, goes through layout, twins, scoring and leaderboard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.benchmark import LETTERS, SMALL_MARGIN, Benchmark, Credit, Document, Judge
from benchmarks.catalog import CATALOG, PAPER, in_mean, of_task, select
from benchmarks.data.layout import check, expected_n, fingerprint, read_docs
from benchmarks.micro.twins.drawing import THREE, Twin, dealer, shared_pool
from benchmarks.micro.twins.twins import build_twins, check_twins
from harness.records import Evaluation, Provenance
from harness.run.offline import Guesses
from harness.scoring import ScoredReply, describe, question_id, record, score
from harness.tables.leaderboard.ranking import leaderboard
from harness.tables.leaderboard.read import discover
from harness.tables.results import results_table


class MadeUp(Benchmark):
    def video_name(self, task: str, doc: Mapping[str, Any]) -> str:
        return f"{doc['clip']}.mp4"

    def document(self, task: str, doc: Mapping[str, Any]) -> Document:
        return Document(doc["q"], tuple(doc["choices"]), LETTERS[doc["right"]])

    def credit(self, sample: Mapping[str, Any]) -> Credit:
        return Credit(float(sample[self.metric]["ok"]), video=sample[self.metric]["clip"])

    def twin(self, seed: int, size: int) -> Twin:
        pool = shared_pool(self.name, seed, size, self.twin_per_video)
        deal = dealer(pool, self.name, seed)
        items = [deal.choice(THREE, 3) for _ in range(size)]
        rows = [{"clip": f"c{it.video}", "q": it.question.text, "choices": list(it.options), "right": it.answer} for it in items]
        return Twin({self.configs[0]: rows}, {f"c{i}.mp4": scene for i, scene in enumerate(pool.scenes)})


MADE_UP = MadeUp(
    name="madeup", title="Made Up", group="madeup_val", tasks=("madeup_val",), configs=("default",), sizes=(10,), metric="made_acc", unit=1,
    repo="someone/MadeUpSet", split="validation", fields=("clip", "q", "choices", "right"), videos=5, data_dir="madeup", video_dir="clips",
    task_folder="madeup", max_options=3, download_gb=1.0, margin=SMALL_MARGIN, twin_questions={"smoke": 8, "micro": 10}, twin_per_video=2.0,
    judge=Judge("ask_somebody", ("nothing",)), optional=True,
)  # fmt: skip


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CATALOG, "madeup", MADE_UP)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CATALOG, "madeup", MADE_UP)
        return build_twins(tmp_path_factory.mktemp("home"), seed=1, size="smoke", benchmarks=["madeup"]).hf_home


def evaluated(home: Path) -> Evaluation:
    """The twin's questions, every third answered wrong."""
    docs = list(read_docs(home, MADE_UP, "default"))
    records, chances = [], []
    for i, doc in enumerate(docs):
        asked = describe(MADE_UP, "madeup_val", doc)
        answer = next(x for x in "ABC" if (x == asked.target) == (i % 3 > 0))
        sample = {"doc_id": i, "doc": doc, "arguments": [asked.question], "made_acc": {"ok": answer == asked.target, "clip": doc["clip"]}}
        records.append(record(MADE_UP, "madeup_val", sample, asked, ScoredReply(answer, 8), question_id("madeup_val", asked)))
        chances.append(asked.chance)
    upstream = {"madeup_val": 100 * sum(r.upstream for r in records) / len(records)}
    provenance = Provenance("m", "w", "x", "p", {}, {}, {})
    return score(
        MADE_UP, records, chances, upstream, scale="smoke", n_expected=expected_n(home, MADE_UP), provenance=provenance, wall_s=0.0
    )


def test_layout_and_twins(home: Path) -> None:
    assert of_task("madeup_val") is MADE_UP
    status = check(home, MADE_UP)
    assert (status.n, status.n_expected, status.videos, status.ready) == (8, 8, 4, True)
    assert expected_n(home, MADE_UP, 3) == 3
    assert sorted(p.name for p in (home / "madeup/clips").iterdir()) == ["c0.mp4", "c1.mp4", "c2.mp4", "c3.mp4"]
    assert (home / "datasets/someone___made_up_set/default").is_dir()
    assert check_twins(home) == []
    before = fingerprint(home, MADE_UP)
    assert fingerprint(build_twins(home, seed=1, size="smoke").hf_home, MADE_UP) == before, "kept, though not named this time"


def test_the_papers_twins_are_the_same_bytes_beside_it(home: Path, tmp_path: Path) -> None:
    alone = build_twins(tmp_path, seed=1, size="smoke").hf_home
    assert not (alone / "madeup").exists()
    for b in select(None):
        assert fingerprint(alone, b) == fingerprint(home, b)


def test_scoring(home: Path) -> None:
    e = evaluated(home)
    assert (e.score.n, e.score.videos) == (8, 4)
    assert e.score.strict_pct == e.score.upstream_pct == 62.5  # wrong: 0, 3, 6
    assert e.score.chance_pct == pytest.approx(100 / 3)
    assert {r.video_path for r in e.records} == {f"madeup/clips/c{i}.mp4" for i in range(4)}


def test_its_judge_is_never_asked() -> None:
    names: dict[str, Any] = {"ask_somebody": None}
    exec("def process(doc, results):\n    return {'made_acc': ask_somebody(results[0])}", names)
    config = type("Config", (), {"process_results": staticmethod(names["process"])})
    guesses = Guesses()
    guesses.watch("madeup_val", type("Task", (), {"config": config}))
    assert config.process_results({}, ["hm"]) == {"made_acc": ("nothing",)}
    assert guesses.by_task["madeup_val"] == ["judge"]


def test_tables_have_its_column_and_the_mean_does_not(home: Path) -> None:
    assert [b.name for b in select(None)] == list(PAPER)
    assert in_mean(["egoschema", "madeup"]) == ["egoschema"]
    table = results_table({"base": {"madeup": evaluated(home)}}, scale="smoke", rule="strict", benchmarks=["egoschema", "madeup"])
    assert table.columns == ("EgoSchema", "Made Up", "Mean of 1")
    assert [c.value for c in table.rows[0].cells] == [None, 62.5, None]


def test_leaderboard_reads_stock_results(tmp_path: Path) -> None:
    raw = {
        "results": {"madeup_val": {"made_acc,none": 0.75}}, "n-samples": {"madeup_val": {"original": 4, "effective": 4}},
        "configs": {}, "config": {"model": "x"}, "model_name": "somebody/model",
    }  # fmt: skip
    (tmp_path / "20261122_100000_results.json").write_text(json.dumps(raw))
    lines = [json.dumps({"doc_id": i, "target": "A", "made_acc": {"ok": int(i > 0), "clip": f"c{i // 2}"}}) for i in range(4)]
    (tmp_path / "20261122_100000_samples_madeup_val.jsonl").write_text("\n".join(lines))
    (entry,) = discover([tmp_path]).entries
    assert entry.scores["madeup"].pct == 75.0
    answers = entry.scores["madeup"].answers
    assert answers is not None
    assert answers.videos == ("c0", "c0", "c1", "c1")
    (table,) = leaderboard([entry])
    assert table.columns == ("Rank", "Made Up", "Mean of 1")
