"""What is said of autoencoders, VAEs and GANs, and what a comparison's numbers say to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from agents.evaluation import bootstrap_interval

Verdict = Literal["confirmed", "not confirmed", "unclear"]
Runs = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""Model -> seed -> nested numbers; the model ``real`` has the set's own, the same for each seed."""


@dataclass(frozen=True)
class Claim:
    """``more`` has more of ``measure`` than ``less``.

    Attributes:
        idea: as it is usually said.
        measure: where it stands in a run's numbers; dots lead into nested ones.
        more, less: models; ``less`` may be a number.
    """

    idea: str
    measure: str
    more: str
    less: str | float


def _claims(idea: str, more: str, less: str | float, *measures: str) -> list[Claim]:
    return [Claim(idea, measure, more, less) for measure in measures]


BEHAVED = "a VAE's latent space is better behaved than an autoencoder's"
SAMPLES, FITTED = ("prior.precision", "prior.coverage"), ("fitted_prior.precision", "fitted_prior.coverage")
READABLE = ("mig", "dci.disentanglement", "factor_vae")
CLAIMS = (
    *_claims(f"{BEHAVED}: samples of N(0, 1)", "vae", "ae", *SAMPLES),
    *_claims(f"{BEHAVED}: samples of a Gaussian fitted to the codes", "vae", "ae", *FITTED),
    *_claims(f"{BEHAVED}: interpolation", "vae", "ae", "interpolation.evenness_features", "interpolation.precision"),
    *_claims("beta-VAE: each coordinate becomes interpretable", "beta_vae", "vae", *READABLE),
    *_claims("the same of beta-TCVAE", "beta_tcvae", "vae", *READABLE),
    *_claims("VAEs are blurrier than GANs", "gan", "vae", "prior.sharpness"),
    *_claims("a decoder fine-tuned adversarially is less blurry", "vae_gan", "vae", "sharpness", "prior.sharpness"),
    *_claims("VAEs have the better likelihood", "gan", "vae", "bits_per_dim"),
    *_claims("VAEs are more interpretable than GANs", "vae", "gan", *READABLE),
    *_claims("VAEs give compression: fewer bytes than an image format as good", "vae", 0, "bytes.saved"),
    *_claims("VAEs give compression: better than GANs at equal bytes", "vae", "gan", "psnr"),
    *_claims("GANs may miss modes", "vae", "gan", "prior.coverage", "prior.recall"),
    *_claims("GANs may miss modes", "gan", "vae", "prior.dropped"),
    *_claims("GANs may miss modes", "gan", "real", "prior.dropped"),
    *_claims("VAEs may cover what makes no sense", "gan", "vae", "prior.precision"),
    *_claims("VAEs may cover what makes no sense", "real", "vae", "prior.precision"),
    *_claims("anomalies are told by a codec: better than by chance", "vae", 0.5, "novelty.mean"),
    *_claims("anomalies are told by a codec: better than by near pixels", "vae", "real", "novelty.mean"),
    *_claims("anomalies are told by a codec: better than by an autoencoder", "vae", "ae", "novelty.mean"),
)


@dataclass(frozen=True)
class Judgement:
    """A claim on one set of frames.

    Attributes:
        difference: more - less, mean over the seeds that have both.
        ci95: bootstrap interval of that mean over seeds.
        seeds: how many there are.
        verdict: confirmed where the interval lies above 0, not confirmed where it lies at or below, else unclear.
    """

    difference: float
    ci95: tuple[float, float]
    seeds: int
    verdict: Verdict


def judge(claim: Claim, runs: Runs) -> Judgement | None:
    """By the paired differences; None where fewer than two seeds have both: an interval needs some scatter."""
    differences = []
    for seed in sorted({seed for by_seed in runs.values() for seed in by_seed}):
        more, less = (
            value(runs, side, claim.measure, seed) if isinstance(side, str) else side
            for side in (claim.more, claim.less)
        )
        if more is not None and less is not None:
            differences.append(more - less)
    if len(differences) < 2:
        return None
    low, high = bootstrap_interval(np.array(differences))
    verdict: Verdict = "confirmed" if low > 0 else "not confirmed" if high <= 0 else "unclear"
    return Judgement(float(np.mean(differences)), (low, high), len(differences), verdict)


def value(runs: Runs, model: str, measure: str, seed: int) -> float | None:
    """A run's number, or None where that run or measure is missing."""
    node: Any = runs.get(model, {}).get(seed)
    for key in measure.split("."):
        node = node.get(key) if isinstance(node, Mapping) else None
    return node


def judged(runs: Runs) -> list[dict[str, Any]]:
    """Every claim that the runs can say something to, as JSON."""
    told = ((claim, judge(claim, runs)) for claim in CLAIMS)
    return [{**asdict(claim), **asdict(judgement)} for claim, judgement in told if judgement is not None]


def summary(claims: Sequence[Mapping[str, Any]]) -> dict[str, Verdict]:
    """Idea -> the verdict that all its measures share, or ``unclear`` where they differ."""
    verdicts: dict[str, set[Verdict]] = {}
    for claim in claims:
        verdicts.setdefault(claim["idea"], set()).add(claim["verdict"])
    return {idea: next(iter(said)) if len(said) == 1 else "unclear" for idea, said in verdicts.items()}
