"""Pictures where people would rather look: grids, samples, interpolations, traversals, films."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from worldvae.checkpoint import CheckpointError, write_atomically
from worldvae.frames import Frames
from worldvae.measures.images import squared_error
from worldvae.vae import FrameVAE

GAP = 2
"""White pixels between the cells of a grid."""
CAPTION = 16
"""Height of a line of text, pixels."""


def grid(cells: Frames, scale: int = 2) -> Frames:
    """uint8 [R, K, H, W, C] cells -> one RGB image uint8 [h, w, 3], each pixel ``scale`` wide."""
    rows, columns, height, width, channels = cells.shape
    if channels == 1:
        cells = np.repeat(cells, 3, axis=-1)
    cells = cells.repeat(scale, axis=2).repeat(scale, axis=3)
    padded = np.pad(cells, ((0, 0), (0, 0), (GAP, 0), (GAP, 0), (0, 0)), constant_values=255)
    tall, wide = height * scale + GAP, width * scale + GAP
    image = padded.transpose(0, 2, 1, 3, 4).reshape(rows * tall, columns * wide, 3)
    return np.pad(image, ((0, GAP), (0, GAP), (0, 0)), constant_values=255)


def save_png(path: Path, image: Frames) -> None:
    """Writes an RGB image uint8 [h, w, 3]."""
    _, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    write_atomically(path, data.tobytes())


def figure(width: float, height: float) -> Any:
    """An empty page of matplotlib's, in inches. Raises ImportError, in a sentence, where that is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("curves need matplotlib: pip install 'worldvae[report]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def png(page: Any) -> bytes:
    """What was drawn on a ``figure``, at 100 dots an inch."""
    buffer = io.BytesIO()
    page.savefig(buffer, dpi=100)
    return buffer.getvalue()


def reconstructions(vae: FrameVAE, frames: Frames) -> Frames:
    """Frames [K, H, W, C] above what the codec makes of them."""
    return grid(np.stack([frames, vae.decode(vae.encode(frames).mean.cpu().numpy())]))


def prior_samples(vae: FrameVAE, rows: int = 4, columns: int = 10, seed: int = 0) -> Frames:
    """Frames decoded from draws of the unit Gaussian."""
    return grid(vae.sample(rows * columns, seed).reshape(rows, columns, *vae.config.frame.shape))


def interpolations(vae: FrameVAE, first: Frames, last: Frames, steps: int = 10) -> Frames:
    """A row for each pair of frames [R, H, W, C]: decoded points on the line between their codes."""
    a, b = (vae.encode(frames).mean.cpu().numpy()[:, None] for frames in (first, last))
    along = np.linspace(0, 1, steps, dtype=np.float32)[None, :, None]
    return grid(vae.decode(a + (b - a) * along))


def traversals(vae: FrameVAE, frames: Frames, columns: int = 9, most: int = 12) -> Frames:
    """How each latent changes one frame: a row for each of ``most`` latents, as ``ranked`` says, from -3 to 3."""
    latents, base = ranked(vae, frames)
    return grid(vae.decode(moved(base, latents[:most], np.linspace(-3, 3, columns))))


def ranked(vae: FrameVAE, frames: Frames) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The latents by mean KL over frames [B, H, W, C], largest first, int64 [Z]; and a code to move, float32 [Z].

    That is of the frame at the upper quartile of KL: one that shows more than most, and is no oddity.
    """
    posterior = vae.encode(frames)
    base = posterior.mean[posterior.kl().sum(1).argsort()[len(frames) * 3 // 4]]
    return posterior.kl().mean(0).argsort(descending=True).cpu().numpy(), base.cpu().numpy()


def moved(base: NDArray[np.float32], latents: NDArray[np.int64], values: NDArray[np.floating]) -> NDArray[np.float32]:
    """Codes float32 [L, V, Z]: ``base`` [Z] with one of ``latents`` [L] at a time at each of ``values`` [V]."""
    codes = np.broadcast_to(base, (len(latents), len(values), len(base))).copy()
    codes[np.arange(len(latents)), :, latents] = values
    return codes


def between(codes: NDArray[np.float32], steps: int) -> NDArray[np.float32]:
    """Points on the lines from each of the codes [K, Z] to the next and back to the first: float32 [K * steps, Z]."""
    along = (np.arange(steps) / steps).astype(np.float32)[None, :, None]
    following = np.roll(codes, -1, axis=0)
    points: NDArray[np.float32] = codes[:, None] + (following - codes)[:, None] * along
    return points.reshape(-1, codes.shape[1])


def error_maps(made: Frames, real: Frames, white: float = 0.25) -> Frames:
    """Where frames [K, H, W, C] are wrong, uint8 [K, H, W, 3]: black is right, and errors of ``white`` (in [0, 1])
    and more are the brightest."""
    error = np.sqrt(squared_error(made, real)) / white
    shades = (error.clip(0, 1) * 255).round().astype(np.uint8)
    return np.stack(
        [cv2.cvtColor(cv2.applyColorMap(shade, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB) for shade in shades]
    )


def marked(frames: Frames, masks: NDArray[np.bool_], colour: tuple[int, int, int] = (255, 0, 255)) -> Frames:
    """Frames [K, H, W, C] as RGB with the pixels of masks bool [K, H, W] in one colour."""
    shown = np.repeat(frames, 3, axis=-1) if frames.shape[-1] == 1 else frames.copy()
    shown[masks] = colour
    return shown


def labelled(image: Frames, labels: Sequence[str], width: int = 150) -> Frames:
    """An image uint8 [h, w, 3] with a white margin to its left, and a label in it beside each row of a grid.

    Args:
        labels: one for each of the grid's rows, top down; a newline begins another line.
        width: of the margin, pixels.
    """
    margin = np.full((len(image), width, 3), 255, np.uint8)
    tall = (len(image) - GAP) / len(labels)
    for row, label in enumerate(labels):
        for line, text in enumerate(label.split("\n")):
            _write(margin, text, 6, round(row * tall + 20 + CAPTION * line))
    return np.concatenate([margin, image], axis=1)


def tiles(frames: Frames, captions: Sequence[str], columns: int, scale: int = 2) -> Frames:
    """Frames uint8 [K, H, W, C] in rows of so many, each below its caption: one RGB image uint8 [h, w, 3]."""
    height, width = frames.shape[1] * scale, frames.shape[2] * scale
    cells = np.full((-(-len(frames) // columns) * columns, height + CAPTION, width, 3), 255, np.uint8)
    for cell, frame, caption in zip(cells, frames, captions, strict=False):
        cell[CAPTION:] = frame.repeat(scale, axis=0).repeat(scale, axis=1)
        _write(cell, caption, 2, CAPTION - 4)
    return grid(cells.reshape(-1, columns, *cells.shape[1:]), scale=1)


def _write(image: Frames, text: str, x: int, y: int) -> None:
    cv2.putText(image, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)


def codec_pictures(vae: FrameVAE, frames: Frames, folder: Path) -> list[Path]:
    """Writes the four pictures above for some held-out frames [B >= 2, H, W, C]."""
    folder.mkdir(parents=True, exist_ok=True)
    spread = frames[np.linspace(0, len(frames) - 1, 10).astype(int)]
    pictures = {
        "reconstructions": reconstructions(vae, spread),
        "prior_samples": prior_samples(vae),
        "interpolations": interpolations(vae, spread[:4], spread[-4:]),
        "traversals": traversals(vae, frames),
    }
    for name, image in pictures.items():
        save_png(folder / f"{name}.png", image)
    return [folder / f"{name}.png" for name in pictures]


def side_by_side(columns: Sequence[Frames], scale: int = 4) -> list[Frames]:
    """Film frames, T times uint8 [h, w, 3], from columns of T frames [T, H, W, C] each."""
    return [grid(row[None], scale) for row in np.stack(columns, axis=1)]


def save_film(path: Path, images: Sequence[Frames], fps: float) -> list[Path]:
    """Writes T images uint8 [h, w, 3] as ``path``.webm (VP9) and ``path``.gif, into a folder that is made for them.

    Raises CheckpointError where this OpenCV cannot encode one of them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = (side - side % 2 for side in images[0].shape[:2])  # VP9 wants even sides
    bgr = [cv2.cvtColor(image[:height, :width], cv2.COLOR_RGB2BGR) for image in images]
    webm, gif = path.with_suffix(".webm"), path.with_suffix(".gif")
    with _silent_stderr():
        video = cv2.VideoWriter(str(webm), cv2.VideoWriter.fourcc(*"VP90"), fps, (width, height))
    if not video.isOpened():
        raise CheckpointError(f"this OpenCV cannot write {webm}: pip install opencv-python-headless")
    for image in bgr:
        video.write(image)
    video.release()
    animation = cv2.Animation()
    animation.frames, animation.durations = bgr, [round(1000 / fps)] * len(bgr)
    faithful = [cv2.IMWRITE_GIF_DITHER, 3]  # least error and a quarter of the size, by trial of all
    if not cv2.imwriteanimation(str(gif), animation, faithful):
        raise CheckpointError(f"this OpenCV cannot write {gif}: it needs version 4.12 or newer")
    return [webm, gif]


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """OpenCV's FFmpeg prints a warning of no consequence on every WebM, from C."""
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)
