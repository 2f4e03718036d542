"""The held-out ELBO is what its definition says."""

from __future__ import annotations

import math

import pytest
import torch

from worldvae import FrameVAE
from worldvae.frames import to_unit
from worldvae.measures.likelihood import held_out_likelihood
from worldvae.objective import discretised_gaussian_nll


def test_the_held_out_elbo_is_put_together_as_defined():
    torch.manual_seed(0)
    vae = FrameVAE().eval()
    train, held_out = torch.randint(0, 256, (2, 6, 64, 64, 3), dtype=torch.uint8)
    told = held_out_likelihood(vae, train, held_out, seed=3)
    generator = torch.Generator().manual_seed(3)
    noise = [torch.randn(6, 32, generator=generator) for _ in range(2)]
    with torch.no_grad():
        made = [vae(to_unit(frames), n)[0] for frames, n in zip((train, held_out), noise, strict=True)]
        kl = vae.posterior(to_unit(held_out)).kl().sum(1).mean().item()
    sigma = (made[0] - to_unit(train)).square().mean().sqrt().item()
    nll = discretised_gaussian_nll(made[1].double(), to_unit(held_out).double(), sigma).sum((1, 2, 3)).mean().item()
    assert told.sigma == pytest.approx(sigma)
    assert told.kl == pytest.approx(kl)
    assert told.elbo == pytest.approx(-nll - kl)
    assert told.bits_per_dim == pytest.approx((nll + kl) / (64 * 64 * 3 * math.log(2)))
