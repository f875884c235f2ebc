"""A real server on loopback: `transformers serve`, and a folder of the shipped micro model in the form that it can serve."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from benchmarks.micro.pretrain.recipe import BASE_DIR

ROOT = Path(__file__).resolve().parents[3]
TEMPLATE = (
    "<bos>{% for message in messages %}<user>{% set seen = namespace(frames=0) %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{% set seen.frames = seen.frames + 1 %}Frame{{ seen.frames }}: <img>\n"
    "{% elif loop.last %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}<assistant>"
)
"""The frames as the model was trained on them, then the prompt; the sentence before the frames is in no words that it knows."""
needs_transformers_serve = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("fastapi", "uvicorn", "openai")),
    reason="transformers serve needs more packages: pip install fastapi uvicorn openai (the extra `servers`)",
)


def micro_folder(folder: Path, *, samples: bool = False) -> Path:
    """The micro model with the files that transformers' own processor needs: a frame is one image of four tokens. `samples`: whether it
    draws its replies unless told otherwise."""
    shutil.copytree(BASE_DIR, folder)
    image = {"do_resize": True, "do_rescale": True, "do_normalize": True, "do_center_crop": False, "do_convert_rgb": True}
    raw = json.loads((BASE_DIR / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps({**raw, **image, "image_processor_type": "CLIPImageProcessor"}))
    processor = {"processor_class": "LlavaProcessor", "patch_size": 32, "vision_feature_select_strategy": "full", "image_token": "<img>"}
    (folder / "processor_config.json").write_text(json.dumps(processor))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer["extra_special_tokens"] = {**tokenizer["extra_special_tokens"], "image_token": "<img>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    generation = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**generation, "do_sample": samples}))
    return folder


@contextmanager
def transformers_serve(folder: Path, log: Path, *options: str) -> Iterator[str]:
    """`transformers serve FOLDER` on a free port of loopback, as a process of its own; yields its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cached = log.parent / "hf" / "hub" / "models--org--cached"  # it lists what is there, not what it serves
    for file, text in (("refs/main", "0" * 40), (f"snapshots/{'0' * 40}/config.json", '{"architectures": ["Qwen2ForCausalLM"]}')):
        (cached / file).parent.mkdir(parents=True, exist_ok=True)
        (cached / file).write_text(text)
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {
        **os.environ,
        "PYTHONPATH": path,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(log.parent / "hf"),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [
        sys.executable,
        "-m",
        "tests.savi.server.real",
        "serve",
        str(folder),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--device",
        "cpu",
    ]
    with (
        log.open("wb") as file,
        subprocess.Popen([*command, *options], stdout=file, stderr=file, stdin=subprocess.DEVNULL, env=env) as server,
    ):
        try:
            until = time.monotonic() + 240
            while not _healthy(port):
                assert server.poll() is None and time.monotonic() < until, log.read_text()[-3000:]
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()


def _healthy(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def main() -> None:
    """transformers' command line, also beside a torchvision whose compiled part does not load: pictures are decoded by PIL then."""
    from savi.base.torchvision import fix_torchvision

    if fix_torchvision():
        import torch
        import torchvision.io
        from PIL import Image

        def decode_image(data: torch.Tensor, **_: object) -> torch.Tensor:
            picture = Image.open(io.BytesIO(data.numpy().tobytes())).convert("RGB")
            return torch.from_numpy(np.array(picture)).permute(2, 0, 1)

        torchvision.io.decode_image = decode_image
    from transformers.cli.transformers import main as command

    command()


if __name__ == "__main__":
    main()
