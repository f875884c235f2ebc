"""Damaged checkpoints: each is loaded, or refused in one line with an exit code; nothing else, and never without end."""

from __future__ import annotations

import random
import resource
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from savi.base.errors import ExitCode, SaviError
from savi.conversion.checkpoint import convert
from savi.engine.video_lm import VideoLM
from tests.savi.fuzz.damage import Damage, damage_bytes, damage_either, damage_template
from tests.savi.internvl_chat import internlm2_config, write_checkpoint
from tests.savi.tiny import tiny_checkpoint, tiny_frames

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(3000)]

INPUTS = 500
SECONDS = 40
"""Of one input: far above what a sound one takes, and above the template's own limit."""
MEMORY = 12 << 30


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_checkpoint(tmp_path_factory.mktemp("native") / "model")
    (folder / "special_tokens_map.json").write_text('{"bos_token": "<bos>", "eos_token": "<eos>"}')
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "model"
    write_checkpoint(folder, internlm2_config(), shards=2)
    (folder / "conversation.py").write_text(
        "Conversation(name='internvl2_5', system_template='<|im_start|>system\\n{system_message}', system_message='x',\n"
        "    roles=('<|im_start|>user\\n', '<|im_start|>assistant\\n'), sep_style=SeparatorStyle.MPT, sep='<|im_end|>\\n')\n"
    )
    return folder


@pytest.fixture
def _bounded() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def outcomes(whole: Path, work: Path, name: str, damage: Damage, use: Callable[[Path], Any]) -> dict[str, int]:
    """How many of the damaged inputs were used, and refused; anything else fails with its seeds."""
    counts, wrong = {"used": 0, "refused": 0}, []

    def late(*_: object) -> None:
        raise TimeoutError(f"over {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    try:
        for seed in range(INPUTS):
            folder = work / f"{seed}"
            shutil.copytree(whole, folder)
            (folder / name).write_bytes(damage((whole / name).read_bytes(), random.Random(f"{name}/{seed}")))
            signal.alarm(SECONDS)
            try:
                use(folder)
                counts["used"] += 1
            except SaviError as error:
                counts["refused"] += 1
                text = str(error)
                if "\n" in text or not text or error.exit_code not in (ExitCode.BROKEN, ExitCode.USAGE):
                    wrong.append(f"{name}/{seed}: {int(error.exit_code)} {text[:300]!r}")
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                place = traceback.extract_tb(error.__traceback__)
                ours = [f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in place if "/savi/" in frame.filename]
                wrong.append(f"{name}/{seed}: {type(error).__name__} {str(error)[:150]!r} {ours[-2:]}")
            finally:
                signal.alarm(0)
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not wrong, f"{len(wrong)} of {INPUTS}: " + "\n".join(wrong[:40])
    print(f"{name}: {counts}")
    return counts


def ask(folder: Path) -> None:
    lm = VideoLM.from_pretrained(folder, device="cpu")
    lm.watch(tiny_frames(0, 2)).ask("what is red", max_new_tokens=2)


NATIVE: dict[str, Damage] = {
    "config.json": damage_either,
    "generation_config.json": damage_either,
    "preprocessor_config.json": damage_either,
    "tokenizer.json": damage_either,
    "tokenizer_config.json": damage_either,
    "special_tokens_map.json": damage_either,
    "chat_template.jinja": damage_template,
    "model.safetensors": damage_bytes,
}
PUBLISHED: dict[str, Damage] = {
    "config.json": damage_either,
    "tokenizer_config.json": damage_either,
    "tokenizer.model": damage_bytes,
    "conversation.py": damage_bytes,
    "model.safetensors.index.json": damage_either,
    "model-00001-of-00002.safetensors": damage_bytes,
}


@pytest.mark.usefixtures("_bounded")
@pytest.mark.parametrize("name", NATIVE)
def test_native_checkpoints(native: Path, tmp_path: Path, name: str) -> None:
    counts = outcomes(native, tmp_path, name, NATIVE[name], ask)
    assert counts["refused"] > INPUTS // 50, "the damage must be felt"


@pytest.mark.usefixtures("_bounded")
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_checkpoints(published: Path, tmp_path: Path, name: str) -> None:
    counts = outcomes(published, tmp_path, name, PUBLISHED[name], lambda folder: convert(folder, folder / "native"))
    assert counts["refused"] > INPUTS // 50, "the damage must be felt"
