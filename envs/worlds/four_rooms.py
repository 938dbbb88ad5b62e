"""Four rooms with a goal to reach, given as the coordinates of a cell or as the view from it."""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

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
from mirl.envs.contract.codes import grid_high
from mirl.envs.type_aliases import AnySpace, Array, Info, Observation

GoalKind = Literal["cell", "picture"]
RewardKind = Literal["time", "sparse"]
Cell = tuple[int, int]
"""Column x and row y of a cell."""

N_MOVEMENTS = 3
"""Turn left, turn right, go forward: MiniGrid's first actions."""
N_DIRECTIONS = 4
"""Right, down, left, up."""
MIN_SIZE = 7
"""Smallest grid whose rooms have more than one cell."""


class ReachEnv(MiniGridEnv):
    """Reach a goal in four rooms that are connected by gaps at random places.

    The floor of each room has its own color; start and goal are random. Besides the two goals, the
    observation holds ``direction`` and MiniGrid's symbolic view: under ``image``, or, if the goal
    is a picture, as ``achieved_goal``. Equal pictures are the same goal.

    Args:
        goal: ``cell`` for coordinates (x, y), ``picture`` for the view from a cell in a direction.
        reward: ``time`` rewards reaching the goal at timestep t with 1 − 0.9 t/T, as MiniGrid
            does; ``sparse`` gives −1 per timestep until then, which hindsight experience replay
            can recompute.
        size: cells per side, walls included; odd, at least 7.
        max_steps: T, the timesteps after which an episode is truncated.
        render_mode: render mode of MiniGrid.

    Raises:
        ConfigError: if an argument is not valid.
    """

    def __init__(
        self,
        goal: GoalKind = "cell",
        reward: RewardKind = "time",
        size: int = 9,
        max_steps: int = 100,
        render_mode: str | None = None,
    ) -> None:
        _check_choice("goal", goal, get_args(GoalKind))
        _check_choice("reward", reward, get_args(RewardKind))
        if size < MIN_SIZE or size % 2 == 0:
            raise ConfigError(f"size must be odd and at least {MIN_SIZE}, got {size}")
        self._goal_kind = goal
        self._reward_kind = reward
        self.goal_pos: Cell = (1, 1)
        """Cell (x, y) of the goal."""
        self.goal_dir = 0
        """Direction of the view that is the goal."""
        # MiniGrid needs a mission space, although the observation has goals instead of a mission.
        mission = MissionSpace(mission_func=lambda: "reach the goal")
        super().__init__(mission, grid_size=size, max_steps=max_steps, render_mode=render_mode)
        picture_space = _picture_space(self.agent_view_size)
        subspaces: dict[str, AnySpace] = {"direction": spaces.Discrete(N_DIRECTIONS)}
        if goal == "picture":
            goal_space = picture_space
        else:
            goal_space = spaces.Box(1, size - 2, (2,), np.float32)
            subspaces["image"] = picture_space
        subspaces[ACHIEVED_GOAL_KEY] = goal_space
        subspaces[DESIRED_GOAL_KEY] = goal_space
        self.observation_space = spaces.Dict(subspaces)
        self.action_space = spaces.Discrete(N_MOVEMENTS)

    def compute_reward(
        self,
        achieved_goal: Array,
        desired_goal: Array,
        info: Mapping[str, object] | Sequence[Mapping[str, object]],
    ) -> NDArray[np.float32]:
        """Return the rewards for achieved goals, given the desired goals.

        Args:
            achieved_goal: a goal, or a batch of B goals with a leading axis.
            desired_goal: the same for the desired goals.
            info: the info of the timestep, or B infos.

        Returns:
            Rewards, () or (B,).

        Raises:
            ConfigError: if ``reward="time"`` and an info has no ``step_count``, as in hindsight
                experience replay.
        """
        reached = self.is_reached(achieved_goal, desired_goal)
        if self._reward_kind == "sparse":
            return reached.astype(np.float32) - 1
        infos = [info] if isinstance(info, Mapping) else info
        if not all("step_count" in one for one in infos):
            raise ConfigError(
                "reward=time needs 'step_count' in every info, which hindsight experience replay "
                "does not keep; use reward=sparse"
            )
        step_counts = np.array([one["step_count"] for one in infos]).reshape(reached.shape)
        rewards = 1 - 0.9 * step_counts / self.max_steps
        return np.where(reached, rewards, 0.0).astype(np.float32)

    def is_reached(self, achieved_goal: Array, desired_goal: Array) -> NDArray[np.bool_]:
        """Return True where the goals are equal.

        Args:
            achieved_goal: a goal, or a batch of B goals with a leading axis.
            desired_goal: the same for the desired goals.

        Returns:
            Booleans, () or (B,).
        """
        # A cell has one axis, a picture three: (W, H, 3).
        goal_axes = (-1,) if self._goal_kind == "cell" else (-3, -2, -1)
        is_equal = np.asarray(achieved_goal) == np.asarray(desired_goal)
        return np.asarray(is_equal.all(axis=goal_axes))

    def step(  # type: ignore[override]  # MiniGrid leaves its type open
        self, action: int
    ) -> tuple[Observation, float, bool, bool, Info]:
        """Move; the episode terminates at the goal.

        Args:
            action: 0 to turn left, 1 to turn right, 2 to go forward.

        Returns:
            Observation, reward, terminated, truncated and info.
        """
        # MiniGrid terminates on goal and lava cells, of which there are none here.
        observation, _, _, truncated, _ = super().step(action)
        achieved = observation[ACHIEVED_GOAL_KEY]
        desired = observation[DESIRED_GOAL_KEY]
        reached = bool(self.is_reached(achieved, desired))
        info = {"step_count": self.step_count, "is_success": reached}
        reward = float(self.compute_reward(achieved, desired, info))
        return observation, reward, reached, truncated, info

    def gen_obs(self) -> Info:
        """Return the observation, with the achieved and the desired goal."""
        observation: Info = {}
        if self._goal_kind == "cell":
            observation["image"] = self._picture()
        observation["direction"] = self.agent_dir
        observation[ACHIEVED_GOAL_KEY] = self._achieved_goal()
        observation[DESIRED_GOAL_KEY] = self._desired.copy()
        return observation

    def _picture(self) -> NDArray[np.uint8]:
        """Return MiniGrid's symbolic view, (W, H, 3)."""
        picture: NDArray[np.uint8] = super().gen_obs()["image"]  # type: ignore[no-untyped-call]
        return picture

    def _achieved_goal(self) -> Array:
        """Return the goal that the agent's position and direction achieve."""
        if self._goal_kind == "picture":
            return self._picture()
        return np.array(self.agent_pos, np.float32)

    def _gen_grid(self, width: int, height: int) -> None:
        """Draw walls, gaps, goal and start."""
        self.grid = _four_rooms(width, self.np_random)
        free = [cell for cell in np.ndindex(width, height) if _is_free(self.grid, *cell)]
        # The goal's picture is what the agent sees at the goal.
        self.agent_pos, self.agent_dir = self._random_pose(free)
        self.goal_pos = self.agent_pos
        self.goal_dir = self.agent_dir
        self._desired = self._achieved_goal()
        # Another cell can show the same picture, so the start is compared by its achieved goal.
        while self.is_reached(self._achieved_goal(), self._desired):
            self.agent_pos, self.agent_dir = self._random_pose(free)
        self.mission = f"reach cell {self.goal_pos}"

    def _random_pose(self, free: Sequence[Cell]) -> tuple[Cell, int]:
        cell = free[int(self.np_random.integers(len(free)))]
        direction = int(self.np_random.integers(N_DIRECTIONS))
        return cell, direction


def _check_choice(name: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise ConfigError(
            f"{name} must be one of {', '.join(valid)}, got {value!r}." + nearest(value, valid)
        )


def _four_rooms(size: int, rng: np.random.Generator) -> Grid:
    """Return a grid of two crossing walls with a gap in each of their four halves."""
    grid = Grid(size, size)
    middle = size // 2
    grid.wall_rect(0, 0, size, size)
    grid.vert_wall(middle, 0)
    grid.horz_wall(0, middle)
    halves = (range(1, middle), range(middle + 1, size - 1))
    # The order of the random draws decides the layouts of all seeds: colors, then gaps.
    colors = iter(rng.permutation(COLOR_NAMES).tolist())
    for columns in halves:
        # One gap in the vertical wall and one in the horizontal wall.
        grid.set(middle, int(rng.choice(columns)), None)
        grid.set(int(rng.choice(columns)), middle, None)
        for rows in halves:
            floor = Floor(next(colors))
            for x in columns:
                for y in rows:
                    grid.set(x, y, floor)
    return grid


def _is_free(grid: Grid, x: int, y: int) -> bool:
    """Return True if the agent can stand on a cell."""
    cell = grid.get(x, y)
    return cell is None or bool(cell.can_overlap())


def _picture_space(view_size: int) -> spaces.Box:
    """Return the space of MiniGrid's symbolic view with the bounds of its codes."""
    largest = np.asarray(grid_high(), np.uint8)
    shape = (view_size, view_size, len(largest))
    high = np.broadcast_to(largest, shape).copy()
    return spaces.Box(np.zeros_like(high), high, high.shape, np.uint8)


gym.register(
    "MIRL/ReachCell-v0",
    entry_point="mirl.envs.worlds.four_rooms:ReachEnv",
    kwargs={"goal": "cell"},
)
gym.register(
    "MIRL/ReachPicture-v0",
    entry_point="mirl.envs.worlds.four_rooms:ReachEnv",
    kwargs={"goal": "picture"},
)
