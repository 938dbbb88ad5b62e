"""Episodes say what was done in them and how they ended."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from mirl.agents.watch.episode import EpisodePlayer
from mirl.agents.watch.single_env import open_env
from mirl.configs.tasks import SuiteConfig, TaskConfig


class EndsEnv(gym.Env[Any, Any]):
    """An environment whose action says how the episode ends: 0 goes on, 1 ends it, 2 cuts it."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space = spaces.Box(-1, 1, (2,), np.float32)

    def __init__(
        self, success: bool | None = None, continuous: bool = False, render_mode: str | None = None
    ) -> None:
        self.success = success
        self.render_mode = render_mode
        self.action_space = spaces.Box(-1, 1, (2,)) if continuous else spaces.Discrete(3)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        info = {} if self.success is None else {"is_success": self.success}
        end = 0 if isinstance(self.action_space, spaces.Box) else action
        return np.zeros(2, np.float32), 0.5, end == 1, end == 2, info

    def render(self) -> np.ndarray:  # type: ignore[override]
        return np.zeros((8, 8, 3), np.uint8)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    gym.register("ToyEnds-v0", entry_point=EndsEnv)
    yield
    del gym.registry["ToyEnds-v0"]


def player_of(env_id: str = "ToyEnds-v0", **kwargs: Any) -> EpisodePlayer:
    suite = SuiteConfig(name="s", tasks=(TaskConfig(name="t", env_id=env_id, kwargs=kwargs),))
    env = open_env(suite, 0)
    assert env is not None
    return EpisodePlayer(env, suite, 0)


@pytest.mark.parametrize(
    ("success", "action", "outcome", "ending"),
    [
        (True, 1, "success", "success"),
        (True, 2, "success", "success"),
        (False, 1, "failure", "failure"),
        (False, 2, "failure", "failure: time limit"),
        (None, 1, "over", "episode over"),
        (None, 2, "over", "time limit"),
    ],
)
def test_ending_is_in_words(success: bool | None, action: int, outcome: str, ending: str) -> None:
    player = player_of(success=success)
    with closing(player.env):
        player.start(0)
        player.step(0)
        assert (player.is_over, player.ending) == (False, "")
        player.step(action)
        assert (player.outcome, player.ending) == (outcome, ending)
        assert (player.timestep, player.episode_return) == (2, 1.0)
        player.start(None)
        assert (player.timestep, player.episode_return, player.ending) == (0, 0.0, "")


def test_actions_have_names_or_numbers() -> None:
    """MiniGrid names its actions, others are numbers; continuous ones are rounded."""
    plain = player_of()
    grid = player_of("MiniGrid-GoToDoor-5x5-v0")
    continuous = player_of(continuous=True)
    with closing(plain.env), closing(grid.env), closing(continuous.env):
        assert plain.action_names == ["0", "1", "2"]
        assert grid.action_names[:3] == ["left", "right", "forward"]
        grid.start(0)
        assert grid.last_action == ""
        grid.step(1)
        assert grid.last_action == "right"
        assert grid.mission.startswith("go to the ")
        assert continuous.action_names == []
        assert continuous.name_of(np.array([0.123, -1])) == "0.12 -1.00"
        assert continuous.mission == "t"
