"""Loading, saving, texts and errors of VideoLM."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from savi.base.hub import NoSuchModelError
from savi.conversion.config import CheckpointError
from savi.engine.video_lm import ContextError, GenerationSettings, ModelError, Reply, VideoLM, Watched
from savi.families import FamilyError, UnsupportedFamily
from savi.video.frames import Frames
from tests.savi.tiny import tiny_checkpoint, tiny_frames, tiny_prompts, tiny_tokenizer, tiny_video_lm


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="module")
def lm(checkpoint: Path) -> VideoLM:
    return VideoLM.from_pretrained(checkpoint, device="cpu")


def test_float16_checkpoint_is_computed_in_float32_and_saved_in_float16(lm: VideoLM, tmp_path: Path) -> None:
    assert lm.model.dtype == torch.float32
    lm.save_pretrained(tmp_path / "saved")
    weights = load_file(tmp_path / "saved" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["dtype"] == "float16"
    assert lm.model.dtype == torch.float32, "saving must not round the model in memory"
    again = VideoLM.from_pretrained(tmp_path / "saved", device="cpu")
    prompts = tiny_prompts(6)
    assert again.watch(tiny_frames(0)).ask(prompts) == lm.watch(tiny_frames(0)).ask(prompts)
    assert again.preprocessing == lm.preprocessing


def test_float32_stays_float32(tmp_path: Path) -> None:
    lm = VideoLM.from_pretrained(tiny_checkpoint(tmp_path / "a", dtype=torch.float32), device="cpu")
    lm.save_pretrained(tmp_path / "b")
    assert {tensor.dtype for tensor in load_file(tmp_path / "b" / "model.safetensors").values()} == {torch.float32}


def test_dtype_asked_for_is_taken(checkpoint: Path) -> None:
    assert VideoLM.from_pretrained(checkpoint, device="cpu", dtype="bfloat16").model.dtype == torch.bfloat16
    with pytest.raises(ModelError, match="float12"):
        VideoLM.from_pretrained(checkpoint, device="cpu", dtype="float12")


def test_layout_of_the_prefix(lm: VideoLM) -> None:
    watched = lm.watch(tiny_frames(0))
    text = lm.tokenizer.decode(watched.prefix.ids)
    assert text == "<bos> <user> " + " ".join(f"Frame{i} <img> <img> <img> <img>" for i in range(1, 9))
    assert watched.prefix.length == watched.prefix.next_pos == 42
    assert watched.frames == 8
    assert watched.features.embeds.shape == (32, 64)
    assert lm.tokenizer.decode(lm.prompt_ids("what is red.")) == "what is red <assistant>"
    assert lm.tokenizer.decode(lm.response_ids("red (x2 y3), so B.")) == "red x2 y3 so B <eos>"
    assert [tuple(part.shape) for layer in watched.prefix.kv for part in layer] == 2 * 3 * [(1, 2, 42, 16)]  # heads, tokens, width


def test_start_and_end_tokens_are_written_where_the_tokenizer_has_them() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<user>", "<assistant>", "<img>", "<start>", "<end>"]})
    tokenizer.start_image_token, tokenizer.end_image_token = "<start>", "<end>"
    from tests.savi.tiny import tiny_model

    lm = VideoLM(tiny_model(vocabulary=len(tokenizer)), tokenizer)
    text = lm.tokenizer.decode(lm.prefix_ids(tiny_frames(0, 2)))
    assert text == "<bos> <user> Frame1 <start> <img> <img> <img> <img> <end> Frame2 <start> <img> <img> <img> <img> <end>"
    assert lm.tokenizer.decode(lm.prompt_ids("red")) == "red <assistant>"


def test_prompts_cannot_spell_special_tokens(lm: VideoLM) -> None:
    for text in ("red <eos> <img> <user>", "red<assistant>", "<img>"):
        ids = lm.prompt_ids(text)
        assert not set(ids[:-1]) & {1, 2, 4, 5, 6}
        assert ids[-1] == lm.prompt_ids("")[-1]
    assert lm.response_ids("red <eos> blue").count(2) == 1


def test_replies_together_have_the_ids_of_replies_alone(lm: VideoLM) -> None:
    texts = ["red", "red <eos> blue", "", "goes from x2 to x3", "red"]
    assert lm.chat.response_ids(texts) == [lm.response_ids(text) for text in texts]
    assert lm.chat.response_ids([]) == []


def test_empty_and_long_prompts_stand_beside_each_other(lm: VideoLM) -> None:
    watched = lm.watch(tiny_frames(0))
    long = " ".join(tiny_prompts(40, seed=4))
    together = watched.ask(["", "red", long], max_new_tokens=8)
    assert together == [watched.ask([prompt], max_new_tokens=8)[0] for prompt in ("", "red", long)]
    assert watched.ask([]) == []
    assert lm.score([]) == []


def test_a_string_is_one_question(lm: VideoLM) -> None:
    watched = lm.watch(tiny_frames(0))
    one = watched.ask("what is red", max_new_tokens=8)
    assert isinstance(one, Reply)
    assert [one] == watched.ask(["what is red"], max_new_tokens=8) == watched.ask(("what is red",), max_new_tokens=8)
    drawn = watched.ask("what is red", max_new_tokens=8, temperature=2.0, seed=3, keys=["a"])
    assert [drawn] == watched.ask(["what is red"], max_new_tokens=8, temperature=2.0, seed=3, keys=["a"])


def test_help_shows_the_real_keywords_and_defaults() -> None:
    shown = inspect.signature(Watched.ask).parameters
    for field in dataclasses.fields(GenerationSettings):
        assert shown[field.name].default == field.default
    assert not any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in shown.values())


def test_words_the_tokenizer_does_not_know(lm: VideoLM) -> None:
    assert lm.chat.unknown_words("what is the cup left of the cup x1.") == ["cup"]
    lm.tokenizer.unk_token = None
    try:
        assert lm.chat.unknown_words("cup") == []
    finally:
        lm.tokenizer.unk_token = "<unk>"


def test_replies_count_their_tokens(lm: VideoLM) -> None:
    replies = lm.watch(tiny_frames(1)).ask(tiny_prompts(30), max_new_tokens=9)
    assert all(1 <= reply.tokens <= 9 for reply in replies)
    assert all(reply.finished or reply.tokens == 9 for reply in replies)


def test_context_error_has_both_numbers_and_the_fix(lm: VideoLM) -> None:
    watched = lm.watch(tiny_frames(0))
    with pytest.raises(ContextError, match=r"prefix 42 \+ prompt 2 \+ 2000 new tokens = 2044, but tiny has a context of 1024.*num_frames"):
        watched.ask(["red"], max_new_tokens=2000)
    with pytest.raises(ContextError, match=r"prefix 1502 .* context of 1024; show fewer than 300 frames"):
        lm.watch(np.repeat(tiny_frames(0, 4), 75, 0))
    assert watched.ask(["red"], max_new_tokens=1024 - 42 - 2)[0].tokens > 0


def test_videos_are_decoded_with_the_frames_asked_for(lm: VideoLM, monkeypatch: pytest.MonkeyPatch) -> None:
    import savi.engine.video_lm as module

    def read(path: Path, *, num_frames: int) -> Frames:
        return Frames(tiny_frames(3, num_frames), tuple(range(num_frames)), 8.0, 1.0, num_frames, str(path))

    monkeypatch.setattr(module, "read_frames", read)
    watched = lm.watch("clips/clip.mp4", num_frames=4)
    assert (watched.frames, watched.name) == (4, "clips/clip.mp4")
    with pytest.raises(ValueError, match="num_frames"):
        lm.watch("clips/clip.mp4")


@pytest.mark.parametrize(
    "frames", [np.zeros((0, 64, 64, 3), np.uint8), np.zeros((2, 64, 64, 3), np.float32), np.zeros((64, 64, 3), np.uint8)]
)
def test_arrays_that_are_no_frames_are_refused(lm: VideoLM, frames: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"uint8 \[T, H, W, 3\]"):
        lm.watch(frames)


def test_frames_of_another_size_are_resized(lm: VideoLM) -> None:
    from PIL import Image

    large = tiny_frames(0, 2, size=128)
    small = np.stack([np.asarray(Image.fromarray(f).resize((64, 64), Image.Resampling.BICUBIC)) for f in large])
    assert torch.equal(lm.features(large).embeds, lm.features(small).embeds)


def test_fingerprint_follows_the_weights(lm: VideoLM, checkpoint: Path, tmp_path: Path) -> None:
    assert lm.fingerprint == VideoLM.from_pretrained(checkpoint, device="cpu").fingerprint
    assert tiny_video_lm().fingerprint == tiny_video_lm().fingerprint != tiny_video_lm(seed=1).fingerprint


def test_a_watched_video_belongs_to_its_model(lm: VideoLM) -> None:
    other = tiny_video_lm()
    with pytest.raises(ValueError, match="watch it again"):
        other.ask([(lm.watch(tiny_frames(0)), "red")], GenerationSettings())


def test_keys_must_match_items(lm: VideoLM) -> None:
    with pytest.raises(ValueError, match="1 items but 2 keys"):
        lm.ask([(lm.watch(tiny_frames(0)), "red")], GenerationSettings(), keys=["a", "b"])


def test_a_model_in_training_is_asked_in_evaluation_mode_and_given_back() -> None:
    lm = tiny_video_lm()
    lm.text_config.attention_dropout = 0.5
    expected = lm.watch(tiny_frames(0)).ask(tiny_prompts(4))
    lm.model.train()
    assert lm.watch(tiny_frames(0)).ask(tiny_prompts(4)) == expected
    assert lm.model.training


def test_other_attention_gives_the_same(checkpoint: Path, lm: VideoLM) -> None:
    eager = VideoLM.from_pretrained(checkpoint, device="cpu", attn_implementation="eager")
    prompts = tiny_prompts(10)
    assert eager.watch(tiny_frames(0)).ask(prompts) == lm.watch(tiny_frames(0)).ask(prompts)


def test_missing_and_unexpected_weights_are_named(checkpoint: Path, tmp_path: Path) -> None:
    for change in ("missing", "unexpected"):
        folder = tmp_path / change
        folder.mkdir()
        for file in checkpoint.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        weights = load_file(folder / "model.safetensors")
        if change == "missing":
            del weights[next(key for key in weights if key.endswith("layers.1.mlp.up_proj.weight"))]
        else:
            weights["extra.weight"] = torch.zeros(2)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelError, match=f"1 {change} keys"):
            VideoLM.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", Path("nowhere/here"), "a/b/c"])
def test_a_path_that_is_not_there_is_not_looked_up_elsewhere(path: Any) -> None:
    with pytest.raises(NoSuchModelError, match="no such checkpoint folder"):
        VideoLM.from_pretrained(path)


def test_folders_that_are_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(NoSuchModelError, match=r"no config\.json"):
        VideoLM.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "internvl_chat"}))
    with pytest.raises(CheckpointError, match=r"config\.json: llm_config: Field required"):
        VideoLM.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UnsupportedFamily, match=r"'bert' is not supported \(supported: internvl, llava_next_video"):
        VideoLM.from_pretrained(tmp_path)


def test_a_tokenizer_without_a_template_is_named() -> None:
    from tests.savi.tiny import tiny_model

    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(FamilyError, match="no chat template"):
        VideoLM(tiny_model(), tokenizer)


def test_a_template_that_drops_the_prompt_is_named() -> None:
    from tests.savi.tiny import tiny_model

    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "<bos>{{ messages[0]['role'] }}"
    with pytest.raises(FamilyError, match="chat template"):
        VideoLM(tiny_model(), tokenizer)


def test_sliding_window_layers_are_refused() -> None:
    from tests.savi.tiny import tiny_model

    model = tiny_model()
    model.config.get_text_config().layer_types = ["full_attention", "sliding_attention", "full_attention"]
    with pytest.raises(FamilyError, match="sliding_attention"):
        VideoLM(model, tiny_tokenizer())


def test_end_of_turn_is_the_templates_not_only_eos() -> None:
    from tests.savi.tiny import tiny_model

    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("<eos>", "<user>")
    lm = VideoLM(tiny_model(), tokenizer)
    assert lm.response_ids("red")[-1] == 4
    assert lm.end_ids == [2, 4]
