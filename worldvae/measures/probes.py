"""What of an environment's known state can be read from its codes?"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Probe:
    """How well one quantity is read from codes: R^2 on frames of episodes that no probe has seen.

    1 is exact, 0 no better than its mean, and below that worse.

    Attributes:
        linear: of a ridge regression on all latents.
        mlp: of a small network (two layers of 64) on all latents.
        alone: float64 [Z], of each latent by itself, linearly.
        direction: float64 [Z], how much codes change on average where the quantity is one sd larger: the pattern
            that belongs to a linear reader (Haufe et al. 2014), along which frames stay what frames are.
    """

    linear: float
    mlp: float
    alone: NDArray[np.float64]
    direction: NDArray[np.float64]


def probe(
    codes: NDArray[np.float32], states: Mapping[str, NDArray[Any]], episodes: NDArray[np.int64], seed: int = 0
) -> dict[str, Probe]:
    """Fits probes and judges them on episodes that they were not fitted on (five folds of whole episodes).

    Args:
        codes: posterior means float [B, Z].
        states: name -> float [B], one number a frame; NaN where it is not known. What does not vary is left out.
        episodes: int [B], of which episode each frame is (neighbouring frames are nearly equal, and would leak).

    Raises:
        ImportError: no scikit-learn.
        ValueError: known in fewer than two episodes, or a state of another length.
    """
    told = {}
    for name, values in states.items():
        values = np.asarray(values, np.float64)
        if values.shape != (len(codes),):
            raise ValueError(f"state {name!r} must hold one number for each of {len(codes)} frames, not {values.shape}")
        known = np.isfinite(values)
        z, y, groups = codes[known].astype(np.float64), values[known], episodes[known]
        if len(np.unique(groups)) < 2:
            raise ValueError(f"probes hold whole episodes out: {name!r} is known in {len(np.unique(groups))} of them")
        if np.ptp(y) > 1e-9 * np.abs(y).max():
            told[name] = _judged(z, y, groups, seed)
    return told


def _judged(z: NDArray[np.float64], y: NDArray[np.float64], groups: NDArray[np.int64], seed: int) -> Probe:
    try:
        from sklearn.compose import TransformedTargetRegressor
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LinearRegression, RidgeCV
        from sklearn.metrics import r2_score
        from sklearn.model_selection import GroupKFold, cross_val_predict
        from sklearn.neural_network import MLPRegressor
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise ImportError("probes need scikit-learn: pip install 'worldvae[measures]'") from error
    folds = list(GroupKFold(min(5, len(np.unique(groups)))).split(z, groups=groups))

    def r2(model: Any, columns: slice = slice(None)) -> float:
        standardised = TransformedTargetRegressor(make_pipeline(StandardScaler(), model), transformer=StandardScaler())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # it is judged by R^2, converged or not
            return float(r2_score(y, cross_val_predict(standardised, z[:, columns], y, cv=folds)))

    return Probe(
        linear=r2(RidgeCV(np.logspace(-3, 3, 7))),
        mlp=r2(MLPRegressor(hidden_layer_sizes=(64, 64), early_stopping=True, max_iter=200, random_state=seed)),
        alone=np.array([r2(LinearRegression(), slice(j, j + 1)) for j in range(z.shape[1])]),
        direction=(y - y.mean()) @ z / (len(y) * y.std()),
    )
