"""Second stage of the micro base: the language model learns letters from text and everything else on videos, with the eye frozen.

All lessons on a video are branches of one packed sequence that share its visual prefix, so a video's 42 prefix tokens are computed once.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.micro.pretrain.lessons import DRILLS, Mix, drill, video_lessons
from benchmarks.micro.pretrain.model import VISUAL_TOKENS, image_features, matrix_dtype, pixel_values, quick_eye
from benchmarks.micro.pretrain.muon import Optimizers
from benchmarks.micro.pretrain.packed import loss_of, pack
from benchmarks.micro.pretrain.wording import IMG, Words
from benchmarks.micro.world.world import Scene, chroma_round_trip, make_scene, render

if TYPE_CHECKING:
    import torch
    from transformers import InternVLForConditionalGeneration

_IMG_ID = Words().ids[IMG]


def embed(model: InternVLForConditionalGeneration, ids: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Token embeddings with the visual tokens of the prefix put in: ids `[B, L]`, features `[B, VISUAL_TOKENS, D]`."""
    e = model.get_input_embeddings()(ids)
    return e.masked_scatter((ids == _IMG_ID)[..., None].expand_as(e), features.to(e.dtype))


def scene_features(model: InternVLForConditionalGeneration, scenes: Sequence[Scene], batch: int = 64) -> torch.Tensor:
    """Visual tokens of scenes as after video coding: `[N, VISUAL_TOKENS, D]`."""
    import torch

    out = []
    with torch.no_grad(), quick_eye(model):
        for i in range(0, len(scenes), batch):
            x = chroma_round_trip(np.stack([render(s) for s in scenes[i : i + batch]]))
            f = image_features(model, pixel_values(x)).float()
            out.append(f.reshape(-1, VISUAL_TOKENS, f.shape[-1]))
    return torch.cat(out)


def train_language(
    model: InternVLForConditionalGeneration,
    *,
    steps: int,
    videos: int,
    batch: int,
    lr: float,
    muon_lr: float,
    mix: Mix,
    drills: int,
    seed: int,
) -> None:
    """Train on `steps` batches of videos out of a pool of `videos` scenes (lessons are drawn anew each time), with `drills` text-only
    drills in each to keep letters sharp. The learning rate falls to its end."""
    pool_rng, rng = random.Random(f"pool/{seed}"), random.Random(f"lessons/{seed}/0")
    dtype = matrix_dtype()
    t0 = time.time()
    scenes = [make_scene(pool_rng) for _ in range(videos)]
    features = scene_features(model, scenes)
    print(f"pool of {videos} videos {time.time() - t0:.0f} s", flush=True)
    trained = [(n, p) for n, p in model.named_parameters() if "language_model" in n]
    opt, order, losses = Optimizers(trained, lr, muon_lr, dtype), list[int](), list[float]()
    t0 = time.time()
    for step in range(steps):
        if len(order) < batch:
            order = list(range(videos))
            rng.shuffle(order)
        take = [order.pop() for _ in range(batch)]
        text = [drill(rng, rng.choice(DRILLS)) for _ in range(drills)]
        packed = pack([video_lessons(scenes[i], rng, mix) for i in take], text)
        loss = loss_of(model, packed, features[take], dtype)
        loss.backward()
        losses.append(loss.item())
        opt.step((step + 1) / steps, 0.05)
        if (step + 1) % 100 == 0:
            print(f"language {step + 1}/{steps} loss {np.mean(losses[-100:]):.4f} {time.time() - t0:.0f} s", flush=True)
    model.eval()
