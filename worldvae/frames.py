"""Pixels in, frames out: crop, grey and resize any image observation to uint8 [.., H, W, C].

Also the only place that maps uint8 to floats in [0, 1] and back. Knows nothing of environments,
files or networks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Frames = NDArray[np.uint8]
"""uint8 [.., H, W, C]"""


@dataclass(frozen=True)
class FrameSpec:
    """How raw pixels become frames; a codec carries its own, so its users need not know it.

    Attributes:
        height, width: size of a frame in pixels, reached by area interpolation.
        channels: 3 (RGB) or 1 (grey).
        crop: source pixels cut off before resizing: (top, bottom, left, right).
        key: which entry to take where observations are dictionaries.
    """

    height: int = 64
    width: int = 64
    channels: Literal[1, 3] = 3
    crop: tuple[int, int, int, int] = (0, 0, 0, 0)
    key: str | None = None

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1 or self.channels not in (1, 3) or min(self.crop) < 0:
            raise ValueError(f"a frame needs a size >= 1, 1 or 3 channels and a crop >= 0: {self}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C)"""
        return self.height, self.width, self.channels


def to_frames(observations: Any, spec: FrameSpec) -> Frames:
    """Crop, grey and resize image observations.

    Args:
        observations: uint8 [.., h, w] or [.., h, w, c] with c 1 or 3, any leading shape; or a
            dictionary that holds such an array under ``spec.key``.

    Returns:
        uint8 [.., H, W, C] of ``spec``'s shape.

    Raises:
        KeyError: ``spec.key`` is missing from the dictionary.
        TypeError: the pixels are not uint8.
        ValueError: not images, or nothing left after the crop.
    """
    pixels = _single_array(observations, spec)
    if pixels.ndim >= 3 and pixels.shape[-1] in (2, 4):
        raise ValueError(f"images must be grey or RGB, these have {pixels.shape[-1]} channels: {pixels.shape}")
    if pixels.ndim < 3 or pixels.shape[-1] not in (1, 3):
        pixels = pixels[..., None]  # a grey image without its channel axis
    if pixels.dtype != np.uint8:
        raise TypeError(f"pixels must be uint8 in 0..255, these are {pixels.dtype}")
    if pixels.ndim < 3:
        raise ValueError(f"expected images [.., H, W, C], got shape {pixels.shape[:-1]}")
    top, bottom, left, right = spec.crop
    *lead, source_height, source_width, source_channels = pixels.shape
    pixels = pixels[..., top : source_height - bottom, left : source_width - right, :]
    if min(pixels.shape[-3:-1]) < 1:
        raise ValueError(f"crop {spec.crop} leaves nothing of a {source_height}x{source_width} image")
    if source_channels != spec.channels:
        pixels = _convert_colour(pixels)
    frames = _resize(pixels.reshape(-1, *pixels.shape[-3:]), spec.height, spec.width)
    return frames.reshape(*lead, *spec.shape)


def to_unit(frames: Tensor) -> Tensor:
    """uint8 [B, H, W, C] -> float32 [B, C, H, W] in [0, 1], channels-last in memory."""
    return frames.permute(0, 3, 1, 2).float().div_(255)


def to_uint8(images: Tensor) -> Tensor:
    """float [B, C, H, W] in [0, 1] -> uint8 [B, H, W, C], rounded and clipped."""
    return (images.float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous()


def _single_array(observations: Any, spec: FrameSpec) -> NDArray[Any]:
    if isinstance(observations, dict):
        if spec.key not in observations:
            raise KeyError(
                f"observations are a dictionary with {sorted(observations)}; "
                f"name the image by FrameSpec(key=...), now {spec.key!r}"
            )
        observations = observations[spec.key]
    return np.asarray(observations)


def _convert_colour(pixels: Frames) -> Frames:
    """RGB to grey (ITU-R 601 luma, as OpenCV) or grey to RGB, without a loop over frames."""
    if pixels.shape[-1] == 1:
        return np.repeat(pixels, 3, axis=-1)
    flat = np.ascontiguousarray(pixels).reshape(-1, 1, 3)
    grey: Frames = np.asarray(cv2.cvtColor(flat, cv2.COLOR_RGB2GRAY), np.uint8)
    return grey.reshape(*pixels.shape[:-1], 1)


def _resize(pixels: Frames, height: int, width: int) -> Frames:
    """[B, h, w, C] -> [B, height, width, C]."""
    batch, source_height, source_width, channels = pixels.shape
    if (source_height, source_width) == (height, width) or batch == 0:
        return np.ascontiguousarray(pixels).reshape(batch, height, width, channels)
    if source_height < height or source_width < width:
        resized = [cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA) for image in pixels]
        return np.stack(resized).reshape(batch, height, width, channels).astype(np.uint8)
    # Shrinking averages whole areas, which never reach over a frame's edge: one tall image will do.
    tall = np.ascontiguousarray(pixels).reshape(batch * source_height, source_width, channels)
    shrunk = cv2.resize(tall, (width, batch * height), interpolation=cv2.INTER_AREA)
    return np.asarray(shrunk, np.uint8).reshape(batch, height, width, channels)
