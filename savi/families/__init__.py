"""The model families, by the `model_type` of their config: those savi works with, and those it refuses by name.

A family is one file in this folder and one entry of `MODULES`: everything else (loading, asking, training, the list in the README) reads
it from its class.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

from savi.families.base import Family, FamilyError, Preprocessing, Timing, VideoFeatures

__all__ = [
    "Family",
    "FamilyError",
    "Preprocessing",
    "Timing",
    "UnsupportedFamily",
    "VideoFeatures",
    "families",
    "family_class",
    "family_for",
]

MODULES = [
    "internvl", "llava_onevision", "llava_next_video", "qwen_vl", "qwen3_5", "smolvlm", "video_llama_3", "molmo2", "gemma3",
]  # fmt: skip


class UnsupportedFamily(FamilyError):
    """A `model_type` savi cannot work with: names it, says why, and lists those it works with."""


@cache
def families() -> tuple[type[Family], ...]:
    """The family classes of `MODULES`, in that order; importing them is what finds them."""
    modules = [importlib.import_module(f"{__name__}.{name}") for name in MODULES]
    found = [
        value for module in modules for value in vars(module).values() if isinstance(value, type) and value.__module__ == module.__name__
    ]
    return tuple(kind for kind in found if issubclass(kind, Family) and "model_types" in vars(kind))


def supported() -> list[str]:
    """The `model_type`s that savi works with, sorted."""
    return sorted(name for family in families() if not family.why_not for name in family.model_types)


def family_class(model_type: str, *, where: str) -> type[Family]:
    """The class of a `model_type`.

    Raises:
        UnsupportedFamily: none, or one that is refused for a reason; named, with the list of supported ones.
    """
    known = {name: family for family in families() for name in family.model_types}
    family = known.get(model_type)
    if family is not None and not family.why_not:
        return family
    why = f"is not supported: {family.why_not}" if family else "is not supported"
    hint = "; convert it first: python -m savi convert" if model_type == "internvl_chat" else ""
    raise UnsupportedFamily(f"{where}: model_type {model_type!r} {why} (supported: {', '.join(supported())}){hint}")


def family_for(config: Any, tokenizer: Any, preprocessing: Preprocessing, *, where: str = "the model") -> Family:
    """The family of a config.

    Raises:
        UnsupportedFamily: as `family_class`.
    """
    return family_class(str(getattr(config, "model_type", None)), where=where)(config, tokenizer, preprocessing)


def families_table() -> str:
    """The families as a Markdown table, those that work first: what people call them, their `model_type`s, and why not where so."""
    lines = ["| models | `model_type` | works |", "|---|---|---|"]
    for family in sorted(families(), key=lambda family: bool(family.why_not)):
        names = ", ".join(f"`{name}`" for name in family.model_types)
        lines.append(f"| {family.covers} | {names} | {f'no: {family.why_not}' if family.why_not else 'yes'} |")
    return "\n".join(lines)
