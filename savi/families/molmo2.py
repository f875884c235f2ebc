"""Molmo2: refused by name, since its frames cannot be part of a causal prefix."""

from __future__ import annotations

from savi.families.base import Family


class Molmo2(Family):
    """`Molmo2ForConditionalGeneration`. Source: transformers' `modeling_molmo2.py`, `create_masks_for_generate`."""

    name = "molmo2"
    model_types = ("molmo2",)
    modality = "video"
    covers = "Molmo2"
    why_not = "visual tokens attend to later ones, of later frames too (bidirectional attention); packed training is causal"
