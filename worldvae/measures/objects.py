"""Do small things survive the codec? Found by a detector that is fitted on real frames and checked there first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, max_pool2d

from worldvae.frames import Frames, to_unit
from worldvae.muon import Muon
from worldvae.optimisers import Optimisers

Points = NDArray[np.float32]
"""[n, 2]: x to the right and y down, in pixels of the frame; a pixel's middle is at its index + 0.5."""
RADIUS = 2.0
"""Pixels within which a detection is of an object."""


class Detector(nn.Module):
    """float [B, C, H, W] in [0, 1] -> logits [B, H, W] of an object's middle being in that pixel; H and W even.

    It sees some 34 x 34 pixels: enough to know a near fireball by its outline, which a codec keeps, and not by its
    texture alone, which a codec smooths.
    """

    threshold: Tensor

    def __init__(self, channels: int, width: int = 24):
        super().__init__()
        self.convs = nn.Sequential(  # on half the size, four pixels side by side: a third of the time
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * channels, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=2, dilation=2),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=4, dilation=4),
            nn.SiLU(),
            last := nn.Conv2d(width, 4, 3, padding=1),
            nn.PixelShuffle(2),
        )
        self.register_buffer("threshold", torch.tensor(0.5))
        nn.init.constant_(last.bias, -6.0)  # type: ignore[arg-type]
        nn.Module.to(self, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tensor:
        return self.convs(images).squeeze(1)

    def find(self, frames: Frames) -> list[Points]:
        """The objects in each frame uint8 [B, H, W, C]: peaks of the probability that reach the threshold."""
        return _peaks(self.probability(frames), self.threshold.item())

    @torch.no_grad()
    def probability(self, frames: Frames) -> Tensor:
        """Of an object's middle in each pixel: float [B, H, W]."""
        chunks = torch.from_numpy(np.ascontiguousarray(frames)).split(256)
        return torch.cat([self(to_unit(chunk)).sigmoid() for chunk in chunks])


def _peaks(probability: Tensor, threshold: float) -> list[Points]:
    """Local maxima of 5 x 5 pixels in maps [B, H, W], each moved to the centre of mass of its 3 x 3 pixels."""
    peak = (probability == max_pool2d(probability, 5, 1, padding=2)) & (probability >= threshold)
    frame, y, x = (i.numpy() for i in peak.nonzero(as_tuple=True))
    padded = np.pad(probability.numpy(), ((0, 0), (1, 1), (1, 1)))
    window = np.stack([padded[frame, y + dy, x + dx] for dy in range(3) for dx in range(3)], -1).reshape(-1, 3, 3)
    mass = window.sum((1, 2))
    offset_x = (window.sum(1) * [-1, 0, 1]).sum(1) / mass
    offset_y = (window.sum(2) * [-1, 0, 1]).sum(1) / mass
    points = np.stack([x + 0.5 + offset_x, y + 0.5 + offset_y], -1).astype(np.float32)
    return [points[frame == b] for b in range(len(probability))]


def fit_detector(
    frames: Frames, objects: Sequence[Points], seed: int = 0, steps: int = 1200, batch: int = 32
) -> Detector:
    """A detector of the objects in frames uint8 [N, H, W, C]; its threshold is where it is best on a tenth
    of them that it does not learn from.

    Raises ValueError where no frame shows an object.
    """
    if not any(len(points) for points in objects):
        raise ValueError("no frame shows an object: collect more, or longer, episodes")
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    order = random.permutation(len(frames))
    checked, learned = order[: len(frames) // 10 + 1], order[len(frames) // 10 + 1 :]
    shown = np.array([len(points) > 0 for points in objects])
    chance = np.where(shown[learned], 0.7 / max(1, shown[learned].sum()), 0.3 / max(1, (~shown[learned]).sum()))
    detector = Detector(frames.shape[-1])
    weights, biases = ([p for p in detector.parameters() if (p.ndim > 1) == matrix] for matrix in (True, False))
    cycle = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=5e-3, total_steps=steps)
    optimisers = Optimisers([Muon(weights, 5e-3), torch.optim.Adam(biases, 5e-3)], cycle)
    for _ in range(steps):
        rows = random.choice(learned, batch, p=chance / chance.sum())
        target = torch.from_numpy(np.stack([_heat(objects[row], *frames.shape[1:3]) for row in rows]))
        logits = detector(to_unit(torch.from_numpy(frames[rows])))
        loss = binary_cross_entropy_with_logits(logits, target, weight=1 + 20 * target, reduction="sum") / batch
        optimisers.zero_grad()
        loss.backward()
        optimisers.step()
        optimisers.next_rate()
    _choose_threshold(detector, frames[checked], [objects[row] for row in checked])
    return detector


def _heat(points: Points, height: int, width: int) -> NDArray[np.float32]:
    """A Gaussian of one pixel's sd around each point: [H, W], at most 1."""
    heat = np.zeros((height, width), np.float32)
    for x, y in points:
        rows, columns = np.arange(height)[:, None] + 0.5 - y, np.arange(width) + 0.5 - x
        heat = np.maximum(heat, np.exp(-0.5 * (rows**2 + columns**2)).astype(np.float32))
    return heat


def _choose_threshold(detector: Detector, frames: Frames, objects: Sequence[Points]) -> None:
    scores, probability = {}, detector.probability(frames)
    for threshold in np.arange(0.15, 0.9, 0.1):
        told = score(_peaks(probability, float(threshold)), objects)
        scores[float(threshold)] = 2 * told.recall * told.precision / max(1e-9, told.recall + told.precision)
    detector.threshold.fill_(max(scores, key=lambda t: scores[t]))


@dataclass(frozen=True)
class ObjectScore:
    """How well found objects are the true ones.

    Attributes:
        recall: share of the true objects that were found; 1 where there are none.
        precision: share of what was found that is a true object; 1 where nothing was found.
        position_error: mean distance of a found object from the true one, in pixels.
        objects, found: how many there are, and how many were found, right or wrong.
    """

    recall: float
    precision: float
    position_error: float
    objects: int
    found: int


def matches(found: Points, true: Points, radius: float = RADIUS) -> list[tuple[int, int, float]]:
    """Pairs (found, true, distance) within the radius, nearest first, each point in at most one."""
    distance = np.linalg.norm(found[:, None] - true[None], axis=-1)
    pairs: list[tuple[int, int, float]] = []
    for i, j in zip(*np.unravel_index(distance.argsort(None), distance.shape), strict=True):
        if distance[i, j] > radius:
            break
        if all(i != a and j != b for a, b, _ in pairs):
            pairs.append((int(i), int(j), float(distance[i, j])))
    return pairs


def score(found: Sequence[Points], true: Sequence[Points], radius: float = RADIUS) -> ObjectScore:
    """Compares what was found in each frame with what is there, frames without objects included."""
    errors = [error for f, t in zip(found, true, strict=True) for *_, error in matches(f, t, radius)]
    objects, told = sum(map(len, true)), sum(map(len, found))
    recall, precision = (len(errors) / n if n else 1.0 for n in (objects, told))
    return ObjectScore(recall, precision, float(np.mean(errors)) if errors else float("nan"), objects, told)


def survival(detector: Detector, real: Frames, decoded: Frames, objects: Sequence[Points]) -> ObjectScore:
    """What the codec keeps: recall of the objects that the detector finds in the real frames, precision against
    all true objects."""
    seen = [
        true[[j for _, j, _ in matches(found, true)]] for found, true in zip(detector.find(real), objects, strict=True)
    ]
    found = detector.find(decoded)
    kept, right = score(found, seen), score(found, objects)
    return ObjectScore(kept.recall, right.precision, kept.position_error, kept.objects, right.found)
