"""savi aligns a video language model with its own critiques.

    import savi
    lm = savi.VideoLM.from_pretrained(path_or_hub_id)
    video = lm.watch("clip.mp4", num_frames=32)                    # decoded and encoded once
    video.ask(["What is left of the cup?"], max_new_tokens=150)
    pairs = savi.self_align(lm, videos, settings)                  # -> iterator of PreferencePair
    savi.train_dpo(lm, pairs, settings, out_dir)                   # -> a new checkpoint

Names are loaded on first use: `import savi` costs no torch, so tools that only read files or frames stay quick.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "AlignSettings": "self_align",
    "CheckpointError": "checkpoint",
    "DPOSettings": "dpo",
    "Failure": "files",
    "FailureLog": "files",
    "FramePrefetcher": "frames",
    "Frames": "frames",
    "GenerationSettings": "video_lm",
    "PreferencePair": "preferences",
    "Reply": "video_lm",
    "ResponseScore": "video_lm",
    "VideoError": "frames",
    "VideoLM": "video_lm",
    "Watched": "video_lm",
    "convert": "checkpoint",
    "find_videos": "frames",
    "prefetch": "frames",
    "read_frames": "frames",
    "run_iteration": "iterate",
    "segment_indices": "frames",
    "self_align": "self_align",
    "train_dpo": "trainer",
}
"""Public name -> the module it lives in."""

__all__ = [
    "AlignSettings",
    "CheckpointError",
    "DPOSettings",
    "Failure",
    "FailureLog",
    "FramePrefetcher",
    "Frames",
    "GenerationSettings",
    "PreferencePair",
    "Reply",
    "ResponseScore",
    "VideoError",
    "VideoLM",
    "Watched",
    "convert",
    "find_videos",
    "prefetch",
    "read_frames",
    "run_iteration",
    "segment_indices",
    "self_align",
    "train_dpo",
]

if TYPE_CHECKING:
    from savi.checkpoint import CheckpointError, convert
    from savi.dpo import DPOSettings
    from savi.files import Failure, FailureLog
    from savi.frames import FramePrefetcher, Frames, VideoError, find_videos, prefetch, read_frames, segment_indices
    from savi.iterate import run_iteration
    from savi.preferences import PreferencePair
    from savi.self_align import AlignSettings, self_align
    from savi.trainer import train_dpo
    from savi.video_lm import GenerationSettings, Reply, ResponseScore, VideoLM, Watched


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'savi' has no attribute {name!r}")
    module = importlib.import_module(f"savi.{_EXPORTS[name]}")
    if name == _EXPORTS[name]:
        return module  # callable, see below
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})


class _CallableModule(ModuleType):
    """A submodule that is called as the function of its own name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)


class _Package(ModuleType):
    """Python puts an imported submodule on its package, so `savi.self_align` is the module once anyone has imported from it. Making that
    module callable lets `savi.self_align(lm, videos, settings)` mean one thing whatever was imported before."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and _EXPORTS.get(name) == name:
            value.__class__ = _CallableModule
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
