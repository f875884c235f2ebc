"""`internvl_chat` checkpoints (InternVL 2.5 and what is trained from it, VideoSAVi's own weights too) made native, offline.

They are published with code of their own, which is never run and no longer works on transformers 5. The weights are the same numbers
under other names, so they are rewritten shard by shard into `InternVLForConditionalGeneration`: strictly (no tensor missing, none left
over, every shape checked before the first is written), in the memory of one shard, atomically, and resumable.

    python -m savi convert SRC DST
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from savi.base.digest_memory import remembered_sha256
from savi.base.digests import sha256_file, sha256_json
from savi.base.errors import one_line
from savi.base.files import replace_folder, write_json_atomic
from savi.base.hub import is_internvl_chat
from savi.base.lock import lock_file
from savi.base.stamp import Stamp, files_below, read_stamp
from savi.cards.model_card import lineage, write_model_card
from savi.conversion.config import ChatConfig, CheckpointError, NoRoomError, TargetError, native_config, read_config, read_json
from savi.conversion.keys import UnknownKey, convert_tensor, head_key

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CheckpointError", "NoRoomError", "TargetError", "convert", "inputs_of", "is_internvl_chat", "weights_fingerprint"]

STAMP_FILE = "conversion.json"
_IMAGENET_MEAN, _IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
_SINGLE = ("model.safetensors", "pytorch_model.bin")
_ABOUT_WEIGHTS = ("config.json", "generation_config.json", "preprocessor_config.json", "added_tokens.json", "special_tokens_map.json")
_ABOUT_TEXT = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt", "chat_template.jinja")

Progress = Callable[[str, int, int], None]
"""Called with what has just been done, how many steps are done, and of how many."""


def convert(src_dir: str | Path, dst_dir: str | Path, *, progress: Progress | None = None) -> Path:
    """Convert an `internvl_chat` folder into a native checkpoint folder, and return that.

    Killed and started again, it goes on with the shard it was at; a folder already converted from the same files is returned at once.
    `dst_dir` appears whole or not at all.

    Raises:
        CheckpointError: the source is incomplete, broken or not supported, the disk too small, or `dst_dir` holds something else.
    """
    source, target = Path(src_dir), Path(dst_dir)
    if not source.is_dir():
        raise CheckpointError(f"{source}: no such checkpoint folder")
    config = read_config(source)
    shards = weight_files(source)
    with lock_file(target):
        return _convert(source, target, config, shards, progress)


def inputs_of(source: Path) -> dict[str, Any]:
    """What a conversion of this folder depends on, as its stamp has it.

    Raises:
        CheckpointError: weight files are missing.
    """
    return _inputs(source, weight_files(source))


def _convert(source: Path, target: Path, config: ChatConfig, shards: list[Path], progress: Progress | None) -> Path:
    inputs = _inputs(source, shards)
    if _finished(target, inputs):
        return target
    plan = _plan(source, config, shards)
    part = target.parent / f".{target.name}.converting"
    _prepare_part(part, inputs, {shard.target for shard in plan.shards}, needed=sum(shard.stat().st_size for shard in shards))
    steps = len(shards) + 1
    for done, shard in enumerate(plan.shards, start=1):
        _convert_shard(source, config, shard, part)
        _tell(progress, f"{shard.source} -> {shard.target}", done, steps)
    _write_rest(part, plan)
    how = "Converted to transformers' own classes, every tensor renamed and none changed,"
    write_model_card(part, f"{source.name}, native", lineage(source), None, how=how)
    made = [path for path in files_below(part) if path.name != STAMP_FILE]
    Stamp.of(inputs, part, made, {}, remembered_sha256).write(part / STAMP_FILE)
    if target.exists():
        target.rmdir()  # empty, or _finished would have refused it
    replace_folder(part, target)
    _tell(progress, f"tokenizer and config -> {target}", steps, steps)
    return target


def _tell(progress: Progress | None, what: str, done: int, steps: int) -> None:
    if progress is not None:
        progress(what, done, steps)


@dataclass(frozen=True)
class _Shard:
    source: str
    target: str
    keys: tuple[str, ...]
    """Native keys, in the order of the source's."""


@dataclass(frozen=True)
class _Plan:
    shards: tuple[_Shard, ...]
    total_bytes: int
    native: Any
    """InternVLConfig."""
    tokenizer: Any


def weight_files(source: Path) -> list[Path]:
    """The weight files, by the index if there is one.

    Raises:
        CheckpointError: none, or one that the index names is missing.
    """
    for single in _SINGLE:
        index = source / f"{single}.index.json"
        if index.is_file():
            names = read_json(index).get("weight_map")
            if not isinstance(names, dict) or not names:
                raise CheckpointError(f"{index}: has no weight_map; download it again")
            if odd := [name for name in names.values() if not isinstance(name, str) or not 0 < len(name) < 200 or Path(name).name != name]:
                raise CheckpointError(f"{index}: weight_map names {str(odd[0])[:80]!r}, which is no file of this folder; download it again")
            shards = [source / name for name in sorted({str(name) for name in names.values()})]
            missing = [shard.name for shard in shards if not shard.is_file()]
            if missing:
                more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
                raise CheckpointError(f"{source}: {missing[0]}{more} of {len(shards)} weight files missing; download them again")
            return shards
        if (source / single).is_file():
            return [source / single]
    raise CheckpointError(f"{source}: no weights (looked for {', '.join(_SINGLE)} and their .index.json)")


def _inputs(source: Path, shards: list[Path]) -> dict[str, Any]:
    """What the conversion depends on: the digests of weights, configs and tokenizer."""
    small = [source / name for name in (*_ABOUT_WEIGHTS, *_ABOUT_TEXT, "conversation.py")]
    return {path.name: remembered_sha256(path) for path in (*shards, *small) if path.is_file()}


def _finished(target: Path, inputs: dict[str, Any]) -> bool:
    if not target.exists():
        return False
    if not target.is_dir():
        raise TargetError(f"{target}: is a file; name a folder to write to")
    if not any(target.iterdir()):
        return False
    stamp = read_stamp(target / STAMP_FILE)
    if stamp is None or not stamp.done or stamp.differing(inputs):
        raise TargetError(f"{target}: holds something else than this conversion; name another folder or delete it")
    if changed := stamp.changed(target, remembered_sha256):
        raise TargetError(f"{target / changed[0]}: is missing or was changed after the conversion; name another folder or delete this one")
    return True


def _prepare_part(part: Path, inputs: dict[str, Any], finished: set[str], *, needed: int) -> None:
    """Make the folder to work in. Of one that is there, `finished` shards are kept; whatever else is in it, a kill left half-written."""
    begun = read_stamp(part / STAMP_FILE)
    if part.exists() and (begun is None or begun.differing(inputs)):
        shutil.rmtree(part)  # begun from other files
    part.mkdir(parents=True, exist_ok=True)
    for path in part.iterdir():
        if path.name not in {*finished, STAMP_FILE}:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    present = sum(path.stat().st_size for path in part.glob("*.safetensors"))
    free = shutil.disk_usage(part).free
    if needed - present > free:
        raise NoRoomError(f"{part.parent}: {(needed - present) / 1e9:.1f} GB needed and {free / 1e9:.1f} GB free")
    Stamp(inputs).write(part / STAMP_FILE)


def _plan(source: Path, config: ChatConfig, shards: list[Path]) -> _Plan:
    """Read headers only, apply the rules to shapes, and compare with the native model's: every error about keys comes here."""
    from savi.conversion.tokenizer import CONTEXT_TOKEN, convert_tokenizer

    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = ["model.safetensors"]
    shapes: dict[str, tuple[int, ...]] = {}
    planned: list[_Shard] = []
    total = 0
    source_keys: set[str] = set()
    for shard, name in zip(shards, names, strict=True):
        with opened(shard, meta=True) as tensors:
            keys: list[str] = []
            for key, tensor in tensors:
                if key in source_keys:
                    raise CheckpointError(f"{shard}: tensor {key} is in two files")
                source_keys.add(key)
                for native_key, native_tensor in converted(shard, key, tensor, config).items():
                    shapes[native_key] = tuple(native_tensor.shape)
                    total += native_tensor.numel() * native_tensor.element_size()
                    keys.append(native_key)
        planned.append(_Shard(shard.name, name, tuple(keys)))
    tokenizer = convert_tokenizer(source, config)
    tied = config.llm_config.tie_word_embeddings and head_key(config.language_model) not in source_keys
    layers = config.llm_config.num_hidden_layers + config.vision_config.num_hidden_layers
    if layers > len(shapes):
        raise CheckpointError(f"{source}: config.json says {layers:,} layers, the weight files have {len(shapes):,} tensors")
    try:
        native = native_config(config, image_token_id=int(tokenizer.convert_tokens_to_ids(CONTEXT_TOKEN)), tied=tied)
        expected = _expected_shapes(native, tied)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{source / 'config.json'}: no model can be made from it ({one_line(error)[:300]})") from error
    _compare(source, shapes, expected)
    return _Plan(tuple(planned), total, native, tokenizer)


def converted(shard: Path, key: str, tensor: Tensor, config: ChatConfig) -> dict[str, Tensor]:
    """The native tensors that a tensor of the shard becomes.

    Raises:
        CheckpointError: there is no rule for it, or it does not fit the config.
    """
    try:
        return convert_tensor(key, tensor, language_model=config.language_model, heads=config.heads)
    except UnknownKey as error:
        hint = ": merge the LoRA adapters into the weights first" if "lora_" in key or "base_layer" in key else ""
        raise CheckpointError(f"{shard}: no rule for tensor {key}{hint}") from error
    except RuntimeError as error:
        raise CheckpointError(f"{shard}: tensor {key} of shape {tuple(tensor.shape)} does not fit config.json's heads ({error})") from error


def _expected_shapes(native: Any, tied: bool) -> dict[str, tuple[int, ...]]:
    import torch
    from transformers import InternVLForConditionalGeneration

    with torch.device("meta"):
        model = InternVLForConditionalGeneration(native)
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    if tied:
        shapes.pop("lm_head.weight", None)
    return shapes


def _compare(source: Path, found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]) -> None:
    missing, unexpected = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    wrong = sorted(key for key in found.keys() & expected.keys() if found[key] != expected[key])
    problems = [f"{len(keys)} {what} (first: {keys[0]})" for what, keys in (("missing", missing), ("unexpected", unexpected)) if keys]
    if wrong:
        problems.append(f"{len(wrong)} of another shape (first: {wrong[0]} is {found[wrong[0]]}, config.json says {expected[wrong[0]]})")
    if problems:
        raise CheckpointError(f"{source}: the weights do not fit config.json: tensors {'; '.join(problems)}")


@contextmanager
def opened(shard: Path, *, meta: bool) -> Iterator[Iterator[tuple[str, Tensor]]]:
    """The tensors of a weight file one by one; with `meta`, their shapes and types only."""
    from pickle import UnpicklingError

    import torch
    from safetensors import SafetensorError, safe_open

    try:
        if shard.suffix == ".safetensors":
            with safe_open(shard, framework="pt", device="cpu") as file:
                yield ((key, _meta(file.get_slice(key)) if meta else file.get_tensor(key)) for key in file.keys())  # noqa: SIM118 - no mapping
        else:
            loaded = torch.load(shard, map_location="meta" if meta else "cpu", weights_only=True, mmap=not meta)
            yield iter(loaded.items())
    except (SafetensorError, OSError, EOFError, RuntimeError, UnpicklingError) as error:
        size = shard.stat().st_size
        pointer = size < 1000 and shard.read_bytes().startswith(b"version https://git-lfs")
        kind = "a Git LFS pointer, not the file itself" if pointer else f"broken or cut off at {size} bytes"
        raise CheckpointError(f"{shard}: {kind}; download it again ({error})") from error


def _meta(piece: Any) -> Tensor:
    """A tensor without data, of the shape and type that a safetensors header gives."""
    import torch

    types = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    name = piece.get_dtype()
    if name not in types:
        raise CheckpointError(
            f"weights of type {name} are not supported (supported: {', '.join(types)}); load a checkpoint that is not quantized"
        )
    return torch.empty(piece.get_shape(), dtype=types[name], device="meta")


def _convert_shard(source: Path, config: ChatConfig, shard: _Shard, part: Path) -> None:
    from safetensors.torch import save_file

    path = part / shard.target
    if path.exists():  # named only when whole
        return
    native: dict[str, Tensor] = {}
    with opened(source / shard.source, meta=False) as tensors:
        for key, tensor in tensors:
            native |= converted(source / shard.source, key, tensor, config)
    if tuple(native) != shard.keys:
        raise CheckpointError(f"{source / shard.source}: changed while it was converted; run the same command again")
    before = set(part.iterdir())
    temporary = part / f".{shard.target}.part"
    try:
        save_file({key: tensor.contiguous() for key, tensor in native.items()}, temporary, metadata={"format": "pt"})
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:  # stopped by a signal, or no room: safetensors leaves a temporary file of its own
        for left in set(part.iterdir()) - before:
            left.unlink(missing_ok=True)
        raise


def _write_rest(part: Path, plan: _Plan) -> None:
    """Index, config, tokenizer and preprocessor settings; the weights are all there by now."""
    from transformers import GenerationConfig

    dtype = _stored_type(part / plan.shards[0].target)
    plan.native.dtype = plan.native.text_config.dtype = plan.native.vision_config.dtype = dtype
    plan.native.save_pretrained(part)
    tokenizer, text = plan.tokenizer, plan.native.text_config
    GenerationConfig(
        bos_token_id=text.bos_token_id, eos_token_id=[tokenizer.eos_token_id], pad_token_id=tokenizer.pad_token_id, do_sample=False
    ).save_pretrained(part)
    tokenizer.save_pretrained(part)
    write_json_atomic(part / "preprocessor_config.json", _preprocessor(plan.native.vision_config.image_size))
    processor = {"processor_class": "InternVLProcessor", "image_seq_length": plan.native.image_seq_length}
    write_json_atomic(part / "processor_config.json", processor)
    if len(plan.shards) > 1:
        where = {key: shard.target for shard in plan.shards for key in shard.keys}
        write_json_atomic(part / "model.safetensors.index.json", {"metadata": {"total_size": plan.total_bytes}, "weight_map": where})


def _stored_type(path: Path) -> Any:
    with opened(path, meta=True) as tensors:
        return next(tensor.dtype for _, tensor in tensors)


def _preprocessor(size: list[int]) -> dict[str, Any]:
    """One tile a frame, PIL bicubic, ImageNet's mean and std: the original's `build_transform`, which ignores its own config file."""
    return {
        "image_processor_type": "GotOcr2ImageProcessor",
        "processor_class": "InternVLProcessor",
        "crop_to_patches": False,
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": size[0], "width": size[1]},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": _IMAGENET_MEAN,
        "image_std": _IMAGENET_STD,
    }


def weights_fingerprint(folder: str | Path) -> str:
    """One hash of what a checkpoint computes: its weights, configs and tokenizer, whatever the folder is called.

    The version of transformers that wrote config.json, and the path it was loaded from, are left out of it.

    Raises:
        CheckpointError: no weights there.
    """
    root = Path(folder)
    weights = sorted(root.glob("*.safetensors"))
    if not weights:
        raise CheckpointError(f"{root}: no *.safetensors files to take a fingerprint of")
    parts = {path.name: remembered_sha256(path) for path in weights}
    for path in (root / name for name in (*_ABOUT_WEIGHTS, *_ABOUT_TEXT)):
        if not path.is_file():
            continue
        if path.name in ("config.json", "generation_config.json"):
            parts[path.name] = sha256_json(_without(read_json(path), {"transformers_version", "_name_or_path"}))
        else:
            parts[path.name] = sha256_file(path)
    return sha256_json(parts)


def _without(value: Any, names: set[str]) -> Any:
    if isinstance(value, dict):
        return {key: _without(inner, names) for key, inner in value.items() if key not in names}
    return [_without(inner, names) for inner in value] if isinstance(value, list) else value
