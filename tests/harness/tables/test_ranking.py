"""Ranks against planted truths, of answers and of loop seeds; what is compared with what."""

from __future__ import annotations

import csv
import io
import json
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.tables.leaderboard.entry import Answers, Entry, EntryScore
from harness.tables.leaderboard.ranking import Designs, Difference, leaderboard, p_value, rank_benchmark, rank_intervals
from harness.tables.leaderboard.read import discover
from harness.tables.table import Table
from tests.harness.tables.folders import credits, write_run, write_stock

REPO = Path(__file__).resolve().parents[3]


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


def test_the_shipped_results_are_ranked_by_their_seeds(tmp_path: Path) -> None:
    """Before, a study was listed without ranks."""
    found = discover([REPO / "results"], rule="strict")
    assert found.problems == []
    tables = {t.title: t for t in leaderboard(found.entries, rule="strict")}
    assert {t.scale for t in tables.values()} == {"micro"}
    assert list(tables) == [f"Leaderboard: study {n}" for n in ("micro", "micro/base-seed1", "micro/base-seed2")], "a base model each"
    micro = tables["Leaderboard: study micro"]
    rows = {r.label: r for r in micro.rows}
    assert rows["micro: base"].cells[-1].text == "50.5", "as the README says"
    assert {r.cells[0].text for r in micro.rows} == {"1–5"}, "three seeds tell no two of five apart after Holm"
    assert rows["micro: base"].cells[3].text == "51.2 · 2–5"
    assert any("read by rule 1" in n for n in micro.notes), "made when 'no yes' was still an answer"
    assert any("loop seeds leave possible" in n for n in micro.notes)
    assert {t.scale for t in leaderboard(discover([REPO / "results"]).entries)} == {"8b", "4b", "2b", "1b", "micro"}
    (tmp_path / "study.json").write_text('{"runs": [{}]}')
    assert any("no study of this project" in p for p in discover([tmp_path]).problems)


def study(folder: Path, scores: dict[str, list[float]]) -> list[Table]:
    """The tables of a study: the percent of each control's last iteration by seed; the base has 50."""
    rows = [
        {"seed": s, "control": c, "stages": [{"egoschema": {"strict_pct": x, "upstream_pct": x, "n": 200}} for x in (50.0, score)]}
        for c, by_seed in scores.items()
        for s, score in enumerate(by_seed)
    ]
    folder.mkdir(exist_ok=True)
    (folder / "study.json").write_text(json.dumps({"scale": "micro", "runs": rows}))
    return leaderboard(discover([folder]).entries)


def test_a_studys_ranks_are_paired_t_tests_over_seeds(tmp_path: Path) -> None:
    from scipy import stats

    a, b = [60.0, 61.0, 60.5, 60.2], [60.1, 60.6, 60.9, 59.9]
    (table,) = study(tmp_path / "s", {"none": a, "sft": b, "blind": [40.0, 41.0, 40.5, 39.0]})
    assert {r.label.split(": ")[1].split(",")[0]: r.cells[0].text for r in table.rows} == {
        "none": "1–2",
        "sft": "1–2",
        "base": "3",
        "blind": "4",
    }
    x = [(i - j) / 100 for i, j in zip(a, b, strict=True)]
    d = Difference(statistics.fmean(x), statistics.stdev(x) / 2, 3, None)
    assert p_value([d]) == pytest.approx(stats.ttest_rel(a, b).pvalue, abs=1e-9)


def test_one_seed_or_equal_changes_tell_nothing_apart(tmp_path: Path) -> None:
    for scores in ([60.0], [60.0, 60.0, 60.0]):
        (table,) = study(tmp_path / str(len(scores)), {"none": scores})
        assert {r.cells[0].text for r in table.rows} == {"1–2"}
