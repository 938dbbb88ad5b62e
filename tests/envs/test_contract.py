"""Every id keeps the observation contract, on both backends."""

from importlib.util import find_spec as find_module
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import toy_envs  # noqa: F401  (registers its ids)
from gymnasium import spaces
from minigrid.wrappers import FullyObsWrapper

from mirl.configs.errors import ConfigError
from mirl.configs.tasks import SuiteConfig, TaskConfig
from mirl.envs import ContractObservation, SuiteVecEnv, make_env, tokenize
from mirl.envs.pools.envpool import envpool_ids

IDS = sorted(
    name
    for name in gym.registry
    if name.startswith(("MiniGrid-", "BabyAI-"))
    and ("-WFC-" not in name or find_module("imageio"))  # an extra
)
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


def assert_contract(env_id: str, backend: Any, n_steps: int) -> None:
    suite = SuiteConfig(name="suite", tasks=(TaskConfig(name="task", env_id=env_id),))
    env = SuiteVecEnv(suite, 2, backend=backend)
    rng = np.random.default_rng(0)
    obs = env.reset()
    for _ in range(n_steps):
        for slot in range(2):
            assert env.observation_space.contains(
                {key: values[slot] for key, values in obs.items()}
            )
        obs, _, _, infos = env.step(rng.integers(env.action_space.n, size=2))
        for info in infos:
            if info:
                assert env.observation_space.contains(info["terminal_observation"])
    env.close()


@pytest.mark.parametrize("backend", ["gymnasium", "envpool"])
@pytest.mark.parametrize("env_id", QUICK_IDS)
def test_observations_are_in_their_space(env_id: str, backend: str) -> None:
    assert_contract(env_id, backend, n_steps=60)


@pytest.mark.exhaustive
@pytest.mark.parametrize("env_id", IDS)
def test_observations_are_in_their_space_for_every_id_of_gymnasium(env_id: str) -> None:
    assert_contract(env_id, "gymnasium", n_steps=200)


@pytest.mark.exhaustive
@pytest.mark.parametrize("env_id", sorted(envpool_ids()))
def test_observations_are_in_their_space_for_every_id_of_envpool(env_id: str) -> None:
    assert_contract(env_id, "envpool", n_steps=500)


def test_the_symbolic_image_has_the_bounds_of_its_codes() -> None:
    space = make_env(make_task("MiniGrid-DoorKey-5x5-v0")).observation_space["image"]
    assert space.high.reshape(-1, 3).max(axis=0).tolist() == [10, 5, 3]
    assert space.high.reshape(-1, 3).min(axis=0).tolist() == [10, 5, 3]


def test_the_fully_observed_grid_keeps_the_same_bounds() -> None:
    env = ContractObservation(FullyObsWrapper(gym.make("MiniGrid-Empty-5x5-v0")))
    assert env.observation_space["image"].high.max() == 10
    for seed in range(20):
        observation, _ = env.reset(seed=seed)
        for _ in range(4):  # the agent's code holds its direction, 0 to 3
            assert env.observation_space.contains(observation)
            observation, *_ = env.step(0)


def test_pixels_keep_the_bounds_of_pixels() -> None:
    env = make_env(make_task("MiniGrid-DoorKey-5x5-v0"), observation="rgb")
    assert env.observation_space["image"] == spaces.Box(0, 255, (56, 56, 3), np.uint8)
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    assert observation["image"].max() > 10


def test_an_array_goes_under_observation() -> None:
    env = make_env(make_task("CartPole-v1"), task_index=1, n_tasks=3)
    observation, _ = env.reset(seed=0)
    assert set(observation) == {"observation", "task"}
    assert env.observation_space["task"] == spaces.Discrete(3)
    assert observation["task"] == 1


def test_a_goal_environment_keeps_its_keys() -> None:
    env = make_env(make_task("ToyRandomGoal-v0"))
    observation, _ = env.reset(seed=0)
    assert set(observation) == {"observation", "achieved_goal", "desired_goal", "task"}
    assert env.observation_space.contains(observation)


def test_texts_become_tokens_and_other_keys_stay() -> None:
    env = make_env(make_task("ToyText-v0"))
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    assert observation["cell"] == 1
    np.testing.assert_array_equal(observation["mission"], tokenize("Qapla' to the red ball!"))


def test_what_sb3_cannot_batch_is_an_error_that_names_the_key() -> None:
    with pytest.raises(ConfigError, match=r"'pair' must be a Box.*got Tuple"):
        make_env(make_task("ToyText-v0", nested=True))


def test_a_task_key_of_the_environments_own_is_an_error() -> None:
    with pytest.raises(ConfigError, match="'task' of its own"):
        make_env(make_task("ToyText-v0", own_task=True))


def test_a_task_index_out_of_range_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"task_index must be in \[0, n_tasks=2\), got 2"):
        ContractObservation(gym.make("CartPole-v1"), task_index=2, n_tasks=2)


def test_an_unknown_id_names_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match=r"'MiniGrid-GoToDor-5x5-v0'.*Did you mean 'MiniGrid-GoToDoor-5x5-v0'"
    ):
        make_env(make_task("MiniGrid-GoToDor-5x5-v0"))


def test_an_id_that_does_not_parse_is_an_error() -> None:
    with pytest.raises(ConfigError, match="must look like 'Name-v0', got '!!'"):
        make_env(make_task("!!"))


@pytest.mark.parametrize("env_id", ["MiniGrid-Empty-5x5-v0", "CartPole-v1"])
def test_keyword_arguments_that_the_environment_refuses_are_named(env_id: str) -> None:
    with pytest.raises(ConfigError, match=rf"{env_id} refused kwargs=.*'sise'"):
        make_env(make_task(env_id, sise=3))


def test_keyword_arguments_reach_the_environment() -> None:
    assert make_env(make_task("MiniGrid-Empty-5x5-v0", size=7)).unwrapped.width == 7


@pytest.mark.parametrize(
    ("env_id", "error", "install"),
    [
        (
            "FetchReach-v4",
            ModuleNotFoundError(name="gymnasium_robotics"),
            r'pip install "mirl\[robotics\]"',
        ),
        (
            "Meta-World/MT1",
            ModuleNotFoundError(name="metaworld"),
            r'pip install "mirl\[robotics\]"',
        ),
    ],
)
def test_a_missing_plugin_says_what_to_install(
    env_id: str, error: ImportError, install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str) -> None:
        raise error

    monkeypatch.setattr("mirl.envs.make.importlib.import_module", refuse)
    with pytest.raises(ConfigError, match=install):
        make_env(make_task(env_id))


def test_a_missing_dependency_of_an_environment_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ModuleNotFoundError("No module named 'networkx'", name="networkx")

    monkeypatch.setattr(gym, "make", refuse)
    with pytest.raises(ConfigError, match=r'pip install "minigrid\[wfc\]"'):
        make_env(make_task("MiniGrid-WFC-MazeSimple-v0"))


def test_rgb_of_something_without_a_grid_is_an_error() -> None:
    with pytest.raises(
        ConfigError, match="observation=rgb renders MiniGrid and BabyAI ids, not CartPole-v1"
    ):
        make_env(make_task("CartPole-v1"), observation="rgb")


def test_rejected_layouts_are_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    env = make_env(make_task("BabyAI-PutNextS7N4-v0"))
    for seed in range(30):
        env.reset(seed=seed)
    assert capsys.readouterr().out == ""
