"""The supported model families, by the `model_type` of their config."""

from __future__ import annotations

from typing import Any

from savi.families.base import Family, FamilyError, Preprocessing, Timing, VideoFeatures

__all__ = ["Family", "FamilyError", "Preprocessing", "Timing", "UnsupportedFamily", "VideoFeatures", "family_for", "supported"]


class UnsupportedFamily(FamilyError):
    """A `model_type` savi has no family for: names it and lists those it has."""


def _families() -> dict[str, type[Family]]:
    from savi.families.internvl import InternVL
    from savi.families.llava_onevision import LlavaOnevision
    from savi.families.qwen_vl import Qwen3VL, Qwen25VL
    from savi.families.smolvlm import SmolVLM

    families: tuple[type[Family], ...] = (InternVL, LlavaOnevision, Qwen25VL, Qwen3VL, SmolVLM)
    return {model_type: family for family in families for model_type in family.model_types}


def supported() -> list[str]:
    """The `model_type`s with a family, sorted."""
    return sorted(_families())


def family_for(config: Any, tokenizer: Any, preprocessing: Preprocessing, *, where: str = "the model") -> Family:
    """The family of a config.

    Raises:
        UnsupportedFamily: named, with the list of supported ones.
    """
    known = _families()
    model_type = str(getattr(config, "model_type", None))
    if model_type not in known:
        hint = "; convert it first: python -m savi convert" if model_type == "internvl_chat" else ""
        raise UnsupportedFamily(f"{where}: model_type {model_type!r} is not supported (supported: {', '.join(sorted(known))}){hint}")
    return known[model_type](config, tokenizer, preprocessing)
