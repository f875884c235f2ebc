"""Qwen3.5: refused by name, since most of its layers keep no keys and values that prompts could share."""

from __future__ import annotations

from savi.families.base import Family


class Qwen35(Family):
    """`Qwen3_5ForConditionalGeneration`. Source: transformers' `modeling_qwen3_5.py`, `Qwen3_5GatedDeltaNet`."""

    name = "qwen3_5"
    model_types = ("qwen3_5", "qwen3_5_moe")
    modality = "video"
    covers = "Qwen3.5"
    why_not = "three of four layers keep one running state (gated delta net) instead of keys and values, and packed training needs those"
