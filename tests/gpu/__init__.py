"""Checks that need a CUDA GPU. As a script: `python -m tests.gpu` (one line a check, printed as it ends); by pytest: `-m gpu tests/gpu`.

Without the folder's name pytest imports every test file before it prints a line: 15 s of a core, and minutes where the disk is cold.
"""
