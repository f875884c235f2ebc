"""A rendered small world: scenes, videos, questions, twins of the six benchmarks and a tiny base model."""
