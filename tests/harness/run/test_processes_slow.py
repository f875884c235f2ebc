"""`harness evaluate` and `check` as real processes: stopped at work, and two in one place."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from benchmarks.micro.pretrain.recipe import BASE_DIR
from benchmarks.micro.twins.twins import build_twins
from tests.harness.run.test_evaluate_slow import environment, without_times
from tests.savi.started import STOPS, check_two_at_once, start, stopped

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_twins(tmp_path_factory.mktemp("twins"), seed=1, size="smoke").hf_home


def evaluate(home: Path, out: Path) -> list[object]:
    return ["harness", "evaluate", BASE_DIR, "--out", out, "--hf-home", home, "--batch", 2, "--benchmarks", "egoschema"]


@pytest.fixture(scope="module")
def whole(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    with start(evaluate(home, out), environment(home)) as process:
        assert process.wait() == 0
    return out


@pytest.mark.parametrize(("number", "code", "word"), STOPS)
def test_stopped_goes_on_to_the_same_bytes(home: Path, whole: Path, tmp_path: Path, number: signal.Signals, code: int, word: str) -> None:
    out = tmp_path / "out"
    journal = out / "egoschema/journal.jsonl"
    found, line = stopped(evaluate(home, out), environment(home), number, lambda: journal.exists() and journal.stat().st_size > 0)
    assert (found, line) == (code, f"error: {word}; what is finished is kept; run the same command to go on")
    assert not (out / "egoschema/score.json").exists()
    with start(evaluate(home, out), environment(home)) as again:
        assert again.wait() == 0
    assert without_times(out) == without_times(whole)


@pytest.mark.parametrize("name", ["evaluate", "check"])
def test_the_second_in_one_place_is_told_who_is_at_work(name: str, home: Path, whole: Path, tmp_path: Path) -> None:
    check = ["harness", "check", BASE_DIR, "--out", tmp_path, "--data", home, "--against", whole]
    check_two_at_once(evaluate(home, tmp_path) if name == "evaluate" else check, environment(home), tmp_path)
