"""InternVL (2.5, 3, 3.5) in its native form, with a Qwen2, Qwen3 or llama (InternLM2) language model.

A frame is resized to one square tile of `image_seq_length` tokens, or cut into several (`savi.families.tiles`) that are one run of tokens.
`Frame1: <image>\\nFrame2: <image>\\n` and so on, as the model was trained (InternVL2.5 model card, video conversation).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from savi.families.base import Family, FamilyError, Prepared, Preprocessing, Timing, VideoFeatures, normalise, square_size
from savi.families.tiles import cut_frames


class InternVL(Family):
    """`InternVLForConditionalGeneration`."""

    name = "internvl"
    model_types = ("internvl",)
    modality = "image"
    covers = "InternVL 2, 2.5 and 3.5 (converted), 3 and 3.5 (-HF)"
    takes_tiles = True

    def __init__(self, config: Any, tokenizer: Any, preprocessing: Preprocessing) -> None:
        super().__init__(config, tokenizer, preprocessing)
        self.side, self.tokens_per_tile = square_size(config.vision_config.image_size)[0], int(config.image_seq_length)
        if preprocessing.input_size is not None:
            cell = round(square_size(config.vision_config.patch_size)[0] / config.downsample_ratio)
            self.side = preprocessing.input_size
            if self.side < cell or self.side % cell:
                raise FamilyError(f"input_size is {self.side}; a tile's side must be a multiple of {cell} pixels, one token")
            self.tokens_per_tile = (self.side // cell) ** 2

    def _named_token(self, name: str) -> str:
        """`start_image_token` and the like where the tokenizer defines them, else nothing."""
        token = getattr(self.tokenizer, name, None)
        if token is None:
            extra = self.tokenizer.init_kwargs.get("extra_special_tokens")
            token = extra.get(name) if isinstance(extra, dict) else None
        return str(token) if token else ""

    def prepare(self, frames: np.ndarray, timing: Timing) -> Prepared:
        tiles = cut_frames(frames, max_tiles=self.preprocessing.max_tiles, side=self.side)
        return Prepared(normalise(tiles, self.preprocessing), len(frames), timing)

    def encode(self, model: nn.Module, prepared: Sequence[Prepared]) -> list[VideoFeatures]:
        pixels = torch.cat([p.pixels for p in prepared])
        reference = next(model.parameters())
        output = model.get_submodule("model").get_image_features(  # type: ignore[operator]
            pixels.to(reference.device, reference.dtype), return_dict=True
        )
        rows = output.pooler_output  # [tiles of all videos, tokens, D]
        if rows.shape[1] != self.tokens_per_tile:
            raise FamilyError(
                f"the vision tower gives {rows.shape[1]} tokens a tile instead of {self.tokens_per_tile}; see image_seq_length"
            )
        split = rows.split([len(p.pixels) for p in prepared])
        return [VideoFeatures(part.flatten(0, 1), p.frames, p.timing) for part, p in zip(split, prepared, strict=True)]

    def pieces(self, features: VideoFeatures) -> list[str | int]:
        start, end = self._named_token("start_image_token"), self._named_token("end_image_token")
        per_frame = features.tokens // features.frames
        pieces: list[str | int] = []
        for i in range(features.frames):
            lead = "" if i == 0 else "\n"
            pieces += [f"{lead}Frame{i + 1}: {start}", per_frame, *([end] if end else [])]
        return pieces

    def last_token(self) -> str:
        return self._named_token("end_image_token")

    def encoder_output(self, features: Sequence[VideoFeatures]) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        rows = torch.cat([f.embeds for f in features])
        return BaseModelOutputWithPooling(pooler_output=rows.view(-1, self.tokens_per_tile, rows.shape[-1]))
