"""`train`: what it learns, what it leaves behind, and that only the pairs, the settings and the weights decide it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from savi.base.errors import UsageError
from savi.engine.video_lm import VideoLM
from savi.loop.preferences import PreferencePair
from savi.training.examples import NoPairsError, VideoStore, make_plan, make_units, tokenise
from savi.training.settings import DPOSettings
from savi.training.trainer import train
from savi.video.frames import VideoError
from tests.savi.scripted import FRAMES, random_pairs, write_clips
from tests.savi.tiny import tiny_checkpoint, tiny_video_lm

QUICK = DPOSettings(learning_rate=1e-3, epochs=2, pairs_per_step=4, logging_steps=2, warmup_ratio=0.0, beta=0.5)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_clips(tmp_path_factory.mktemp("clips"), 4)


@pytest.fixture(scope="module")
def pairs(clips: list[Path]) -> list[PreferencePair]:
    return random_pairs(clips)


@pytest.fixture
def lm() -> VideoLM:
    return tiny_video_lm(layers=2)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model" / "model.safetensors")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_preferences_are_learnt(lm: VideoLM, pairs: list[PreferencePair], tmp_path: Path) -> None:
    result = train(lm, pairs, QUICK.model_copy(update={"epochs": 4}), tmp_path)
    first, last = result.log[0], result.log[-1]
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-4), "the first step starts at the reference"
    assert first["loss"] == pytest.approx(0.6931, abs=1e-3), "log 2"
    assert last["rewards/margins"] > 0.5
    assert last["rewards/accuracies"] > 0.9
    assert result.pairs_used == len(pairs)
    assert result.steps == 8
    assert last["epoch"] == 4
    assert {"loss", "grad_norm", "learning_rate", "rewards/chosen", "rewards/rejected", "step"} <= set(last)
    assert [row["step"] for row in result.log] == [1, 2, 4, 6, 8]
    assert [json.loads(line) for line in (tmp_path / "train" / "log.jsonl").read_text().splitlines()] == list(result.log)


def test_the_checkpoint_scores_as_the_model_in_memory(pairs: list[PreferencePair], tmp_path: Path) -> None:
    """A plain checkpoint, also after LoRA; a checkpoint stored in float16 stays one."""
    source = tiny_checkpoint(tmp_path / "base", layers=2)
    for lora in (0, 4):
        lm = VideoLM.from_pretrained(source, device="cpu")
        result = train(lm, pairs, QUICK.model_copy(update={"lora_r": lora}), tmp_path / f"lora{lora}")
        again = VideoLM.from_pretrained(result.checkpoint, device="cpu")
        assert type(lm.model) is type(again.model)
        items = [(pair.video, pair.question, pair.chosen) for pair in pairs[:3]]
        scores = [[one.watch(v, num_frames=FRAMES).score([(q, c)])[0].logp for v, q, c in items] for one in (lm, again)]
        assert scores[0] == pytest.approx(scores[1], abs=0.05), "but for the rounding to float16"
        assert {value.dtype for value in weights(tmp_path / f"lora{lora}").values()} == {torch.float16}


@pytest.mark.parametrize("lora", [0, 4])
def test_what_is_trained(lm: VideoLM, pairs: list[PreferencePair], lora: int, tmp_path: Path) -> None:
    """Full: the language model and its head. LoRA: its linear layers. Never the vision tower and the projector."""
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    train(lm, pairs, QUICK.model_copy(update={"lora_r": lora}), tmp_path)
    after = lm.model.state_dict()
    assert after.keys() == before.keys(), "adapters are merged"
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    language = {name for name in before if name.startswith(("model.language_model.", "lm_head."))}
    assert changed <= language
    projections = {name for name in language if name.endswith("proj.weight")}
    assert projections <= changed
    assert (changed == projections) if lora else ("lm_head.weight" in changed)
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())
    assert not lm.model.training


def test_engine_batching_and_checkpointing_do_not_matter(pairs: list[PreferencePair], tmp_path: Path) -> None:
    """The oracle (one sequence at a time), small batches and gradient checkpointing end in the same weights, up to rounding."""
    wanted: dict[str, torch.Tensor] | None = None
    variants: list[dict[str, object]] = [
        {},
        {"engine": "plain"},
        {"max_batch_tokens": 1},
        {"gradient_checkpointing": True},
    ]
    for number, change in enumerate(variants):
        lm = tiny_video_lm(layers=2)
        result = train(lm, pairs, QUICK.model_copy(update={"rpo_alpha": 0.3, **change}), tmp_path / str(number))
        found = {name: value.clone() for name, value in lm.model.state_dict().items()}
        if wanted is None:
            wanted, log = found, result.log
        for name, value in found.items():
            torch.testing.assert_close(value, wanted[name], rtol=1e-3, atol=2e-5, msg=f"{change}: {name}")
        for ours, theirs in zip(result.log, log, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)


def test_same_seed_same_bytes_whatever_the_order_of_pairs(pairs: list[PreferencePair], tmp_path: Path) -> None:
    for lora in (0, 2):
        settings = QUICK.model_copy(update={"lora_r": lora})
        train(tiny_video_lm(layers=2), pairs, settings, tmp_path / f"a{lora}")
        train(tiny_video_lm(layers=2), list(reversed(pairs)), settings, tmp_path / f"b{lora}")
        train(tiny_video_lm(layers=2), pairs, settings.model_copy(update={"seed": 1}), tmp_path / f"c{lora}")
        assert files(tmp_path / f"a{lora}") == files(tmp_path / f"b{lora}")
        assert files(tmp_path / f"a{lora}") != files(tmp_path / f"c{lora}")


def test_small_steps_on_bfloat16_weights_are_not_lost(pairs: list[PreferencePair], tmp_path: Path) -> None:
    """Whole fine-tuning of a bfloat16 model at a rate far below the weights' rounding goes where the float32 model goes.

    What still differs is bfloat16's own: gradients, and the rounding of the result. With bfloat16 weights in the optimiser nearly all of
    the way is missed.
    """
    source = tiny_checkpoint(tmp_path / "base", layers=2, dtype=torch.bfloat16)
    settings = QUICK.model_copy(update={"epochs": 20, "learning_rate": 3e-5, "warmup_ratio": 0.0})
    ends = {}
    for name in ("bfloat16", "float32"):
        lm = VideoLM.from_pretrained(source, device="cpu", dtype=name)
        before = {key: value.dtype for key, value in lm.model.state_dict().items()}
        start = {key: value.float().clone() for key, value in lm.model.state_dict().items()}
        train(lm, pairs, settings, tmp_path / name)
        assert {key: value.dtype for key, value in lm.model.state_dict().items()} == before
        ends[name] = {key: value.float() for key, value in lm.model.state_dict().items()}
    moved = sum(float((ends["float32"][key] - start[key]).square().sum()) for key in start)
    missed = sum(float((ends["bfloat16"][key] - ends["float32"][key]).square().sum()) for key in start)
    assert missed < moved / 2, (missed, moved)


@pytest.mark.parametrize(("logging", "steps"), [(3, [1, 3, 4]), (100, [1, 4]), (1, [1, 2, 3, 4])])
def test_logging_steps_mean_what_they_say(lm: VideoLM, pairs: list[PreferencePair], logging: int, steps: list[int], tmp_path: Path) -> None:
    """Rows at the first step, every so many, and the last; a row's loss is the mean of the steps since the row before."""
    every = train(tiny_video_lm(layers=2), pairs, QUICK.model_copy(update={"logging_steps": 1}), tmp_path / "every").log
    log = train(lm, pairs, QUICK.model_copy(update={"logging_steps": logging}), tmp_path / "log").log
    assert [row["step"] for row in log] == steps
    before = 0
    for row in log:
        now = int(row["step"])
        assert row["loss"] == pytest.approx(sum(one["loss"] for one in every[before:now]) / (now - before), abs=1e-6)
        before = now


def test_sft(lm: VideoLM, pairs: list[PreferencePair], tmp_path: Path) -> None:
    """Chosen answers alone: their likelihood rises, no reference is scored, the rejected ones play no part."""
    settings = QUICK.model_copy(update={"method": "sft", "epochs": 4})
    result = train(lm, pairs, settings, tmp_path / "a")
    assert result.log[-1]["nll/chosen"] < 0.7 * result.log[0]["nll/chosen"]
    assert not any(key.startswith("rewards/") for key in result.log[0])
    other = [replace(pair, rejected="still") for pair in pairs]
    train(tiny_video_lm(layers=2), other, settings, tmp_path / "b")
    one, two = ({name: data for name, data in files(tmp_path / run).items() if name != "train/result.json"} for run in "ab")
    assert one == two and len(one) > 3, "but for the note of what it was made from"


def test_no_reference_is_scored_for_a_loss_without_one(
    lm: VideoLM, pairs: list[PreferencePair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SimPO: the rewards are the policy's own, and the model runs once a step (the reference would be one pass more)."""
    passes: list[int] = []
    lm.model.register_forward_hook(lambda *_: passes.append(1))
    settings = QUICK.model_copy(update={"loss_type": "simpo", "beta": 2.0, "epochs": 6, "learning_rate": 2e-3})
    result = train(lm, pairs, settings, tmp_path)
    assert len(passes) == result.steps
    first, last = result.log[0], result.log[-1]
    assert first["rewards/chosen"] < -1, "beta times the mean log-probability of a token, not a ratio"
    assert last["rewards/margins"] > first["rewards/margins"] + 0.5
    assert last["loss"] < first["loss"]


def test_broken_videos_and_useless_pairs_are_dropped_and_named(lm: VideoLM, pairs: list[PreferencePair], tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    extra = [
        replace(pairs[0], pair_id="broken", video=str(tmp_path / "broken.mp4")),
        replace(pairs[1], pair_id="same", chosen="A", rejected="A"),
        replace(pairs[3], chosen="B"),
        replace(pairs[4], pair_id="silent", chosen=" \n"),
    ]
    result = train(lm, [*pairs, *extra], QUICK, tmp_path)
    reasons = {pair.pair_id: pair.reason for pair in result.pairs_dropped}
    assert set(reasons) == {"broken", "same", "silent", pairs[3].pair_id}
    assert reasons["broken"].startswith("video ")
    assert "same tokens" in reasons["same"]
    assert reasons["silent"].startswith("chosen is empty")
    assert "second pair" in reasons[pairs[3].pair_id]
    assert result.pairs_used == len(pairs)


def test_nothing_to_train_on(lm: VideoLM, pairs: list[PreferencePair], tmp_path: Path) -> None:
    with pytest.raises(NoPairsError, match="0 given"):
        train(lm, [], QUICK, tmp_path)
    with pytest.raises(NoPairsError, match="same tokens"):
        train(lm, [replace(pairs[0], chosen="A", rejected="A")], QUICK, tmp_path)


def test_equal_answers_teach_where_there_is_an_nll_term(lm: VideoLM, pairs: list[PreferencePair], tmp_path: Path) -> None:
    equal = [replace(pair, rejected=pair.chosen) for pair in pairs]
    result = train(lm, equal, QUICK.model_copy(update={"rpo_alpha": 1.0, "learning_rate": 1e-2, "epochs": 3}), tmp_path)
    assert result.pairs_used == len(pairs) and not result.pairs_dropped
    assert result.log[-1]["nll/chosen"] < result.log[0]["nll/chosen"] - 0.1
    assert max(abs(row["rewards/margins"]) for row in result.log) < 1e-4


def test_a_pair_beyond_the_context_is_named(pairs: list[PreferencePair], tmp_path: Path) -> None:
    lm = tiny_video_lm(layers=2, context=8)
    with pytest.raises(UsageError, match=r"context of 8.*fewer frames"):
        train(lm, pairs, QUICK, tmp_path)


def test_a_pair_beyond_the_context_does_not_end_the_others(pairs: list[PreferencePair], tmp_path: Path) -> None:
    lm = tiny_video_lm(layers=2, context=64)
    long = replace(pairs[0], pair_id="long", chosen=" ".join([pairs[0].chosen] * 20))
    result = train(lm, [*pairs, long], QUICK, tmp_path)
    assert [(pair.pair_id, "context of 64" in pair.reason) for pair in result.pairs_dropped] == [("long", True)]
    assert result.pairs_used == len(pairs)


def test_frames_must_be_known(lm: VideoLM, pairs: list[PreferencePair], tmp_path: Path) -> None:
    unknown = [replace(pair, meta={}) for pair in pairs]
    with pytest.raises(ValueError, match="num_frames"):
        train(lm, unknown, QUICK, tmp_path)


def test_videos_are_encoded_again_when_memory_is_short(pairs: list[PreferencePair], tmp_path: Path) -> None:
    """A store that holds one video gives the same bytes as one that holds all."""
    for name, keep in (("all", 100.0), ("one", 1e-6)):
        lm = tiny_video_lm(layers=2)
        train(lm, pairs, QUICK.model_copy(update={"features_mb": keep}), tmp_path / name)
    assert files(tmp_path / "all") == files(tmp_path / "one")


def test_the_store(lm: VideoLM, clips: list[Path], tmp_path: Path) -> None:
    """What does not fit is only looked for; what is expected is decoded ahead and is the same; a file that went away is an error."""
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    gone = tmp_path / "gone.mp4"
    videos = [*map(str, clips), str(tmp_path / "broken.mp4"), str(gone)]
    small, large = VideoStore(lm, FRAMES, keep_mb=1e-6, batch=2), VideoStore(lm, FRAMES)
    assert set(small.load(videos)) == {str(gone)}, "memory was full before the broken one"
    assert set(large.load(videos)) == {str(tmp_path / "broken.mp4"), str(gone)}
    small.expect(videos[:3])
    for video in videos[:4]:
        assert torch.equal(small.get(video).features.embeds, large.get(video).features.embeds)
    for video in videos[4:]:
        with pytest.raises(VideoError):
            small.get(video)


def test_the_plan(lm: VideoLM, pairs: list[PreferencePair]) -> None:
    """Every pair once an epoch, steps within their bound, a video's pairs together, another order every epoch."""
    settings = DPOSettings(epochs=3, pairs_per_step=3)
    examples, _ = tokenise(lm, pairs, settings)
    plan = make_plan(examples, settings)
    for epoch in range(3):
        numbers = [n for step in plan if step.epoch == epoch for unit in step.units for n in unit.examples]
        assert sorted(numbers) == list(range(len(pairs)))
    assert all(step.pairs == sum(len(unit.examples) for unit in step.units) <= 3 for step in plan)
    orders = {tuple(unit.video for step in plan if step.epoch == epoch for unit in step.units) for epoch in range(3)}
    assert len(orders) > 1
    assert [len(unit.examples) for unit in make_units(examples, 1)] == [1] * len(pairs)


def test_settings() -> None:
    with pytest.raises(ValueError, match="rpo_alpha"):
        DPOSettings(method="sft", rpo_alpha=0.5)
    with pytest.raises(ValueError, match="learning_rates"):
        DPOSettings.model_validate({"learning_rates": 1e-3})
    args = DPOSettings(rpo_alpha=0.5, save_steps=15).trl_config("x", total_steps=40, use_cpu=True, bf16=False)
    assert (args.loss_type, args.loss_weights, args.warmup_steps, args.save_steps) == (["sigmoid", "sft"], [1.0, 0.5], 4, 15)
