"""Ten things that everybody can draw, as outlines.

Outlines are computed with `math` and rounded, so that they are the same everywhere. A point is
(x, y) with y pointing down, and a thing fills roughly the square from -1 to 1.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Points = list[tuple[float, float]]

# Body parts form one silhouette; details are drawn inside it, holes are cut out of it.
Role = Literal["body", "detail", "hole"]


@dataclass(frozen=True)
class Part:
    """A closed outline, (N, 2) float32, and its role in the thing."""

    outline: npt.NDArray[np.float32]
    role: Role = "body"


class Draw:
    """Draws the random numbers of one picture from one seed."""

    def __init__(self, *seed: int) -> None:
        self.generator = np.random.default_rng(seed)

    def between(self, low: float, high: float) -> float:
        """Draw a number from `low` to `high`, uniformly."""
        return low + (high - low) * float(self.generator.random())

    def chance(self, probability: float) -> bool:
        """Draw True with a probability."""
        return float(self.generator.random()) < probability

    def choice(self, count: int) -> int:
        """Draw a whole number from 0 to `count` - 1."""
        return min(count - 1, int(self.generator.random() * count))


Sketch = list[tuple[Points, Role]]


def _ellipse(
    x: float, y: float, rx: float, ry: float, start: float = 0, end: float = 360, steps: int = 24
) -> Points:
    angles = [math.radians(start + (end - start) * i / steps) for i in range(steps)]
    return [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles]


def _box(left: float, top: float, right: float, bottom: float) -> Points:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _star(draw: Draw) -> Sketch:
    points = 5 if draw.chance(0.8) else 6
    inner = draw.between(0.36, 0.52)
    outline = []
    for i in range(2 * points):
        radius = 1.0 if i % 2 == 0 else inner
        angle = math.pi * i / points - math.pi / 2
        outline.append((radius * math.cos(angle), radius * math.sin(angle)))
    return [(outline, "body")]


def _heart(draw: Draw) -> Sketch:
    height = draw.between(0.85, 1.1)
    outline = []
    for i in range(36):
        t = 2 * math.pi * i / 36
        x = math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        outline.append((x, -height * (y / 16 + 0.12)))
    return [(outline, "body")]


def _house(draw: Draw) -> Sketch:
    wall = draw.between(0.62, 0.8)
    eaves = draw.between(-0.25, 0.0)
    overhang = draw.between(0.0, 0.2)
    roof = [(-wall - overhang, eaves), (0.0, draw.between(-1.0, -0.8)), (wall + overhang, eaves)]
    parts: Sketch = [(_box(-wall, eaves - 0.02, wall, 0.9), "body"), (roof, "body")]
    if draw.chance(0.5):
        parts.append((_box(0.35, -0.85, 0.55, -0.3), "body"))
    door = draw.between(-0.35, 0.1)
    parts.append((_box(door, 0.35, door + 0.3, 0.9), "detail"))
    if draw.chance(0.6):
        window = door + 0.42 if door < -0.1 else door - 0.48
        parts.append((_box(window, 0.2, window + 0.23, 0.45), "detail"))
    return parts


def _tree(draw: Draw) -> Sketch:
    trunk = draw.between(0.1, 0.18)
    parts: Sketch = [(_box(-trunk, 0.3, trunk, 1.0), "body")]
    if draw.chance(0.5):
        width = draw.between(0.6, 0.8)
        for i in range(3):
            top = -1.0 + 0.42 * i
            spread = width * (0.6 + 0.2 * i)
            parts.append(([(0.0, top), (spread, top + 0.65), (-spread, top + 0.65)], "body"))
    else:
        radius = draw.between(0.4, 0.5)
        for x, y in ((0.0, -0.5), (-0.38, -0.15), (0.38, -0.15), (0.0, 0.0)):
            parts.append((_ellipse(x, y, radius, radius, steps=16), "body"))
    return parts


def _fish(draw: Draw) -> Sketch:
    height = draw.between(0.38, 0.55)
    fin = draw.between(0.35, 0.5)
    body = _ellipse(-0.2, 0.0, 0.75, height)
    tail = [(0.4, 0.0), (1.0, -fin), (0.85, 0.0), (1.0, fin)]
    parts: Sketch = [(body, "body"), (tail, "body")]
    if draw.chance(0.6):
        parts.append(([(-0.4, -height * 0.8), (0.1, -height - 0.28), (0.2, -height * 0.7)], "body"))
    parts.append((_ellipse(-0.58, -0.12, 0.09, 0.09, steps=10), "detail"))
    return parts


def _cup(draw: Draw) -> Sketch:
    top, bottom = draw.between(0.58, 0.68), draw.between(0.42, 0.58)
    height = draw.between(0.65, 0.85)
    body = [
        (-top - 0.15, -height),
        (top - 0.15, -height),
        (bottom - 0.15, height),
        (-bottom - 0.15, height),
    ]
    middle = draw.between(-0.15, 0.05)
    parts: Sketch = [
        (_ellipse(top - 0.12, middle, 0.42, 0.46), "body"),
        (_ellipse(top - 0.12, middle, 0.22, 0.27), "hole"),
        (body, "body"),
    ]
    if draw.chance(0.5):
        parts.append((_ellipse(-0.15, -height, top * 0.92, 0.12, steps=16), "detail"))
    return parts


def _arrow(draw: Draw) -> Sketch:
    shaft = draw.between(0.16, 0.28)
    head = draw.between(0.55, 0.75)
    neck = draw.between(0.0, 0.25)
    outline = [
        (-1.0, -shaft), (neck, -shaft), (neck, -head), (1.0, 0.0),
        (neck, head), (neck, shaft), (-1.0, shaft),
    ]  # fmt: skip
    return [(outline, "body")]


def _moon(draw: Draw) -> Sketch:
    depth = draw.between(0.35, 0.6)
    outer = _ellipse(0.0, 0.0, 1.0, 1.0, 50, 310, 30)
    tip = math.cos(math.radians(50))
    height = math.sin(math.radians(50))
    inner = [
        (tip - depth * 1.2 * math.cos(t), -height * math.sin(t))
        for t in (math.radians(90 - 180 * i / 17) for i in range(18))
    ]
    return [([(x + 0.15, y) for x, y in outer + inner], "body")]


def _flower(draw: Draw) -> Sketch:
    petals = 5 + draw.choice(3)
    size = draw.between(0.32, 0.4)
    offset = draw.between(0, 360)
    parts: Sketch = []
    lift = -0.25 if draw.chance(0.5) else 0.0
    if lift:
        parts.append((_box(-0.06, 0.2, 0.06, 1.1), "body"))
    for i in range(petals):
        angle = math.radians(offset + 360 * i / petals)
        petal = _ellipse(
            0.52 * math.cos(angle), lift + 0.52 * math.sin(angle), size, size, steps=14
        )
        parts.append((petal, "body"))
    parts.append((_ellipse(0.0, lift, 0.27, 0.27, steps=14), "detail"))
    return parts


def _key(draw: Draw) -> Sketch:
    ring = draw.between(0.36, 0.46)
    shaft = draw.between(0.08, 0.12)
    parts: Sketch = [
        (_ellipse(-0.6, 0.0, ring, ring), "body"),
        (_ellipse(-0.6, 0.0, ring * 0.5, ring * 0.5, steps=16), "hole"),
        (_box(-0.65 + ring, -shaft, 1.0, shaft), "body"),
    ]
    for i in range(2 + draw.choice(2)):
        left = 0.82 - 0.25 * i
        parts.append((_box(left, 0.0, left + 0.13, draw.between(0.25, 0.42)), "body"))
    return parts


THINGS: Mapping[str, Callable[[Draw], Sketch]] = {
    "arrow": _arrow,
    "cup": _cup,
    "fish": _fish,
    "flower": _flower,
    "heart": _heart,
    "house": _house,
    "key": _key,
    "moon": _moon,
    "star": _star,
    "tree": _tree,
}


def draw_thing(thing: str, draw: Draw, size: int) -> list[Part]:
    """Draw a thing's outlines in pixels of a `size` x `size` picture, in a random pose."""
    sketch = THINGS[thing](draw)
    scale = size * draw.between(0.2, 0.36)
    angle = math.radians(draw.between(-35, 35))
    shear, stretch = draw.between(-0.25, 0.25), draw.between(0.8, 1.15)
    mirror = -1 if draw.chance(0.5) else 1
    room = size / 2 - scale * 0.9
    x0 = size / 2 + draw.between(-room, room) * 0.8
    y0 = size / 2 + draw.between(-room, room) * 0.8
    cos, sin = math.cos(angle), math.sin(angle)

    def place(x: float, y: float) -> tuple[float, float]:
        x, y = mirror * (x + shear * y), stretch * y
        return (
            round(x0 + scale * (cos * x - sin * y), 3),
            round(y0 + scale * (sin * x + cos * y), 3),
        )

    return [
        Part(np.array([place(x, y) for x, y in points], dtype=np.float32), role)
        for points, role in sketch
    ]
