"""Readers of records, scores and journals, 500 damaged inputs each: what was written, or one line that names the file."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.records import Evaluation, RecordError, read_evaluations, read_records, read_score, write_evaluation
from harness.report.page import render
from harness.report.read import read_run
from harness.run.journal import Answer, Journal, JournalError
from harness.view.runs import facts, files_of
from harness.view.scrub import Scrubber
from tests.harness.fake_run import write_fake_run
from tests.harness.made import evaluation, records

pytestmark = pytest.mark.fuzz

INPUTS = 500
ODD = (
    b"\xff\xfe", b"\x00", b"\r", b"\n\n", b"\xe2\x80\xa8", b"\xc2\x85", b"\xed\xa0\x80", b'"\\ud800"', b'"\\u2028"', b"1e999",
    b"-1", b"NaN", b"null", b"[]", b"{}", b"true", b"[" * 5000, b'{"a":' * 3000, b"9" * 5000, b'"[red]x[/]"', b'"\\u001b[31m"',
    b'"' + b"a" * 70_000 + b'"',
)  # fmt: skip


def damaged(data: bytes, rng: random.Random) -> bytes:
    """One to four changes: bits turned, bytes cut, doubled or exchanged, odd tokens in the place of others."""
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(data) + 1)
        until = min(len(data), at + rng.randrange(1, 60))
        kind = rng.randrange(6)
        if kind == 0 and at < len(data):
            data = data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
        elif kind == 1:
            data = data[:at]
        elif kind == 2:
            data = data[:at] + data[until:]
        elif kind == 3:
            data = data[:until] + data[at:]
        elif kind == 4:
            data = data[:at] + rng.choice(ODD) + data[until:]
        else:
            start = data.find(b": ", at)
            end = min((p for p in (data.find(c, start) for c in (b",", b"}", b"\n")) if p > start), default=len(data))
            data = data[: start + 2] + rng.choice(ODD) + data[end:] if start >= 0 else data + rng.choice(ODD)
    return data


def read_all(path: Path, read: Callable[[], object], known: type[Exception]) -> int:
    """Read `path` in each of its damaged forms; the number of forms that were refused."""
    whole, refused = path.read_bytes(), 0
    for seed in range(INPUTS):
        path.write_bytes(damaged(whole, random.Random(seed)))
        try:
            read()
        except known as e:
            said = str(e)
        else:
            continue
        refused += 1
        assert path.name in said, (seed, said)
        assert_one_line(said)
    return refused


def assert_one_line(text: str) -> None:
    assert "\n" not in text
    assert len(text) < 2000


@pytest.fixture
def whole(tmp_path: Path) -> tuple[Path, Evaluation]:
    made = evaluation(records(n=12, videos=4))
    write_evaluation(tmp_path, made)
    return tmp_path / "egoschema", made


def test_records(whole: tuple[Path, Evaluation]) -> None:
    path = whole[0] / "questions.jsonl"
    assert read_all(path, lambda: read_records(path), RecordError) > INPUTS // 2


def test_scores(whole: tuple[Path, Evaluation]) -> None:
    path = whole[0] / "score.json"
    assert read_all(path, lambda: read_score(path), RecordError) > INPUTS // 2


def test_an_evaluation_folder(whole: tuple[Path, Evaluation]) -> None:
    path = whole[0] / "questions.jsonl"
    assert read_all(path, lambda: read_evaluations(whole[0].parent), RecordError) > INPUTS // 2


def test_journals_give_only_what_was_written(tmp_path: Path) -> None:
    answers = [Answer(f"k{i}", f"réponse {i}\u2028 B", i, True, 8, "pyav") for i in range(12)]
    Journal(tmp_path, made_by={"torch": "2"}).add(answers)
    path = tmp_path / "journal.jsonl"
    whole = path.read_bytes()
    known = {a.key for a in answers}
    refused = kept = 0
    for seed in range(INPUTS):
        data = damaged(whole, random.Random(seed))
        path.write_bytes(data)
        try:
            journal = Journal(tmp_path, made_by={"torch": "2"})
        except JournalError as e:
            said = str(e)
        else:
            said = ""
        if said:
            refused += 1
            assert path.read_bytes() == data, "a journal that is refused is not touched"
            assert_one_line(said)
            continue
        found = [a for k in known if (a := journal.get(k)) is not None]
        kept += sum(a in answers for a in found)
        for aside in tmp_path.glob("journal.jsonl.old-*"):
            aside.unlink()
        journal.add([Answer("new", "x", 1, True, 8)])  # what is left can be gone on from
        journal.close()
        assert Journal(tmp_path, made_by={"torch": "2"}).get("new") is not None, seed
    assert refused > INPUTS // 4
    assert kept > INPUTS // 4


def test_inputs_of_a_finished_result(tmp_path: Path) -> None:
    from harness.run.made_from import _differences, _read_inputs

    wanted = {"weights": "w" * 64, "limit": None, "reading": 2, "versions": {"torch": "2"}}
    path = tmp_path / "inputs.json"
    whole = json.dumps(wanted).encode()
    for seed in range(INPUTS):
        path.write_bytes(damaged(whole, random.Random(seed)))
        assert all("\n" not in line for line in _differences(wanted, _read_inputs(path))), seed


def test_a_run_is_shown_whatever_its_files_hold(tmp_path: Path) -> None:
    """A damaged file is said on the page, or left out of it: the page is made all the same, and so is the index."""
    run = write_fake_run(tmp_path / "run", iterations=1, sizes={"egoschema": 8})
    files = [p for p in files_of(run) if p.is_file()]
    assert len(files) > 8
    for seed in range(INPUTS):
        rng = random.Random(seed)
        path = rng.choice(files)
        whole = path.read_bytes()
        path.write_bytes(damaged(whole, rng))
        found = read_run(run)
        assert all(map(assert_fits_a_line, found.problems))
        facts(tmp_path, run)
        if seed % 10 == 0:
            assert render(Scrubber([tmp_path]).run(found), link=lambda file: None).endswith("</html>")
        path.write_bytes(whole)


def assert_fits_a_line(text: str) -> bool:
    assert_one_line(text)
    return True
