"""A codec trained on real episodes of the dot environment: good, exact on resume, seeded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.dots import record_dots
from worldvae import FrameVAE, FrameVAEConfig, ObjectiveConfig, RolloutStore, VAETrainingConfig, train_vae
from worldvae.checkpoint import read_json
from worldvae.fit import read_log
from worldvae.frames import to_unit
from worldvae.measures.images import psnr
from worldvae.measures.latents import active_units, statistics
from worldvae.objective import PUBLISHED
from worldvae.rollouts import split_episodes
from worldvae.training import HeldOut, VAELearner

CONFIG = VAETrainingConfig(
    latent_size=4, objective=ObjectiveConfig(sigma=0.1, free_bits=0.0), passes=8, batch_size=32, device="cpu"
)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> RolloutStore:
    return record_dots(tmp_path_factory.mktemp("rollouts"), episodes=24, env_kwargs={"target": 12.0})


@pytest.fixture(scope="module")
def trained(store, tmp_path_factory) -> tuple[FrameVAE, Path]:
    folder = tmp_path_factory.mktemp("vae")
    return train_vae(store, CONFIG, folder), folder


def train_interrupted(store, config, folder, after, monkeypatch) -> FrameVAE:
    """Trains, is interrupted after so many steps, and trains on."""
    step, calls = VAELearner.step, iter(range(after))

    def interrupted(self, frames):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return step(self, frames)

    monkeypatch.setattr(VAELearner, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_vae(store, config, folder)
    monkeypatch.undo()
    return train_vae(store, config, folder)


def held_out_frames(store: RolloutStore) -> np.ndarray:
    _, held_out = split_episodes(len(store), CONFIG.held_out, CONFIG.seed)
    return np.concatenate([store.visible_frames(e) for e in held_out])


def test_reconstructions_of_held_out_episodes_beat_the_mean_frame(store, trained):
    vae, _ = trained
    frames = held_out_frames(store)
    decoded = vae.decode(vae.encode(frames).mean.numpy())

    def quality(guess):
        return psnr(float(np.square((guess.astype(float) - frames) / 255).mean()))

    assert quality(decoded) > quality(frames.mean(0, keepdims=True)) + 1


def test_bright_things_on_black_survive_the_first_steps(store, trained):
    """Without the decoder's start at the mean colour every reconstruction here stays black."""
    vae, _ = trained
    frames = held_out_frames(store)
    decoded = vae.decode(vae.encode(frames).mean.numpy())
    bright = frames > 200
    assert decoded[bright].mean() > 150
    assert decoded[frames < 20].mean() < 30


def test_an_untrained_decoder_started_from_a_colour_paints_it():
    colour = torch.tensor([0.1, 0.5, 0.8])
    vae = FrameVAE()
    vae.start_from_colour(colour)
    np.testing.assert_allclose(vae.sample(4).mean((0, 1, 2)) / 255, colour, atol=0.03)


def test_the_config_tells_what_the_codec_reached(trained):
    vae, folder = trained
    told = read_json(folder / "config.json")["training"]
    entries = read_log(folder / "metrics.jsonl")
    assert told["held_out_loss"] == min(entry["held_out_loss"] for entry in entries)
    assert told["held_out_kl"] > 1
    assert vae.noise_sd.item() == pytest.approx(10 ** (-told["psnr"] / 20), rel=1e-4)  # PSNR = -20 log10(rmse)


def test_frames_unlike_the_training_frames_are_more_novel(store, trained):
    vae, _ = trained
    frames = held_out_frames(store)
    assert vae.novelty(255 - frames).min() > vae.novelty(frames).max()


def test_an_interrupted_training_ends_with_the_same_bytes(store, trained, tmp_path, monkeypatch):
    _, unbroken = trained
    train_interrupted(store, CONFIG, tmp_path, 20, monkeypatch)
    assert (tmp_path / "model.safetensors").read_bytes() == (unbroken / "model.safetensors").read_bytes()


OBJECTIVES = {
    "calibrated": ObjectiveConfig("discretised_gaussian", "optimal", free_bits=0.1, free_bits_scope="dimension"),
    "learned sigma, warm-up, background": ObjectiveConfig(sigma="learned", kl_warm_up=40, weighting="background"),
    "logistic, capacity, worst": ObjectiveConfig("discretised_logistic", 0.1, capacity=12, weighting="worst"),
    "beta-TCVAE, motion": ObjectiveConfig(sigma="optimal", total_correlation=4, weighting="motion"),
    "autoencoder": ObjectiveConfig(sigma=0.1, autoencoder=True),
    "slow": ObjectiveConfig(sigma=0.1, free_bits=0.0, correlation=0.9),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_learns_and_resumes_to_the_same_bytes(store, tmp_path, monkeypatch, name):
    config = replace(CONFIG, objective=OBJECTIVES[name], passes=4)
    codec = train_vae(store, config, tmp_path / "unbroken")
    first, *_, last = read_log(tmp_path / "unbroken" / "metrics.jsonl")
    assert last["held_out_loss"] < first["held_out_loss"] - 20
    assert train_interrupted(store, config, tmp_path / "broken", 34, monkeypatch).sha256 == codec.sha256


def test_under_a_slow_prior_codes_change_less_from_frame_to_frame(store, tmp_path):
    change = {}
    for correlation in (0.0, 0.95):
        objective = ObjectiveConfig(sigma=0.1, beta=4, free_bits=0.0, correlation=correlation)
        vae = train_vae(store, replace(CONFIG, objective=objective, passes=5), tmp_path / str(correlation))
        codes = [vae.encode(store.visible_frames(e)).mean for e in range(len(store))]
        steps, all_codes = torch.cat([z.diff(dim=0) for z in codes]), torch.cat(codes)
        change[correlation] = (steps.square().sum(1).mean() / all_codes.var(0).sum()).item()
    assert change[0.95] < 0.8 * change[0.0], change


def test_the_calibrated_objective_tells_a_beta_of_one_and_the_published_one_of_hundreds(store, tmp_path):
    told = {}
    for name, objective in {"calibrated": OBJECTIVES["calibrated"], "published": PUBLISHED}.items():
        train_vae(store, replace(CONFIG, objective=objective, passes=2), tmp_path / name)
        told[name] = read_json(tmp_path / name / "config.json")["training"]
    assert told["calibrated"]["equivalent_beta"] == 1
    mse = 10 ** (-told["published"]["psnr"] / 10)
    assert told["published"]["equivalent_beta"] == pytest.approx(0.5 / mse, rel=1e-3)


def test_each_held_out_episode_is_looked_at_however_short_it_is(store, tmp_path, monkeypatch):
    monkeypatch.setattr(HeldOut, "FRAMES", 1)  # a stride longer than any episode
    learner = VAELearner(CONFIG, FrameVAEConfig(latent_size=4), steps=1)
    assert len(HeldOut(learner, store, [3, 7], tmp_path, {}).frames) == 2


def test_what_is_disturbed_is_seen_and_what_is_painted_is_judged_by_the_frames_as_they_are(store):
    config = replace(CONFIG, colour_jitter=0.15, covers=0.5, learning_rate=0.0)
    learner = VAELearner(config, FrameVAEConfig(latent_size=4), steps=10)
    frames, told = torch.from_numpy(store.visible_frames(0)), []
    learner.vae.register_forward_hook(lambda module, seen, made: told.append((seen[0], made[0])))
    parts = learner.step(frames)
    ((seen, made),) = told
    assert ((seen - to_unit(frames)).abs().amax((1, 2, 3)) > 0.05).all()
    assert parts["mse"].item() == pytest.approx((made - to_unit(frames)).square().mean().item(), rel=1e-5)


def test_with_disturbed_frames_it_resumes_to_the_same_bytes(store, tmp_path, monkeypatch):
    config = replace(CONFIG, colour_jitter=0.15, covers=0.5, passes=1)
    codec = train_vae(store, config, tmp_path / "unbroken")
    assert train_interrupted(store, config, tmp_path / "broken", 7, monkeypatch).sha256 == codec.sha256


def test_another_seed_trains_another_codec(store, tmp_path):
    config = VAETrainingConfig(latent_size=4, passes=0.2, batch_size=32, device="cpu")
    codecs = [train_vae(store, replace(config, seed=seed), tmp_path / str(i)) for i, seed in enumerate((0, 0, 1))]
    assert codecs[0].sha256 == codecs[1].sha256 != codecs[2].sha256


def test_one_episode_is_too_few_and_it_says_so(tmp_path):
    with pytest.raises(ValueError, match="at least 2"):
        train_vae(record_dots(tmp_path / "r", episodes=1), CONFIG, tmp_path / "v")


def test_latent_statistics_are_those_of_torch_and_numpy():
    random = np.random.default_rng(0)
    means, logvars = random.standard_normal((2, 50, 3)).astype(np.float32)
    told = statistics(means, logvars)
    posterior = torch.distributions.Normal(torch.from_numpy(means), torch.from_numpy(logvars / 2).exp())
    unit = torch.distributions.Normal(torch.zeros(50, 3), torch.ones(50, 3))
    np.testing.assert_allclose(told.kl, torch.distributions.kl_divergence(posterior, unit).mean(0), rtol=1e-4)
    np.testing.assert_allclose(told.mean, means.mean(0), atol=1e-6)
    np.testing.assert_allclose(told.sd, means.std(0), rtol=1e-4)


def test_active_units_counts_latents_that_vary():
    means = torch.zeros(100, 3)
    means[:, 0] = torch.linspace(-1, 1, 100)  # variance 0.34
    means[:, 1] = torch.linspace(-0.1, 0.1, 100)  # variance 0.0034
    assert active_units(means) == 1


def test_a_training_may_set_out_from_another_codec(store, trained, tmp_path):
    """Half a pass more on the same frames is no worse; from nothing it is far behind."""
    vae, folder = trained
    short = replace(CONFIG, passes=0.5, learning_rate=1e-3, seed=1, held_out=CONFIG.held_out)
    refreshed, new = (train_vae(store, short, tmp_path / str(i), start=s) for i, s in enumerate((vae, None)))
    assert refreshed.sha256 != vae.sha256
    before, after, nothing = (
        read_json(f / "config.json")["training"]["psnr"] for f in (folder, tmp_path / "0", tmp_path / "1")
    )
    assert after > before - 1 > nothing + 1
    assert torch.equal(refreshed.encoder.mean, vae.encoder.mean)
    assert not torch.equal(new.encoder.mean, torch.zeros_like(new.encoder.mean))
    with pytest.raises(ValueError, match="is no start for one of"):
        train_vae(store, replace(short, latent_size=5), tmp_path / "other", start=vae)
