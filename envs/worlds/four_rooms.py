"""Four rooms with a goal to reach, told as a cell's coordinates or as the picture that the agent would see there."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from minigrid.core.constants import COLOR_NAMES
from minigrid.core.grid import Grid
from minigrid.core.mission import MissionSpace
from minigrid.core.world_object import Floor
from minigrid.minigrid_env import MiniGridEnv
from numpy.typing import NDArray

from mirl.configs.errors import ConfigError, nearest
from mirl.configs.keys import ACHIEVED_GOAL_KEY, DESIRED_GOAL_KEY
from mirl.envs.spaces import GRID_HIGH

GoalKind = Literal["cell", "picture"]
RewardKind = Literal["time", "sparse"]
Info = Mapping[str, Any]

N_MOVEMENTS = 3
"""Turn left, turn right, go forward: MiniGrid's first actions."""


class ReachEnv(MiniGridEnv):
    """Walls cross in the middle of a square, and a gap at a random place of each of the four lets the agent through.

    The floor of each room has a color of its own; start and goal are random. Observed are, besides the two goals,
    ``direction`` and MiniGrid's symbolic view: under ``image``, or, if the goal is a picture, as ``achieved_goal``.
    Pictures that are equal are one goal.

    Args:
        goal: (x, y) of a cell, or the view from a cell in some direction.
        reward: reaching the goal is worth 1 − 0.9 t/T, as in MiniGrid (``time``), or each timestep costs 1 until then
            (``sparse``), which hindsight replay can recompute.
        size: cells per side, walls included; odd, at least 7.
        max_steps: T, after which an episode is truncated.
        render_mode: MiniGrid's.

    Raises:
        ConfigError: an argument is not one of those.
    """

    def __init__(
        self,
        goal: GoalKind = "cell",
        reward: RewardKind = "time",
        size: int = 9,
        max_steps: int = 100,
        render_mode: str | None = None,
    ) -> None:
        for name, value, known in (
            ("goal", goal, get_args(GoalKind)),
            ("reward", reward, get_args(RewardKind)),
        ):
            if value not in known:
                raise ConfigError(
                    f"{name} must be one of {', '.join(known)}, got {value!r}."
                    + nearest(value, known)
                )
        if size < 7 or size % 2 == 0:
            raise ConfigError(f"size must be odd and at least 7, got {size}")
        self._goal_kind, self._reward_kind = goal, reward
        self.goal_pos: tuple[int, int] = (1, 1)
        """Cell (x, y) of the goal."""
        self.goal_dir = 0
        """Direction in which the goal's picture looks."""
        mission = MissionSpace(mission_func=lambda: "reach the goal")
        super().__init__(mission, grid_size=size, max_steps=max_steps, render_mode=render_mode)
        picture = _picture_space(self.agent_view_size)
        place = picture if goal == "picture" else spaces.Box(1, size - 2, (2,), np.float32)
        keys: dict[str, spaces.Space[Any]] = {
            "direction": spaces.Discrete(4),
            ACHIEVED_GOAL_KEY: place,
            DESIRED_GOAL_KEY: place,
        }
        self.observation_space = spaces.Dict(
            keys if goal == "picture" else {"image": picture, **keys}
        )
        self.action_space = spaces.Discrete(N_MOVEMENTS)

    def compute_reward(
        self, achieved_goal: NDArray[Any], desired_goal: NDArray[Any], info: Info | Sequence[Info]
    ) -> NDArray[np.float32]:
        """The reward of having achieved one goal where another was desired: of one pair, or of each of a batch.

        Raises:
            ConfigError: ``reward=time``, and an info does not tell the timestep, as in hindsight replay.
        """
        reached = self.is_reached(achieved_goal, desired_goal)
        if self._reward_kind == "sparse":
            return reached.astype(np.float32) - 1
        infos = [info] if isinstance(info, Mapping) else info
        if not all("step_count" in one for one in infos):
            raise ConfigError(
                "hindsight replay forgets the time, which reward=time depends on; use reward=sparse"
            )
        steps = np.array([one["step_count"] for one in infos]).reshape(reached.shape)
        return np.where(reached, 1 - 0.9 * steps / self.max_steps, 0.0).astype(np.float32)

    def is_reached(
        self, achieved_goal: NDArray[Any], desired_goal: NDArray[Any]
    ) -> NDArray[np.bool_]:
        """Whether one goal is the other: of one pair, or of each of a batch."""
        goal_axes = (-1,) if self._goal_kind == "cell" else (-3, -2, -1)
        return np.asarray(
            (np.asarray(achieved_goal) == np.asarray(desired_goal)).all(axis=goal_axes)
        )

    def step(  # type: ignore[override]  # MiniGrid leaves its type open
        self, action: Any
    ) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Move; the episode terminates at the goal."""
        observation, _, _, truncated, _ = super().step(action)
        achieved, desired = observation[ACHIEVED_GOAL_KEY], observation[DESIRED_GOAL_KEY]
        reached = bool(self.is_reached(achieved, desired))
        info = {"step_count": self.step_count, "is_success": reached}
        return (
            observation,
            float(self.compute_reward(achieved, desired, info)),
            reached,
            truncated,
            info,
        )

    def gen_obs(self) -> dict[str, Any]:
        """The observation: what is seen, the goal that this achieves, and the one to reach."""
        goals = {ACHIEVED_GOAL_KEY: self._achieved(), DESIRED_GOAL_KEY: self._desired.copy()}
        seen = {} if self._goal_kind == "picture" else {"image": self._picture()}
        return {**seen, "direction": self.agent_dir, **goals}

    def _picture(self) -> NDArray[np.uint8]:
        picture: NDArray[np.uint8] = super().gen_obs()["image"]  # type: ignore[no-untyped-call]
        return picture

    def _achieved(self) -> NDArray[Any]:
        return (
            self._picture()
            if self._goal_kind == "picture"
            else np.array(self.agent_pos, np.float32)
        )

    def _gen_grid(self, width: int, height: int) -> None:
        self.grid = _four_rooms(width, self.np_random)
        free = [(x, y) for x in range(width) for y in range(height) if _is_free(self.grid, x, y)]
        self.agent_pos, self.agent_dir = self._random_pose(free)
        self.goal_pos, self.goal_dir, self._desired = (
            self.agent_pos,
            self.agent_dir,
            self._achieved(),
        )
        while self.is_reached(self._achieved(), self._desired):
            self.agent_pos, self.agent_dir = self._random_pose(free)
        self.mission = f"reach cell {self.goal_pos}"

    def _random_pose(self, free: list[tuple[int, int]]) -> tuple[tuple[int, int], int]:
        return free[self.np_random.integers(len(free))], int(self.np_random.integers(4))


def _four_rooms(size: int, random: np.random.Generator) -> Grid:
    grid, middle = Grid(size, size), size // 2
    grid.wall_rect(0, 0, size, size)
    grid.vert_wall(middle, 0)
    grid.horz_wall(0, middle)
    halves = range(1, middle), range(middle + 1, size - 1)
    colors = iter(random.permutation(COLOR_NAMES).tolist())
    for half in halves:
        grid.set(middle, int(random.choice(half)), None)
        grid.set(int(random.choice(half)), middle, None)
        for other in halves:
            floor = Floor(next(colors))
            for x in half:
                for y in other:
                    grid.set(x, y, floor)
    return grid


def _is_free(grid: Grid, x: int, y: int) -> bool:
    cell = grid.get(x, y)
    return cell is None or bool(cell.can_overlap())


def _picture_space(view_size: int) -> spaces.Box:
    high = np.broadcast_to(np.asarray(GRID_HIGH, np.uint8), (view_size, view_size, 3)).copy()
    return spaces.Box(np.zeros_like(high), high, high.shape, np.uint8)


gym.register(
    "MIRL/ReachCell-v0", entry_point="mirl.envs.worlds.four_rooms:ReachEnv", kwargs={"goal": "cell"}
)
gym.register(
    "MIRL/ReachPicture-v0",
    entry_point="mirl.envs.worlds.four_rooms:ReachEnv",
    kwargs={"goal": "picture"},
)
