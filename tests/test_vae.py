"""The codec: published architecture, Gaussian posterior, frames in any shape, honest errors."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldvae import CheckpointError, DiagonalGaussian, FrameSpec, FrameVAE, FrameVAEConfig
from worldvae.checkpoint import read_json, save_model
from worldvae.vae import MOST_LOGVAR


@pytest.fixture(scope="module")
def vae() -> FrameVAE:
    torch.manual_seed(0)
    return FrameVAE().eval()


def frames(*lead: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*lead, 64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize(("latents", "parameters"), [(32, 4_348_547), (64, 4_446_915)])
def test_the_paper_architecture_has_the_published_number_of_parameters(latents, parameters):
    vae = FrameVAE(FrameVAEConfig(latent_size=latents, architecture="paper"))
    assert sum(p.numel() for p in vae.parameters()) == parameters


def test_kl_is_that_of_torch_distributions():
    mean, logvar = torch.randn(5, 7), torch.randn(5, 7)
    unit = torch.distributions.Normal(torch.zeros(5, 7), torch.ones(5, 7))
    expected = torch.distributions.kl_divergence(torch.distributions.Normal(mean, (logvar / 2).exp()), unit)
    torch.testing.assert_close(DiagonalGaussian(mean, logvar).kl(), expected)


def test_a_reparametrised_sample_has_the_closed_form_gradient():
    mean = torch.randn(4, 3, requires_grad=True)
    logvar = torch.randn(4, 3, requires_grad=True)
    noise = torch.randn(4, 3)
    DiagonalGaussian(mean, logvar).rsample(noise).sum().backward()
    torch.testing.assert_close(mean.grad, torch.ones(4, 3))  # dz/dmean = 1
    torch.testing.assert_close(logvar.grad, noise * (logvar / 2).exp().detach() / 2)  # dz/dlogvar = noise sd / 2


def test_samples_have_the_posteriors_moments_and_come_from_the_seed():
    posterior = DiagonalGaussian(
        torch.tensor([[1.0, -2.0]]).expand(40_000, 2), torch.tensor([0.0, 2.0]).expand(40_000, 2)
    )
    draw = posterior.sample(torch.Generator().manual_seed(3))
    # standard errors: sd / 200 for the mean, about sd / 283 for the sd
    torch.testing.assert_close(draw.mean(0), torch.tensor([1.0, -2.0]), atol=0.06, rtol=0)
    torch.testing.assert_close(draw.std(0), torch.tensor([1.0, np.e]), atol=0.05, rtol=0)
    assert torch.equal(draw, posterior.sample(torch.Generator().manual_seed(3)))


@settings(max_examples=15, deadline=None)
@given(lead=st.lists(st.integers(0, 3), max_size=3))
def test_any_leading_shape_goes_in_and_comes_back(vae, lead):
    batch = frames(*lead)
    posterior = vae.encode(batch)
    assert posterior.mean.shape == posterior.logvar.shape == (*lead, 32)
    decoded = vae.decode(posterior.mean.numpy())
    assert decoded.dtype == np.uint8
    assert decoded.shape == batch.shape
    assert vae.novelty(batch).shape == tuple(lead)


def test_a_frame_has_the_same_code_alone_in_a_batch_and_as_a_tensor(vae):
    batch = frames(300)  # more than one chunk
    together = vae.encode(batch).mean
    torch.testing.assert_close(vae.encode(batch[270]).mean, together[270], atol=1e-5, rtol=1e-4)
    assert torch.equal(vae.encode(torch.from_numpy(batch)).mean, together)


def test_decoding_gives_back_the_kind_of_array_it_was_given(vae):
    z = np.zeros((2, 32), np.float32)
    from_tensor = vae.decode(torch.from_numpy(z))
    assert isinstance(from_tensor, torch.Tensor)
    assert np.array_equal(from_tensor.numpy(), vae.decode(z))


def test_a_posterior_as_wide_as_can_be_still_has_a_kl_and_is_led_back():
    vae = FrameVAE()
    bias = vae.encoder.net.posterior.bias
    with torch.no_grad():
        bias[vae.latent_size :] = 200  # whose exponential no float32 holds
    posterior = vae.posterior(torch.rand(2, 3, 64, 64))
    assert posterior.logvar.max() == MOST_LOGVAR
    assert posterior.kl().isfinite().all()
    posterior.kl().sum().backward()
    assert (bias.grad[vae.latent_size :] > 1).all(), "descent lowers it"


def test_prior_samples_come_from_the_seed(vae):
    assert vae.sample(3, seed=1).shape == (3, 64, 64, 3)
    assert np.array_equal(vae.sample(3, seed=1), vae.sample(3, seed=1))
    assert not np.array_equal(vae.sample(3, seed=1), vae.sample(3, seed=2))


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        (np.zeros((2, 64, 64, 3), np.float32), TypeError, "uint8"),
        (np.zeros((96, 96, 3), np.uint8), ValueError, "to_frames"),
        (np.zeros((64, 64), np.uint8), ValueError, "to_frames"),
    ],
)
def test_frames_of_a_wrong_kind_are_refused_in_words(vae, bad, error, words):
    with pytest.raises(error, match=words):
        vae.encode(bad)


def test_latents_of_a_wrong_size_are_refused(vae):
    with pytest.raises(ValueError, match="32"):
        vae.decode(np.zeros((4, 31)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"latent_size": 0}, "latent_size must be"),
        ({"architecture": "vit"}, "there are: paper, compact"),
        ({"architecture": "paper", "frame": FrameSpec(height=32, width=32)}, "takes 64x64 frames"),
        ({"frame": FrameSpec(height=84, width=64)}, "multiples of 16"),
    ],
)
def test_impossible_configs_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        FrameVAEConfig(**settings)


@pytest.mark.parametrize(("height", "width", "channels"), [(64, 64, 3), (32, 48, 1), (16, 16, 3), (96, 128, 3)])
def test_the_compact_architecture_takes_other_sizes(height, width, channels):
    codec = FrameVAE(FrameVAEConfig(FrameSpec(height, width, channels), latent_size=5)).eval()
    images = np.zeros((2, height, width, channels), np.uint8)
    assert codec.decode(codec.encode(images).mean.numpy()).shape == images.shape


def test_a_compact_codec_is_a_small_file(tmp_path):
    FrameVAE().save(tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2_000_000


def test_a_saved_codec_comes_back_with_its_preprocessing(tmp_path, vae):
    config = FrameVAEConfig(FrameSpec(channels=1, crop=(0, 12, 0, 0), key="screen"), latent_size=8)
    codec = FrameVAE(config).eval()
    codec.noise_sd.fill_(0.25)
    codec.save(tmp_path / "codec", {"passes": 3})
    loaded = FrameVAE.load(tmp_path / "codec")
    assert loaded.config == config
    assert loaded.noise_sd == 0.25
    grey = frames(2)[..., :1]
    assert torch.equal(loaded.encode(grey).mean, codec.encode(grey).mean)
    assert read_json(tmp_path / "codec" / "config.json")["training"] == {"passes": 3}


class TestLoadingNamesWhatIsWrong:
    @pytest.fixture
    def folder(self, tmp_path, vae):
        vae.save(tmp_path)
        return tmp_path

    def check(self, folder, words):
        with pytest.raises(CheckpointError, match=words) as caught:
            FrameVAE.load(folder)
        assert str(folder) in str(caught.value)

    def test_nothing_there(self, tmp_path):
        self.check(tmp_path / "nowhere", "no frame-vae in")

    def test_a_file_of_another_kind(self, folder):
        self.edit(folder, kind="latent-agent", config={})
        self.check(folder, "not of kind frame-vae")

    def test_a_future_format(self, folder):
        self.edit(folder, config={"format_version": 99})
        self.check(folder, "upgrade")

    def test_a_truncated_file(self, folder):
        whole = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
        self.check(folder, "damaged")

    def test_a_flipped_bit(self, folder):
        whole = bytearray((folder / "model.safetensors").read_bytes())
        whole[-5] ^= 1
        (folder / "model.safetensors").write_bytes(whole)
        self.check(folder, "damaged")

    def test_a_config_that_lacks_its_settings(self, folder):
        self.edit(folder, {"config": {"frame": {}}})
        self.check(folder, "can build")

    def edit(self, folder, config, kind="frame-vae"):
        save_model(folder, kind, FrameVAE(), config)


def test_a_saved_codec_is_plain_safetensors(tmp_path, vae):
    vae.save(tmp_path)
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert set(tensors) == set(vae.state_dict())
