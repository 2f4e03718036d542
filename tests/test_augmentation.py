"""What the encoder sees in training: colours move, rectangles hide; everything else stays."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from worldvae.augmentation import HALF_WIDTH, PATCHES, covered, patch_size, shaded
from worldvae.training import VAETrainingConfig


def images(seed: int = 0) -> torch.Tensor:
    return torch.rand(8, 3, 32, 48, generator=torch.Generator().manual_seed(seed))


def patches(seed: int = 0) -> torch.Tensor:
    return torch.rand(8, PATCHES, patch_size(3), generator=torch.Generator().manual_seed(seed))


def test_shades_move_what_the_encoder_sees_and_leave_the_frame():
    seen = images()
    before = seen.clone()
    jittered = shaded(seen, 0.1 * torch.randn(2, 8, 3, 1, 1, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(seen, before)
    assert (jittered - seen).abs().mean() > 0.005
    assert jittered.min() >= 0
    assert jittered.max() <= 1


def test_patches_hide_rectangles_of_one_colour_and_nothing_else():
    seen, drawn = images(), patches()
    hidden = covered(seen, drawn[:, :1], share=1.0)
    for before, after, patch in zip(seen, hidden, drawn[:, 0], strict=True):
        y_0, x_0, half_height, half_width = patch[1:5].tolist()
        top, bottom = ((y_0 + side * half_height**2) * 32 for side in (-1, 1))
        left, right = ((x_0 + side * half_width * HALF_WIDTH) * 48 for side in (-1, 1))
        slow = before.numpy().copy()
        for y in range(32):
            for x in range(48):
                if top < y + 0.5 < bottom and left < x + 0.5 < right:
                    slow[:, y, x] = np.clip(3 * patch[5:].numpy() - 1, 0, 1)
        np.testing.assert_allclose(after.numpy(), slow, atol=1e-6)
    assert (hidden != seen).any(1).float().mean() > 0.005


def test_no_share_and_no_patches_hide_nothing():
    seen = images()
    assert torch.equal(covered(seen, patches(), share=0.0), seen)
    assert torch.equal(covered(seen, torch.rand(8, 0), share=1.0), seen)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match="covers is a share"):
        VAETrainingConfig(covers=share)
