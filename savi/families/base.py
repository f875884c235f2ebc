"""What a model family has to say so that the rest of savi need not know it: how frames become features, how the prefix is
written, where its positions end. Everything else (asking, scoring, packing) is the same for all of them.

A family is a small object made from a model's config, its tokenizer and its preprocessor settings. It never holds the
model: the model is passed in, so that training may wrap or replace it. It must not know prompts, benchmarks or losses.

For training on the same inputs (`savi.training.packing`), four calls are enough:

* `features = lm.features(frames)` runs the vision tower and the projector once (no gradient),
* `ids = lm.prefix_ids(features)` `[P]`, the ids of system + frames up to and with the last visual token,
* `positions, next_pos = family.positions(ids, features)` `[P]` or `[3, P]` (M-RoPE), and where the text goes on;
  `family.branch_positions(next_pos, n)` gives the same for `n` text tokens after it,
* `model(input_ids=..., position_ids=..., mm_encoder_outputs=family.mm_encoder_outputs([features, ...]))`: the stock
  forward takes the features in the place of pixels, deepstack included, in the order of the rows.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from savi.base.errors import ExitCode, SaviError
from savi.video.frames import Frames

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Timing:
    """When the frames of a video were shown, in seconds; families that write or count time read it."""

    seconds: tuple[float, ...]
    duration_s: float

    @classmethod
    def every(cls, frames: int, step_s: float = 1.0) -> Timing:
        """Frames at a fixed step: what is assumed of a bare array, which has no clock."""
        return cls(tuple(i * step_s for i in range(frames)), frames * step_s)

    @property
    def step_s(self) -> float:
        """Mean distance between two frames in seconds."""
        return self.duration_s / max(1, len(self.seconds))


def pixels_and_timing(video: Frames | np.ndarray) -> tuple[np.ndarray, Timing]:
    """What `Family.prepare` takes of a video: its frames `[T, H, W, 3]` and their times, a second apart in a bare array.

    Raises:
        ValueError: an array of another type or shape.
    """
    if isinstance(video, Frames):
        seconds = tuple(index / video.fps if video.fps else 0.0 for index in video.indices)
        return video.pixels, Timing(seconds, video.duration_s)
    if video.ndim != 4 or video.shape[-1] != 3 or video.dtype != np.uint8 or len(video) == 0:
        raise ValueError(f"frames must be uint8 [T, H, W, 3] with T at least 1, not {video.dtype} {list(video.shape)}")
    return video, Timing.every(len(video))


@dataclass(frozen=True)
class VideoFeatures:
    """One video after the vision tower and the projector.

    `embeds` `[tokens, D]` replaces the embeddings of the visual tokens, `deepstack` (Qwen3-VL) is added to the hidden states
    of the first layers there, `grid` is `(t, h, w)` in patches for families of any aspect ratio, `frame_tokens` the tokens of each frame
    where frames have different numbers of them.
    """

    embeds: Tensor
    frames: int
    timing: Timing
    deepstack: tuple[Tensor, ...] = ()
    grid: tuple[int, int, int] | None = None
    frame_tokens: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        """Number of visual tokens."""
        return int(self.embeds.shape[0])


@dataclass(frozen=True)
class Prepared:
    """Frames as the vision tower takes them: `pixels` is family-shaped, float, on the CPU."""

    pixels: Tensor
    frames: int
    timing: Timing
    grid: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Preprocessing:
    """The part of preprocessor_config.json that matters here; `raw` is kept so that it is saved again unchanged.

    Not from that file: `max_tiles` that a frame may be cut into, and `input_size`, the side of a tile in pixels (None: the model's own).
    """

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    raw: Mapping[str, Any] = field(default_factory=dict)
    video_raw: Mapping[str, Any] = field(default_factory=dict)
    max_tiles: int = 1
    input_size: int | None = None

    @property
    def tiled(self) -> bool:
        """Whether frames are prepared in another way than the checkpoint's own."""
        return self.max_tiles != 1 or self.input_size is not None

    @classmethod
    def from_json(cls, image: Mapping[str, Any], video: Mapping[str, Any]) -> Preprocessing:
        """Mean and std of the image settings, else of the video settings, else ImageNet's."""
        for source in (image, video):
            if "image_mean" in source and "image_std" in source:
                mean, std = (tuple(map(float, source[key])) for key in ("image_mean", "image_std"))
                if len(mean) not in (1, 3) or len(std) != len(mean) or not all(map(math.isfinite, mean + std)) or not all(std):
                    raise ValueError(f"image_mean {list(mean)} and image_std {list(std)} are not three numbers each, std above 0")
                return cls(mean, std, image, video)
        return cls(raw=image, video_raw=video)


class FamilyError(SaviError, ValueError):
    """A checkpoint, tokenizer or input this family cannot use: names what, and the fix."""

    exit_code = ExitCode.USAGE


class Family(ABC):
    """One architecture. Subclasses say the family-specific part; the shared part is here."""

    name: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]
    modality: ClassVar[Literal["image", "video"]]
    covers: ClassVar[str]
    """The models people know it by."""
    why_not: ClassVar[str] = ""
    """Why this family is refused: it cannot share a video's prefix, which all of savi depends on, or transformers has no class for it.
    Empty where it works. A refused family needs no methods."""
    after_video: ClassVar[str] = "\n"
    """Text between the last visual token and the user's prompt, where the chat template does not place the video itself."""
    takes_tiles: ClassVar[bool] = False
    """Whether a frame may be cut into tiles (`Preprocessing.max_tiles`)."""
    outro: ClassVar[str] = ""
    """Text the family's own processor writes right after a video that the template placed."""

    @property
    def placeholder(self) -> str:
        """What a chat template that knows videos writes for one; empty where templates of this family do not."""
        return ""

    def __init__(self, config: Any, tokenizer: Any, preprocessing: Preprocessing) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.preprocessing = preprocessing
        if preprocessing.max_tiles < 1:
            raise FamilyError(f"max_tiles is {preprocessing.max_tiles}; it must be at least 1")
        if preprocessing.tiled and not self.takes_tiles:
            raise FamilyError(f"{self.name} models take a frame whole: max_tiles and input_size are for InternVL")

    @property
    def visual_token_id(self) -> int:
        """The id in whose places the features are put."""
        return int(self.config.image_token_id if self.modality == "image" else self.config.video_token_id)

    @abstractmethod
    def prepare(self, frames: np.ndarray, timing: Timing) -> Prepared:
        """uint8 frames `[T, H, W, 3]` -> what the vision tower takes. No model needed, so it may run in a worker."""

    @abstractmethod
    def encode(self, model: nn.Module, prepared: Sequence[Prepared]) -> list[VideoFeatures]:
        """Vision tower and projector for several videos at once where their shapes agree."""

    @abstractmethod
    def pieces(self, features: VideoFeatures) -> list[str | int]:
        """The video as it is written in the user's turn: texts, and the length of each run of visual tokens."""

    def clock(self, features: VideoFeatures) -> tuple[float, ...]:
        """What of a video's timing enters its positions: videos that differ here do not share a forward."""
        return ()

    def last_token(self) -> str:
        """The special token that `pieces` ends with, where it is not the visual token itself."""
        return ""

    def encoder_output(self, features: Sequence[VideoFeatures]) -> Any:
        """The object the stock forward takes as `mm_encoder_outputs[modality]` for these videos, row after row."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        return BaseModelOutputWithPooling(pooler_output=tuple(f.embeds for f in features))

    def mm_encoder_outputs(self, features: Sequence[VideoFeatures]) -> dict[str, Any]:
        """Keyword value for the stock forward: features instead of pixels. A new dict each call (the forward writes into it)."""
        return {self.modality: self.encoder_output(features)}

    def text_model(self, model: nn.Module) -> nn.Module:
        """The decoder alone: `input_ids [B, L] -> last_hidden_state [B, L, D]`; text after a prefix needs no more."""
        return model.get_submodule("model.language_model")

    def positions(self, ids: Tensor, features: VideoFeatures) -> tuple[Tensor, int]:
        """Rope positions of a prefix `[P]` (or `[3, P]`), and the position at which the text after it goes on."""
        return torch.arange(ids.numel(), device=ids.device), int(ids.numel())

    def branch_positions(self, start: int, length: int, device: torch.device | str = "cpu") -> Tensor:
        """Positions `[n]` (or `[3, n]`) of text that follows a prefix; `start` is its `next_pos`."""
        return self.text_positions(torch.arange(start, start + length, device=device))

    def text_positions(self, positions: Tensor) -> Tensor:
        """One-dimensional positions `[..., L]` in the shape the family's rope takes."""
        return positions

    def visual_runs(self, ids: Tensor) -> Tensor:
        """Mask `[P]` of the visual tokens."""
        return ids == self.visual_token_id


def resize_frames(frames: np.ndarray, height: int, width: int, *, lanczos: bool = False) -> np.ndarray:
    """PIL bicubic (or Lanczos) resize of uint8 frames `[T, H, W, 3]`; frames of that size already are not touched."""
    if frames.shape[1:3] == (height, width):
        return frames
    from PIL import Image

    resample = Image.Resampling.LANCZOS if lanczos else Image.Resampling.BICUBIC
    return np.stack([np.asarray(Image.fromarray(frame).resize((width, height), resample)) for frame in frames])


def normalise(frames: np.ndarray, preprocessing: Preprocessing) -> Tensor:
    """uint8 `[T, H, W, 3]` -> float32 `[T, 3, H, W]`, `(x / 255 - mean) / std`."""
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float()
    mean = torch.tensor(preprocessing.mean).view(1, -1, 1, 1)
    std = torch.tensor(preprocessing.std).view(1, -1, 1, 1)
    return ((pixels / 255.0 - mean) / std).contiguous()


def square_size(value: Any) -> tuple[int, int]:
    """`image_size` as configs write it (a number or a pair) -> `(height, width)`."""
    if isinstance(value, int):
        return value, value
    height, width = value
    return int(height), int(width)


def smart_size(height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Nearest size with both sides multiples of `factor` and an area within bounds (Qwen's rule).

    Source: transformers `image_processing_qwen2_vl.smart_resize`.
    """
    new_height = max(factor, round(height / factor) * factor)
    new_width = max(factor, round(width / factor) * factor)
    if new_height * new_width > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_height * new_width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    return new_height, new_width
