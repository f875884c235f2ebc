"""A tiny random InternVL checkpoint shaped like the micro one (64 x 64 frames, 4 tokens a frame, word-level tokenizer), for tests.

Its weights are sharpened: with the usual initialisation all logits are near ties, and "equal token for token" would say little.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from savi.engine.video_lm import VideoLM

SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>", "<user>", "<assistant>", "<img>")
COLOURS = ("red", "green", "blue", "yellow", "white", "cyan", "purple")
# fmt: off
WORDS = (
    *(f"Frame{i}" for i in range(1, 65)),
    *COLOURS,
    "A", "B", "C", "D", "yes", "no", "ask", "spatial", "temporal", "answer", "critique", "revise", "right", "wrong", "so", "goes",
    "from", "to", "what", "where", "is", "the", "circle", "square", "triangle", "cross", "left", "up", "down", "of", "still", "count",
    "one", "two", "three",
    *(f"x{i}" for i in range(10)),
    *(f"y{i}" for i in range(10)),
)
# fmt: on
TEMPLATE = (
    "<bos>{% for message in messages %}{% if message['role'] == 'user' %}<user>{{ message['content'] }}"
    "{% else %}<assistant>{{ message['content'] }}<eos>{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tiny_tokenizer() -> Any:
    """Word-level, split on blanks and `.,:()` (dropped), as the micro tokenizer."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate((*SPECIALS, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s.,:()]+"), "removed")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens=["<user>", "<assistant>", "<img>"],
        chat_template=TEMPLATE,
    )


def sharpen(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Draw larger random weights, so that argmax is not near a tie and attention matters."""
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            draw = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(draw * (1.2 / parameter.shape[-1] ** 0.5))
            elif not any(part in name for part in ("norm", "lambda", "ln")):
                parameter.copy_(draw * 0.05)
    return model.eval()


def tiny_model(
    lm: str = "qwen2", *, seed: int = 0, hidden: int = 64, layers: int = 3, context: int = 1024, vocabulary: int | None = None
) -> Any:
    """`InternVLForConditionalGeneration` with a `qwen2`, `qwen3` or `llama` language model."""
    from savi.base.torchvision import fix_torchvision

    fix_torchvision()
    from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig, LlamaConfig, Qwen2Config, Qwen3Config

    torch.manual_seed(seed)
    kinds: dict[str, Any] = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
    text = kinds[lm](
        vocab_size=vocabulary or len(SPECIALS) + len(WORDS),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        **({"head_dim": hidden // 4} if lm == "qwen3" else {}),
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )
    vision = InternVLVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=64,
        patch_size=16,
        attention_bias=True,
        use_mean_pooling=True,
        layer_scale_init_value=1.0,
    )
    config = InternVLConfig(
        text_config=text, vision_config=vision, image_token_id=6, image_seq_length=4, downsample_ratio=0.5, tie_word_embeddings=False
    )
    model = sharpen(InternVLForConditionalGeneration(config), seed)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 2, 0
    return model


def tiny_video_lm(lm: str = "qwen2", **keywords: Any) -> VideoLM:
    """A `VideoLM` in memory around `tiny_model`."""
    from savi.engine.video_lm import VideoLM
    from savi.families import Preprocessing

    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 64, "width": 64}}
    return VideoLM(tiny_model(lm, **keywords), tiny_tokenizer(), Preprocessing.from_json(half, {}), name=f"tiny-{lm}")


FAMILY_SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>", "<user>", "<assistant>", "<img>", "<video>", "<vstart>", "<vend>", "<global-img>")
FAMILY_TEMPLATES = {
    "qwen2_5_vl": "<vstart><video><vend>",
    "qwen3_vl": "<vstart><video><vend>",
    "llava_onevision": "<video>",
    "llava_next_video": "<video>",
    "video_llama_3": "<video>",
    "smolvlm": "<video>",
}


def _family_tokenizer(family: str) -> Any:
    """As `tiny_tokenizer`, with the special tokens of the other families and a template that places the video itself."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate((*FAMILY_SPECIALS, *WORDS, "seconds>", "Frame", "Time", *(str(i) for i in range(20))))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s.,:()]+"), "removed")
    part = "{{ '" + FAMILY_TEMPLATES[family] + "' if part['type'] == 'video' else part['text'] }}"
    content = "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}" + part
    content += "{% endfor %}{% endif %}"
    template = "<bos>{% for message in messages %}{% if message['role'] == 'user' %}<user>" + content
    template += "{% else %}<assistant>" + content + "<eos>{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    named = {"fake_image_token": "<vstart>", "global_image_token": "<global-img>"}
    result = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        chat_template=template,
        extra_special_tokens=named if family == "smolvlm" else {},
    )
    result.add_special_tokens({"additional_special_tokens": [t for t in FAMILY_SPECIALS if t not in result.all_special_tokens]})
    return result


def tiny_family_model(family: str, *, vocabulary: int, seed: int = 0) -> Any:
    """A tiny random model of another family: 2-4 layers, four heads, head dimension 32."""
    from savi.base.torchvision import fix_torchvision

    fix_torchvision()
    import transformers as tf

    torch.manual_seed(seed)
    text: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 128,
        "intermediate_size": 192,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }
    plain = {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}
    marks = {"image_token_id": 6, "video_token_id": 7, "vision_start_token_id": 8, "vision_end_token_id": 9}
    eye: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
    tower: dict[str, Any] = {"depth": 2, "hidden_size": 64, "intermediate_size": 96, "num_heads": 4, "out_hidden_size": 128}
    model: Any
    if family == "qwen2_5_vl":
        rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6]}}
        vision = {**tower, "window_size": 56, "fullatt_block_indexes": [1], "tokens_per_second": 2}
        model = tf.Qwen2_5_VLForConditionalGeneration(tf.Qwen2_5_VLConfig(text_config={**text, **rope}, vision_config=vision, **marks))
    elif family == "qwen3_vl":
        rope = {"rope_theta": 10_000.0, "rope_type": "default", "mrope_section": [6, 5, 5], "mrope_interleaved": True}
        vision = {**tower, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
        config = tf.Qwen3VLConfig(text_config={**text, "head_dim": 32, "rope_parameters": rope}, vision_config=vision, **marks)
        model = tf.Qwen3VLForConditionalGeneration(config)
    elif family == "llava_onevision":
        vision = {
            **eye,
            "model_type": "siglip_vision_model",
            "num_hidden_layers": 2,
            "image_size": 56,
            "patch_size": 14,
            "vision_use_head": False,
        }
        config = tf.LlavaOnevisionConfig(
            text_config={"model_type": "qwen2", **text, **plain}, vision_config=vision, image_token_index=6, video_token_index=7
        )
        model = tf.LlavaOnevisionForConditionalGeneration(config)
    elif family == "llava_next_video":
        vision = {**eye, "model_type": "clip_vision_model", "num_hidden_layers": 3, "image_size": 56, "patch_size": 14}
        config = tf.LlavaNextVideoConfig(
            text_config={"model_type": "llama", **text, **plain}, vision_config=vision, image_token_index=6, video_token_index=7
        )
        model = tf.LlavaNextVideoForConditionalGeneration(config)
    elif family == "video_llama_3":
        vision = {**eye, "num_hidden_layers": 2, "patch_size": 14}
        config = tf.VideoLlama3Config(
            text_config={"model_type": "qwen2", **text, **plain}, vision_config=vision, image_token_id=6, video_token_id=7
        )
        model = tf.VideoLlama3ForConditionalGeneration(config)
    elif family == "smolvlm":
        vision = {**eye, "num_hidden_layers": 2, "image_size": 64, "patch_size": 8}
        config = tf.SmolVLMConfig(
            text_config={"model_type": "llama", **text, **plain}, vision_config=vision, image_token_id=6, scale_factor=2
        )
        model = tf.SmolVLMForConditionalGeneration(config)
    else:
        raise KeyError(family)
    model = sharpen(model, seed)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 2, 0
    return model


def tiny_family_lm(family: str, *, seed: int = 0) -> VideoLM:
    """A `VideoLM` of any supported family; frames of any size become a few dozen tokens."""
    from savi.engine.video_lm import VideoLM
    from savi.families import Preprocessing

    if family.startswith("internvl"):
        return tiny_video_lm(family.removeprefix("internvl-"), seed=seed)
    tokenizer = _family_tokenizer(family)
    video = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"shortest_edge": 56 * 56, "longest_edge": 8 * 112 * 112}}
    if family == "video_llama_3":
        video["size"] = {"shortest_edge": 28 * 28, "longest_edge": 8 * 56 * 84}
    if family == "qwen2_5_vl":
        video["size"] = {"shortest_edge": 28 * 28, "longest_edge": 112 * 168}
    return VideoLM(
        tiny_family_model(family, vocabulary=len(tokenizer), seed=seed), tokenizer, Preprocessing.from_json({}, video), name=family
    )


FAMILIES = (
    "internvl-qwen2", "internvl-qwen3", "internvl-llama", "qwen2_5_vl", "qwen3_vl", "llava_onevision", "llava_next_video", "smolvlm",
    "video_llama_3",
)  # fmt: skip


def tiny_checkpoint(folder: Path, lm: str = "qwen2", *, dtype: torch.dtype = torch.float16, **keywords: Any) -> Path:
    """A checkpoint folder like the micro one: float16 safetensors, tokenizer, preprocessor_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny_model(lm, **keywords).to(dtype).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 64, "width": 64}}
    (folder / "preprocessor_config.json").write_text(json.dumps(half))
    return folder


def tiny_frames(seed: int = 0, frames: int = 8, size: int = 64) -> np.ndarray:
    """uint8 `[frames, size, size, 3]`: blocks of random colours, different in every frame."""
    generator = np.random.default_rng(seed)
    blocks = generator.integers(0, 256, (frames, 8, 8, 3), dtype=np.uint8)
    return np.ascontiguousarray(blocks.repeat(size // 8, 1).repeat(size // 8, 2))


def tiny_prompts(count: int, seed: int = 0, longest: int = 12) -> list[str]:
    """Prompts of 1 to `longest` words of the tiny vocabulary."""
    generator = np.random.default_rng(seed)
    words = np.array(WORDS[64:])
    return [" ".join(generator.choice(words, int(generator.integers(1, longest + 1)))) for _ in range(count)]
