"""The micro main job in the speed table: both ways say the same, and the sum has the micro scale's weights. Nothing is timed here."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch

from benchmarks.catalog import CATALOG, PAPER
from reproduce.scale import load_scale
from reproduce.speed import micro as speed_micro
from reproduce.speed.before import OnePromptAtATime
from reproduce.speed.case import PRESETS
from reproduce.speed.cases import build, measure, wanted_cases
from reproduce.speed.main_job import Bench, Counted, Sizes, evaluate, evaluate_alone, prompt_of, propose, train
from reproduce.speed.micro import BEFORE, NOW, SIZES
from savi.engine.sampling import GenerationSettings

CASES = ("micro-propose", "micro-train", "micro-evaluate", "micro-job")


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(Sizes(videos=6, alone_videos=3, pairs=3, questions=4, alone_every=5))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_one_prompt_at_a_time_says_what_the_batch_says(bench: Bench, temperature: float) -> None:
    """Greedy and sampled; with other draws the sampled text is another, so the comparison can fail."""
    from savi.video.read import read_frames

    videos = [read_frames(path, num_frames=8) for path in bench.videos[:3]]
    old = OnePromptAtATime(bench.lm)
    prompts = ["ask spatial", "ask temporal", "what color is the circle ?"]
    settings = GenerationSettings(max_new_tokens=24, temperature=temperature, seed=3)

    def said(lm: object, settings: GenerationSettings) -> list[object]:
        items = [(watched, prompt) for watched in lm.watch_batch(videos) for prompt in prompts]  # type: ignore[attr-defined]
        return lm.ask(items, settings, keys=[f"row {i}" for i in range(len(items))])  # type: ignore[attr-defined, no-any-return]

    assert said(old, settings) == said(bench.lm, settings)
    assert old.asked == 9
    if temperature:
        assert said(old, replace(settings, seed=4)) != said(bench.lm, settings)


def test_both_ways_propose_the_same_pairs(bench: Bench) -> None:
    old, counted = OnePromptAtATime(bench.lm), Counted(bench.lm)
    assert propose(old, bench.videos, bench.scale) == propose(counted, bench.videos, bench.scale) == bench.proposed[0]
    assert old.asked == counted.asked == bench.proposed[1]
    assert bench.pairs, "the comparison of training needs pairs"


def test_both_ways_train_to_the_same_loss_and_leave_the_base_as_it_was(bench: Bench) -> None:
    before = {key: value.clone() for key, value in bench.weights.items()}
    packed, plain = (train(bench, bench.pairs, engine) for engine in ("packed", "plain"))
    assert packed.steps == plain.steps == bench.scale.training.epochs.value
    assert [row["loss"] for row in packed.log] == pytest.approx([row["loss"] for row in plain.log], rel=1e-4)
    assert all(torch.equal(value, before[key]) for key, value in bench.lm.model.state_dict().items())


def test_both_ways_answer_the_same(bench: Bench) -> None:
    rows = [row for asked in bench.questions.values() for row in asked]
    grouped = evaluate(bench.lm, bench.questions, 8)
    assert len(grouped) == len(rows)
    some = list(range(0, len(rows), 4))
    assert evaluate_alone(bench.lm, [rows[i] for i in some], 8) == [grouped[i] for i in some]
    assert len(set(grouped)) > 3, "answers differ among questions, so a wrong order would show"


def test_questions_are_the_twins_and_dealt_as_in_them(bench: Bench) -> None:
    assert list(bench.questions) == list(PAPER)
    for name, asked in bench.questions.items():
        videos = Counter(row.video for row in asked)
        assert all(video.is_file() for video in videos)
        assert max(videos.values()) <= max(2, round(CATALOG[name].twin_per_video + 1))
        assert all(row.prompt for row in asked)
    assert max(Counter(row.video for row in bench.questions["nextqa"]).values()) > 1, "something to share"


def test_prompts_have_question_and_options() -> None:
    mvbench, tempcompass = CATALOG["mvbench"], CATALOG["tempcompass"]
    doc = {"question": "what color ?", "candidates": ["red", "blue"], "answer": "red"}
    assert prompt_of(mvbench, mvbench.tasks[0], doc) == "what color ?\nA. red\nB. blue"
    for task, doc in {
        "tempcompass_multi_choice": {"question": "q ?\nA. x\nB. y", "answer": "A. x"},
        "tempcompass_yes_no": {"question": "q ?", "answer": "yes"},
        "tempcompass_caption_matching": {"question": "q ?\nCaption A: x\nCaption B: y", "answer": "Caption A: x"},
    }.items():
        assert prompt_of(tempcompass, task, doc) == doc["question"]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, bench: Bench) -> None:
    monkeypatch.setattr(speed_micro, "bench", lambda sizes: bench)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", CASES[:3])
def test_a_case_runs_and_says_how_much_was_the_same(name: str) -> None:
    row = measure(build(name, PRESETS["smoke"]), 1, "cpu", warm_up=False)
    assert set(row.seconds) == {NOW, BEFORE}
    assert row.against == BEFORE
    assert row.extras == {"same result_pct": 100.0}
    assert row.target is None
    json.dumps(row.to_json())


@pytest.mark.usefixtures("small")
def test_the_job_is_the_sum_with_the_scales_weights(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {NOW: 1.0, BEFORE: 2.0}
    monkeypatch.setattr(speed_micro.Part, "seconds", lambda part, way: seconds[way])
    case = build("micro-job", PRESETS["smoke"])
    questions = sum(map(len, bench.questions.values()))
    videos = 4 * load_scale("micro").loop.videos_per_iteration.value
    pairs = videos * len(bench.proposed[0]) / len(bench.videos)
    whole = videos / len(bench.videos) + pairs / len(bench.pairs) + 5 * (320 + 260 + 300 + 240 + 200 + 220) / questions
    assert case.ways[NOW]() == pytest.approx(whole)
    assert case.ways[BEFORE]() == pytest.approx(2 * whole)
    assert "weighted sum, not a run" in case.notes[0]
    assert case.extras is not None
    assert sum(value for key, value in case.extras().items() if key.startswith(NOW)) == pytest.approx(100)


def test_a_result_that_differs_shows() -> None:
    part = speed_micro.Part("p", lambda: [1, 2], lambda: [1, 3], 4.0, 1.0, (), lambda a, b: 100.0 * sum(map(int.__eq__, a, b)) / len(a))
    part.run(NOW)
    part.run(BEFORE)
    assert part.same_pct() == 50.0


def test_micro_cases_belong_to_the_cpu_presets() -> None:
    for preset in ("cpu", "smoke"):
        assert [name for name in wanted_cases(PRESETS[preset], []) if name.startswith("micro-")] == list(CASES)
        assert preset in SIZES
    assert not any(name.startswith("micro-") for name in wanted_cases(PRESETS["gpu"], []))
