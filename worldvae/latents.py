"""Rollouts -> codes: the store's frames, encoded once and kept beside their actions and rewards.

A ``LatentStore`` is tied to its codec by the codec's hash: codes of another are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from worldvae.checkpoint import FORMAT_VERSION, CheckpointError, only_writer, read_manifest, write_json
from worldvae.episodes import DamagedEpisode, EpisodeFolder, Tensors
from worldvae.rollouts import Episode, RolloutStore
from worldvae.vae import FrameVAE

Precision = Literal["float32", "uint8"]


@dataclass(frozen=True)
class LatentEpisode:
    """One encoded episode of T decisions.

    Attributes:
        mean, logvar: float32 [T+1, Z], the posterior of each frame.
        actions: [T, A] or [T]
        rewards: float32 [T]
        visible: bool [T+1]; false where the frame was blanked and its code means nothing.
        terminated, truncated: how the last transition ended.
    """

    mean: NDArray[np.float32]
    logvar: NDArray[np.float32]
    actions: NDArray[Any]
    rewards: NDArray[np.float32]
    visible: NDArray[np.bool_]
    terminated: bool
    truncated: bool

    def __post_init__(self) -> None:
        if not len(self.mean) == len(self.logvar) == len(self.visible) == len(self.rewards) + 1:
            raise ValueError(f"T+1 codes and T rewards, not {len(self.mean)} and {len(self.rewards)}")


class LatentStore:
    """A folder of encoded episodes."""

    KIND = "latents"

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.manifest = read_manifest(self.path / "latents.json", self.KIND)
        self.episodes = EpisodeFolder(self.path)
        self.indices = self.episodes.indices()

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[LatentEpisode]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> LatentEpisode:
        """The i-th episode, verified and back in float32. Raises DamagedEpisode."""
        index = self.indices[i]
        tensors, header = self.episodes.read(index)
        try:
            return LatentEpisode(
                mean=restore(tensors, "mean"),
                logvar=restore(tensors, "logvar"),
                actions=tensors["actions"],
                rewards=tensors["rewards"],
                visible=tensors["visible"],
                terminated=header["terminated"],
                truncated=header["truncated"],
            )
        except (KeyError, ValueError) as error:
            raise DamagedEpisode(f"{self.episodes.file(index)} is no encoded episode: {error}") from error

    def check_codec(self, vae: FrameVAE) -> None:
        """Raises CheckpointError where these are another codec's codes."""
        if self.manifest["codec_sha256"] != vae.sha256:
            raise CheckpointError(
                f"{self.path} was encoded by codec {self.manifest['codec_sha256'][:12]}, this one is "
                f"{vae.sha256[:12] or 'unsaved'}: encode the rollouts again"
            )


def encode(rollouts: RolloutStore, vae: FrameVAE, path: str | Path, precision: Precision = "float32") -> LatentStore:
    """Encodes every episode that is not encoded yet; codes of what the rollouts no longer hold are deleted.

    Args:
        vae: a codec from ``FrameVAE.load`` (its file's hash goes into the manifest).
        precision: ``uint8`` keeps 256 levels per latent and episode, with their scale.

    Raises:
        CheckpointError: the folder holds another codec's latents or has another writer, or the codec is
            of no file.
    """
    if not vae.sha256:
        raise CheckpointError("latents are tied to a codec's file: save this one, and encode by FrameVAE.load's")
    path = Path(path)
    with only_writer(path):
        store = _open_or_create(path, vae, precision)
        sources = {index: rollouts.episodes.checksum(index) for index in rollouts.indices}
        done = {index for index in store.indices if store.episodes.header(index).get("rollout") == sources.get(index)}
        for index in set(store.indices) - done:
            store.episodes.file(index).unlink()
        for i, index in enumerate(tqdm(rollouts.indices, desc="encode", unit="episode")):
            if index not in done:
                tensors, header = _encoded(rollouts[i], vae, precision)
                store.episodes.write(index, tensors, {**header, "rollout": sources[index]})
    return LatentStore(path)


def _open_or_create(path: Path, vae: FrameVAE, precision: Precision) -> LatentStore:
    if not (path / "latents.json").exists():
        header = {"format_version": FORMAT_VERSION, "kind": LatentStore.KIND}
        codec = {"codec_sha256": vae.sha256, "latent_size": vae.latent_size, "precision": precision}
        write_json(path / "latents.json", {**header, **codec})
    store = LatentStore(path)
    store.check_codec(vae)
    if store.manifest["precision"] != precision:
        raise CheckpointError(f"{path} holds latents in {store.manifest['precision']}, not {precision}")
    return store


def _encoded(episode: Episode, vae: FrameVAE, precision: Precision) -> tuple[Tensors, dict[str, Any]]:
    """What is stored of one episode: its codes and what is kept as it was, and the header."""
    posterior = vae.encode(episode.frames)
    codes = {
        **quantise("mean", posterior.mean.cpu().numpy(), precision),
        **quantise("logvar", posterior.logvar.cpu().numpy(), precision),
    }
    kept = {"actions": episode.actions, "rewards": episode.rewards, "visible": episode.visible}
    ends = {"terminated": episode.terminated, "truncated": episode.truncated}
    return {**codes, **kept}, {**ends, "seed": episode.seed, "length": len(episode)}


def quantise(name: str, values: NDArray[np.float32], precision: Precision) -> dict[str, NDArray[Any]]:
    """float32 [T, Z] -> what is stored: itself, or uint8 levels with offset and step per latent."""
    if precision == "float32":
        return {name: values.astype(np.float32)}
    low, high = values.min(0), values.max(0)
    step = np.maximum((high - low) / 255, np.finfo(np.float32).tiny).astype(np.float32)
    levels = np.rint((values - low) / step).clip(0, 255).astype(np.uint8)
    return {name: levels, f"{name}_scale": np.stack([low, step]).astype(np.float32)}


def restore(stored: dict[str, NDArray[Any]], name: str) -> NDArray[np.float32]:
    """float32 [T, Z] from what ``quantise`` made."""
    if stored[name].dtype == np.float32:
        return stored[name]
    low, step = stored[f"{name}_scale"]
    return (low + step * stored[name]).astype(np.float32)


def round_trip_mse(rollouts: RolloutStore, latents: LatentStore, vae: FrameVAE, every: int = 1) -> float:
    """Mean squared error (pixels in [0, 1]) of frames, each ``every``-th, decoded from the stored codes' means."""
    total, count = 0.0, 0
    for i in range(len(latents)):
        tensors, _ = rollouts.episodes.read(latents.indices[i], ("frames",))
        decoded = vae.decode(torch.from_numpy(latents[i].mean[::every])).cpu().numpy()
        error = decoded.astype(np.float32) - tensors["frames"][::every]
        total, count = total + float(np.square(error).sum()) / 255**2, count + error.size
    return total / count


def bytes_per_frame(latents: LatentStore) -> float:
    """What one frame's posterior mean takes, its share of the scales included."""
    total, frames = 0, 0
    for index in latents.indices:
        tensors, _ = latents.episodes.read(index, None)
        total += sum(t.nbytes for name, t in tensors.items() if name.startswith("mean"))
        frames += len(tensors["visible"])
    return total / frames
