"""Scores behind a shared prefix equal those of the whole sequence with its pixels, one at a time."""

from __future__ import annotations

import pytest
import torch

from savi.engine import decoding
from savi.engine.video_lm import VideoLM, Watched
from tests.savi.tiny import FAMILIES, tiny_family_lm, tiny_frames, tiny_prompts, tiny_video_lm


def separate(lm: VideoLM, watched: Watched, prompt: str, response: str) -> float:
    """One stock forward over prefix, prompt and response."""
    text, reply = lm.prompt_ids(prompt), lm.response_ids(response)
    positions, next_pos = lm.family.positions(watched.prefix.ids, watched.features)
    where = torch.cat([positions, lm.family.branch_positions(next_pos, len(text) + len(reply))], -1).unsqueeze(-2)
    ids = torch.cat([watched.prefix.ids, torch.tensor(text + reply)])[None]
    with torch.no_grad():
        encoded = lm.family.mm_encoder_outputs([watched.features])
        logits = lm.model(input_ids=ids, position_ids=where, mm_encoder_outputs=encoded, use_cache=False).logits[0]
    logps = torch.log_softmax(logits[-len(reply) - 1 : -1].double(), -1)
    return float(logps.gather(-1, torch.tensor(reply)[:, None]).sum())


@pytest.mark.parametrize("way", ["copied", "shared"])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_separate_forwards(family: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "LONG_PREFIX", 1 if way == "shared" else 10**9)
    lm = tiny_family_lm(family)
    videos = lm.watch_batch([tiny_frames(0, 4), tiny_frames(1, 6), tiny_frames(2, 4)])
    items = [(videos[i % 3], p, r) for i, (p, r) in enumerate(zip(tiny_prompts(12), tiny_prompts(12, seed=9), strict=True))]
    scores = lm.score(items)
    for item, score in zip(items, scores, strict=True):
        assert score.tokens == len(lm.response_ids(item[2]))
        assert score.logp == pytest.approx(separate(lm, *item), abs=2e-4, rel=1e-5)
    assert [s.logp for s in lm.score(items, max_batch=2)] == pytest.approx([s.logp for s in scores], abs=2e-4, rel=1e-5)


def test_an_empty_response_is_its_end_of_turn() -> None:
    lm = tiny_video_lm()
    watched = lm.watch(tiny_frames(0))
    (score,) = watched.score([("what is red", "")])
    assert score.tokens == 1
    assert score.logp == pytest.approx(separate(lm, watched, "what is red", ""), abs=1e-4)


def test_scores_of_all_single_tokens_sum_to_one() -> None:
    lm = tiny_video_lm()
    watched = lm.watch(tiny_frames(0))
    from savi.engine.decoding import Branch, score

    rows = [Branch(watched.prefix, [*lm.prompt_ids("what is red"), token]) for token in range(len(lm.tokenizer))]
    total = torch.tensor(score(lm.family, lm.model, rows, [1] * len(rows))).exp().sum()
    assert float(total) == pytest.approx(1.0, abs=1e-5)


def test_wrong_prefix_is_noticed() -> None:
    lm = tiny_video_lm()
    one, other = lm.watch_batch([tiny_frames(0), tiny_frames(1)])
    pair = [("what is red", "left of x2")]
    assert one.score(pair)[0].logp != pytest.approx(other.score(pair)[0].logp, abs=1e-2)
