"""savi aligns a video language model with its own critiques.

    import savi
    lm = savi.VideoLM.from_pretrained(path_or_hub_id)
    video = lm.watch("clip.mp4", num_frames=32)                    # decoded and encoded once
    video.ask("What is left of the cup?", max_new_tokens=150)      # one question, one Reply; a list of questions gives a list
    pairs = savi.propose(lm, videos, settings)                     # -> iterator of PreferencePair
    savi.train(lm, pairs, settings, out_dir)                       # -> a new checkpoint

Names are loaded on first use: `import savi` costs no torch, so tools that only read files or frames stay quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "AlignSettings": "loop.propose",
    "CheckpointError": "conversion.checkpoint",
    "DPOSettings": "training.settings",
    "Failure": "base.files",
    "FailureLog": "base.files",
    "FramePrefetcher": "video.prefetch",
    "Frames": "video.frames",
    "GenerationSettings": "engine.video_lm",
    "PreferencePair": "loop.preferences",
    "Reply": "engine.video_lm",
    "ResponseScore": "engine.video_lm",
    "ServerLM": "server.server_lm",
    "VideoError": "video.frames",
    "VideoLM": "engine.video_lm",
    "Watched": "engine.video_lm",
    "convert": "conversion.checkpoint",
    "find_videos": "video.frames",
    "prefetch": "video.prefetch",
    "propose": "loop.propose",
    "read_frames": "video.read",
    "run_iteration": "iterate",
    "segment_indices": "video.frames",
    "train": "training.trainer",
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
    "ServerLM",
    "VideoError",
    "VideoLM",
    "Watched",
    "convert",
    "find_videos",
    "prefetch",
    "propose",
    "read_frames",
    "run_iteration",
    "segment_indices",
    "train",
]

if TYPE_CHECKING:
    from savi.base.files import Failure, FailureLog
    from savi.conversion.checkpoint import CheckpointError, convert
    from savi.engine.video_lm import GenerationSettings, Reply, ResponseScore, VideoLM, Watched
    from savi.iterate import run_iteration
    from savi.loop.preferences import PreferencePair
    from savi.loop.propose import AlignSettings, propose
    from savi.server.server_lm import ServerLM
    from savi.training.settings import DPOSettings
    from savi.training.trainer import train
    from savi.video.frames import Frames, VideoError, find_videos, segment_indices
    from savi.video.prefetch import FramePrefetcher, prefetch
    from savi.video.read import read_frames


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'savi' has no attribute {name!r}")
    module = importlib.import_module(f"savi.{_EXPORTS[name]}")
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
