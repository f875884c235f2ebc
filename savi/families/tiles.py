"""Dynamic tiling: a frame as a grid of square tiles that suits its shape, and a thumbnail of the whole frame after them.

InternVL's `dynamic_preprocess`, as the release's inference script calls it (at most 12 tiles, thumbnail on). The module knows pixels only.
"""

from __future__ import annotations

import numpy as np

from savi.families.base import resize_frames


def closest_grid(width: int, height: int, *, max_tiles: int, side: int) -> tuple[int, int]:
    """Columns and rows of the grid of at most `max_tiles` tiles whose shape is closest to the frame's.

    Grids of one shape (1 x 1, 2 x 2, 3 x 3) are equally close: the largest of less than twice the frame's area is taken, else the smallest.
    """
    grids = [(columns, rows) for columns in range(1, max_tiles + 1) for rows in range(1, max_tiles // columns + 1)]
    grids.sort(key=lambda grid: grid[0] * grid[1])
    distances = [abs(width / height - columns / rows) for columns, rows in grids]
    closest = [grid for grid, distance in zip(grids, distances, strict=True) if distance == min(distances)]
    filled = [grid for grid in closest if width * height > 0.5 * side * side * grid[0] * grid[1]]
    return filled[-1] if filled else closest[0]


def cut_frames(frames: np.ndarray, *, max_tiles: int, side: int) -> np.ndarray:
    """uint8 frames `[T, H, W, 3]` -> tiles `[T * n, side, side, 3]`: of each frame its tiles row by row, then the thumbnail if n > 1."""
    columns, rows = closest_grid(frames.shape[2], frames.shape[1], max_tiles=max_tiles, side=side)
    resized = resize_frames(frames, rows * side, columns * side)
    if columns * rows == 1:
        return resized
    tiles = resized.reshape(len(frames), rows, side, columns, side, 3).transpose(0, 1, 3, 2, 4, 5)
    tiles = tiles.reshape(len(frames), rows * columns, side, side, 3)
    return np.concatenate([tiles, resize_frames(frames, side, side)[:, None]], 1).reshape(-1, side, side, 3)
