"""Encoded rollouts: equal to the codec's codes, tied to it, resumable, small."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.dots import record_dots
from worldvae import CheckpointError, FrameVAE, FrameVAEConfig, LatentStore, RolloutStore, encode
from worldvae.latents import bytes_per_frame, quantise, restore, round_trip_mse


def saved_codec(folder, seed=0) -> FrameVAE:
    torch.manual_seed(seed)
    FrameVAE(FrameVAEConfig(latent_size=6)).save(folder)
    return FrameVAE.load(folder)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return record_dots(tmp_path_factory.mktemp("rollouts"), episodes=5)


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    return saved_codec(tmp_path_factory.mktemp("vae"))


def test_stored_codes_are_the_codecs_own_with_their_actions_and_ends(store, vae, tmp_path):
    latents = encode(store, vae, tmp_path)
    assert len(latents) == len(store)
    for coded, episode in zip(latents, store, strict=True):
        posterior = vae.encode(episode.frames)
        np.testing.assert_array_equal(coded.mean, posterior.mean.numpy())
        np.testing.assert_array_equal(coded.logvar, posterior.logvar.numpy())
        np.testing.assert_array_equal(coded.actions, episode.actions)
        np.testing.assert_array_equal(coded.rewards, episode.rewards)
        assert (coded.terminated, coded.truncated) == (episode.terminated, episode.truncated)


def test_uint8_codes_take_a_quarter_and_decode_to_nearly_the_same_frames(store, vae, tmp_path):
    exact, small = encode(store, vae, tmp_path / "f"), encode(store, vae, tmp_path / "u", "uint8")
    assert bytes_per_frame(exact) == 6 * 4
    frames = sum(len(episode) + 1 for episode in store)
    scales = len(store) * 2 * 6 * 4  # offset and step per latent and episode
    assert bytes_per_frame(small) == pytest.approx(6 + scales / frames)
    assert round_trip_mse(store, small, vae) == pytest.approx(round_trip_mse(store, exact, vae), rel=0.01)
    errors = [vae.decode(vae.encode(e.frames[::3]).mean).cpu().numpy() / 255 - e.frames[::3] / 255 for e in store]
    plain = np.square(np.concatenate(errors)).mean()
    assert round_trip_mse(store, exact, vae, every=3) == pytest.approx(plain, rel=1e-3)


@given(values=arrays(np.float32, (7, 3), elements=st.floats(-100, 100, width=32)))
def test_quantising_errs_by_at_most_half_a_level(values):
    restored = restore(quantise("mean", values, "uint8"), "mean")
    level = (values.max(0) - values.min(0)) / 255
    assert (np.abs(restored - values) <= 0.5 * level + 1e-4).all()


def test_encoding_goes_on_where_it_was_cut_off(store, vae, tmp_path):
    encode(store, vae, tmp_path)
    files = sorted(tmp_path.glob("episode-*"))
    files[1].unlink()
    kept = files[0].stat().st_mtime_ns
    encode(store, vae, tmp_path)
    assert sorted(tmp_path.glob("episode-*")) == files
    assert files[0].stat().st_mtime_ns == kept


def test_codes_follow_what_is_recorded_anew_or_deleted(vae, tmp_path):
    """The same numbers, other episodes: their codes are made anew, those of none are gone."""
    store = record_dots(tmp_path / "rollouts", episodes=3)
    encode(store, vae, tmp_path / "latents")
    for index in (0, 2):
        store.episodes.file(index).unlink()
    again = RolloutStore(tmp_path / "rollouts")
    again.append(again[0])  # as number 2
    latents = encode(again, vae, tmp_path / "latents")
    assert latents.indices == again.indices == [1, 2]
    np.testing.assert_array_equal(latents[0].mean, latents[1].mean)


def test_another_codecs_latents_are_refused(store, vae, tmp_path):
    latents = encode(store, vae, tmp_path / "latents")
    other = saved_codec(tmp_path / "other", seed=1)
    with pytest.raises(CheckpointError, match="encode the rollouts again"):
        latents.check_codec(other)
    with pytest.raises(CheckpointError, match=vae.sha256[:12]):
        encode(store, other, tmp_path / "latents")


def test_latents_of_another_precision_are_refused(store, vae, tmp_path):
    encode(store, vae, tmp_path)
    with pytest.raises(CheckpointError, match="float32, not uint8"):
        encode(store, vae, tmp_path, "uint8")


def test_an_unsaved_codec_cannot_sign_its_latents(store, tmp_path):
    with pytest.raises(CheckpointError, match="save this one"):
        encode(store, FrameVAE(), tmp_path)


def test_a_folder_without_latents_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        LatentStore(tmp_path)
