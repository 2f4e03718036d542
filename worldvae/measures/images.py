"""How close are two pictures, how varied are many, and what do image formats make of them?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from worldvae.frames import Frames


def psnr(mse: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error over pixels in [0, 1]."""
    return math.inf if mse <= 0 else -10 * math.log10(mse)


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
