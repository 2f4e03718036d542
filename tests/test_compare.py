"""The comparison runs end to end on little, resumes, outlives a run that fails, and judges by intervals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from scripts import claims, compare, contenders
from scripts.adversarial import AdversarialConfig, AdversarialLearner
from scripts.claims import CLAIMS, Claim, judge, judged, summary
from scripts.contenders import CONTENDERS, Contender
from scripts.frame_sets import (
    FrameSet,
    driving_set,
    road_modes,
    road_states,
    shifted,
    sprite_modes,
    sprite_set,
    sprite_states,
)
from scripts.judge import Judge
from scripts.state_regressor import fitted_regressor, r_squared
from tests.dots import record_dots
from worldvae.checkpoint import CheckpointError
from worldvae.frames import FrameSpec, to_unit
from worldvae.rollouts import RolloutStore
from worldvae.vae import FrameVAE, FrameVAEConfig


@pytest.fixture(scope="module")
def dots(tmp_path_factory) -> RolloutStore:
    """Rollouts in the place of CarRacing's."""
    return record_dots(tmp_path_factory.mktemp("dots") / "rollouts", episodes=8)


@pytest.fixture(scope="module")
def few_sprites() -> FrameSet:
    return sprite_set(train=300, held_out=300)


def compared(dots: RolloutStore, folder: Path, **settings: object) -> dict:
    """What ``main`` writes after two seeds of little training."""
    little = {"models": ("vae", "gan"), "seeds": 2, "steps": 2, "regressor_steps": 2, **settings}
    compare.main(data=("carracing",), rollouts=dots.path, out=folder, json=folder / "compare.json", **little)
    return json.loads((folder / "compare.json").read_text())


# --- the command


def test_one_command_writes_the_record_the_page_and_the_table(dots, tmp_path, capsys):
    told = compared(dots, tmp_path)
    of_set = told["carracing"]
    assert {model: sorted(by_seed) for model, by_seed in of_set["runs"].items()} == {
        m: ["0", "1"] for m in ("vae", "gan")
    }
    assert all(part in told for part in ("command", "machine", "date", "commit"))
    run = of_set["runs"]["vae"]["0"]
    assert run["mig"] is None  # no known factors
    assert run["bytes"]["code"] == 32
    assert 0 < run["bits_per_dim"] < 20
    assert all(0 <= run["prior"][name] <= 1 for name in ("precision", "recall", "coverage", "dropped"))
    page = cv2.imread(str(tmp_path / "compare_carracing.png"))
    assert page.shape[0] == 3 * 66 + 2  # real frames and two models
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("bits_per_dim", "mean over seeds", "VAEs are blurrier than GANs", "verdict"))
    assert {claim["verdict"] for claim in of_set["claims"]} <= {"confirmed", "not confirmed", "unclear"}
    assert set(of_set["verdicts"]) == {claim["idea"] for claim in of_set["claims"]}


def test_what_is_done_is_not_done_again(dots, tmp_path, capsys):
    first = compared(dots, tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.name in ("run.json", "model.safetensors", "real.json")]
    written = {path: path.stat().st_mtime_ns for path in files}
    (tmp_path / "carracing" / "gan-1" / "run.json").unlink()  # as if killed before it was written
    capsys.readouterr()
    again = compared(dots, tmp_path)
    assert capsys.readouterr().err.splitlines() == [f"{tmp_path / 'carracing' / 'gan-1'} done"]
    changed = {path.parent.name for path, when in written.items() if path.stat().st_mtime_ns != when}
    assert changed == {"gan-1"}
    for told in (first, again):
        for model in ("vae", "gan"):
            for run in told["carracing"]["runs"][model].values():
                del run["seconds"]
    assert first["carracing"] == again["carracing"]
    with pytest.raises(CheckpointError, match="is of 2 steps, not 3: choose another --out"):
        compared(dots, tmp_path, steps=3)


def test_a_run_that_fails_takes_no_other_with_it(dots, tmp_path, monkeypatch):
    def fails(frames: FrameSet, steps: int, seed: int) -> FrameVAE:
        raise FloatingPointError("the loss is no longer finite")

    with monkeypatch.context() as broken:
        broken.setitem(CONTENDERS, "vae", Contender(fails))
        with pytest.raises(RuntimeError, match=r"vae-0 failed: .* no longer finite[\s\S]*tries them again"):
            compared(dots, tmp_path, seeds=1)
    told = json.loads((tmp_path / "compare.json").read_text())["carracing"]
    assert (list(told["runs"]["vae"]), list(told["runs"]["gan"])) == ([], ["0"])
    assert list(compared(dots, tmp_path, seeds=1)["carracing"]["runs"]["vae"]) == ["0"]


# --- verdicts


def runs_of(**by_model: list[float | None]) -> dict:
    return {model: {seed: {"prior": {"coverage": x}} for seed, x in enumerate(xs)} for model, xs in by_model.items()}


CLAIM = Claim("GANs may miss modes", "prior.coverage", "vae", "gan")


@pytest.mark.parametrize(
    ("vae", "gan", "verdict"),
    [
        ([0.5, 0.6, 0.7, 0.8], [0.4, 0.5, 0.6, 0.7], "confirmed"),  # paired: always 0.1 more, though they scatter
        ([0.5, 0.6, 0.7, 0.8], [0.6, 0.7, 0.8, 0.9], "not confirmed"),
        ([0.5, 0.6, 0.7, 0.8], [0.5, 0.6, 0.7, 0.8], "not confirmed"),  # no difference at all
        ([0.5, 0.6, 0.7, 0.8], [0.4, 0.7, 0.6, 0.9], "unclear"),
    ],
)
def test_verdicts_follow_the_interval_of_paired_differences(vae, gan, verdict):
    told = judge(CLAIM, runs_of(vae=vae, gan=gan))
    assert told is not None
    assert told.verdict == verdict
    assert told.difference == pytest.approx(np.mean(vae) - np.mean(gan))
    assert told.seeds == 4


def test_the_interval_is_a_bootstraps():
    """Of two differences of 0 and two of 1, one resample in 16 has the mean 0, and as many 1: more than 2.5%."""
    told = judge(CLAIM, runs_of(vae=[0.0, 0.0, 1.0, 1.0], gan=[0.0] * 4))
    assert told is not None
    assert told.ci95 == (0.0, 1.0)
    assert told.verdict == "unclear"


def test_only_seeds_that_both_models_have_count():
    told = judge(CLAIM, runs_of(vae=[0.9, 0.8, 0.7, None], gan=[0.1, 0.1]))
    assert told is not None
    assert told.seeds == 2
    assert told.difference == pytest.approx(0.75)
    assert judge(CLAIM, runs_of(vae=[0.9], gan=[0.1])) is None
    assert judge(CLAIM, runs_of(vae=[0.9, 0.8])) is None


def test_a_model_may_be_held_against_a_number():
    told = judge(replace(CLAIM, less=0.5), runs_of(vae=[0.6, 0.7]))
    assert told is not None
    assert told.difference == pytest.approx(0.15)


def test_an_idea_has_a_verdict_only_where_its_measures_agree():
    runs = runs_of(vae=[0.9, 0.8], gan=[0.1, 0.2])
    for by_seed in runs.values():
        for seed, told in by_seed.items():
            told["prior"] |= {"recall": 1.0 - told["prior"]["coverage"], "precision": seed / 10}
    told = judged(runs)
    assert {claim["measure"] for claim in told} == {"prior.coverage", "prior.recall", "prior.precision"}
    assert summary(told)["GANs may miss modes"] == "unclear"  # by coverage they do, by recall they do not
    assert summary([claim for claim in told if claim["measure"] == "prior.coverage"]) == {
        "GANs may miss modes": "confirmed"
    }


def test_claims_name_models_and_measures_that_there_are(few_sprites, tmp_path):
    models = {side for claim in CLAIMS for side in (claim.more, claim.less) if isinstance(side, str)}
    assert models <= {*CONTENDERS, "real"}
    assert set(compare.MODELS) == set(CONTENDERS)
    frames = replace(few_sprites, factors=None)
    judge_of_all = Judge(frames, fitted_regressor(frames, tmp_path, steps=1))
    run = judge_of_all(FrameVAE(FrameVAEConfig(frames.spec, frames.latent_size)), CONTENDERS["vae"])
    run |= {"dci": {"disentanglement": 0.1}, "mig": 0.2, "factor_vae": 0.3}
    runs = {model: {0: run} for model in CONTENDERS} | {"real": {0: judge_of_all.reference()}}
    for claim in CLAIMS:
        for side in (claim.more, claim.less):
            assert not isinstance(side, str) or claims.value(runs, side, claim.measure, 0) is not None, claim


# --- what is compared


@pytest.mark.parametrize("model", list(CONTENDERS))
def test_every_contender_has_the_same_networks_and_the_seeds_weights(model, few_sprites):
    vae = CONTENDERS[model].train(few_sprites, 4, 0)
    again = CONTENDERS[model].train(few_sprites, 4, 0)
    other = CONTENDERS[model].train(few_sprites, 4, 1)
    shapes = {name: value.shape for name, value in FrameVAE(vae.config).state_dict().items()}
    assert {name: value.shape for name, value in vae.state_dict().items()} == shapes
    z = torch.ones(1, 10)
    assert torch.equal(vae.decoder(z), again.decoder(z))
    assert not torch.equal(vae.decoder(z), other.decoder(z))


def test_an_autoencoder_has_no_bits_and_a_gans_are_of_an_encoder_fitted_afterwards(few_sprites, tmp_path):
    frames = replace(few_sprites, factors=None)
    judge_of_all = Judge(frames, fitted_regressor(frames, tmp_path, steps=1))
    vae = FrameVAE(FrameVAEConfig(frames.spec, frames.latent_size))
    assert judge_of_all(vae, CONTENDERS["ae"])["bits_per_dim"] is None
    assert judge_of_all(vae, CONTENDERS["gan"])["bits_per_dim"] > 0


def test_fine_tuning_leaves_the_encoder_and_a_gans_encoder_leaves_the_decoder(few_sprites):
    images, z = torch.zeros(1, 1, 64, 64), torch.ones(1, 10)
    vae = contenders.by_objective(contenders.CALIBRATED, few_sprites, 2, 0)
    tuned = contenders.fine_tuned(few_sprites, 4, 0)
    assert torch.equal(tuned.posterior(images).mean, vae.posterior(images).mean)
    assert not torch.equal(tuned.decoder(z), vae.decoder(z))
    start = contenders._learner(contenders.CALIBRATED, few_sprites, 1, 0).vae
    start.start_from_colour(to_unit(torch.from_numpy(few_sprites.train)).mean((0, 2, 3)))
    made = contenders._adversarially(start, AdversarialConfig(), few_sprites, 3, 0)
    whole = contenders.gan(few_sprites, 3, 0)
    assert torch.equal(whole.decoder(z), made.decoder(z))
    assert not torch.equal(whole.posterior(images).mean, made.posterior(images).mean)


def test_a_gan_learns_to_make_what_it_is_shown():
    """Frames of one bright square anywhere but at the edges, from a decoder that starts out dark grey all over."""
    random = np.random.default_rng(0)
    frames = np.zeros((32, 16, 16, 1), np.uint8)
    for frame, (x, y) in zip(frames, random.integers(2, 11, (32, 2)), strict=True):
        frame[y : y + 4, x : x + 4] = 255
    torch.manual_seed(0)
    vae = FrameVAE(FrameVAEConfig(FrameSpec(16, 16, 1), 4))
    vae.start_from_colour(torch.tensor([frames.mean() / 255], dtype=torch.float32))
    learner = AdversarialLearner(vae, AdversarialConfig(average=0.9), seed=0)
    for _ in range(500):
        learner.step(torch.from_numpy(frames))
    made = learner.finish().sample(64) / 255
    assert made.mean() == pytest.approx(frames.mean() / 255, abs=0.03)
    assert made.max((1, 2, 3)).mean() > 0.8
    assert made[:, [0, -1]].mean() < 0.75 * frames.mean() / 255


def test_the_penalty_is_that_of_the_squared_gradient_on_real_frames():
    """With a score that is linear in the pixels: half of gamma times the weights' squared length, without end."""
    learner = AdversarialLearner(
        FrameVAE(FrameVAEConfig(FrameSpec(16, 16, 1), 2)), AdversarialConfig(penalty=4.0, penalty_every=1), seed=0
    )
    score = torch.nn.Linear(256, 1, bias=False)
    learner.discriminator.forward = lambda images: score(images.flatten(1))[:, 0]  # type: ignore[method-assign]
    learner.for_discriminator = torch.optim.SGD(score.parameters(), lr=1.0)
    images = to_unit(torch.zeros(2, 16, 16, 1, dtype=torch.uint8))
    before = score.weight.detach().clone()
    learner._learn_to_tell(images, images)  # real and made are alike: only the penalty moves the weights
    assert torch.allclose(score.weight, before - 4.0 * before, atol=1e-6)


# --- what they are compared on


def test_the_regressor_reads_the_state_and_is_trained_once(few_sprites, tmp_path):
    known = sprite_set(train=3000, held_out=300)
    model = fitted_regressor(known, tmp_path, steps=150)
    r2 = r_squared(model, known.held_out, known.held_out_states)
    assert min(r2[3:6]) > 0.6  # scale and place; shape and angle take longer
    again = fitted_regressor(known, tmp_path, steps=150)
    assert all(
        np.array_equal(a, b) for a, b in zip(model.read(known.held_out), again.read(known.held_out), strict=True)
    )


def test_states_of_sprites_do_not_tell_apart_what_looks_the_same():
    square, turned, ellipse = sprite_states(np.array([[0, 2, 3, 4, 5], [0, 2, 13, 4, 5], [1, 2, 3, 4, 5]]))
    assert square == pytest.approx(turned, abs=1e-6)
    assert not np.allclose(square, ellipse)
    assert sprite_modes(np.stack([square, turned]))[0] == sprite_modes(np.stack([square, turned]))[1]


def test_sprites_have_144_forms_and_64_places():
    everything = np.stack(np.meshgrid(*(np.arange(n) for n in (3, 6, 40)), [0], [0]), -1).reshape(-1, 5)
    forms = {form for form, _ in sprite_modes(sprite_states(everything))}
    everywhere = np.stack(np.meshgrid([0], [0], [0], np.arange(32), np.arange(32)), -1).reshape(-1, 5)
    places = {place for _, place in sprite_modes(sprite_states(everywhere))}
    assert (len(forms), len(places)) == (144, 64)


def test_the_road_is_found_where_it_lies():
    frames = np.zeros((2, 64, 64, 3), np.uint8)
    frames[..., 1] = 204  # grass
    frames[0, :, 40:48] = 105
    states = road_states(frames)
    assert states[0, :4] == pytest.approx(np.full(4, (43.5 / 63) * 2 - 1), abs=0.01)
    assert states[0, 4:] == pytest.approx(np.full(4, 8 / 64))
    assert not states[1].any()
    assert road_modes(states) == [[(2, 2, 2, 2)], [(-1, -1, -1, -1)]]


def test_driving_holds_out_whole_episodes_and_wants_64x64(dots, tmp_path):
    known = driving_set(dots.path, held_out=0.25)
    assert (len(known.train), len(known.held_out)) == (6 * 21, 2 * 21)
    small = RolloutStore.create(tmp_path, env_id="x", frame_spec=FrameSpec(16, 16), action_space=dots.action_space)
    with pytest.raises(ValueError, match=r"has frames \(16, 16, 3\)"):
        driving_set(small.path)


@pytest.mark.parametrize("channels", [1, 3])
def test_strange_frames_differ_where_they_should(channels):
    frames = np.full((6, 64, 64, channels), 100, np.uint8)
    strange = shifted(frames, strangers=frames[:2])
    middle = strange["bars"][:, :, 10:-10]
    assert np.array_equal(middle, frames[:, :, 10:-10])
    assert (strange["bars"][:, :, [0, -1]] == 128).all()
    areas = (strange["blobs"] != frames).any(-1).sum((1, 2))
    assert ((areas > 40) & (areas < 70)).all()
    assert (np.ptp(strange["colours"], axis=(1, 2)) == 0).all()
    assert np.abs(strange["colours"].astype(int) - 100).max() <= 51
    assert (frames == 100).all()
