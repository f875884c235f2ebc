"""A checkpoint of real size is converted in the private memory of less than one shard.

Its weight files are sparse: headers with the real shapes and nothing but holes behind them, so that they cost no room. What is written is
not sparse: 2 GB, or 16 GB with `WHOLE_8B=1`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.savi.internvl_chat import internlm2_config, weights_of, write_internlm2_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="private memory is read from /proc")]
VISION = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 448,
    "patch_size": 14,
}
PART_2B = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 4, "num_attention_heads": 16, "num_key_value_heads": 8}
WHOLE_8B = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}
CONVERT = """
import sys, threading, time
from pathlib import Path

import transformers  # what it needs itself is not the conversion's

from savi.conversion.checkpoint import convert

def private():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))

before, most, done = private(), 0, threading.Event()
def watch():
    global most
    while not done.wait(0.005):
        most = max(most, private())
thread = threading.Thread(target=watch)
thread.start()
convert(sys.argv[1], sys.argv[2])
done.set(); thread.join()
print("private kB:", most - before)
"""


def write_sparse(path: Path, tensors: dict[str, Tensor]) -> int:
    """A safetensors file of bfloat16 zeros that are holes; returns its size in bytes."""
    header, end = {}, 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [end, end := end + 2 * tensor.numel()]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path.stat().st_size


def test_private_memory_stays_under_one_shard(tmp_path: Path) -> None:
    whole = os.environ.get("WHOLE_8B") == "1"
    source, target = tmp_path / "chat", tmp_path / "native"
    source.mkdir()
    config = internlm2_config(vocab_size=92553, max_position_embeddings=32768, **(WHOLE_8B if whole else PART_2B))
    config["vision_config"] |= VISION
    config["force_image_size"] = 448
    assert write_internlm2_tokenizer(source) <= 92553
    (source / "config.json").write_text(json.dumps(config))
    tensors = weights_of(config, lambda *shape: torch.empty(*shape, dtype=torch.bfloat16, device="meta"))
    shards = 4
    total = sum(tensor.numel() for tensor in tensors.values())
    split: list[dict[str, Tensor]] = [{} for _ in range(shards)]
    seen = 0
    for name, tensor in tensors.items():
        split[min(seen * shards // total, shards - 1)][name] = tensor
        seen += tensor.numel()
    names = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    sizes = [write_sparse(source / name, part) for name, part in zip(names, split, strict=True)]
    where = {key: name for name, part in zip(names, split, strict=True) for key in part}
    (source / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    run = subprocess.run([sys.executable, "-c", CONVERT, str(source), str(target)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    found = re.search(r"private kB: (\d+)", run.stdout)
    assert found
    private = 1024 * int(found[1])
    print(
        f"{total / 1e9:.2f} billion parameters, shards of {', '.join(f'{s / 1e9:.2f}' for s in sizes)} GB: {private / 1e9:.2f} GB private"
    )
    assert private < max(sizes)
    assert sum(path.stat().st_size for path in target.glob("*.safetensors")) > 2 * total
