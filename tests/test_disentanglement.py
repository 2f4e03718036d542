"""Scores of disentanglement are known where codes are the factors, turned factors, or noise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import entropy, special_ortho_group
from sklearn.metrics import mutual_info_score

from worldvae.measures.disentanglement import _from_importance, dci, factor_vae_score, mutual_information_gap

SIZES = (3, 6, 10)


@pytest.fixture(scope="module")
def factors() -> np.ndarray:
    return np.random.default_rng(0).integers(0, SIZES, (4000, 3))


@pytest.fixture(scope="module")
def standard(factors) -> np.ndarray:
    """The factors with mean 0 and variance 1."""
    return (factors - factors.mean(0)) / factors.std(0)


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(4000, 5))


@pytest.fixture(scope="module")
def perfect(standard, noise) -> np.ndarray:
    """The factors in another order, sign and scale, and two latents that are nearly dead."""
    return np.concatenate([standard[:, [2, 0, 1]] * (3.0, -1.0, 2.0), 0.01 * noise[:, :2]], axis=1)


@pytest.fixture(scope="module")
def turned(standard) -> np.ndarray:
    return standard @ special_ortho_group.rvs(3, random_state=3)


def test_the_gap_is_that_of_a_plain_reading_of_the_paper(standard, noise, factors):
    codes = np.concatenate([standard + 0.3 * noise[:, :3], noise], axis=1)
    gaps = []
    for factor in factors.T:
        told = []
        for latent in codes.T:
            edges = np.linspace(latent.min(), latent.max(), 21)
            told.append(mutual_info_score(np.digitize(latent, edges[1:-1]), factor))
        second, first = sorted(told)[-2:]
        gaps.append((first - second) / entropy(np.bincount(factor)))
    assert mutual_information_gap(codes, factors) == pytest.approx(np.mean(gaps), abs=1e-3)


def test_a_latent_for_each_factor_has_the_whole_gap(perfect, turned, noise, factors):
    assert mutual_information_gap(perfect, factors) > 0.97
    assert mutual_information_gap(turned, factors) < 0.4
    assert mutual_information_gap(noise, factors) < 0.01


def test_two_latents_that_tell_the_same_have_no_gap(standard, factors):
    assert mutual_information_gap(np.concatenate([standard, standard], axis=1), factors) == pytest.approx(0, abs=1e-9)


def test_a_factor_that_stands_still_is_left_out_of_the_gap(perfect, factors):
    still = np.concatenate([factors, np.full((len(factors), 1), 7)], axis=1)
    assert mutual_information_gap(perfect, still) == pytest.approx(mutual_information_gap(perfect, factors))
    with pytest.raises(ValueError, match="no factor varies"):
        mutual_information_gap(perfect, still[:, 3:])


def test_dci_is_whole_for_factors_and_low_for_turned_ones(perfect, turned, factors):
    best, mixed = (dci(codes[:1500], factors[:1500], unordered=(0,)) for codes in (perfect, turned))
    assert min(best.disentanglement, best.completeness, best.informativeness) > 0.97
    assert max(mixed.disentanglement, mixed.completeness) < 0.6
    assert mixed.informativeness > 0.6


def test_noise_informs_of_nothing(noise, factors):
    told = dci(noise[:1000], factors[:1000])
    assert told.informativeness == pytest.approx(0, abs=0.05)
    assert told.disentanglement < 0.2


def test_disentanglement_and_completeness_are_entropies_of_importance():
    importance = np.array([[0.8, 0.1], [0.0, 0.3], [0.0, 0.0]])
    rows = [1 - entropy([8, 1], base=2), 1.0]
    columns = [1.0, 1 - entropy([1, 3, 0], base=3)]
    expected = np.average(rows, weights=[0.9, 0.3]), np.average(columns, weights=[0.8, 0.4])
    assert _from_importance(importance) == pytest.approx(expected)


def test_the_factor_vae_score_is_the_accuracy_of_telling_the_fixed_factor(perfect, standard, noise, factors):
    assert factor_vae_score(perfect, factors) == 1
    a, b = standard[:, 1], standard[:, 2]
    evenly_turned = np.stack([a + b, a - b], axis=1)  # either factor, held fixed, halves both variances
    assert factor_vae_score(evenly_turned, factors[:, 1:]) == pytest.approx(1 / 2, abs=0.08)
    assert factor_vae_score(noise, factors) == pytest.approx(1 / 3, abs=0.08)


def test_a_dead_latent_does_not_vote(perfect, factors):
    """Divided by its own variance it would be noise, which a fixed factor does not still."""
    assert factor_vae_score(perfect, factors) == factor_vae_score(perfect[:, :3], factors)


def test_one_latent_that_carries_two_factors_cannot_tell_them_apart(standard, factors):
    merged = np.stack([standard[:, 0], standard[:, 1] + standard[:, 2]], axis=1)
    assert factor_vae_score(merged, factors) < 0.8


def test_scores_do_not_depend_on_how_often_they_are_asked_for(turned, factors):
    assert factor_vae_score(turned, factors) == factor_vae_score(turned, factors)
    assert dci(turned[:300], factors[:300]) == dci(turned[:300], factors[:300])


def test_what_cannot_be_scored_is_said_in_words(perfect, factors):
    with pytest.raises(ValueError, match=r"codes must be \[B, Z\]"):
        mutual_information_gap(perfect[:-1], factors)
    with pytest.raises(ValueError, match="at least two latents"):
        mutual_information_gap(perfect[:, :1], factors)
    with pytest.raises(ValueError, match="no latent varies"):
        factor_vae_score(np.zeros_like(perfect), factors)
    with pytest.raises(ValueError, match=r"a batch needs 64 frames .* one has \d+: take more"):
        factor_vae_score(perfect[:400], factors[:400])
