"""See the dream: real | reconstruction | dream from the same start, or play inside it with the arrow keys."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box

from agents.dream import DreamConfig, DreamVectorEnv
from agents.forecasts import CONTEXT
from agents.observations import action_size, as_vector, from_vector
from agents.world_model import WorldModel
from scripts import cli
from scripts.dreaming import dreaming
from scripts.run_folder import RunFolder
from worldvae.checkpoint import read_json
from worldvae.frames import Frames
from worldvae.latents import LatentStore
from worldvae.pictures import grid, save_film, save_png, side_by_side
from worldvae.policies import CorrelatedPolicy
from worldvae.rollouts import RolloutStore, split_episodes
from worldvae.vae import FrameVAE

FILMED = 120
"""Frames: the GIF of 250 takes 40 s, that of 500 is 9 MB."""
Player = Callable[[], np.ndarray | None]
"""The next action as a vector [A]; None: enough."""


def film(run: RunFolder, model: WorldModel, episode: int, temperature: float = 1.0, seed: int = 0) -> list[Path]:
    """real | reconstruction | dream of an episode's first ``FILMED`` frames, as a film and, step by step, as a picture.

    The dream is given the first real codes, then only the actions; it feeds on its own draws.
    """
    store, latents, vae = RolloutStore(run.rollouts), LatentStore(run.latents), FrameVAE.load(run.vae)
    told = latents[episode]
    seen = min(FILMED, max(2, int(told.visible.cumprod().sum())))  # all, or all but a blanked last frame
    codes, frames = told.mean[:seen], store[episode].frames[:seen]
    known = min(CONTEXT, seen - 1)
    actions = as_vector(told.actions, store.action_space)[: seen - 1]
    dream = model.imagine(
        torch.from_numpy(codes[None, :known]),
        torch.from_numpy(actions[None]),
        torch.Generator().manual_seed(seed),
        temperature,
    )
    columns = [frames[known:], vae.decode(codes[known:]), vae.decode(dream[0].numpy())]
    shown = [i for i in (0, 1, 3, 7, 15, 31, 63) if i < len(columns[0])]
    run.pictures.mkdir(parents=True, exist_ok=True)
    save_png(run.pictures / "dream.png", grid(np.stack(columns)[:, shown]))
    return [run.pictures / "dream.png", *save_film(run.pictures / "dream", side_by_side(columns), fps=10)]


def longest_held_out(run: RunFolder) -> int:
    """The longest of the episodes that the world model did not learn from."""
    store, trained = RolloutStore(run.rollouts), read_json(run.dynamics / "config.json")["training"]
    _, held_out = split_episodes(len(LatentStore(run.latents)), trained["held_out"], trained["seed"])
    return max(held_out, key=lambda i: store.header(i)["length"])


def dreamt(env: DreamVectorEnv, player: Player, seed: int) -> Iterator[Frames]:
    """The frames of one dream, uint8 [H, W, C] each, until it or the player ends."""
    env.reset(seed=seed)
    over = False
    while not over:
        yield (env.render() or ())[0]
        if (vector := player()) is None:
            return
        _, _, terminated, truncated, _ = env.step(from_vector(vector[None], env.single_action_space))
        over = bool(terminated[0] or truncated[0])


def wandering(space: gymnasium.Space, seed: int) -> Player:
    """Who plays where there is no keyboard: correlated random actions."""
    policy = CorrelatedPolicy(space, 1, seed)
    return lambda: as_vector(policy.act(np.zeros((1, 1))), space)[0]


def steered(space: gymnasium.Space, left: bool, right: bool, up: bool, down: bool) -> np.ndarray:
    """Arrow keys -> an action's vector [A].

    Of a Box the first number is left and right, the second up, the third down (or the second both); of discrete
    actions the first does nothing and the next four are left, right, up and down.
    """
    vector = np.zeros(action_size(space), np.float32)
    if not isinstance(space, Box):
        vector[next((i for i, key in enumerate((left, right, up, down), 1) if key and i < len(vector)), 0)] = 1
        return vector
    wanted = [float(right) - left, float(up) - down if len(vector) == 2 else 2.0 * up - 1, 2.0 * down - 1]
    vector[: len(wanted)] = wanted[: len(vector)]
    return vector


def window(env: DreamVectorEnv, seed: int, fps: float) -> None:
    """Plays dreams in a window until it is closed."""
    try:
        import pygame
    except ImportError as error:
        raise ImportError("playing in a window needs: pip install 'worldvae[view]'") from error
    pygame.init()
    screen, clock, height = pygame.display.set_mode((640, 640)), pygame.time.Clock(), 640
    arrows = (pygame.K_LEFT, pygame.K_RIGHT, pygame.K_UP, pygame.K_DOWN)

    closed = False

    def player() -> np.ndarray | None:
        nonlocal closed
        clock.tick(fps)
        closed = any(event.type == pygame.QUIT for event in pygame.event.get())
        if closed:
            return None
        keys = pygame.key.get_pressed()
        return steered(env.single_action_space, *(bool(keys[arrow]) for arrow in arrows))

    while not closed:
        for frame in dreamt(env, player, seed):
            surface = pygame.surfarray.make_surface(frame.swapaxes(0, 1))
            screen.blit(pygame.transform.scale(surface, (height, height)), (0, 0))
            pygame.display.flip()
        seed += 1
    pygame.quit()


def has_display() -> bool:
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")) or sys.platform in ("win32", "darwin")


def main(
    run: cli.Run,
    play: bool = False,
    episode: int | None = None,
    temperature: float = 1.0,
    steps: int = 500,
    fps: float = 20.0,
    seed: int = 0,
) -> None:
    """Film a dream beside reality into RUN/pictures, or play inside the dream.

    Args:
        play: open a window; without a display it is filmed, played at random.
        episode: of RUN/rollouts; by default the longest that the world model did not learn from.
        temperature: of the dream.
        steps: of a dream that is played, at most.
        fps: of play.
        seed: of the dream.
    """
    folder = RunFolder(run)
    store, vae = RolloutStore(folder.rollouts), FrameVAE.load(folder.vae)
    if not play:
        model = WorldModel.load(folder.dynamics, vae.sha256)
        chosen = longest_held_out(folder) if episode is None else episode
        for path in film(folder, model, chosen, temperature, seed):
            print(path)
        return
    model, starts = dreaming(folder, store, vae, 0, seed)
    env = DreamVectorEnv(model, starts, 1, store.action_space, DreamConfig(temperature, steps), vae)
    if has_display():
        window(env, seed, fps)
        return
    frames = list(dreamt(env, wandering(store.action_space, seed), seed))
    for path in save_film(folder.pictures / "dream_played", side_by_side([np.stack(frames)]), fps):
        print(path)


if __name__ == "__main__":
    cli.run(main)
