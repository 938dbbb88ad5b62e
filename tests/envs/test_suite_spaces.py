"""Tasks with different numbers of actions share one space and a mask; what else differs is an error."""

from contextlib import closing
from typing import Any

import numpy as np
import pytest
import toy_envs  # noqa: F401  (registers its ids)
from gymnasium import spaces

from mirl.configs.errors import ConfigError
from mirl.configs.schema import BackendName, SamplingName
from mirl.configs.tasks import SuiteConfig, TaskConfig
from mirl.envs import SuiteVecEnv, make_vec_env
from mirl.envs.suite_spaces import suite_spaces

IDS = ["MiniGrid-Empty-5x5-v0", "MiniGrid-Dynamic-Obstacles-5x5-v0"]


def choices(*counts: int, **kwargs: Any) -> SuiteConfig:
    tasks = tuple(
        TaskConfig(name=f"task{i}", env_id="ToyChoice-v0", kwargs={"n_actions": n, **kwargs})
        for i, n in enumerate(counts)
    )
    return SuiteConfig(name="choices", tasks=tasks)


@pytest.mark.parametrize("backend", ["gymnasium", "envpool"])
def test_the_mask_shows_the_actions_of_the_slots_task(backend: BackendName) -> None:
    with closing(make_vec_env(IDS, 4, backend=backend)) as env:
        assert env.action_space == spaces.Discrete(7)
        assert env.observation_space["action_mask"] == spaces.MultiBinary(7)
        expected = np.array([[1] * 7, [1] * 7, [1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0]])
        obs, ended = env.reset(), 0
        for _ in range(120):  # both tasks allow 100 timesteps at most
            assert obs["action_mask"].dtype == np.int8
            np.testing.assert_array_equal(obs["action_mask"], expected)
            obs, _, _, infos = env.step(np.array([0, 6, 0, 2]))
            for slot, info in enumerate(infos):
                if info:
                    np.testing.assert_array_equal(
                        info["terminal_observation"]["action_mask"], expected[slot]
                    )
                    ended += 1
        assert ended >= 4


@pytest.mark.parametrize("backend", ["gymnasium", "envpool"])
def test_an_action_that_the_task_lacks_is_an_error_and_the_environment_goes_on(
    backend: BackendName,
) -> None:
    with closing(make_vec_env(IDS, 4, backend=backend)) as env:
        env.reset()
        with pytest.raises(
            ValueError, match=rf"task '{IDS[1]}' of environment 3 has 3, counted from 0, got 3"
        ):
            env.step(np.array([6, 6, 2, 3]))
        with pytest.raises(ValueError, match=r"Discrete\(7\), got 7 for environment 0"):
            env.step(np.array([7, 6, 2, 2]))
        assert env.step(np.array([6, 6, 2, 2]))[1].shape == (4,)


def test_tasks_with_equal_actions_get_no_mask() -> None:
    observation_space, action_space = suite_spaces(choices(3, 3), "gymnasium")
    assert "action_mask" not in observation_space.spaces
    assert action_space == spaces.Discrete(3)


@pytest.mark.parametrize("sampling", ["fixed", "uniform"])
def test_the_mask_follows_a_slot_from_task_to_task(sampling: SamplingName) -> None:
    counts = np.array([2, 3, 5])
    rng = np.random.default_rng(0)
    with closing(SuiteVecEnv(choices(*counts), 6, sampling=sampling, workers=0)) as env:
        obs = env.reset()
        for _ in range(20):
            np.testing.assert_array_equal(
                obs["action_mask"], np.arange(5) < counts[obs["task"], None]
            )
            tasks = obs["task"]
            obs, rewards, _, infos = env.step(rng.integers(counts[tasks]))
            assert [info["terminal_observation"]["action_mask"].sum() for info in infos] == counts[
                tasks
            ].tolist()
    assert rewards.shape == (6,)


def test_an_environment_keeps_a_mask_of_its_own() -> None:
    with closing(SuiteVecEnv(choices(3, 3, own_mask=True), 2, workers=0)) as env:
        np.testing.assert_array_equal(env.reset()["action_mask"], [[0, 1, 1], [0, 1, 1]])


def test_masks_of_the_tasks_own_are_widened_to_the_suites_actions() -> None:
    with closing(SuiteVecEnv(choices(2, 4, own_mask=True), 2, workers=0)) as env:
        expected = [[0, 1, 0, 0], [0, 1, 1, 1]]
        np.testing.assert_array_equal(env.reset()["action_mask"], expected)
        np.testing.assert_array_equal(env.step(np.array([1, 1]))[0]["action_mask"], expected)
        assert env.observation_space["action_mask"] == spaces.MultiBinary(4)


def test_a_mask_that_only_one_task_has_is_an_error() -> None:
    tasks = tuple(
        TaskConfig(name=f"own_mask={own}", env_id="ToyChoice-v0", kwargs={"own_mask": own})
        for own in (True, False)
    )
    with pytest.raises(
        ConfigError, match=r"keys of 'own_mask=True' .*'action_mask'.* of 'own_mask=False'"
    ):
        SuiteVecEnv(SuiteConfig(name="suite", tasks=tasks), 2)


def test_box_actions_that_differ_cannot_be_joined() -> None:
    tasks = tuple(
        TaskConfig(name=f"scale{scale}", env_id="ToyLever-v0", kwargs={"scale": scale})
        for scale in (1, 2)
    )
    message = (
        r"action space of 'scale1' is Box .* in \[-1.0, 1.0\], of 'scale2' Box .* in \[-2.0, 2.0\]"
    )
    with pytest.raises(ConfigError, match=message):
        SuiteVecEnv(SuiteConfig(name="suite", tasks=tasks), 2)


def test_a_kind_of_action_that_differs_cannot_be_joined() -> None:
    tasks = (
        TaskConfig(name="lever", env_id="ToyLever-v0"),
        TaskConfig(name="buttons", env_id="ToyLever-v0", kwargs={"buttons": True}),
    )
    with pytest.raises(
        ConfigError, match=r"action space of 'lever' is Box .* of 'buttons' Discrete\(2\)"
    ):
        SuiteVecEnv(SuiteConfig(name="suite", tasks=tasks), 2)
