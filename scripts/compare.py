"""The ideas behind the project, measured: autoencoder, VAEs and GANs on the same frames, networks and budget.

Each run (a set of frames, a model, a seed) has a folder with its codec and its numbers; a run that is done is
not done again, and one that fails takes no other with it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import cv2
import numpy as np

from scripts import cli
from scripts.claims import judged, summary, value
from scripts.collect import collect
from scripts.contenders import CONTENDERS
from scripts.frame_sets import FrameSet, driving_set, sprite_set
from scripts.judge import Judge, straight
from scripts.pipeline import DRIVING
from scripts.run_folder import RunFolder
from scripts.state_regressor import fitted_regressor
from worldvae.checkpoint import CheckpointError, only_writer, read_json, write_json, write_record
from worldvae.frames import Frames
from worldvae.pictures import grid, save_png
from worldvae.vae import FrameVAE

Data = Literal["sprites", "carracing"]
Model = Literal["ae", "vae", "beta_vae", "beta_tcvae", "gan", "vae_gan"]
MODELS: tuple[Model, ...] = get_args(Model)
SEEDS: dict[Data, int] = {"sprites": 5, "carracing": 3}
ROWS = (
    *("psnr", "sharpness", "bits_per_dim", "kl"),
    *(f"prior.{name}" for name in ("sharpness", "precision", "recall", "density", "coverage", "dropped")),
    *(f"fitted_prior.{name}" for name in ("precision", "recall", "coverage", "dropped")),
    *(f"interpolation.{name}" for name in ("evenness_pixels", "evenness_features", "precision")),
    *("mig", "dci.disentanglement", "dci.completeness", "dci.informativeness", "factor_vae"),
    *("bytes.code", "bytes.psnr", "bytes.image"),
    *(f"novelty.{name}" for name in ("colours", "bars", "blobs", "another kind", "mean")),
    "seconds.train",
)


class Comparison:
    """All runs on one set of frames, in ``folder``."""

    def __init__(self, folder: Path, frames: FrameSet, steps: int, regressor_steps: int):
        self.folder, self.frames, self.steps = folder, frames, steps
        self.judge = Judge(frames, fitted_regressor(frames, folder / "regressor", regressor_steps))
        if not (folder / "real.json").exists():
            write_json(folder / "real.json", self.judge.reference())
        self.real = read_json(folder / "real.json")

    def codec(self, model: str, seed: int) -> Path:
        return self.folder / f"{model}-{seed}"

    def numbers(self, model: str, seed: int) -> dict[str, Any] | None:
        """What is measured of a run; None where it is not done.

        Raises CheckpointError where it was made with another number of steps.
        """
        path = self.codec(model, seed) / "run.json"
        if not path.exists():
            return None
        told = read_json(path)
        if told["steps"] != self.steps:
            raise CheckpointError(f"{path} is of {told['steps']} steps, not {self.steps}: choose another --out")
        return told

    def run(self, model: str, seed: int) -> None:
        """Trains and judges a codec; its numbers are written last."""
        begin = time.monotonic()
        vae = CONTENDERS[model].train(self.frames, self.steps, seed).eval()
        trained = time.monotonic()
        numbers = self.judge(vae, CONTENDERS[model])
        seconds = {"train": trained - begin, "judge": time.monotonic() - trained}
        vae.save(self.codec(model, seed), {"model": model, "steps": self.steps, "seed": seed})
        write_json(self.codec(model, seed) / "run.json", {**numbers, "steps": self.steps, "seconds": seconds})

    def run_all(self, models: Sequence[str], seeds: int) -> list[str]:
        """Every run that is not done yet; what went wrong, a sentence a run."""
        failures = []
        for seed in range(seeds):
            for model in models:
                if self.numbers(model, seed) is not None:
                    continue
                try:
                    self.run(model, seed)
                    said = f"{self.codec(model, seed)} done"
                except Exception as error:  # whatever it is, the other runs are worth their while
                    said = f"{self.codec(model, seed)} failed: {type(error).__name__}: {error}"
                    failures.append(said)
                print(said, file=sys.stderr)
        return failures

    def record(self, models: Sequence[str], seeds: int) -> dict[str, Any]:
        """Every number of these runs, and what they say to each claim."""
        found = {model: {seed: self.numbers(model, seed) for seed in range(seeds)} for model in models}
        runs: dict[str, dict[int, dict[str, Any]]] = {
            model: {seed: told for seed, told in by_seed.items() if told is not None}
            for model, by_seed in found.items()
        }
        claims = judged({**runs, "real": dict.fromkeys(range(seeds), self.real)})
        return {"steps": self.steps, "real": self.real, "runs": runs, "claims": claims, "verdicts": summary(claims)}

    def page(self, models: Sequence[str]) -> Frames:
        """An image with a row for each model of seed 0: reconstructions, samples of the prior, an interpolation."""
        real = self.frames.held_out[:6]
        names, rows = ["real"], [np.concatenate([real, self.frames.train[:6], np.full_like(real, 255)])]
        for model in models:
            if self.numbers(model, 0) is not None:
                vae = FrameVAE.load(self.codec(model, 0))
                codes = vae.encode(real).mean.numpy()
                between = vae.decode(straight(codes[:1], codes[1:2], 6)[0])
                rows.append(np.concatenate([vae.decode(codes), vae.sample(6), between]))
                names.append(model)
        return _titled(grid(np.stack(rows), scale=1), names)


def _titled(image: Frames, names: Sequence[str], width: int = 96) -> Frames:
    """A grid with its rows' names on its left."""
    margin = np.full((len(image), width, 3), 255, np.uint8)
    tall = len(image) / len(names)
    for row, name in enumerate(names):
        place = (4, round((row + 0.5) * tall) + 4)
        cv2.putText(margin, name, place, cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([margin, image], axis=1)


def show(name: str, told: dict[str, Any]) -> str:
    """The tables of one set: means over seeds, and the verdicts."""
    runs = {**told["runs"], "real": {0: told["real"]}}
    rows: list[tuple[Any, ...]] = [(f"{name}, mean over seeds", *runs)]
    for measure in ROWS:
        means = [_mean([value(runs, model, measure, seed) for seed in runs[model]]) for model in runs]
        if any(mean != "none" for mean in means):
            rows.append((measure, *means))
    verdicts: list[tuple[Any, ...]] = [("claim", "difference", "95% interval", "seeds", "verdict")]
    for idea, verdict in told["verdicts"].items():
        verdicts.append((idea, "", "", "", verdict))
        for claim in (claim for claim in told["claims"] if claim["idea"] == idea):
            low, high = claim["ci95"]
            what = f"    {claim['measure']}: {claim['more']} > {claim['less']}"
            verdicts.append((what, claim["difference"], f"{low:.3g} to {high:.3g}", claim["seeds"], claim["verdict"]))
    return f"{cli.table(rows)}\n\n{cli.table(verdicts)}"


def _mean(values: list[float | None]) -> float | str:
    numbers = [number for number in values if number is not None]
    return float(np.mean(numbers)) if numbers else "none"


def rollouts_of(out: Path, given: Path | None) -> Path:
    """The rollouts to compare on; where none are given, what is missing of them is recorded first."""
    if given is not None:
        return given
    return collect(RunFolder(out), replace(DRIVING, episodes=220)).path


def main(
    data: tuple[Data, ...] = ("sprites", "carracing"),
    models: tuple[Model, ...] = MODELS,
    seeds: int | None = None,
    steps: int = 1000,
    regressor_steps: int = 3000,
    rollouts: Path | None = None,
    out: Path = Path("runs/compare"),
    json: Path = Path("benchmarks/compare.json"),
) -> None:
    """Compare autoencoder, VAEs and GANs on sprites and on CarRacing; resumes what OUT has begun.

    Args:
        seeds: of each model: 0, 1, ...; 5 on sprites and 3 on CarRacing where left out.
        steps: of training, with batches of 32 frames.
        regressor_steps: of the network in whose features samples are compared.
        rollouts: of CarRacing; where left out, 220 episodes are recorded into OUT.
        json: where the record goes; the page of pictures goes beside it.
    """
    sets: dict[Data, Callable[[], FrameSet]] = {
        "sprites": sprite_set,
        "carracing": lambda: driving_set(rollouts_of(out, rollouts)),
    }
    told, failures = {}, []
    for name in data:
        with only_writer(out / name):
            comparison = Comparison(out / name, sets[name](), steps, regressor_steps)
            count = SEEDS[name] if seeds is None else seeds
            failures += comparison.run_all(models, count)
            told[name] = comparison.record(models, count)
            save_png(json.with_name(f"{json.stem}_{name}.png"), comparison.page(models))
        print(show(name, told[name]) + "\n")
    write_record(json, {**told, **cli.provenance()})
    if failures:
        raise RuntimeError("\n".join([*failures, "the same command tries them again"]))


if __name__ == "__main__":
    cli.run(main)
