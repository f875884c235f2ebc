"""Every setting has a value and a source; a scale that is wrong is refused by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from reproduce.plan.plan import all_plans, hours_text, make_plan
from reproduce.scale import SCALES_DIR, Gpu, ScaleError, choose_scale, load_scale, read_settings, scale_names

H100 = Gpu("NVIDIA H100", 79.6)
SMALL = Gpu("some GPU", 8)


@pytest.mark.parametrize("name", scale_names())
def test_every_shipped_scale_is_valid_and_every_setting_has_a_source(name: str) -> None:
    settings = load_scale(name).settings()
    assert len(settings) > 40
    for key, setting in settings.items():
        assert setting.source.split(":")[0] in ("paper", "release", "derived", "related work", "ours"), key


def test_what_the_paper_says_is_what_its_scales_do() -> None:
    s = load_scale("8b")
    assert s.model.base.value == "OpenGVLab/InternVL2_5-8B"
    assert s.loop.iterations.value == 4
    assert s.evaluation.num_frames.value == s.loop.num_frames.value == 32
    pairs = s.loop.iterations.value * s.loop.videos_per_iteration.value * 2 * s.loop.questions_per_kind.value
    assert pairs == 24_000
    for key in ("loop.iterations", "model.base", "evaluation.limit"):
        assert s.settings()[key].source == "paper", key
    assert s.loop.questions_per_kind.source.startswith("derived: 24,000 pairs of 4,000 videos")
    for key, head in (("loop.keep_equal", "ours"), ("training.loss_type", "related work")):
        assert s.settings()[key].source.split(":")[0] == head, "the paper and its release do not say it"


def test_unpublished_settings_do_not_claim_to_be_the_papers() -> None:
    for name in [n for n in scale_names() if load_scale(n).data == "real"]:
        settings = load_scale(name).settings()
        for key in (
            "training.beta",
            "training.learning_rate",
            "training.pairs_per_step",
            "training.lora_r",
            "loop.prompts",
            "loop.answer_temperature",
        ):
            assert settings[key].source.split(":")[0] in ("ours", "related work"), key


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"loop": {"iterations": {"value": 0, "source": "paper"}}}, "loop.iterations"),
        ({"loop": {"iterations": {"value": 4}}}, "loop.iterations.source"),
        ({"loop": {"iterations": 4}}, "loop.iterations"),
        ({"loop": {"iterations": {"value": 4, "source": "ours"}}}, "ours: why"),
        ({"loop": {"iterations": {"value": 4, "source": "somewhere"}}}, "somewhere"),
        ({"loop": {"iterationz": {"value": 4, "source": "paper"}}}, "loop.iterationz"),
        ({"surprise": {}}, "surprise"),
        ({"data": "real"}, "twins belong to data: micro"),
        ({"data": "imagined"}, "data: "),
        ({"published": "InternVL2.5"}, "no published number is measured on synthetic data"),
        ({"training": {"loss_type": {"value": "magic", "source": "paper"}}}, "training.loss_type"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, change: dict[str, object], says: str) -> None:
    shutil.copytree(SCALES_DIR, tmp_path, dirs_exist_ok=True)
    (tmp_path / "smoke.yaml").write_text(yaml.safe_dump({"extends": "micro", **change}))
    with pytest.raises(ScaleError, match=r"smoke\.yaml") as e:
        load_scale("smoke", folder=tmp_path)
    assert says in str(e.value)


@pytest.mark.parametrize("text", ["[]", ": :", "extends: smoke"])
def test_a_broken_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "smoke.yaml").write_text(text)
    with pytest.raises(ScaleError, match="smoke"):
        load_scale("smoke", folder=tmp_path)


def test_overrides_carry_their_own_source() -> None:
    s = load_scale("micro", {"loop.iterations": (2, "command line: --iterations")})
    assert s.settings()["loop.iterations"].model_dump() == {"value": 2, "source": "command line: --iterations"}


def test_any_setting_can_be_typed() -> None:
    typed = read_settings(["training.epochs=2", "training.learning_rate=2e-4", "loop.keep_equal=true", "evaluation.limit=null"])
    s = load_scale("micro", {key: (value, "command line: --set") for key, value in typed.items()})
    assert (s.training.epochs.value, s.training.learning_rate.value) == (2, 2e-4)
    assert s.loop.keep_equal.value is True and s.evaluation.limit.value is None
    assert s.training.epochs.source == "command line: --set"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("training.epoch=2", "did you mean training.epochs"),
        ("training.epochs", "section.name=value"),
        ("nothing=1", "section.name=value"),
        ("training.epochs=[", "cannot be read"),
    ],
)
def test_a_setting_that_cannot_be_is_named(text: str, says: str) -> None:
    with pytest.raises(ScaleError, match=says):
        read_settings([text])


def test_a_typed_value_of_the_wrong_kind_is_refused() -> None:
    with pytest.raises(ScaleError, match=r"command line: --set: training\.epochs"):
        load_scale("micro", {"training.epochs": ("many", "command line: --set")})


@pytest.mark.parametrize(
    ("gpus", "videos", "name", "says"),
    [
        ([], False, "micro", "no CUDA GPU"),
        ([SMALL], True, "micro", "8 GB"),
        ([H100], False, "micro", "--videos"),
        ([SMALL, H100], True, "8b", "H100"),
        ([Gpu("A100", 39.6), SMALL], True, "2b", "A100"),
    ],
)
def test_auto_says_what_it_takes_and_why(gpus: list[Gpu], videos: bool, name: str, says: str) -> None:
    choice = choose_scale("auto", gpus, videos=videos)
    assert choice.name == name
    assert says in choice.why


def test_unknown_scale_lists_the_known() -> None:
    with pytest.raises(ScaleError, match=r"unknown scale '9b'; choose from auto, smoke, micro, 1b"):
        choose_scale("9b", [], videos=False)


def test_plans_grow_with_the_model_and_count_the_papers_questions() -> None:
    plans = {p.scale: p for p in all_plans()}
    flops = [plans[name].total.pflop for name in scale_names()]
    assert flops == sorted(flops)
    evaluate = next(c for c in plans["8b"].costs if c.stage == "evaluate")
    assert evaluate.prompts == 5 * (5536 + 19140 + 8564 + 4000 + 500 + 1337)
    train = next(c for c in plans["8b"].costs if c.stage == "train")
    assert train.prompts == 24_000
    assert plans["8b"].total.disk_gb > 300


def test_a_limit_makes_the_plan_cheaper() -> None:
    full, limited = make_plan(load_scale("8b")), make_plan(load_scale("8b", {"evaluation.limit": (10, "ours: test")}))
    assert limited.total.pflop < full.total.pflop


@pytest.mark.parametrize(("hours", "text"), [(0.001, "< 1 min"), (0.5, "30 min"), (3.21, "3.2 h"), (1234, "1,234 h")])
def test_hours(hours: float, text: str) -> None:
    assert hours_text(hours) == text
