"""LLaVA-OneVision: a square tile a frame, pooled two by two, one newline feature at the end of the video."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from savi.families.base import Family, Prepared, Timing, VideoFeatures, normalise, resize_frames, square_size


class LlavaOnevision(Family):
    """`LlavaOnevisionForConditionalGeneration`."""

    name = "llava_onevision"
    model_types = ("llava_onevision",)
    modality = "video"
    covers = "LLaVA-OneVision"

    @property
    def placeholder(self) -> str:
        return str(self.tokenizer.convert_ids_to_tokens(self.visual_token_id))

    def prepare(self, frames: np.ndarray, timing: Timing) -> Prepared:
        height, width = square_size(self.config.vision_config.image_size)
        return Prepared(normalise(resize_frames(frames, height, width), self.preprocessing), len(frames), timing)

    def encode(self, model: nn.Module, prepared: Sequence[Prepared]) -> list[VideoFeatures]:
        reference = next(model.parameters())
        features = []
        for p in prepared:  # the newline is one a call and row: videos of other lengths cannot share one
            pixels = p.pixels[None].to(reference.device, reference.dtype)
            output = model.get_submodule("model").get_video_features(pixels, return_dict=True)  # type: ignore[operator]
            features.append(VideoFeatures(output.pooler_output[0], p.frames, p.timing))
        return features

    def pieces(self, features: VideoFeatures) -> list[str | int]:
        return [features.tokens]

    def encoder_output(self, features: Sequence[VideoFeatures]) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        # the forward flattens rows and tokens, so one row of all tokens serves videos of any lengths
        return BaseModelOutputWithPooling(pooler_output=torch.cat([f.embeds for f in features])[None])
