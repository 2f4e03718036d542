"""Measures of samples are those of the papers, by slow plain versions of them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from worldvae.measures.samples import (
    Fidelity,
    dropped_modes,
    evenness,
    fidelity,
    neighbour_novelty,
    novelty_auroc,
    within_reach,
)


def normal(seed: int, count: int, mean: float = 0.0, dimensions: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 1, (count, dimensions)).astype(np.float32)


def plainly(real: np.ndarray, made: np.ndarray, k: int) -> Fidelity:
    """By loops over points, each ball of its own."""

    def radius(points: np.ndarray, i: int) -> float:
        return sorted(float(np.linalg.norm(points[i].astype(float) - p)) for j, p in enumerate(points) if j != i)[k - 1]

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.linalg.norm(a.astype(float) - b))

    balls, made_balls = ([radius(points, i) for i in range(len(points))] for points in (real, made))
    counts = [sum(distance(m, r) < ball for r, ball in zip(real, balls, strict=True)) for m in made]
    recalled = [any(distance(m, r) < ball for m, ball in zip(made, made_balls, strict=True)) for r in real]
    covered = [any(distance(m, r) < ball for m in made) for r, ball in zip(real, balls, strict=True)]
    precise = [count > 0 for count in counts]
    return Fidelity(*(float(np.mean(part)) for part in (precise, recalled)), np.mean(counts) / k, np.mean(covered))


@pytest.mark.parametrize(("mean", "k"), [(0.0, 5), (1.0, 3), (4.0, 1)])
def test_precision_recall_density_and_coverage_are_those_of_the_papers(mean, k):
    real, made = normal(0, 60), normal(1, 45, mean)
    told, slow = fidelity(real, made, k), plainly(real, made, k)
    assert vars(told) == pytest.approx(vars(slow))
    assert within_reach(real, made, k).mean() == told.precision


def test_samples_of_the_same_distribution_are_faithful_and_others_are_not():
    real = normal(0, 500)
    same, elsewhere = fidelity(real, normal(1, 500)), fidelity(real, normal(2, 500, mean=20))
    assert min(same.precision, same.recall, same.coverage) > 0.85
    assert same.density == pytest.approx(1, abs=0.1)
    assert vars(elsewhere) == dict.fromkeys(vars(elsewhere), 0)


def test_a_half_that_is_never_shown_costs_coverage_and_not_precision():
    real = np.concatenate([normal(0, 300), normal(1, 300, mean=20)])
    told = fidelity(real, normal(2, 600))
    assert told.precision > 0.85
    assert told.coverage == pytest.approx(0.5, abs=0.02)


def test_too_few_points_are_said_in_words():
    with pytest.raises(ValueError, match=r"must be \[B > 5, D\]"):
        fidelity(normal(0, 5), normal(1, 50))
    with pytest.raises(ValueError, match="of the same D"):
        fidelity(normal(0, 50), normal(1, 50, dimensions=3))


def test_a_mode_is_dropped_where_no_sample_shows_it():
    real = ["square"] * 10 + ["heart"] * 10 + ["ellipse"] * 2
    assert dropped_modes(real, ["heart", "ring"]) == pytest.approx(2 / 3)
    assert dropped_modes(real, ["heart", "ring"], least=3) == 0.5
    assert dropped_modes(real, real) == 0
    with pytest.raises(ValueError, match="no value occurs 11 times"):
        dropped_modes(real, real, least=11)


def test_a_steady_path_is_even_and_a_jump_is_not():
    steady = np.arange(6.0)[None, :, None] * np.array([1.0, 2.0])
    jump = np.array([0, 0, 0, 1.0, 1, 1])[None, :, None] * np.ones(2)
    still = np.zeros((1, 6, 2))
    assert evenness(steady) == pytest.approx(1)
    assert evenness(jump) == pytest.approx(1 / 5)
    assert evenness(np.concatenate([steady, jump, still])) == pytest.approx(0.6)
    assert evenness(still) is None
    with pytest.raises(ValueError, match="two steps"):
        evenness(steady[:, :2])


def test_the_auroc_is_how_often_a_strange_frame_scores_higher():
    random = np.random.default_rng(0)
    known, strange = random.integers(0, 8, 60), random.integers(3, 12, 40)
    pairs = [(s > k) + 0.5 * (s == k) for k in known for s in strange]
    assert novelty_auroc(known, strange) == pytest.approx(np.mean(pairs))
    assert novelty_auroc(np.zeros(5), np.ones(5)) == 1


def test_the_baseline_is_the_mean_distance_to_the_nearest_training_frames():
    train, frames = np.random.default_rng(0).integers(0, 256, (2, 30, 8, 8, 3), dtype=np.uint8)
    distances = cdist(frames.reshape(30, -1) / 255, train.reshape(30, -1) / 255)
    assert neighbour_novelty(train, frames, k=4) == pytest.approx(np.sort(distances, 1)[:, :4].mean(1), rel=1e-4)
