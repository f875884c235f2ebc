"""Which native tensor each tensor of an `internvl_chat` checkpoint becomes. Unknown keys are errors, never dropped.

Written from the key lists of the published checkpoints (InternVL 2, 2.5 and 3.5: InternViT with one of five language models) and of
transformers' `InternVLForConditionalGeneration`. The module must not know files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

LanguageModel = Literal["InternLM2ForCausalLM", "Qwen2ForCausalLM", "LlamaForCausalLM", "Phi3ForCausalLM", "Qwen3ForCausalLM"]

_VISION_LAYER = r"^vision_model\.encoder\.layers\.(\d+)\."
_NATIVE_VISION_LAYER = r"model.vision_tower.encoder.layer.\1."
_VISION = (
    (r"^vision_model\.embeddings\.class_embedding$", "model.vision_tower.embeddings.cls_token"),
    (r"^vision_model\.embeddings\.position_embedding$", "model.vision_tower.embeddings.position_embeddings"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "model.vision_tower.embeddings.patch_embeddings.projection."),
    (_VISION_LAYER + r"attn\.proj\.", _NATIVE_VISION_LAYER + "attention.projection_layer."),
    (_VISION_LAYER + r"attn\.(q_norm|k_norm)\.", _NATIVE_VISION_LAYER + r"attention.\2."),
    (_VISION_LAYER + r"mlp\.", _NATIVE_VISION_LAYER + "mlp."),
    (_VISION_LAYER + r"norm1\.", _NATIVE_VISION_LAYER + "layernorm_before."),
    (_VISION_LAYER + r"norm2\.", _NATIVE_VISION_LAYER + "layernorm_after."),
    (_VISION_LAYER + r"ls1$", _NATIVE_VISION_LAYER + "lambda_1"),
    (_VISION_LAYER + r"ls2$", _NATIVE_VISION_LAYER + "lambda_2"),
    (r"^mlp1\.0\.", "model.multi_modal_projector.layer_norm."),
    (r"^mlp1\.1\.", "model.multi_modal_projector.linear_1."),
    (r"^mlp1\.3\.", "model.multi_modal_projector.linear_2."),
)
_INTERNLM2_LAYER = r"^language_model\.model\.layers\.(\d+)\."
_NATIVE_LAYER = r"model.language_model.layers.\1."
_INTERNLM2 = (
    (r"^language_model\.model\.tok_embeddings\.", "model.language_model.embed_tokens."),
    (_INTERNLM2_LAYER + r"attention\.wo\.", _NATIVE_LAYER + "self_attn.o_proj."),
    (_INTERNLM2_LAYER + r"feed_forward\.w1\.", _NATIVE_LAYER + "mlp.gate_proj."),
    (_INTERNLM2_LAYER + r"feed_forward\.w3\.", _NATIVE_LAYER + "mlp.up_proj."),
    (_INTERNLM2_LAYER + r"feed_forward\.w2\.", _NATIVE_LAYER + "mlp.down_proj."),
    (_INTERNLM2_LAYER + r"attention_norm\.", _NATIVE_LAYER + "input_layernorm."),
    (_INTERNLM2_LAYER + r"ffn_norm\.", _NATIVE_LAYER + "post_attention_layernorm."),
    (r"^language_model\.model\.norm\.", "model.language_model.norm."),
    (r"^language_model\.output\.", "lm_head."),
)
_SAME_NAMES = (
    (r"^language_model\.model\.(embed_tokens|norm|layers)\.", r"model.language_model.\1."),
    (r"^language_model\.lm_head\.", "lm_head."),
)
_RENAMED: dict[LanguageModel, tuple[tuple[str, str], ...]] = {
    "InternLM2ForCausalLM": _VISION + _INTERNLM2,
    "Qwen2ForCausalLM": _VISION + _SAME_NAMES,
    "LlamaForCausalLM": _VISION + _SAME_NAMES,
    "Phi3ForCausalLM": _VISION + _SAME_NAMES,
    "Qwen3ForCausalLM": _VISION + _SAME_NAMES,
}
_DERIVED = r"rotary_emb\.inv_freq$"
"""A buffer that older checkpoints stored; the native class computes it from the config."""


def head_key(language_model: LanguageModel) -> str:
    """The source's name of the output embeddings."""
    return "language_model.output.weight" if language_model == "InternLM2ForCausalLM" else "language_model.lm_head.weight"


class UnknownKey(KeyError):
    """A source key without a rule."""


@dataclass(frozen=True)
class Heads:
    """Shape of the language model's attention: query heads, key-value heads, and the width of each."""

    queries: int
    key_values: int
    width: int


def convert_tensor(key: str, tensor: Tensor, *, language_model: LanguageModel, heads: Heads) -> dict[str, Tensor]:
    """The native tensors, by native key, that one source tensor becomes (views where possible; meta tensors stay meta).

    InternLM2's `wqkv` is [kv_heads * (groups + 2) * width, hidden]: per key-value head its queries, its key, its value.

    Raises:
        UnknownKey: no rule matches.
        RuntimeError: a fused tensor has not the shape that `heads` says.
    """
    if re.search(_DERIVED, key):
        return {}
    if match := re.match(_VISION_LAYER + r"attn\.qkv\.(weight|bias)$", key):
        stem = f"model.vision_tower.encoder.layer.{match[1]}.attention."
        parts = tensor.unflatten(0, (3, -1)).unbind(0)
        return {f"{stem}{name}_proj.{match[2]}": part.contiguous() for name, part in zip("qkv", parts, strict=True)}
    if language_model == "InternLM2ForCausalLM" and (match := re.match(_INTERNLM2_LAYER + r"attention\.wqkv\.(weight|bias)$", key)):
        groups = heads.queries // heads.key_values
        fused = tensor.unflatten(0, (heads.key_values, groups + 2, heads.width))
        stem = f"model.language_model.layers.{match[1]}.self_attn."
        split = {"q": fused[:, :groups].flatten(0, 2), "k": fused[:, groups].flatten(0, 1), "v": fused[:, groups + 1].flatten(0, 1)}
        return {f"{stem}{name}_proj.{match[2]}": part.contiguous() for name, part in split.items()}
    for pattern, replacement in _RENAMED[language_model]:
        renamed, count = re.subn(pattern, replacement, key)
        if count:
            return {renamed: tensor}
    raise UnknownKey(key)


def restore_tensor(key: str, native: list[Tensor], *, heads: Heads) -> Tensor:
    """The source's tensor out of the native ones that `convert_tensor` makes of it, in that order: its inverse, bit for bit."""
    import torch

    if len(native) == 1:
        return native[0]
    if re.match(_INTERNLM2_LAYER + r"attention\.wqkv\.", key):
        groups = heads.queries // heads.key_values
        parts = [part.unflatten(0, (heads.key_values, count, heads.width)) for part, count in zip(native, (groups, 1, 1), strict=True)]
        return torch.cat(parts, dim=1).flatten(0, 2)
    return torch.cat(native)
