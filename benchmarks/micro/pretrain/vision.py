"""First stage of the micro base: the vision tower and projector learn to see, by telling for each visual token which colours lie in its
quadrant, of what shape and where. The linear head that reads this off is thrown away afterwards."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from benchmarks.micro.pretrain.model import TOKENS_PER_FRAME, image_features, matrix_dtype, pixel_values, quick_eye
from benchmarks.micro.pretrain.muon import Optimizers
from benchmarks.micro.pretrain.wording import Words
from benchmarks.micro.world.world import COLORS, FRAMES, SHAPES, SIZE, Scene, cell, chroma_round_trip, make_scene, render

if TYPE_CHECKING:
    import torch
    from transformers import InternVLForConditionalGeneration

_SIDE = int(TOKENS_PER_FRAME**0.5)
_REGION = SIZE // _SIDE
_BINS = _REGION // 8
_PALETTE = tuple(COLORS)
_CLASSES = 1 + len(SHAPES)
NAMED = (*_PALETTE, *SHAPES, *(f"{a}{i}" for a in "xy" for i in range(1, 9)))
"""Words that a visual token can be said to show."""


def targets(scene: Scene) -> NDArray[np.int64]:
    """`[FRAMES, TOKENS_PER_FRAME, len(COLORS), 3]`: shape class (0 = that colour is not here), x bin and y bin inside the quadrant
    (-100 = none)."""
    t = np.zeros((FRAMES, TOKENS_PER_FRAME, len(_PALETTE), 3), np.int64)
    t[..., 1:] = -100
    for o in scene.things:
        for f in range(o.first, o.last + 1):
            later = o.later_color if o.change is not None and f >= o.change else None
            x, y = (min(SIZE - 1.0, max(0.0, v)) for v in o.path[f])
            token = int(y // _REGION) * _SIDE + int(x // _REGION)
            t[f, token, _PALETTE.index(later or o.color)] = (1 + SHAPES.index(o.shape), int(x % _REGION // 8), int(y % _REGION // 8))
    return t


def word_targets(scene: Scene) -> NDArray[np.float32]:
    """`[FRAMES, TOKENS_PER_FRAME, len(NAMED)]` in 0/1: the words that fit what lies in each token's quadrant (colour, shape, eighths)."""
    t = np.zeros((FRAMES, TOKENS_PER_FRAME, len(NAMED)), np.float32)
    for o in scene.things:
        for f in range(o.first, o.last + 1):
            later = o.later_color if o.change is not None and f >= o.change else None
            x, y = (min(SIZE - 1.0, max(0.0, v)) for v in o.path[f])
            for word in (later or o.color, o.shape, f"x{cell(x)}", f"y{cell(y)}"):
                t[f, int(y // _REGION) * _SIDE + int(x // _REGION), NAMED.index(word)] = 1
    return t


def train_vision(
    model: InternVLForConditionalGeneration, *, steps: int, scenes: int, frames: int, lr: float, muon_lr: float, seed: int
) -> dict[str, float]:
    """Train vision tower and projector in place on `frames` frames of each of `scenes` scenes a step (a tower sees one frame at a time,
    and frames of a video are much alike); returns what the head reads off unseen scenes (0-100).

    Beside the dense head, visual tokens are drawn towards the language model's own embeddings of the words that name what they show (as
    contrastive image-text pretraining does for real towers): the language model can then look up "red" among them from the start."""
    import torch

    width = _CLASSES + 2 * _BINS
    head = torch.nn.Linear(model.config.text_config.hidden_size, len(_PALETTE) * width)
    names = model.get_input_embeddings().weight[[Words().ids[w] for w in NAMED]].detach().float()
    names = names / names.norm(dim=-1, keepdim=True)
    scale = torch.nn.Parameter(torch.tensor([8.0, -3.0]))
    seeing = [(n, p) for n, p in model.named_parameters() if "vision_tower" in n or "multi_modal_projector" in n]
    opt = Optimizers([*seeing, ("embed.head", head.weight), ("embed.bias", head.bias), ("embed.scale", scale)], lr, muon_lr, matrix_dtype())
    rng = random.Random(f"vision/{seed}")

    def losses(drawn: Sequence[Scene], some: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        at = [sorted(rng.sample(range(FRAMES), some)) for _ in drawn]
        x = chroma_round_trip(np.concatenate([render(s)[t] for s, t in zip(drawn, at, strict=True)])[None])
        y = torch.from_numpy(np.concatenate([targets(s)[t] for s, t in zip(drawn, at, strict=True)]))
        words = torch.from_numpy(np.concatenate([word_targets(s)[t] for s, t in zip(drawn, at, strict=True)]))
        with quick_eye(model):
            f = image_features(model, pixel_values(x)).float()
        likeness = (f / f.norm(dim=-1, keepdim=True)) @ names.T
        named = torch.nn.functional.binary_cross_entropy_with_logits(scale[0] * likeness + scale[1], words, reduction="none")
        return head(f).view(*f.shape[:2], len(_PALETTE), width), y, named.sum(-1).mean()

    model.train()
    t0, made = time.time(), list[float]()
    for step in range(steps):
        o, y, named = losses([make_scene(rng) for _ in range(scenes)], frames)
        loss = _dense_loss(o, y) + named
        loss.backward()
        opt.step((step + 1) / steps, 0.05)
        made.append(loss.item())
        if (step + 1) % 200 == 0:
            print(f"vision {step + 1}/{steps} loss {np.mean(made[-100:]):.3f} {time.time() - t0:.0f} s", flush=True)
    model.eval()
    check = random.Random(f"vision-check/{seed}")
    with torch.no_grad():
        o, y, named = losses([make_scene(check) for _ in range(64)], FRAMES)
    return {"named_loss": round(named.item(), 3), **_accuracies(o, y)}


def _dense_loss(o: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """What the dense head's outputs `o` lack of the targets `y`: kind (a loss for each thing seen), place across and place down."""
    import torch.nn.functional as F

    here = y[..., 0] > 0
    kind = F.cross_entropy(o[..., :_CLASSES].reshape(-1, _CLASSES), y[..., 0].reshape(-1), reduction="sum") / here.sum()
    across = F.cross_entropy(o[..., _CLASSES : _CLASSES + _BINS][here], y[..., 1][here])
    return kind + across + F.cross_entropy(o[..., _CLASSES + _BINS :][here], y[..., 2][here])


def _accuracies(o: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
    """What the head's outputs `o` say rightly of the targets `y`, in percent of the visual tokens that show something."""
    here, read = y[..., 0] > 0, o[..., :_CLASSES].argmax(-1)
    return {
        "recall_pct": 100 * float((read[here] > 0).float().mean()),
        "shape_pct": 100 * float((read[here] == y[..., 0][here]).float().mean()),
        "false_pct": 100 * float(((read > 0) & ~here).sum() / here.sum()),
        "x_pct": 100 * float((o[..., _CLASSES : _CLASSES + _BINS].argmax(-1)[here] == y[..., 1][here]).float().mean()),
        "y_pct": 100 * float((o[..., _CLASSES + _BINS :].argmax(-1)[here] == y[..., 2][here]).float().mean()),
    }


def settle_features(model: InternVLForConditionalGeneration, *, norm: float = 2.0, seed: int = 0) -> dict[str, float]:
    """Shift and scale the projector's last layer so that visual tokens have mean 0 and mean length `norm`, about that of word embeddings.

    Untouched they come out fifty times longer than words: whatever a layer adds to them (in which frame they are, say) would drown.
    Only bias and
    scale change, so nothing that was learned is lost. Returns lengths before and after."""
    import torch

    rng = random.Random(f"settle/{seed}")
    with torch.no_grad():
        x = chroma_round_trip(np.stack([render(make_scene(rng)) for _ in range(100)]))
        f = image_features(model, pixel_values(x)).flatten(0, 1)
        mean = f.mean(0)
        factor = norm / (f - mean).norm(dim=-1).mean()
        last = model.model.multi_modal_projector.linear_2
        last.bias.sub_(mean).mul_(factor)
        last.weight.mul_(factor)
        g = image_features(model, pixel_values(x)).flatten(0, 1)
    return {"norm_before": f.norm(dim=-1).mean().item(), "mean_before": mean.norm().item(), "norm_after": g.norm(dim=-1).mean().item()}
