"""Records: bits there and back, small, and refused where they do not fit together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.records import Evaluation
from reproduce.study.records import (
    QUESTIONS_FILE,
    RecordsError,
    answers_of,
    pack,
    questions_of,
    read_record,
    read_records,
    record_path,
    unpack,
    write_record,
)
from savi.base.errors import UsageError
from tests.reproduce.fakes import fake_evaluation
from tests.reproduce.study.made import QUESTIONS, made_records


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=200))
def test_bits_there_and_back(values: list[float]) -> None:
    assert list(unpack(pack(values), len(values))) == values


def test_half_a_credit_is_refused() -> None:
    with pytest.raises(RecordsError, match="neither 0 nor 1"):
        pack([1.0, 0.5])


@pytest.mark.parametrize(("text", "n"), [(pack([1.0] * 9), 8), (pack([1.0] * 8), 9), ("no base64!", 8), ("", 1)])
def test_another_number_of_answers_is_refused(text: str, n: int) -> None:
    with pytest.raises(RecordsError, match="answers"):
        unpack(text, n)


def evaluations(skill: float = 0.5) -> dict[str, Evaluation]:
    return {name: fake_evaluation(name, "smoke", skill, name, n=60) for name in ("mvbench", "nextqa", "tempcompass")}


def test_the_mean_of_the_bits_is_the_mean_of_the_scores() -> None:
    """With the benchmarks' own weights: MVBench's and TempCompass's tasks count alike, and benchmarks do."""
    found = evaluations()
    questions = questions_of(found)
    bits = unpack(answers_of(found), questions.n)
    assert 100 * questions.design.weights @ bits == pytest.approx(np.mean([e.score.strict_pct for e in found.values()]))
    for name, evaluation in found.items():
        alone = questions.design_of(name).weights @ bits[questions.part(name)]
        assert 100 * alone == pytest.approx(evaluation.score.strict_pct)
        assert questions.design_of(name).videos == evaluation.score.videos
    with pytest.raises(KeyError):
        questions.part("egoschema")


def test_the_order_of_the_files_changes_nothing() -> None:
    found = evaluations()
    mixed = {name: Evaluation(found[name].score, found[name].records[::-1]) for name in reversed(found)}
    assert questions_of(mixed).digest == questions_of(found).digest
    assert answers_of(mixed) == answers_of(found)


def test_records_there_and_back_and_small(tmp_path: Path) -> None:
    records = made_records({"dpo": [1, 2, 3, 4], "sft": [1, 1, 1, 1]}, 3)
    for record in records:
        write_record(tmp_path, record, QUESTIONS)
    questions, found = read_records(tmp_path)
    assert questions == QUESTIONS
    assert sorted(found, key=lambda r: r.name) == sorted(records, key=lambda r: r.name)
    assert max(path.stat().st_size for path in (tmp_path / "records").iterdir()) < 4000
    assert found[0].gap == pytest.approx(found[0].pairs[0]["revised_pct"] - 50)  # type: ignore[operator]


def test_a_run_of_other_questions_is_not_kept_beside_the_rest(tmp_path: Path) -> None:
    record = made_records({"dpo": [1]}, 1)[0]
    write_record(tmp_path, record, QUESTIONS)
    with pytest.raises(RecordsError, match="other questions"):
        write_record(tmp_path, record, questions_of(evaluations()))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"questions": "0" * 64}, "other questions"),
        ({"scale": "micro"}, "keep them apart"),
        ({"seed": 7}, "holds run recipe-2-seed7-dpo"),
        ({"stages": ["AAAA"]}, "answers to 17 to 24 questions, where 240 were asked"),
        ({"stages": []}, "stages"),
        ({"surprise": 1}, "surprise"),
        ({"schema_version": 2}, "schema version"),
    ],
)
def test_a_record_that_does_not_fit_is_named(change: dict[str, object], said: str, tmp_path: Path) -> None:
    for record in made_records({"dpo": [1]}, 2):
        write_record(tmp_path, record, QUESTIONS)
    path = record_path(tmp_path, "recipe-2-seed200-dpo")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(RecordsError, match=said) as caught:
        read_records(tmp_path)
    assert path.name in str(caught.value)


def test_nothing_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=QUESTIONS_FILE):
        read_records(tmp_path)
    write_record(tmp_path, made_records({"dpo": [1]}, 1)[0], QUESTIONS)
    record_path(tmp_path, "recipe-1-seed100-dpo").unlink()
    with pytest.raises(UsageError, match="no record here"):
        read_records(tmp_path)
    with pytest.raises(UsageError, match="nowhere"):
        read_record(tmp_path / "nowhere.json")
    (tmp_path / QUESTIONS_FILE).write_text("{")
    with pytest.raises(RecordsError, match=QUESTIONS_FILE):
        read_records(tmp_path)
