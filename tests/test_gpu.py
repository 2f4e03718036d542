"""What only a GPU can show: graphs replay what eager steps do, nothing waits for the host, codes agree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from agents.agent import Agent, AgentSpec
from agents.dream import Dream, DreamConfig, Starts
from agents.dream_play import DreamPlayer
from agents.play import Play
from agents.replay import TransitionBatch
from agents.sac import SAC, SACConfig
from tests.deadly import CERTAIN, FIRST_SEEN, SPACE, deadly, starts
from tests.dots import record_dots
from tests.test_training import OBJECTIVES
from worldvae import FrameVAE, FrameVAEConfig, ObjectiveConfig, VAETrainingConfig, train_vae
from worldvae.batches import frame_batches
from worldvae.checkpoint import load_tree
from worldvae.devices import out_of_memory_in_words
from worldvae.training import VAELearner, looks_back

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

CONFIG = VAETrainingConfig(
    latent_size=4, objective=ObjectiveConfig(sigma=0.1, free_bits=0.0), passes=8, device="cuda", warm_up=5
)
CUDA = torch.device("cuda")


def frames(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 64, 64, 3), dtype=torch.uint8, generator=generator).cuda()


def losses(learner: VAELearner, steps: int, first: int = 0) -> list[float]:
    return [learner.step(frames(32, seed=first + i))["loss"].item() for i in range(steps)]


def learner(objective: ObjectiveConfig = CONFIG.objective) -> VAELearner:
    return VAELearner(replace(CONFIG, objective=objective), FrameVAEConfig(latent_size=4), steps=40)


@pytest.mark.parametrize("name", ["plain", *OBJECTIVES])
def test_captured_steps_learn_what_eager_steps_learn(name):
    objective = {"plain": CONFIG.objective, **OBJECTIVES}[name]
    told = []
    for captured in (True, False):
        one = learner(objective)
        one.background = torch.full((1, 3, 64, 64), 0.5, device=CUDA) if objective.weighting == "background" else None
        if not captured:
            one._learn = one._gradient_step
        shape = (32, 2) if looks_back(objective) else (64,)
        told.append([one.step(frames(64, i).unflatten(0, shape))["loss"].item() for i in range(20)])
    assert told[0] == pytest.approx(told[1], rel=2e-2)  # bfloat16 over twenty steps


def test_a_learner_restored_in_the_middle_goes_on_as_the_unbroken_one():
    unbroken, begun, resumed = learner(), learner(), learner()
    losses(unbroken, 10)
    losses(begun, 10)
    losses(resumed, 5, first=100)  # it has captured a graph of its own before
    resumed.load_state_dict(begun.state_dict())
    assert losses(resumed, 10, first=10) == pytest.approx(losses(unbroken, 10, first=10), rel=2e-2)
    rates, expected = (
        [group["lr"] for o in one.optimisers.each for group in o.param_groups] for one in (resumed, unbroken)
    )
    assert rates == expected
    assert all(rate.is_cuda for rate in rates)


def test_a_step_never_waits_for_the_host():
    trained, batch = learner(), frames(32)
    for _ in range(6):  # warm-up, capture, replay
        trained.step(batch)
    try:
        with pytest.warns(UserWarning, match="prototype"):
            torch.cuda.set_sync_debug_mode("error")
        for _ in range(3):
            trained.step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("discrete", [False, True])
def test_an_agents_captured_updates_are_its_eager_ones_and_go_on_after_a_checkpoint(discrete):
    size, actions = 6, 3
    sacs = [SAC(size, actions, discrete, SACConfig(hidden=32), 0, CUDA) for _ in range(3)]
    captured, eager, resumed = sacs
    eager._learn = eager._gradient_step
    random = torch.Generator(CUDA).manual_seed(0)

    def batch() -> TransitionBatch:
        seen, seen_tp1 = torch.randn(2, 16, size, device=CUDA, generator=random)
        chosen = torch.rand(16, actions, device=CUDA, generator=random)
        taken = torch.nn.functional.one_hot(chosen.argmax(1), actions).float() if discrete else 2 * chosen - 1
        return TransitionBatch(seen, taken, seen[:, 0], (seen[:, 1] > -1).float(), seen_tp1)

    for i in range(20):
        if i == 10:
            resumed.load_state_dict(captured.state_dict())
        learned_from = batch()
        for sac in sacs[: 2 if i < 10 else 3]:
            sac.step(learned_from)
    for sac in (eager, resumed):
        for one, other in zip(captured.averaged.parameters(), sac.averaged.parameters(), strict=True):
            torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def test_batches_are_the_cpus_and_lie_on_the_gpu(tmp_path):
    store = record_dots(tmp_path, episodes=8)
    for budget in (4 << 30, 400_000):  # all at once, and in windows
        streams = [
            frame_batches(store, range(8), 16, 0, budget_bytes=budget, device=d) for d in (torch.device("cpu"), CUDA)
        ]
        for _ in range(30):
            on_cpu, on_gpu = map(next, streams)
            assert on_gpu.is_cuda
            assert torch.equal(on_gpu.cpu(), on_cpu)


def test_a_codec_trained_on_the_gpu_is_good_and_gives_the_cpus_codes(tmp_path):
    store = record_dots(tmp_path / "rollouts", episodes=24)
    vae = train_vae(store, CONFIG, tmp_path / "vae")
    some = store.visible_frames(0)
    on_cpu = FrameVAE.load(tmp_path / "vae").encode(some).mean
    torch.testing.assert_close(vae.encode(some).mean.cpu(), on_cpu, atol=2e-2, rtol=2e-2)  # TF32 convolutions
    assert load_tree(tmp_path / "vae" / "training.safetensors")["step"] > 0


def test_memory_that_the_gpu_does_not_have_is_said_in_words():
    with pytest.raises(RuntimeError, match="out of GPU memory: lower batch_size"):  # noqa: SIM117
        with out_of_memory_in_words("lower batch_size"):
            torch.empty(1 << 44, dtype=torch.uint8, device="cuda")


def test_captured_dreams_step_as_eager_ones_and_populations_live_as_on_the_cpu():
    """Graphs of several shapes, as dreams that are over are dropped, each writing where it did."""
    begin, cpu = starts(), deadly(-0.7)
    told = {}
    for device in ("cpu", "cuda"):
        model = deadly(-0.7).to(device)
        there = Starts(begin.z.to(device), (begin.state[0].to(device), begin.state[1].to(device)))
        agent = Agent(AgentSpec(FIRST_SEEN, 3, "", SPACE, 1, 0, "controller", cpu.config, sampled=True), cpu)
        weights = np.random.default_rng(0).normal(size=(32, len(agent.actor.weights)))
        weights[:, -1] += np.linspace(0, 2, 32)
        player = DreamPlayer(agent, model, there, DreamConfig(CERTAIN, most_steps=40))
        player.dream.draw_starts = lambda count, d=device: (torch.arange(count) % 5).to(d)
        told[device] = [player.play(Play(weights, tuple(range(8)), None)).returns for _ in range(3)]
        dream = Dream(model, there, 5, DreamConfig(CERTAIN))
        dream.begin(torch.arange(5, device=device))
        told[f"codes {device}"] = [dream.step(torch.zeros(5, 1, device=device)) and dream.z.cpu() for _ in range(6)]
    for one, other in zip(told["codes cpu"], told["codes cuda"], strict=True):
        torch.testing.assert_close(one, other, atol=0.05, rtol=0.05)
    assert np.mean(told["cpu"][0] == told["cuda"][2]) > 0.9, "chaotic dreams may part by a rounding"
