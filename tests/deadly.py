"""A dream whose ends are known: it is over as soon as an action falls below a threshold."""

from __future__ import annotations

import numpy as np
import torch
from gymnasium.spaces import Box

from agents.dream import Starts
from agents.observations import ObservationConfig
from agents.world_model import WorldModel, WorldModelConfig

CONFIG = WorldModelConfig(latent_size=3, action_size=1, hidden=8, mixtures=2, termination=True)
SPACE = Box(-1, 1, (1,), np.float32)
CERTAIN = 1e-12
"""A temperature at which nothing is left to chance."""
FIRST_SEEN = ObservationConfig(stack=1, last_action=False)


def deadly(threshold: float = 0.0) -> WorldModel:
    """Whose dreams end as soon as the action falls below the threshold; codes wander, whatever is done."""
    torch.manual_seed(0)
    model = WorldModel(CONFIG).eval().requires_grad_(False)
    lstm = dict(model.lstm.named_parameters())
    hidden = CONFIG.hidden
    for weight in (*lstm.values(), model.mixture.weight):
        weight *= 5  # never at rest
    for gate, bias in ((0, 20.0), (1, -20.0), (2, 0.0), (3, 20.0)):  # the last hidden unit is tanh(tanh(action))
        row = gate * hidden + hidden - 1
        for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
            lstm[name][row] = 0
        lstm["bias_ih_l0"][row] = bias
    lstm["weight_ih_l0"][2 * hidden + hidden - 1, -1] = 1
    model.termination.weight[:] = 0
    model.termination.weight[0, -1] = -1e6
    model.termination.bias[:] = 1e6 * np.tanh(np.tanh(threshold))
    return model


def starts() -> Starts:
    generator = torch.Generator().manual_seed(1)
    z, h, c = (torch.randn(5, n, generator=generator) for n in (3, 8, 8))
    return Starts(z, (h.tanh(), c))
