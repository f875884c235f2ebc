"""What is checked on a device. Each check takes the device ("cuda", or "cpu" to try the check itself) and raises where it fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from savi.engine.video_lm import VideoLM


def family_on(name: str, device: str, dtype: torch.dtype = torch.float32) -> VideoLM:
    """A tiny model on the device."""
    from tests.savi.tiny import tiny_family_lm

    lm = tiny_family_lm(name)
    lm.model.to(device=device, dtype=dtype)
    return lm


def prefix_kernels_agree(device: str) -> None:
    """Every kernel that reads prefixes gives what plain products in float32 give, output and log-sum-exp."""
    from savi.base.kernels import flash_attn_installed
    from savi.engine.branch_attention import attend
    from savi.engine.decoder.attention import flash_attn_over_prefixes, products

    torch.manual_seed(0)
    for dtype, close in ((torch.float32, 1e-4), (torch.bfloat16, 3e-2)):
        query, key, value = (torch.randn(3, 2, n, 64, device=device, dtype=dtype) for n in (24, 1000, 1000))
        lengths = torch.tensor([1000, 300, 777], device=device)
        hidden = torch.zeros(3, 1, 1, 1000, device=device).masked_fill_(
            torch.arange(1000, device=device) >= lengths[:, None, None, None], -1e30
        )
        for mask in (None, hidden):
            wanted = products(query.float(), key.float(), value.float(), 0.125, mask)
            found = {"products": products(query, key, value, 0.125, mask)}
            if mask is None:
                found["torch"] = attend(query, key, value, 0.125)
            elif device == "cuda" and dtype == torch.bfloat16 and flash_attn_installed():
                found["flash-attn"] = flash_attn_over_prefixes(query, key, value, 0.125, lengths.int())
            for out, total in found.values():
                torch.testing.assert_close(out.float(), wanted[0], atol=close, rtol=close)
                torch.testing.assert_close(total.float(), wanted[1], atol=close, rtol=close)


def reading_kernels_agree(device: str) -> None:
    """Causal attention as a video is read with, by flash-attn where it is installed, and its gradients as a training step has them."""
    from savi.engine.causal import causal

    torch.manual_seed(0)
    query, key, value = (torch.randn(2, n, 700, 64, device=device, dtype=torch.bfloat16, requires_grad=True) for n in (6, 2, 2))
    found = causal(query, key, value, 0.125)
    whole = [part.detach().float().requires_grad_() for part in (query, key, value)]
    scores = whole[0] @ whole[1].repeat_interleave(3, 1).transpose(-1, -2) * 0.125
    later = torch.ones(700, 700, dtype=torch.bool, device=device).triu(1)
    wanted = scores.masked_fill(later, float("-inf")).softmax(-1) @ whole[2].repeat_interleave(3, 1)
    torch.testing.assert_close(found.float(), wanted, atol=3e-2, rtol=3e-2)
    for loss in (found.float().square().sum(), wanted.square().sum()):
        loss.backward()
    for part, other in zip((query, key, value), whole, strict=True):
        assert part.grad is not None and other.grad is not None
        assert float((part.grad.float() - other.grad).norm() / other.grad.norm()) < 3e-2


def static_equals_eager(device: str) -> None:
    """The same ids in float32: all families, uneven prefixes, greedy and sampled, rows that leave; graphs used a second time."""
    from savi.engine import decoding
    from savi.engine.decoder.static import StaticDecoder
    from tests.invariants.test_static_decoder import WAYS, branches, ends_of
    from tests.savi.tiny import FAMILIES

    for name in FAMILIES:
        lm = family_on(name, device)
        decoder = StaticDecoder(lm.family)
        for way in ("greedy", "nucleus"):
            rows = branches(lm, WAYS[way], [2, 6, 1, 5, 2], [2, 6, 4, 2, 8])
            ends = ends_of(lm, rows, WAYS[way])
            wanted = decoding.generate(lm.family, lm.model, rows, WAYS[way], ends)
            for again in range(2):
                assert decoder.generate(lm.model, rows, WAYS[way], ends) == wanted, f"{name}, {way}, call {again + 1}"


def graphs_see_new_weights(device: str) -> None:
    """Weights changed in place, and weights that moved: replies follow both."""
    from savi.engine import decoding
    from savi.engine.decoder.static import StaticDecoder
    from tests.invariants.test_static_decoder import WAYS, branches

    lm = family_on("internvl-qwen2", device)
    decoder, settings = StaticDecoder(lm.family), WAYS["greedy"]
    seen = []
    for change in ("none", "in place", "moved"):
        for parameter in lm.model.parameters():
            if change == "in place":
                parameter.data.add_(0.05)
            elif change == "moved":
                parameter.data = parameter.data.flip(0).clone()
        rows = branches(lm, settings, [4, 3], [4, 8])
        seen.append(decoder.generate(lm.model, rows, settings, lm.end_ids))
        assert seen[-1] == decoding.generate(lm.family, lm.model, rows, settings, lm.end_ids), change
    assert seen[0] != seen[1] != seen[2]


def half_precision_stays_near(device: str) -> None:
    """In bfloat16 near ties fall either way; most rows begin alike."""
    from savi.engine import decoding
    from savi.engine.decoder.static import StaticDecoder
    from tests.invariants.test_static_decoder import WAYS, branches

    lm = family_on("internvl-qwen2", device, torch.bfloat16)
    rows = branches(lm, WAYS["greedy"], [12, 12, 12], [8, 8, 8])
    ours = StaticDecoder(lm.family).generate(lm.model, rows, WAYS["greedy"], [-1])
    wanted = decoding.generate(lm.family, lm.model, rows, WAYS["greedy"], [-1])
    same = sum(a.ids[:3] == b.ids[:3] for a, b in zip(ours, wanted, strict=True)) / len(rows)
    assert same >= 0.7, f"{same:.0%} of the rows begin alike"


def checkpointing_leaves_the_gradients(device: str) -> None:
    """A packed LoRA step as the trainer computes it, bfloat16 with float32 masters, with and without checkpointing."""
    from savi.training.losses import Logps, step_loss
    from savi.training.packing import pack, packed_logps
    from savi.training.settings import DPOSettings
    from savi.training.trainer import masters_in_float32, trainable
    from savi.training.tree_attention import use_tree_attention
    from tests.invariants.packed import gradients, make_rows, relative_difference

    lm = family_on("internvl-qwen2", device, torch.bfloat16)
    settings = DPOSettings(lora_r=4)
    policy = trainable(lm, settings)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)  # zero at the start: then A has no gradient
    batch = pack(make_rows(lm), lm.family, dtype=torch.bfloat16, device=device)
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            lm.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        policy.train()
        with masters_in_float32(lm.model, policy), use_tree_attention(lm.model), torch.autocast(device, torch.bfloat16):
            logps = packed_logps(policy, batch, lm.family)
            known = torch.zeros_like(logps)
            loss = step_loss(Logps(logps, known, batch.lengths), settings.objective, step_pairs=batch.pairs, step_chosen_tokens=1)
            found.append(gradients(policy, loss))  # in the same surroundings: layers are computed again
    assert found[0], "adapters have gradients"
    assert {gradient.dtype for gradient in found[0].values()} == {torch.float32}
    assert relative_difference(found[1], found[0]) < 1e-2


def memory_comes_back(device: str) -> None:
    """`release` gives back what the decoder kept."""
    lm = family_on("internvl-qwen2", device)
    lm.decoders.asked = "static"
    from tests.savi.tiny import tiny_frames

    lm.ask([(lm.watch(tiny_frames(0)), "what is red")] * 3, _settings())
    held = lm.decoders.held_bytes
    assert held > 0
    before = torch.cuda.memory_allocated() if device == "cuda" else held
    lm.decoders.release()
    assert lm.decoders.held_bytes == 0
    assert device != "cuda" or torch.cuda.memory_allocated() <= before - held


def _settings() -> object:
    from savi.engine.sampling import GenerationSettings

    return GenerationSettings(max_new_tokens=5)


CHECKS: list[Callable[[str], None]] = [
    prefix_kernels_agree,
    reading_kernels_agree,
    static_equals_eager,
    graphs_see_new_weights,
    half_precision_stays_near,
    checkpointing_leaves_the_gradients,
    memory_comes_back,
]
