"""InternVL's dynamic tiling written again, plainly, from its published definition (`dynamic_preprocess` of the InternVL2.5 model card, and
of the release's inference script), as the reference for `savi.families.tiles`; and the golden file made from it.

The definition: among all grids of at most `most` tiles, by growing number of tiles, take the one whose columns / rows is closest to width /
height; a later grid that is equally close replaces it if the frame has more than half of the grid's pixels. The frame is resized (Pillow's
default for RGB, bicubic) to the grid, cut row by row, and, where there are several tiles, followed by itself resized to one tile.

`python -m tests.savi.families.plain_tiles > tests/savi/families/tiles.json` writes the golden file. It shares no code with savi. When it
was first made, every grid and digest in it was compared with what the release's own function gives: they were equal.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys

import numpy as np
from PIL import Image

SIZES = [
    (640, 480), (640, 360), (1920, 1080), (480, 854), (448, 448), (320, 320), (896, 896), (1344, 1344), (2000, 500), (300, 1200),
    (1280, 544), (64, 64), (720, 576), (1000, 800), (4096, 2160), (100, 7), (7, 100), (3, 2),
]  # fmt: skip
MOST = [1, 2, 4, 6, 12, 24]


def plain_grid(width: int, height: int, most: int, side: int) -> tuple[int, int]:
    best, best_distance = (1, 1), math.inf
    for number in range(1, most + 1):
        for columns in range(1, number + 1):
            if number % columns:
                continue
            rows = number // columns
            distance = abs(width / height - columns / rows)
            if distance < best_distance:
                best, best_distance = (columns, rows), distance
            elif distance == best_distance and width * height > 0.5 * side * side * number:
                best = (columns, rows)
    return best


def plain_tiles(frame: np.ndarray, most: int, side: int) -> list[np.ndarray]:
    """Tiles `[side, side, 3]` of one frame, the thumbnail last."""
    image = Image.fromarray(frame)
    columns, rows = plain_grid(image.width, image.height, most, side)
    large = image.resize((columns * side, rows * side))
    tiles = []
    for row in range(rows):
        for column in range(columns):
            tiles.append(large.crop((column * side, row * side, (column + 1) * side, (row + 1) * side)))
    if len(tiles) > 1:
        tiles.append(image.resize((side, side)))
    return [np.asarray(tile) for tile in tiles]


def plain_pixels(tiles: list[np.ndarray]) -> np.ndarray:
    """float32 `[n, 3, side, side]`: scaled to 0..1, then ImageNet's mean and standard deviation."""
    mean, std = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
    return np.stack([((tile.astype(np.float32) / np.float32(255) - mean) / std).transpose(2, 0, 1) for tile in tiles])


def picture(width: int, height: int) -> np.ndarray:
    """A frame with something in every corner, from integers only."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([(x * 7 + y * 3) % 256, (x * y) % 251, (x // 5 * 40 + y // 9 * 30) % 256], -1).astype(np.uint8)


def golden() -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for width, height in SIZES:
        for most in MOST:
            columns, count = plain_grid(width, height, most, 448)
            row: dict[str, object] = {"width": width, "height": height, "max_tiles": most, "columns": columns, "rows": count}
            if width * height < 400_000:
                tiles = plain_tiles(picture(width, height), most, 56)
                row |= {"tiles_of_56": len(tiles), "sha256": hashlib.sha256(np.stack(tiles).tobytes()).hexdigest()}
            rows.append(row)
    return rows


if __name__ == "__main__":
    sys.stdout.write("[\n" + ",\n".join(map(json.dumps, golden())) + "\n]\n")
