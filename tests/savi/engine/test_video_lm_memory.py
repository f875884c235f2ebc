"""Batches are planned from what rows cost, and a batch that runs out of memory is halved, not lost."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

import savi.engine.decoding as decoding
from savi.engine import memory
from savi.engine.memory import EngineMemoryError, is_out_of_memory, plan, row_bytes
from savi.engine.video_lm import GenerationSettings, VideoLM
from tests.savi.tiny import tiny_frames, tiny_prompts, tiny_video_lm


def test_plan_keeps_every_row_once_and_within_the_budget() -> None:
    sizes = [(100 + 13 * (i % 5), 1 + i % 17) for i in range(200)]

    def cost(prefix: int, prompt: int) -> int:
        return 10 * (prefix + prompt)

    batches = plan(sizes, cost, 9_000, None)
    assert sorted(i for batch in batches for i in batch) == list(range(200))
    for batch in batches:
        assert len(batch) * cost(max(sizes[i][0] for i in batch), max(sizes[i][1] for i in batch)) <= 9_000
    assert len(batches) < 50
    assert [len(b) for b in plan(sizes, cost, 10**12, 64)] == [64, 64, 64, 8]
    assert [len(b) for b in plan(sizes, cost, 0, None)] == [1] * 200


def test_a_row_costs_its_keys_and_values() -> None:
    """8B InternVL2.5: 32 layers, 8 heads of 128 for keys and values, bfloat16: 128 KiB a token."""

    class Config:
        num_hidden_layers, num_attention_heads, num_key_value_heads, head_dim = 32, 32, 8, 128
        hidden_size, intermediate_size, vocab_size = 4096, 14336, 92553

    with_8k = row_bytes(Config, torch.bfloat16, 8200, 80, 150)
    with_4k = row_bytes(Config, torch.bfloat16, 4100, 80, 150)
    assert with_8k - with_4k >= 4100 * 128 * 1024
    assert with_8k < 1.5 * 8430 * 128 * 1024


@pytest.fixture
def lm() -> VideoLM:
    return tiny_video_lm()


class Device:
    """A stand-in for `generate` on a device with room for `room` rows."""

    def __init__(self, room: int, error: BaseException) -> None:
        self.room, self.error, self.tried = room, error, list[int]()
        self.real = decoding.generate

    def __call__(self, family: object, model: object, rows: Sequence[decoding.Branch], *rest: object) -> list[decoding.Generated]:
        self.tried.append(len(rows))
        if len(rows) > self.room:
            raise self.error
        return self.real(family, model, rows, *rest)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError("no more"),
    ],
)
def test_out_of_memory_is_halved_recorded_and_gives_the_same(lm: VideoLM, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = lm.watch(tiny_frames(0))
    items = [(watched, prompt) for prompt in tiny_prompts(20)]
    expected = lm.ask(items, GenerationSettings(max_new_tokens=8))
    device = Device(6, error)
    monkeypatch.setattr(decoding, "generate", device)
    assert lm.ask(items, GenerationSettings(max_new_tokens=8)) == expected
    assert device.tried == [20, 10, 5, 5, 10, 5, 5]
    assert [split.rows for split in lm.splits] == [20, 10, 10]
    assert all(split.prefix_length == 42 and split.reason for split in lm.splits)


def test_one_row_that_does_not_fit_is_an_error_with_the_fix(lm: VideoLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "generate", Device(0, MemoryError("no more")))
    with pytest.raises(EngineMemoryError, match=r"lower num_frames or max_new_tokens"):
        lm.watch(tiny_frames(0)).ask(["red", "blue"])


def test_other_errors_are_not_taken_for_memory(lm: VideoLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "generate", Device(0, RuntimeError("shape mismatch")))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        lm.watch(tiny_frames(0)).ask(["red", "blue"])
    assert lm.splits == []
    assert not is_out_of_memory(ValueError("can't allocate memory"))


def test_little_memory_means_small_batches(lm: VideoLM, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = lm.watch(tiny_frames(0))
    items = [(watched, prompt) for prompt in tiny_prompts(20)]
    expected = lm.ask(items, GenerationSettings(max_new_tokens=8))
    device = Device(20, MemoryError())
    monkeypatch.setattr(decoding, "generate", device)
    one = row_bytes(lm.text_config, torch.float32, 42, 13, 8)
    monkeypatch.setattr(memory, "budget_bytes", lambda _: 4 * one)
    assert lm.ask(items, GenerationSettings(max_new_tokens=8)) == expected
    assert max(device.tried) <= 8
    assert len(device.tried) >= 4
    assert lm.splits == []


def test_available_memory_is_read(lm: VideoLM) -> None:
    assert 2**20 < memory.available_bytes(torch.device("cpu")) < 2**50
    assert memory.budget_bytes(torch.device("cpu")) < memory.available_bytes(torch.device("cpu"))
