"""The micro world: one to three coloured shapes that move, appear, vanish or change colour in eight frames of 64 x 64 pixels.

A `Scene` is the ground truth, `render` its pixels. Only the benchmarks and the base model's training may know scenes; the self-alignment
loop sees nothing but the mp4 files that `benchmarks.micro.world.videos` writes from them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

SIZE = 64
"""Width and height of a frame, pixels."""
FRAMES = 8
FPS = 4

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (230, 40, 40),
    "green": (30, 190, 60),
    "blue": (50, 90, 250),
    "yellow": (240, 220, 40),
    "pink": (240, 90, 220),
    "cyan": (60, 220, 230),
    "white": (240, 240, 240),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring")
DIRECTIONS = ("left", "right", "up", "down", "still")
SPEEDS = ("slow", "fast", "still")
PLACES = ("topleft", "topright", "bottomleft", "bottomright")
EVENTS = ("stays", "appears", "vanishes", "changes")
NUMBERS = ("one", "two", "three", "four", "five")

Event = Literal["stays", "appears", "vanishes", "changes"]
_STEP = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}
_MIN_GAP = 18.0
"""Least distance between two objects' centres, pixels: objects never touch."""


@dataclass(frozen=True)
class Thing:
    """One object: seen in frames `first`..`last`, at `path[t]` = (x, y) of its centre in pixels; its colour changes to `later_color`
    at frame
    `change` where that is set."""

    color: str
    shape: str
    direction: str
    speed: str
    radius: float
    first: int
    last: int
    path: tuple[tuple[float, float], ...]
    later_color: str | None = None
    change: int | None = None

    @property
    def event(self) -> Event:
        """What happens to the object: it changes colour, appears late, vanishes early, or stays."""
        if self.later_color:
            return "changes"
        return "appears" if self.first > 0 else "vanishes" if self.last < FRAMES - 1 else "stays"

    @property
    def start(self) -> tuple[float, float]:
        return self.path[self.first]

    @property
    def end(self) -> tuple[float, float]:
        return self.path[self.last]


@dataclass(frozen=True)
class Scene:
    """A video's ground truth: its objects, in no meaningful order, and the grey level of its background (0-255)."""

    things: tuple[Thing, ...]
    background: int

    def by_color(self, color: str) -> Thing | None:
        """The object that has this colour at its start, or None."""
        return next((t for t in self.things if t.color == color), None)


def place(x: float, y: float) -> str:
    """The quadrant of a point, one of `PLACES`."""
    return ("top" if y < SIZE / 2 else "bottom") + ("left" if x < SIZE / 2 else "right")


def cell(coordinate: float) -> int:
    """The eighth (1-8) of the frame that a coordinate lies in."""
    return min(8, max(1, int(coordinate // (SIZE / 8)) + 1))


def _draw_thing(rng: random.Random, color: str, spare: str | None) -> Thing:
    direction = rng.choice(DIRECTIONS)
    speed = "still" if direction == "still" else rng.choice(("slow", "fast"))
    dist = 0.0 if speed == "still" else rng.uniform(9, 13) if speed == "slow" else rng.uniform(26, 34)
    radius = rng.uniform(7.0, 8.5)
    dx, dy = _STEP[direction]
    m = radius + 1
    x = rng.uniform(m + max(0, -dx * dist), SIZE - m - max(0, dx * dist))
    y = rng.uniform(m + max(0, -dy * dist), SIZE - m - max(0, dy * dist))
    first, last, later, change = 0, FRAMES - 1, None, None
    u = rng.random()
    if u < 0.22:
        first = rng.choice((2, 3, 4))
    elif u < 0.44:
        last = rng.choice((3, 4, 5))
    elif u < 0.66 and spare:
        later, change = spare, rng.choice((3, 4, 5))
    span = max(1, last - first)
    path = tuple((x + dx * dist * (t - first) / span, y + dy * dist * (t - first) / span) for t in range(FRAMES))
    return Thing(color, rng.choice(SHAPES), direction, speed, radius, first, last, path, later, change)


def _apart(one: Thing, other: Thing) -> bool:
    both = range(max(one.first, other.first), min(one.last, other.last) + 1)
    return all((one.path[t][0] - other.path[t][0]) ** 2 + (one.path[t][1] - other.path[t][1]) ** 2 >= _MIN_GAP**2 for t in both)


def _clear(thing: Thing) -> bool:
    """Start and end lie clearly in a quadrant."""
    return all(abs(v - SIZE / 2) >= 2.5 for p in (thing.start, thing.end) for v in p)


def scene_rng(seed: int, index: int, purpose: str) -> random.Random:
    """A video's own random stream: video `index` is the same however many are made, and purposes never share scenes by construction."""
    return random.Random(f"{purpose}/{seed}/{index}")


def make_scene(rng: random.Random) -> Scene:
    """Draw a scene (rejection sampling until nothing overlaps and something is there in the first frame)."""
    n = rng.choices((1, 2, 3), weights=(0.2, 0.55, 0.25))[0]
    while True:
        colors = rng.sample(list(COLORS), n + 1)
        things: list[Thing] = []
        for c in colors[:n]:
            spare = None if any(t.later_color for t in things) else colors[n]
            things.append(_draw_thing(rng, c, spare))
        if not any(t.first == 0 for t in things) or not all(map(_clear, things)):
            continue
        if all(_apart(a, b) for i, a in enumerate(things) for b in things[:i]):
            return Scene(tuple(things), rng.choice((0, 20, 40)))


_YY, _XX = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) + 0.5


def _coverage(shape: str, x: float, y: float, r: float) -> NDArray[np.float32]:
    """Share of each pixel that the shape covers, `[SIZE, SIZE]` in 0-1, from its signed distance (one pixel of antialiasing)."""
    u, v = _XX - x, _YY - y
    if shape in ("circle", "ring"):
        d = np.sqrt(u * u + v * v)
        inside = r - d
        if shape == "ring":
            inside = np.minimum(inside, d - r * 0.52)
    elif shape == "square":
        inside = r * 0.86 - np.maximum(np.abs(u), np.abs(v))
    elif shape == "triangle":
        inside = np.minimum(r * 0.8 - v, (v + r - 2 * np.abs(u)) / 5**0.5)
    else:
        a, b = np.abs(u), np.abs(v)
        w = r * 0.34
        inside = np.maximum(np.minimum(w - a, r - b), np.minimum(r - a, w - b))
    return np.clip(inside + 0.5, 0, 1).astype(np.float32)


def render(scene: Scene) -> NDArray[np.uint8]:
    """Draw a scene: RGB frames `[FRAMES, SIZE, SIZE, 3]` uint8."""
    out = np.full((FRAMES, SIZE, SIZE, 3), float(scene.background), np.float32)
    for thing in scene.things:
        for t in range(thing.first, thing.last + 1):
            changed = thing.change is not None and t >= thing.change and thing.later_color is not None
            rgb = np.array(COLORS[thing.later_color if changed and thing.later_color else thing.color], np.float32)
            a = _coverage(thing.shape, *thing.path[t], thing.radius)[..., None]
            out[t] += a * (rgb - out[t])
    return np.rint(out).astype(np.uint8)


def chroma_round_trip(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What 4:2:0 video coding does to colours (BT.601, chroma averaged over 2 x 2 pixels); `[..., H, W, 3]` uint8 in and out.

    Training on such arrays and answering on mp4 files then sees the same pictures without encoding every training video."""
    f = frames.astype(np.float32)
    y = f @ np.array([0.299, 0.587, 0.114], np.float32)
    cb, cr = (f[..., 2] - y) * 0.564, (f[..., 0] - y) * 0.713

    def low(chroma: NDArray[np.float32]) -> NDArray[np.float32]:
        s = chroma.reshape(*chroma.shape[:-2], chroma.shape[-2] // 2, 2, chroma.shape[-1] // 2, 2).mean((-3, -1))
        return np.asarray(s.repeat(2, -2).repeat(2, -1))

    cb, cr = low(cb), low(cr)
    rgb = np.stack((y + 1.403 * cr, y - 0.344 * cb - 0.714 * cr, y + 1.773 * cb), -1)
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)
