"""Tests of ``SuiteVecEnv`` and ``make_vec_env`` on both backends."""

import re
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import toy_envs
from hypothesis import given, settings
from hypothesis import strategies as st
from minigrid.wrappers import FlatObsWrapper
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv
from suites import BACKENDS, DONE, EMPTY, FORWARD, GRIDS, SOLUTION, single_task

from mirl.configs.compose import validate
from mirl.configs.errors import ConfigError
from mirl.configs.schema import BackendName
from mirl.configs.tasks import SuiteConfig, TaskConfig
from mirl.envs import SuiteVecEnv, make_vec_env
from mirl.envs.make import make_env

on_both_backends = pytest.mark.parametrize("backend", BACKENDS)

IDS = st.sampled_from(
    [
        "MiniGrid-Empty-5x5-v0",
        "BabyAI-GoToObj-v0",
        "CartPole-v1",
        "ToyCounter-v0",
        "ToyText-v0",
        "ToyLazy-v0",
        "Nope-v0",
        "",
    ]
)
COMMON: dict[str, st.SearchStrategy[Any]] = {
    "backend": st.sampled_from(["auto", "gymnasium", "envpool", "envpol", None]),
    "seed": st.sampled_from([0, 7, 2**31 - 1, 2**40, -1]),
    "seed_split": st.sampled_from(["train", "validation", "test", "tset"]),
}
MORE: dict[str, st.SearchStrategy[Any]] = {
    "sampling": st.sampled_from(
        ["fixed", "uniform", "lowest_success", "learning_progress", "slot"]
    ),
    "workers": st.sampled_from([None, 0, -1]),
    "subset": st.sampled_from(["trained", "held_out", "other"]),
    "max_restarts": st.sampled_from([0, 3, -1]),
    "timeout": st.sampled_from([300.0, 0.0, -1.0]),
}


def trajectory(env: SuiteVecEnv, n_steps: int, action_seed: int = 0) -> list[np.ndarray]:
    """Return images, missions, rewards and dones under random actions."""
    rng = np.random.default_rng(action_seed)
    obs = env.reset()
    arrays = [obs["image"], obs["mission"]]
    for _ in range(n_steps):
        obs, rewards, dones, _ = env.step(rng.integers(7, size=env.num_envs))
        arrays += [obs["image"], obs["mission"], rewards, dones]
    return arrays


def all_equal(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def step_all(env: SuiteVecEnv, action: int) -> Any:
    """Take the same action in every environment."""
    return env.step(np.full(env.num_envs, action))


def assert_steps(env: SuiteVecEnv) -> None:
    with closing(env):
        obs = env.reset()
        assert {len(values) for values in obs.values()} == {env.num_envs}
        shape = (env.num_envs, *(env.action_space.shape or ()))
        _, rewards, _, _ = env.step(np.zeros(shape, np.int64))
        assert np.isfinite(rewards).all()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    IDS | st.lists(IDS, max_size=3), st.integers(-1, 4), st.fixed_dictionaries({}, optional=COMMON)
)
def test_make_vec_env_steps_or_raises(env: Any, n_envs: int, arguments: dict[str, Any]) -> None:
    """Any arguments of make_vec_env give an environment that steps, or a ConfigError."""
    with suppress(ConfigError):
        assert_steps(make_vec_env(env, n_envs, **arguments))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(IDS, min_size=1, max_size=2, unique=True),
    st.fixed_dictionaries({}, optional={**COMMON, **MORE}),
)
def test_suite_steps_or_raises(ids: list[str], arguments: dict[str, Any]) -> None:
    """Any arguments of SuiteVecEnv give an environment that steps, or a ConfigError."""
    with suppress(ConfigError):
        tasks = [{"name": env_id, "env_id": env_id} for env_id in ids]
        suite = validate(SuiteConfig, {"name": "any", "tasks": tasks})
        assert_steps(SuiteVecEnv(suite, 2, **arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "envpol"}, "unknown backend 'envpol'. Did you mean 'envpool'"),
        ({"seed_split": "tset"}, "unknown seed_split 'tset'. Did you mean 'test'"),
        ({"env": []}, "at least one task"),
        ({"env": ["ToySwitches-v0", "ToySwitches-v0"]}, "task names must be unique"),
    ],
)
def test_invalid_argument_is_an_error(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        make_vec_env(**{"env": "ToySwitches-v0", "n_envs": 2, **arguments})


@on_both_backends
def test_tasks_share_the_environments_equally(backend: BackendName) -> None:
    """Every task is played in equal shares, side by side."""
    env = SuiteVecEnv(GRIDS, 8, backend=backend)
    assert env.task_index.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert env.reset()["task"].tolist() == env.task_index.tolist()
    assert step_all(env, FORWARD)[0]["task"].tolist() == env.task_index.tolist()
    env.close()


@on_both_backends
def test_requested_backend_is_used(backend: BackendName) -> None:
    env = SuiteVecEnv(GRIDS, 3, backend=backend)
    assert env.backend == backend
    env.close()


@on_both_backends
def test_autoreset_in_the_same_step(backend: BackendName) -> None:
    """The next episode starts in the same step, and its first action is not lost."""
    env = make_vec_env(EMPTY, 1, backend=backend)
    start = env.reset()
    for action in SOLUTION:
        last_step = step_all(env, action)
    obs, _, dones, infos = last_step
    assert dones[0]
    for key, values in obs.items():
        np.testing.assert_array_equal(values, start[key])
    final = infos[0]["terminal_observation"]
    assert set(final) == set(obs)
    assert final["direction"] == 1  # facing down on the goal, where the new episode faces right
    assert not np.array_equal(final["image"], start["image"][0])
    # The first action of the new episode moves the agent.
    moved, *_ = step_all(env, FORWARD)
    assert not np.array_equal(moved["image"], start["image"])
    env.close()


@on_both_backends
def test_same_seed_same_trajectory(backend: BackendName) -> None:
    first, second = (SuiteVecEnv(GRIDS, 6, backend=backend, seed=3) for _ in range(2))
    assert all_equal(trajectory(first, 60), trajectory(second, 60))
    first.close()
    second.close()


@on_both_backends
@pytest.mark.parametrize("other", [{"seed": 4}, {"seed_split": "test"}])
def test_other_seed_other_trajectory(backend: BackendName, other: dict[str, Any]) -> None:
    """Another seed or another split gives another trajectory."""
    first = SuiteVecEnv(GRIDS, 6, backend=backend, seed=3)
    second = SuiteVecEnv(GRIDS, 6, backend=backend, **{"seed": 3, **other})
    assert not all_equal(trajectory(first, 10), trajectory(second, 10))
    first.close()
    second.close()


@on_both_backends
def test_seeding_restarts_the_streams(backend: BackendName) -> None:
    """seed() restarts the random streams at the next reset; a plain reset continues them."""
    env = SuiteVecEnv(GRIDS, 6, backend=backend, seed=3)
    first = trajectory(env, 30)
    assert not all_equal(trajectory(env, 30), first)
    env.seed(3)
    assert all_equal(trajectory(env, 30), first)
    env.seed(4)
    assert not all_equal(trajectory(env, 30), first)
    env.close()


@on_both_backends
def test_neighboring_seeds_share_no_layouts(backend: BackendName) -> None:
    layouts: set[bytes] = set()
    for seed in range(4):
        env = make_vec_env("BabyAI-UnlockPickupDist-v0", 16, backend=backend, seed=seed)
        # Turning left three times shows the view in all four directions.
        views = [env.reset()["image"]]
        views += [step_all(env, 0)[0]["image"] for _ in range(3)]
        layouts |= {around.tobytes() for around in np.stack(views, axis=1)}
        env.close()
    assert len(layouts) == 4 * 16


@on_both_backends
def test_reset_drops_the_running_step(backend: BackendName) -> None:
    """A reset drops the timestep that has been started but not finished."""
    env = make_vec_env(EMPTY, 2, backend=backend)
    start = env.reset()
    env.step_async(np.array([FORWARD, FORWARD]))
    np.testing.assert_array_equal(env.reset()["image"], start["image"])
    assert not step_all(env, FORWARD)[2].any()
    env.close()


@on_both_backends
def test_observations_are_not_overwritten(backend: BackendName) -> None:
    """Later timesteps do not change the observations that were returned earlier."""
    env = SuiteVecEnv(GRIDS, 6, backend=backend)
    obs = env.reset()
    copies = {key: values.copy() for key, values in obs.items()}
    for action in (FORWARD, DONE, FORWARD, 1):
        later, *_ = step_all(env, action)
        for key, values in obs.items():
            np.testing.assert_array_equal(values, copies[key])
        obs = later
        copies = {key: values.copy() for key, values in later.items()}
    env.close()


@on_both_backends
def test_deactivated_environments_stop(backend: BackendName) -> None:
    """Deactivated environments end their episode and stop; the others continue unchanged."""
    tasks = (
        TaskConfig(name="empty", env_id=EMPTY),
        TaskConfig(name="again", env_id=EMPTY),
    )
    suite = SuiteConfig(name="rooms", tasks=tasks)
    env, twin = (SuiteVecEnv(suite, 4, backend=backend) for _ in range(2))
    env.reset()
    twin.reset()
    env.deactivate(np.array([1, 2]))
    for t, action in enumerate(SOLUTION + SOLUTION):
        obs, rewards, dones, infos = step_all(env, action)
        twin_obs, twin_rewards, twin_dones, twin_infos = step_all(twin, action)
        for i in range(4):
            if t >= len(SOLUTION) and i in (1, 2):
                assert not any((dones[i], rewards[i], infos[i], obs["image"][i].any()))
            else:
                assert (dones[i], rewards[i]) == (twin_dones[i], twin_rewards[i])
                expected = twin_obs["image"][i]
                # Without a next episode, the last observation stays.
                if t == len(SOLUTION) - 1 and i in (1, 2):
                    expected = twin_infos[i]["terminal_observation"]["image"]
                np.testing.assert_array_equal(obs["image"][i], expected)
    env.deactivate(np.arange(4))
    for action in SOLUTION:
        step_all(env, action)
    with pytest.raises(RuntimeError, match=r"needs reset\(\) first"):
        step_all(env, FORWARD)
    assert env.reset()["image"].any(axis=(1, 2, 3)).all()
    assert not step_all(env, FORWARD)[2].any()
    env.close()
    twin.close()


@on_both_backends
def test_deactivation_at_once_drops_episodes(backend: BackendName) -> None:
    """Environments stop in the middle of an episode; the others continue unchanged."""
    env, twin = (make_vec_env(EMPTY, 3, backend=backend) for _ in range(2))
    for each in (env, twin):
        each.reset()
        step_all(each, SOLUTION[0])
    env.deactivate(np.array([0, 2]), at_once=True)
    for action in SOLUTION[1:]:
        obs, rewards, dones, infos = step_all(env, action)
        twin_obs, twin_rewards, twin_dones, _ = step_all(twin, action)
        assert (dones[1], rewards[1]) == (twin_dones[1], twin_rewards[1])
        np.testing.assert_array_equal(obs["image"][1], twin_obs["image"][1])
        for i in (0, 2):
            assert not any((dones[i], rewards[i], infos[i], obs["image"][i].any()))
    env.deactivate(np.array([1]), at_once=True)
    with pytest.raises(RuntimeError, match=r"needs reset\(\) first"):
        step_all(env, FORWARD)
    # as after any other reset, every environment runs
    env.seed(0)
    twin.seed(0)
    np.testing.assert_array_equal(env.reset()["image"], twin.reset()["image"])
    for action in SOLUTION:
        _, _, dones, _ = step_all(env, action)
    assert dones.all()
    env.close()
    twin.close()


@on_both_backends
def test_wrong_order_names_missing_call(backend: BackendName) -> None:
    """A call out of order is an error that names the missing call."""
    env = make_vec_env(EMPTY, 2, backend=backend)
    with pytest.raises(RuntimeError, match=r"needs reset\(\) first"):
        env.step_async(np.zeros(2, int))
    env.reset()
    with pytest.raises(RuntimeError, match=r"needs step_async\(\) first"):
        env.step_wait()
    env.close()
    with pytest.raises(RuntimeError, match="closed"):
        env.reset()


@on_both_backends
def test_closing_twice_is_harmless(backend: BackendName) -> None:
    env = SuiteVecEnv(GRIDS, 6, backend=backend)
    env.reset()
    env.close()
    env.close()


@on_both_backends
def test_unknown_id_suggests_a_name(backend: BackendName) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'MiniGrid-GoToDoor-5x5-v0'"):
        make_vec_env("MiniGrid-GoToDor-5x5-v0", 2, backend=backend)


@on_both_backends
def test_too_few_environments_are_an_error(backend: BackendName) -> None:
    """Fewer environments than tasks are an error."""
    with pytest.raises(ConfigError, match="at least one per task of suite 'suite', 3, got 2"):
        SuiteVecEnv(GRIDS, 2, backend=backend)


@on_both_backends
def test_sb3_trains_and_evaluates(backend: BackendName) -> None:
    """SB3 trains and evaluates on the environment without warnings."""
    env = SuiteVecEnv(GRIDS, 6, backend=backend)
    model = PPO(
        "MultiInputPolicy", env, n_steps=16, batch_size=48, n_epochs=1, seed=5, device="cpu"
    )
    model.learn(96)
    assert model.num_timesteps == 96
    assert len(model.ep_info_buffer) > 0
    evaluate_policy(model, env, n_eval_episodes=3)
    env.close()


@on_both_backends
def test_single_environments_replay_the_same(backend: BackendName) -> None:
    """Single Gymnasium environments with the same seeds and actions give the same episodes."""
    if backend == "envpool":
        pytest.skip("EnvPool draws other layouts; test_envpool.py replays its states")
    env = SuiteVecEnv(GRIDS, 6, backend=backend, seed=1)
    singles = [make_env(GRIDS.tasks[task], task, 3) for task in env.task_index]
    expected = []
    for single, seed in zip(singles, env.seed(1), strict=True):
        expected.append(single.reset(seed=seed)[0])
    obs = env.reset()
    rng = np.random.default_rng(0)
    for _ in range(80):
        for i in range(6):
            np.testing.assert_array_equal(obs["image"][i], expected[i]["image"])
            np.testing.assert_array_equal(obs["mission"][i], expected[i]["mission"])
        actions = rng.integers(7, size=6)
        obs, rewards, dones, infos = env.step(actions)
        for i, single in enumerate(singles):
            expected[i], reward, terminated, truncated, _ = single.step(actions[i])
            assert rewards[i] == pytest.approx(reward)
            assert dones[i] == (terminated or truncated)
            if dones[i]:
                final = infos[i]["terminal_observation"]
                np.testing.assert_array_equal(final["image"], expected[i]["image"])
                expected[i], _ = single.reset()
    env.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_infos_are_passed_through(workers: int) -> None:
    """An environment's infos come through; MIRL's entries of an ended episode replace its own."""
    with closing(SuiteVecEnv(single_task("ToyTelling-v0"), 3, workers=workers)) as env:
        env.reset()
        infos = env.step(np.array([0, 1, 0]))[3]
        assert [info["distance"] for info in infos] == [10, 11, 10]
        # a worker process sends plain data only
        assert [info.keys() - {"own"} for info in infos] == [{"distance", "task"}] * 3
        assert ("own" in infos[0]) == (workers == 0)
        infos = env.step(np.array([1, 1, 0]))[3]
        assert [info["distance"] for info in infos] == [21, 21, 20]
        assert {info["task"] for info in infos} == {env.suite.tasks[0].name}
        assert {info["episode"]["l"] for info in infos} == {2}


@pytest.mark.parametrize("workers", [0, 2])
def test_options_reach_next_reset(workers: int) -> None:
    """``set_options`` counts for one reset, as in SB3."""
    with closing(SuiteVecEnv(single_task("ToyTelling-v0"), 3, workers=workers)) as env:
        env.set_options([{"level": 1}, {}, {"level": 3}])
        env.reset()
        expected: list[Any] = [{"level": 1}, None, {"level": 3}]
        assert [info["options"] for info in env.reset_infos] == expected
        for _ in range(2):
            env.step(np.zeros(3, int))
        assert [info["options"] for info in env.reset_infos] == [None] * 3
        env.set_options({"level": 4})
        env.reset()
        assert [info["options"] for info in env.reset_infos] == [{"level": 4}] * 3
        with pytest.raises(ConfigError, match="expected options of 3 environments, got 2"):
            env.set_options([{}, {}])


def test_envpool_refuses_options() -> None:
    with closing(make_vec_env(EMPTY, 2, backend="envpool")) as env:
        env.set_options(None)
        with pytest.raises(ConfigError, match=r"take no options.*backend='gymnasium'"):
            env.set_options({"level": 1})


def test_masks_are_reachable_as_method() -> None:
    """sb3-contrib asks a vectorized environment for ``action_masks``."""
    with closing(SuiteVecEnv(single_task("ToyChoice-v0", kwargs={"own_mask": True}), 2)) as env:
        masks = env.reset()["action_mask"].astype(np.bool_)
        assert env.has_attr("action_masks")
        np.testing.assert_array_equal(np.stack(env.env_method("action_masks")), masks)
        np.testing.assert_array_equal(env.get_attr("action_masks", [1])[0](), masks[1])
    with closing(make_vec_env(EMPTY, 1)) as env:
        assert not env.has_attr("action_masks")


class OwnEnv(toy_envs.LeverEnv):
    """A class that is not registered, with an argument."""

    def __init__(self, size: int = 1, render_mode: str | None = None) -> None:
        super().__init__()
        self.size = size
        self.render_mode = render_mode


def test_sb3_arguments_make_sb3_environments(tmp_path: Path) -> None:
    """With SB3's arguments, single environments are accessible, and each keeps the contract."""
    monitor_dir = str(tmp_path)
    arguments = {"env_kwargs": {"size": 3}, "render_mode": "rgb_array", "seed": 1}
    with closing(make_vec_env(OwnEnv, 2, monitor_dir=monitor_dir, **arguments)) as env:
        assert isinstance(env, DummyVecEnv)
        assert env.get_attr("size") == [3, 3]
        assert env.render_mode == "rgb_array"
        assert set(cast(dict[str, Any], env.reset())) == {"observation"}
    assert len(list(tmp_path.glob("*.monitor.csv"))) == 2


def test_wrapper_gets_raw_observations() -> None:
    with closing(make_vec_env(EMPTY, wrapper_class=FlatObsWrapper)) as env:
        assert env.env_is_wrapped(FlatObsWrapper) == [True]
        assert isinstance(env, DummyVecEnv)


def test_env_kwargs_reach_every_task() -> None:
    with closing(
        make_vec_env([EMPTY, "MiniGrid-Empty-6x6-v0"], 2, env_kwargs={"max_steps": 7})
    ) as env:
        assert isinstance(env, SuiteVecEnv)
        assert [task.kwargs for task in env.suite.tasks] == [{"max_steps": 7}] * 2
    with (
        closing(make_vec_env(EMPTY, seed=None)) as first,
        closing(make_vec_env(EMPTY, seed=None)) as second,
    ):
        assert first.seed() != second.seed()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"env": [EMPTY, EMPTY], "vec_env_cls": DummyVecEnv}, "vec_env_cls is for one id or class"),
        ({"env": OwnEnv, "seed_split": "test"}, "with a class, got backend=auto and seed_split="),
        ({"env": GRIDS, "env_kwargs": {"x": 1}}, r"env_kwargs is for ids.*got \{'x': 1\}"),
        ({"env": "Nope-v0", "render_mode": "human"}, "no environment is registered as 'Nope-v0'"),
    ],
)
def test_arguments_that_exclude_each_other(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_vec_env(**arguments)
