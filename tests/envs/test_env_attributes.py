"""Tests of the attributes of single environments, and of the rewards of relabeled goals."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import SAC
from stable_baselines3.her import HerReplayBuffer
from suites import BACKENDS, EMPTY, single_task
from toy_goal_envs import MirrorReachEnv

from mirl.configs.schema import BackendName
from mirl.configs.tasks import SuiteConfig, TaskConfig
from mirl.envs import SuiteVecEnv, make_vec_env


def two_goals() -> SuiteConfig:
    tasks = tuple(TaskConfig(name=f"goal{i}", env_id="ToyRandomGoal-v0") for i in range(2))
    return SuiteConfig(name="goals", tasks=tasks)


def mirror_reach(n_envs: int, **arguments: Any) -> SuiteVecEnv:
    if "ToyMirrorReach-v0" not in gym.registry:
        gym.register("ToyMirrorReach-v0", entry_point=MirrorReachEnv)
    return SuiteVecEnv(single_task("ToyMirrorReach-v0", success="info"), n_envs, **arguments)


@pytest.mark.parametrize("backend", BACKENDS)
def test_single_environments_are_not_accessible(backend: BackendName) -> None:
    env = make_vec_env(EMPTY, 2, backend=backend)
    assert env.get_attr("render_mode") == [None, None]
    for call in (
        lambda: env.get_attr("x"),
        lambda: env.set_attr("x", 1),
        lambda: env.env_method("x"),
    ):
        message = "no access to single environments, so not to their 'x'"
        with pytest.raises(AttributeError, match=message):
            call()
    env.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_rewards_are_the_environments_own(workers: int) -> None:
    """The rewards of relabeled goals are those of the environment's compute_reward."""
    env = mirror_reach(3, workers=workers)
    goals = np.random.default_rng(0).uniform(-1, 1, (2, 50, 1)).astype(np.float32)
    achieved, desired = goals
    expected = MirrorReachEnv().compute_reward(achieved, desired, {})
    assert 0 < (expected == 0).sum() < 50
    for indices, n in (([0], 1), (None, 3), (2, 1)):
        rewards = env.env_method("compute_reward", achieved, desired, [{}] * 50, indices=indices)
        assert len(rewards) == n
        np.testing.assert_array_equal(rewards, [expected] * n)
    env.close()


@pytest.mark.parametrize("copy_info_dict", [False, True])
def test_sb3_hindsight_replay_works(copy_info_dict: bool) -> None:
    """SB3's HerReplayBuffer relabels goals with the right observations and rewards."""
    env = mirror_reach(4, workers=0)
    model = SAC(
        "MultiInputPolicy",
        env,
        replay_buffer_class=HerReplayBuffer,
        replay_buffer_kwargs={"n_sampled_goal": 4, "copy_info_dict": copy_info_dict},
        learning_starts=20,
        buffer_size=400,
        batch_size=16,
        policy_kwargs={"net_arch": [8]},
        seed=0,
        device="cpu",
    )
    model.learn(64)
    buffer = model.replay_buffer
    assert isinstance(buffer, HerReplayBuffer)
    ends = buffer.dones[: buffer.pos] == 1
    assert ends.sum() == buffer.pos * 4 / 2  # episodes of two timesteps
    np.testing.assert_array_equal(buffer.timeouts[: buffer.pos] == 1, ends)  # all are truncated
    # The last observation of an episode is its own, not the first of the next one, whose point
    # is 0.
    np.testing.assert_array_equal(
        buffer.next_observations["desired_goal"][: buffer.pos],
        buffer.observations["desired_goal"][: buffer.pos],
    )
    sample = buffer.sample(256)
    goals = sample.next_observations["desired_goal"]
    points = sample.next_observations["achieved_goal"]
    expected = -((points - goals).abs() > MirrorReachEnv.TOLERANCE).float()
    np.testing.assert_array_equal(sample.rewards, expected)
    # Many transitions reach the goal that relabeling gives them.
    assert (sample.rewards == 0).float().mean() > 0.3
    env.close()


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (lambda: make_vec_env("ToyCounter-v0", 2), "ToyCounter-v0 has no 'compute_reward'"),
        (
            lambda: make_vec_env(EMPTY, 2, backend="envpool"),
            f"suite '{EMPTY}' with 1 on backend=envpool",
        ),
        (
            lambda: SuiteVecEnv(two_goals(), 2, workers=0),
            "suite 'goals' with 2 on backend=gymnasium",
        ),
    ],
)
def test_compute_reward_needs_a_goal_environment(env: Any, message: str) -> None:
    """Relabeled rewards need a suite with one task, a goal environment on Gymnasium."""
    env = env()
    with pytest.raises(AttributeError, match=message):
        env.env_method("compute_reward", np.zeros((1, 1)), np.zeros((1, 1)), [{}], indices=[0])
    env.close()
