"""Gemma 3: refused by name, since its frames cannot be part of a causal prefix."""

from __future__ import annotations

from savi.families.base import Family


class Gemma3(Family):
    """`Gemma3ForConditionalGeneration`. Source: transformers' `modeling_gemma3.py`, `create_masks_for_generate`."""

    name = "gemma3"
    model_types = ("gemma3",)
    modality = "image"
    covers = "Gemma 3 (4B, 12B, 27B)"
    why_not = "tokens of an image attend to later tokens of it (bidirectional attention), and five of six layers see a sliding window only"
