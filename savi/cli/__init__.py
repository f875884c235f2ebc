"""The commands of `python -m savi`, and what they share."""
