"""Draws things in four styles, with the same pixels everywhere.

Pixels are computed with sums, products, square roots and comparisons of float32, which
every machine rounds in the same way. No drawing library is used.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .shapes import THINGS, Draw, Part, draw_thing

SIZE = 64

Field = npt.NDArray[np.floating[Any]]  # (H, W)
Image = npt.NDArray[np.floating[Any]]  # (H, W, 3), 0 to 1
Color = tuple[float, float, float] | npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Drawing:
    """A thing as signed distances in pixels, (H, W) float32, negative inside.

    Attributes:
        body: Distance to the silhouette, whose holes are cut out.
        details: Distance to the details; large everywhere if the thing has none.
    """

    body: Field
    details: Field


def _grid(size: int) -> tuple[Field, Field]:
    steps = np.arange(size, dtype=np.float32) + np.float32(0.5)
    return np.broadcast_to(steps[None, :], (size, size)), np.broadcast_to(
        steps[:, None], (size, size)
    )


def _distance(outline: npt.NDArray[np.floating[Any]], size: int) -> Field:
    """Return the signed distance to a closed outline: negative inside, by the even-odd rule."""
    x, y = (axis[..., None] for axis in _grid(size))
    (ax, ay), (bx, by) = outline.T, np.roll(outline, -1, axis=0).T
    dx, dy = bx - ax, by - ay
    along = ((x - ax) * dx + (y - ay) * dy) / np.maximum(dx * dx + dy * dy, np.float32(1e-6))
    along = np.clip(along, 0, 1)
    ex, ey = x - ax - along * dx, y - ay - along * dy
    distance = np.sqrt((ex * ex + ey * ey).min(axis=-1))
    rise = np.where(dy == 0, np.float32(1), dy)
    crossing = ((ay > y) != (by > y)) & (x < ax + dx * (y - ay) / rise)
    inside = np.logical_xor.reduce(crossing, axis=-1)
    signed: Field = np.where(inside, -distance, distance)
    return signed


def measure(parts: Sequence[Part], size: int) -> Drawing:
    """Compute the distances to the outlines."""
    far = np.full((size, size), 1e3, dtype=np.float32)
    body, details = far, far
    for part in parts:
        distance = _distance(part.outline, size)
        if part.role == "body":
            body = np.minimum(body, distance)
        elif part.role == "hole":
            body = np.maximum(body, -distance)
        else:
            details = np.minimum(details, distance)
    return Drawing(body, details)


def _cover(distance: Field, softness: float = 1.0) -> Field:
    """Return how much of each pixel is inside: 1 well inside, 0 well outside."""
    covered: Field = np.clip(0.5 - distance / np.float32(softness), 0, 1)
    return covered


def _paint(image: Image, cover: Field, color: Color) -> Image:
    painted: Image = image + cover[..., None] * (np.asarray(color, dtype=np.float32) - image)
    return painted


def _flat(color: Color, size: int) -> Image:
    return np.broadcast_to(np.asarray(color, dtype=np.float32), (size, size, 3)).copy()


def _noise(draw: Draw, size: int, cells: int) -> Field:
    """Return smooth noise from 0 to 1: random values on a grid of `cells`, interpolated."""
    values = draw.generator.random((cells + 1, cells + 1)).astype(np.float32)
    place = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(cells / size)
    low = place.astype(np.intp)
    part = place - low
    part = part * part * (3 - 2 * part)
    rows = values[low] + part[:, None] * (values[low + 1] - values[low])
    noise: Field = rows[:, low] + part[None, :] * (rows[:, low + 1] - rows[:, low])
    return noise


def _fractal(draw: Draw, size: int) -> Field:
    total = np.zeros((size, size), dtype=np.float32)
    weight = np.float32(0.5)
    for cells in (3, 6, 12, 24, 48):
        total = total + weight * _noise(draw, size, cells)
        weight = weight * np.float32(0.6)
    spread: Field = (total - total.min()) / (total.max() - total.min())
    return spread


def _hue(hue: float, saturation: float, value: float) -> Color:
    """Convert HSV to RGB, all values from 0 to 1."""
    sector = (hue % 1.0) * 6

    def channel(shift: float) -> float:
        k = (shift + sector) % 6
        return value - value * saturation * max(0.0, min(k, 4 - k, 1.0))

    return channel(5), channel(3), channel(1)


def _clutter(draw: Draw, size: int, count: int) -> list[Field]:
    """Return the distances to small random marks."""
    marks = []
    for _ in range(count):
        x, y = draw.between(0, size), draw.between(0, size)
        radius = draw.between(1.5, 4.0)
        if draw.chance(0.5):
            gx, gy = _grid(size)
            dx, dy = gx - np.float32(x), gy - np.float32(y)
            marks.append(np.sqrt(dx * dx + dy * dy) - np.float32(radius))
        else:
            corners = [(x, y - radius), (x + radius, y + radius), (x - radius, y + radius * 0.6)]
            marks.append(_distance(np.round(np.array(corners, dtype=np.float32), 3), size))
    return marks


def _photo(drawing: Drawing, draw: Draw, size: int) -> Image:
    """Paint a solid, lit thing on a mottled background, with a shadow, slightly blurred."""
    ground_hue, hue = draw.between(0, 1), draw.between(0, 1)
    texture, mottled = _fractal(draw, size), _fractal(draw, size)
    near, far = _hue(ground_hue, 0.45, 0.25), _hue(ground_hue + 0.12, 0.4, 0.8)
    image = _paint(_flat(near, size), mottled, far)
    image = image + np.float32(0.35) * (
        np.stack([_fractal(draw, size) for _ in range(3)], -1) - 0.5
    )
    for mark in _clutter(draw, size, draw.choice(4)):
        image = _paint(image, 0.7 * _cover(mark, 2.0), _hue(draw.between(0, 1), 0.5, 0.5))
    shift = 1 + draw.choice(3)
    shadow = np.roll(drawing.body, (shift, shift), axis=(0, 1))
    image = _paint(image, 0.65 * _cover(shadow - 1, 5.0), (0.03, 0.03, 0.05))
    # Lit from the upper left: the edge is beveled up to 5 pixels inwards.
    depth = np.clip(-drawing.body / np.float32(5.0), 0, 1)
    gx, gy = np.zeros_like(depth), np.zeros_like(depth)
    gx[:, 1:-1] = depth[:, 2:] - depth[:, :-2]
    gy[1:-1] = depth[2:] - depth[:-2]
    light = np.clip(0.75 + 0.9 * (gx + gy) + 0.35 * (texture - 0.5), 0.15, 1.3)
    surface = np.asarray(_hue(hue, draw.between(0.45, 0.85), draw.between(0.6, 0.95)), np.float32)
    image = _paint(image, _cover(drawing.body, 1.6), light[..., None] * surface)
    image = _paint(
        image, 0.7 * _cover(np.maximum(drawing.details, drawing.body), 1.6), 0.4 * surface
    )
    grain = draw.generator.random((size, size, 3)).astype(np.float32) - np.float32(0.5)
    return _blur(image) + np.float32(0.1) * grain


def _blur(image: Image) -> Image:
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    blurred: Image = (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / np.float32(16)
    return blurred


def _sketch(drawing: Drawing, draw: Draw, size: int) -> Image:
    """Paint with pencil on paper: wavering lines drawn twice, hatching, no color."""
    paper = draw.between(0.86, 0.98)
    image = _flat((paper, paper * draw.between(0.97, 1.0), paper * draw.between(0.9, 0.99)), size)
    image = image - np.float32(0.06) * _noise(draw, size, 32)[..., None]
    ink = draw.between(0.05, 0.35)
    pencil = (ink, ink, ink * 1.1)
    x, y = _grid(size)
    if draw.chance(0.6):
        slope, gap = np.float32(draw.between(0.5, 1.5)), np.float32(draw.between(4, 7))
        where = (x * slope + y) % gap
        shade = _cover(drawing.body + 1.5) if draw.chance(0.6) else 1 - _cover(drawing.body - 3)
        patch = _cover(np.float32(0.55) - _noise(draw, size, 4), 0.2)
        image = _paint(image, 0.5 * _cover(np.abs(where - gap / 2) - 0.3) * shade * patch, pencil)
    for mark in _clutter(draw, size, draw.choice(4)):
        image = _paint(image, 0.45 * _cover(np.abs(mark) - 0.4), pencil)
    width = draw.between(0.35, 0.9)
    for _ in range(2):
        waver = np.float32(2.6) * (_noise(draw, size, 6) - np.float32(0.5))
        body = np.abs(drawing.body + waver)
        lines = np.minimum(body, np.abs(np.maximum(drawing.details + waver, drawing.body)))
        pressure = 0.55 + 0.45 * _noise(draw, size, 8)
        image = _paint(image, pressure * _cover(lines - width, 1.3), pencil)
    return image


def _cartoon(drawing: Drawing, draw: Draw, size: int) -> Image:
    """Paint with flat colors, a thick dark outline, a highlight and confetti."""
    hue = draw.between(0, 1)
    x, y = _grid(size)
    image = _flat(
        _hue(hue + draw.between(0.25, 0.75), draw.between(0.15, 0.5), draw.between(0.8, 1)), size
    )
    if draw.chance(0.5):
        band = _cover(np.abs(((x + y) % 16) - 8) - 3)
        image = _paint(image, 0.35 * band, (1.0, 1.0, 1.0))
    for mark in _clutter(draw, size, 1 + draw.choice(6)):
        image = _paint(image, _cover(mark), _hue(draw.between(0, 1), 0.7, 0.95))
    width = draw.between(1.1, 2.0)
    fill = _hue(hue, draw.between(0.65, 0.95), draw.between(0.8, 1))
    image = _paint(image, _cover(drawing.body - width), (0.08, 0.05, 0.1))
    image = _paint(image, _cover(drawing.body + width * 0.3), fill)
    lit = np.maximum(drawing.body + 3, (x + y) - np.float32(draw.between(0.7, 1.0) * size))
    image = _paint(image, 0.3 * _cover(lit, 1.5), (1.0, 1.0, 1.0))
    details = np.maximum(drawing.details, drawing.body)
    image = _paint(image, _cover(details - 0.8), (0.08, 0.05, 0.1))
    return _paint(image, _cover(details + 0.4), _hue(hue + 0.5, 0.35, 0.95))


def _neon(drawing: Drawing, draw: Draw, size: int) -> Image:
    """Paint glowing tubes on a dark brick wall."""
    tint = draw.between(0, 1)
    image = _flat(_hue(tint, 0.5, draw.between(0.06, 0.16)), size)
    x, y = _grid(size)
    height = np.float32(draw.between(6, 9))
    row = (y / height).astype(np.intp) % 2
    joints = np.minimum(y % height, (x + row * height) % (2 * height))
    image = image * (1 - np.float32(0.5) * _cover(joints - 0.7))[..., None]
    image = image + np.float32(0.05) * draw.generator.random((size, size, 1)).astype(np.float32)
    tubes = [
        (np.abs(mark), _hue(draw.between(0, 1), 0.9, 0.6), 0.5)
        for mark in _clutter(draw, size, draw.choice(4))
    ]
    hue = draw.between(0, 1)
    details = np.abs(np.maximum(drawing.details, drawing.body))
    tubes.append((details, _hue(hue + 0.4, 0.7, 1.0), 0.8))
    tubes.append((np.abs(drawing.body), _hue(hue, 0.9, 1.0), 1.0))
    width = draw.between(0.5, 1.1)
    for distance, color, power in tubes:
        beyond = np.maximum(distance - np.float32(width), 0)
        glow = np.float32(9 * power) / (9 + beyond * beyond)
        light = np.asarray(color, dtype=np.float32)
        image = image + (np.float32(0.75) * glow * glow)[..., None] * light
        image = _paint(image, 0.85 * power * _cover(distance - width, 1.2), 0.5 + 0.5 * light)
    return image


STYLES: Mapping[str, Callable[[Drawing, Draw, int], Image]] = {
    "cartoon": _cartoon,
    "neon": _neon,
    "photo": _photo,
    "sketch": _sketch,
}


def draw_picture(style: str, thing: str, *seed: int, size: int = SIZE) -> npt.NDArray[np.uint8]:
    """Draw a thing in a style: (size, size, 3) uint8, the same for equal seeds everywhere."""
    draw = Draw(*seed, list(STYLES).index(style), list(THINGS).index(thing))
    drawing = measure(draw_thing(thing, draw, size), size)
    image = STYLES[style](drawing, draw, size)
    return (np.clip(image, 0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8)
