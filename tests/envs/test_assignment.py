"""Tests of the assignment of environments to tasks, fixed and sampled."""

import json
from collections import Counter
from contextlib import closing
from typing import Any, get_args

import numpy as np
import pytest
import toy_envs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from suites import BACKENDS, COUNTER, DONE, DOORS, choices, counters

from mirl.configs.errors import ConfigError
from mirl.configs.schema import BackendName, SamplingName
from mirl.configs.tasks import SuiteConfig, TaskConfig
from mirl.envs import SuiteVecEnv
from mirl.envs.assignment import TaskAssignment
from mirl.envs.sampling import UNIFORM_SHARE


@pytest.mark.parametrize("sampling", get_args(SamplingName))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), n_tasks=st.integers(1, 3), more=st.integers(0, 3))
def test_episodes_belong_to_their_task(
    sampling: SamplingName, data: st.DataObject, n_tasks: int, more: int
) -> None:
    """Whenever episodes end, observations, rewards and infos are those of their own task."""
    n = n_tasks + more
    rows = st.lists(st.integers(0, 2), min_size=n, max_size=n)
    plan = np.array(data.draw(st.lists(rows, min_size=1, max_size=15)))
    with closing(SuiteVecEnv(counters(n_tasks), n, sampling=sampling, workers=0)) as env:
        obs = env.reset()
        tasks = env.task_index.copy()
        counts = np.zeros(n, int)
        returns = np.zeros(n)
        for actions in plan:
            np.testing.assert_array_equal(obs["task"], env.task_index)
            np.testing.assert_array_equal(obs["observation"][:, 0], counts)
            obs, rewards, dones, infos = env.step(actions)
            counts += 1
            returns += rewards
            np.testing.assert_array_equal(rewards, actions == 1)
            np.testing.assert_array_equal(dones, (actions > 0) | (counts == toy_envs.LENGTH))
            for i in range(n):
                if not dones[i]:
                    assert infos[i] == {}
                    continue
                info = infos[i]
                final = info["terminal_observation"]
                assert info["task"] == env.suite.tasks[tasks[i]].name
                assert final["task"] == tasks[i]
                assert final["observation"][0] == info["episode"]["l"] == counts[i]
                assert info["episode"]["r"] == returns[i]
                assert info["is_success"] is bool(actions[i] == 1)
                assert info["TimeLimit.truncated"] is bool(actions[i] == 0)
            np.testing.assert_array_equal(env.task_index[~dones], tasks[~dones])
            tasks = env.task_index.copy()
            counts[dones] = 0
            returns[dones] = 0
            if sampling == "fixed":
                assert tasks.tolist() == sorted(tasks)


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_episode_samples_its_task(backend: BackendName) -> None:
    with closing(SuiteVecEnv(DOORS, 12, backend=backend, sampling="uniform")) as env:
        env.reset()
        played: Counter[str] = Counter()
        for _ in range(30):
            obs, _, dones, infos = env.step(np.full(12, DONE))
            assert dones.all()
            np.testing.assert_array_equal(obs["task"], env.task_index)
            played.update(info["task"] for info in infos)
    assert set(played) == {"5x5", "6x6", "8x8"}
    assert min(played.values()) > 80  # of 120 expected


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("workers", [0, 2])
def test_sampled_episodes_repeat_with_the_seed(backend: BackendName, workers: int) -> None:
    """Two environments with the same seed sample the same tasks and episodes."""
    runs = []
    for _ in range(2):
        env = SuiteVecEnv(
            DOORS, 5, backend=backend, sampling="lowest_success", seed=3, workers=workers
        )
        with closing(env):
            rng = np.random.default_rng(0)
            steps = [env.reset()]
            steps += [env.step(rng.integers(7, size=5))[0] for _ in range(40)]
            runs.append(steps)
    for first, second in zip(*runs, strict=True):
        for key, values in first.items():
            np.testing.assert_array_equal(values, second[key])


def test_workers_do_not_change_sampled_tasks() -> None:
    """Sampled tasks are the same with and without worker processes."""
    plain, spread = (
        SuiteVecEnv(DOORS, 7, backend="gymnasium", sampling="uniform", workers=workers)
        for workers in (0, 3)
    )
    rng = np.random.default_rng(1)
    first = plain.reset()
    second = spread.reset()
    for _ in range(30):
        np.testing.assert_array_equal(first["image"], second["image"])
        np.testing.assert_array_equal(first["task"], second["task"])
        actions = rng.integers(7, size=7)
        first = plain.step(actions)[0]
        second = spread.step(actions)[0]
    plain.close()
    spread.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_seeding_repeats_sampled_tasks(backend: BackendName) -> None:
    """Seeding again repeats uniformly sampled tasks and their episodes."""
    with closing(SuiteVecEnv(DOORS, 6, backend=backend, sampling="uniform", seed=3)) as env:
        runs = []
        for _ in range(2):
            env.seed(3)
            images = [env.reset()["image"]]
            images += [env.step(np.full(6, DONE))[0]["image"] for _ in range(5)]
            runs.append(np.stack(images))
    np.testing.assert_array_equal(*runs)


def test_resume_samples_the_same_tasks() -> None:
    """An environment that loads a sampling state samples the same tasks as the first one."""

    def play(env: SuiteVecEnv) -> list[list[int]]:
        env.reset()
        drawn = []
        for _ in range(10):
            env.step(np.array([1, 2, 1, 2]))  # the outcomes depend on the environment alone
            drawn.append(env.task_index.tolist())
        return drawn

    with closing(SuiteVecEnv(counters(3), 4, sampling="learning_progress", seed=1)) as env:
        play(env)
        state = json.loads(json.dumps(env.sampling_state()))
        expected = play(env)
        probabilities = env.task_probabilities
    with closing(SuiteVecEnv(counters(3), 4, sampling="learning_progress", seed=2)) as env:
        env.load_sampling_state(state)
        assert play(env) == expected
        np.testing.assert_array_equal(env.task_probabilities, probabilities)


def test_failing_task_is_sampled_more() -> None:
    """With sampling=lowest_success, a task that never succeeds is sampled more often."""
    with closing(SuiteVecEnv(choices(2, 3), 8, sampling="lowest_success", workers=0)) as env:
        env.reset()
        for _ in range(200):
            env.step(np.ones(8, int))  # right in the task of two actions, wrong in that of three
        easy, hard = env.task_probabilities
    assert easy == pytest.approx(UNIFORM_SHARE / 2, abs=0.05)
    assert hard == pytest.approx(1 - UNIFORM_SHARE / 2, abs=0.05)


def _play_ones(env: SuiteVecEnv) -> None:
    """Play twenty timesteps, each of which ends every episode of a counter."""
    env.reset()
    for _ in range(20):
        env.step(np.ones(env.num_envs, int))


def test_episodes_elsewhere_count() -> None:
    """Episodes of other processes change the success rates as the environment's own do."""
    with closing(SuiteVecEnv(counters(3), 4, sampling="lowest_success", workers=0)) as env:
        assert env.sampling_depends_on_success
        tasks = [task.name for task in env.suite.tasks]
        before = env.task_probabilities
        env.record_elsewhere([{"task": tasks[1], "is_success": True}] * 20)
        after = env.task_probabilities
    assert after[1] < before[1]
    assert after[0] == pytest.approx(after[2])


def test_unknown_success_refuses_its_sampling() -> None:
    """Sampling by success is refused once a task reports none; the message names it."""
    tasks = (
        TaskConfig(name="known", env_id=COUNTER, success="reward"),
        TaskConfig(name="unknown", env_id=COUNTER),
    )
    suite = SuiteConfig(name="mixed", tasks=tasks)
    strategies: tuple[SamplingName, ...] = ("lowest_success", "learning_progress")
    for sampling in strategies:
        message = (
            rf"sampling={sampling} needs the success of every episode, and task 'unknown' reports "
            r"none .*; use sampling=fixed or sampling=uniform, or set 'success=return>=X'"
        )
        with (
            closing(SuiteVecEnv(suite, 4, sampling=sampling, workers=0)) as env,
            pytest.raises(ConfigError, match=message),
        ):
            _play_ones(env)


def test_uniform_sampling_ignores_success() -> None:
    """Sampling that does not depend on success works where it is unknown."""
    suite = SuiteConfig(
        name="unknown",
        tasks=tuple(TaskConfig(name=name, env_id=COUNTER) for name in ("first", "second")),
    )
    with closing(SuiteVecEnv(suite, 4, sampling="uniform", workers=0)) as env:
        _play_ones(env)
        state = env.sampling_state()
    assert state["recent_success"] == [0.0, 0.0]


def test_fixed_assignment_has_a_state() -> None:
    """A fixed assignment has the shares of the tasks as probabilities, and a state too."""
    with closing(SuiteVecEnv(counters(3), 4)) as env:
        np.testing.assert_allclose(env.task_probabilities, [0.5, 0.25, 0.25])
        env.load_sampling_state(env.sampling_state())
        with pytest.raises(ConfigError, match="sampling=fixed, got uniform"):
            env.load_sampling_state({"sampling": "uniform"})


def test_old_name_in_state_is_accepted() -> None:
    """The state of a fixed assignment in an old checkpoint is loaded, without a warning."""
    TaskAssignment(counters(3), (0, 1, 2), 4, "fixed", 0).load_state({"sampling": "slots"})


def test_unknown_sampling_suggests_a_name() -> None:
    sampling: Any = "lowest_succes"
    message = r"unknown sampling 'lowest_succes'. Did you mean 'lowest_success'"
    with pytest.raises(ConfigError, match=message):
        SuiteVecEnv(counters(2), 2, sampling=sampling)


def test_backends_hold_their_environments() -> None:
    """A fixed assignment splits the environments, sampling needs all of them in each backend."""
    fixed = TaskAssignment(counters(3), (0, 2), 5, "fixed", 0)
    assert fixed.task_ids.tolist() == [0, 0, 0, 2, 2]
    assert fixed.backend_sizes == {0: 3, 2: 2}
    assert fixed.first_env_indices == {0: 0, 2: 3}
    sampled = TaskAssignment(counters(3), (0, 2), 5, "uniform", 0)
    assert sampled.backend_sizes == {0: 5, 2: 5}
    assert sampled.first_env_indices == {0: 0, 2: 0}
