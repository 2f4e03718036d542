"""What is wrong with a codec: numbers, each beside its healthy range, and verdicts in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from numpy.typing import NDArray

from scripts import cli
from scripts.diagnosis_page import page
from scripts.known_state import from_file, replayed
from worldvae.checkpoint import read_json, write_atomically, write_record
from worldvae.clips import Clips, clips
from worldvae.diagnose import HEALTHY, NUMBERS, Diagnosis, as_json, diagnose, range_in_words, verdicts
from worldvae.measures.likelihood import held_out_likelihood
from worldvae.measures.probes import Probe, probe
from worldvae.objective import ObjectiveConfig
from worldvae.rollouts import RolloutStore, split_episodes
from worldvae.training import VAETrainingConfig, train_vae
from worldvae.vae import FrameVAE

Folder = Annotated[Path, tyro.conf.Positional]
States = Mapping[str, NDArray[Any]]


def split(codec: Path, store: RolloutStore) -> tuple[list[int], list[int]]:
    """The codec's own training and held-out episodes; no training ones where it was not trained on this store."""
    told = _training(codec)
    if {"held_out", "seed", "frames"} <= set(told) and len(store) > 1:
        train, held_out = split_episodes(len(store), told["held_out"], told["seed"])
        if sum(store.visible_counts(train)) == told["frames"]:
            return train, held_out
    return [], list(range(len(store)))


def probed(
    vae: FrameVAE, store: RolloutStore, frames: int, replay: bool, seen: Clips, states: States
) -> dict[str, Probe]:
    """What is read from codes of what is known: of the frames ``seen``, and of episodes that are played again."""
    if not replay and not states:
        print("no probes: what the codes should tell is not known (--replay, or --state FILE)")
    told = probe(vae.encode(seen.frames).mean.cpu().numpy(), states, seen.episode) if states else {}
    if replay:
        again, read = replayed(store, frames)
        print(f"{len(again.runs)} of {len(store)} episodes are played again to know their state")
        told |= probe(vae.encode(again.frames).mean.cpu().numpy(), read, again.episode)
    return told


def over_beta(
    store: RolloutStore, codec: Path, betas: Sequence[float], passes: float, seen: Clips
) -> list[dict[str, float]]:
    """A short training like the codec's for each beta, kept beside it: KL and PSNR on the frames."""
    like, frames, curve = training_like(codec), torch.from_numpy(seen.frames), []
    for beta in betas:
        config = replace(like, passes=passes, objective=replace(like.objective, beta=beta))
        told = held_out_likelihood(
            train_vae(store, config, codec / "rate_distortion" / f"beta-{beta:g}"), frames, frames
        )
        curve.append({"beta": beta, "kl": told.kl, "psnr": told.psnr})
    return curve


def training_like(codec: Path) -> VAETrainingConfig:
    """The settings that the codec was trained by, as far as its summary tells."""
    told, built = _training(codec), FrameVAE.load(codec).config
    known = {each.name: told[each.name] for each in fields(VAETrainingConfig) if each.name in told}
    known |= {"latent_size": built.latent_size, "architecture": built.architecture}
    return VAETrainingConfig(**{**known, "objective": ObjectiveConfig(**told.get("objective", {}))})


def _training(codec: Path) -> dict[str, Any]:
    """The summary of its training; empty where the codec was saved without, or copied without its config.json."""
    file = codec / "config.json"
    return dict(read_json(file).get("training", {})) if file.exists() else {}


def show(told: Diagnosis) -> str:
    """Tables: each number beside its healthy range ('!': outside of it), and what probes read."""
    rows: list[tuple[Any, ...]] = [("number", "value", "unit", "healthy", "")]
    for name, about in NUMBERS.items():
        value, (low, high) = getattr(told, name), about["healthy"]
        outside = value is not None and not low <= value <= high
        shown = "unknown" if value is None else value
        rows.append((name.replace("_", " "), shown, about["unit"], range_in_words(name), "!" if outside else ""))
    if not told.probes:
        return cli.table(rows)
    probed = [("read from the codes, R2", "linear", "MLP"), *((n, p.linear, p.mlp) for n, p in told.probes.items())]
    return f"{cli.table(rows)}\n\n{cli.table(probed)}"


def main(
    codec: Folder,
    data: Folder,
    frames: int = 2048,
    state: Path | None = None,
    replay: bool = False,
    rate_distortion: tuple[float, ...] = (),
    passes: float = 2.0,
    out: Path | None = None,
    seed: int = 0,
) -> None:
    """Measure CODEC (a folder) on DATA (rollouts), on the episodes that its training held out; say what is wrong.

    Writes diagnosis.json and diagnosis.png into CODEC (or OUT).

    Args:
        frames: at most so many of held-out and of training episodes.
        state: safetensors with what is known of each frame: one row for each frame of the store's episodes
            end to end, by name; ``mask`` [frames, H, W] are the pixels of objects.
        replay: play the episodes again to know their state (CarRacing-v3, recorded by a Gymnasium backend).
        rate_distortion: betas; a short training like CODEC's for each, and the curve of its rate and distortion.
        passes: of these trainings.
        seed: of the frames' choice and the samples.
    """
    vae, store = FrameVAE.load(codec), RolloutStore(data)
    train, held_out = split(codec, store)
    seen = clips(store, held_out, frames, seed)
    if not train:
        print("not known what this codec was trained on here: all episodes count as held out, the gap is unknown")
    states, masks = from_file(state, store, seen) if state else ({}, None)
    probes = probed(vae, store, frames, replay, seen, states)
    told = diagnose(vae, seen, clips(store, train, frames, seed) if train else None, masks, probes, seed)
    given = verdicts(told)
    curve = over_beta(store, codec, rate_distortion, passes, seen)
    folder = out or codec
    folder.mkdir(parents=True, exist_ok=True)
    record = {**as_json(told, given), "rate_distortion": curve, "codec": vae.sha256, **cli.provenance()}
    write_record(folder / "diagnosis.json", record)
    print(show(told))
    print("\n".join(f"\n{v.name.upper()}: {v.says}.\n  {v.remedy}." for v in given) or f"\n{HEALTHY}")
    write_atomically(folder / "diagnosis.png", page(vae, seen, told, given, masks, curve))
    print(f"\n{folder / 'diagnosis.json'}\n{folder / 'diagnosis.png'}")


if __name__ == "__main__":
    cli.run(main)
