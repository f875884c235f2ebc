"""The static decoder says what the eager one says, id for id in float32: all families, unequal prefixes, sampled, rows that end early."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from savi.engine import decoding
from savi.engine.decoder import attention, static
from savi.engine.decoder.attention import Stacked, products, static_attention
from savi.engine.decoder.static import StaticDecoder
from savi.engine.decoding import Branch, Generated
from savi.engine.sampling import GenerationSettings, uniforms
from savi.engine.video_lm import VideoLM
from tests.savi.tiny import FAMILIES, sharpen, tiny_family_lm, tiny_frames, tiny_prompts, tiny_video_lm

WAYS = {
    "greedy": GenerationSettings(max_new_tokens=14),
    "sampled": GenerationSettings(max_new_tokens=14, temperature=1.0, seed=7),
    "nucleus": GenerationSettings(max_new_tokens=14, temperature=0.8, top_p=0.9, seed=7),
}


@pytest.fixture(scope="module", params=FAMILIES)
def lm(request: pytest.FixtureRequest) -> VideoLM:
    return tiny_family_lm(request.param)


def branches(lm: VideoLM, settings: GenerationSettings, counts: Sequence[int], frames: Sequence[int]) -> list[Branch]:
    """Video v has `counts[v]` prompts and `frames[v]` frames; prompts of the videos are mixed."""
    videos = lm.watch_batch([tiny_frames(seed, frames=number, size=56) for seed, number in enumerate(frames)])
    owners = [v for v, count in enumerate(counts) for _ in range(count)]
    owners = [owners[i] for i in np.random.default_rng(0).permutation(len(owners))]
    prompts = lm.chat.prompt_ids(tiny_prompts(len(owners), seed=3))
    draws = uniforms(settings.seed, [str(i) for i in range(len(owners))], settings.max_new_tokens)
    return [Branch(videos[v].prefix, ids, draw) for v, ids, draw in zip(owners, prompts, draws, strict=True)]


def eager(lm: VideoLM, rows: Sequence[Branch], settings: GenerationSettings, ends: Sequence[int]) -> list[Generated]:
    return decoding.generate(lm.family, lm.model, rows, settings, ends)


def ends_of(lm: VideoLM, rows: Sequence[Branch], settings: GenerationSettings) -> list[int]:
    """End tokens that stop the rows at different steps: some that free replies hold at their third to tenth place."""
    free = eager(lm, rows, settings, [-1])
    return sorted({g.ids[2 + i % 8] for i, g in enumerate(free) if i % 2})


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("counts", "frames"),
    [([1], [4]), ([5], [4]), ([3, 3], [4, 4]), ([1, 4, 2], [4, 4, 4]), ([2, 6, 1, 5, 2], [2, 6, 4, 2, 8])],
    ids=["one row", "one video", "even", "uneven rows", "uneven prefixes"],
)
def test_the_same_ids(lm: VideoLM, way: str, counts: list[int], frames: list[int]) -> None:
    settings = WAYS[way]
    rows = branches(lm, settings, counts, frames)
    ends = ends_of(lm, rows, settings)
    expected = eager(lm, rows, settings, ends)
    decoder = StaticDecoder(lm.family)
    assert decoder.generate(lm.model, rows, settings, ends) == expected
    assert decoder.generate(lm.model, rows, settings, ends) == expected, "buffers used again"


def test_buffers_serve_batches_of_other_shapes() -> None:
    lm = tiny_video_lm()
    decoder = StaticDecoder(lm.family)
    settings = WAYS["nucleus"]
    for counts, frames in (([4, 4], [8, 8]), ([1], [3]), ([2, 7, 1], [12, 5, 3]), ([30], [6]), ([4, 4], [8, 8])):
        rows = branches(lm, settings, counts, frames)
        assert decoder.generate(lm.model, rows, settings, lm.end_ids) == eager(lm, rows, settings, lm.end_ids)


def test_rows_and_videos_leave_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred rows on ten videos of unequal length that end at all steps: batches shrink, and the rest is not disturbed."""
    lm = tiny_video_lm()
    settings = GenerationSettings(max_new_tokens=40, temperature=1.0, seed=3)
    rows = branches(lm, settings, [10] * 10, [8, 3, 5, 12, 8, 8, 4, 2, 9, 7])
    ends = ends_of(lm, rows, settings)
    buckets = []
    step_of = StaticDecoder._step

    def seen(self: StaticDecoder, batch: static._Batch, like: object) -> object:
        step = step_of(self, batch, like)  # type: ignore[arg-type]
        buckets.append(step.bucket)
        return step

    monkeypatch.setattr(StaticDecoder, "_step", seen)
    assert StaticDecoder(lm.family).generate(lm.model, rows, settings, ends) == eager(lm, rows, settings, ends)
    assert buckets[0].rows > 2 * buckets[-1].rows, "rows leave"
    assert buckets[0].videos > buckets[-1].videos, "videos leave"


def test_a_long_reply_gets_room_as_it_grows() -> None:
    lm = tiny_video_lm(context=2048)
    settings = GenerationSettings(max_new_tokens=300)
    rows = branches(lm, settings, [2, 1], [4, 2])
    decoder = StaticDecoder(lm.family)
    assert decoder.generate(lm.model, rows, settings, [-1]) == eager(lm, rows, settings, [-1])
    assert {bucket.room for bucket in decoder.arena.steps} == {128, 256, 384}


def test_steps_that_are_dropped_take_their_pool_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA graphs share a memory pool; torch refuses a pool whose last graph is gone, so whoever drops the graphs takes a new one."""
    handles = iter(range(100))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(handles))
    monkeypatch.setattr("savi.engine.decoder.buffers._MOST_GRAPHS", 2)
    lm = tiny_video_lm()
    decoder, settings, pools = StaticDecoder(lm.family), WAYS["greedy"], []
    for count in (16, 16, 8, 4, 32):  # again; two buckets; a third is one too many; buffers grow
        rows = branches(lm, settings, [count], [4])
        assert decoder.generate(lm.model, rows, settings, [-1]) == eager(lm, rows, settings, [-1])
        pools.append(decoder.arena.pool)
        assert len(decoder.arena.steps) <= 2
    assert pools[0] == pools[1] == pools[2], "the same buffers and weights: graphs are kept"
    assert pools[2] < pools[3] < pools[4]


def test_new_weights_are_seen() -> None:
    lm = tiny_video_lm()
    decoder, settings = StaticDecoder(lm.family), WAYS["greedy"]
    rows = branches(lm, settings, [3], [4])
    decoder.generate(lm.model, rows, settings, lm.end_ids)
    captured = next(iter(decoder.arena.steps.values()))
    decoder.generate(lm.model, rows, settings, lm.end_ids)
    assert next(iter(decoder.arena.steps.values())) is captured, "the same weights: a graph is used again"
    head = lm.model.get_output_embeddings().weight
    head.data = head.data.clone()  # as a trainer leaves weights: a graph would read the old place
    decoder.generate(lm.model, rows, settings, lm.end_ids)
    assert next(iter(decoder.arena.steps.values())) is not captured


@pytest.mark.parametrize("wrong", ["hidden", "places", "bias"])
def test_a_wrong_layout_is_noticed(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the mask over short prefixes, the slots, or the mask over padding, replies change: the equalities above are not vacuous."""
    lm = tiny_video_lm()
    settings = WAYS["greedy"]
    rows = branches(lm, settings, [2, 6, 1], [2, 6, 12])
    right = eager(lm, rows, settings, lm.end_ids)
    plain = static.StaticDecoder._stacked

    def spoilt(self: StaticDecoder, batch: static._Batch, like: object, bucket: object) -> Stacked:
        stacked = plain(self, batch, like, bucket)  # type: ignore[arg-type]
        if wrong == "hidden":
            stacked.hidden.zero_()
        elif wrong == "places":
            assert stacked.places is not None
            stacked.places.zero_()
        else:
            batch.bias.zero_()
        return stacked

    monkeypatch.setattr(static.StaticDecoder, "_stacked", spoilt)
    assert StaticDecoder(lm.family).generate(lm.model, rows, settings, lm.end_ids) != right


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
@pytest.mark.parametrize(("new", "runs"), [(10, True), (60, False)])
def test_angles_that_depend_on_the_length(kind: str, new: int, runs: bool) -> None:
    """Within the trained context the angles stay as they are; a batch that would leave it goes to the eager decoder."""
    config = tiny_video_lm("llama", context=64 if kind == "dynamic" else 256).model.config
    config.text_config.rope_parameters = {"rope_theta": 10_000.0, "factor": 2.0, "rope_type": kind} | (
        {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "original_max_position_embeddings": 64} if kind == "longrope" else {}
    )
    from transformers import InternVLForConditionalGeneration

    tiny = tiny_video_lm("llama")
    lm = VideoLM(sharpen(InternVLForConditionalGeneration(config)), tiny.tokenizer, tiny.preprocessing)  # type: ignore[arg-type]
    videos = lm.watch_batch([tiny_frames(seed, frames=4) for seed in range(2)])
    items = [(videos[i % 2], prompt) for i, prompt in enumerate(tiny_prompts(6, seed=2))]
    lm.decoders.asked = "eager"
    expected = lm.ask(items, GenerationSettings(max_new_tokens=new))
    lm.decoders.asked = "static"
    assert lm.ask(items, GenerationSettings(max_new_tokens=new)) == expected
    assert (lm.decoders.static is not None) == runs


def test_a_model_asks_by_the_decoder_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_video_lm()
    videos = lm.watch_batch([tiny_frames(seed, frames=(8, 3)[seed % 2]) for seed in range(6)])
    items = [(videos[i % 6], prompt) for i, prompt in enumerate(tiny_prompts(30, seed=1))]
    settings = GenerationSettings(max_new_tokens=10, temperature=1.0, seed=5)
    expected = lm.ask(items, settings)
    assert lm.decoders.static is None, "on a CPU the eager decoder runs"
    monkeypatch.setenv("SAVI_DECODER", "static")
    assert lm.ask(items, settings) == expected
    assert lm.decoders.held_bytes > 0
    lm.decoders.release()
    assert lm.decoders.held_bytes == 0
    assert lm.ask(items, GenerationSettings(10, 1.0, seed=5, max_batch=4)) == expected


@pytest.mark.parametrize("new", [1, 4])
@pytest.mark.parametrize("lengths", [(40, 40, 40), (40, 17, 25)])
def test_attention_equals_attention_over_the_whole(new: int, lengths: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    class Layer(torch.nn.Module):
        layer_idx = 0

    owners, n, longest = [0, 0, 1, 2, 2], 2, 40
    keys, values = draw(3, 2, longest, 16), draw(3, 2, longest, 16)
    beyond = torch.arange(longest)[None] >= torch.tensor(lengths)[:, None]
    hidden = torch.zeros(3, longest).masked_fill_(beyond, -1e30)[:, None, None]
    stacked = Stacked(
        [(keys, values)], lengths, torch.tensor(lengths, dtype=torch.int32), hidden,
        torch.tensor([0, 1, 2, 0, 3, 4]), torch.tensor([0, 1, 2, 4, 5]),
    )  # fmt: skip
    assert stacked.kv[0][0].shape[0] * n == 6
    query, key, value = draw(5, 6, new, 16), draw(5, 2, 9, 16), draw(5, 2, 9, 16)
    mask = torch.zeros(5, 1, new, 9).masked_fill_(torch.rand(5, 1, new, 9, generator=generator) < 0.3, -1e30)
    out, _ = static_attention(Layer(), query, key, value, mask, stacked=stacked)
    for i, owner in enumerate(owners):
        length = lengths[owner]
        whole_mask = torch.cat([torch.zeros(1, 1, new, length), mask[i : i + 1]], -1)
        whole = torch.nn.functional.scaled_dot_product_attention(
            query[i : i + 1],
            torch.cat([keys[owner : owner + 1, :, :length], key[i : i + 1]], 2).repeat_interleave(3, 1),
            torch.cat([values[owner : owner + 1, :, :length], value[i : i + 1]], 2).repeat_interleave(3, 1),
            attn_mask=whole_mask,
        )
        torch.testing.assert_close(out[i], whole[0].transpose(0, 1), atol=2e-6, rtol=2e-6)


def test_the_call_of_flash_attn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes and lengths as its documentation states them; the kernel itself needs a GPU (tests/gpu)."""
    import sys
    import types

    seen = {}

    def stand_in(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **keywords: object) -> tuple[torch.Tensor, torch.Tensor]:
        """[batch, tokens, heads, width], `cache_seqlens` [batch] -> output of q's shape, log-sum-exp [batch, heads, tokens]."""
        seen.update(keywords)
        beyond = torch.arange(k.shape[1])[None] >= keywords["cache_seqlens"][:, None]  # type: ignore[index]
        hidden = torch.zeros(beyond.shape).masked_fill_(beyond, -1e30)[:, None, None]
        scale = float(keywords["softmax_scale"])  # type: ignore[arg-type]
        out, lse = products(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), scale, hidden)
        return out.transpose(1, 2), lse

    monkeypatch.setitem(sys.modules, "flash_attn", types.SimpleNamespace(flash_attn_with_kvcache=stand_in))
    monkeypatch.setattr(attention, "prefix_kernel", lambda *args, **keywords: "flash-attn")
    lm = tiny_video_lm()
    rows = branches(lm, WAYS["greedy"], [2, 3], [4, 8])
    assert StaticDecoder(lm.family).generate(lm.model, rows, WAYS["greedy"], lm.end_ids) == eager(lm, rows, WAYS["greedy"], lm.end_ids)
    assert seen["causal"] is False and seen["return_softmax_lse"] is True


def test_without_prefixes_or_mask_it_refuses() -> None:
    query = torch.randn(1, 2, 1, 16)
    with pytest.raises(RuntimeError, match="stacked prefixes"):
        static_attention(torch.nn.Module(), query, query, query, None)
