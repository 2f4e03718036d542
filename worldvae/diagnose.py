"""Measures of a codec -> verdicts in words.

Each verdict is a number of ``Diagnosis`` outside of its healthy range: a sentence that says so, and a remedy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from worldvae.measures.codec import NUMBERS, Diagnosis, diagnose, moving_objects

__all__ = [
    "HEALTHY",
    "NUMBERS",
    "RULES",
    "Diagnosis",
    "Rule",
    "Verdict",
    "as_json",
    "diagnose",
    "finite",
    "judged",
    "moving_objects",
    "range_in_words",
    "verdicts",
]


@dataclass(frozen=True)
class Rule:
    """A number whose leaving its healthy range means something.

    Attributes:
        verdict: what the state is called.
        number: of ``Diagnosis``.
        says: a sentence in which {value} and {limit}, the end of the range, are put.
        remedy: what to do.
        explains: verdicts that follow from this one, and are not given beside it.
    """

    verdict: str
    number: str
    says: str
    remedy: str
    explains: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """What is wrong, by which number and threshold, and what to do."""

    name: str
    number: str
    value: float
    threshold: float
    says: str
    remedy: str


_OF_CODES = ("objects dropped", "prior mismatch", "dead dimensions", "saturated dimensions")
RULES = (
    Rule(
        "black frames",
        "black",
        "{value:.0%} of the frames are black (healthy: at most {limit:.0%}), and no codec learns from those",
        "look at the recorded frames: a missing display, a crop that cuts all off, or screens that the "
        "environment blanks; record them again",
        ("constant frames", "collapsed", "under-trained", *_OF_CODES),
    ),
    Rule(
        "constant frames",
        "constant",
        "{value:.0%} of the frames show one single colour (healthy: at most {limit:.0%})",
        "look at the recorded frames: the crop, the key, or an environment that does not render",
        ("collapsed", "under-trained", *_OF_CODES),
    ),
    Rule(
        "collapsed",
        "kl",
        "codes carry {value:.2g} nats a frame (healthy: at least {limit:g}): whatever the frame, the decoder "
        "paints the same one",
        "lower beta (1 is the ELBO), lower sigma (0.1, or 'optimal') so that pixels count against the KL, or warm "
        "the KL up",
        ("under-trained", *_OF_CODES),
    ),
    Rule(
        "under-trained",
        "psnr_gain",
        "decoded frames are {value:.1f} dB better than the mean frame (healthy: at least {limit:g} dB)",
        "train for more passes; if the loss no longer falls, lower sigma or take more latents",
        _OF_CODES,
    ),
    Rule(
        "objects dropped",
        "objects_lost",
        "{value:.0%} of small or moving things are painted over with background (healthy: at most {limit:.0%})",
        "lower sigma (0.1, or 'optimal'), weigh pixels by motion or the worst ones up, or train longer",
    ),
    Rule(
        "prior mismatch",
        "prior_gap",
        "codes lie {value:.2g} nats a latent from the prior (healthy: at most {limit:g}): frames decoded from "
        "samples of it will be garbage",
        "raise beta or sigma, so that codes fill the prior; a plain autoencoder has no prior to sample from",
    ),
    Rule(
        "saturated dimensions",
        "saturated",
        "{value:g} latents often lie beyond 4 sd of the prior (healthy: {limit:g}), where no sample falls",
        "raise beta or sigma, or take more latents",
    ),
    Rule(
        "dead dimensions",
        "dead",
        "{value:.0%} of the latents are the same for all frames (healthy: at most {limit:.0%})",
        "take fewer latents, or lower beta or sigma if something is missing from the frames",
    ),
    Rule(
        "train/held-out gap",
        "psnr_gap",
        "training frames are painted {value:.1f} dB better than held-out ones (healthy: at most {limit:g} dB)",
        "record more episodes, or train for fewer passes",
    ),
)
HEALTHY = "healthy: every number that has a verdict is in its range"


def verdicts(diagnosis: Diagnosis) -> list[Verdict]:
    """What is wrong with the codec, gravest first; nothing where it is healthy."""
    values = {rule.number: getattr(diagnosis, rule.number) for rule in RULES}
    return judged(RULES, values, {number: NUMBERS[number]["healthy"] for number in values})


def judged(
    rules: Sequence[Rule], values: Mapping[str, float | None], healthy: Mapping[str, tuple[float, float]]
) -> list[Verdict]:
    """The verdicts of the rules whose numbers have left their ranges, in their order; None is not known."""
    given: list[Verdict] = []
    explained: set[str] = set()
    for rule in rules:
        value, (low, high) = values[rule.number], healthy[rule.number]
        if value is None or low <= value <= high or rule.verdict in explained:
            continue
        limit = low if value < low else high
        says = rule.says.format(value=value, limit=limit)
        given.append(Verdict(rule.verdict, rule.number, value, limit, says, rule.remedy))
        explained.update(rule.explains)
    return given


def range_in_words(number: str) -> str:
    """The healthy range of a number of ``Diagnosis``; empty where any value may be healthy."""
    low, high = NUMBERS[number]["healthy"]
    if math.isinf(low) and math.isinf(high):
        return ""
    if math.isinf(high):
        return f"at least {low:g}"
    return f"at most {high:g}" if math.isinf(low) else f"{low:g} to {high:g}"


def as_json(diagnosis: Diagnosis, given: Sequence[Verdict]) -> dict[str, Any]:
    """All of it as JSON values; null where there is no number."""
    numbers = {
        name: {
            "value": finite(getattr(diagnosis, name)),
            "unit": about["unit"],
            "healthy": [finite(end) for end in about["healthy"]],
        }
        for name, about in NUMBERS.items()
    }
    each = {name: getattr(diagnosis, f"{name}_of") for name in ("kl", "mean", "sd", "change")}
    return {
        "verdicts": [asdict(verdict) for verdict in given],
        "numbers": numbers,
        "latents": {name: [finite(value) for value in values.tolist()] for name, values in each.items()},
        "probes": {
            name: {"linear": p.linear, "mlp": p.mlp, "alone": [finite(r) for r in p.alone.tolist()]}
            for name, p in diagnosis.probes.items()
        },
    }


def finite(value: float | None) -> float | None:
    """None where it is no number: JSON knows no nan."""
    return value if value is not None and math.isfinite(value) else None
