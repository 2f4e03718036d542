"""What do the latents carry?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worldvae.vae import DiagonalGaussian

REACH = 4.0
"""Beyond so many sd of the prior a code is where no sample will be: the prior puts 6e-5 there."""
ELEMENTS = 1 << 23
"""Numbers held at once while every code is compared with every other."""


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


def saturated_units(means: Tensor, share: float = 0.01) -> int:
    """How many latents have more than ``share`` of their posterior means [B, Z] beyond ``REACH`` sd of the prior."""
    return int(((means.abs() > REACH).double().mean(0) > share).sum())


@dataclass(frozen=True)
class KLSplit:
    """Where the KL to the prior goes, nats per frame; the three add up to it (Chen et al. 2018, eq. 2).

    Attributes:
        mutual_information: between a frame's number and its code. At most log N over N frames: where
            every code tells its frame from all others it is just that, and the next is what is left over.
        total_correlation: KL of the aggregate posterior to the product of its marginals.
        dimension_wise: KL of these marginals to the prior, summed over latents.
        limit: log N, the mutual information's.
    """

    mutual_information: float
    total_correlation: float
    dimension_wise: float
    limit: float


def kl_split(means: Tensor, logvars: Tensor, seed: int = 0) -> KLSplit:
    """The split over a data set, whose aggregate posterior is the even mixture of the N posteriors [N, Z].

    One draw of each posterior is compared with all N of them, so nothing is estimated from minibatches.
    """
    count, size = means.shape
    posterior = DiagonalGaussian(means, logvars)
    z = posterior.sample(torch.Generator().manual_seed(seed))
    aggregate, marginals = [], []
    for some in z.split(max(1, ELEMENTS // (count * size))):
        log_q = _log_normal(some[:, None], means, logvars)  # [b, N, Z]
        aggregate.append(torch.logsumexp(log_q.sum(-1), 1) - math.log(count))
        marginals.append((torch.logsumexp(log_q, 1) - math.log(count)).sum(-1))
    log_q_of_frame = _log_normal(z, means, logvars).sum(-1).double().mean()
    log_p = _log_normal(z, torch.zeros(()), torch.zeros(())).sum(-1).double().mean()
    log_q, log_marginals = (torch.cat(parts).double().mean() for parts in (aggregate, marginals))
    return KLSplit(
        mutual_information=(log_q_of_frame - log_q).item(),
        total_correlation=(log_q - log_marginals).item(),
        dimension_wise=(log_marginals - log_p).item(),
        limit=math.log(count),
    )


def prior_gap(means: Tensor, logvars: Tensor) -> float:
    """How far the aggregate posterior's mean and covariance are from the prior's, nats: KL(N(m, C) || N(0, 1)).

    Of KL(q(z) || p(z)) it is the part that the first two moments make; the rest, KL(q(z) || N(m, C)), is
    >= 0 and vanishes where q(z) is Gaussian. Unlike the KL minus the mutual information it does not grow
    with the codes' precision where there are fewer frames than codes can tell apart.

    Args:
        means, logvars: posteriors [N, Z] of N > Z frames.
    """
    means, variances = means.double().cpu(), logvars.double().exp().cpu()
    covariance = torch.atleast_2d(torch.cov(means.T, correction=0)) + torch.diag(variances.mean(0))
    log_determinant = torch.linalg.slogdet(covariance).logabsdet
    shift = means.mean(0).square().sum()
    return 0.5 * (covariance.trace() + shift - means.shape[1] - log_determinant).item()


@dataclass(frozen=True)
class Change:
    """How much codes change from a frame to the next: squared, over their variance (2: unrelated).

    Attributes:
        overall: summed over latents before dividing, so that those that vary most count most.
        per_dimension: float64 [Z]; NaN where a latent does not vary.
    """

    overall: float
    per_dimension: NDArray[np.float64]


def change(episodes: Sequence[Tensor]) -> Change:
    """The change between neighbours of sequences of posterior means, each [T, Z]."""
    means = torch.cat(list(episodes)).double()
    steps = torch.cat([e[1:] - e[:-1] for e in episodes]).double()
    squared, variance = steps.square().mean(0), means.var(0, correction=0)
    return Change((squared.sum() / variance.sum()).item(), (squared / variance).numpy())


def _log_normal(z: Tensor, means: Tensor, logvars: Tensor) -> Tensor:
    return -0.5 * ((z - means).square() * (-logvars).exp() + logvars + math.log(2 * math.pi))
