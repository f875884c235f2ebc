"""Measures a video language model through lmms-eval, decides what a difference means, and tells it."""
