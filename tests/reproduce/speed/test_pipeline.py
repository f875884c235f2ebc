"""The pipeline cases of the speed table: what they run, what counts as waiting, and how busy a GPU is."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from benchmarks.catalog import select
from reproduce.speed import pipeline
from reproduce.speed.case import PRESETS
from reproduce.speed.cases import build, measure
from reproduce.speed.cli import table
from reproduce.speed.pipeline import BUSY, Stopwatch, gpu_busy
from savi.video import prefetch


@pytest.mark.parametrize("name", ["pipeline-propose", "pipeline-evaluate"])
def test_a_pipeline_runs_from_files_to_replies(name: str) -> None:
    """The run itself refuses where a step was left out or a question got no answer."""
    row = measure(build(name, PRESETS["smoke"]), 1, "cpu", warm_up=False)
    assert set(row.seconds) == {"decoded meanwhile", "decoded in turn"}
    assert 0 <= row.extras["waits for frames_pct"] <= 100
    assert 0 < row.extras["waits with the first chunk_pct"] < 100
    assert BUSY not in row.extras, "a CPU has no such figure"
    assert row.flops["decoded meanwhile"] > 0


def test_all_words_of_a_step_are_readable_and_differ() -> None:
    from savi.loop.prompts import Question, parse_answer, parse_question

    asked = parse_question(pipeline._words("0001.mp4/spatial/0/ask", 12))
    assert isinstance(asked, Question)
    said = [pipeline._words(f"0001.mp4/spatial/0/{step}", 12) for step in ("answer", "critique", "revise")]
    assert len(set(said)) == 3
    assert all(isinstance(parse_answer(text, asked), str) for text in said)


def test_waiting_counts_from_the_end_of_the_first_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    now, waited = [0.0], [3.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(prefetch, "waited_s", lambda: waited[0])
    watch = Stopwatch()
    watch.start()
    for done, at, all_waiting in ((0, 1.0, 3.5), (2, 4.0, 5.0), (4, 6.0, 5.0)):
        now[0], waited[0] = at, all_waiting
        watch.progress(done, 6)
    now[0], waited[0] = 14.0, 6.0
    watch.stop()
    assert watch.shares() == {"waits for frames_pct": pytest.approx(10.0), "waits with the first chunk_pct": pytest.approx(100 * 3 / 14)}


def test_one_chunk_alone_says_nothing_about_what_follows() -> None:
    watch = Stopwatch()
    watch.start()
    watch.stop()
    assert set(watch.shares()) == {"waits with the first chunk_pct"}


def test_a_gpu_is_as_busy_as_its_driver_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho ' 97'\necho 91\necho '[N/A]'\necho \"$1\" >&2\nexec sleep 60\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with gpu_busy("cuda") as busy:
        time.sleep(0.3)
    assert busy() == 94.0
    with gpu_busy("cpu") as busy:
        pass
    assert busy() is None


def test_the_table_holds_a_gpu_to_its_target() -> None:
    row = measure(build("pipeline-evaluate", PRESETS["smoke"]), 1, "cpu", warm_up=False)
    case = row.to_json()
    report = {"preset": "gpu", "machine": {}, "matmul_peak_tflops": 1.0, "cases": [case]}
    assert "GPU busy 90" not in table(report)
    for busy, word in ((95.0, "met (95 %)"), (80.0, "not met (80 %)")):
        case["extras"][BUSY] = busy
        assert f"| GPU busy 90 %: {word} |" in table(report)


def test_questions_are_spread_as_in_the_benchmarks() -> None:
    found, benchmarks = pipeline._questions(400), select(None)
    assert sum(found) / 400 == pytest.approx(sum(b.n for b in benchmarks) / sum(b.videos for b in benchmarks), rel=0.05)
    assert found[0] == 1
    assert found[-1] > 10
