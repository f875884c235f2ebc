"""The engine as it was before prefixes were shared: every prompt answered by itself, its video encoded again, batch 1.

`OnePromptAtATime` has the methods of a `VideoLM` that the loop calls, so the same loop, parsing and questions run over both. A row's random
stream is the engine's own, so that both ways say the same and do the same work; pixels are prepared once a video, which makes this way
faster than it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from savi.engine.sampling import GenerationSettings
    from savi.engine.video_lm import Reply, VideoLM
    from savi.video.frames import Frames


@dataclass(frozen=True)
class Prepared:
    """A decoded video: pixel values `[T, 3, H, W]`, and the ids of its prefix `[P]`."""

    pixels: Tensor
    prefix: Tensor


class OneDraw:
    """A logits processor that leaves the one token the engine's sampling would draw at this step."""

    def __init__(self, settings: GenerationSettings, uniform: Tensor, prompt_length: int) -> None:
        self._settings, self._uniform, self._start = settings, uniform, prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        import torch

        from savi.engine.sampling import choose

        step = input_ids.shape[1] - self._start
        token = choose(scores.float(), self._settings, self._uniform[step : step + 1].to(scores.device))
        return torch.full_like(scores, float("-inf")).scatter_(1, token[:, None], 0.0)


class OnePromptAtATime:
    """transformers' `generate` with pixels and one prompt, as often as there are prompts."""

    def __init__(self, lm: VideoLM) -> None:
        self.lm = lm
        self.asked = 0
        """Prompts answered so far."""
        self._prefixes: dict[tuple[int, ...], Tensor] = {}

    @property
    def fingerprint(self) -> str:
        """That of the model."""
        return self.lm.fingerprint

    def watch_batch(self, videos: Sequence[Frames]) -> list[Prepared]:
        """Nothing is encoded yet: pixels are made ready, ids written (once for videos of one shape)."""
        from savi.families import Timing

        ready = []
        for video in videos:
            shape = video.pixels.shape
            if shape not in self._prefixes:
                self._prefixes[shape] = self.lm.prefix_ids(video)
            prepared = self.lm.family.prepare(video.pixels, Timing.every(len(video.pixels)))
            ready.append(Prepared(prepared.pixels.to(self.lm.device, self.lm.model.dtype), self._prefixes[shape]))
        return ready

    def ask(self, items: Sequence[tuple[Prepared, str]], settings: GenerationSettings, *, keys: Sequence[str] | None = None) -> list[Reply]:
        """Replies in order; `keys` name the random streams, as in `VideoLM.ask`."""
        names = [str(i) for i in range(len(items))] if keys is None else keys
        prompts = self.lm.chat.prompt_ids([prompt for _, prompt in items])
        return [self._reply(video, ids, settings, key) for (video, _), ids, key in zip(items, prompts, names, strict=True)]

    def _reply(self, video: Prepared, prompt: list[int], settings: GenerationSettings, key: str) -> Reply:
        import torch

        from savi.engine.sampling import uniforms
        from savi.engine.video_lm import Reply

        ids = torch.cat([video.prefix.to(self.lm.device), torch.tensor(prompt, device=self.lm.device)])[None]
        sampled: dict[str, Any] = {}
        if settings.temperature > 0:
            uniform = uniforms(settings.seed, [key], settings.max_new_tokens)[0]
            sampled["logits_processor"] = [OneDraw(settings, uniform, ids.shape[1])]
        with torch.no_grad():
            out = self.lm.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pixel_values=video.pixels,
                max_new_tokens=settings.max_new_tokens,
                do_sample=False,
                eos_token_id=self.lm.end_ids,
                pad_token_id=self.lm.end_ids[0],
                **sampled,
            )[0, ids.shape[1] :].tolist()
        self.asked += 1
        text = self.lm.tokenizer.decode(out, skip_special_tokens=True)
        return Reply(str(text).strip(), len(out), bool(out) and out[-1] in self.lm.end_ids)
