"""Can the dream be trusted? Dream and reality side by side, in numbers and in words.

What M foretells is compared with what came (codes, frames, rewards, ends), and what an agent earns in the dream
with what it earns in reality.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy

from agents.dream import DreamConfig, DreamVectorEnv, Starts
from agents.dynamics import ends
from agents.evaluation import MakePolicy
from agents.forecasts import CONTEXT, HORIZONS, ForecastScores, compare, forecast_rows
from agents.sequences import Trajectories, draw
from agents.termination import Reliability, reliability
from agents.world_model import WorldModel
from worldvae.diagnose import Rule, Verdict, finite, judged
from worldvae.frames import Frames
from worldvae.measures.images import psnr, squared_error
from worldvae.record import interact
from worldvae.vae import DiagonalGaussian, FrameVAE

AGES = (8, 16, 32, 64)
"""Steps of a dream, up to the first, from there to the second, ..: what it has forgotten by then no longer kills."""
LEADS = (1, 2, 4, 8, 16)
"""Steps ahead at which ends are foreseen, or not."""


@dataclass(frozen=True)
class Gap:
    """What separates the dream from reality, on held-out episodes.

    Attributes:
        forecasts: by forecaster; likelihood and open-loop error of codes.
        decoded: by what was decoded, steps ahead -> PSNR against the real frame, in dB.
        reward: mean foretold reward less the mean real one, over the real ones' sd; nan without a reward head.
        ends: foretold and observed, one step ahead; None without a termination head.
        mortality: by age, how many times as many dreams end as real episodes by the same actions; nan where none
            does, empty without a termination head.
        foresight: by steps ahead, how much of what is uncertain about an end dreams take away (``foresight``).
    """

    forecasts: dict[str, ForecastScores]
    decoded: dict[str, dict[int, float]]
    reward: float
    ends: Reliability | None
    mortality: dict[int, float]
    foresight: dict[int, float]


def gap(model: WorldModel, train: Trajectories, held_out: Trajectories, vae: FrameVAE, frames: Frames) -> Gap:
    """Measures M on held-out episodes; ``frames`` uint8 [rows, H, W, C] are theirs, one for each of their codes."""
    long, short = beside(model, held_out, AGES[-1]), beside(model, held_out, LEADS[-1], most=16_384, draws=4)
    return Gap(
        forecasts=compare(model, train, held_out),
        decoded=decoded_error(model, held_out, vae, frames),
        reward=reward_optimism(model, held_out),
        ends=None if model.termination is None else reliability(*ends(model, held_out)),
        mortality=mortality(long) if long else {},
        foresight=foresight(short) if short else {},
    )


@torch.no_grad()
def decoded_error(
    model: WorldModel, data: Trajectories, vae: FrameVAE, frames: Frames, most: int = 256
) -> dict[str, dict[int, float]]:
    """PSNR in dB, by steps ahead, of one dream, of the codec alone and of the last frame that was seen."""
    rows = forecast_rows(data, most)
    if rows is None:
        return {}
    means, generator = data.codes.mean[rows], torch.Generator(data.device).manual_seed(0)
    dreamt = model.imagine(means[:, :CONTEXT], data.actions[rows[:, :-1]], generator)
    at = rows.cpu().numpy()
    told: dict[str, dict[int, float]] = {"dream": {}, "codec alone": {}, "same as now": {}}
    for k in (k for k in HORIZONS if CONTEXT + k <= rows.shape[1]):
        real = frames[at[:, CONTEXT + k - 1]]
        made = vae.decode(dreamt[:, k - 1].cpu().numpy()), vae.decode(means[:, CONTEXT + k - 1].cpu().numpy())
        for name, shown in zip(told, (*made, frames[at[:, CONTEXT - 1]]), strict=True):
            told[name][k] = psnr(float(squared_error(shown, real).mean()))
    return told


@torch.no_grad()
def reward_optimism(model: WorldModel, data: Trajectories) -> float:
    """Mean foretold reward less the mean real one, one step ahead, in the real rewards' sd."""
    if model.reward is None:
        return math.nan
    errors = []
    for sequences in data.whole():
        h_tp1, _ = model.remember(sequences.codes.mean[:, :-1], sequences.a_t)
        told = model.predict(sequences.real(h_tp1)).reward_tp1
        assert told is not None
        errors.append(told - sequences.real(sequences.rewards_tp1))
    return (torch.cat(errors).mean() / data.reward_moments()[1]).item()


@dataclass(frozen=True)
class Beside:
    """S steps of dreams beside the episodes that they begin in, by the episodes' actions; D dreams of each of R
    beginnings, each float32 [S, D, R].

    Attributes:
        alive: how likely the dream has not ended before.
        ends: how likely it ends there, if not.
        runs: whether the episode has not ended before.
        ended: whether it ends there.
    """

    alive: Tensor
    ends: Tensor
    runs: Tensor
    ended: Tensor


@torch.no_grad()
def beside(model: WorldModel, data: Trajectories, steps: int, most: int = 4096, draws: int = 1) -> Beside | None:
    """Dreams that begin anywhere in the episodes, ``CONTEXT`` real steps behind them, at most so many beginnings.

    None without a termination head, or where no episode is as long.
    """
    rows, generator = data.windows(CONTEXT + 1), torch.Generator(data.device).manual_seed(0)
    if model.termination is None or not len(rows):
        return None
    rows = rows[torch.randperm(len(rows), generator=generator, device=data.device)[:most]].repeat(draws, 1)
    finals = torch.from_numpy(data.first_rows + data.lengths).to(data.device)
    now, final = rows[:, -1], finals[torch.searchsorted(finals, rows[:, -1].contiguous())]
    z = draw(DiagonalGaussian(data.codes.mean[rows], data.codes.logvar[rows]), generator)
    _, state = model.remember(z[:, :-1], data.actions[rows[:, :-1]])
    z, alive, told = z[:, -1], torch.ones(len(rows), device=data.device), []
    for _ in range(steps):
        state = model.advance(z, data.actions[now], state)
        foretold = model.predict(state[0])
        assert foretold.termination is not None
        ends_here, runs = foretold.termination.sigmoid(), (now < final).float()
        told.append(torch.stack([alive, ends_here, runs, data.terminated[now] * runs]))
        alive = alive * (1 - ends_here)
        now, z = torch.minimum(now + 1, final), foretold.z_tp1.sample(generator)
    return Beside(*torch.stack(told, 1).unflatten(-1, (draws, -1)))


def mortality(dreams: Beside) -> dict[int, float]:
    """Ends in dreams over ends in reality while both live, by the dream's age (``AGES``); nan where none is real."""
    both = dreams.alive * dreams.runs
    counts = torch.stack([dreams.ends * both, dreams.ended * both], -1).sum((1, 2))
    spans = counts.split(np.diff((0, *AGES)).tolist())
    totals = zip(AGES, (span.sum(0).tolist() for span in spans), strict=True)
    return {age: dreamt / real if real else math.nan for age, (dreamt, real) in totals}


def foresight(dreams: Beside) -> dict[int, float]:
    """How much of what is uncertain about an end so many steps ahead (``LEADS``) the dream takes away.

    1 would be to know; at 0 it tells no more than how frequent ends are, below it misleads; nan where none is real.
    """
    gained = {}
    for k in LEADS:
        runs = dreams.runs[k - 1, 0] > 0
        foretold, ended = (x[k - 1].mean(0)[runs] for x in (dreams.alive * dreams.ends, dreams.ended))
        rate = ended.mean().expand_as(ended)
        without, with_it = (binary_cross_entropy(p.clamp(1e-6, 1 - 1e-6), ended).item() for p in (rate, foretold))
        gained[k] = 1 - with_it / without if 0 < ended.mean() < 1 else math.nan
    return gained


def dream_returns(
    make_policy: MakePolicy,
    model: WorldModel,
    starts: Starts,
    space: gymnasium.Space,
    config: DreamConfig,
    episodes: int,
    seed: int = 0,
) -> NDArray[np.float64]:
    """What somebody on latents earns in so many dreams, each played to its end: float64 [episodes]."""
    env = DreamVectorEnv(model, starts, episodes, space, config)
    returns = np.zeros(episodes)
    for step in interact(env, make_policy(env), range(seed, seed + episodes)):
        returns[step.recorded] += step.rewards_tp1[step.recorded]
    return returns


RULES = (
    Rule(
        "blind",
        "forecast",
        "one step ahead the dream is {value:.2f} times as far off as the better of two simple forecasts (healthy: at "
        "most {limit:g})",
        "train M for more passes, or collect more episodes; if the codec's codes jump from frame to frame, M cannot "
        "follow: see scripts.diagnose",
    ),
    Rule(
        "drifting",
        "drift",
        "the longest forecasts are {value:.2f} times as far off as the codes' mean (healthy: at most {limit:g})",
        "longer sequences (most_steps), or dreams that begin with context and end sooner",
    ),
    Rule(
        "optimistic rewards",
        "reward",
        "foretold rewards are {value:+.2f} sd above the real ones (healthy: within {limit:g})",
        "collect with the current policy, and train M again on all episodes",
    ),
    Rule(
        "ends unforeseen",
        "auroc",
        "a step that ends an episode looks deadlier than another in {value:.0%} of the pairs (healthy: at least "
        "{limit:.0%})",
        "what kills may be missing from the codes (see scripts.diagnose), or ends be too few: collect more",
    ),
    Rule(
        "wrongly calibrated ends",
        "ends",
        "the model foretells {value:.2f} times as many ends as there are (healthy: {limit:g} or nearer 1)",
        "train M again: it is calibrated on the episodes that it holds out",
    ),
    Rule(
        "short-sighted",
        "foresight",
        "of what it knows of an end one step ahead it knows {value:.0%} eight steps ahead (healthy: at least "
        "{limit:.0%})",
        "what a dream does not foresee no agent learns to avoid there: train M on its own draws (fed_back), or collect "
        "more episodes",
    ),
    Rule(
        "deathless",
        "mortality",
        "from their 33rd to their 64th step {value:.2f} times as many dreams end as real episodes by the same actions "
        "(healthy: {limit:g} or nearer 1)",
        "what kills is lost along the dream: end dreams while they still kill, and begin them anywhere in real play "
        "(--context 16 --dream.most-steps 16), or train M on its own draws (fed_back)",
    ),
    Rule(
        "forgiving",
        "forgiving",
        "some random play lives {value:.1f} times as long in dreams as in reality, or earns as many times as much "
        "(healthy: {limit:g} or nearer 1)",
        "an agent will find that play: collect episodes of it, and train M again, with a larger fed_back",
    ),
    Rule(
        "exploited",
        "exploited",
        "the dream pays {value:.1f} times what reality does (healthy: at most {limit:g})",
        "raise the temperature, stop at the checkpoint that is best on real selection episodes, or collect with this "
        "policy and train M again (--rounds)",
    ),
)
RANGES = {
    "forecast": (0.0, 0.95),
    "drift": (0.0, 1.1),
    "reward": (-0.2, 0.2),
    "auroc": (0.9, 1.0),
    "ends": (0.67, 1.5),
    "foresight": (0.5, 10.0),
    "mortality": (0.5, 2.0),
    "forgiving": (0.67, 1.5),
    "exploited": (0.0, 1.5),
}


def numbers(told: Gap, exploited: float = math.nan, forgiving: float = math.nan) -> dict[str, float]:
    """What verdicts are given on; nan where it is not known.

    Args:
        exploited: an agent's mean return in dreams over that in reality.
        forgiving: the same of random play, of the kind that dreams mistake the most.
    """
    ours, *simple = (scores.open_loop for scores in told.forecasts.values())
    first, last = (min(ours, default=0), max(ours, default=0))
    return {
        "forecast": ours[first] / max(1e-9, min(s[first] for s in simple)) if ours else math.nan,
        "drift": ours[last] if ours else math.nan,
        "reward": told.reward,
        "auroc": told.ends.auroc if told.ends else math.nan,
        "ends": told.ends.ratio if told.ends else math.nan,
        "foresight": told.foresight[8] / told.foresight[1] if told.foresight.get(1, 0) > 0.05 else math.nan,
        "mortality": told.mortality.get(AGES[-1], math.nan),
        "forgiving": forgiving,
        "exploited": exploited,
    }


def verdicts(told: dict[str, float]) -> list[Verdict]:
    """What is wrong with the dream; nothing where it is healthy, or not known."""
    return judged(RULES, {name: None if math.isnan(value) else value for name, value in told.items()}, RANGES)


def as_json(told: Gap) -> dict[str, Any]:
    """All of it as JSON values; null where there is no number."""
    ends = told.ends and asdict(told.ends)
    curve = ends and {k: v.tolist() if isinstance(v, np.ndarray) else finite(v) for k, v in ends.items()}
    return {
        "forecasts": {name: asdict(scores) for name, scores in told.forecasts.items()},
        "decoded_psnr": {name: {k: finite(db) for k, db in by_step.items()} for name, by_step in told.decoded.items()},
        "reward_optimism": finite(told.reward),
        "ends": curve,
        "mortality": {age: finite(value) for age, value in told.mortality.items()},
        "foresight": {lead: finite(value) for lead, value in told.foresight.items()},
    }


def exploitation(log: Sequence[dict[str, float]]) -> str:
    """Whether real returns fell while the dream's rose, in words; the log of a learning in the dream."""
    selected = [entry for entry in log if "selected" in entry]
    if len(selected) < 3:
        return "exploitation: too few selections in reality to tell"
    peak, last = max(selected, key=lambda entry: entry["selected"]), selected[-1]
    before, after = (entry.get("return", entry.get("mean", math.nan)) for entry in (peak, last))
    if after > before and last["selected"] < peak["selected"] - 0.2 * abs(peak["selected"]):
        return (
            f"EXPLOITED: since step {peak['step']:.0f} the dream's return rose from {before:.0f} to {after:.0f} while "
            f"the real one fell from {peak['selected']:.0f} to {last['selected']:.0f}; what was best in reality is kept"
        )
    return "exploitation: none seen (real returns did not fall while the dream's rose)"
