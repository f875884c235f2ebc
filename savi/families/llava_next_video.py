"""LLaVA-NeXT-Video: the middle square of each frame, pooled two by two. (LLaVA-Video, a later model, has no class in transformers.)"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from savi.families.base import Family, Prepared, Timing, VideoFeatures, normalise, resize_frames, square_size
from savi.families.llava_onevision import LlavaOnevision


class LlavaNextVideo(LlavaOnevision):
    """`LlavaNextVideoForConditionalGeneration`. Frames follow transformers' `video_processing_llava_next_video.py`."""

    name = "llava_next_video"
    model_types = ("llava_next_video",)
    covers = "LLaVA-NeXT-Video (-hf)"

    def prepare(self, frames: np.ndarray, timing: Timing) -> Prepared:
        side, _ = square_size(self.config.vision_config.image_size)
        height, width = frames.shape[1:3]
        short = min(height, width)
        resized = resize_frames(frames, int(side * height / short), int(side * width / short))
        top, left = (resized.shape[1] - side) // 2, (resized.shape[2] - side) // 2
        return Prepared(normalise(resized[:, top : top + side, left : left + side], self.preprocessing), len(frames), timing)

    def encoder_output(self, features: Sequence[VideoFeatures]) -> Any:
        return Family.encoder_output(self, features)


class LlavaVideo(Family):
    """LLaVA-Video, and other models, in the layout of the LLaVA-NeXT repository."""

    name = "llava"
    model_types = ("llava", "llava_qwen")
    modality = "video"
    covers = "LLaVA-Video, and LLaVA-OneVision as lmms-lab publishes it"
    why_not = "transformers has no class for it (LLaVA-NeXT's own code runs it); llava-hf publishes LLaVA-OneVision for transformers"
