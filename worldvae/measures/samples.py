"""Do generated frames look like real ones, show all that there is, and does a score tell strange ones apart?

Features are float [B, D] of any network; distances are Euclidean. Of features of one's own these are no FID.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from worldvae.frames import Frames

Features = NDArray[np.float32]


@dataclass(frozen=True)
class Fidelity:
    """Precision and recall of Kynkäänniemi et al. 2019, density and coverage of Naeem et al. 2020.

    Attributes:
        precision: share of the made that lie within a real one's k-th neighbour.
        recall: share of the real that lie within a made one's k-th neighbour.
        density: in how many real ones' neighbourhoods a made one lies, over k; 1 is what real ones have, more
            is crowding where real ones are dense.
        coverage: share of the real with a made one within their k-th neighbour.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def fidelity(real: Features, made: Features, k: int = 5) -> Fidelity:
    """How made features [M, D] lie among real ones [N, D].

    Raises:
        ValueError: fewer than k + 1 of either, or of other sizes.
    """
    if min(len(real), len(made)) <= k or real.shape[1:] != made.shape[1:]:
        raise ValueError(f"features must be [B > {k}, D] of the same D, got {real.shape} and {made.shape}")
    between = _distances(real, made)
    of_real, of_made = neighbour_distance(real, k), neighbour_distance(made, k)
    within = between < of_real[:, None]
    return Fidelity(
        precision=float(within.any(0).mean()),
        recall=float((between < of_made).any(1).mean()),
        density=float(within.sum(0).mean() / k),
        coverage=float((between.min(1) < of_real).mean()),
    )


def neighbour_distance(features: Features, k: int) -> Features:
    """float32 [B]: from each to its k-th nearest other one."""
    return np.partition(_distances(features, features), k, axis=1)[:, k]  # the first is itself


def within_reach(real: Features, made: Features, k: int = 5) -> NDArray[np.bool_]:
    """bool [M]: does each made feature lie within a real one's k-th neighbour? Its mean is the precision."""
    return np.asarray((_distances(real, made) < neighbour_distance(real, k)[:, None]).any(0))


def dropped_modes(real: Iterable[Hashable], made: Iterable[Hashable], least: int = 1) -> float:
    """The share of the values that at least ``least`` of the real have which no made one has.

    Raises ValueError where no value is so common.
    """
    common = {value for value, count in Counter(real).items() if count >= least}
    if not common:
        raise ValueError(f"no value occurs {least} times among the real: there is nothing to drop")
    return len(common - set(made)) / len(common)


def evenness(paths: NDArray[Any]) -> float | None:
    """How evenly paths of points [R, K, ..] move: the mean step's length over the longest one's, mean over paths.

    1 is a steady pace, 1 / (K - 1) stands still and jumps once. Paths that do not move are left out; None where
    none does.

    Raises:
        ValueError: fewer than two steps.
    """
    points = paths.reshape(*paths.shape[:2], -1).astype(np.float32)
    if points.shape[1] < 3:
        raise ValueError(f"the evenness of a path needs two steps, this has {points.shape[1]} points")
    steps = np.linalg.norm(np.diff(points, axis=1), axis=-1)
    longest = steps.max(1)
    moving = longest > 0
    return float((steps.mean(1)[moving] / longest[moving]).mean()) if moving.any() else None


def novelty_auroc(known: NDArray[Any], strange: NDArray[Any]) -> float:
    """How surely a score [B] is higher on strange frames than on known ones: 0.5 is chance, 1 always.

    Raises ImportError without scikit-learn.
    """
    try:
        from sklearn.metrics import roc_auc_score
    except ImportError as error:
        raise ImportError("the AUROC needs scikit-learn: pip install 'worldvae[measures]'") from error
    labels = np.repeat([0, 1], [len(known), len(strange)])
    return float(roc_auc_score(labels, np.concatenate([known, strange])))


def neighbour_novelty(train: Frames, frames: Frames, k: int = 5) -> NDArray[np.float32]:
    """The baseline that needs no model: float32 [B], mean distance to the k nearest of the training frames' pixels."""
    there, here = (part.reshape(len(part), -1).astype(np.float32) / np.float32(255) for part in (train, frames))
    return np.partition(_distances(here, there), k - 1, axis=1)[:, :k].mean(1)


def _distances(a: Features, b: Features) -> Features:
    """float32 [A, B]; of a few dimensions exact, as a fast product is not where points lie close together."""
    mode = "donot_use_mm_for_euclid_dist" if a.shape[1] <= 256 else "use_mm_for_euclid_dist"
    left, right = (torch.from_numpy(np.ascontiguousarray(points)) for points in (a, b))
    return torch.cdist(left, right, compute_mode=mode).numpy()
