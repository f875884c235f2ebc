"""Tiny `internvl_chat` checkpoints for the tests, and an independent plain forward of that architecture on their own tensors.

The forward follows the published description of InternVL 2.5 (InternViT with layer scale, pixel shuffle v2, two-layer projector) and of
InternLM2 and Qwen2 (rotary attention, RMS norm, gated MLP), written here from scratch on the source's key names; it shares no code with
the conversion or with transformers' model classes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

WORDS = (
    "what is left of the red cup and where does it go frame user assistant system a b c d yes no moves right above below "
    "视频 中 发生 了 什么 你 是 书 生 万 象 1 2 3 45 don't def return CamelCase naïve café"
)


def internlm2_config(**changes: Any) -> dict[str, Any]:
    text = {
        "architectures": ["InternLM2ForCausalLM"],
        "vocab_size": 0,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 24,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "rope_theta": 1000000,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
        "bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "tie_word_embeddings": False,
    }
    return _chat_config(text | changes)


def qwen2_config(**changes: Any) -> dict[str, Any]:
    text = {
        "architectures": ["Qwen2ForCausalLM"],
        "vocab_size": 0,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "rope_theta": 1000000.0,
        "rope_scaling": None,
        "use_sliding_window": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "tie_word_embeddings": False,
    }
    return _chat_config(text | changes)


def llama_config(**changes: Any) -> dict[str, Any]:
    """As in InternVL2-40B and 76B."""
    return qwen2_config(**{"architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, **changes})


def qwen3_config(**changes: Any) -> dict[str, Any]:
    """As in InternVL3.5: heads wider than the hidden size says, and normalised queries and keys."""
    return qwen2_config(**{"architectures": ["Qwen3ForCausalLM"], "head_dim": 12, "attention_bias": False, **changes})


def phi3_config(**changes: Any) -> dict[str, Any]:
    """As in InternVL2-4B: longrope, which changes beyond 24 tokens."""
    scaling = {"type": "su", "short_factor": [1.0, 1.1, 1.2, 1.4], "long_factor": [1.5, 2.0, 3.5, 6.0]}
    config = qwen2_config(
        **{"architectures": ["Phi3ForCausalLM"], "rope_scaling": scaling, "rope_theta": 10000.0, "original_max_position_embeddings": 24,
           "max_position_embeddings": 96, "sliding_window": 4096, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, **changes}
    )  # fmt: skip
    return config | {"template": "phi3-chat"}


def _chat_config(text: dict[str, Any]) -> dict[str, Any]:
    return {
        "model_type": "internvl_chat",
        "architectures": ["InternVLChatModel"],
        "auto_map": {"AutoModel": "modeling_internvl_chat.InternVLChatModel"},
        "downsample_ratio": 0.5,
        "force_image_size": 16,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internvl2_5",
        "torch_dtype": "float32",
        "llm_config": text,
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 4,
            "qkv_bias": True,
            "qk_normalization": False,
            "norm_type": "layer_norm",
            "layer_norm_eps": 1e-6,
            "hidden_act": "gelu",
            "initializer_factor": 0.1,
        },
    }


def random_weights(config: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Every tensor of the architecture, by its published name."""
    generator = torch.Generator().manual_seed(seed)

    def tensor(*shape: int) -> Tensor:
        scale = 0.5 if len(shape) < 2 else 1.5 / math.sqrt(shape[-1])
        return torch.randn(*shape, generator=generator) * scale

    return weights_of(config, tensor)


def weights_of(config: dict[str, Any], tensor: Callable[..., Tensor]) -> dict[str, Tensor]:
    """Every tensor of the architecture, by its published name, each made from its shape by `tensor`."""
    v, t = config["vision_config"], config["llm_config"]
    d, patches = v["hidden_size"], (v["image_size"] // v["patch_size"]) ** 2
    weights = {
        "vision_model.embeddings.class_embedding": tensor(1, 1, d),
        "vision_model.embeddings.position_embedding": tensor(1, patches + 1, d),
        "vision_model.embeddings.patch_embedding.weight": tensor(d, 3, v["patch_size"], v["patch_size"]),
        "vision_model.embeddings.patch_embedding.bias": tensor(d),
    }
    for layer in range(v["num_hidden_layers"]):
        stem = f"vision_model.encoder.layers.{layer}."
        weights |= {stem + "attn.qkv.weight": tensor(3 * d, d), stem + "attn.proj.weight": tensor(d, d), stem + "attn.proj.bias": tensor(d)}
        if v["qkv_bias"]:
            weights[stem + "attn.qkv.bias"] = tensor(3 * d)
        if v["qk_normalization"]:
            weights |= {stem + "attn.q_norm.weight": tensor(d), stem + "attn.k_norm.weight": tensor(d)}
        for norm in ("norm1", "norm2"):
            weights[f"{stem}{norm}.weight"] = tensor(d)
            if v["norm_type"] == "layer_norm":
                weights[f"{stem}{norm}.bias"] = tensor(d)
        wide = v["intermediate_size"]
        weights |= {stem + "mlp.fc1.weight": tensor(wide, d), stem + "mlp.fc1.bias": tensor(wide)}
        weights |= {stem + "mlp.fc2.weight": tensor(d, wide), stem + "mlp.fc2.bias": tensor(d)}
        weights |= {stem + "ls1": tensor(d), stem + "ls2": tensor(d)}
    h = t["hidden_size"]
    weights |= {"mlp1.0.weight": tensor(4 * d), "mlp1.0.bias": tensor(4 * d), "mlp1.1.weight": tensor(h, 4 * d), "mlp1.1.bias": tensor(h)}
    weights |= {"mlp1.3.weight": tensor(h, h), "mlp1.3.bias": tensor(h)}
    return weights | _text_weights(t, tensor)


def _text_weights(t: dict[str, Any], tensor: Any) -> dict[str, Tensor]:
    h, wide, width = t["hidden_size"], t["intermediate_size"], t.get("head_dim") or t["hidden_size"] // t["num_attention_heads"]
    queries, kv = t["num_attention_heads"] * width, t["num_key_value_heads"] * width
    weights: dict[str, Tensor] = {}
    kind = t["architectures"][0]
    internlm2 = kind == "InternLM2ForCausalLM"
    for layer in range(t["num_hidden_layers"]):
        stem = f"language_model.model.layers.{layer}."
        if internlm2:
            weights |= {stem + "attention.wqkv.weight": tensor(h + 2 * kv, h), stem + "attention.wo.weight": tensor(h, h)}
            weights |= {stem + "feed_forward.w1.weight": tensor(wide, h), stem + "feed_forward.w3.weight": tensor(wide, h)}
            weights |= {stem + "feed_forward.w2.weight": tensor(h, wide)}
            weights |= {stem + "attention_norm.weight": tensor(h) + 1, stem + "ffn_norm.weight": tensor(h) + 1}
            continue
        weights |= {stem + "self_attn.o_proj.weight": tensor(h, queries), stem + "mlp.down_proj.weight": tensor(h, wide)}
        if kind == "Phi3ForCausalLM":
            weights |= {
                stem + "self_attn.qkv_proj.weight": tensor(queries + 2 * kv, h),
                stem + "mlp.gate_up_proj.weight": tensor(2 * wide, h),
            }
        else:
            for name, rows in (("q", queries), ("k", kv), ("v", kv)):
                weights[f"{stem}self_attn.{name}_proj.weight"] = tensor(rows, h)
                if kind == "Qwen2ForCausalLM":
                    weights[f"{stem}self_attn.{name}_proj.bias"] = tensor(rows)
            weights |= {stem + "mlp.gate_proj.weight": tensor(wide, h), stem + "mlp.up_proj.weight": tensor(wide, h)}
        if kind == "Qwen3ForCausalLM":
            weights |= {stem + "self_attn.q_norm.weight": tensor(width) + 1, stem + "self_attn.k_norm.weight": tensor(width) + 1}
        weights |= {stem + "input_layernorm.weight": tensor(h) + 1, stem + "post_attention_layernorm.weight": tensor(h) + 1}
    weights["language_model.model.norm.weight"] = tensor(h) + 1
    embed, head = ("model.tok_embeddings", "output") if internlm2 else ("model.embed_tokens", "lm_head")
    weights[f"language_model.{embed}.weight"] = tensor(t["vocab_size"], h) * 3
    if not t["tie_word_embeddings"]:
        weights[f"language_model.{head}.weight"] = tensor(t["vocab_size"], h)
    return weights


def reference_features(config: dict[str, Any], w: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """Image features [N, tokens, hidden] of pixels [N, 3, H, W]."""
    v = config["vision_config"]
    d, heads, eps = v["hidden_size"], v["num_attention_heads"], v["layer_norm_eps"]

    def norm(x: Tensor, name: str) -> Tensor:
        if v["norm_type"] == "rms_norm":
            return w[name + ".weight"] * x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()
        return F.layer_norm(x, (d,), w[name + ".weight"], w[name + ".bias"], eps)

    x = F.conv2d(
        pixels, w["vision_model.embeddings.patch_embedding.weight"], w["vision_model.embeddings.patch_embedding.bias"], v["patch_size"]
    )
    x = x.flatten(2).transpose(1, 2)
    side, own = pixels.shape[-1] // v["patch_size"], v["image_size"] // v["patch_size"]
    position = w["vision_model.embeddings.position_embedding"]
    if side != own:  # the original's `_get_pos_embed`
        grid = position[:, 1:].view(1, own, own, d).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
        position = torch.cat([position[:, :1], grid], 1)
    x = torch.cat([w["vision_model.embeddings.class_embedding"].expand(len(x), -1, -1), x], 1) + position
    for layer in range(v["num_hidden_layers"]):
        stem = f"vision_model.encoder.layers.{layer}."
        y = norm(x, stem + "norm1")
        qkv = F.linear(y, w[stem + "attn.qkv.weight"], w.get(stem + "attn.qkv.bias"))
        q, k, value = qkv[..., :d], qkv[..., d : 2 * d], qkv[..., 2 * d :]
        if v["qk_normalization"]:
            q, k = norm(q, stem + "attn.q_norm"), norm(k, stem + "attn.k_norm")
        q, k, value = (z.view(len(x), -1, heads, d // heads).transpose(1, 2) for z in (q, k, value))
        mixed = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(d // heads), -1) @ value
        mixed = F.linear(mixed.transpose(1, 2).reshape(y.shape), w[stem + "attn.proj.weight"], w[stem + "attn.proj.bias"])
        x = x + mixed * w[stem + "ls1"]
        y = F.gelu(F.linear(norm(x, stem + "norm2"), w[stem + "mlp.fc1.weight"], w[stem + "mlp.fc1.bias"]))
        x = x + F.linear(y, w[stem + "mlp.fc2.weight"], w[stem + "mlp.fc2.bias"]) * w[stem + "ls2"]
    grid = x[:, 1:].view(len(x), side // 2, 2, side // 2, 2, d)  # rows, row in cell, columns, column in cell
    cells = grid.permute(0, 1, 3, 2, 4, 5).reshape(len(x), (side // 2) ** 2, 4 * d)
    y = F.layer_norm(cells, (4 * d,), w["mlp1.0.weight"], w["mlp1.0.bias"], 1e-5)
    y = F.gelu(F.linear(y, w["mlp1.1.weight"], w["mlp1.1.bias"]))
    return F.linear(y, w["mlp1.3.weight"], w["mlp1.3.bias"])


def reference_logits(config: dict[str, Any], w: dict[str, Tensor], ids: Tensor, features: Tensor | None, image_token: int) -> Tensor:
    """Logits [L, V] of one sequence of ids [L], features [n, hidden] in the places of the image tokens."""
    t = config["llm_config"]
    internlm2 = t["architectures"] == ["InternLM2ForCausalLM"]
    h, heads, kv_heads = t["hidden_size"], t["num_attention_heads"], t["num_key_value_heads"]
    width, length = t.get("head_dim") or h // heads, len(ids)
    embed = w[f"language_model.model.{'tok_embeddings' if internlm2 else 'embed_tokens'}.weight"]
    x = embed[ids].clone()
    if features is not None:
        x[ids == image_token] = features

    def norm(x: Tensor, name: str) -> Tensor:
        return w[name + ".weight"] * x / (x.pow(2).mean(-1, keepdim=True) + t["rms_norm_eps"]).sqrt()

    def head_norm(x: Tensor, name: str) -> Tensor:
        return w[name] * x / (x.pow(2).mean(-1, keepdim=True) + t["rms_norm_eps"]).sqrt() if name in w else x

    base, factors, magnitude = float(t["rope_theta"]), torch.ones(width // 2), 1.0
    longrope = bool(t["rope_scaling"]) and "long_factor" in t["rope_scaling"]
    if longrope:  # two sets of factors, by the length, and one magnitude (Phi-3's technical report and its published code)
        trained = t["original_max_position_embeddings"]
        factors = torch.tensor(t["rope_scaling"]["long_factor" if length > trained else "short_factor"])
        magnitude = math.sqrt(1 + math.log(t["max_position_embeddings"] / trained) / math.log(trained))
    elif t["rope_scaling"] and length > t["max_position_embeddings"]:  # dynamic NTK: a longer text, a larger base
        factor = t["rope_scaling"]["factor"]
        base *= (factor * length / t["max_position_embeddings"] - (factor - 1)) ** (width / (width - 2))
    angles = torch.arange(length)[:, None] / (factors * base ** (torch.arange(0, width, 2) / width))
    cos, sin = torch.cat([angles.cos()] * 2, -1) * magnitude, torch.cat([angles.sin()] * 2, -1) * magnitude

    def rotate(x: Tensor) -> Tensor:
        half = width // 2
        return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin

    mask = torch.full((length, length), float("-inf")).triu(1)
    for layer in range(t["num_hidden_layers"]):
        stem = f"language_model.model.layers.{layer}."
        y = norm(x, stem + ("attention_norm" if internlm2 else "input_layernorm"))
        if internlm2:
            fused = F.linear(y, w[stem + "attention.wqkv.weight"]).view(length, kv_heads, heads // kv_heads + 2, width)
            q, k, value = fused[:, :, :-2].reshape(length, heads, width), fused[:, :, -2], fused[:, :, -1]
        elif stem + "self_attn.qkv_proj.weight" in w:
            joined = F.linear(y, w[stem + "self_attn.qkv_proj.weight"]).view(length, heads + 2 * kv_heads, width)
            q, k, value = joined[:, :heads], joined[:, heads : heads + kv_heads], joined[:, heads + kv_heads :]
        else:
            q, k, value = (
                F.linear(y, w[f"{stem}self_attn.{n}_proj.weight"], w.get(f"{stem}self_attn.{n}_proj.bias")).view(length, -1, width)
                for n in "qkv"
            )
        q, k = head_norm(q, stem + "self_attn.q_norm.weight"), head_norm(k, stem + "self_attn.k_norm.weight")
        q, k, value = q.transpose(0, 1), k.transpose(0, 1), value.transpose(0, 1)
        k, value = (z.repeat_interleave(heads // kv_heads, 0) for z in (k, value))
        mixed = torch.softmax(rotate(q) @ rotate(k).transpose(-1, -2) / math.sqrt(width) + mask, -1) @ value
        x = x + F.linear(
            mixed.transpose(0, 1).reshape(length, heads * width),
            w[stem + ("attention.wo" if internlm2 else "self_attn.o_proj") + ".weight"],
        )
        gate, up, down = (
            [stem + f"feed_forward.{n}.weight" for n in ("w1", "w3", "w2")]
            if internlm2
            else [stem + f"mlp.{n}_proj.weight" for n in ("gate", "up", "down")]
        )
        y = norm(x, stem + ("ffn_norm" if internlm2 else "post_attention_layernorm"))
        if stem + "mlp.gate_up_proj.weight" in w:
            opened, passed = F.linear(y, w[stem + "mlp.gate_up_proj.weight"]).chunk(2, -1)
        else:
            opened, passed = F.linear(y, w[gate]), F.linear(y, w[up])
        x = x + F.linear(F.silu(opened) * passed, w[down])
    x = norm(x, "language_model.model.norm")
    return F.linear(x, w.get(f"language_model.{'output' if internlm2 else 'lm_head'}.weight", embed))


INTERNLM2_SPECIALS = ("<|im_end|>", "<|im_start|>")
ADDED = ("<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")


def write_internlm2_tokenizer(folder: Path, *, dummy_prefix: bool = False, kind: str = "bpe") -> int:
    """A small sentencepiece model with reserved pieces that the added tokens rename, as InternLM2's; returns the vocabulary's size."""
    import io

    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([WORDS] * 5 + [word for word in WORDS.split() for _ in range(3)]),
        model_writer=model,
        model_type=kind,
        vocab_size=420,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=dummy_prefix,
        character_coverage=1.0,
        user_defined_symbols=["[UNUSED_TOKEN_0]", "[UNUSED_TOKEN_1]", "[UNUSED_TOKEN_2]"],
        minloglevel=3,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    from sentencepiece import SentencePieceProcessor

    size = SentencePieceProcessor(model_proto=model.getvalue()).get_piece_size()
    reserved = {3: "<|im_end|>", 4: "<|im_start|>"}
    added = {0: "<unk>", 1: "<s>", 2: "</s>"} | reserved | {size + number: token for number, token in enumerate(ADDED)}
    _write_tokenizer_config(folder, "InternLM2Tokenizer", added)
    return size + len(ADDED)


def write_llama_tokenizer(folder: Path, *, end: str) -> int:
    """The same pieces as InternLM2's, under the class and the added tokens of a llama's checkpoint; `end` ends a turn."""
    write_internlm2_tokenizer(folder, dummy_prefix=True)
    from sentencepiece import SentencePieceProcessor

    size = SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).get_piece_size()
    specials = (end, "<|im_start|>", "<|user|>", "<|assistant|>", "<|system|>", *ADDED)
    added = {0: "<unk>", 1: "<s>", 2: "</s>"} | {size + number: token for number, token in enumerate(specials)}
    _write_tokenizer_config(folder, "LlamaTokenizer", added)
    return size + len(specials)


def write_qwen2_tokenizer(folder: Path) -> int:
    """A byte-level BPE vocabulary with a few merges and Qwen2's special tokens, as vocab.json and merges.txt."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = sorted(bytes_to_unicode().values())
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("r", "e"), ("re", "d"), ("i", "s")]
    vocabulary = {token: index for index, token in enumerate([*letters, *(left + right for left, right in merges)])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
    specials = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *ADDED)
    added = {len(vocabulary) + number: token for number, token in enumerate(specials)}
    _write_tokenizer_config(folder, "Qwen2Tokenizer", added)
    (folder / "added_tokens.json").write_text(json.dumps({token: index for index, token in added.items()}))
    return len(vocabulary) + len(specials)


def _write_tokenizer_config(folder: Path, name: str, added: dict[int, str]) -> None:
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    config: dict[str, Any] = {
        "tokenizer_class": name,
        "added_tokens_decoder": {str(index): {"content": token, **flags} for index, token in added.items()},
        "model_max_length": 8192,
        "clean_up_tokenization_spaces": False,
    }
    if name == "LlamaTokenizer":
        config |= {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True, "legacy": False}
    elif name == "InternLM2Tokenizer":
        config |= {
            "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
            "bos_token": "<s>",
            "eos_token": "</s>",
        }
    else:
        config |= {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "add_prefix_space": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def write_checkpoint(
    folder: Path, config: dict[str, Any], *, shards: int = 1, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Write a whole folder and return its tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    config["llm_config"]["vocab_size"] = _write_tokenizer(folder, config["llm_config"]["architectures"][0])
    (folder / "config.json").write_text(json.dumps(config))
    weights = {key: tensor.to(dtype) for key, tensor in random_weights(config, seed).items()}
    write_shards(folder, weights, shards)
    return weights


def _write_tokenizer(folder: Path, language_model: str) -> int:
    match language_model:
        case "InternLM2ForCausalLM":
            return write_internlm2_tokenizer(folder)
        case "LlamaForCausalLM":
            return write_llama_tokenizer(folder, end="<|im_end|>")
        case "Phi3ForCausalLM":
            return write_llama_tokenizer(folder, end="<|end|>")
    return write_qwen2_tokenizer(folder)


def write_shards(folder: Path, weights: dict[str, Tensor], shards: int = 1) -> None:
    if shards == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = {key: f"model-{number % shards + 1:05d}-of-{shards:05d}.safetensors" for number, key in enumerate(weights)}
    for name in sorted(set(names.values())):
        save_file({key: weights[key] for key in weights if names[key] == name}, folder / name, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
