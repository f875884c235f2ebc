"""Shared = separate: what a row says depends on its video, its prompt and its random stream, never on how rows were batched."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from savi.engine import decoding
from savi.engine.decoding import Branch, generate
from savi.engine.video_lm import GenerationSettings, VideoLM, Watched
from tests.savi.tiny import tiny_frames, tiny_prompts, tiny_video_lm

GREEDY = GenerationSettings(max_new_tokens=12)
SAMPLED = GenerationSettings(max_new_tokens=16, temperature=1.0, seed=7)
NUCLEUS = GenerationSettings(max_new_tokens=16, temperature=0.8, top_p=0.9, seed=7)


@pytest.fixture(scope="module", params=["qwen2-copied", "qwen2-shared", "llama-copied", "llama-shared"])
def lm(request: pytest.FixtureRequest) -> Iterator[VideoLM]:
    """Both ways to stand behind a prefix: a copy a row (short prefixes), or in place (long ones; here all)."""
    kind, way = request.param.split("-")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "LONG_PREFIX", 1 if way == "shared" else 10**9)
        yield tiny_video_lm(kind)


@pytest.fixture(scope="module")
def videos(lm: VideoLM) -> list[Watched]:
    """Twenty videos of four prefix lengths."""
    return lm.watch_batch([tiny_frames(seed, frames=(8, 3, 5, 12)[seed % 4]) for seed in range(20)])


def rows(videos: list[Watched], count: int = 100) -> list[tuple[Watched, str]]:
    return [(videos[i % len(videos)], prompt) for i, prompt in enumerate(tiny_prompts(count, seed=1))]


def ids_of(lm: VideoLM, items: list[tuple[Watched, str]], settings: GenerationSettings) -> list[list[int]]:
    prompts = lm.chat.prompt_ids([prompt for _, prompt in items])
    made = generate(lm.family, lm.model, [Branch(w.prefix, ids) for (w, _), ids in zip(items, prompts, strict=True)], settings, lm.end_ids)
    return [g.ids for g in made]


def naive_greedy(lm: VideoLM, frames: np.ndarray, prompt: str, new: int) -> list[int]:
    """No cache, no prefix, no batch: the whole sequence with its pixels again for every token."""
    features = lm.features(frames)
    ids = [*lm.prefix_ids(features).tolist(), *lm.prompt_ids(prompt)]
    pixels = lm.family.prepare(frames, features.timing).pixels
    said: list[int] = []
    with torch.no_grad():
        seen = lm.model.model.get_image_features(pixels, return_dict=True).pooler_output.flatten(0, 1)
        visual = torch.tensor(ids) == 6
        while len(said) < new:
            embeds = lm.model.get_input_embeddings()(torch.tensor([ids + said])).clone()
            embeds[0, : len(ids)][visual] = seen  # a reply may hold the visual token as well: that one is a word
            hidden = lm.model.model.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
            said.append(int(lm.model.lm_head(hidden[0, -1]).argmax()))
            if said[-1] in lm.end_ids:
                break
    return said


def test_batched_equals_one_by_one_token_for_token(lm: VideoLM, videos: list[Watched]) -> None:
    items = rows(videos)
    together = ids_of(lm, items, GREEDY)
    assert [ids_of(lm, [item], GREEDY)[0] for item in items] == together
    assert len({tuple(ids) for ids in together}) > 80, "replies must differ, else equality says nothing"
    assert lm.ask(items[:10], GREEDY) == [lm.ask([item], GREEDY)[0] for item in items[:10]]


def test_batched_equals_the_naive_way(lm: VideoLM, videos: list[Watched]) -> None:
    items = rows(videos)[:8]
    together = ids_of(lm, items, GREEDY)
    for i, (_, prompt) in enumerate(items):
        assert naive_greedy(lm, tiny_frames(i, frames=(8, 3, 5, 12)[i % 4]), prompt, 12) == together[i]


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED, NUCLEUS], ids=["greedy", "sampled", "nucleus"])
@pytest.mark.parametrize("most", [1, 3, 32])
def test_split_batches_equal_one_batch(lm: VideoLM, videos: list[Watched], settings: GenerationSettings, most: int) -> None:
    items = rows(videos, 40)
    split = GenerationSettings(settings.max_new_tokens, settings.temperature, settings.top_p, settings.seed, max_batch=most)
    assert lm.ask(items, split) == lm.ask(items, settings)


@pytest.mark.parametrize("settings", [SAMPLED, NUCLEUS], ids=["sampled", "nucleus"])
def test_sampled_rows_do_not_depend_on_the_batch(lm: VideoLM, videos: list[Watched], settings: GenerationSettings) -> None:
    items = rows(videos, 60)
    keys = [f"row {i}" for i in range(len(items))]
    replies = lm.ask(items, settings, keys=keys)
    order = np.random.default_rng(0).permutation(len(items))[:25]
    again = lm.ask([items[i] for i in order], settings, keys=[keys[i] for i in order])
    assert again == [replies[i] for i in order]
    assert lm.ask(items, settings, keys=[f"other {i}" for i in range(len(items))]) != replies
    other = GenerationSettings(settings.max_new_tokens, settings.temperature, settings.top_p, seed=8)
    assert lm.ask(items, other, keys=keys) != replies


def test_same_prompt_with_other_keys_is_sampled_anew(lm: VideoLM, videos: list[Watched]) -> None:
    replies = videos[0].ask(["what is red"] * 12, max_new_tokens=12, temperature=1.0)
    assert len({reply.text for reply in replies}) > 6
    assert len({reply.text for reply in videos[0].ask(["what is red"] * 12, max_new_tokens=12)}) == 1


def test_watching_together_equals_watching_alone(lm: VideoLM, videos: list[Watched]) -> None:
    alone = [lm.watch(tiny_frames(seed, frames=(8, 3, 5, 12)[seed % 4])) for seed in range(20)]
    prompts = tiny_prompts(20, seed=2)
    assert lm.ask(list(zip(alone, prompts, strict=True)), GREEDY) == lm.ask(list(zip(videos, prompts, strict=True)), GREEDY)
    for one, other in zip(alone, videos, strict=True):
        torch.testing.assert_close(one.prefix.kv[-1][1], other.prefix.kv[-1][1], atol=1e-4, rtol=1e-4)


def test_a_prefix_is_not_changed_by_asking(lm: VideoLM, videos: list[Watched]) -> None:
    before = [tensor.clone() for layer in videos[0].prefix.kv for tensor in layer]
    first = videos[0].ask(tiny_prompts(5))
    assert videos[0].ask(tiny_prompts(5)) == first
    assert all(torch.equal(a, b) for a, b in zip(before, [t for layer in videos[0].prefix.kv for t in layer], strict=True))


def test_wrong_next_position_is_noticed(lm: VideoLM) -> None:
    watched = lm.watch(tiny_frames(0))
    items = [(watched, prompt) for prompt in tiny_prompts(10)]
    right = ids_of(lm, items, GREEDY)
    watched.prefix.next_pos += 3
    assert ids_of(lm, items, GREEDY) != right


def test_wrong_padding_is_noticed(lm: VideoLM, videos: list[Watched], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the mask over the padding the rows of a mixed batch change: the equality above is not vacuous."""
    items = rows(videos, 30)
    right = ids_of(lm, items, GREEDY)
    lay_out = decoding._lay_out

    def without_mask(*args: object) -> decoding._Batch:
        batch = lay_out(*args)  # type: ignore[arg-type]
        batch.bias.zero_()
        return batch

    monkeypatch.setattr(decoding, "_lay_out", without_mask)
    assert ids_of(lm, items, GREEDY) != right


def test_rows_that_end_leave_the_batch(lm: VideoLM, videos: list[Watched], monkeypatch: pytest.MonkeyPatch) -> None:
    from savi.families.internvl import InternVL

    items = rows(videos)
    free = ids_of(lm, items, GenerationSettings(max_new_tokens=24))
    values, counts = np.unique([ids[3] for ids in free if len(ids) > 3], return_counts=True)
    ends = sorted({*lm.end_ids, *values[np.argsort(-counts)[:20]].tolist()})
    expected = [ids[: next((i + 1 for i, token in enumerate(ids) if token in ends), len(ids))] for ids in free]
    sizes: list[int] = []
    text_positions = InternVL.text_positions

    def counting(self: InternVL, positions: torch.Tensor) -> torch.Tensor:
        sizes.append(positions.shape[0])
        return text_positions(self, positions)

    monkeypatch.setattr(InternVL, "text_positions", counting)
    prompts = lm.chat.prompt_ids([prompt for _, prompt in items])
    made = generate(
        lm.family,
        lm.model,
        [Branch(w.prefix, p) for (w, _), p in zip(items, prompts, strict=True)],
        GenerationSettings(max_new_tokens=24),
        ends,
    )
    assert [g.ids for g in made] == expected
    assert [g.finished for g in made] == [ids[-1] in ends for ids in expected]
    assert sizes[0] == 100
    assert sizes[-1] < 50
