"""A checkpoint folder: finding it, checking it, reading its settings files, and writing a plain one.

Only native classes and formats; a name that is no folder may be an entry of the hub's cache. The module knows files and tensors, nothing
of videos or prompts.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from savi.base.files import follow_umask
from savi.base.torchvision import fix_torchvision
from savi.engine.reading import ModelError, check_numbers, check_template, check_weight_files, read_object, reading
from savi.families import Preprocessing, family_class

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PROCESSOR = "processor_config.json"
_SMALL = 100_000_000
"""Below this many parameters a float16 checkpoint is computed in float32 on any device: float16 was chosen for its file size."""


def load_native_model(folder: Path, *, device: str, dtype: str, attn_implementation: str | None) -> tuple[PreTrainedModel, torch.dtype]:
    """A checkpoint's model, with native classes, on its device, and the dtype its weights are stored in.

    Raises:
        ModelError: a broken checkpoint, keys missing or left over.
        UnsupportedFamily: a model type without a family.
    """
    fix_torchvision()
    from transformers import AutoModelForImageTextToText

    name = str(folder)
    raw = read_object(folder, "config.json")
    family_class(str(raw.get("model_type")), where=name)
    read_object(folder, "generation_config.json")
    check_numbers(folder, raw)
    check_weight_files(folder, raw)
    target = _own_device() if device == "auto" else torch.device(device)
    keywords: dict[str, Any] = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    with _quiet(folder), reading(folder, "weights and config.json"):
        model, report = AutoModelForImageTextToText.from_pretrained(
            name, dtype="auto", output_loading_info=True, trust_remote_code=False, local_files_only=True, **keywords
        )
    wrong = {key: sorted(map(str, report.get(key) or ())) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    if any(wrong.values()):
        raise ModelError(f"{name}: " + "; ".join(f"{len(v)} {k.replace('_', ' ')}, e.g. {v[0]}" for k, v in wrong.items() if v))
    stored = model.dtype
    model = model.to(device=target, dtype=_compute_dtype(stored, dtype, target, sum(p.numel() for p in model.parameters())))
    _check_weights(model, name)
    return model, stored


def _check_weights(model: PreTrainedModel, name: str) -> None:
    """Refuse weights that a training that diverged, or a power loss, leaves; one pass over them.

    Raises:
        ModelError: a weight is not finite, or a layer or the token embeddings are all zero.
    """
    weights = {key: weight for key, weight in model.named_parameters() if weight.numel()}
    largest = torch.stack([norm.float() for norm in torch._foreach_norm(list(weights.values()), float("inf"))]).tolist()
    bad = [key for key, value in zip(weights, largest, strict=True) if not math.isfinite(value)]
    if bad:
        raise ModelError(f"{name}: {len(bad)} of {len(weights)} tensors hold no finite number everywhere, e.g. {bad[0]}; make it again")
    kinds = torch.nn.Linear | torch.nn.Conv2d | torch.nn.Conv3d
    layers = {id(part.weight) for part in model.modules() if isinstance(part, kinds)} | {id(model.get_input_embeddings().weight)}
    bad = [key for key, value in zip(weights, largest, strict=True) if value == 0 and id(weights[key]) in layers]
    if bad:
        raise ModelError(f"{name}: {len(bad)} layers are all zero, e.g. {bad[0]}; make it again")


def _own_device() -> torch.device:
    """CUDA where there is one; under torchrun, each process its own."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    return torch.device("cuda", rank) if 0 < rank < torch.cuda.device_count() else torch.device("cuda")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """A checkpoint's tokenizer with its chat template.

    Raises:
        ModelError: a file of it is broken, or the template is endless.
    """
    from transformers import AutoTokenizer

    for name in ("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json"):
        read_object(folder, name)
    with reading(folder, "the tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    if not tokenizer.chat_template:  # some checkpoints keep the template of the processor in a file of its own
        tokenizer.chat_template = read_object(folder, "chat_template.json").get("chat_template")
    if isinstance(tokenizer.chat_template, str):
        check_template(tokenizer.chat_template, str(folder))
    return tokenizer


@contextmanager
def _quiet(checkpoint: Path | None) -> Iterator[None]:
    """No progress bar for what is done in a second: saving, and loading a small checkpoint."""
    from transformers.utils import logging

    small = checkpoint is None or (checkpoint.is_dir() and sum(f.stat().st_size for f in checkpoint.glob("*.safetensors")) < 200_000_000)
    silenced = small and logging.is_progress_bar_enabled()
    if silenced:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if silenced:
            logging.enable_progress_bar()


def _compute_dtype(stored: torch.dtype, asked: str, device: torch.device, parameters: int) -> torch.dtype:
    if asked != "auto":
        named = getattr(torch, asked, None)
        if not isinstance(named, torch.dtype):
            raise ModelError(f"dtype {asked!r} is none of torch's; use auto, float32, bfloat16 or float16")
        return named
    if stored == torch.float16 and (device.type == "cpu" or parameters < _SMALL):
        return torch.float32
    return stored


def read_preprocessing(folder: Path) -> Preprocessing:
    """How a checkpoint's frames are prepared.

    Raises:
        ModelError: a file of it is broken.
    """
    nested = read_object(folder, "processor_config.json")
    image = read_object(folder, "preprocessor_config.json") or nested.get("image_processor") or {}
    video = read_object(folder, "video_preprocessor_config.json") or nested.get("video_processor") or {}
    with reading(folder, "preprocessor_config.json"):
        return Preprocessing.from_json(image, video)


def write_folder(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    preprocessing: Preprocessing,
    *,
    store_dtype: torch.dtype | None = None,
    state: Mapping[str, Tensor] | None = None,
    source: Path | None = None,
) -> None:
    """Write a plain checkpoint: weights, tokenizer, preprocessor settings.

    `store_dtype`: what the weights are stored in, None for the dtype in memory. `state`: the weights themselves, whole, where the model
    holds only its shards of them; None takes the model's. `source`: the folder it came from, whose settings of transformers' own processor
    are kept as they are, so that `AutoProcessor` opens this folder where it opens that one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _quiet(None):
        if store_dtype is None or store_dtype == model.dtype:
            model.save_pretrained(folder, state_dict=state)
        else:
            whole = model.state_dict() if state is None else state
            stored = {k: v.to(store_dtype) if v.is_floating_point() else v for k, v in whole.items()}
            model.save_pretrained(folder, state_dict=stored)
            _rewrite_dtype(folder / "config.json", str(store_dtype).removeprefix("torch."))
    tokenizer.save_pretrained(folder)
    settings = {"preprocessor_config.json": preprocessing.raw, "video_preprocessor_config.json": preprocessing.video_raw}
    for file, raw in settings.items():
        if raw:
            (folder / file).write_text(json.dumps(dict(raw), indent=2, sort_keys=True) + "\n")
    if source is not None and (source / _PROCESSOR).is_file() and not (folder / _PROCESSOR).exists():
        shutil.copyfile(source / _PROCESSOR, folder / _PROCESSOR)
    follow_umask(folder)


def _rewrite_dtype(config: Path, dtype: str) -> None:
    """config.json names the dtype in memory; the weights beside it were written in another."""
    content = json.loads(config.read_text())
    for part in (content, *(value for value in content.values() if isinstance(value, dict))):
        for key in ("dtype", "torch_dtype"):
            if key in part:
                part[key] = dtype
    content["dtype"] = dtype
    config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def hash_in_memory(model: Any, tokenizer: Any) -> str:
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key} {value.dtype} {list(value.shape)}\x00".encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    digest.update(model.config.to_json_string(use_diff=False).encode())
    digest.update(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode())
    return digest.hexdigest()
