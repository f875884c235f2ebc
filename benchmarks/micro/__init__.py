"""Synthetic data: scenes, videos, questions, twins of the benchmarks and a tiny base model."""
