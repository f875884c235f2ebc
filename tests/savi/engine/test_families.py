"""Every family against the stock path: pixels in, one prompt at a time, `generate`."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from savi import families
from savi.__main__ import app
from savi.engine import decoding
from savi.engine.video_lm import GenerationSettings, VideoLM, Watched
from savi.families import Preprocessing, Timing, UnsupportedFamily, family_for, supported
from savi.families.base import resize_frames, smart_size
from savi.families.smolvlm import in_words
from savi.video.frames import Frames
from tests.savi.tiny import FAMILIES, tiny_family_lm, tiny_frames, tiny_prompts

SHAPES = {"qwen2_5_vl": (8, 112, 168), "qwen3_vl": (8, 96, 128), "llava_next_video": (5, 56, 80), "video_llama_3": (5, 56, 84)}
PIXELS = {"internvl": "pixel_values", "smolvlm": "pixel_values"}
M_ROPE = ("qwen2_5_vl", "qwen3_vl")


def frames_for(family: str, seed: int = 0) -> np.ndarray:
    """Frames of the family's own shape: not square where it takes any."""
    count, height, width = SHAPES.get(family, (5, 64, 64))
    frames = resize_frames(tiny_frames(seed, count), height, width)
    if family == "video_llama_3":  # the left third never changes, and one frame is the one before it
        frames[1:, :, : width // 3] = frames[0, :, : width // 3]
        frames[2] = frames[1]
    return frames


def clip_for(family: str, seed: int = 0) -> Frames:
    """The same with a clock of four frames a second: a clip so short that both rules for the text behind it agree (qwen_vl.py)."""
    frames = frames_for(family, seed)
    return Frames(frames, tuple(range(len(frames))), 4.0, len(frames) / 4, len(frames), f"{seed}.mp4")


def stock_inputs(lm: VideoLM, clip: Frames) -> dict[str, Any]:
    """What a user of the stock model passes for a video."""
    prepared = lm.family.prepare(clip.pixels, Timing(tuple(i / clip.fps for i in clip.indices), clip.duration_s))
    key = PIXELS.get(lm.family.name, "pixel_values_videos")
    pixels = prepared.pixels if lm.family.name in ("internvl", "video_llama_3", *M_ROPE) else prepared.pixels[None]
    inputs: dict[str, Any] = {key: pixels}
    if prepared.grid is not None:
        inputs["video_grid_thw"] = torch.tensor([prepared.grid])
    if lm.family.name == "qwen2_5_vl":
        inputs["second_per_grid_ts"] = torch.tensor([0.5])
    if lm.family.name == "video_llama_3":
        from transformers.models.video_llama_3.video_processing_video_llama_3 import VideoLlama3VideoProcessor

        grid, merges = inputs["video_grid_thw"], torch.tensor([2])
        kept = VideoLlama3VideoProcessor()._get_compression_mask(pixels, grid, merges)
        inputs |= {"video_merge_sizes": merges, "video_compression_mask": kept}
    return inputs


def stock_generate(lm: VideoLM, clip: Frames, ids: list[int], new: int) -> list[int]:
    """One prompt on one video through transformers' `generate`, pixels and all."""
    inputs = stock_inputs(lm, clip)
    full = torch.tensor([ids])
    if lm.family.name in M_ROPE:
        inputs["mm_token_type_ids"] = (full == lm.family.visual_token_id).long() * 2
        lm.model.model.rope_deltas = None
    with torch.no_grad():
        out = lm.model.generate(input_ids=full, attention_mask=torch.ones_like(full), max_new_tokens=new, do_sample=False, **inputs)
    return out[0, full.shape[1] :].tolist()


def shared_ids(lm: VideoLM, watched: Watched, prompts: list[str], new: int) -> list[list[int]]:
    """The ids `ask` generates."""
    from savi.engine.decoding import Branch, generate

    rows = [Branch(watched.prefix, ids) for ids in lm.chat.prompt_ids(prompts)]
    return [g.ids for g in generate(lm.family, lm.model, rows, GenerationSettings(max_new_tokens=new), lm.end_ids)]


@pytest.mark.parametrize("way", ["copied", "shared"])
@pytest.mark.parametrize("family", FAMILIES)
def test_shared_prefix_equals_stock_generate(family: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "LONG_PREFIX", 1 if way == "shared" else 10**9)
    lm = tiny_family_lm(family)
    clip = clip_for(family)
    watched = lm.watch(clip)
    prompts = tiny_prompts(6, seed=3)
    expected = [stock_generate(lm, clip, [*watched.prefix.ids.tolist(), *ids], 10) for ids in lm.chat.prompt_ids(prompts)]
    assert len({tuple(ids) for ids in expected}) > 3, "prompts must matter, else equality says nothing"
    assert shared_ids(lm, watched, prompts, 10) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_is_loaded_as_the_same(family: str, tmp_path: Path) -> None:
    lm = tiny_family_lm(family)
    lm.save_pretrained(tmp_path)
    again = VideoLM.from_pretrained(tmp_path, device="cpu")
    prompts = tiny_prompts(3, seed=3)
    assert again.family.name == lm.family.name
    assert again.watch(clip_for(family)).ask(prompts, max_new_tokens=8) == lm.watch(clip_for(family)).ask(prompts, max_new_tokens=8)


@pytest.mark.parametrize("family", FAMILIES)
def test_video_matters(family: str) -> None:
    lm = tiny_family_lm(family)
    first, second = lm.watch_batch([frames_for(family, 0), frames_for(family, 1)])
    prompts = tiny_prompts(4, seed=5)
    assert shared_ids(lm, first, prompts, 8) != shared_ids(lm, second, prompts, 8)


@pytest.mark.parametrize("family", FAMILIES)
def test_wrong_next_position_is_noticed(family: str) -> None:
    lm = tiny_family_lm(family)
    watched = lm.watch(frames_for(family))
    prompts = tiny_prompts(6, seed=3)
    right = shared_ids(lm, watched, prompts, 10)
    watched.prefix.next_pos += 7
    assert shared_ids(lm, watched, prompts, 10) != right


@pytest.mark.parametrize("family", FAMILIES)
def test_batched_watching_equals_one_by_one(family: str) -> None:
    lm = tiny_family_lm(family)
    videos = [frames_for(family, seed) for seed in range(3)]
    together, alone = lm.watch_batch(videos), [lm.watch(video) for video in videos]
    for a, b in zip(together, alone, strict=True):
        assert torch.equal(a.prefix.ids, b.prefix.ids)
        assert (a.prefix.length, a.prefix.next_pos) == (b.prefix.length, b.prefix.next_pos)
        torch.testing.assert_close(a.features.embeds, b.features.embeds, atol=1e-5, rtol=1e-5)
        for (k, v), (k2, v2) in zip(a.prefix.kv, b.prefix.kv, strict=True):
            torch.testing.assert_close(k, k2, atol=2e-4, rtol=1e-4)
            torch.testing.assert_close(v, v2, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_features_in_the_place_of_pixels(family: str) -> None:
    """What training does: the stock forward with `mm_encoder_outputs` and explicit positions equals the one with pixels."""
    lm = tiny_family_lm(family)
    clip = clip_for(family)
    features = lm.features(clip)
    prefix = lm.prefix_ids(features)
    positions, next_pos = lm.family.positions(prefix, features)
    text = torch.tensor(lm.prompt_ids("what is red"))
    ids = torch.cat([prefix, text])[None]
    where = torch.cat([positions, lm.family.branch_positions(next_pos, len(text))], -1).unsqueeze(-2)
    stock = stock_inputs(lm, clip)
    if lm.family.name in M_ROPE:
        stock["mm_token_type_ids"] = (ids == lm.family.visual_token_id).long() * 2
        lm.model.model.rope_deltas = None
    with torch.no_grad():
        ours = lm.model(input_ids=ids, position_ids=where, mm_encoder_outputs=lm.family.mm_encoder_outputs([features])).logits
        theirs = lm.model(input_ids=ids, attention_mask=torch.ones_like(ids), **stock).logits
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert not features.embeds.requires_grad
    assert not features.embeds.is_inference()


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_mrope_next_position_is_not_the_length(family: str) -> None:
    lm = tiny_family_lm(family)
    watched = lm.watch(clip_for(family))
    positions, next_pos = lm.family.positions(watched.prefix.ids, watched.features)
    assert positions.shape == (3, watched.prefix.length)
    assert next_pos == watched.prefix.next_pos == int(positions.max()) + 1
    assert next_pos < watched.prefix.length
    stock, delta = lm.model.model.get_rope_index(
        watched.prefix.ids[None],
        mm_token_type_ids=(watched.prefix.ids == lm.family.visual_token_id).long()[None] * 2,
        video_grid_thw=torch.tensor([watched.features.grid]),
        second_per_grid_ts=torch.tensor([0.5]),
    )
    assert torch.equal(stock[:, 0], positions)
    assert next_pos - watched.prefix.length == int(delta)


def test_long_clips_text_follows_the_largest_temporal_position() -> None:
    lm = tiny_family_lm("qwen2_5_vl")
    frames = frames_for("qwen2_5_vl")
    clip = Frames(frames, tuple(range(0, 800, 100)), 25.0, 32.0, 800, "clip.mp4")
    watched = lm.watch(clip)
    positions, next_pos = lm.family.positions(watched.prefix.ids, watched.features)
    assert int(positions[0].max()) > int(positions[1:].max()) - 2, "the clip must be long enough that time leads"
    assert next_pos == int(positions.max()) + 1
    assert next_pos > lm.watch(frames).prefix.next_pos


def test_same_tokens_but_other_shape_or_clock_do_not_share_positions() -> None:
    lm = tiny_family_lm("qwen2_5_vl")
    wide = resize_frames(tiny_frames(0, 4), 56, 112)
    tall = np.ascontiguousarray(wide.transpose(0, 2, 1, 3))
    slow = Frames(wide, (0, 50, 100, 150), 5.0, 40.0, 200, "slow.mp4")
    batch = lm.watch_batch([wide, tall, slow])
    assert batch[0].prefix.length == batch[1].prefix.length == batch[2].prefix.length
    for together, video in zip(batch, (wide, tall, slow), strict=True):
        alone = lm.watch(video)
        assert together.prefix.next_pos == alone.prefix.next_pos
        torch.testing.assert_close(together.prefix.kv[-1][0], alone.prefix.kv[-1][0], atol=2e-4, rtol=1e-4)
    assert batch[2].prefix.next_pos > batch[0].prefix.next_pos


def test_qwen3_writes_the_times() -> None:
    lm = tiny_family_lm("qwen3_vl")
    video = Frames(frames_for("qwen3_vl"), tuple(range(0, 80, 10)), 10.0, 8.0, 80, "clip.mp4")
    texts = [piece for piece in lm.family.pieces(lm.features(video)) if isinstance(piece, str)]
    assert texts[0] == "<0.5 seconds><vstart>"
    assert texts[2] == "<2.5 seconds><vstart>"


def test_smolvlm_announces_the_video() -> None:
    lm = tiny_family_lm("smolvlm")
    video = Frames(tiny_frames(0, 5), (0, 650, 1300, 1950, 2600), 10.0, 300.0, 3000, "clip.mp4")
    pieces = lm.family.pieces(lm.features(video))
    lead = "You are provided the following series of five frames from a 0:05:00 [H:MM:SS] video.\n"
    assert str(pieces[0]).startswith(f"{lead}\nFrame from 00:00:")
    assert str(pieces[3]).startswith("\nFrame from 01:05:")
    assert lm.chat.between.startswith("\n\n")


@pytest.mark.parametrize(("number", "words"), [(8, "eight"), (16, "sixteen"), (32, "thirty-two"), (128, "one hundred and twenty-eight")])
def test_numbers_in_words(number: int, words: str) -> None:
    assert in_words(number) == words


@pytest.mark.parametrize("size", [(480, 640), (60, 50), (4000, 3000), (90, 1600)])
def test_smart_size_is_qwens(size: tuple[int, int]) -> None:
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import smart_resize

    ours = smart_size(*size, factor=28, min_pixels=100 * 784, max_pixels=400_000)
    assert ours == smart_resize(*size, factor=28, min_pixels=100 * 784, max_pixels=400_000)


def test_smart_size_of_a_tiny_frame_is_one_patch() -> None:
    assert smart_size(5, 9, factor=28, min_pixels=1, max_pixels=400_000) == (28, 28)


@pytest.mark.parametrize(
    ("model_type", "why"),
    [
        ("gemma3", "bidirectional"),
        ("molmo2", "bidirectional"),
        ("qwen3_5", "running state"),
        ("llava", "no class"),
        ("videollama3_qwen2", "-HF"),
    ],
)
def test_what_cannot_work_is_refused_by_name_and_reason(tmp_path: Path, model_type: str, why: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(UnsupportedFamily, match=rf"{model_type!r} is not supported: .*{why}.*supported: internvl"):
        VideoLM.from_pretrained(tmp_path)
    assert model_type not in supported()


def test_molmo2_indeed_reads_frames_in_both_directions() -> None:
    """The reason it is refused for, seen in the stock model: a later frame changes an earlier one's hidden states."""
    import transformers as tf

    text = {"vocab_size": 99, "additional_vocab_size": 8, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}  # fmt: skip
    torch.manual_seed(0)
    config = tf.Molmo2Config(text_config=text)
    model = tf.AutoModel.from_config(config.text_config).eval()
    from transformers.masking_utils import create_causal_mask

    embeds, changed = torch.randn(1, 7, 32), []
    for visual in (0, 1):
        kinds = torch.tensor([[0, visual, visual, 0, visual, visual, 0]])  # two frames, the time of the second between them
        blocks = {"block_sequence_ids": torch.where(kinds == 1, 0, -1)} if visual else {}
        first = []
        for nudge in (0.0, 1.0):
            x = embeds.clone()
            x[0, 4] += nudge  # in the second frame
            mask = create_causal_mask(config=config.text_config, inputs_embeds=x, attention_mask=None, past_key_values=None, **blocks)
            with torch.no_grad():
                first.append(model(inputs_embeds=x, attention_mask=mask).last_hidden_state[0, 1])
        changed.append(not torch.equal(*first))
    assert changed == [False, True]


def test_most_layers_of_qwen3_5_keep_no_keys() -> None:
    import transformers as tf

    kinds = tf.Qwen3_5Config().text_config.layer_types
    assert kinds.count("linear_attention") == 3 * kinds.count("full_attention") > 0


def test_videollama3_drops_what_did_not_change() -> None:
    lm = tiny_family_lm("video_llama_3")
    features = lm.features(clip_for("video_llama_3"))
    assert features.frame_tokens == (6, 4, 1, 4, 4), "of 6 a frame: all, then those of the right two thirds, then one"
    assert lm.family.pieces(features)[:4] == ["Time 0.0s:", 6, ",Time 0.2s:", 4]
    assert features.tokens == sum(features.frame_tokens)


def test_gemma3_indeed_reads_images_in_both_directions() -> None:
    """The reason it is refused for, seen in the stock model: a later token of an image changes an earlier one's keys."""
    import transformers as tf

    text = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 8, "layer_types": ["full_attention"] * 2}  # fmt: skip
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    torch.manual_seed(0)
    model = tf.Gemma3ForConditionalGeneration(tf.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)).eval()
    embeds, changed = torch.randn(1, 6, 32), []
    for image in (0, 1):
        kinds = torch.tensor([[0, image, image, image, image, 0]])
        first = []
        for nudge in (0.0, 1.0):
            x = embeds.clone()
            x[0, 3] += nudge  # the third token of the image
            with torch.no_grad():
                out = model.model(inputs_embeds=x, token_type_ids=kinds, attention_mask=torch.ones(1, 6)).last_hidden_state
            first.append(out[0, 1])
        changed.append(not torch.equal(*first))
    assert changed == [False, True], "causal as text, not causal as an image"


def test_a_new_family_is_one_file_and_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("savi.families.toy")
    source = "from savi.families.internvl import InternVL\nclass Toy(InternVL):\n    name, model_types, covers = 'toy', ('toy_vl',), 'Toy'"
    exec(source, vars(module))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(families, "MODULES", [*families.MODULES, "toy"])
    families.families.cache_clear()
    try:
        assert "toy_vl" in supported()
        assert families.family_class("toy_vl", where="x").name == "toy"
    finally:
        families.families.cache_clear()


def test_the_readme_lists_the_families() -> None:
    readme = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    assert f"\n\n{families.families_table()}\n\n" in readme
    printed = CliRunner().invoke(app, ["families"])
    assert printed.stdout == families.families_table() + "\n"
    for family in families.families():
        assert family.why_not or any(name.split("-")[0] in family.model_types for name in FAMILIES), f"{family.name} is not tested here"


def test_unsupported_family_is_named_with_the_supported_ones() -> None:
    class Config:
        model_type = "blip_2"

    with pytest.raises(UnsupportedFamily, match=r"'blip_2' is not supported") as error:
        family_for(Config(), None, Preprocessing(), where="some/model")
    assert "some/model" in str(error.value)
    for name in ("internvl", "llava_onevision", "qwen2_5_vl", "qwen3_vl", "smolvlm"):
        assert name in supported()
        assert name in str(error.value)
