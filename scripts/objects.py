"""Which objectives keep small objects? Balls and fireballs found again after decoding, with the codec's other costs.

Each objective trains the same codec on the same rollouts for the same steps. Held-out episodes are decoded from the
posterior mean; a detector fitted on real frames of the training episodes counts the objects in both.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from scripts import cli
from scripts.object_sources import SOURCES, collect
from worldvae.checkpoint import CheckpointError, read_json, write_json, write_record
from worldvae.frames import Frames
from worldvae.measures.images import psnr, squared_error
from worldvae.measures.objects import Detector, Points, fit_detector, score, survival
from worldvae.objective import CALIBRATED, MOVING, PUBLISHED, ObjectiveConfig
from worldvae.pictures import grid, save_png
from worldvae.rollouts import RolloutStore, split_episodes
from worldvae.training import VAETrainingConfig, train_vae
from worldvae.vae import FrameVAE

Env = Literal["pong", "breakout", "takecover", "dots"]
Objective = Literal[
    "published",
    "calibrated",
    "calibrated, moving pixels",
    "calibrated, worst pixels",
    "calibrated, off background",
    "logistic",
]
COLUMNS = 10
RATE = 2e-3
"""Two thirds of the usual one: over so many steps frames come out a little better (benchmarks/LOG.md)."""
OBJECTIVES: dict[Objective, ObjectiveConfig] = {
    "published": PUBLISHED,
    "calibrated": CALIBRATED,
    "calibrated, moving pixels": MOVING,
    "calibrated, worst pixels": replace(CALIBRATED, weighting="worst"),
    "calibrated, off background": replace(CALIBRATED, weighting="background"),
    "logistic": replace(CALIBRATED, likelihood="discretised_logistic", sigma="learned"),
}


def held_out_scene(
    store: RolloutStore, objects: list[list[Points]], config: VAETrainingConfig
) -> dict[str, tuple[Frames, list[Points]]]:
    """Frames and objects of the training and the held-out episodes."""
    parts = dict(zip(("train", "held_out"), split_episodes(len(store), config.held_out, config.seed), strict=True))
    return {
        name: (np.concatenate([store.visible_frames(e) for e in chosen]), [p for e in chosen for p in objects[e]])
        for name, chosen in parts.items()
    }


def judged(vae: FrameVAE, detector: Detector, frames: Frames, objects: list[Points]) -> dict[str, Any]:
    """One codec on held-out frames."""
    decoded = vae.decode(vae.encode(frames).mean.numpy())
    kept = survival(detector, frames, decoded, objects)
    return {
        **asdict(kept),
        "position_error": kept.position_error if kept.recall else None,  # JSON knows no NaN
        "psnr": psnr(float(squared_error(decoded, frames).mean())),
    }


def measure(
    name: Env, seed: int, objectives: Sequence[Objective], config: VAETrainingConfig, out: Path
) -> list[dict[str, Any]]:
    """All objectives on one source and seed; what ``out`` has already is not done again.

    Raises CheckpointError where that is of other latents or steps.
    """
    folder = out / f"{name}-{seed}"
    source = SOURCES[name]
    store, objects = collect(source, folder / "rollouts", seed)
    config = replace(config, seed=seed)
    scene = held_out_scene(store, objects, config)
    detector, own = None, None
    results = []
    for objective in objectives:
        file = folder / f"{objective}.json"
        if not file.exists():
            if detector is None:
                detector = fit_detector(*scene["train"], seed)
                own = asdict(score(detector.find(scene["held_out"][0]), scene["held_out"][1]))
                print(f"{name} {seed}: detector on real frames {own}")
            vae = train_vae(store, replace(config, objective=OBJECTIVES[objective]), folder / objective)
            training = read_json(folder / objective / "config.json")["training"]
            row = {
                "env": source.env, "object": source.object, "objective": objective, "seed": seed,
                **judged(vae, detector, *scene["held_out"]),
                "kl_nats": training["held_out_kl"], "equivalent_beta": training["equivalent_beta"],
                "frames": training["frames"], "steps": training["steps"], "z": vae.latent_size,
                "detector": own,
            }  # fmt: skip
            write_json(file, row)
        results.append(_of(config, file))
        print(json.dumps({k: results[-1][k] for k in ("objective", "recall", "precision", "psnr", "kl_nats")}))
    return results


def _of(config: VAETrainingConfig, file: Path) -> dict[str, Any]:
    row = read_json(file)
    steps = max(1, round(config.passes * row["frames"] / config.batch_size))
    if (row["z"], row["steps"]) != (config.latent_size, steps):
        raise CheckpointError(
            f"{file} is of {row['z']} latents and {row['steps']} steps, not {config.latent_size} and {steps}: choose "
            "another --out"
        )
    return row


def picture(name: Env, seed: int, objectives: Sequence[Objective], config: VAETrainingConfig, out: Path) -> Frames:
    """Held-out frames with objects, above what each objective's codec makes of them."""
    folder = out / f"{name}-{seed}"
    frames, objects = held_out_scene(*collect(SOURCES[name], folder / "rollouts", seed), config)["held_out"]
    with_objects = np.flatnonzero([len(points) for points in objects])
    shown = frames[with_objects[np.linspace(0, len(with_objects) - 1, COLUMNS + 2).astype(int)[1:-1]]]
    codecs = [FrameVAE.load(folder / objective) for objective in objectives]
    return grid(np.stack([shown, *(vae.decode(vae.encode(shown).mean.numpy()) for vae in codecs)]), scale=2)


def main(
    out: Path = Path("runs/objects"),
    envs: tuple[Env, ...] = ("pong", "takecover"),
    objectives: tuple[Objective, ...] = ("published", "calibrated, moving pixels"),
    seeds: tuple[int, ...] = (0, 1, 2),
    passes: float | None = None,
    latent_size: int = 64,
    json_file: Path | None = None,
) -> None:
    """Count small objects before and after codecs trained by each objective.

    Args:
        out: rollouts, codecs and results so far; goes on from there.
        seeds: of episodes, codecs and detectors.
        passes: of training, the same for all objectives; by default each source's own.
        latent_size: Z.
        json_file: where the record goes; a picture goes beside it.
    """
    config = VAETrainingConfig(latent_size=latent_size, colour_jitter=0.0, held_out=0.2, learning_rate=RATE)
    configs = {env: replace(config, passes=passes or SOURCES[env].passes) for env in envs}
    rows = [row for env in envs for seed in seeds for row in measure(env, seed, objectives, configs[env], out)]
    names = ("env", "seed", "objective", "recall", "precision", "position_error", "psnr", "kl_nats")
    print(cli.table([names, *(tuple(row[name] for name in names) for row in rows)]))
    if json_file is not None:
        write_record(json_file, {"runs": rows, **cli.provenance()})
        pages = [picture(env, seeds[0], objectives, replace(config, seed=seeds[0]), out) for env in envs]
        save_png(json_file.with_suffix(".png"), np.concatenate(pages))


if __name__ == "__main__":
    cli.run(main)
