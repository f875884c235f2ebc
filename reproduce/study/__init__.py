"""The micro experiment over loop seeds, beside its controls."""
