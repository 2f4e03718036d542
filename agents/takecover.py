"""VizDoom's TakeCover as World Models plays it (Ha & Schmidhuber 2018, appendix): built from the scenario.

``agents.takecover:TakeCover-v0`` is its Gymnasium id, at skill 5 as published. Today's skill 5 is harder than that
game was: random actions live 71 tics, published 210. At today's skill 4 they live 218: ``TakeCoverSkill4-v0``. The
packaged ``VizdoomTakeCover-v1`` has skill 4, no time limit and another screen; ``PackagedTakeCover-v0`` is that game,
seen and steered as ours.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

ROWS = 400
"""Of 480; those below show the player's state."""
TICS = 2100
FIREBALL = "DoomImpBall"


class TakeCover(gymnasium.Env):
    """Dodge the imps' fireballs: reward 1 a tic alive; a step is one tic, 2,100 at most.

    Observations are uint8 [400, 640, 3]. The action's one number moves left below -1/3, right above 1/3. While
    ``drawn`` is false, steps that end nothing return the frame before them, in a quarter of the time.

    Args:
        skill: 1 to 5, the game's difficulty.
        objects: tell in ``info["objects"]`` where fireballs are seen to fly, float32 [n, 2]: x and y of the middles of
            what is seen of each, in pixels of the screen.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 35}  # noqa: RUF012
    drawn = True

    def __init__(self, render_mode: str | None = None, skill: int = 5, objects: bool = False):
        try:
            import vizdoom
        except ImportError as error:
            raise gymnasium.error.DependencyNotInstalled("TakeCover needs: pip install 'worldvae[doom]'") from error
        self.render_mode, self.objects = render_mode, objects
        self.observation_space = Box(0, 255, (ROWS, 640, 3), np.uint8)
        self.action_space = Box(-1, 1, (1,), np.float32)
        self.game = game = vizdoom.DoomGame()
        game.load_config(str(Path(vizdoom.scenarios_path) / "take_cover.cfg"))
        game.set_doom_skill(skill)
        game.set_episode_timeout(TICS)
        game.set_screen_resolution(vizdoom.ScreenResolution.RES_640X480)
        game.set_screen_format(vizdoom.ScreenFormat.RGB24)
        game.set_window_visible(False)
        game.set_labels_buffer_enabled(objects)  # else a tenth slower
        game.set_mode(vizdoom.Mode.PLAYER)
        game.set_doom_config_path(str(Path(tempfile.gettempdir()) / "_vizdoom.ini"))  # not into the working folder
        game.init()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.game.set_seed(int(self.np_random.integers(2**31)))
        self.game.new_episode()
        return self._observation()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        way = direction(action)
        self.game.set_action([way == "left", way == "right"])
        self.game.advance_action(1, self.drawn)
        truncated = self.game.is_episode_timeout_reached()  # the game then also calls the episode finished
        terminated = self.game.is_episode_finished() and not truncated
        observation, info = self._observation()
        return observation, 1.0, terminated, truncated, info

    def render(self) -> NDArray[np.uint8]:
        return self._observation()[0]

    def close(self) -> None:
        self.game.close()

    def _observation(self) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """The screen, and what there is to tell; after the end all zeros, as the game has no state then."""
        state = None if self.game.is_episode_finished() else self.game.get_state()
        screen = np.zeros((ROWS, 640, 3), np.uint8) if state is None else state.screen_buffer[:ROWS]
        return screen, {"objects": _fireballs(state)} if self.objects else {}


def direction(action: Any) -> str:
    """What the action's one number means: left, still or right."""
    steer = float(np.ravel(action)[0])
    return "left" if steer < -1 / 3 else "right" if steer > 1 / 3 else "still"


def _fireballs(state: Any) -> NDArray[np.float32]:
    """The middles [n, 2] of what is seen of those that fly: one that has burst still has its name, but stands."""
    middles = []
    for ball in state.labels if state is not None else ():
        if ball.object_name == FIREBALL and (ball.object_velocity_x or ball.object_velocity_y):
            rows, columns = np.nonzero(state.labels_buffer[:ROWS, ball.x : ball.x + ball.width] == ball.value)
            if len(rows):  # else hidden behind another
                middles.append((ball.x + columns.mean() + 0.5, rows.mean() + 0.5))
    return np.array(middles, np.float32).reshape(-1, 2)


class PackagedTakeCover(gymnasium.Wrapper):
    """``VizdoomTakeCover-v1`` for agents of ``TakeCover``: the upper 200 of its 240 rows, steered by one number."""

    CHOICES = {"still": 0, "right": 1, "left": 2}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None):
        try:
            import vizdoom.gymnasium_wrapper  # noqa: F401
        except ImportError as error:
            raise gymnasium.error.DependencyNotInstalled("TakeCover needs: pip install 'worldvae[doom]'") from error
        super().__init__(gymnasium.make("VizdoomTakeCover-v1", render_mode=render_mode))
        self.observation_space = Box(0, 255, (200, 320, 3), np.uint8)
        self.action_space = Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return observation["screen"][:200], info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(self.CHOICES[direction(action)])
        return observation["screen"][:200], float(reward), terminated, truncated, info


gymnasium.register("PackagedTakeCover-v0", entry_point="agents.takecover:PackagedTakeCover")
gymnasium.register("TakeCover-v0", entry_point="agents.takecover:TakeCover")
gymnasium.register("TakeCoverSkill4-v0", entry_point="agents.takecover:TakeCover", kwargs={"skill": 4})
