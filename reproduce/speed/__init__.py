"""The engine against what a user would run instead, side by side."""
