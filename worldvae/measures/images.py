"""How close are two pictures, how varied are many, and what do image formats make of them?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from worldvae.frames import Frames


def psnr(mse: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error over pixels in [0, 1]."""
    return math.inf if mse <= 0 else -10 * math.log10(mse)


def squared_error(made: Frames, real: Frames) -> NDArray[np.float32]:
    """Each pixel's squared error, pixels in [0, 1], mean over channels: float32 [.., H, W] of uint8 [.., H, W, C]."""
    error: NDArray[np.float32] = np.square((made.astype(np.float32) - real) / 255).mean(-1)
    return error


def ssim(made: Frames, real: Frames) -> NDArray[np.float64]:
    """Structural similarity of each frame, float64 [B], of uint8 [B, H, W, C]; 1 where they are equal.

    Wang et al. 2004: Gaussian window of 11x11 with sd 1.5, K1 0.01, K2 0.03, at every place where the
    window fits; mean over places and channels.

    Raises ValueError for frames smaller than the window.
    """
    if min(real.shape[1:3]) < 11:
        raise ValueError(f"SSIM looks through a window of 11x11, too large for frames of {real.shape[1:3]}")
    offsets = torch.arange(-5, 6, dtype=torch.float64)
    window = torch.exp(-(offsets**2) / (2 * 1.5**2))
    window /= window.sum()

    def blurred(images: torch.Tensor) -> torch.Tensor:
        down = torch.nn.functional.conv2d(images, window.view(1, 1, 11, 1))
        return torch.nn.functional.conv2d(down, window.view(1, 1, 1, 11))

    def told(made: Frames, real: Frames) -> torch.Tensor:
        x, y = (torch.from_numpy(f).permute(0, 3, 1, 2).flatten(0, 1)[:, None].double() for f in (made, real))
        mean_x, mean_y = blurred(x), blurred(y)
        var_x, var_y = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2
        covariance = blurred(x * y) - mean_x * mean_y
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
        structure = (2 * covariance + c2) / (var_x + var_y + c2)
        return (luminance * structure).mean((1, 2, 3)).view(len(made), -1).mean(1)

    return torch.cat([told(made[b : b + 64], real[b : b + 64]) for b in range(0, len(real), 64)]).numpy()


def laplacian_variance(frames: Frames) -> float:
    """Sharpness of frames uint8 [B, H, W, C]: variance of their Laplacian in each channel, in [0, 1], their mean."""
    return float(np.mean([cv2.Laplacian(frame, cv2.CV_32F).var() for frame in frames])) / 255**2


def sharpness(made: Frames, real: Frames) -> float:
    """The Laplacian's variance of frames uint8 [B, H, W, C] over that of the real ones; below 1: blurred."""
    reference = laplacian_variance(real)
    return laplacian_variance(made) / reference if reference else math.nan


MOVED = 0.15
"""How much a pixel (in [0, 1]) has to change to have moved: more than shades and noise do."""


def moving(frames: Frames) -> NDArray[np.bool_]:
    """Which pixels of consecutive frames uint8 [T, H, W, C] changed since the frame before: bool [T, H, W].

    Those of which some channel changed by more than ``MOVED``; none of the first frame's.
    """
    moved = np.zeros(frames.shape[:3], bool)
    difference = np.abs(frames[1:].astype(np.int16) - frames[:-1])
    moved[1:] = (difference > MOVED * 255).any(-1)
    return moved


def median_frame(frames: Frames, most: int = 256) -> Frames:
    """Each pixel's median uint8 [H, W, C] over at most so many of frames [B, H, W, C]: the background."""
    return np.median(frames[:: -(-len(frames) // most)], 0).round().astype(np.uint8)


def differing(frames: Frames, background: Frames) -> NDArray[np.bool_]:
    """Which pixels of frames uint8 [B, H, W, C] are not the background's uint8 [H, W, C]: bool [B, H, W]."""
    return (np.abs(frames.astype(np.int16) - background) > MOVED * 255).any(-1)


def lost_share(made: Frames, real: Frames, background: Frames, masks: NDArray[np.bool_]) -> float:
    """The share of objects that a codec paints over with background; NaN where there are none.

    An object is a connected piece (of at least 2 pixels) of a frame's mask: a ball counts as much as a
    wall. It is lost where its squared error is more than half of what the bare background would have.

    Args:
        made, real: uint8 [B, H, W, C].
        background: uint8 [H, W, C].
        masks: bool [B, H, W], where objects are.
    """
    labels = np.zeros(masks.shape, np.int64)
    count = 0
    for label, mask in zip(labels, masks, strict=True):
        pieces, found = cv2.connectedComponents(mask.astype(np.uint8))
        label[mask] = found[mask] + count
        count += pieces - 1
    where = labels > 0

    def totals(values: NDArray[Any]) -> NDArray[Any]:
        return np.bincount(labels[where], values[where].astype(np.float64), count + 1)[1:]

    error, missing = totals(squared_error(made, real)), totals(squared_error(background, real))
    counted = totals(where) >= 2
    return float((error > missing / 2)[counted].mean()) if counted.any() else math.nan


@dataclass(frozen=True)
class Diversity:
    """How varied frames are.

    Attributes:
        pixel_sd: how much a pixel varies over the frames: sd in grey levels, root mean square over pixels.
        distinct: the share of different frames.
        constant: how many frames show one single colour.
        black: how many of those are black.
    """

    pixel_sd: float
    distinct: float
    constant: int
    black: int


def diversity(frames: Frames) -> Diversity:
    """How varied frames uint8 [B, H, W, C] are."""
    flat = frames.reshape(len(frames), -1)
    constant = (frames == frames[:, :1, :1]).all((1, 2, 3))
    return Diversity(
        pixel_sd=float(np.sqrt(flat.var(0, dtype=np.float32).mean())),
        distinct=len({row.tobytes() for row in flat}) / len(flat),
        constant=int(constant.sum()),
        black=int((constant & ~flat.any(1)).sum()),
    )


def image_format_sizes(frames: Frames) -> dict[str, tuple[float, float]]:
    """What common formats make of frames uint8 [B, H, W, C]: name -> (bytes per frame, PSNR in dB)."""
    formats = {
        "PNG": (".png", []),
        "WebP lossless": (".webp", [cv2.IMWRITE_WEBP_QUALITY, 101]),
        "WebP 80": (".webp", [cv2.IMWRITE_WEBP_QUALITY, 80]),
        "WebP 10": (".webp", [cv2.IMWRITE_WEBP_QUALITY, 10]),
        "JPEG 90": (".jpg", [cv2.IMWRITE_JPEG_QUALITY, 90]),
        "JPEG 10": (".jpg", [cv2.IMWRITE_JPEG_QUALITY, 10]),
    }
    return {name: _format_size(frames, *how) for name, how in formats.items()}


def _format_size(frames: Frames, extension: str, options: list[int]) -> tuple[float, float]:
    size, error = 0, 0.0
    for frame in frames[..., ::-1]:  # RGB to BGR, which OpenCV writes (grey stays grey)
        _, data = cv2.imencode(extension, frame, options)
        decoded = cv2.imdecode(data, cv2.IMREAD_COLOR if frame.shape[-1] == 3 else cv2.IMREAD_GRAYSCALE)
        if decoded is None:
            raise ValueError(f"this OpenCV cannot decode its own {extension}")
        size += len(data)
        error += float(np.square(decoded.reshape(frame.shape).astype(np.float32) - frame).mean())
    return size / len(frames), psnr(error / len(frames) / 255**2)
