"""Qwen2.5-VL and Qwen3-VL: frames in pairs, any aspect ratio, three-dimensional rope (M-RoPE).

Qwen2.5-VL writes a video as one run of tokens whose temporal position counts seconds; Qwen3-VL writes the time as text before each pair of
frames and adds features to the first layers (deepstack). Text after a video goes on at the largest position + 1, as both models were
trained (Qwen2-VL paper, section 2.1). transformers 5.23 leaves the temporal positions out of that maximum for Qwen2.5-VL while a prompt is
read and counts them while the reply is generated; the two rules agree as long as a clip's last temporal position is below half its longer
side in patches. Its processor also leaves the chat template's vision_start and vision_end around those of Qwen3-VL's frames; the processor
as published replaced them, and so it is done here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from savi.families.base import Family, Prepared, Timing, VideoFeatures, normalise, resize_frames, smart_size


class _QwenVL(Family):
    """What both share: sizes, patches, the vision tower, positions."""

    modality = "video"
    after_video = ""

    def _token(self, token_id: int) -> str:
        return str(self.tokenizer.convert_ids_to_tokens(int(token_id)))

    def last_token(self) -> str:
        return self._token(self.config.vision_end_token_id)

    @property
    def placeholder(self) -> str:
        start, end = self._token(self.config.vision_start_token_id), self.last_token()
        return f"{start}{self._token(self.visual_token_id)}{end}"

    def _bounds(self, frames: int) -> tuple[int, int]:
        """Least and most pixels of a frame."""
        raise NotImplementedError

    def prepare(self, frames: np.ndarray, timing: Timing) -> Prepared:
        vision = self.config.vision_config
        patch, merge, step = int(vision.patch_size), int(vision.spatial_merge_size), int(vision.temporal_patch_size)
        least, most = self._bounds(len(frames))
        height, width = smart_size(frames.shape[1], frames.shape[2], factor=patch * merge, min_pixels=least, max_pixels=most)
        pixels = normalise(resize_frames(frames, height, width), self.preprocessing)
        missing = -len(pixels) % step
        if missing:
            pixels = torch.cat([pixels, pixels[-1:].expand(missing, -1, -1, -1)])
        t, h, w = len(pixels) // step, height // patch, width // patch
        blocks = pixels.view(t, step, 3, h // merge, merge, patch, w // merge, merge, patch)
        flat = blocks.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w, -1)
        return Prepared(flat, len(frames), timing, (t, h, w))

    def encode(self, model: nn.Module, prepared: Sequence[Prepared]) -> list[VideoFeatures]:
        reference = next(model.parameters())
        pixels = torch.cat([p.pixels for p in prepared]).to(reference.device, reference.dtype)
        grids = torch.tensor([p.grid for p in prepared], device=reference.device)
        output = model.get_submodule("model").get_video_features(pixels, grids, return_dict=True)  # type: ignore[operator]
        layers = getattr(output, "deepstack_features", None) or ()
        return [
            VideoFeatures(embeds, p.frames, p.timing, tuple(layer[i] for layer in layers), p.grid)
            for i, (embeds, p) in enumerate(zip(output.pooler_output, prepared, strict=True))
        ]

    def _temporal(self, features: VideoFeatures, length: int) -> Tensor:
        """Temporal offsets of the `length` rows of one run of visual tokens."""
        raise NotImplementedError

    def positions(self, ids: Tensor, features: VideoFeatures) -> tuple[Tensor, int]:
        assert features.grid is not None
        merge = int(self.config.vision_config.spatial_merge_size)
        height, width = features.grid[1] // merge, features.grid[2] // merge
        visual = self.visual_runs(ids)
        parts: list[Tensor] = []
        following = 0
        for length, is_visual in _runs(visual):
            if not is_visual:
                part = torch.arange(length).expand(3, -1) + following
            else:
                steps = self._temporal(features, length // (height * width))
                grid = torch.meshgrid(steps, torch.arange(height), torch.arange(width), indexing="ij")
                part = torch.stack(grid).reshape(3, -1) + following
            parts.append(part)
            following = int(part.max()) + 1
        return torch.cat(parts, 1).to(ids.device), following

    def text_positions(self, positions: Tensor) -> Tensor:
        return positions.expand(3, *positions.shape)


def _runs(mask: Tensor) -> list[tuple[int, bool]]:
    """Lengths of the runs of equal values of a mask `[P]`, with the value."""
    values, counts = torch.unique_consecutive(mask, return_counts=True)
    return list(zip(counts.tolist(), values.tolist(), strict=True))


class Qwen25VL(_QwenVL):
    """`Qwen2_5_VLForConditionalGeneration`."""

    name = "qwen2_5_vl"
    model_types = ("qwen2_5_vl",)
    covers = "Qwen2.5-VL"

    def _bounds(self, frames: int) -> tuple[int, int]:
        size = self.preprocessing.video_raw.get("size") or {}
        least = int(self.preprocessing.video_raw.get("min_pixels") or size.get("shortest_edge") or 128 * 28 * 28)
        return least, int(self.preprocessing.video_raw.get("max_pixels") or size.get("longest_edge") or 768 * 28 * 28)

    def _temporal(self, features: VideoFeatures, length: int) -> Tensor:
        vision = self.config.vision_config
        seconds_per_step = features.timing.step_s * int(vision.temporal_patch_size)
        return (torch.arange(length) * (vision.tokens_per_second * seconds_per_step)).long()

    def clock(self, features: VideoFeatures) -> tuple[float, ...]:
        return (features.timing.step_s,)

    def pieces(self, features: VideoFeatures) -> list[str | int]:
        return [self._token(self.config.vision_start_token_id), features.tokens, self.last_token()]


class Qwen3VL(_QwenVL):
    """`Qwen3VLForConditionalGeneration`."""

    name = "qwen3_vl"
    model_types = ("qwen3_vl",)
    covers = "Qwen3-VL"

    def _bounds(self, frames: int) -> tuple[int, int]:
        """The budget is one for the whole video; each frame gets its share, at most 768 tokens as in the reference."""
        size = self.preprocessing.video_raw.get("size") or {}
        least, most = int(size.get("shortest_edge") or 128 * 32 * 32), int(size.get("longest_edge") or 32 * 32 * 768 * 32)
        factor = int(self.config.vision_config.patch_size) * int(self.config.vision_config.spatial_merge_size)
        share = max(1, frames + frames % 2)
        return max(factor**2, least // share), max(factor**2, min(768 * factor**2, most // share))

    def _temporal(self, features: VideoFeatures, length: int) -> Tensor:
        return torch.arange(length)

    def pieces(self, features: VideoFeatures) -> list[str | int]:
        assert features.grid is not None
        step = int(self.config.vision_config.temporal_patch_size)
        seconds = list(features.timing.seconds)
        seconds += [seconds[-1]] * (-len(seconds) % step)
        start, end = self._token(self.config.vision_start_token_id), self.last_token()
        per_step = features.tokens // features.grid[0]
        pieces: list[str | int] = []
        for i in range(features.grid[0]):
            moment = (seconds[i * step] + seconds[(i + 1) * step - 1]) / 2
            pieces += [f"<{moment:.1f} seconds>{start}", per_step, end]
        return pieces

    def encoder_output(self, features: Sequence[VideoFeatures]) -> Any:
        from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

        layers = [tuple(f.deepstack[i] for f in features) for i in range(len(features[0].deepstack))]
        return BaseModelOutputWithDeepstackFeatures(pooler_output=tuple(f.embeds for f in features), deepstack_features=layers)
