"""Tests of the observation contract on both backends."""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import gymnasium as gym
import numpy as np
import pytest
import toy_envs  # noqa: F401  (registers its ids)
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from hypothesis import given
from hypothesis import strategies as st
from minigrid.wrappers import FullyObsWrapper
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecNormalize
from suites import BACKENDS, MINIGRID_IDS, single_task
from text_envs import ManyTextsEnv

from mirl.configs.errors import ConfigError
from mirl.configs.keys import TASK_KEY
from mirl.configs.schema import BackendName
from mirl.configs.tasks import TaskConfig
from mirl.configs.texts import TextForm
from mirl.envs import ContractObservation, SuiteVecEnv, make_env, tokenize
from mirl.envs.pools.envpool import envpool_ids
from mirl.envs.texts.codec import is_text

QUICK_IDS = (
    "BabyAI-ActionObjDoor-v0",
    "BabyAI-BossLevel-v0",
    "BabyAI-GoToImpUnlock-v0",
    "BabyAI-KeyInBox-v0",
    "BabyAI-PutNextS5N2Carrying-v0",
    "MiniGrid-BlockedUnlockPickup-v0",
    "MiniGrid-DistShift1-v0",
    "MiniGrid-DoorKey-5x5-v0",
    "MiniGrid-Dynamic-Obstacles-5x5-v0",
    "MiniGrid-Empty-5x5-v0",
    "MiniGrid-Fetch-5x5-N2-v0",
    "MiniGrid-FourRooms-v0",
    "MiniGrid-GoToDoor-5x5-v0",
    "MiniGrid-KeyCorridorS3R1-v0",
    "MiniGrid-LavaGapS5-v0",
    "MiniGrid-LockedRoom-v0",
    "MiniGrid-MemoryS7-v0",
    "MiniGrid-MultiRoom-N2-S4-v0",
    "MiniGrid-ObstructedMaze-1Dlhb-v0",
    "MiniGrid-Playground-v0",
    "MiniGrid-PutNear-6x6-N2-v0",
)


def make_task(env_id: str, **kwargs: Any) -> TaskConfig:
    return TaskConfig(name="task", env_id=env_id, kwargs=kwargs)


def assert_contract(env_id: str, backend: BackendName, n_steps: int) -> None:
    """Assert that every observation is in the observation space, under random actions."""
    env = SuiteVecEnv(single_task(env_id), 2, backend=backend)
    space = env.observation_space
    rng = np.random.default_rng(0)
    obs = env.reset()
    for _ in range(n_steps):
        for i in range(2):
            assert space.contains({key: values[i] for key, values in obs.items()})
        obs, _, _, infos = env.step(rng.integers(env.action_space.n, size=2))
        for info in infos:
            if info:
                assert space.contains(info["terminal_observation"])
    env.close()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("env_id", QUICK_IDS)
def test_observations_are_in_their_space(env_id: str, backend: BackendName) -> None:
    assert_contract(env_id, backend, n_steps=60)


@pytest.mark.exhaustive
@pytest.mark.parametrize("env_id", MINIGRID_IDS)
def test_every_gymnasium_id_keeps_contract(env_id: str) -> None:
    """Observations are in their space for every id of the gymnasium backend."""
    assert_contract(env_id, "gymnasium", n_steps=200)


@pytest.mark.exhaustive
@pytest.mark.parametrize("env_id", sorted(envpool_ids()))
def test_every_envpool_id_keeps_contract(env_id: str) -> None:
    """Observations are in their space for every id of the envpool backend."""
    assert_contract(env_id, "envpool", n_steps=500)


def assert_checkers_accept(env: gym.Env[Any, Any]) -> None:
    """Assert that the environment checkers of SB3 and Gymnasium accept an environment."""
    sb3_check_env(env)
    # without rendering, which is the environment's own
    gymnasium_check_env(env, skip_render_check=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "env_id",
    ["MiniGrid-GoToDoor-5x5-v0", "BabyAI-GoToLocal-v0", "CartPole-v1", "ToyRandomGoal-v0"],
)
def test_env_checkers_accept_contract(env_id: str) -> None:
    assert_checkers_accept(ContractObservation(gym.make(env_id)))
    assert_checkers_accept(ContractObservation(gym.make(env_id), 1, 2))


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("env_id", [each for each in MINIGRID_IDS if "-WFC-" not in each])
def test_env_checkers_accept_every_id(env_id: str) -> None:
    assert_checkers_accept(ContractObservation(gym.make(env_id)))


@pytest.mark.parametrize(
    ("options", "has_task"),
    [({}, False), ({"task_key": True}, True), ({"n_tasks": 2}, True)],
)
def test_one_task_needs_no_index(options: dict[str, Any], has_task: bool) -> None:
    env = ContractObservation(gym.make("ToyRandomGoal-v0"), **options)
    observation, _ = env.reset(seed=0)
    assert (TASK_KEY in observation) == has_task
    assert env.observation_space.contains(observation)


@pytest.mark.parametrize("wrap", [VecNormalize, partial(VecFrameStack, n_stack=2)])
def test_vec_wrappers_take_one_task(wrap: Callable[[VecEnv], VecEnv]) -> None:
    """SB3's wrappers need a Box under every key, which the index of the task is not."""
    env = wrap(DummyVecEnv([lambda: ContractObservation(gym.make("ToyRandomGoal-v0"))]))
    assert set(cast(dict[str, Any], env.reset())) == {
        "observation",
        "achieved_goal",
        "desired_goal",
    }


def test_symbolic_image_has_code_bounds() -> None:
    """The bounds of the symbolic image are the largest codes."""
    space = make_env(make_task("MiniGrid-DoorKey-5x5-v0")).observation_space["image"]
    assert space.high.reshape(-1, 3).max(axis=0).tolist() == [10, 5, 3]
    assert space.high.reshape(-1, 3).min(axis=0).tolist() == [10, 5, 3]


def test_fully_observed_grid_has_code_bounds() -> None:
    """The bounds hold for the fully observed grid too, which shows the agent's direction."""
    env = ContractObservation(FullyObsWrapper(gym.make("MiniGrid-Empty-5x5-v0")))
    assert env.observation_space["image"].high.max() == 10
    for seed in range(20):
        observation, _ = env.reset(seed=seed)
        for _ in range(4):  # turning left shows each direction, 0 to 3
            assert env.observation_space.contains(observation)
            observation, *_ = env.step(0)


def test_pixels_keep_their_bounds() -> None:
    env = make_env(make_task("MiniGrid-DoorKey-5x5-v0"), observation="rgb")
    assert env.observation_space["image"] == spaces.Box(0, 255, (56, 56, 3), np.uint8)
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    assert observation["image"].max() > 10


def test_array_gets_a_key() -> None:
    """An observation that is not a Dict is stored under ``observation``."""
    env = make_env(make_task("CartPole-v1"), task_index=1, n_tasks=3)
    observation, _ = env.reset(seed=0)
    assert set(observation) == {"observation", "task"}
    assert env.observation_space["task"] == spaces.Discrete(3)
    assert observation["task"] == 1


def test_goal_environment_keeps_its_keys() -> None:
    env = make_env(make_task("ToyRandomGoal-v0"))
    observation, _ = env.reset(seed=0)
    assert set(observation) == {"observation", "achieved_goal", "desired_goal", "task"}
    assert env.observation_space.contains(observation)


def test_texts_become_tokens() -> None:
    """Texts become tokens, other keys are unchanged."""
    env = make_env(make_task("ToyText-v0"))
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    assert observation["cell"] == 1
    # spaces.Text(100) has at most 100 words
    expected = tokenize("Qapla' to the red ball!", text_length=100)
    np.testing.assert_array_equal(observation["mission"], expected)


def test_unsupported_space_names_the_key() -> None:
    """A space that SB3 cannot batch is an error that names its key."""
    with pytest.raises(ConfigError, match=r"'pair': expected a Box.*got a nested Tuple"):
        make_env(make_task("ToyText-v0", nested=True))


def test_own_task_key_is_renamed() -> None:
    """An environment's own ``task`` becomes ``env_task``; ``task`` is the suite's index."""
    env = make_env(make_task("ToyText-v0", own_task=True), task_index=1, n_tasks=3)
    assert env.observation_space["env_task"] == spaces.Discrete(2)
    assert env.observation_space["task"] == spaces.Discrete(3)
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    assert (observation["env_task"], observation["task"]) == (0, 1)


def test_both_task_keys_are_refused() -> None:
    env = gym.make("ToyText-v0", own_task=True)
    space = {**env.observation_space, "env_task": spaces.Discrete(2)}
    env.observation_space = spaces.Dict(space)
    with pytest.raises(ConfigError, match=r"has both 'task' and 'env_task'.*rename one"):
        ContractObservation(env)


@given(
    keys=st.sets(st.sampled_from(["mission", "instruction", "hint", "task"]), min_size=1),
    max_length=st.integers(20, 600),
    text_length=st.none() | st.integers(20, 300),
    text_form=st.sampled_from(["tokens", "utf8"]),
)
def test_texts_under_any_key(
    keys: set[str], max_length: int, text_length: int | None, text_form: TextForm
) -> None:
    """Every text is an int16 Box of rank 1 that starts at 0, and observations are in it."""
    env = ContractObservation(
        ManyTextsEnv(keys, max_length),
        vocabulary=("klingon",),
        text_length=text_length,
        text_form=text_form,
    )
    names = {"env_task" if key == "task" else key for key in keys}
    assert set(env.text_keys) == names
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    for name in names:
        assert is_text(env.observation_space[name])
        assert observation[name].any()
    assert not is_text(env.observation_space["cell"])


def test_task_index_must_be_in_range() -> None:
    with pytest.raises(ValueError, match=r"task_index must be in \[0, n_tasks=2\), got 2"):
        ContractObservation(gym.make("CartPole-v1"), task_index=2, n_tasks=2)
