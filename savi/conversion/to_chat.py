"""The way back: a native InternVL checkpoint in the layout of the `internvl_chat` checkpoint it was made from.

Tools that know the published layout alone can use an aligned model then. Weights are written under the base's names and in its files;
all else (config, tokenizer, code) is copied from the base as it is, and never run.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from savi.base.files import new_folder, write_json_atomic
from savi.base.lock import lock_file
from savi.base.stamp import CARD_FILE
from savi.cards.model_card import lineage, write_model_card
from savi.conversion.checkpoint import Progress, converted, opened, weight_files
from savi.conversion.config import ChatConfig, CheckpointError, TargetError, read_config, read_json
from savi.conversion.keys import restore_tensor

if TYPE_CHECKING:
    from torch import Tensor

_INDEX = "model.safetensors.index.json"


def convert_back(model_dir: str | Path, base_dir: str | Path, dst_dir: str | Path, *, progress: Progress | None = None) -> Path:
    """Write the native checkpoint `model_dir` in the layout of the `internvl_chat` folder `base_dir`, and return `dst_dir`, which appears
    whole or not at all.

    Raises:
        CheckpointError: one of the two is broken, or the model was not made from this base (a tensor or a token is missing or other).
        TargetError: `dst_dir` holds something.
    """
    model, base, target = Path(model_dir), Path(base_dir), Path(dst_dir)
    files, config, shards = _native_files(model), read_config(base), weight_files(base)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise TargetError(f"{target}: holds something already; name another folder")
    _check_code(base)
    with lock_file(target), ExitStack() as stack:
        natives = {file.name: stack.enter_context(_tensors(file)) for file in files}
        where = {key: tensors for tensors in natives.values() for key in tensors.keys()}  # noqa: SIM118 - no mapping
        _compare(model, base, config, shards, where)
        with new_folder(target) as part:
            written: dict[str, str] = {}
            for done, shard in enumerate(shards, start=1):
                name = shard.name if shard.suffix == ".safetensors" else f"{shard.stem.replace('pytorch_model', 'model')}.safetensors"
                written |= dict.fromkeys(_write_shard(shard, part / name, config, where), name)
                if progress is not None:
                    progress(f"{shard.name} -> {name}", done, len(shards))
            _copy_rest(base, part, written, total=sum(path.stat().st_size for path in part.glob("*.safetensors")))
            how = "Written in the layout of internvl_chat, with the code and tokenizer of its base,"
            write_model_card(part, f"{model.resolve().name}, internvl_chat", lineage(model), None, how=how)
    return target


def _check_code(base: Path) -> None:
    """Raises CheckpointError where a file of code that the base's config.json or tokenizer_config.json names is missing."""
    for file in ("config.json", "tokenizer_config.json"):
        named = read_json(base / file).get("auto_map") if (base / file).is_file() else None
        for value in named.values() if isinstance(named, dict) else ():
            for name in value if isinstance(value, list) else [value]:
                module = str(name).partition(".")[0]
                if name and "--" not in module and not (base / f"{module}.py").is_file():
                    raise CheckpointError(f"{base}: {file} names {module}.py, which is not there; download the whole repository")


def _native_files(model: Path) -> list[Path]:
    if read_json(model / "config.json").get("model_type") != "internvl":
        raise CheckpointError(f"{model / 'config.json'}: is no native InternVL checkpoint; only those have this way back")
    found = sorted(model.glob("*.safetensors"))
    if not found:
        raise CheckpointError(f"{model}: no *.safetensors files")
    return found


@contextmanager
def _tensors(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except SafetensorError as error:
        raise CheckpointError(f"{path}: broken or cut off; make it again ({error})") from error


def _compare(model: Path, base: Path, config: ChatConfig, shards: list[Path], where: dict[str, Any]) -> None:
    """Raises CheckpointError where the model's tensors, their shapes or its vocabulary are not those of the base."""
    from transformers import AutoTokenizer

    from savi.conversion.tokenizer import convert_tokenizer

    expected: dict[str, tuple[int, ...]] = {}
    for shard in shards:
        with opened(shard, meta=True) as tensors:
            for key, tensor in tensors:
                expected |= {name: tuple(part.shape) for name, part in converted(shard, key, tensor, config).items()}
    missing, more = sorted(expected.keys() - where.keys()), sorted(where.keys() - expected.keys())
    other = sorted(key for key in expected.keys() & where.keys() if tuple(where[key].get_slice(key).get_shape()) != expected[key])
    kinds = (("missing", missing), ("more than there", more), ("of another shape", other))
    if wrong := [f"{len(keys)} tensors are {what} (first: {keys[0]})" for what, keys in kinds if keys]:
        raise CheckpointError(f"{model}: was not made from {base}: {'; '.join(wrong)}")
    try:
        words = AutoTokenizer.from_pretrained(str(model), trust_remote_code=False, local_files_only=True).get_vocab()
    except Exception as error:  # the tokenizers library raises its own kinds for broken files
        raise CheckpointError(f"{model}: the tokenizer cannot be read ({str(error).splitlines()[0][:200]})") from error
    if words != convert_tokenizer(base, config).get_vocab():
        raise CheckpointError(f"{model}: was not made from {base}: its tokenizer has another vocabulary")


def _write_shard(shard: Path, target: Path, config: ChatConfig, where: dict[str, Any]) -> list[str]:
    """Write the model's weights under the names of one of the base's files, and return them."""
    from safetensors.torch import save_file

    made: dict[str, Tensor] = {}
    with opened(shard, meta=False) as tensors:
        for key, tensor in tensors:
            names = converted(shard, key, tensor.to("meta"), config)
            native = [where[name].get_tensor(name) for name in names]
            made[key] = (restore_tensor(key, native, heads=config.heads) if native else tensor).contiguous()
    save_file(made, target, metadata=_metadata(shard))
    return list(made)


def _metadata(shard: Path) -> dict[str, str]:
    from safetensors import safe_open

    if shard.suffix != ".safetensors":
        return {"format": "pt"}
    with safe_open(shard, framework="pt") as file:
        return dict(file.metadata() or {"format": "pt"})


def _copy_rest(base: Path, part: Path, written: dict[str, str], *, total: int) -> None:
    """Copy what is no weights; a base of .bin files gets an index of the new ones."""
    for path in sorted(base.iterdir()):
        weights = path.suffix in (".safetensors", ".bin") or path.name.endswith(".bin.index.json")
        if path.is_file() and not weights and not path.name.startswith(".") and path.name != CARD_FILE and not path.name.endswith(".lock"):
            shutil.copyfile(path, part / path.name)
    if len(set(written.values())) > 1 and not (part / _INDEX).exists():
        write_json_atomic(part / _INDEX, {"metadata": {"total_size": total}, "weight_map": written})
