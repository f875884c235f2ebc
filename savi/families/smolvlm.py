"""SmolVLM2: a sentence that announces the video, then every frame with its time as text and a fixed number of tokens.

Wording and layout follow transformers' `processing_smolvlm.py` and `video_processing_smolvlm.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import numpy as np
import torch
from torch import nn

from savi.families.base import Family, FamilyError, Prepared, Timing, VideoFeatures, normalise, resize_frames, square_size

# fmt: off
_UNITS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
    "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)
_TENS = ("zero", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
# fmt: on


def in_words(number: int) -> str:
    """A number below a thousand in English words, hyphen and "and" as num2words writes them."""
    if number < 20:
        return _UNITS[number]
    if number < 100:
        return _TENS[number // 10] + (f"-{_UNITS[number % 10]}" if number % 10 else "")
    return f"{_UNITS[number // 100]} hundred" + (f" and {in_words(number % 100)}" if number % 100 else "")


class SmolVLM(Family):
    """`SmolVLMForConditionalGeneration` (SmolVLM2)."""

    name = "smolvlm"
    model_types = ("smolvlm",)
    modality = "image"
    covers = "SmolVLM2"
    after_video = "\n\n"
    outro = "\n\n"

    @property
    def placeholder(self) -> str:
        return "<video>"

    def _named_token(self, name: str, default: str) -> str:
        return str(getattr(self.tokenizer, name, None) or default)

    def last_token(self) -> str:
        return self._named_token("fake_image_token", "<fake_token_around_image>")

    def text_model(self, model: nn.Module) -> nn.Module:
        return model.get_submodule("model.text_model")

    def prepare(self, frames: np.ndarray, timing: Timing) -> Prepared:
        height, width = square_size(self.config.vision_config.image_size)
        pixels = normalise(resize_frames(frames, height, width, lanczos=True), self.preprocessing)
        return Prepared(pixels, len(frames), timing)

    def encode(self, model: nn.Module, prepared: Sequence[Prepared]) -> list[VideoFeatures]:
        reference = next(model.parameters())
        pixels = torch.cat([p.pixels for p in prepared])[None].to(reference.device, reference.dtype)
        output = model.get_submodule("model").get_image_features(pixels, return_dict=True)  # type: ignore[operator]
        rows = torch.cat(list(output.pooler_output))
        count = sum(p.frames for p in prepared)
        size = self.config.vision_config
        per_frame = int((square_size(size.image_size)[0] // size.patch_size) ** 2 / self.config.scale_factor**2)
        if len(rows) != count * per_frame:
            raise FamilyError(f"{count} frames of {per_frame} tokens each gave {len(rows)}: SmolVLM drops frames whose pixels are all zero")
        split = rows.split([p.frames * per_frame for p in prepared])
        return [VideoFeatures(part, p.frames, p.timing) for part, p in zip(split, prepared, strict=True)]

    def pieces(self, features: VideoFeatures) -> list[str | int]:
        around, overview = self.last_token(), self._named_token("global_image_token", "<global-img>")
        length = timedelta(seconds=int(features.timing.duration_s))
        lead = f"You are provided the following series of {in_words(features.frames)} frames from a {length} [H:MM:SS] video.\n"
        per_frame = features.tokens // features.frames
        pieces: list[str | int] = []
        for second in features.timing.seconds:
            pieces += [f"{lead}\nFrame from {int(second // 60):02d}:{int(second % 60):02d}:{around}{overview}", per_frame, around]
            lead = ""
        return pieces
