"""Reading the files of a checkpoint so that whatever is wrong with them is one line: the file, what is wrong, and the fix.

The libraries that parse them (transformers, tokenizers, safetensors, jinja2) raise errors of a hundred kinds on damaged input, some of
them not even Exceptions. The module knows files, no models.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from savi.base.errors import ExitCode, SaviError
from savi.engine.memory import is_out_of_memory

TEMPLATE_SECONDS = 10.0
MOST_TEMPLATE_CHARACTERS = 1_000_000
_LARGEST = 1e30
_COUNTS = ("num_hidden_layers", "num_layers", "depth", "num_attention_heads", "num_heads", "num_key_value_heads", "head_dim")
_SIZES = ("hidden_size", "intermediate_size", "vocab_size", "embed_dim", "out_hidden_size", "num_position_embeddings")


class ModelError(SaviError, ValueError):
    """A checkpoint that cannot be used: names the place, what is wrong, and the fix."""

    exit_code = ExitCode.BROKEN


@contextmanager
def reading(place: Path, what: str) -> Iterator[None]:
    """Whatever a library raises on a broken file becomes a `ModelError`; a machine that is out of memory, or a bug of ours, does not."""
    try:
        yield
    except (SaviError, ImportError):
        raise
    except BaseException as error:
        panic = type(error).__name__ == "PanicException"  # how Rust code gives up; derived from BaseException
        if is_out_of_memory(error) or not (panic or isinstance(error, Exception)):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise ModelError(f"{place}: {what} cannot be read ({lines[0][:300]}); download it again, or make it again") from error


def read_object(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object of a checkpoint folder; empty where there is no such file.

    Raises:
        ModelError: it is there and is no JSON object.
    """
    path = folder / name
    if not path.is_file():
        return {}
    with reading(path, "JSON"):
        value = json.loads(path.read_bytes().decode("utf-8"))
    if not isinstance(value, dict):
        raise ModelError(f"{path}: holds a JSON {type(value).__name__}, not an object; download it again")
    return value


def check_numbers(folder: Path, config: Mapping[str, Any], inside: str = "") -> None:
    """Numbers of a config that no model can be computed with, and weights stored in a way that needs another library.

    Raises:
        ModelError: names the number, or the kind of the weights.
    """
    for key, value in config.items():
        name = f"{inside}{key}"
        if key == "quantization_config" and isinstance(value, Mapping):
            kind = value.get("quant_method", "unknown kind")
            raise ModelError(
                f"{folder}: its weights are quantized ({kind}), which is not supported; take the checkpoint they were made from"
            )
        if isinstance(value, Mapping):
            check_numbers(folder, value, f"{name}.")
        elif isinstance(value, float | int) and not isinstance(value, bool):
            least = 0 if key.endswith("_eps") else -_LARGEST
            if not least <= value <= _LARGEST or (key == "rope_theta" and value <= 0):
                raise ModelError(f"{folder / 'config.json'}: {name} is {value}, which no model can be computed with; download it again")


def check_weight_files(folder: Path, config: Mapping[str, Any]) -> None:
    """Look at the headers of the weights: whole files, and a config that does not describe a model of another size.

    Raises:
        ModelError: a file is cut off, is none, or config.json names a size that no tensor has.
    """
    from safetensors import safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{folder}: no *.safetensors files; download the weights, or convert them by `python -m savi convert`")
    tensors, largest = 0, 0
    for path in files:
        size = path.stat().st_size
        if size < 1000 and path.read_bytes().startswith(b"version https://git-lfs"):
            raise ModelError(f"{path}: a Git LFS pointer, not the file itself; download it again")
        with reading(path, f"{size:,} bytes of weights"), safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - no mapping
                tensors += 1
                largest = max(largest, *file.get_slice(key).get_shape(), 0)
    for part, values in (("", config), *((f"{k}.", v) for k, v in config.items() if isinstance(v, Mapping))):
        for name in (*_COUNTS, *_SIZES):
            value, most = values.get(name), max(tensors, largest)
            if isinstance(value, int | float) and not 0 <= value <= most:
                raise ModelError(f"{folder / 'config.json'}: {part}{name} is {value}, but the weights have no such size; download it again")


@cache
def check_template(template: str, place: str) -> None:
    """Render a chat template of unknown origin in a process of its own, with limits on time, memory and length.

    Raises:
        ModelError: it exceeds them. (What else can be wrong with it, its first use says.)
    """
    script = Path(__file__).with_name("template_probe.py")
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(script)],
            input=template.encode("utf-8", "surrogatepass"),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=TEMPLATE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            f"{place}: the chat template takes over {TEMPLATE_SECONDS:.0f} s for one question; put another in its place"
        ) from error
    if done.returncode not in (0, 1) or int(done.stdout or 0) > MOST_TEMPLATE_CHARACTERS:
        raise ModelError(f"{place}: the chat template writes without end, or fills the memory; put another in its place")
