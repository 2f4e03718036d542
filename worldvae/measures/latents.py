"""What do the latents carry?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worldvae.vae import DiagonalGaussian


def active_units(means: Tensor, threshold: float = 0.01) -> int:
    """How many latents vary with the frame: Var_x(E_q[z_j]) > threshold (Burda et al. 2016).

    Args:
        means: posterior means float [B, Z] of at least 2 frames.
    """
    return int((torch.var(means, dim=0) > threshold).sum())


@dataclass(frozen=True)
class LatentStatistics:
    """Each latent's part in the code, float64 [Z].

    Attributes:
        kl: mean KL to the prior in nats.
        mean, sd: of the posterior means over frames.
    """

    kl: NDArray[np.float64]
    mean: NDArray[np.float64]
    sd: NDArray[np.float64]


def statistics(means: NDArray[np.float32], logvars: NDArray[np.float32]) -> LatentStatistics:
    """Each latent's part in the code of frames, from their posteriors [B, Z]."""
    kl = DiagonalGaussian(torch.from_numpy(means), torch.from_numpy(logvars)).kl().numpy()
    return LatentStatistics(kl.mean(0, np.float64), means.mean(0, np.float64), means.std(0, np.float64))
