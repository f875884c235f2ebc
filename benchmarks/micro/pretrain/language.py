"""Second stage of the micro base: the language model learns letters from text and everything else on videos, with the eye frozen.

All lessons on a video are branches of one packed sequence that share its visual prefix, so a video's 42 prefix tokens are computed once.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.micro.pretrain.lessons import DRILLS, IGNORE, Lesson, Mix, drill, prefix_ids, video_lessons
from benchmarks.micro.pretrain.model import VISUAL_TOKENS, image_features, pixel_values
from benchmarks.micro.pretrain.muon import Muon
from benchmarks.micro.pretrain.wording import IMG, Words
from benchmarks.micro.world.world import Scene, chroma_round_trip, make_scene, render

if TYPE_CHECKING:
    import torch
    from transformers import InternVLForConditionalGeneration

_IMG_ID = Words().ids[IMG]
_PREFIX = prefix_ids()


def pack(lessons: Sequence[Sequence[Lesson]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A row a video: prefix, then its lessons side by side. Returns ids, positions and labels `[B, L]` and the attention mask `[B, 1,
    L, L]`
    (a lesson sees the prefix and itself)."""
    import torch

    p = len(_PREFIX)
    length = p + max(sum(len(a) + len(b) for a, b in row) for row in lessons)
    size = (len(lessons), length)
    ids, pos = np.zeros(size, np.int64), np.zeros(size, np.int64)
    labels, owner = np.full(size, IGNORE, np.int64), np.full(size, -1, np.int64)
    for b, row in enumerate(lessons):
        ids[b, :p], pos[b, :p], owner[b, :p] = _PREFIX, range(p), 0
        k = p
        for j, (prompt, reply) in enumerate(row, 1):
            n = len(prompt) + len(reply)
            ids[b, k : k + n], pos[b, k : k + n], owner[b, k : k + n] = prompt + reply, range(p, p + n), j
            labels[b, k + len(prompt) : k + n] = reply
            k += n
    o = torch.from_numpy(owner)
    mask = (o[:, :, None] == o[:, None, :]) | ((o[:, None, :] == 0) & (o[:, :, None] > 0))
    mask &= torch.ones(length, length, dtype=torch.bool).tril()
    mask |= torch.eye(length, dtype=torch.bool)
    return torch.from_numpy(ids), torch.from_numpy(pos), torch.from_numpy(labels), mask[:, None]


def embed(model: InternVLForConditionalGeneration, ids: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Token embeddings with the visual tokens of the prefix put in: ids `[B, L]`, features `[B, VISUAL_TOKENS, D]`."""
    e = model.get_input_embeddings()(ids)
    return e.masked_scatter((ids == _IMG_ID)[..., None].expand_as(e), features.to(e.dtype))


def scene_features(model: InternVLForConditionalGeneration, scenes: Sequence[Scene], batch: int = 64) -> torch.Tensor:
    """Visual tokens of scenes as after video coding: `[N, VISUAL_TOKENS, D]`."""
    import torch

    out = []
    with torch.no_grad():
        for i in range(0, len(scenes), batch):
            x = chroma_round_trip(np.stack([render(s) for s in scenes[i : i + batch]]))
            f = image_features(model, pixel_values(x))
            out.append(f.reshape(-1, VISUAL_TOKENS, f.shape[-1]))
    return torch.cat(out)


def _loss(model: InternVLForConditionalGeneration, hidden: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    import torch.nn.functional as F

    at = labels[:, 1:] != IGNORE
    logits = model.lm_head(hidden[:, :-1][at]).float()
    y = labels[:, 1:][at]
    return F.cross_entropy(logits, y), (logits.argmax(-1) == y).float().mean()


def drill_loss(model: InternVLForConditionalGeneration, rng: random.Random, kind: str, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and accuracy (0-1) on a batch of text-only drills."""
    import torch

    rows = [drill(rng, kind) for _ in range(batch)]
    length = max(len(t) for t, _ in rows)
    ids, labels = torch.zeros(batch, length, dtype=torch.long), torch.full((batch, length), IGNORE)
    for i, (t, y) in enumerate(rows):
        ids[i, : len(t)], labels[i, : len(t)] = torch.tensor(t), torch.tensor(y)
    hidden = model.model.language_model(input_ids=ids, use_cache=False).last_hidden_state
    return _loss(model, hidden, labels)


class Optimizers:
    """Muon for the matrices of the layers (half the steps of AdamW here), AdamW for embeddings, norms and biases."""

    def __init__(self, model: InternVLForConditionalGeneration, lr: float, muon_lr: float) -> None:
        import torch

        named = [(n, p) for n, p in model.named_parameters() if "language_model" in n]
        matrices = [p for n, p in named if p.dim() == 2 and "embed" not in n]
        rest = [p for n, p in named if not (p.dim() == 2 and "embed" not in n)]
        self.parts = [torch.optim.AdamW(rest, lr=lr, weight_decay=0.0, betas=(0.9, 0.98))]
        if muon_lr:
            self.parts.append(Muon(matrices, lr=muon_lr, weight_decay=0.02, momentum=0.95))
        else:
            self.parts.append(torch.optim.AdamW(matrices, lr=lr, weight_decay=0.02, betas=(0.9, 0.98)))
        self.base = [o.param_groups[0]["lr"] for o in self.parts]
        self.params = [p for _, p in named]

    def step(self, factor: float) -> None:
        """One step at `factor` times the base learning rates, gradients clipped to norm 1, then cleared."""
        import torch

        torch.nn.utils.clip_grad_norm_(self.params, 1.0)
        for o, lr in zip(self.parts, self.base, strict=True):
            o.param_groups[0]["lr"] = lr * factor
            o.step()
            o.zero_grad(set_to_none=True)


def train_language(
    model: InternVLForConditionalGeneration,
    *,
    steps: int,
    videos: int,
    batch: int = 16,
    lr: float = 2e-3,
    muon_lr: float = 0.01,
    mix: Mix | None = None,
    seed: int = 0,
    stop: int | None = None,
    report: Callable[[int], None] | None = None,
    report_every: int = 500,
) -> None:
    """Train on `steps` batches of videos out of a pool of `videos` scenes (lessons are drawn anew each time); a drill every fourth
    step keeps
    letters sharp. `report(step)` is called now and then; `stop` ends training before the schedule does."""
    mix = mix or Mix()
    pool_rng, rng = random.Random(f"pool/{seed}"), random.Random(f"lessons/{seed}/0")
    t0 = time.time()
    scenes = [make_scene(pool_rng) for _ in range(videos)]
    features = scene_features(model, scenes)
    print(f"pool of {videos} videos {time.time() - t0:.0f} s", flush=True)
    opt, order, losses = Optimizers(model, lr, muon_lr), list[int](), list[float]()
    model.train()
    t0 = time.time()
    for step in range(min(steps, stop or steps)):
        if len(order) < batch:
            order = list(range(videos))
            rng.shuffle(order)
        take = [order.pop() for _ in range(batch)]
        ids, pos, labels, mask = pack([video_lessons(scenes[i], rng, mix) for i in take])
        hidden = model.model.language_model(
            inputs_embeds=embed(model, ids, features[take]), attention_mask=mask, position_ids=pos, use_cache=False
        )
        loss, _ = _loss(model, hidden.last_hidden_state, labels)
        loss.backward()
        losses.append(loss.item())
        if step % 4 == 0:
            (0.5 * drill_loss(model, rng, rng.choice(DRILLS), 24)[0]).backward()
        opt.step(min(1, (step + 1) / 100) * (0.5 * (1 + math.cos(math.pi * step / steps)) * 0.97 + 0.03))
        if (step + 1) % 100 == 0:
            print(f"language {step + 1}/{steps} loss {np.mean(losses[-100:]):.4f} {time.time() - t0:.0f} s", flush=True)
        if report and (step + 1) % report_every == 0:
            model.eval()
            report(step + 1)
            model.train()
    model.eval()
