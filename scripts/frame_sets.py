"""What codecs are compared on: frames, what is known of them, and strange ones that look nearly like them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from scripts import sprites
from worldvae.batches import frame_batches
from worldvae.frames import Frames, FrameSpec
from worldvae.rollouts import RolloutStore, split_episodes

States = NDArray[np.float32]
"""float32 [B, S]: what is known of each frame, as numbers that a network can regress."""


UNSEEN_SEED = 1_000_000
"""Of frames that are drawn for judging: beyond all seeds of training."""


@dataclass(frozen=True)
class FrameSet:
    """A kind of frames.

    Attributes:
        spec: of the frames.
        latent_size: Z of every codec compared on them.
        batches: (batch size, seed) -> endless training batches uint8 [B, H, W, C].
        train, held_out: some frames for fitting and for judging, in random order.
        train_states, held_out_states: their known states [B, S].
        modes: states [B, S] -> for each frame the values it shows, to ask which of them no sample shows.
        factors: int64 [B, F] of the held-out frames where each is one independent cause; None where there
            are none such.
        unordered: columns of factors whose values have no order.
        strangers: frames of another kind.
    """

    spec: FrameSpec
    latent_size: int
    batches: Callable[[int, int], Iterator[Tensor]]
    train: Frames
    held_out: Frames
    train_states: States
    held_out_states: States
    modes: Callable[[States], list[list[tuple[Any, ...]]]]
    strangers: Frames
    factors: NDArray[np.int64] | None = None
    unordered: tuple[int, ...] = ()


def sprite_set(train: int = 30_000, held_out: int = 10_000) -> FrameSet:
    """Sprites. Training draws from all of them, so it may have met a few of the held-out ones."""
    (frames, known), (unseen, factors) = (
        next(sprites.batches(count, seed)) for count, seed in ((train, UNSEEN_SEED), (held_out, UNSEEN_SEED + 1))
    )
    strange = factors[: held_out // 4].copy()
    strange[:, 0] = sprites.STRANGER
    return FrameSet(
        spec=FrameSpec(sprites.SIDE, sprites.SIDE, 1),
        latent_size=10,
        batches=lambda size, seed: (batch for batch, _ in sprites.batches(size, seed)),
        train=frames.numpy(),
        held_out=unseen.numpy(),
        train_states=sprite_states(known),
        held_out_states=sprite_states(factors),
        modes=sprite_modes,
        strangers=sprites.render(strange),
        factors=factors,
        unordered=(0,),
    )


def sprite_states(factors: NDArray[np.int64]) -> States:
    """Factors [B, 5] -> [B, 8]: three bits of shape, scale, x and y from -1 to 1, and cosine and sine of the
    angle times the shape's symmetry, since a square turned by 90 degrees is the same frame."""
    shape, angle = factors[:, 0], factors[:, 2]
    turn = 2 * np.pi * angle / sprites.SIZES[2] * np.take(sprites.TURNS, shape)
    spans = 2 * factors[:, (1, 3, 4)] / (np.take(sprites.SIZES, (1, 3, 4)) - 1) - 1
    return np.column_stack([np.eye(3)[shape], spans, np.cos(turn), np.sin(turn)]).astype(np.float32)


def sprite_modes(states: States) -> list[list[tuple[Any, ...]]]:
    """One of 144 forms (shape, scale, an eighth of the turn after which it looks the same) and of 64 places."""
    shape = states[:, :3].argmax(1)
    scale, x, y = (
        np.rint((states[:, column].clip(-1, 1) + 1) / 2 * top).astype(int)
        for column, top in ((3, sprites.SIZES[1] - 1), (4, 7), (5, 7))
    )
    eighth = np.rint(np.arctan2(states[:, 7], states[:, 6]) / (2 * np.pi) * 8).astype(int) % 8
    forms, places = zip(shape, scale, eighth, strict=True), zip(x, y, strict=True)
    return [[("form", *form), ("place", *place)] for form, place in zip(forms, places, strict=True)]


ROWS = (8, 20, 32, 44)
"""Rows of the frame, far to near, where the road is looked for."""


def driving_set(rollouts: Path, held_out: float = 0.2) -> FrameSet:
    """Frames of CarRacing-v3's rollouts; whole episodes are held out."""
    store = RolloutStore(rollouts)
    if store.frame_spec.shape != (64, 64, 3):
        raise ValueError(f"{rollouts} has frames {store.frame_spec.shape}, driving is compared on (64, 64, 3)")
    episodes, unseen = split_episodes(len(store), held_out, seed=0)
    (frames, states), (judged, judged_states) = (_shuffled_episodes(store, chosen) for chosen in (episodes, unseen))
    strange = sprites.render(sprites.factors_of(np.arange(len(judged) // 4) * 991))
    return FrameSet(
        spec=store.frame_spec,
        latent_size=32,
        batches=lambda size, seed: frame_batches(store, episodes, size, seed),
        train=frames,
        held_out=judged,
        train_states=states,
        held_out_states=judged_states,
        modes=road_modes,
        strangers=strange.repeat(3, axis=-1),
    )


def _shuffled_episodes(store: RolloutStore, episodes: list[int]) -> tuple[Frames, States]:
    frames = np.concatenate([store.visible_frames(e) for e in episodes])
    shown = np.random.default_rng(0).permutation(frames)
    return shown, road_states(shown)


def road_states(frames: Frames) -> States:
    """Frames uint8 [B, 64, 64, 3] -> [B, 8]: at each of ``ROWS`` where the road's middle is, from -1 (left edge) to
    1, 0 where there is none, and which share of the row it takes."""
    rows = frames[:, ROWS].astype(np.int16)
    grey = (np.ptp(rows, axis=-1) < 20) & (abs(rows[..., 1] - 105) < 25)  # [B, rows, W]
    share = grey.mean(-1)
    middle = (grey * np.linspace(-1, 1, frames.shape[2])).mean(-1) / np.maximum(share, 1e-6)
    return np.concatenate([middle, share], axis=1).astype(np.float32)


def road_modes(states: States) -> list[list[tuple[Any, ...]]]:
    """Where the road is at all rows together: in which quarter of the width at each, or nowhere (5^4 values)."""
    rows = len(ROWS)
    quarter = np.floor((states[:, :rows].clip(-1, 0.999) + 1) * 2).astype(int)
    quarter[states[:, rows:] < 0.03] = -1
    return [[tuple(places)] for places in quarter.tolist()]


def shifted(frames: Frames, strangers: Frames, seed: int = 0) -> dict[str, Frames]:
    """Frames that a codec should find strange: other colours, side bars, blobs, another kind altogether.

    The first three after the variations of CarRacing by Tang, Nguyen & Ha 2020, at the size of 64x64 frames.
    """
    random = np.random.default_rng(seed)
    count, height, width, channels = frames.shape
    shades = random.uniform(-0.2, 0.2, (count, 1, 1, channels)) * 255
    grey, red = np.full(channels, 128, np.uint8), np.array([255, 0, 0][:channels], np.uint8)
    bars, blobs = frames.copy(), frames.copy()
    bars[:, :, : width // 12] = bars[:, :, -(width // 12) :] = grey
    for blob, place in zip(blobs, random.integers(8, min(height, width) - 8, (count, 2)).tolist(), strict=True):
        cv2.circle(blob, place, 4, (red if channels == 3 else grey).tolist(), thickness=-1)
    return {
        "colours": np.rint((frames + shades).clip(0, 255)).astype(np.uint8),
        "bars": bars,
        "blobs": blobs,
        "another kind": strangers,
    }
