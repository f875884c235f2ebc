"""Matrix-product FLOPs of what is compared, counted from shapes; the theoretical ratio of two ways follows, and so does TFLOP/s.

A product of m x k and k x n is 2mkn. Causal attention over n new tokens after p cached ones has n * p + n * (n + 1) / 2 pairs.
"""

from __future__ import annotations

from dataclasses import replace

from reproduce.speed.model import Shape


def text_flops(shape: Shape, new: int, old: int = 0, *, scored: int = 1) -> float:
    """The language model over `new` tokens after `old` cached ones, the head on `scored` of them."""
    head_dim = shape.hidden // shape.heads
    attention_weights = 2 * shape.hidden * shape.hidden + 2 * shape.hidden * shape.kv_heads * head_dim
    weights = shape.layers * (attention_weights + 3 * shape.hidden * shape.intermediate)
    pairs = new * old + new * (new + 1) / 2
    return 2.0 * weights * new + 4.0 * shape.layers * shape.hidden * pairs + 2.0 * shape.hidden * shape.vocabulary * scored


def prefix_flops(shape: Shape, new: int) -> float:
    """The language model over a prefix of which only keys and values are kept: of the last layer its projections alone."""
    head_dim = shape.hidden // shape.heads
    projections = 2.0 * new * (shape.hidden * shape.hidden + 2 * shape.hidden * shape.kv_heads * head_dim)
    return text_flops(replace(shape, layers=shape.layers - 1), new, scored=0) + projections


def vision_flops(shape: Shape, frames: int) -> float:
    """Vision tower and projector over frames."""
    patches = (shape.image // shape.patch) ** 2 + 1
    width = shape.vision_hidden
    layer = 2.0 * 12 * width * width * patches + 4.0 * width * patches * patches
    patching = 2.0 * 3 * shape.patch**2 * width * (patches - 1)
    projector = 2.0 * shape.frame_tokens * (4 * width * shape.hidden + shape.hidden**2)
    return frames * (shape.vision_layers * layer + patching + projector)


def reply_flops(shape: Shape, prefix: int, question: int, new: int) -> float:
    """One prompt after a cached prefix: the prompt, then token by token."""
    return text_flops(shape, question, prefix) + text_flops(shape, new - 1, prefix + question, scored=new - 1)


def generation_flops(shape: Shape, *, frames: int, prefix: int, question: int, new: int, prompts: int) -> tuple[float, float]:
    """(shared, one prompt at a time)."""
    vision = vision_flops(shape, frames)
    reply = reply_flops(shape, prefix, question, new)
    alone = vision + text_flops(shape, prefix, scored=0) + reply
    return vision + prefix_flops(shape, prefix) + prompts * reply, prompts * alone


def dpo_flops(
    shape: Shape, *, frames: int, prefix: int, question: int, answer: int, pairs: int, lora: bool, reference: bool
) -> tuple[float, float]:
    """(packed step, TRL's step). TRL: two sequences a pair, the reference in the step, the tower in both passes.

    A backward pass is twice a forward one, or once where base weights get no gradient (LoRA). `reference` counts the packed reference pass
    and the tower into our step; else both were done once for the iteration.
    """
    backward = 1.0 if lora else 2.0
    branch = text_flops(shape, question, prefix, scored=0) + 2 * text_flops(shape, answer, prefix + question, scored=answer)
    packed = text_flops(shape, prefix, scored=0) + pairs * branch
    single = text_flops(shape, prefix + question + answer, scored=answer)
    ours = packed * (1 + backward + (1 if reference else 0)) + (vision_flops(shape, frames) if reference else 0)
    theirs = 2 * pairs * (single * (2 + backward) + 2 * vision_flops(shape, frames))
    return ours, theirs
