"""The journal: nothing acknowledged is lost, nothing torn is read, nothing stale is found."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.run import made_from
from harness.run.journal import Answer, Journal, JournalError, answer_key

KEY = {"weights": "w", "question": "q", "media": "m", "prompt": "p", "generation": {"max_new_tokens": 8}, "frames": {"num_frames": 8}}


def answers(n: int, start: int = 0) -> list[Answer]:
    return [Answer(f"k{i}", f"réponse {i}\nB", 3, True, 8) for i in range(start, start + n)]


def test_found_again_by_another_process(tmp_path: Path) -> None:
    j = Journal(tmp_path)
    j.add(answers(3))
    j.add(answers(2, 3))
    again = Journal(tmp_path)  # the first is still open: as after a SIGKILL
    assert len(again) == 5
    assert again.get("k4") == Answer("k4", "réponse 4\nB", 3, True, 8)
    assert again.get("k9") is None


@pytest.mark.parametrize("cut", [1, 2, 10, 40])
def test_torn_last_line_is_cut_off(tmp_path: Path, cut: int) -> None:
    Journal(tmp_path).add(answers(3))
    path = tmp_path / "journal.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    j = Journal(tmp_path)
    assert len(j) == 2
    j.add(answers(1, 7))
    assert {a for a in ("k0", "k1", "k2", "k7") if Journal(tmp_path).get(a)} == {"k0", "k1", "k7"}


def test_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    Journal(tmp_path).add(answers(3))
    path = tmp_path / "journal.jsonl"
    lines = path.read_text().splitlines()
    for bad in ('{"key": 1', '{"key": "k", "other": 1}', "5", "null", lines[2].replace("true", '"yes"'), lines[2].replace("3,", "[3],")):
        path.write_text("\n".join([lines[0], lines[1], bad, lines[3]]) + "\n")
        with pytest.raises(JournalError, match=r"journal\.jsonl:3"):
            Journal(tmp_path)


def test_answers_of_before_decoders_and_errors_were_kept_are_read(tmp_path: Path) -> None:
    Journal(tmp_path).add(answers(2))
    path = tmp_path / "journal.jsonl"
    path.write_text(path.read_text().replace(', "decoder": "", "error": ""', ""))
    assert "decoder" not in path.read_text()
    assert [Journal(tmp_path).get(a.key) for a in answers(2)] == answers(2)


def test_answers_of_other_versions_are_kept_beside_and_not_mixed(tmp_path: Path) -> None:
    Journal(tmp_path, made_by={"torch": "2.13.0", "code": "a"}).add(answers(3))
    assert len(Journal(tmp_path, made_by={"code": "a", "torch": "2.13.0"})) == 3
    said: list[str] = []
    j = Journal(tmp_path, made_by={"torch": "2.14.0", "code": "a"}, tell=said.append)
    assert len(j) == 0
    assert said == [
        f"{tmp_path / 'journal.jsonl'}: its answers were made by torch 2.13.0 (now 2.14.0); kept as journal.jsonl.old-1, "
        "those questions are asked again"
    ]
    j.add(answers(1))
    j.delete()
    kept = tmp_path / "journal.jsonl.old-1"
    assert [p.name for p in tmp_path.iterdir()] == [kept.name]
    kept.rename(tmp_path / "journal.jsonl")  # nothing was lost
    assert len(Journal(tmp_path, made_by={"torch": "2.13.0", "code": "a"})) == 3


def test_a_journal_that_does_not_say_what_made_it_is_set_aside(tmp_path: Path) -> None:
    Journal(tmp_path).add(answers(2))
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))  # as before headers
    said: list[str] = []
    assert len(Journal(tmp_path, made_by={"torch": "2.13.0"}, tell=said.append)) == 0
    assert "an older version" in said[0]
    assert (tmp_path / "journal.jsonl.old-1").exists()


def test_lone_surrogates_and_separators_come_back(tmp_path: Path) -> None:
    odd = Answer("k", "a\ud800b\u2028c\x85d\n", 1, True, 8)
    Journal(tmp_path).add([odd])
    assert Journal(tmp_path).get("k") == odd


def test_ranks_write_apart_and_read_together(tmp_path: Path) -> None:
    first, second = Journal(tmp_path), Journal(tmp_path, rank=1)
    first.add(answers(1))
    second.add(answers(1, 1))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["journal-1.jsonl", "journal.jsonl"]
    assert len(Journal(tmp_path)) == 2
    first.delete()
    assert not list(tmp_path.iterdir())


def test_nothing_is_made_before_the_first_answer(tmp_path: Path) -> None:
    Journal(tmp_path / "new").add([])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "w2"},
        {"question": "q2"},
        {"media": "m2"},
        {"prompt": "p2"},
        {"generation": {"max_new_tokens": 9}},
        {"frames": {"num_frames": 16}},
    ],
)
def test_key_holds_all_an_answer_depends_on(change: dict) -> None:
    assert answer_key(**KEY) == answer_key(**KEY)
    assert answer_key(**{**KEY, **change}) != answer_key(**KEY)


WRITER = """
import sys
from pathlib import Path
from harness.run.journal import Answer, Journal
j = Journal(Path(sys.argv[1]))
for i in range(100000):
    j.add([Answer(f"{i}-{k}", "x" * 50, 1, True, 8) for k in range(5)])
    print(i, flush=True)
"""


def test_survives_sigkill(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}
    ) as p:
        assert p.stdout is not None
        for _ in range(10):
            p.stdout.readline()
        time.sleep(0.05)
        p.send_signal(signal.SIGKILL)
        acknowledged = 10 + len(p.stdout.read().split())
    j = Journal(tmp_path)
    assert len(j) >= 5 * min(acknowledged, 10)
    assert all(j.get(f"{i}-{k}") for i in range(acknowledged) for k in range(5))


def test_the_code_that_makes_answers_is_known_whole() -> None:
    root = Path(made_from.__file__).parents[2]
    known = set(made_from.answering_code(root))
    rooms = [p for room in ("engine", "families", "video") for p in (root / "savi" / room).rglob("*.py")]
    assert any(p.parent.name == "decoder" for p in rooms) and any(p.parent.name == "containers" for p in rooms)
    assert known > set(rooms)
