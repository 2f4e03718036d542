"""Does each latent stand for one known factor? Scores of codes against the factors of their frames.

Codes are float [B, Z], such as posterior means, factors int64 [B, F], each factor's values numbered from 0.
All scores lie in [0, 1]; none depends on the latents' scale or sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

DEAD = 0.05
"""Latents with a smaller share than this of the largest one's variance are left out of the FactorVAE score."""
NO_SKLEARN = "scores of disentanglement need scikit-learn: pip install 'worldvae[measures]'"


def mutual_information_gap(codes: NDArray[Any], factors: NDArray[np.int64], bins: int = 20) -> float:
    """MIG (Chen et al. 2018): how much more the best latent tells of a factor than the second best.

    The mean over factors of (I1 - I2) / H, each latent cut into ``bins`` of equal width; 10,000 frames are
    usual. Factors that do not vary are left out.

    Raises:
        ValueError: other shapes, fewer than two latents, or no factor that varies.
    """
    _check(codes, factors)
    if codes.shape[1] < 2:
        raise ValueError("a gap needs at least two latents")
    levels = np.stack([_binned(latent, bins) for latent in codes.T], axis=1)
    gaps = []
    for factor in factors.T:
        joint = [_joint(level, factor) for level in levels.T]
        entropy = _entropy(joint[0].sum(0))
        if entropy > 0:
            told = [_entropy(table.sum(1)) + entropy - _entropy(table.ravel()) for table in joint]
            second, first = np.sort(told)[-2:]
            gaps.append((first - second) / entropy)
    if not gaps:
        raise ValueError("no factor varies over these frames")
    return float(np.mean(gaps))


@dataclass(frozen=True)
class DCI:
    """Eastwood & Williams 2018, each in [0, 1].

    Attributes:
        disentanglement: does each latent matter to one factor alone?
        completeness: is each factor predicted from one latent alone?
        informativeness: how well factors are predicted on the other half of the frames: R² (not below 0)
            of ordered ones, accuracy of the others, mean over factors.
    """

    disentanglement: float
    completeness: float
    informativeness: float


def dci(codes: NDArray[Any], factors: NDArray[np.int64], unordered: Sequence[int] = (), seed: int = 0) -> DCI:
    """DCI by gradient boosted trees, fitted on one half of the frames and judged on the other.

    Args:
        unordered: columns of factors whose values have no order, to be classified; the others are regressed.

    Raises:
        ValueError: other shapes. ImportError: no scikit-learn.
    """
    _check(codes, factors)
    try:
        from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor
    except ImportError as error:
        raise ImportError(NO_SKLEARN) from error
    order = np.random.default_rng(seed).permutation(len(codes))
    fitted, judged = order[: len(order) // 2], order[len(order) // 2 :]
    importance, scores = [], []
    for f in range(factors.shape[1]):
        trees = GradientBoostingClassifier if f in unordered else GradientBoostingRegressor
        model = trees(random_state=seed).fit(codes[fitted], factors[fitted, f])
        importance.append(model.feature_importances_)
        scores.append(max(0.0, model.score(codes[judged], factors[judged, f])))
    return DCI(*_from_importance(np.stack(importance, axis=1)), informativeness=float(np.mean(scores)))


def factor_vae_score(
    codes: NDArray[Any], factors: NDArray[np.int64], votes: int = 800, batch_size: int = 64, seed: int = 0
) -> float:
    """The FactorVAE score (Kim & Mnih 2018): does the latent that varies least tell which factor is held fixed?

    A vote is a batch of frames that share one factor's value, drawn from those given; its latents' variances
    are divided by those over all frames. A majority of ``votes`` names each latent's factor; the score is the
    accuracy on as many others. Chance is 1 / F.

    Raises:
        ValueError: other shapes, no latent that varies, or fewer frames of some value than a batch holds.
    """
    _check(codes, factors)
    variances = codes.var(0)
    alive = variances > DEAD * variances.max()
    if not alive.any():
        raise ValueError("no latent varies over these frames")
    codes = codes[:, alive] / np.sqrt(variances[alive])
    frames_of = [[np.flatnonzero(factor == value) for value in np.unique(factor)] for factor in factors.T]
    fewest = min(len(frames) for values in frames_of for frames in values)
    if fewest < batch_size:
        raise ValueError(f"a batch needs {batch_size} frames of each factor's value, one has {fewest}: take more")
    random = np.random.default_rng(seed)

    def table() -> NDArray[np.int64]:
        """int64 [latents, F]: how often each latent varied least when a factor was fixed."""
        counts = np.zeros((codes.shape[1], len(frames_of)), np.int64)
        for fixed in random.integers(len(frames_of), size=votes):
            frames = frames_of[fixed][random.integers(len(frames_of[fixed]))]
            batch = codes[random.choice(frames, batch_size, replace=False)]
            counts[batch.var(0).argmin(), fixed] += 1
        return counts

    named = table().argmax(1)
    return float(table()[np.arange(len(named)), named].sum() / votes)


def _check(codes: NDArray[Any], factors: NDArray[np.int64]) -> None:
    if codes.ndim != 2 or factors.ndim != 2 or len(codes) != len(factors) or len(codes) < 2:
        raise ValueError(f"codes must be [B, Z] and factors [B, F] of the same B >= 2: {codes.shape}, {factors.shape}")


def _binned(values: NDArray[Any], bins: int) -> NDArray[np.int64]:
    """The bin of each value [B], of equal width between the extremes."""
    low, high = values.min(), values.max()
    width = (high - low) / bins or 1.0
    return np.minimum(((values - low) / width).astype(np.int64), bins - 1)


def _joint(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.float64]:
    """Joint frequencies [values of a, values of b] of two whole numbers [B]."""
    columns = int(b.max()) + 1
    counts = np.bincount(a * columns + b, minlength=(int(a.max()) + 1) * columns)
    return counts.reshape(-1, columns) / len(a)


def _entropy(frequencies: NDArray[np.float64]) -> float:
    """In nats."""
    some = frequencies[frequencies > 0]
    return float(-(some * np.log(some)).sum())


def _from_importance(importance: NDArray[np.float64]) -> tuple[float, float]:
    """Disentanglement and completeness from how much each latent matters to each factor [Z, F]."""
    total = importance.sum()
    if total == 0:
        return 0.0, 0.0
    pure = [_purity(rows) for rows in (importance, importance.T)]
    weights = importance.sum(1) / total, importance.sum(0) / total
    return float(pure[0] @ weights[0]), float(pure[1] @ weights[1])


def _purity(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 - entropy of each row's shares, in units of the largest possible one."""
    sums = rows.sum(1, keepdims=True)
    shares = np.divide(rows, sums, out=np.full_like(rows, 1 / rows.shape[1]), where=sums > 0)
    return 1 - np.array([_entropy(row) for row in shares]) / np.log(rows.shape[1])
