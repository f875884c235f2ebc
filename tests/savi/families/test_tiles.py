"""Dynamic tiling and conversations: pixels and ids against plain definitions of the original, and tokens against an independent forward."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from savi.conversion.checkpoint import convert
from savi.engine.chat import ChatTemplateError
from savi.engine.video_lm import GenerationSettings, VideoLM
from savi.families import FamilyError, Preprocessing
from savi.families.tiles import closest_grid, cut_frames
from tests.savi.converted import has_sentencepiece, tags
from tests.savi.families.plain_tiles import picture, plain_grid, plain_pixels, plain_tiles
from tests.savi.internvl_chat import internlm2_config, qwen2_config, reference_features, reference_logits, write_checkpoint
from tests.savi.tiny import tiny_family_lm, tiny_tokenizer, tiny_video_lm

GOLDEN = json.loads(Path(__file__).with_name("tiles.json").read_text())
CONFIGS = {"qwen2": qwen2_config, "internlm2": internlm2_config}
SHAPES = [(40, 16), (16, 50), (33, 33), (48, 32), (90, 30)]
"""Width and height of frames for tiles of 16: wide, tall, square, and in between."""


@pytest.mark.parametrize("row", GOLDEN, ids=lambda row: f"{row['width']}x{row['height']}-{row['max_tiles']}")
def test_grids_and_tiles_are_the_golden_ones(row: dict[str, Any]) -> None:
    width, height, most = row["width"], row["height"], row["max_tiles"]
    assert closest_grid(width, height, max_tiles=most, side=448) == (row["columns"], row["rows"])
    if "sha256" in row:
        tiles = cut_frames(picture(width, height)[None], max_tiles=most, side=56)
        assert tiles.shape == (row["tiles_of_56"], 56, 56, 3)
        assert hashlib.sha256(tiles.tobytes()).hexdigest() == row["sha256"]


def test_grids_are_the_plain_definitions() -> None:
    generator = np.random.default_rng(0)
    sizes = generator.integers(1, 3000, (1500, 2)).tolist()
    sizes += [[side * columns, side * rows] for side in (14, 448) for columns in (1, 2, 3) for rows in (1, 2)]
    for width, height in sizes:
        for most in (1, 3, 12):
            assert closest_grid(width, height, max_tiles=most, side=448) == plain_grid(width, height, most, 448), (width, height, most)


def test_tiles_of_several_frames_stand_frame_after_frame() -> None:
    frames = np.stack([picture(60, 28), picture(60, 28)[::-1], 255 - picture(60, 28)])
    expected = [tile for frame in frames for tile in plain_tiles(frame, 12, 28)]
    assert len(expected) == 3 * (2 * 1 + 1)
    assert np.array_equal(cut_frames(frames, max_tiles=12, side=28), np.stack(expected))


def tiled(tmp_path: Path, kind: str, *, input_size: int | None = None, max_tiles: int = 12) -> tuple[dict[str, Any], Any, VideoLM]:
    config = CONFIGS[kind](max_position_embeddings=4096)
    weights = write_checkpoint(tmp_path / "source", config)
    native = convert(tmp_path / "source", tmp_path / "native")
    return config, weights, VideoLM.from_pretrained(native, device="cpu", max_tiles=max_tiles, input_size=input_size)


def plain_query(config: dict[str, Any], system: str, turns: list[str], tiles: list[int], per_tile: int) -> str:
    """What the original's `chat` tokenizes: the conversation, each `<image>` replaced by the run of its frame."""
    open_system, user, assistant, end = tags(config)
    query = f"{'<s>' * has_sentencepiece(config)}{open_system}{system}{end}\n"
    for number, text in enumerate(turns):
        query += f"{assistant if number % 2 else user}{text}{end}\n"
    query += assistant
    for count in tiles:
        query = query.replace("<image>", "<img>" + "<IMG_CONTEXT>" * (per_tile * count) + "</img>", 1)
    return query


@pytest.mark.parametrize("kind", sorted(CONFIGS))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pixels_ids_and_first_token_are_the_originals(tmp_path: Path, kind: str, shape: tuple[int, int]) -> None:
    config, weights, lm = tiled(tmp_path, kind)
    width, height = shape
    frames = np.stack([picture(width, height), picture(width, height)[::-1]])
    per_frame = [plain_tiles(frame, 12, 16) for frame in frames]
    pixels = torch.from_numpy(np.concatenate([plain_pixels(tiles) for tiles in per_frame]))
    prepared = lm.family.prepare(frames, None)  # type: ignore[arg-type]
    assert torch.equal(prepared.pixels, pixels)
    watched, question = lm.watch(frames), "what is left of the red cup"
    assert watched.frames == 2
    system = lm.chat.before.split("<|im_start|>system\n")[1].split("<|im_end|>")[0]
    prefix = "".join(f"Frame{i + 1}: <image>\n" for i in range(2))
    query = plain_query(config, system, [prefix + question], [len(tiles) for tiles in per_frame], 4)
    ids = lm.tokenizer(query)["input_ids"]
    assert [*watched.prefix.ids.tolist(), *lm.prompt_ids(question)] == ids
    image = lm.model.config.image_token_id
    logits = reference_logits(config, weights, torch.tensor(ids), reference_features(config, weights, pixels).flatten(0, 1), image)
    reply = watched.ask(question, max_new_tokens=1)
    assert reply.text == lm.tokenizer.decode([int(logits[-1].argmax())], skip_special_tokens=True).strip()
    score = watched.score([(question, "the red cup")])[0]
    said = lm.response_ids("the red cup")
    whole = reference_logits(
        config, weights, torch.tensor(ids + said), reference_features(config, weights, pixels).flatten(0, 1), image
    ).log_softmax(-1)
    expected = float(whole[len(ids) - 1 : -1].gather(-1, torch.tensor(said)[:, None]).sum())
    assert score.logp == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_a_follow_up_question_is_the_originals_history(tmp_path: Path, kind: str) -> None:
    config, weights, lm = tiled(tmp_path, kind)
    frames = np.stack([picture(40, 16)] * 2)
    watched = lm.watch(frames)
    system = lm.chat.before.split("<|im_start|>system\n")[1].split("<|im_end|>")[0]
    first, answer, later = "what is left", "the red cup moves right", "where does it go"
    query = plain_query(
        config, system, [f"Frame1: <image>\nFrame2: <image>\n{first}", answer, later], [len(plain_tiles(frames[0], 12, 16))] * 2, 4
    )
    ids = lm.tokenizer(query)["input_ids"]
    assert [*watched.prefix.ids.tolist(), *lm.chat.prompt_ids([[first, answer, later]])[0]] == ids
    features = watched.features.embeds
    logits = reference_logits(config, weights, torch.tensor(ids), features, lm.model.config.image_token_id)
    reply = watched.ask(later, max_new_tokens=1, history=[(first, answer)])
    assert reply.text == lm.tokenizer.decode([int(logits[-1].argmax())], skip_special_tokens=True).strip()
    spelled = lm.chat.prompt_ids([["what <|im_end|> is", answer, later]])[0]
    end = lm.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert spelled.count(end) == ids.count(end) - 1, "a text cannot end a turn (the system's turn is in the prefix)"


def test_the_history_matters_and_does_not_change_other_rows() -> None:
    lm = tiny_video_lm()
    video = lm.watch(np.stack([picture(64, 64)] * 4))
    alone = video.ask(["what is red", "where is the circle"], max_new_tokens=8)
    mixed = lm.ask([(video, "what is red"), (video, ["yes", "no", "what is red"])], GenerationSettings(max_new_tokens=8))
    assert mixed[0] == alone[0]
    assert mixed[1] == video.ask("what is red", history=[("yes", "no")], max_new_tokens=8)
    assert mixed[1] != alone[0]
    with pytest.raises(ValueError, match="does not end with a question"):
        lm.ask([(video, ["yes", "no"])], GenerationSettings())


def test_a_template_of_one_question_says_so() -> None:
    lm = tiny_video_lm()
    said = "{% if messages|length == 2 %}{{ messages[1]['content'] }}<eos>{% endif %}"
    lm.tokenizer.chat_template = "<bos><user>{{ messages[0]['content'] }}<assistant>" + said
    again = VideoLM(lm.model, lm.tokenizer, lm.preprocessing)
    video = again.watch(np.stack([picture(64, 64)] * 2))
    assert video.ask("what is red", max_new_tokens=2).tokens
    with pytest.raises(ChatTemplateError, match="template"):
        video.ask("what is red", history=[("yes", "no")])


@pytest.mark.parametrize("size", [8, 24, 32])
def test_tiles_of_another_size_take_interpolated_positions(tmp_path: Path, size: int) -> None:
    config, weights, lm = tiled(tmp_path, "qwen2", input_size=size)
    frames = np.stack([picture(40, 20)] * 2)
    pixels = torch.from_numpy(np.concatenate([plain_pixels(plain_tiles(frame, 12, size)) for frame in frames]))
    assert torch.equal(lm.family.prepare(frames, None).pixels, pixels)  # type: ignore[arg-type]
    expected = reference_features(config, weights, pixels).flatten(0, 1)
    assert len(expected) == len(pixels) * (size // 8) ** 2
    torch.testing.assert_close(lm.features(frames).embeds, expected, atol=1e-4, rtol=1e-4)
    assert lm.watch(frames).ask("what", max_new_tokens=2).tokens
    assert lm.prefix_ids(frames).tolist().count(lm.model.config.image_token_id) == len(expected)


def test_what_cannot_be_cut_is_refused() -> None:
    model, tokenizer = tiny_video_lm().model, tiny_tokenizer()
    for wrong in ({"max_tiles": 0}, {"input_size": 40}, {"input_size": 16}):
        with pytest.raises(FamilyError, match=r"max_tiles is 0|multiple of 32"):
            VideoLM(model, tokenizer, Preprocessing(**wrong))  # type: ignore[arg-type]
    smol = tiny_family_lm("smolvlm")
    with pytest.raises(FamilyError, match="smolvlm models take a frame whole"):
        VideoLM(smol.model, smol.tokenizer, Preprocessing(max_tiles=2))


def test_models_that_cut_frames_are_told_apart(tmp_path: Path) -> None:
    _, _, one = tiled(tmp_path, "qwen2", max_tiles=1)
    prints = {one.fingerprint}
    for most, size in ((12, None), (6, None), (1, 8)):
        prints.add(VideoLM.from_pretrained(tmp_path / "native", device="cpu", max_tiles=most, input_size=size).fingerprint)
    assert len(prints) == 4
    assert VideoLM.from_pretrained(tmp_path / "native", device="cpu").fingerprint == one.fingerprint
