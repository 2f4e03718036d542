"""Who is M worth something to: each kind of controller is trained and judged once beside the same codec and M."""

from __future__ import annotations

import numpy as np
import pytest

from agents.agent import Agent
from agents.dynamics import DynamicsConfig
from agents.evolution import EvolutionConfig
from agents.learning import LearningConfig
from agents.sac import SACConfig
from scripts import worth
from scripts.collect import CollectConfig, collect
from scripts.encode import encode_rollouts
from scripts.evolve import EvolveConfig
from scripts.run_folder import RunFolder
from scripts.train_agent import AgentConfig
from scripts.train_dynamics import train as train_dynamics
from scripts.train_vae import train as train_vae
from worldvae import FrameSpec, ObjectiveConfig, VAETrainingConfig

SEED = 3
Z = 4
LEARNER = AgentConfig(
    backend="sync",
    num_envs=4,
    patience=None,
    learning=LearningConfig(env_steps=4 * 40, updates=1, sac=SACConfig(hidden=16), device="cpu"),
)
EVOLVER = EvolveConfig(
    backend="sync",
    evolution=EvolutionConfig(population=4, generations=2, rollouts=1, select_every=1, select_episodes=2, workers=1),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunFolder:
    folder = RunFolder(tmp_path_factory.mktemp("worth"))
    play = CollectConfig(
        "tests.pixel_env:tests/Dot-v0", episodes=10, backend="sync", num_envs=2, frame=FrameSpec(32, 32)
    )
    collect(folder, play)
    objective = ObjectiveConfig(sigma=0.1, free_bits=0.0)
    train_vae(folder, VAETrainingConfig(latent_size=Z, objective=objective, passes=2, seed=SEED, device="cpu"))
    encode_rollouts(folder)
    train_dynamics(folder, DynamicsConfig(mixtures=2, passes=2, batch_size=8, seed=SEED, device="cpu"))
    return folder


def test_all_are_judged_on_the_same_codec_and_see_what_is_said_of_them(run):
    rows = worth.entries(run, LEARNER, EVOLVER, episodes=3)
    assert [row["who"] for row in rows] == [*worth.LEARNERS, *worth.EVOLVED]
    for row in rows:
        assert row["train_seed"] == SEED
        assert len(row["returns"]) == 3
        assert row["mean"] == pytest.approx(np.mean(row["returns"]))
    assert {row["env_steps"]["train"] for row in rows[: len(worth.LEARNERS)]} == {4 * 40}

    def h_of(name: str, evolved: bool = False) -> np.ndarray | None:
        agent = Agent.load(worth.beside(run, name).path / ("evolved" if evolved else "agent"))
        return agent.memory.lstm.weight_hh_l0.detach().numpy() if agent.memory else None

    trained = h_of("z + h")
    assert [h_of("z"), h_of("stacked z"), h_of("z, evolved", True)] == [None] * 3
    np.testing.assert_array_equal(h_of("z + h, a quarter dreamt"), trained)
    np.testing.assert_array_equal(h_of("z + h, evolved", True), trained)
    assert not np.array_equal(h_of("z + h untrained"), trained)

    began = {path: path.stat().st_mtime_ns for path in (run.path / "worth").rglob("model.safetensors")}
    assert worth.entries(run, LEARNER, EVOLVER, episodes=3) == rows
    assert began == {path: path.stat().st_mtime_ns for path in (run.path / "worth").rglob("model.safetensors")}


def test_the_table_has_a_line_for_each_with_the_mean_of_its_seeds():
    rows = [
        {"who": who, "mean": mean, "env_steps_total": steps}
        for mean, steps in ((100.0, 10), (300.0, 20))
        for who in (*worth.LEARNERS, *worth.EVOLVED)
    ]
    lines = worth.table(rows).splitlines()
    assert len(lines) == 1 + len(worth.LEARNERS) + len(worth.EVOLVED)
    assert lines[1].split() == ["z", "200", "100,", "300", "10,", "20"]
