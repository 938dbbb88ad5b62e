"""Episodes that a person plays in a window, with MiniGrid's and Gymnasium's own tools."""

import os
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import closing, redirect_stdout
from io import StringIO
from typing import Any

import gymnasium as gym
import numpy as np
import pygame
from gymnasium import spaces
from minigrid.manual_control import ManualControl
from minigrid.minigrid_env import MiniGridEnv

from mirl.agents.watch.caption import captioned, note_of, scaled
from mirl.agents.watch.episode import EpisodePlayer
from mirl.agents.watch.single_env import Env, open_env, render
from mirl.configs.errors import ConfigError
from mirl.configs.tasks import SuiteConfig

OTHER_KEYS = {"p": "tab", "d": "left shift", "t": "space", "return": "enter", "n": "backspace"}
"""Keys in addition to those of ``ManualControl``: the letters used in the terminal, and Enter under
pygame's name."""
QUIT_KEYS = ("q", "escape")
FORMER_ARROWS = {273: pygame.K_UP, 274: pygame.K_DOWN, 275: pygame.K_RIGHT, 276: pygame.K_LEFT}
"""Arrow keys by their codes in pygame 1, which Gymnasium's MountainCar still uses."""
END_SECONDS = 1.5
"""Time for which the end of an episode is shown."""
ZOOM = 2
"""Size of the window of Gymnasium's ``play``, relative to a captioned picture."""


def has_display() -> bool:
    """Return True if the environment variables indicate that a window can be opened."""
    if sys.platform != "linux":
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def has_keys(env: Env) -> bool:
    """Return True if an environment is from MiniGrid or names its keys, as a window needs.

    Args:
        env: the environment.
    """
    if isinstance(env.unwrapped, MiniGridEnv):
        return True
    return isinstance(env.action_space, spaces.Discrete) and env.has_wrapper_attr(
        "get_keys_to_action"
    )


def play(
    env: Env, suite: SuiteConfig, task_index: int, seed: int, write: Callable[[str], object]
) -> None:
    """Play episodes in a window until it is closed.

    Args:
        env: an environment from ``open_env`` for which ``has_keys`` is True.
        suite: its suite.
        task_index: index of its task.
        seed: seed of the first episode.
        write: writes text to the terminal: the missions and the outcomes.

    Raises:
        ConfigError: no window can be opened.
    """
    # without a display, pygame would draw into a window that nobody sees
    if not has_display() and "SDL_VIDEODRIVER" not in os.environ:
        raise ConfigError(
            "no window can be opened here, because neither DISPLAY nor WAYLAND_DISPLAY is set; "
            "use view=terminal"
        )
    try:
        if not isinstance(env.unwrapped, MiniGridEnv):
            _play_by_gymnasium(EpisodePlayer(env, suite, task_index), seed)
            return
        grid = open_env(suite, task_index, "human")
        assert grid is not None
        with closing(grid), warnings.catch_warnings():
            # MiniGrid requests a font by its file name, which pygame warns about
            warnings.filterwarnings("ignore", "The system font", UserWarning)
            write("arrows, p pick up, d drop, t toggle, Enter done; n next episode, q quit\n")
            GridControl(EpisodePlayer(grid, suite, task_index), seed, write).start()  # type: ignore[no-untyped-call]
    except pygame.error as error:
        raise ConfigError(f"no window can be opened here ({error}); use view=terminal") from error


class GridControl(ManualControl):
    """``ManualControl`` of MiniGrid that continues after an episode and reports its outcome.

    Args:
        player: the episodes, of an environment with ``render_mode="human"``.
        seed: seed of the first episode.
        write: writes text to the terminal.
    """

    def __init__(self, player: EpisodePlayer, seed: int, write: Callable[[str], object]) -> None:
        super().__init__(_ReportsItsEnd(player.env, self._stop), seed)
        self._player = player
        self._write = write

    def _stop(self) -> None:
        self.closed = True

    def reset(self, seed: int | None = None) -> None:
        """Start an episode.

        Args:
            seed: seed of the environment; None to continue with its generator.
        """
        self._player.start(seed)
        self._write(f"Task: {self._player.mission}\n")
        self._show()

    def step(self, action: int) -> None:
        """Take an action, and start the next episode if this one is over.

        Args:
            action: an action of MiniGrid, which not all environments support.
        """
        if not self._player.env.action_space.contains(int(action)):
            return
        self._player.step(int(action))
        self._show()
        if self._player.is_over:
            note = note_of(self._player)
            self._write(f"{note.step}, {note.result}\n")
            pygame.time.wait(round(1000 * END_SECONDS))
            pygame.event.clear(pygame.KEYDOWN)
            self.reset()

    def key_handler(self, event: Any) -> None:
        """Handle a pressed key.

        Args:
            event: the pygame event, whose ``key`` is the name of the key.
        """
        if self.closed:
            return
        if event.key in QUIT_KEYS:
            self.env.close()
            return
        event.key = OTHER_KEYS.get(event.key, event.key)
        # MiniGrid prints each key
        with redirect_stdout(StringIO()):
            super().key_handler(event)  # type: ignore[no-untyped-call]

    def _show(self) -> None:
        self.env.render()
        note = note_of(self._player)
        pygame.display.set_caption(f"{self._player.mission}: {note.step}, {note.result}")


class _ReportsItsEnd(gym.Wrapper[Any, Any, Any, Any]):
    """Wrapper that calls a function when the environment is closed."""

    def __init__(self, env: Env, stop: Callable[[], None]) -> None:
        super().__init__(env)
        self._report = stop

    def close(self) -> None:
        self._report()
        super().close()


class _Captioned(gym.Wrapper[Any, Any, Any, Any]):
    """Wrapper that plays the episodes of a player and puts a caption below the pictures."""

    def __init__(self, player: EpisodePlayer, seed: int) -> None:
        super().__init__(player.env)
        self._player = player
        self._seed: int | None = seed

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        if self._player.is_over:
            time.sleep(END_SECONDS)
        # Gymnasium's play resets twice before the first timestep
        if self._player.timestep:
            self._seed = None
        return self._player.start(self._seed), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        before = self._player.episode_return
        observation = self._player.step(action)
        reward = self._player.episode_return - before
        return observation, reward, self._player.is_over, False, {}

    def render(self) -> Any:
        picture = scaled(render(self._player.env))
        return np.asarray(captioned(picture, self._player.mission, note_of(self._player)))


def _play_by_gymnasium(player: EpisodePlayer, seed: int) -> None:
    """Play in real time with the keys that the environment names, until Escape."""
    with warnings.catch_warnings():
        # it imports matplotlib's Tk backend, and warns if Tk is missing as if matplotlib were
        warnings.simplefilter("ignore")
        from gymnasium.utils.play import play as play_in_real_time
    keys: dict[Any, int] = {}
    for combination, action in player.env.get_wrapper_attr("get_keys_to_action")().items():
        if isinstance(combination, tuple):
            combination = tuple(FORMER_ARROWS.get(key, key) for key in combination)
        keys[combination] = action
    # the no-op may have no keys, but Gymnasium does not accept an empty combination
    noop = keys.pop((), 0)
    fps = round(player.env.metadata.get("render_fps") or 30)
    play_in_real_time(_Captioned(player, seed), fps=fps, zoom=ZOOM, keys_to_action=keys, noop=noop)
