"""What the encoder sees of a training frame: its colours shifted, parts of it hidden.

The target stays as it was, so codes learn not to depend on either. Knows nothing of networks or losses.
"""

from __future__ import annotations

import torch
from torch import Tensor

PATCHES = 2
"""Rectangles that may hide something, a frame."""
HALF_WIDTH = 0.2
"""Their largest, in widths of the frame; their heights may be the whole frame's, though few are."""


def shaded(images: Tensor, shades: Tensor) -> Tensor:
    """images float [B, C, H, W] with a gain and a shift of each channel, shades float [2, B, C, 1, 1]."""
    gain, shift = shades
    return torch.addcmul(images + shift, images, gain).clamp_(0, 1)


def patch_size(channels: int) -> int:
    """How many uniform numbers a patch is drawn from."""
    return 5 + channels


def covered(images: Tensor, patches: Tensor, share: float) -> Tensor:
    """images float [B, C, H, W] of which rectangles are hidden under one colour each (Zhong et al. 2020).

    Args:
        patches: uniform in [0, 1), float [B, P, ``patch_size``]: whether there is one, centre, half height and width,
            colour. A third of each colour's channels is 0 and a third 1: what hides is seldom grey.
        share: of the patches that are there.
    """
    height, width = images.shape[2:]
    y, x = ((torch.arange(n, device=images.device) + 0.5) / n for n in (height, width))
    for patch in patches.unbind(1):
        there, y_0, x_0, half_height, half_width = patch[:, :5, None].unbind(1)
        rows = ((y - y_0).abs() < half_height.square()) & (there < share)
        columns = (x - x_0).abs() < HALF_WIDTH * half_width
        colour = (3 * patch[:, 5:] - 1).clamp(0, 1)
        images = torch.where(rows[:, None, :, None] & columns[:, None, None], colour[:, :, None, None], images)
    return images
