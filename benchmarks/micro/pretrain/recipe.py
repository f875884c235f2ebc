"""How a micro base model is made: `python -m benchmarks micro --rebuild-base`.

Two stages from a fresh initialisation: the eye (`vision`), then letters and everything on videos (`language`). `Recipe` holds every number.
The shipped checkpoint was made by an earlier recipe, which was stopped at its highest learning rate; that one and what was measured are in
its training.json.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.micro.pretrain.lessons import Lesson, Mix, draw_question, prefix_ids, wrong_reply
from benchmarks.micro.pretrain.wording import ASSISTANT, EOS, Words
from benchmarks.micro.world import questions as q
from benchmarks.micro.world.world import Scene, make_scene
from savi.base.files import sync_files
from savi.base.memory import keep_freed_memory

if TYPE_CHECKING:
    import torch
    from transformers import InternVLForConditionalGeneration

BASE_DIR = Path(__file__).parent.parent / "base"
"""The shipped checkpoint (fp16 safetensors, tokenizer, preprocessor)."""
_WORDS = Words()


@dataclass(frozen=True)
class Recipe:
    """How a base is made (every value ours). Both stages end where their learning rates have fallen to their end."""

    seed: int = 0
    layers: int = 5
    hidden: int = 128
    vision_steps: int = 1500
    vision_scenes: int = 16
    vision_frames: int = 3
    language_steps: int = 1200
    pool: int = 8000
    batch: int = 16
    drills: int = 6
    lr: float = 2e-3
    muon_lr: float = 0.01
    mix: Mix = field(default_factory=Mix)


class Monitor(NamedTuple):
    """Accuracy on unseen scenes, 0-100, by kind of reply: answered at once, as the last word of a critique, and after it."""

    direct: dict[str, float]
    critique: dict[str, float]
    revised: dict[str, float]
    n: int


def greedy(model: InternVLForConditionalGeneration, features: torch.Tensor, prompts: Sequence[list[int]], max_new: int) -> list[list[int]]:
    """Greedy replies to prompts `[N]` on videos `[N, VISUAL_TOKENS, D]`, a batch at a time; token numbers without the end of turn."""
    import torch
    from transformers import DynamicCache

    from benchmarks.micro.pretrain.language import embed

    pre, out = prefix_ids(), []
    with torch.no_grad():
        for i in range(0, len(prompts), 128):
            rows = [pre + p for p in prompts[i : i + 128]]
            length = max(map(len, rows))
            ids, seen = torch.zeros(len(rows), length, dtype=torch.long), torch.zeros(len(rows), length, dtype=torch.long)
            for r, row in enumerate(rows):
                ids[r, length - len(row) :], seen[r, length - len(row) :] = torch.tensor(row), 1
            pos, cache = (seen.cumsum(1) - 1).clamp(min=0), DynamicCache()
            x, p, done, made = embed(model, ids, features[i : i + 128]), pos, torch.zeros(len(rows), dtype=torch.bool), list[torch.Tensor]()
            for _ in range(max_new):
                # the cache by its place: its name changed with transformers 5.24
                h = model.model.language_model(None, seen, p, cache, inputs_embeds=x, use_cache=True)
                token = model.lm_head(h.last_hidden_state[:, -1]).argmax(-1)
                made.append(token)
                done |= token == _WORDS.ids[EOS]
                if bool(done.all()):
                    break
                seen = torch.cat([seen, torch.ones(len(rows), 1, dtype=torch.long)], 1)
                x, p = model.get_input_embeddings()(token[:, None]), (p[:, -1:] + 1)
            for tokens in torch.stack(made, 1).tolist():
                out.append(tokens[: tokens.index(_WORDS.ids[EOS])] if _WORDS.ids[EOS] in tokens else tokens)
    return out


def monitor(model: InternVLForConditionalGeneration, *, videos: int = 120, seed: int = 1) -> Monitor:
    """Ask one choice and one yes/no question on each of `videos` unseen scenes; the critique is of a random reply."""
    import torch

    from benchmarks.micro.pretrain.language import scene_features

    rng = random.Random(f"monitor/{seed}")
    scenes = [make_scene(rng) for _ in range(videos)]
    asked: list[tuple[int, q.Question]] = []
    for i, s in enumerate(scenes):
        for form in ("choice", "yes_no"):
            while (x := draw_question(s, rng)).form != form:
                pass
            asked.append((i, x))
    feats = scene_features(model, scenes)[torch.tensor([i for i, _ in asked])]

    def say(*texts: str) -> list[list[int]]:
        return [_WORDS.encode(t) + [_WORDS.ids[ASSISTANT]] for t in texts]

    given = [x.reply if rng.random() < 0.5 else wrong_reply(x, rng) for _, x in asked]
    direct = [_WORDS.decode(t) for t in greedy(model, feats, say(*(x.lettered() for _, x in asked)), 4)]
    heads = [f"{x.lettered()} answer {g} critique" for (_, x), g in zip(asked, given, strict=True)]
    critiques = [_WORDS.decode(t) for t in greedy(model, feats, say(*heads), 20)]
    revised = [_WORDS.decode(t) for t in greedy(model, feats, say(*(f"{h} {c} revise" for h, c in zip(heads, critiques, strict=True))), 4)]

    def share(ok: list[bool]) -> dict[str, float]:
        groups: dict[str, list[bool]] = {"all": ok}
        for (_, x), o in zip(asked, ok, strict=True):
            groups.setdefault(x.form, []).append(o)
            groups.setdefault(x.family, []).append(o)
        return {k: round(100 * sum(v) / len(v), 1) for k, v in groups.items()}

    keys = [x.key for _, x in asked]
    return Monitor(
        share([a.split()[-1:] == [k] for a, k in zip(direct, keys, strict=True)]),
        share([k in c.split()[-2:-1] for c, k in zip(critiques, keys, strict=True)]),
        share([a.split()[-1:] == [k] for a, k in zip(revised, keys, strict=True)]),
        len(keys),
    )


EYE_FILE = ".eye.safetensors"
"""What the first stage leaves in the folder until the second is done: a rebuild that was killed goes on from here."""


def rebuild(out: Path, recipe: Recipe | None = None) -> dict[str, object]:
    """Train the micro base from scratch and write it to `out`; returns what goes to training.json.

    It takes one core, and the same bytes come out however many there are; a processor without bfloat16 arithmetic takes longer and rounds
    differently. Killed in its second stage and called again, it goes on after the first.
    """
    import torch

    from benchmarks.micro.pretrain.language import train_language
    from benchmarks.micro.pretrain.model import new_model, save_checkpoint

    r = recipe or Recipe()
    keep_freed_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        t0 = time.time()
        model = new_model(r.seed, hidden=r.hidden, layers=r.layers)
        eye = _eye(model, r, out / EYE_FILE)
        train_language(
            model,
            steps=r.language_steps,
            videos=r.pool,
            batch=r.batch,
            lr=r.lr,
            muon_lr=r.muon_lr,
            mix=r.mix,
            drills=r.drills,
            seed=r.seed,
        )
        facts: dict[str, object] = {
            "recipe": asdict(r),
            **eye,
            "monitor_pct": monitor(model, videos=300, seed=2)._asdict(),
            "minutes": round((time.time() - t0) / 60, 1),
        }
        save_checkpoint(model, out, facts)
        (out / EYE_FILE).unlink(missing_ok=True)
    finally:
        torch.set_num_threads(threads)
    return facts


def _eye(model: InternVLForConditionalGeneration, recipe: Recipe, path: Path) -> dict[str, Any]:
    """The first stage, trained or read from `path` where the same recipe left it; returns what it measured."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save_file

    from benchmarks.micro.pretrain.vision import settle_features, train_vision

    told = ("seed", "hidden", "layers", "lr", "muon_lr", "vision_steps", "vision_scenes", "vision_frames")
    made_by = json.dumps({name: getattr(recipe, name) for name in told})
    weights = {k: v for k, v in model.state_dict().items() if k.startswith(("model.vision_tower.", "model.multi_modal_projector."))}
    if path.is_file():
        try:
            with safe_open(path, "pt") as f:
                if f.metadata().get("made_by") == made_by:
                    for name, value in weights.items():
                        value.copy_(f.get_tensor(name))
                    print(f"eye: read from {path}", flush=True)
                    kept: dict[str, Any] = json.loads(f.metadata()["facts"])
                    return kept
        except SafetensorError as error:
            print(f"eye: {path} is damaged ({error}); trained again", flush=True)
    seen = train_vision(
        model,
        steps=recipe.vision_steps,
        scenes=recipe.vision_scenes,
        frames=recipe.vision_frames,
        lr=recipe.lr,
        muon_lr=recipe.muon_lr,
        seed=recipe.seed,
    )
    facts: dict[str, Any] = {"eye_pct": seen}
    facts["feature_lengths"] = settle_features(model, seed=recipe.seed)
    print(f"eye: {facts['eye_pct']}", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    half_written = path.with_name(f"{path.name}.{os.getpid()}")
    save_file(weights, half_written, metadata={"made_by": made_by, "facts": json.dumps(facts)})
    sync_files([half_written], path.parent)
    half_written.replace(path)
    return facts


__all__ = ["BASE_DIR", "Lesson", "Monitor", "Recipe", "Scene", "greedy", "monitor", "rebuild"]
