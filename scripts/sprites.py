"""A procedural set of frames with known factors: a white shape, turned, scaled and placed, on black.

After dSprites (Matthey et al. 2017), whose factors and counts it shares; each frame is drawn when asked
for, from its index alone, so nothing is stored or downloaded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worldvae.frames import Frames

SHAPES = ("square", "ellipse", "heart")
STRANGER = len(SHAPES)
"""The number of a shape that the set does not have, a ring: for tests of novelty."""
FACTORS = ("shape", "scale", "angle", "x", "y")
SIZES = (len(SHAPES), 6, 40, 32, 32)
COUNT = math.prod(SIZES)
TURNS = (4, 2, 1)
"""How often a square, an ellipse and a heart look the same in one turn."""
SIDE = 64
FROM, TO = 16.0, 48.0
"""Pixels between which centres lie."""
LARGEST = 13.0
"""Pixels from the centre to a corner of the largest square: no shape reaches further."""
CHUNK = 256
"""Frames drawn at once: what stays in a processor's cache."""


def factors_of(indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """Factors int64 [B, 5], in the order of ``FACTORS``, of the frames at indices [B] below ``COUNT``."""
    return np.stack(np.unravel_index(indices, SIZES), axis=-1)


def render(factors: NDArray[np.int64]) -> Frames:
    """Frames uint8 [B, 64, 64, 1] of factors int64 [B, 5]; edges are smooth over one pixel.

    Raises:
        ValueError: factors of another shape, or out of their range (a shape may be ``STRANGER``).
    """
    if factors.ndim != 2 or factors.shape[1] != len(SIZES):
        raise ValueError(f"factors must be [B, {len(SIZES)}] ({', '.join(FACTORS)}), got {factors.shape}")
    if (factors < 0).any() or (factors >= (STRANGER + 1, *SIZES[1:])).any():
        raise ValueError(f"factors must lie in 0..{[size - 1 for size in SIZES]}")
    return np.concatenate([_drawn(some) for some in np.split(factors, range(CHUNK, len(factors), CHUNK))])


def _drawn(factors: NDArray[np.int64]) -> Frames:
    _, scale, angle, x, y = factors.T[..., None, None].astype(np.float32)
    size = LARGEST * (0.5 + 0.5 * scale / (SIZES[1] - 1))
    turn = 2 * math.pi * angle / SIZES[2]
    across, down = (FROM + (TO - FROM) * place / (count - 1) for place, count in ((x, SIZES[3]), (y, SIZES[4])))
    pixel = np.arange(SIDE, dtype=np.float32) + 0.5
    right, up = (pixel[None, None, :] - across) / size, (down - pixel[None, :, None]) / size
    cos, sin = np.cos(turn), np.sin(turn)
    u, v = cos * right + sin * up, cos * up - sin * right
    distance = np.empty(u.shape, np.float32)
    for number, outline in enumerate((_square, _ellipse, _heart, _ring)):
        chosen = factors[:, 0] == number
        distance[chosen] = outline(u[chosen], v[chosen])
    inside = np.clip(0.5 - distance * size, 0, 1)
    return np.rint(255 * inside).astype(np.uint8)[..., None]


def batches(batch_size: int, seed: int, start: int = 0) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
    """Endless batches, drawn with replacement, from step ``start`` on: frames uint8 [B, 64, 64, 1], factors [B, 5].

    Each is a function of (seed, step) alone.
    """
    step = start
    while True:
        factors = factors_of(np.random.default_rng((seed, step)).integers(COUNT, size=batch_size))
        yield torch.from_numpy(render(factors)), factors
        step += 1


Grid = NDArray[np.float32]
"""float32 [B, 64, 64]: a coordinate, in units of the shape's size, or the signed distance to its outline (negative
inside)."""


def _square(u: Grid, v: Grid) -> Grid:
    return np.maximum(abs(u), abs(v)) - np.float32(math.sqrt(0.5))


def _ellipse(u: Grid, v: Grid) -> Grid:
    """Half as high as wide; to first order, the implicit function over its gradient's length."""
    r = np.sqrt(u**2 + (2 * v) ** 2)
    return r * (r - 1) / np.sqrt(u**2 + (4 * v) ** 2).clip(1e-6)


def _heart(u: Grid, v: Grid) -> Grid:
    """Two discs of radius 0.45 side by side, and the square on its tip that touches both."""
    lobe = 0.45
    discs = np.sqrt((abs(u) - lobe * math.sqrt(0.5)) ** 2 + (v - 0.3) ** 2) - lobe
    below = v - 0.3 + lobe * math.sqrt(0.5)
    tip = (np.maximum(abs(u + below), abs(u - below)) / math.sqrt(2)) - lobe
    return np.minimum(discs, tip)


def _ring(u: Grid, v: Grid) -> Grid:
    return abs(np.sqrt(u**2 + v**2) - 0.65) - 0.2
