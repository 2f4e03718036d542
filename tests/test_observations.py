"""What a controller sees, against a plain list of what happened."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete, Tuple
from scipy import stats

from agents.agent import Agent, AgentSpec, LatentAgent
from agents.learning import Learner, LearningConfig
from agents.observations import (
    LatentStack,
    ObservationConfig,
    action_size,
    as_vector,
    from_vector,
    observation_size,
    observations_of,
)
from agents.world_model import WorldModel, WorldModelConfig
from worldvae import FrameVAE, FrameVAEConfig, LatentVectorObservation, make_vector_env
from worldvae.latents import LatentEpisode

BOX = Box(np.array([-1, 0, 0], np.float32), np.ones(3, np.float32))


def test_the_stack_holds_the_last_latents_and_the_last_action_of_each_episode():
    random = np.random.default_rng(0)
    config = ObservationConfig(stack=3)
    stack = LatentStack(config, 2, 4, 1)
    history: list[list[np.ndarray]] = [[], []]
    last_action = np.zeros((2, 1), np.float32)
    for t in range(12):
        started = np.array([t in (0, 5), t in (0, 8)])
        stack.reset(started)
        for i in np.flatnonzero(started):
            history[i] = []
            last_action[i] = 0
        z = random.standard_normal((2, 4)).astype(np.float32)
        seen = stack.push(z)
        for i in range(2):
            history[i].append(z[i])
            past = ([history[i][0]] * 3 + history[i])[-3:]
            np.testing.assert_array_equal(seen[i], np.concatenate([*past, last_action[i]]))
        last_action = random.standard_normal((2, 1)).astype(np.float32)
        stack.acted(last_action)


def test_peeking_shows_the_next_observation_and_changes_nothing():
    stack = LatentStack(ObservationConfig(stack=2), 1, 3, 2)
    z, action, following = np.ones((1, 3), np.float32), np.full((1, 2), 0.5, np.float32), np.full((1, 3), 2, np.float32)
    stack.push(z)
    stack.acted(action)
    peeked = stack.peek(following)
    np.testing.assert_array_equal(peeked, [[1, 1, 1, 2, 2, 2, 0.5, 0.5]])
    np.testing.assert_array_equal(stack.push(following), peeked)


def test_traces_are_weighted_sums_of_all_latents_of_the_episode():
    """Written out: the first latent has its weight and all of what would have been before it."""
    random, decay = np.random.default_rng(2), 0.8
    config = ObservationConfig(stack=1, last_action=False, traces=(decay, 0.5))
    stack = LatentStack(config, 1, 3, 1)
    assert observation_size(config, 3, BOX) == 9
    for length in (4, 6):  # the second episode remembers nothing of the first
        stack.reset(np.array([True]))
        z = random.standard_normal((length, 3)).astype(np.float32)
        for t in range(length):
            weights = (1 - decay) * decay ** np.arange(t, -1, -1)
            weights[0] = decay**t
            peeked = stack.peek(z[t][None]) if t else None
            seen = stack.push(z[t][None])
            np.testing.assert_allclose(seen[0, 3:6], weights @ z[: t + 1], atol=1e-6)
            if peeked is not None:
                np.testing.assert_array_equal(seen, peeked)


def test_a_recorded_episode_is_seen_as_it_was_played():
    random = np.random.default_rng(1)
    mean = random.standard_normal((5, 2)).astype(np.float32)
    actions = np.stack([BOX.sample() for _ in range(4)])
    episode = LatentEpisode(mean, mean, actions, np.zeros(4, np.float32), np.ones(5, bool), False, True)
    seen = observations_of(episode, ObservationConfig(stack=2), BOX)
    vectors = as_vector(actions, BOX)
    np.testing.assert_array_equal(seen[0], np.concatenate([mean[0], mean[0], np.zeros(3)]))
    for t in range(1, 5):
        np.testing.assert_array_equal(seen[t], np.concatenate([mean[t - 1], mean[t], vectors[t - 1]]))


def test_only_latents_are_seen_where_asked():
    config = ObservationConfig(stack=1, last_action=False)
    assert observation_size(config, 32, BOX) == 32
    assert LatentStack(config, 1, 32, 3).push(np.zeros((1, 32), np.float32)).shape == (1, 32)


SPACES = [
    BOX,
    Box(-2, 3, (2, 2), np.float32),
    Box(np.array([1, -1], np.float32), np.array([1, 1], np.float32)),  # one that can only be 1
    Box(np.array([-1.0, 0.1]), np.array([1.0, 0.3]), dtype=np.float64),
    Box(0, 255, (2,), np.uint8),
    Box(100, 200, (1,), np.uint8),
    Box(-128, 127, (1,), np.int8),
    Discrete(4),
    Discrete(3, start=-1),
    MultiDiscrete([3, 2, 4]),
    MultiDiscrete([3, 2], start=[-1, 5]),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_actions_survive_the_way_to_vectors_and_back(space):
    space.seed(0)
    actions = np.stack([np.asarray(space.sample()) for _ in range(50)])
    vectors = as_vector(actions, space)
    assert vectors.dtype == np.float32
    assert vectors.shape == (50, action_size(space))
    assert vectors.min() >= -1 - 1e-6
    assert vectors.max() <= 1 + 1e-6
    back = from_vector(vectors, space)
    assert back.dtype == space.dtype
    np.testing.assert_allclose(back, actions, atol=0 if np.issubdtype(space.dtype, np.integer) else 1e-6)
    assert all(space.contains(action) for action in back)


def test_the_vector_of_several_choices_is_their_one_hots_side_by_side():
    space = MultiDiscrete([3, 2], start=[-1, 5])
    np.testing.assert_array_equal(as_vector(np.array([[-1, 6], [1, 5]]), space), [[1, 0, 0, 0, 1], [0, 0, 1, 1, 0]])
    np.testing.assert_array_equal(from_vector(np.array([[0.1, 0.3, 0.2, 5, 4]], np.float32), space), [[0, 5]])


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_whatever_a_network_says_becomes_an_action_of_the_space(space):
    vectors = 3 * np.random.default_rng(0).standard_normal((50, action_size(space))).astype(np.float32)
    assert all(space.contains(action) for action in from_vector(vectors, space))


def test_the_ends_of_a_box_are_minus_one_and_one():
    space = Box(np.array([0, -2], np.float32), np.array([10, 2], np.float32))
    np.testing.assert_array_equal(as_vector(np.array([[0, 2], [10, -2], [5, 0]]), space), [[-1, 1], [1, -1], [0, 0]])


def test_actions_without_bounds_are_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"wrap it in gymnasium\.wrappers\.RescaleAction"):
        observation_size(ObservationConfig(), 32, Box(-np.inf, np.inf, (1,)))
    with pytest.raises(ValueError, match="bounded actions"):
        action_size(Box(np.array([-1, 0], np.float32), np.array([1, np.inf], np.float32)))


@pytest.mark.parametrize("space", [MultiBinary(3), Tuple([Discrete(2)]), MultiDiscrete([[2, 2], [2, 2]])], ids=str)
def test_other_action_spaces_are_refused_in_words(space):
    with pytest.raises(ValueError, match="agents play Box, Discrete and flat MultiDiscrete action spaces"):
        observation_size(ObservationConfig(), 32, space)


# ---- with the world model's memory

Z, A, H = 4, 3, 8


@pytest.fixture
def memory() -> WorldModel:
    """An untrained world model."""
    torch.manual_seed(0)
    return WorldModel(WorldModelConfig(Z, A, H, 2)).eval()


def played_alone(config: ObservationConfig, memory: WorldModel, z: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """The observations [T+1, O] of one episode, by the definition: h_t is the LSTM's output after t steps."""
    with torch.no_grad():
        h_tp1, _ = memory.lstm(torch.cat([torch.from_numpy(z[:-1]), torch.from_numpy(actions)], 1)[None])
    h = np.concatenate([np.zeros((1, H)), h_tp1[0].numpy()])
    before = np.concatenate([np.zeros((1, A)), actions])
    past = np.concatenate([z[:1].repeat(config.stack - 1, 0), z])
    stacked = np.stack([past[t : t + config.stack].ravel() for t in range(len(z))])
    return np.concatenate([stacked, *([before] if config.last_action else []), h], axis=1)


CONFIGS = [ObservationConfig(stack=1, last_action=False), ObservationConfig(stack=3)]


def test_z_and_h_alone_are_the_published_288_numbers():
    seen = observation_size(CONFIGS[0], 32, BOX, WorldModelConfig(32, 3, 256))
    assert seen == 288
    stack = LatentStack(CONFIGS[0], 2, 32, 3, WorldModel(WorldModelConfig(32, 3, 256)))
    assert stack.push(np.zeros((2, 32), np.float32)).shape == (2, 288)


@pytest.mark.parametrize("config", CONFIGS)
def test_each_environment_remembers_its_own_episode_and_starts_each_with_nothing(memory, config):
    random = np.random.default_rng(0)
    lengths = [[3, 5, 1, 7], [16], [1, 1, 1, 13], [9, 7]]
    codes = [[random.standard_normal((n + 1, Z)).astype(np.float32) for n in row] for row in lengths]
    actions = [[random.standard_normal((n, A)).astype(np.float32) for n in row] for row in lengths]
    expected = [
        [played_alone(config, memory, *e) for e in zip(*row, strict=True)] for row in zip(codes, actions, strict=True)
    ]
    stack = LatentStack(config, len(lengths), Z, A, memory)
    playing = [(0, 0) for _ in lengths]  # episode and time in each environment
    for _ in range(19):  # the last code of an episode makes way for the next one's first
        stack.reset(np.array([t == 0 for _, t in playing]))
        seen = stack.push(np.stack([codes[i][e][t] for i, (e, t) in enumerate(playing)]))
        taken = np.full((len(lengths), A), 99, np.float32)  # what was taken after an end means nothing
        for i, (e, t) in enumerate(playing):
            np.testing.assert_allclose(seen[i], expected[i][e][t], atol=1e-6)
            if t == 0:
                assert not seen[i, -H:].any()
            if t < lengths[i][e]:
                taken[i] = actions[i][e][t]
                playing[i] = (e, t + 1)
            else:
                playing[i] = ((e + 1) % len(lengths[i]), 0)
        stack.acted(taken)


def test_peeking_shows_h_of_the_next_observation_and_changes_nothing(memory):
    random = np.random.default_rng(0)
    stack = LatentStack(ObservationConfig(stack=2), 3, Z, A, memory)
    stack.push(random.standard_normal((3, Z)).astype(np.float32))
    for _ in range(4):
        stack.acted(random.standard_normal((3, A)).astype(np.float32))
        z_tp1 = random.standard_normal((3, Z)).astype(np.float32)
        peeked = stack.peek(z_tp1)
        np.testing.assert_array_equal(peeked, stack.peek(z_tp1))
        np.testing.assert_array_equal(peeked, stack.push(z_tp1))


@pytest.mark.parametrize("config", CONFIGS)
def test_a_recorded_episode_is_remembered_as_it_was_played(memory, config):
    random = np.random.default_rng(1)
    mean = random.standard_normal((7, Z)).astype(np.float32)
    actions = np.stack([BOX.sample() for _ in range(6)])
    episode = LatentEpisode(mean, mean, actions, np.zeros(6, np.float32), np.ones(7, bool), False, True)
    seen = observations_of(episode, config, BOX, memory)
    np.testing.assert_allclose(seen, played_alone(config, memory, mean, as_vector(actions, BOX)), atol=1e-6)
    stack = LatentStack(config, 1, Z, A, memory)
    for t in range(7):
        np.testing.assert_array_equal(stack.push(mean[t, None])[0], seen[t])
        stack.acted(as_vector(actions, BOX)[min(t, 5), None])


@pytest.mark.parametrize("architecture", ["sac", "controller"])
@pytest.mark.parametrize("space", [BOX, Discrete(3, start=-1)], ids=str)
def test_an_agent_with_memory_carries_it_in_its_file_and_acts_the_same(memory, tmp_path, space, architecture):
    spec = AgentSpec(ObservationConfig(stack=2), Z, "c" * 64, space, 4, 16, architecture, memory.config)
    torch.manual_seed(1)
    agent = Agent(spec).eval()
    for parameter in agent.actor.parameters():
        torch.nn.init.normal_(parameter)
    agent.memory.load_state_dict(memory.state_dict())
    agent.save(tmp_path)
    loaded, other = Agent.load(tmp_path), Agent.load(tmp_path)
    assert loaded.spec == spec
    torch.nn.init.normal_(other.memory.lstm.weight_ih_l0)
    random = np.random.default_rng(0)
    policies = [LatentAgent(one, 5) for one in (agent, loaded, other)]
    taken: list[list[np.ndarray]] = [[], [], []]
    for t in range(20):
        z = random.standard_normal((5, Z)).astype(np.float32)
        for policy, actions in zip(policies, taken, strict=True):
            policy.reset(np.arange(5) == t % 9)
            actions.append(policy.act(z))
    ours, theirs, others = map(np.stack, taken)
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(ours[0], others[0])  # h_0 = 0 whatever the memory
    assert (ours != others).any()
    assert all(space.contains(action) for action in ours.reshape(-1, *space.shape))


def test_among_choices_an_agent_draws_and_on_a_line_it_takes_the_most_likely():
    p = torch.tensor([0.5, 0.3, 0.2])
    for space in (Discrete(3), BOX):
        agent = Agent(AgentSpec(ObservationConfig(), Z, "c" * 64, space, 1, 16))
        for parameter in agent.actor.parameters():
            torch.nn.init.zeros_(parameter)
        last = list(agent.actor.parameters())[-1]
        last.data = p.log() if isinstance(space, Discrete) else torch.full_like(last, 0.4)
        policy = LatentAgent(agent, 2000)
        policy.reset(np.ones(2000, bool))
        actions = policy.act(np.zeros((2000, Z), np.float32))
        if isinstance(space, Discrete):
            assert stats.chisquare(np.bincount(actions, minlength=3), 2000 * p.double().numpy()).pvalue > 1e-3
        else:
            np.testing.assert_array_equal(actions, np.broadcast_to(actions[0], actions.shape))


def test_soft_actor_critic_refuses_several_choices_at_once_in_a_sentence():
    env = make_vector_env("tests/Dot-v0", 1, backend="sync", env_kwargs={"actions": "several"})
    with pytest.raises(ValueError, match="soft actor-critic plays Box and Discrete action spaces, not MultiDiscrete"):
        Learner(LatentVectorObservation(env, FrameVAE(FrameVAEConfig(latent_size=4))), LearningConfig(device="cpu"))
    env.close()
