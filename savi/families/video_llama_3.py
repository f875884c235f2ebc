"""VideoLLaMA3: frames of any aspect ratio, the time before each as text, and no tokens for what did not change since the frame before.

Sizes, patches and the rule for what changed follow transformers' `video_processing_video_llama_3.py`, the wording
`processing_video_llama_3.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from savi.families.base import Family, Prepared, Timing, VideoFeatures, normalise, resize_frames, smart_size

_CHANGED = 0.1 / 255
"""Mean difference of normalised pixels above which a token's place has changed."""


class VideoLlama3(Family):
    """`VideoLlama3ForConditionalGeneration`."""

    name = "video_llama_3"
    model_types = ("video_llama_3",)
    modality = "video"
    covers = "VideoLLaMA3 (-HF)"

    @property
    def placeholder(self) -> str:
        return str(self.tokenizer.convert_ids_to_tokens(self.visual_token_id))

    @property
    def _merge(self) -> int:
        return int(self.preprocessing.video_raw.get("merge_size") or 2)

    def prepare(self, frames: np.ndarray, timing: Timing) -> Prepared:
        patch, merge = int(self.config.vision_config.patch_size), self._merge
        size = self.preprocessing.video_raw.get("size") or {}
        least, most = int(size.get("shortest_edge") or 128 * 28 * 28), int(size.get("longest_edge") or 768 * 28 * 28)
        height, width = smart_size(frames.shape[1], frames.shape[2], factor=patch * merge, min_pixels=least, max_pixels=most // len(frames))
        pixels = normalise(resize_frames(frames, height, width), self.preprocessing)
        t, h, w = len(pixels), height // patch, width // patch
        blocks = pixels.view(t, 3, h // merge, merge, patch, w // merge, merge, patch)
        flat = blocks.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(t * h * w, -1)
        return Prepared(flat, len(frames), timing, (t, h, w))

    def changed(self, prepared: Prepared) -> Tensor:
        """Mask `[T, tokens]` of the tokens that are kept: all of the first frame, later what changed, and of each frame at least one."""
        tokens = prepared.pixels.view(prepared.frames, -1, self._merge**2 * prepared.pixels.shape[-1])
        kept = torch.ones(tokens.shape[:2], dtype=torch.bool)
        kept[1:] = (tokens[1:] - tokens[:-1]).abs().mean(-1) > _CHANGED
        kept[~kept.any(1), 0] = True
        return kept

    def encode(self, model: nn.Module, prepared: Sequence[Prepared]) -> list[VideoFeatures]:
        reference = next(model.parameters())
        pixels = torch.cat([p.pixels for p in prepared]).to(reference.device, reference.dtype)
        grids = torch.tensor([p.grid for p in prepared], device=reference.device)
        merges = torch.full((len(prepared),), self._merge, device=reference.device)
        output = model.get_submodule("model").get_video_features(pixels, grids, merges, return_dict=True)  # type: ignore[operator]
        features = []
        for embeds, p in zip(output.pooler_output, prepared, strict=True):
            kept = self.changed(p)
            counts = tuple(kept.sum(1).tolist())
            features.append(VideoFeatures(embeds[kept.flatten().to(embeds.device)], p.frames, p.timing, grid=p.grid, frame_tokens=counts))
        return features

    def pieces(self, features: VideoFeatures) -> list[str | int]:
        pieces: list[str | int] = []
        for second, count in zip(features.timing.seconds, features.frame_tokens, strict=True):
            pieces += [f"{',' if pieces else ''}Time {second:.1f}s:", count]
        return pieces


class VideoLlama3Published(Family):
    """The same model as DAMO publishes it."""

    name = "videollama3_qwen2"
    model_types = ("videollama3_qwen2",)
    modality = "video"
    covers = "VideoLLaMA3 as DAMO-NLP-SG publishes it"
    why_not = "it runs only with code of its own; take a conversion to transformers' own classes (lkhl/VideoLLaMA3-2B-Image-HF is one)"
