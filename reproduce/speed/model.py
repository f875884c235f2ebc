"""What the speed table is measured on: a random model of a stated shape, its tokenizer, frames and prompts of stated lengths.

Weights do not matter for speed, lengths do: 32 frames of 256 tokens, questions of 80, answers of 150, as in the paper's setting. The gpu
preset has the shape of InternVL2.5-8B itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from savi.engine.video_lm import VideoLM

SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>", "<user>", "<assistant>", "<img>", "<open>", "<close>", "<video>")
TEMPLATE = (
    "<bos>{% for m in messages %}{% if m['role'] == 'user' %}<user>{{ m['content'] }}"
    "{% else %}<assistant>{{ m['content'] }}<eos>{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
WORDS = 2000


@dataclass(frozen=True)
class Shape:
    """A model's shape; `image / patch` squared, divided by four, are the tokens of a frame."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    vision_hidden: int
    vision_layers: int
    vision_heads: int
    image: int
    patch: int = 14
    dtype: str = "float32"

    @property
    def frame_tokens(self) -> int:
        """Visual tokens of a frame."""
        return (self.image // self.patch) ** 2 // 4


SMOKE = Shape(64, 2, 4, 2, 128, 2100, 32, 2, 4, 56)
CPU = Shape(256, 6, 8, 4, 704, 2100, 128, 4, 4, 448)
CPU_TRAINING = Shape(128, 3, 4, 2, 352, 2100, 64, 2, 4, 448)
EIGHT_B = Shape(4096, 32, 32, 8, 14336, 92553, 1024, 24, 16, 448, dtype="bfloat16")
"""InternVL2.5-8B: InternViT-300M and InternLM2-7B."""


def make_tokenizer() -> Any:
    """Word-level: `w0` to `w1999` and the special tokens; a text of n words has n tokens."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = (*SPECIALS, *(f"Frame{i}" for i in range(1, 65)), *(f"w{i}" for i in range(WORDS)))
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s:]+"), "removed")
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",  # noqa: S106
        eos_token="<eos>",  # noqa: S106
        pad_token="<pad>",  # noqa: S106
        unk_token="<unk>",  # noqa: S106
        extra_special_tokens=["<user>", "<assistant>", "<img>", "<open>", "<close>", "<video>"],
        chat_template=TEMPLATE,
    )
    named = {"start_image_token": "<open>", "end_image_token": "<close>", "context_image_token": "<img>", "video_token": "<video>"}
    for name, token in named.items():
        setattr(made, name, token)
        setattr(made, f"{name}_id", made.convert_tokens_to_ids(token))
    return made


def make_model(shape: Shape, device: str, seed: int = 0) -> VideoLM:
    """A random InternVL with a llama language model, made on the device it runs on."""
    from savi.base.torchvision import fix_torchvision

    fix_torchvision()
    import torch
    from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig, LlamaConfig

    from savi.engine.video_lm import VideoLM

    torch.manual_seed(seed)
    text = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=32768,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
    vision = InternVLVisionConfig(
        hidden_size=shape.vision_hidden,
        intermediate_size=4 * shape.vision_hidden,
        num_hidden_layers=shape.vision_layers,
        num_attention_heads=shape.vision_heads,
        attention_bias=True,
        image_size=shape.image,
        patch_size=shape.patch,
        use_mean_pooling=True,
    )
    config = InternVLConfig(
        text_config=text, vision_config=vision, image_token_id=6, image_seq_length=shape.frame_tokens, tie_word_embeddings=False
    )
    default = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, shape.dtype))
    try:
        with torch.device(device):
            model = InternVLForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(default)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    return VideoLM(model.eval(), make_tokenizer(), name=f"random-{shape.hidden}x{shape.layers}")


@lru_cache(maxsize=1)
def shared_model(shape: Shape, device: str) -> VideoLM:
    """The same, one for all cases that leave it as it is: building 8B takes ten seconds. `shared_model.cache_clear()` gives it up."""
    return make_model(shape, device)


def make_frames(frames: int, size: int, seed: int = 0) -> np.ndarray:
    """uint8 `[frames, size, size, 3]` noise."""
    return np.random.default_rng(seed).integers(0, 256, (frames, size, size, 3), dtype=np.uint8)


def make_text(words: int, seed: int) -> str:
    """A text of exactly this many tokens."""
    return " ".join(f"w{i}" for i in np.random.default_rng(seed).integers(0, WORDS, words))
