"""What do the latents carry?"""

from __future__ import annotations

import torch
from torch import Tensor


def active_units(means: Tensor, threshold: float = 0.01) -> int:
    """How many latents vary with the frame: Var_x(E_q[z_j]) > threshold (Burda et al. 2016).

    Args:
        means: posterior means float [B, Z] of at least 2 frames.
    """
    return int((torch.var(means, dim=0) > threshold).sum())
