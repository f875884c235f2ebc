"""Ids, pixels and the first token against transformers' own processor and `generate`: what a user of the stock model gets for a video.

The tokenizer is byte-level, so that every blank and line break counts. The chat templates are the published ones, cut down to one turn.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from savi.base.torchvision import fix_torchvision
from savi.engine.video_lm import GenerationSettings, VideoLM
from savi.families import Preprocessing
from savi.families.base import resize_frames
from savi.families.smolvlm import in_words
from savi.video.frames import Frames
from tests.savi.tiny import tiny_family_model, tiny_frames, tiny_model

HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
QWEN_SIZE = {"shortest_edge": 28 * 28, "longest_edge": 8 * 112 * 112}
QUESTION = "What is left of the cup?"

SYSTEM = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
QWEN = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
LLAVA = ("<image>", "<video>", "<s8>", "<s9>")
PARTS = "{% for part in message['content'] %}{% if part['type'] == 'video' %}VIDEO{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
SAID = "{% if message['content'] is string %}{{ message['content'] }}{% else %}" + PARTS + "{% endif %}"
ASKED = "{% if add_generation_prompt %}"
TURN = "{% for message in messages %}<|im_start|>{{ message['role'] }}\n" + SAID + "<|im_end|>\n{% endfor %}"
TURN += ASKED + "<|im_start|>assistant\n{% endif %}"
SMOL = "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}: " + SAID.replace("VIDEO", "<video>")
SMOL += "<end_of_utterance>\n{% endfor %}" + ASKED + "Assistant:{% endif %}"

CASES: dict[str, tuple[tuple[str, str, str, str], str, tuple[int, int, int]]] = {
    "internvl-qwen2": (("<IMG_CONTEXT>", "<video>", "<img>", "</img>"), TURN.replace("VIDEO", "<video>\n"), (5, 64, 64)),
    "internvl-qwen3": (("<IMG_CONTEXT>", "<video>", "<img>", "</img>"), TURN.replace("VIDEO", "<video>\n"), (5, 64, 64)),
    "qwen2_5_vl": (QWEN, SYSTEM + TURN.replace("VIDEO", "<|vision_start|><|video_pad|><|vision_end|>"), (8, 112, 168)),
    "qwen3_vl": (QWEN, TURN.replace("VIDEO", "<|vision_start|><|video_pad|><|vision_end|>"), (8, 96, 128)),
    "llava_onevision": (LLAVA, TURN.replace("VIDEO", "<video>\n"), (5, 56, 56)),
    "llava_next_video": (LLAVA, TURN.replace("VIDEO", "<video>\n"), (5, 56, 56)),
    "smolvlm": (("<image>", "<video>", "<fake_token_around_image>", "<end_of_utterance>"), SMOL, (5, 64, 64)),
    "video_llama_3": (QWEN, SYSTEM + TURN.replace("VIDEO", "<|video_pad|>"), (5, 56, 84)),
}
"""Special tokens 6 to 9, chat template, and frames of a size that nobody has to change."""


def byte_tokenizer(tokens: tuple[str, str, str, str], template: str) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    specials = ("<|endoftext|>", "<s>", "<|im_end|>", "<unk>", "<|im_start|>", "<s5>", *tokens, "<global-img>")
    vocabulary = {token: i for i, token in enumerate((*specials, *sorted(bytes_to_unicode().values())))}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    named = {"context_image_token": tokens[0], "video_token": tokens[1], "start_image_token": tokens[2], "end_image_token": tokens[3],
             "image_token": tokens[0], "fake_image_token": tokens[2], "global_image_token": "<global-img>"}  # fmt: skip
    result = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=template, extra_special_tokens=named
    )
    result.add_special_tokens({"additional_special_tokens": [token for token in specials if token not in result.all_special_tokens]})
    return result


def processor_for(family: str, tokenizer: Any) -> Any:
    import transformers as tf

    if family.startswith("internvl"):
        image, video = tf.GotOcr2ImageProcessor(**HALF), tf.InternVLVideoProcessor(**HALF, size={"height": 64, "width": 64})
        return tf.InternVLProcessor(image, tokenizer, video, image_seq_length=4, chat_template=tokenizer.chat_template)
    if family == "smolvlm":
        size = {"longest_edge": 64}
        image = tf.SmolVLMImageProcessor(**HALF, size=size, max_image_size=size)
        video = tf.SmolVLMVideoProcessor(**HALF, size=size, max_image_size=size)
        return tf.SmolVLMProcessor(image, tokenizer, video, image_seq_len=16, chat_template=tokenizer.chat_template)
    if family == "llava_onevision":
        image, video = tf.LlavaOnevisionImageProcessor(**HALF), tf.LlavaOnevisionVideoProcessor(**HALF, size={"height": 56, "width": 56})
        keywords = {"num_image_tokens": 16, "vision_feature_select_strategy": "full"}
        return tf.LlavaOnevisionProcessor(image, tokenizer, video, chat_template=tokenizer.chat_template, **keywords)
    if family == "llava_next_video":
        size = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
        image, video = tf.LlavaNextImageProcessor(**HALF), tf.LlavaNextVideoVideoProcessor(**HALF, **size)
        return tf.LlavaNextVideoProcessor(video, image, tokenizer, patch_size=14, vision_feature_select_strategy="default",
                                          chat_template=tokenizer.chat_template)  # fmt: skip
    names = {"qwen2_5_vl": ("Qwen2VL", "Qwen2VL", "Qwen2_5_VL"), "qwen3_vl": ("Qwen2VL", "Qwen3VL", "Qwen3VL")}
    images, videos, both = names.get(family, ("VideoLlama3",) * 3)
    image = getattr(tf, f"{images}ImageProcessor")(**HALF)
    video = getattr(tf, f"{videos}VideoProcessor")(**HALF, size=QWEN_SIZE)
    return getattr(tf, f"{both}Processor")(image, tokenizer, video_processor=video, chat_template=tokenizer.chat_template)


def build(family: str) -> tuple[VideoLM, Any]:
    """The same tiny model as we take it, and with the stock processor."""
    fix_torchvision()
    tokens, template, _ = CASES[family]
    tokenizer = byte_tokenizer(tokens, template)
    if family.startswith("internvl"):
        model = tiny_model(family.removeprefix("internvl-"), vocabulary=len(tokenizer))
    else:
        model = tiny_family_model(family, vocabulary=len(tokenizer))
    return VideoLM(model, tokenizer, Preprocessing.from_json({}, {**HALF, "size": QWEN_SIZE}), name=family), processor_for(
        family, tokenizer
    )


@pytest.fixture(autouse=True)
def numbers_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """SmolVLM's stock processor spells numbers by an optional package."""
    fix_torchvision()
    from transformers.models.smolvlm import processing_smolvlm

    monkeypatch.setattr(processing_smolvlm, "num2words", in_words)


def stock_inputs(family: str, processor: Any, clip: Frames) -> dict[str, Any]:
    from transformers.video_utils import VideoMetadata

    content = [{"type": "video"}, {"type": "text", "text": QUESTION}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)
    if family == "qwen3_vl":
        # transformers 5.23 leaves the template's own pair around the pairs of the frames; the processor as published did not
        text = text.replace("<|vision_start|><|video_pad|><|vision_end|>", "<|video_pad|>")
    count, height, width, _ = clip.pixels.shape
    metadata = VideoMetadata(
        total_num_frames=clip.total, fps=clip.fps, duration=clip.duration_s, frames_indices=list(clip.indices), width=width, height=height
    )
    inputs = processor(text=[text], videos=[clip.pixels], video_metadata=[metadata], do_sample_frames=False, return_tensors="pt")
    assert len(clip.indices) == count
    return {key: value for key, value in inputs.items() if key != "video_metadata"}


@pytest.mark.parametrize("family", sorted(CASES))
def test_ids_and_the_first_tokens_are_the_stock_processors_and_generates(family: str) -> None:
    lm, processor = build(family)
    count, height, width = CASES[family][2]
    frames = resize_frames(tiny_frames(1, count), height, width)
    frames[2:, :, : width // 2] = frames[2, :, : width // 2]
    clip = Frames(frames, tuple(range(count)), 4.0, count / 4, count, "clip.mp4")
    inputs = stock_inputs(family, processor, clip)
    watched = lm.watch(clip)
    ours = [*watched.prefix.ids.tolist(), *lm.prompt_ids(QUESTION)]
    assert lm.tokenizer.decode(ours) == lm.tokenizer.decode(inputs["input_ids"][0])
    assert ours == inputs["input_ids"][0].tolist()
    with torch.no_grad():
        stock = lm.model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, len(ours) :].tolist()
    reply = lm.ask([(watched, QUESTION)], GenerationSettings(max_new_tokens=4))[0]
    assert reply.tokens == len(stock)
    assert reply.text == lm.tokenizer.decode(stock, skip_special_tokens=True).strip()


@pytest.mark.parametrize("family", sorted(set(CASES) - {"internvl-qwen3"}))
@pytest.mark.parametrize("shape", [(7, 90, 160), (8, 200, 120), (3, 31, 57), (12, 480, 640)], ids=str)
def test_ids_of_frames_of_any_size(family: str, shape: tuple[int, int, int]) -> None:
    """Frames that have to be resized: how many tokens they become, and which times are written, for clips of minutes too."""
    lm, processor = build(family)
    count, height, width = shape
    frames = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    clip = Frames(frames, tuple(range(5, 5 + 300 * count, 300)), 24.0, 300 * count / 24, 300 * count, "clip.mp4")
    ours = [*lm.prefix_ids(clip).tolist(), *lm.prompt_ids(QUESTION)]
    assert lm.tokenizer.decode(ours) == lm.tokenizer.decode(stock_inputs(family, processor, clip)["input_ids"][0])
