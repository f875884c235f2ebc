"""Micro bases by seed, and the limits each has to meet: seeds come in, checkpoints and what was measured of them go out. Knows no study."""
