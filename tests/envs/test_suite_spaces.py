"""Tests of the spaces that the tasks of a suite share."""

import copy
import pickle
from contextlib import closing

import gymnasium as gym
import minigrid  # noqa: F401  (registers its ids)
import numpy as np
import pytest
import toy_envs  # noqa: F401  (registers its ids)
from gymnasium import spaces
from suites import BACKENDS, COUNTER, choices

from mirl.configs.errors import ConfigError
from mirl.configs.schema import BackendName, SamplingName
from mirl.configs.tasks import SuiteConfig, TaskConfig
from mirl.envs import ContractObservation, SuiteVecEnv, make_vec_env
from mirl.envs.suite_spaces import suite_spaces

IDS = ["MiniGrid-Empty-5x5-v0", "MiniGrid-Dynamic-Obstacles-5x5-v0"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_mask_shows_available_actions(backend: BackendName) -> None:
    """The mask marks the actions of each environment's task, in every observation."""
    with closing(make_vec_env(IDS, 4, backend=backend)) as env:
        assert env.action_space == spaces.Discrete(7)
        assert env.observation_space["action_mask"] == spaces.MultiBinary(7)
        expected = np.array([[1] * 7, [1] * 7, [1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0]])
        obs = env.reset()
        n_ended = 0
        for _ in range(120):  # both tasks allow 100 timesteps at most
            assert obs["action_mask"].dtype == np.int8
            np.testing.assert_array_equal(obs["action_mask"], expected)
            obs, _, _, infos = env.step(np.array([0, 6, 0, 2]))
            for i, info in enumerate(infos):
                if info:
                    mask = info["terminal_observation"]["action_mask"]
                    np.testing.assert_array_equal(mask, expected[i])
                    n_ended += 1
        assert n_ended >= 4


def test_equal_actions_need_no_mask() -> None:
    """Tasks with equal numbers of actions get no mask."""
    observation_space, action_space = suite_spaces(choices(3, 3), "gymnasium")
    assert "action_mask" not in observation_space.spaces
    assert action_space == spaces.Discrete(3)


@pytest.mark.parametrize("sampling", ["fixed", "uniform"])
def test_mask_follows_the_sampled_task(sampling: SamplingName) -> None:
    """The mask of an environment changes with its task."""
    counts = np.array([2, 3, 5])
    rng = np.random.default_rng(0)
    with closing(SuiteVecEnv(choices(*counts), 6, sampling=sampling, workers=0)) as env:
        obs = env.reset()
        for _ in range(20):
            expected = np.arange(5) < counts[obs["task"], None]
            np.testing.assert_array_equal(obs["action_mask"], expected)
            n_actions = counts[obs["task"]]
            obs, rewards, _, infos = env.step(rng.integers(n_actions))
            n_available = [info["terminal_observation"]["action_mask"].sum() for info in infos]
            assert n_available == n_actions.tolist()
    assert rewards.shape == (6,)


def test_own_mask_is_kept() -> None:
    """An environment keeps the mask that it observes itself."""
    with closing(SuiteVecEnv(choices(3, 3, own_mask=True), 2, workers=0)) as env:
        np.testing.assert_array_equal(env.reset()["action_mask"], [[0, 1, 1], [0, 1, 1]])


def test_own_masks_are_widened() -> None:
    """The tasks' own masks are widened to the number of actions of the suite."""
    with closing(SuiteVecEnv(choices(2, 4, own_mask=True), 2, workers=0)) as env:
        expected = [[0, 1, 0, 0], [0, 1, 1, 1]]
        np.testing.assert_array_equal(env.reset()["action_mask"], expected)
        np.testing.assert_array_equal(env.step(np.array([1, 1]))[0]["action_mask"], expected)
        assert env.observation_space["action_mask"] == spaces.MultiBinary(4)


def test_single_mask_is_an_error() -> None:
    """A mask that only one of the tasks observes is an error."""
    tasks = tuple(
        TaskConfig(name=f"own_mask={own}", env_id="ToyChoice-v0", kwargs={"own_mask": own})
        for own in (True, False)
    )
    message = r"keys of 'own_mask=True' .*'action_mask'.* of 'own_mask=False'"
    with pytest.raises(ConfigError, match=message):
        SuiteVecEnv(SuiteConfig(name="suite", tasks=tasks), 2)


def test_different_box_actions_are_an_error() -> None:
    """Continuous actions with different bounds cannot be joined."""
    tasks = tuple(
        TaskConfig(name=f"scale{scale}", env_id="ToyLever-v0", kwargs={"scale": scale})
        for scale in (1, 2)
    )
    message = (
        r"action space of 'scale1' is Box .* in \[-1.0, 1.0\], of 'scale2' Box .* in \[-2.0, 2.0\]"
    )
    with pytest.raises(ConfigError, match=message):
        SuiteVecEnv(SuiteConfig(name="suite", tasks=tasks), 2)


def test_different_action_kinds_are_an_error() -> None:
    """Continuous and discrete actions cannot be joined."""
    tasks = (
        TaskConfig(name="lever", env_id="ToyLever-v0"),
        TaskConfig(name="buttons", env_id="ToyLever-v0", kwargs={"buttons": True}),
    )
    message = r"action space of 'lever' is Box .* of 'buttons' Discrete\(2\)"
    with pytest.raises(ConfigError, match=message):
        SuiteVecEnv(SuiteConfig(name="suite", tasks=tasks), 2)


def test_different_shapes_name_both_tasks() -> None:
    """Tasks whose observations differ in shape are an error that names both."""
    tasks = tuple(TaskConfig(name=f"size{n}", env_id=COUNTER, kwargs={"size": n}) for n in (2, 3))
    message = r"'observation' of 'size2' is Box of shape \(2,\).*'size3' Box of shape \(3,\)"
    with pytest.raises(ConfigError, match=message):
        SuiteVecEnv(SuiteConfig(name="suite", tasks=tasks), 2)


def test_different_keys_name_both_tasks() -> None:
    """Tasks whose observations differ in keys are an error that names both."""
    message = r"keys of 'CartPole-v1' is \['observation', 'task'\], of 'ToyText-v0' \['cell'"
    with pytest.raises(ConfigError, match=message):
        make_vec_env(["CartPole-v1", "ToyText-v0"], 2)


@pytest.mark.parametrize(
    ("ids", "is_constant"),
    [
        (["MiniGrid-MemoryS7-v0"], True),
        (["MiniGrid-Empty-5x5-v0", "MiniGrid-Empty-8x8-v0"], True),
        (["MiniGrid-Empty-5x5-v0", "MiniGrid-MemoryS7-v0"], False),
        (["MiniGrid-Empty-5x5-v0", "MiniGrid-GoToDoor-5x5-v0"], False),
        (["BabyAI-GoToLocal-v0"], False),
    ],
    ids=["one", "same", "different", "beside", "varied"],
)
def test_suite_knows_constant_missions(ids: list[str], is_constant: bool) -> None:
    """A mission is constant if all tasks have the same one in every episode."""
    tasks = tuple(TaskConfig(name=env_id, env_id=env_id) for env_id in ids)
    for backend in BACKENDS:
        observation, _ = suite_spaces(SuiteConfig(name="suite", tasks=tasks), backend)
        assert isinstance(observation, spaces.Dict)
        assert getattr(observation["mission"], "is_constant", None) is is_constant
    with closing(make_vec_env(ids, len(ids))) as env:
        assert isinstance(env.observation_space, spaces.Dict)
        assert getattr(env.observation_space["mission"], "is_constant", None) is is_constant


def test_wrapper_knows_constant_missions() -> None:
    """``ContractObservation`` tells SB3, also after a copy and in a pickle."""
    for env_id, is_constant in (("MiniGrid-Empty-5x5-v0", True), ("BabyAI-GoToLocal-v0", False)):
        with closing(ContractObservation(gym.make(env_id))) as env:
            space = env.observation_space["mission"]
            for same in (space, copy.deepcopy(space), pickle.loads(pickle.dumps(space))):
                assert same.is_constant is is_constant
                assert same == spaces.Box(0, space.high.max(), space.shape, np.int16)
