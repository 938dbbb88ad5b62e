"""Tests of the returns, lengths and infos of episodes."""

import numpy as np
import pytest
from suites import BACKENDS, DONE, EMPTY, GRIDS, SOLUTION

from mirl.configs.schema import BackendName
from mirl.envs import SuiteVecEnv, make_vec_env

pytestmark = pytest.mark.parametrize("backend", BACKENDS)


def test_success_terminates(backend: BackendName) -> None:
    """An episode that reaches its goal terminates and counts as a success."""
    env = make_vec_env(EMPTY, 2, backend=backend)
    env.reset()
    for action in SOLUTION[:-1]:
        _, rewards, dones, infos = env.step(np.full(2, action))
        assert not dones.any()
        assert infos == [{}, {}]
    _, rewards, dones, infos = env.step(np.full(2, SOLUTION[-1]))
    assert dones.all()
    assert rewards == pytest.approx(1 - 0.9 * 5 / 100)
    assert infos[1]["is_success"] is True
    assert infos[1]["TimeLimit.truncated"] is False
    assert infos[1]["task"] == EMPTY
    assert infos[1]["episode"]["r"] == pytest.approx(1 - 0.9 * 5 / 100)
    assert infos[1]["episode"]["l"] == 5
    assert infos[1]["episode"]["t"] > 0
    env.close()


def test_time_limit_truncates(backend: BackendName) -> None:
    """An episode at its time limit is truncated and no success."""
    env = make_vec_env(EMPTY, 1, backend=backend)
    env.reset()
    for _ in range(99):
        assert not env.step(np.array([0]))[2].any()
    _, _, dones, infos = env.step(np.array([0]))
    assert dones[0]
    assert infos[0]["TimeLimit.truncated"] is True
    assert infos[0]["is_success"] is False
    assert infos[0]["episode"]["l"] == 100
    env.close()


def test_success_at_time_limit_terminates(backend: BackendName) -> None:
    """A success on the last allowed timestep is terminated, not truncated."""
    env = make_vec_env(EMPTY, 1, backend=backend)
    env.reset()
    for action in (*SOLUTION[:-1], *[DONE] * 95):
        assert not env.step(np.array([action]))[2].any()
    _, rewards, dones, infos = env.step(np.array([SOLUTION[-1]]))
    assert dones[0]
    assert rewards[0] == pytest.approx(0.1)
    assert infos[0]["is_success"] is True
    assert infos[0]["TimeLimit.truncated"] is False
    env.close()


def test_wrong_end_is_no_success(backend: BackendName) -> None:
    """An episode that ends without a reward terminates without success."""
    env = make_vec_env("MiniGrid-GoToDoor-5x5-v0", 4, backend=backend)
    env.reset()
    # "done" nowhere near the door, or (with luck) in front of it
    _, rewards, dones, infos = env.step(np.full(4, DONE))
    assert dones.all()
    for reward, info in zip(rewards, infos, strict=True):
        assert info["TimeLimit.truncated"] is False
        assert info["is_success"] is bool(reward > 0)
    assert (rewards == 0).any()
    env.close()


def test_statistics_equal_a_plain_count(backend: BackendName) -> None:
    """Returns, lengths and tasks in the infos equal a count outside the environment."""
    env = SuiteVecEnv(GRIDS, 6, backend=backend)
    env.reset()
    rng = np.random.default_rng(0)
    returns = [0.0] * 6
    lengths = [0] * 6
    n_episodes = 0
    for _ in range(150):
        _, rewards, dones, infos = env.step(rng.integers(7, size=6))
        for i in range(6):
            returns[i] += float(rewards[i])
            lengths[i] += 1
            assert bool(infos[i]) == dones[i]
            if dones[i]:
                assert infos[i]["episode"]["r"] == pytest.approx(returns[i])
                assert infos[i]["episode"]["l"] == lengths[i]
                assert infos[i]["task"] == GRIDS.tasks[env.task_index[i]].name
                returns[i] = 0.0
                lengths[i] = 0
                n_episodes += 1
    assert n_episodes > 20
    env.close()


def test_terminal_observation_keeps_its_mission(backend: BackendName) -> None:
    """The terminal observation shows the mission of its own episode, not of the next one."""
    env = make_vec_env("MiniGrid-GoToDoor-5x5-v0", 4, backend=backend)
    mission = env.reset()["mission"]
    changed = False
    for _ in range(20):
        obs, _, dones, infos = env.step(np.full(4, DONE))
        assert dones.all()
        final_missions = [info["terminal_observation"]["mission"] for info in infos]
        np.testing.assert_array_equal(final_missions, mission)
        changed |= not np.array_equal(obs["mission"], mission)
        mission = obs["mission"]
    assert changed
    env.close()
