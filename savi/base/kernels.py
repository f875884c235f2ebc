"""Which of the engine's two decoders runs on a device, and which kernel reads a batch's prefixes: decided here and nowhere else.

Free of torch, so that `harness doctor` can say what will run.
"""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from typing import Literal, get_args

from savi.base.errors import UsageError

Decoder = Literal["auto", "static", "eager"]
DECODER_VARIABLE = "SAVI_DECODER"
"""Environment variable that forces a decoder where the caller names none."""

ATTENTION_VARIABLE = "SAVI_ATTENTION"
"""Environment variable that says whether the package flash-attn, where it is installed, is used: auto (it is), torch, flash-attn."""

PrefixKernel = Literal["flash (torch)", "memory-efficient (torch)", "flash-attn", "matrix products"]


def decoder_for(device: str, asked: str = "auto") -> Literal["static", "eager"]:
    """The decoder on a device ("cuda", "cpu"): `asked`, else `SAVI_DECODER`, else static on CUDA and eager elsewhere.

    On a CPU nothing waits for launches, and the eager one reads no padding: it is faster there
    (`python -m reproduce speed --preset cpu --case decode-1x6`).

    Raises:
        UsageError: no such decoder.
    """
    wanted = asked if asked != "auto" else os.environ.get(DECODER_VARIABLE) or "auto"
    if wanted not in get_args(Decoder):
        raise UsageError(f"no decoder {wanted!r}; set {DECODER_VARIABLE} to one of {', '.join(get_args(Decoder))}")
    if wanted == "auto":
        return "static" if device == "cuda" else "eager"
    return "static" if wanted == "static" else "eager"


@cache
def flash_attn_installed() -> bool:
    """Whether the package flash-attn is there (it is not imported)."""
    return importlib.util.find_spec("flash_attn") is not None


def takes_flash_attn() -> bool:
    """Whether the package flash-attn is to be used where it can be.

    Raises:
        UsageError: no such choice, or it is asked for and not installed.
    """
    wanted = os.environ.get(ATTENTION_VARIABLE) or "auto"
    if wanted not in ("auto", "torch", "flash-attn"):
        raise UsageError(f"no attention {wanted!r}; set {ATTENTION_VARIABLE} to one of auto, torch, flash-attn")
    if wanted == "flash-attn" and not flash_attn_installed():
        raise UsageError(f"{ATTENTION_VARIABLE} is flash-attn, which is not installed: pip install flash-attn, or unset it")
    return wanted != "torch" and flash_attn_installed()


def causal_kernel(device: str, *, half: bool, head_dim: int) -> Literal["torch", "flash-attn"]:
    """What reads a video, and the prefix of a training step: flash-attn where it is there and takes it, else torch (on CUDA the same
    algorithm: 558 of 785 TFLOP/s measured on an H200)."""
    fits = device == "cuda" and half and head_dim % 8 == 0 and head_dim <= 256
    return "flash-attn" if fits and takes_flash_attn() else "torch"


def prefix_kernel(device: str, *, half: bool, head_dim: int, equal_lengths: bool) -> PrefixKernel:
    """What reads the prefixes that a batch shares.

    On CUDA, torch's flash kernel takes 16-bit floats and heads of 8 to 256 in steps of 8. None of torch's takes keys of unequal number and
    splits them; flash-attn does, where it is installed. For equal ones it is the same algorithm as torch's, which therefore stays.
    """
    flash = half and head_dim % 8 == 0 and head_dim <= 256
    if equal_lengths:
        return "flash (torch)" if device == "cpu" or flash else "memory-efficient (torch)"
    return "flash-attn" if device == "cuda" and flash and takes_flash_attn() else "matrix products"
