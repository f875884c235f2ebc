"""Texts beyond the trained context: rotary angles follow the length as in the original, whoever shares the video."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from savi.conversion.checkpoint import convert
from savi.engine.video_lm import ContextError, VideoLM
from tests.savi.converted import edit_config
from tests.savi.internvl_chat import internlm2_config, phi3_config, qwen2_config, reference_logits, write_checkpoint
from tests.savi.tiny import tiny_frames

PROMPTS = ["what", "what is left of the red cup and where does it go", "is the cup red", "frame"]


def long_lm(folder: Path, config: dict[str, Any], context: int) -> tuple[dict, dict, VideoLM]:
    """A model whose trained context is `context` tokens, with a short system message: a video of two frames takes some 30 of them."""
    weights = write_checkpoint(folder / "source", config)
    name = (
        "original_max_position_embeddings" if "long_factor" in (config["llm_config"]["rope_scaling"] or {}) else "max_position_embeddings"
    )
    config["llm_config"][name] = context
    edit_config(folder / "source", system_message="", llm_config=config["llm_config"])
    return config, weights, VideoLM.from_pretrained(convert(folder / "source", folder / "native"), device="cpu")


def whole_ids(lm: VideoLM, prompt: str) -> list[int]:
    return [*lm.prefix_ids(tiny_frames(0, 2, size=16)).tolist(), *lm.prompt_ids(prompt)]


@pytest.mark.parametrize("context", [24, 40, 44, 1000])
@pytest.mark.parametrize("kind", ["internlm2", "phi3"])
def test_first_tokens_and_scores_are_the_originals(tmp_path: Path, kind: str, context: int) -> None:
    """Contexts below the prefix, between prefix and prompts, among the prompts' lengths, and above all of them."""
    config, weights, lm = long_lm(
        tmp_path, internlm2_config() if kind == "internlm2" else phi3_config(max_position_embeddings=4000), context
    )
    frames = tiny_frames(0, 2, size=16)
    watched, image = lm.watch(frames), lm.model.config.image_token_id
    texts = [whole_ids(lm, prompt) for prompt in PROMPTS]
    assert min(map(len, texts)) < 44 < max(map(len, texts))
    assert 24 < watched.prefix.length < 40

    def reference(ids: list[int]) -> torch.Tensor:
        return reference_logits(config, weights, torch.tensor(ids), watched.features.embeds, image)

    for replies in (watched.ask(PROMPTS, max_new_tokens=1), [watched.ask(prompt, max_new_tokens=1) for prompt in PROMPTS]):
        for ids, reply in zip(texts, replies, strict=True):
            assert reply.text == lm.tokenizer.decode([int(reference(ids)[-1].argmax())], skip_special_tokens=True).strip()
    scores = watched.score([(prompt, "the red cup moves") for prompt in PROMPTS])
    for ids, score in zip(texts, scores, strict=True):
        reply = lm.response_ids("the red cup moves")
        logps = torch.log_softmax(reference(ids + reply), -1)[len(ids) - 1 : -1]
        assert score.logp == pytest.approx(float(logps.gather(-1, torch.tensor(reply)[:, None]).sum()), abs=2e-3)


@pytest.mark.parametrize("context", [24, 44, 48])
def test_replies_across_the_limit_are_stock_generates(tmp_path: Path, context: int) -> None:
    _, _, lm = long_lm(tmp_path, internlm2_config(), context)
    frames = tiny_frames(0, 2, size=16)
    pixels = lm.family.prepare(frames, None).pixels  # type: ignore[arg-type]
    expected = []
    for prompt in PROMPTS:
        lm.rope.begin(lm.family.text_model(lm.model))  # type: ignore[union-attr]
        ids = torch.tensor([whole_ids(lm, prompt)])
        out = lm.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels, max_new_tokens=12, do_sample=False)
        expected.append(lm.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip())
    assert [reply.text for reply in lm.watch(frames).ask(PROMPTS, max_new_tokens=12)] == expected
    assert len(set(expected)) > 2


def test_without_dynamic_rope_the_context_stays_the_limit(tmp_path: Path) -> None:
    _, _, lm = long_lm(tmp_path, qwen2_config(), 40)
    with pytest.raises(ContextError, match="context of 40"):
        lm.watch(tiny_frames(0, 2, size=16)).ask(PROMPTS[1], max_new_tokens=12)
