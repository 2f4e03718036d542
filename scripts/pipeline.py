"""All stages in a row: from no frames at all to a scored agent and a report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from agents.actor_critic import ActorCriticConfig
from agents.dream import DreamConfig
from agents.dynamics import DynamicsConfig
from agents.evaluation import checked
from agents.learning import LearningConfig
from agents.observations import Z_ALONE, ObservationConfig
from agents.report import write_report
from agents.sac import SACConfig
from agents.world_model import WorldModel
from scripts import cli
from scripts.collect import CollectConfig, collect, positions, returns_of
from scripts.encode import encode_rollouts
from scripts.evaluate import EvaluateConfig, score
from scripts.learn_in_dream import DreamAgentConfig, learn
from scripts.run_folder import RunFolder
from scripts.train_agent import AgentConfig
from scripts.train_agent import train as train_agent
from scripts.train_dynamics import train as train_dynamics
from scripts.train_vae import train as train_vae
from worldvae.checkpoint import CheckpointError, read_json, write_json
from worldvae.frames import FrameSpec
from worldvae.objective import MOVING, ObjectiveConfig
from worldvae.policies import CorrelatedConfig
from worldvae.training import VAETrainingConfig
from worldvae.vae import FrameVAE

Stage = Callable[[], Any]


@dataclass(frozen=True)
class Again:
    """What every round after the first does: its agent plays, and all is refreshed on all episodes.

    Attributes:
        collect: episodes played by the agent of the round before.
        vae, dynamics: settings of trainings that set out from the weights of the round before; without ``vae`` the
            codec stays as it is.
    """

    collect: CollectConfig
    vae: VAETrainingConfig | None
    dynamics: DynamicsConfig


@dataclass(frozen=True)
class PipelineConfig:
    """Every stage's settings. Each of ``collect`` is played. There are ``rounds`` in all, and the agent that played
    best is judged."""

    collect: tuple[CollectConfig, ...]
    vae: VAETrainingConfig
    dynamics: DynamicsConfig
    agent: AgentConfig | DreamAgentConfig
    evaluate: EvaluateConfig
    again: Again
    rounds: int = 1


DRIVING = CollectConfig(
    env="CarRacing-v3",
    episodes=152,
    action_repeat=4,
    max_episode_steps=400,
    patience=100,  # frames of the track teach more than frames of the grass
    frame=FrameSpec(crop=(0, 12, 0, 0)),  # the dashboard
    correlated=CorrelatedConfig(correlation=5, mean=(0, 0.3, -0.3), sd=(0.4, 0.3, 0.3)),  # mostly gas
)
FINE = ObjectiveConfig(sigma=0.1, free_bits=0.0)
SLOW = replace(FINE, correlation=0.9)  # on codes that change slowly less play teaches as much (benchmarks/LOG.md)
WHOLE = replace(DRIVING, backend="async", frame=FrameSpec())  # the dashboard tells the speed
CARRACING_AGENT = AgentConfig(
    env="agents.thorough:ThoroughCarRacing-v0",
    backend="async",
    patience=400,  # time to find back to the road
    learning=LearningConfig(
        env_steps=100_000,
        updates=16,
        reward_clip=(-10.0, 20.0),
        endless=True,
        action_scale=(1.0, 0.84, 1.0),  # less gas than it learned with: margins (benchmarks/LOG.md)
        observation=Z_ALONE,  # the dashboard's speed is in z: more to look at is learned later (benchmarks/LOG.md)
        sac=SACConfig(discount=0.995, progress=0.05),  # haste is worth the time it saves, and no more
    ),
)
CARRACING = PipelineConfig(
    collect=(WHOLE,),
    vae=VAETrainingConfig(objective=SLOW, passes=6),
    dynamics=DynamicsConfig(),
    agent=CARRACING_AGENT,
    evaluate=EvaluateConfig(episodes=100),
    again=Again(
        collect=replace(WHOLE, episodes=16, max_episode_steps=None, patience=None, first_seed=5000),
        vae=VAETrainingConfig(objective=SLOW, passes=2),
        dynamics=DynamicsConfig(passes=20),
    ),
)
QUICK = replace(CARRACING, evaluate=EvaluateConfig(episodes=20))
# Its codec learns to look past shades and rectangles, and its driver drives under other colours and beside bars,
# for which it needs codes of four decisions, and codes that may leap (benchmarks/LOG.md).
ROBUST_VAE = VAETrainingConfig(objective=FINE, passes=8, colour_jitter=0.15, covers=0.5)
ROBUST_LEARNING = replace(CARRACING_AGENT.learning, env_steps=272_000, updates=32, observation=ObservationConfig())
CARRACING_ROBUST = replace(
    CARRACING,
    vae=ROBUST_VAE,
    agent=replace(CARRACING_AGENT, learning=ROBUST_LEARNING),
    again=replace(CARRACING.again, vae=replace(ROBUST_VAE, passes=2)),
)
TINY = replace(
    CARRACING,
    collect=(replace(WHOLE, episodes=5, num_envs=2, max_episode_steps=80),),
    vae=VAETrainingConfig(objective=SLOW, passes=20),
    dynamics=DynamicsConfig(passes=20),
    agent=replace(CARRACING_AGENT, num_envs=4, learning=replace(CARRACING_AGENT.learning, env_steps=1600, updates=2)),
    evaluate=EvaluateConfig(episodes=2, workers=2, max_episode_steps=200),
    again=Again(
        collect=replace(WHOLE, episodes=1, num_envs=1, max_episode_steps=80, patience=None, first_seed=5000),
        vae=VAETrainingConfig(objective=SLOW, passes=2),
        dynamics=DynamicsConfig(passes=2),
    ),
)
COVER = CollectConfig(
    env="agents.takecover:TakeCoverSkill4-v0",
    action_repeat=4,  # what an action brings comes within fewer steps of a dream (benchmarks/LOG.md)
    backend="async",
    num_envs=4,
)
COVER_M = DynamicsConfig(
    hidden=512,
    reward=False,
    restart=True,
    fed_back=0.75,
    termination_weight=20.0,
    passes=25,
    batch_size=32,
    most_steps=64,
    optimiser="muon",
    learning_rate=2e-2,
)
TAKECOVER_4 = PipelineConfig(
    collect=(
        replace(COVER, episodes=450, correlated=CorrelatedConfig(correlation=3, sd=(1.0,))),
        # What M has not seen a learner exploits: that to and fro is standing still, and that walls do not protect.
        replace(COVER, episodes=300, first_seed=600, policy="uniform"),
        replace(COVER, episodes=250, first_seed=2000, correlated=CorrelatedConfig(correlation=15, sd=(1.5,))),
    ),
    vae=VAETrainingConfig(
        latent_size=64,
        colour_jitter=0.0,
        objective=replace(MOVING, beta=8.0, correlation=0.9),  # codes that M can follow
        learning_rate=1e-3,
        passes=3,
    ),
    dynamics=COVER_M,
    agent=DreamAgentConfig(
        context=8,  # short dreams from anywhere in real play: what M forgives shows up in long ones
        starts=60_000,
        random_play=True,
        dream=DreamConfig(temperature=1.0, most_steps=16),
        dreamers=2,
        learning=ActorCriticConfig(dreams=512, iterations=160, selections=0, discount=0.97, entropy=0.02),
    ),
    evaluate=EvaluateConfig(episodes=100),
    rounds=3,
    again=Again(
        collect=replace(COVER, episodes=100, first_seed=5000),
        vae=None,
        dynamics=replace(COVER_M, passes=20, learning_rate=7e-3),
    ),
)
SKILL_5 = "agents.takecover:TakeCover-v0"
TAKECOVER = replace(
    TAKECOVER_4,
    collect=tuple(replace(play, env=SKILL_5) for play in TAKECOVER_4.collect),
    again=replace(
        TAKECOVER_4.again,
        collect=replace(TAKECOVER_4.again.collect, env=SKILL_5, episodes=300),  # shorter ones
    ),
)
PRESETS = {
    "quick": QUICK,
    "carracing": CARRACING,
    "carracing-robust": CARRACING_ROBUST,
    "tiny": TINY,
    "takecover": TAKECOVER,
    "takecover4": TAKECOVER_4,
}


def with_seed(config: PipelineConfig, seed: int) -> PipelineConfig:
    """The same pipeline on another training seed: its own episodes, weights and noise.

    Raises ValueError where its episodes would leave the training seeds (below 1,000,000).
    """
    checked(seed)

    def seeded(play: CollectConfig) -> CollectConfig:
        return replace(play, first_seed=10_000 * seed + play.first_seed)

    learning: Any = config.agent.learning  # of either kind
    again = replace(
        config.again,
        collect=seeded(config.again.collect),
        vae=config.again.vae and replace(config.again.vae, seed=seed),
        dynamics=replace(config.again.dynamics, seed=seed),
    )
    return replace(
        config,
        collect=tuple(seeded(play) for play in config.collect),
        vae=replace(config.vae, seed=seed),
        dynamics=replace(config.dynamics, seed=seed),
        agent=replace(config.agent, learning=replace(learning, seed=seed)),
        again=again,
    )


def run_pipeline(run: RunFolder, config: PipelineConfig) -> str:
    """Runs the stages that ``run`` has not done yet, round by round; returns the score table."""
    before = None
    for number in range(config.rounds):
        here = run if number == config.rounds - 1 else run.round(number)
        if config.rounds > 1:
            print(f"\n==== round {number + 1} of {config.rounds}")
        do(here, a_round(here, config, number, before))
        before = here
    if config.rounds > 1:
        do(run, {"choose": lambda: choose(run, config)})
    judge = {
        "evaluate_random": lambda: score(run, replace(config.evaluate, policy="random")),
        "evaluate": lambda: score(run, config.evaluate),
    }
    do(run, judge)
    return write_report(run.path)


def a_round(run: RunFolder, config: PipelineConfig, number: int, before: RunFolder | None) -> dict[str, Stage]:
    """From play to an agent."""
    again, agent = config.again, config.agent
    if before is None:
        plays, dynamics = config.collect, config.dynamics
    else:
        plays, dynamics = (play_of(config, number - 1, before),), again.dynamics
    return {
        "collect": lambda: [collect(run, play) for play in plays],
        "train_vae": lambda: refresh_codec(run, again.vae, before) if before else train_vae(run, config.vae),
        "encode": lambda: encode_rollouts(run),
        "train_dynamics": lambda: train_dynamics(run, dynamics, world_model(before) if before else None),
        "train_agent": lambda: learn(run, agent) if isinstance(agent, DreamAgentConfig) else train_agent(run, agent),
    }


def play_of(config: PipelineConfig, number: int, run: RunFolder) -> CollectConfig:
    """What the agent of that round plays, for the next round to learn from and to be compared by."""
    play = config.again.collect
    return replace(play, first_seed=play.first_seed + number * play.episodes, policy="agent", agent_run=run.path)


def choose(run: RunFolder, config: PipelineConfig) -> None:
    """Has the last round's agent play as those before did, and chooses the one that earned most: chosen.json.

    None of these episodes was seen by the agent that played it before it was trained.
    """
    store = collect(run, play_of(config, config.rounds - 1, run))
    plays = [play_of(config, number, each) for number, each in enumerate([*run.earlier, run])]
    seeds = [range(play.first_seed, play.first_seed + play.episodes) for play in plays]
    returns = [fmean(returns_of(store, positions(store, each))) for each in seeds]
    chosen = returns.index(max(returns))
    write_json(run.path / "chosen.json", {"round": chosen, "returns": returns})
    print(cli.table([("round", "the agent's return"), *((i + 1, told) for i, told in enumerate(returns))]))
    print(f"chosen: round {chosen + 1}")


def refresh_codec(run: RunFolder, config: VAETrainingConfig | None, before: RunFolder) -> None:
    """Goes on with the codec of the round before, or keeps it and what it has encoded."""
    if config:
        train_vae(run, config, start=FrameVAE.load(before.vae))
        return
    for name in ("vae", "latents"):
        shutil.copytree(before.path / name, run.path / name, dirs_exist_ok=True)


def world_model(run: RunFolder) -> WorldModel:
    """As it was trained there, on the codec of that round."""
    return WorldModel.load(run.dynamics, FrameVAE.load(run.vae).sha256)


def do(run: RunFolder, stages: Mapping[str, Stage]) -> None:
    """Works through the stages that are not done yet, each timed."""
    for name, work in stages.items():
        if run.is_done(name):
            print(f"{name}: done before")
            continue
        print(f"\n== {name}")
        run.path.mkdir(parents=True, exist_ok=True)
        with run.stage(name):
            work()


def main(
    preset: Literal["quick", "carracing", "carracing-robust", "tiny", "takecover", "takecover4"] = "quick",
    out: Path | None = None,
    seed: int = 0,
    rounds: int | None = None,
    resume: bool = False,
) -> None:
    """Collect, train the frame VAE, encode, train world model and agent, evaluate and report.

    Args:
        preset: quick trains to drive in twelve minutes and is judged by 20 episodes, carracing by 100,
            carracing-robust drives in other colours too; takecover trains to dodge fireballs, inside the dream,
            takecover4 in the game as hard as the published one; tiny only shows that everything runs.
        out: the run's folder, runs/PRESET by default; stages done there are not done again.
        seed: training seed.
        rounds: 1 ends with the first agent; in each further one it plays, and codec and world model learn from that
            too before the next is trained. By default the preset's number.
        resume: take all these from the run in OUT.
    """
    run = RunFolder(out or Path("runs") / preset)
    saved = run.path / "run.json"
    rounds = PRESETS[preset].rounds if rounds is None else rounds
    chosen: dict[str, Any] = {"preset": preset, "seed": seed, "rounds": rounds}
    if resume:
        chosen = read_json(saved)
    elif saved.exists() and read_json(saved) != chosen:
        raise CheckpointError(f"{run.path} holds another run ({read_json(saved)}): choose another --out, or --resume")
    if chosen["rounds"] < 1:
        raise ValueError(f"--rounds must be >= 1, got {chosen['rounds']}")
    config = with_seed(replace(PRESETS[chosen["preset"]], rounds=chosen["rounds"]), chosen["seed"])
    run.path.mkdir(parents=True, exist_ok=True)
    write_json(saved, chosen)
    write_json(run.path / "config.json", json.loads(json.dumps(asdict(config), default=str)))
    print(run_pipeline(run, config))


if __name__ == "__main__":
    cli.run(main)
