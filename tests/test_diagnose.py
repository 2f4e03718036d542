"""Every verdict is given to a codec whose training earned it, and none to one that was trained well."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import safetensors.numpy

from agents.report import _diagnosis
from scripts.diagnose import split
from tests.scenes import SIDE, empty_store, scene_episode, scene_store
from worldvae import FrameVAE, FrameVAEConfig, ObjectiveConfig, RolloutStore, VAETrainingConfig, train_vae
from worldvae.batches import frame_batches
from worldvae.clips import clips
from worldvae.diagnose import NUMBERS, RULES, Diagnosis, as_json, diagnose, moving_objects, range_in_words, verdicts
from worldvae.measures.images import median_frame
from worldvae.measures.probes import probe
from worldvae.objective import PUBLISHED
from worldvae.rollouts import split_episodes
from worldvae.training import VAELearner, mean_colour

WELL = VAETrainingConfig(
    latent_size=3,
    objective=ObjectiveConfig(sigma=0.4, free_bits=0),
    passes=16,
    optimiser="adam",  # which fails in more ways
    held_out=0.25,
    device="cpu",
)
Store = RolloutStore


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> tuple[Store, dict[str, np.ndarray]]:
    """24 episodes of a sliding bar and a dot of 6x6 pixels, and their state."""
    return scene_store(tmp_path_factory.mktemp("scenes"), 24, dot=6)


def trained(store: Store, config: VAETrainingConfig) -> tuple[FrameVAE, Diagnosis]:
    """A codec, and its diagnosis on held-out episodes."""
    train, held_out = split_episodes(len(store), config.held_out, config.seed)
    steps = round(config.passes * sum(store.visible_counts(train)) / config.batch_size)
    learner = VAELearner(config, FrameVAEConfig(store.frame_spec, config.latent_size), steps)
    learner.vae.start_from_colour(mean_colour(store, train))
    batches = frame_batches(store, train, config.batch_size, config.seed)
    for _, batch in zip(range(steps), batches, strict=False):
        learner.step(batch)
    batches.close()
    vae = learner.vae.eval()
    return vae, diagnose(vae, clips(store, held_out, 256), clips(store, train, 256))


@pytest.fixture(scope="module")
def healthy(scenes) -> tuple[FrameVAE, Diagnosis]:
    return trained(scenes[0], WELL)


def names(diagnosis: Diagnosis) -> list[str]:
    return [verdict.name for verdict in verdicts(diagnosis)]


def test_well_trained_codecs_are_called_healthy(healthy, scenes):
    assert names(healthy[1]) == []
    assert names(trained(scenes[0], replace(WELL, latent_size=4, optimiser="muon"))[1]) == []


def test_a_collapsed_posterior_is_called_collapsed_and_nothing_else(scenes):
    beta = replace(WELL, objective=ObjectiveConfig(sigma=0.1, beta=1e4, free_bits=0), passes=4)
    _, told = trained(scenes[0], beta)
    assert names(told) == ["collapsed"]
    assert told.kl < 0.1
    assert told.active_units == 0


def test_a_codec_of_a_few_steps_is_called_under_trained(scenes):
    few_steps = replace(WELL, objective=ObjectiveConfig(sigma=0.1, free_bits=0), passes=1)
    assert names(trained(scenes[0], few_steps)[1]) == ["under-trained"]


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> tuple[FrameVAE, Diagnosis]:
    """The published objective on a dot of 2x2 pixels."""
    store, _ = scene_store(tmp_path_factory.mktemp("small"), 24, dot=2)
    return trained(store, replace(WELL, latent_size=6, objective=PUBLISHED, passes=20))


def test_a_codec_that_paints_over_a_small_dot_is_said_to_drop_objects(published):
    _, told = published
    assert "objects dropped" in names(told)
    assert told.psnr_gain > 8  # nobody would see it in the whole frame's error
    assert told.psnr_still - told.psnr_moving > 5


def test_latents_that_are_not_needed_are_called_dead(published):
    _, told = published
    assert "dead dimensions" in names(told)
    assert told.active_units == round((1 - told.dead) * 6) <= 3


def test_a_plain_autoencoders_codes_are_said_not_to_fit_the_prior(scenes):
    plain = replace(WELL, latent_size=6, objective=ObjectiveConfig(sigma=0.1, autoencoder=True), passes=12)
    _, told = trained(scenes[0], plain)
    assert {"prior mismatch", "saturated dimensions"} <= set(names(told))
    assert told.objects_lost < 0.2  # what is wrong is the prior alone


def test_black_frames_are_told_before_all_that_follows_from_them(tmp_path):
    store = empty_store(tmp_path)
    for seed in range(4):
        episode, _ = scene_episode(seed, dot=6)
        store.append(replace(episode, frames=np.zeros_like(episode.frames)))
    assert names(trained(store, replace(WELL, passes=1))[1]) == ["black frames"]


def test_frames_of_one_colour_are_told(tmp_path):
    store = empty_store(tmp_path)
    for seed in range(4):
        episode, _ = scene_episode(seed, dot=6)
        store.append(replace(episode, frames=np.full_like(episode.frames, 90)))
    assert names(trained(store, replace(WELL, passes=1))[1]) == ["constant frames"]


def test_a_codec_that_knows_its_few_training_frames_by_heart_has_a_gap(tmp_path):
    store, _ = scene_store(tmp_path, 3, dot=6)
    by_heart = replace(WELL, latent_size=6, objective=ObjectiveConfig(sigma=0.1, free_bits=0), passes=100)
    _, told = trained(store, by_heart)
    assert "train/held-out gap" in names(told)
    assert told.psnr_gap > 3


def test_without_training_frames_the_gap_is_unknown_and_no_verdict(scenes, healthy):
    vae, known = healthy
    store, _ = scenes
    _, held_out = split_episodes(len(store), WELL.held_out, WELL.seed)
    told = diagnose(vae, clips(store, held_out, 256))
    assert told.psnr_gap is None
    assert names(told) == []
    assert told.psnr == known.psnr


def test_known_objects_are_judged_by_their_own_pixels(scenes, healthy, published):
    store, state = scenes
    seen = clips(store, [0, 1], 64)
    columns = state["dot"].reshape(24, 32)[seen.episode, seen.t].round().astype(int)
    masks = np.zeros((64, SIDE, SIDE), bool)
    for mask, column in zip(masks, columns, strict=True):
        mask[20:26, column : column + 6] = True
    assert (seen.frames[masks] == 255).all()
    kept, lost = diagnose(healthy[0], seen, masks=masks), diagnose(published[0], seen, masks=masks)
    assert kept.psnr_objects > 15 > lost.psnr_objects
    assert kept.objects_lost < 0.2 < 0.8 < lost.objects_lost


def test_moving_objects_are_what_moved_and_is_no_background(scenes):
    seen = clips(scenes[0], range(24), 768)
    found = moving_objects(seen)
    dot = (seen.frames == 255).all(-1)
    for run in seen.runs:
        now, before = dot[run][1:], dot[run][:-1]
        assert not found[run][0].any()
        assert found[run][1:][now & ~before].all()
        assert not found[run][1:][now & before].any()
    assert not found[(seen.frames == median_frame(seen.frames)).all(-1)].any()


def test_numbers_that_add_up_do(healthy):
    _, told = healthy
    assert told.elbo <= told.iwae
    parts = told.mutual_information + told.total_correlation + told.dimension_wise
    assert parts == pytest.approx(told.kl, rel=0.05)
    assert told.kl == pytest.approx(told.kl_of.sum(), rel=0.01)
    assert told.mutual_information <= told.mutual_information_limit == pytest.approx(math.log(told.frames))
    assert told.bytes_in_theory < told.bytes_per_frame == 4 * 3
    assert told.change == pytest.approx((told.change_of * told.sd_of**2).sum() / (told.sd_of**2).sum(), rel=1e-3)


def test_probes_read_bar_and_dot_from_a_good_codec(scenes, healthy):
    store, state = scenes
    seen = clips(store, range(24), 768)
    rows = seen.episode * 32 + seen.t
    codes = healthy[0].encode(seen.frames).mean.numpy()
    told = probe(codes, {name: values[rows] for name, values in state.items()}, seen.episode)
    assert told["bar"].mlp > 0.8
    assert told["dot"].mlp > 0.8


def test_a_verdict_tells_its_number_threshold_and_remedy(published):
    (dropped, *_) = verdicts(published[1])
    assert (dropped.number, dropped.threshold) == ("objects_lost", 0.2)
    assert dropped.value == published[1].objects_lost
    assert f"{dropped.value:.0%}" in dropped.says
    assert "at most 20%" in dropped.says
    assert "motion" in dropped.remedy


def test_every_rule_is_about_a_number_with_a_healthy_range():
    for rule in RULES:
        assert range_in_words(rule.number), rule.number
    assert set(NUMBERS) < {each.name for each in fields(Diagnosis)}


def test_the_record_is_json_with_ranges_beside_numbers(published):
    told = json.loads(json.dumps(as_json(published[1], verdicts(published[1])), allow_nan=False))
    assert told["numbers"]["objects_lost"]["healthy"] == [None, 0.2]
    assert told["numbers"]["psnr_objects"]["value"] is None
    assert [v["name"] for v in told["verdicts"]] == names(published[1])
    assert len(told["latents"]["kl"]) == 6


def test_clips_are_runs_of_neighbours_spread_over_episodes(scenes):
    store, _ = scenes
    seen = clips(store, range(24), 10 * 24)
    assert len(seen.frames) == 240
    for run in seen.runs:
        (episode,) = np.unique(seen.episode[run])
        assert (np.diff(seen.t[run]) == 1).all()
        np.testing.assert_array_equal(seen.frames[run], store[int(episode)].frames[seen.t[run]])
    assert len(seen.runs) == 15  # of at least 16 frames each


def test_clips_of_nothing_are_refused(scenes):
    with pytest.raises(ValueError, match="got 0 and 64"):
        clips(scenes[0], [], 64)


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "scripts.diagnose", *map(str, arguments)]
    return subprocess.run(line, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=120)


def test_the_command_prints_verdicts_and_writes_record_and_page_beside_the_codec(scenes, tmp_path):
    store, state = scenes
    train_vae(store, replace(WELL, passes=1), tmp_path / "vae")
    safetensors.numpy.save_file(state, tmp_path / "state.safetensors")
    done = command(tmp_path / "vae", store.path, "--state", tmp_path / "state.safetensors", "--rate-distortion", 0.5, 2,
                   "--passes", 0.1)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "UNDER-TRAINED" in done.stdout
    told = json.loads((tmp_path / "vae" / "diagnosis.json").read_text())
    assert [verdict["name"] for verdict in told["verdicts"]] == ["under-trained"]
    assert told["numbers"]["frames"]["value"] == 6 * 32  # a quarter of the episodes was held out
    assert told["numbers"]["psnr_gap"]["value"] is not None
    assert set(told["probes"]) == {"bar", "dot"}
    assert [point["beta"] for point in told["rate_distortion"]] == [0.5, 2]
    assert cv2.imread(str(tmp_path / "vae" / "diagnosis.png")).shape[1] == 1200
    assert "under-trained" in _diagnosis(tmp_path / "vae")


def test_a_codec_of_unknown_training_is_judged_on_all_episodes(scenes, healthy, tmp_path):
    store, _ = scenes
    healthy[0].save(tmp_path)
    assert split(tmp_path, store) == ([], list(range(24)))
    healthy[0].save(tmp_path, {"held_out": 0.25, "seed": 0, "frames": 18 * 32})
    assert split(tmp_path, store) == split_episodes(24, 0.25, 0)
    healthy[0].save(tmp_path, {"held_out": 0.25, "seed": 0, "frames": 5})  # trained on another store
    assert split(tmp_path, store) == ([], list(range(24)))
