"""How long does the codec take to become good, and frames to become codes?

The baseline, called plain, is the published architecture as a good reimplementer would train it: float32,
Adam at the best of three rates, batches of 128, the same objective. It gets 8 passes over 8,000 frames;
ours is timed until it has the held-out ELBO that plain ends with. Measuring is left out of both times.
The physical limits are the machine's own matrix products and copies, measured in the same run.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from torch import Tensor

from scripts import cli
from scripts.collect import collect
from scripts.limits import CPU, Limits, flops_per_frame, limits, median_seconds, seconds_of, training_roofline
from scripts.pipeline import DRIVING, FINE
from scripts.run_folder import RunFolder
from worldvae.batches import frame_batches
from worldvae.checkpoint import write_record
from worldvae.measures.likelihood import held_out_likelihood
from worldvae.objective import negative_elbo
from worldvae.rollouts import RolloutStore, split_episodes
from worldvae.training import VAELearner, VAETrainingConfig, mean_colour
from worldvae.vae import FrameVAE, FrameVAEConfig

RATES = (1e-3, 2e-3, 4e-3)
OURS = VAETrainingConfig(objective=FINE, passes=4.0, colour_jitter=0.0)
"""The compact codec, on the presets' objective, without the random shades that plain does not have either."""
ENCODE_BATCHES = (1, 16, 256)


class Plain:
    """The reimplementer's learner."""

    def __init__(self, colour: Tensor, rate: float, seed: int):
        torch.manual_seed(seed)
        self.vae = FrameVAE(FrameVAEConfig(architecture="paper"))
        self.vae.start_from_colour(colour)
        self.optimiser = torch.optim.Adam(self.vae.parameters(), rate)

    def step(self, frames: Tensor) -> None:
        images = frames.permute(0, 3, 1, 2).float() / 255
        reconstruction, posterior = self.vae(images, torch.randn(len(images), 32))
        loss, _ = negative_elbo(reconstruction, images, posterior, OURS.objective)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()


class Frames:
    """Training and held-out frames of a run's rollouts, uint8 [B, H, W, C], by whole episodes."""

    def __init__(self, run: RunFolder, count: int):
        self.store = RolloutStore(run.rollouts)
        self.episodes, held_out = split_episodes(len(self.store), 0.1, seed=0)
        self.colour = mean_colour(self.store, self.episodes)
        self.train, self.held_out = (
            torch.from_numpy(np.concatenate([self.store.visible_frames(e) for e in chosen]))
            for chosen in (self.episodes, held_out)
        )
        if len(self.train) < count:
            raise ValueError(f"{run.rollouts} has {len(self.train)} training frames, this takes {count}: collect more")
        self.train = self.train[torch.randperm(len(self.train), generator=torch.Generator().manual_seed(0))[:count]]

    def judge(self, vae: FrameVAE) -> dict[str, float]:
        return asdict(held_out_likelihood(vae, self.train[::8], self.held_out))


def trained(
    learner: Any, frames: Frames, batch_size: int, steps: int, seed: int, measurements: int, name: str
) -> list[dict[str, float]]:
    """Trains by ``learner.step`` on shuffled batches; the likelihood and the seconds of training at some steps."""
    random = torch.Generator().manual_seed(seed)
    seconds, order, entries = 0.0, torch.empty(0, dtype=torch.int64), []
    moments = {round(steps * (i + 1) / measurements) for i in range(measurements)}
    for step in range(1, steps + 1):
        if len(order) < batch_size:
            order = torch.randperm(len(frames.train), generator=random)
        begin = time.perf_counter()
        learner.step(frames.train[order[:batch_size]])
        seconds += time.perf_counter() - begin
        order = order[batch_size:]
        if step in moments:
            entries.append({"step": step, "seconds": seconds, **frames.judge(learner.vae)})
            told = entries[-1]
            print(f"{name} {step} {seconds:.1f} s: ELBO {told['elbo']:.0f}, {told['psnr']:.1f} dB", file=sys.stderr)
    return entries


def plainly(frames: Frames, rate: float, seed: int, passes: float) -> list[dict[str, float]]:
    """The plain loop; its seconds and what it reached."""
    steps = max(1, int(passes * len(frames.train) / 128))
    return trained(Plain(frames.colour, rate, seed), frames, 128, steps, seed, 4, f"plain {rate:g} seed {seed}")


def ours(frames: Frames, seed: int, passes: float) -> list[dict[str, float]]:
    """The project's learner, as ``train_vae`` drives it."""
    config = replace(OURS, seed=seed, passes=passes)
    steps = max(1, int(passes * len(frames.train) / config.batch_size))
    learner = VAELearner(config, FrameVAEConfig(architecture=config.architecture), steps)
    learner.vae.start_from(frames.train[:512])
    return trained(learner, frames, config.batch_size, steps, seed, 16, f"ours seed {seed}")


def time_ratio(plain: list[dict[str, float]], entries: list[dict[str, float]]) -> float | None:
    """Plain's whole time over the time until its last ELBO was reached; None where it never was."""
    reached = [entry["seconds"] for entry in entries if entry["elbo"] >= plain[-1]["elbo"]]
    return plain[-1]["seconds"] / reached[0] if reached else None


def encoding(rounds: int) -> dict[str, Any]:
    """Frames/s by batch and the single frame's latency, both architectures, taking turns."""
    codecs = {name: FrameVAE(FrameVAEConfig(architecture=name)).eval() for name in ("paper", "compact")}
    frames = np.random.default_rng(0).integers(0, 256, (max(ENCODE_BATCHES), 64, 64, 3), dtype=np.uint8)
    times: dict[str, dict[int, list[float]]] = {name: {b: [] for b in ENCODE_BATCHES} for name in codecs}
    for _ in range(rounds):
        for name, codec in codecs.items():
            for batch in ENCODE_BATCHES:
                some = frames[:batch]
                repeats = 100 if batch == 1 else 5
                times[name][batch] += seconds_of(partial(codec.encode, some), repeats)
    told: dict[str, Any] = {}
    for name, by_batch in times.items():
        single = 1e3 * np.quantile(by_batch[1], [0.5, 0.95, 0.99])
        told[name] = {
            "frames_per_second": {str(b): b / float(np.median(t)) for b, t in by_batch.items()},
            "single_frame_ms": dict(zip(("median", "p95", "p99"), single.round(3).tolist(), strict=True)),
        }
    return told


def stepping(colour: Tensor, frames: Tensor, rounds: int, limit: Limits) -> dict[str, Any]:
    """Both learners' steps, taking turns: frames/s, and arithmetic as a share of the matmul peak."""
    learner = VAELearner(OURS, FrameVAEConfig(), steps=10**6)
    learners: dict[str, tuple[Any, int]] = {"plain": (Plain(colour, 1e-3, 0), 128), "ours": (learner, OURS.batch_size)}
    times: dict[str, list[float]] = {name: [] for name in learners}
    for _ in range(rounds):
        for name, (each, size) in learners.items():
            times[name] += seconds_of(partial(each.step, frames[:size]), 3)
    told = {}
    for name, (each, size) in learners.items():
        rate = size / float(np.median(times[name]))
        told[name] = {
            "frames_per_second": rate,
            "forward_mflops": {part: flops_per_frame(each.vae, part) / 1e6 for part in ("encoder", "decoder")},
            "parameters": sum(p.numel() for p in each.vae.parameters()),
            "share_of_matmul_peak": rate * 3 * flops_per_frame(each.vae) / limit.flops,
            "share_of_roofline": rate * training_roofline(each.vae, size, limit) / size,
        }
    return told


def data_path(frames: Frames, rounds: int) -> dict[str, float]:
    """Batches as training gets them, from a store that fits: frames/s, as a share of copying the same bytes."""
    stream = frame_batches(frames.store, frames.episodes, OURS.batch_size, seed=0)
    batch = next(stream).clone()
    out = torch.empty_like(batch)
    served = OURS.batch_size / median_seconds(lambda: next(stream), 20 * rounds)
    copied = OURS.batch_size / median_seconds(lambda: out.copy_(batch), 20 * rounds)
    return {"frames_per_second": served, "share_of_memcpy": served / copied}


def measure(run: RunFolder, frames: int, seeds: int, passes: float, our_passes: float, rounds: int) -> dict[str, Any]:
    """The whole record."""
    limit, data = limits(CPU, torch.float32), Frames(run, frames)
    speeds = {"encode": encoding(rounds), "training": stepping(data.colour, data.train, rounds, limit)}
    by_rate = {rate: plainly(data, rate, 0, passes) for rate in RATES}
    best = max(by_rate, key=lambda rate: by_rate[rate][-1]["elbo"])
    plain = [by_rate[best], *(plainly(data, best, seed, passes) for seed in range(1, seeds))]
    compact = [ours(data, seed, our_passes) for seed in range(seeds)]
    with tempfile.TemporaryDirectory() as folder:
        FrameVAE().save(folder)
        checkpoint = sum(path.stat().st_size for path in Path(folder).iterdir())
    ratios = [time_ratio(*pair) for pair in zip(plain, compact, strict=True)]
    reached = [ratio for ratio in ratios if ratio is not None]
    return {
        "elbo_time_ratio": float(np.median(reached)) if len(reached) == len(ratios) else None,
        "elbo_time_ratios": ratios,
        "plain": {
            "rates": {f"{rate:g}": log[-1]["elbo"] for rate, log in by_rate.items()},
            "rate": best,
            "runs": plain,
        },
        "ours": {"config": asdict(OURS), "passes": our_passes, "runs": compact},
        "matmul_gflops": limit.flops / 1e9,
        "copy_gb_per_second": limit.copy / 1e9,
        **speeds,
        "data_path": data_path(data, rounds),
        "checkpoint_bytes": checkpoint,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        **cli.provenance(),
    }


def show(told: dict[str, Any]) -> str:
    """The record as tables."""
    ratio = told["elbo_time_ratio"]
    encode, training = told["encode"], told["training"]
    rows: list[tuple[Any, ...]] = [("", "plain, paper architecture", "ours, compact")]
    for name, log in (("seconds of training", "seconds"), ("held-out ELBO", "elbo"), ("PSNR dB", "psnr")):
        rows.append((name, *(float(np.mean([r[-1][log] for r in told[who]["runs"]])) for who in ("plain", "ours"))))
    for name, key in (("training frames/s", "frames_per_second"), ("of matmul peak", "share_of_matmul_peak")):
        rows.append((name, training["plain"][key], training["ours"][key]))
    for batch in map(str, ENCODE_BATCHES):
        both = (encode[name]["frames_per_second"][batch] for name in ("paper", "compact"))
        rows.append((f"encode frames/s, batch {batch}", *both))
    said = "never reached" if ratio is None else f"{ratio:.1f} times sooner (median of {len(told['elbo_time_ratios'])})"
    return f"{cli.table(rows)}\nplain's last ELBO: {said}"


def main(
    run: cli.Run = Path("runs/bench_train"),
    frames: int = 8000,
    seeds: int = 3,
    passes: float = 8.0,
    our_passes: float = OURS.passes,
    rounds: int = 10,
    out: Path = Path("benchmarks/train.json"),
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Time codec training and encoding beside a plain loop, on CarRacing-v3 frames (recorded if need be).

    Args:
        run: whose rollouts to take; where it has none, 220 episodes are recorded.
        frames: training frames.
        passes, our_passes: over them, plain's and ours.
        as_json: print the record instead of the tables.
    """
    folder = RunFolder(run)
    if not (folder.rollouts / "rollouts.json").exists():
        folder.path.mkdir(parents=True, exist_ok=True)
        collect(folder, replace(DRIVING, episodes=220))
    told = measure(folder, frames, seeds, passes, our_passes, rounds)
    write_record(out, told)
    print(json.dumps(told, indent=2) if as_json else show(told))


if __name__ == "__main__":
    cli.run(main)
