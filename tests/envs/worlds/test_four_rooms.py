"""Tests of the four rooms: goals can be reached, and observations and rewards are right."""

from collections import deque
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from minigrid.minigrid_env import MiniGridEnv
from minigrid.wrappers import SymbolicObsWrapper

from mirl.configs.compose import compose_train
from mirl.configs.errors import ConfigError
from mirl.configs.tasks import TaskConfig
from mirl.envs import make_env
from mirl.envs.contract.codes import grid_high
from mirl.envs.worlds.four_rooms import ReachEnv

FORWARD = 2
STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))
Pose = tuple[int, int, int]


def reset(seed: int, **kwargs: Any) -> tuple[ReachEnv, dict[str, Any]]:
    env = ReachEnv(**kwargs)
    obs, _ = env.reset(seed=seed)
    return env, obs


def walls(env: ReachEnv) -> np.ndarray:
    """Return True for each wall, (W, H), from MiniGrid's own encoding of the whole grid."""
    return np.asarray(env.grid.encode()[..., 0] == 2)


def plan(is_wall: np.ndarray, start: Pose, goals: set[Pose]) -> list[int] | None:
    """Return the shortest list of actions from a pose to a goal, by breadth-first search."""
    paths: dict[Pose, list[int]] = {start: []}
    queue = deque([start])
    while queue:
        x, y, direction = pose = queue.popleft()
        if pose in goals:
            return paths[pose]
        ahead = x + STEPS[direction][0], y + STEPS[direction][1]
        following = [(x, y, (direction - 1) % 4), (x, y, (direction + 1) % 4)]
        following.append((*ahead, direction) if not is_wall[ahead] else pose)
        for action, other in enumerate(following):
            if other not in paths:
                paths[other] = [*paths[pose], action]
                queue.append(other)
    return None


def goal_poses(env: ReachEnv, goal: str) -> set[Pose]:
    """Return the poses that reach the goal; a cell can be reached in any direction."""
    if goal == "picture":
        return {(*env.goal_pos, env.goal_dir)}
    return {(*env.goal_pos, direction) for direction in range(4)}


@pytest.mark.parametrize("goal", ["cell", "picture"])
@pytest.mark.parametrize("size", [7, 9, 13])
def test_every_goal_can_be_reached(goal: str, size: int) -> None:
    """Every goal can be reached within the time limit, with the reward that is due."""
    for seed in range(150):
        env, _ = reset(seed, goal=goal, size=size)
        path = plan(walls(env), (*env.agent_pos, env.agent_dir), goal_poses(env, goal))
        assert path
        assert len(path) < env.max_steps
        rewards, successes = [], []
        while path and not any(successes):  # a picture may be seen on the way
            _, reward, terminated, _, info = env.step(path.pop(0))
            rewards.append(reward)
            successes.append(terminated and info["is_success"])
        assert successes[-1]
        assert rewards[:-1] == [0.0] * (len(rewards) - 1)
        assert rewards[-1] == pytest.approx(1 - 0.9 * len(rewards) / env.max_steps)
        assert goal == "picture" or not path


def test_each_wall_has_one_gap() -> None:
    """Each wall between two rooms has one gap, at a random place."""
    gaps = set()
    for seed in range(50):
        env, _ = reset(seed)
        inner = walls(env)[1:-1, 1:-1]
        assert walls(env).sum() == 4 * 8 + 2 * 7 - 1 - 4
        for wall in (inner[3, :3], inner[3, 4:], inner[:3, 3], inner[4:, 3]):
            assert (~wall).sum() == 1
        gaps.add(inner.tobytes())
    assert len(gaps) > 30


def test_every_free_cell_is_used() -> None:
    """Every free cell is the goal of some episode and the start of another."""
    env = ReachEnv()
    goals, starts = set(), set()
    for seed in range(1_500):
        env.reset(seed=seed)
        goals.add(env.goal_pos)
        starts.add(tuple(env.agent_pos))
        assert env.goal_pos != tuple(env.agent_pos)
    assert goals == starts == {(x, y) for x in range(1, 8) for y in range(1, 8)} - {(4, 4)}


def test_desired_picture_is_minigrids_view() -> None:
    """The desired picture is MiniGrid's own view at the goal."""
    for seed in range(50):
        env, obs = reset(seed, goal="picture")
        env.agent_pos, env.agent_dir = env.goal_pos, env.goal_dir
        np.testing.assert_array_equal(obs["desired_goal"], MiniGridEnv.gen_obs(env)["image"])


def test_achieved_picture_is_the_view() -> None:
    """The achieved picture is the current view, which is not observed twice."""
    env, _ = reset(0, goal="picture")
    for action in np.random.default_rng(0).integers(3, size=30):
        obs, *_ = env.step(action)
        np.testing.assert_array_equal(obs["achieved_goal"], MiniGridEnv.gen_obs(env)["image"])
        assert "image" not in obs


def test_cells_are_positions() -> None:
    """The achieved cell is the agent's position, the desired cell that of the goal."""
    env, obs = reset(3)
    assert tuple(obs["desired_goal"]) == env.goal_pos
    for action in np.random.default_rng(0).integers(3, size=30):
        obs, *_ = env.step(action)
        full = SymbolicObsWrapper(env).observation({"image": None})["image"]
        (position,) = np.argwhere(full[..., 2] == 10)  # the agent's object code
        np.testing.assert_array_equal(obs["achieved_goal"], position)
        np.testing.assert_array_equal(obs["image"], MiniGridEnv.gen_obs(env)["image"])


@pytest.mark.parametrize("goal", ["cell", "picture"])
@pytest.mark.parametrize("reward", ["time", "sparse"])
def test_step_rewards_equal_compute_reward(goal: str, reward: str) -> None:
    """The rewards of steps are those of compute_reward."""
    rewards = []
    for seed in range(20):
        env, _ = reset(seed, goal=goal, reward=reward, size=7)
        path = plan(walls(env), (*env.agent_pos, env.agent_dir), goal_poses(env, goal))
        for action in path or []:
            obs, actual, terminated, _, info = env.step(action)
            assert actual == env.compute_reward(obs["achieved_goal"], obs["desired_goal"], info)
            assert terminated == info["is_success"]
            rewards.append(actual)
            if terminated:
                break
    if reward == "sparse":
        assert set(rewards) == {-1.0, 0.0}
    else:
        assert min(rewards) == 0 < max(rewards) < 1


@pytest.mark.parametrize("goal", ["cell", "picture"])
@pytest.mark.parametrize("reward", ["time", "sparse"])
def test_batch_rewards_equal_single_rewards(goal: str, reward: str) -> None:
    """The rewards of a batch are those of its rows."""
    env, _ = reset(0, goal=goal, reward=reward)
    achieved = []
    infos = []
    for action in np.random.default_rng(0).integers(3, size=40):
        obs, _, _, _, info = env.step(action)
        achieved.append(obs["achieved_goal"])
        infos.append(info)
    desired = [achieved[i] for i in np.random.default_rng(1).integers(40, size=40)]
    batch = env.compute_reward(np.stack(achieved), np.stack(desired), infos)
    rows = [env.compute_reward(*row) for row in zip(achieved, desired, infos, strict=True)]
    np.testing.assert_array_equal(batch, rows)
    assert batch.shape == (40,)
    assert len(set(batch.tolist())) > 1


def test_hindsight_replay_needs_sparse_rewards() -> None:
    """Recomputing rewards that depend on the time is an error without the step count."""
    env, obs = reset(0)
    with pytest.raises(ConfigError, match="use reward=sparse"):
        env.compute_reward(obs["achieved_goal"][None], obs["desired_goal"][None], [{}])


def test_episode_is_truncated() -> None:
    env, _ = reset(0, max_steps=5)
    ends = [env.step(0)[2:4] for _ in range(5)]
    assert ends == [(False, False)] * 4 + [(False, True)]


@pytest.mark.parametrize("env_id", ["MIRL/ReachCell-v0", "MIRL/ReachPicture-v0"])
def test_pictures_have_code_bounds(env_id: str) -> None:
    """Pictures have the bounds of MiniGrid's codes under the observation contract."""
    env = make_env(TaskConfig(name="reach", env_id=env_id))
    obs, _ = env.reset(seed=0)
    assert env.observation_space.contains(obs)
    pictures = [space for space in env.observation_space.values() if len(space.shape) == 3]
    assert pictures
    for space in pictures:
        assert space.dtype == np.uint8
        assert tuple(space.high.reshape(-1, 3).max(0)) == grid_high()


@pytest.mark.parametrize("goal", ["cell", "picture"])
def test_seed_decides_the_episode(goal: str) -> None:
    def start(seed: int) -> str:
        env, _ = reset(seed, goal=goal)
        return f"{env.hash()} {env.goal_pos} {env.goal_dir}"

    assert start(1) == start(1) != start(2)


@pytest.mark.parametrize("env_id", ["MIRL/ReachCell-v0", "MIRL/ReachPicture-v0"])
def test_gymnasium_check_passes(env_id: str) -> None:
    check_env(gym.make(env_id).unwrapped, skip_render_check=True)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"size": 8}, "size must be odd and at least 7, got 8"),
        ({"size": 5}, "size must be odd and at least 7, got 5"),
        ({"goal": "cel"}, "goal must be one of cell, picture, got 'cel'. Did you mean 'cell'"),
        ({"reward": "dense"}, "reward must be one of time, sparse"),
    ],
)
def test_invalid_arguments_are_errors(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ReachEnv(**kwargs)


@pytest.mark.parametrize("task", ["reach_cell", "reach_picture"])
def test_presets_use_the_goal_as_context(task: str) -> None:
    config = compose_train([f"task={task}"])
    assert config.context.key == "desired_goal"
    assert config.task.tasks[0].success == "info"
