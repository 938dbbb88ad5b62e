"""Which task comes next: the samplers, and the slots that go from task to task."""

import json
from collections import Counter
from contextlib import closing
from typing import Any, get_args

import numpy as np
import pytest
import toy_envs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mirl.configs.errors import ConfigError
from mirl.configs.schema import BackendName, SamplingName
from mirl.configs.tasks import SuiteConfig, TaskConfig
from mirl.envs import SuiteVecEnv
from mirl.envs.sampling import FAST, SLOW, UNIFORM_SHARE, Preference, TaskSampler

PREFERENCES = get_args(Preference)
DOORS = SuiteConfig(
    name="doors",
    tasks=tuple(
        TaskConfig(name=s, env_id=f"MiniGrid-GoToDoor-{s}-v0") for s in ("5x5", "6x6", "8x8")
    ),
)


def counters(n_tasks: int) -> SuiteConfig:
    tasks = tuple(TaskConfig(name=f"task{i}", env_id="ToyCounter-v0") for i in range(n_tasks))
    return SuiteConfig(name="counters", tasks=tasks)


Episodes = st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=200)


@pytest.mark.parametrize("preference", PREFERENCES)
@given(episodes=Episodes)
def test_no_task_is_ever_forgotten(
    preference: Preference, episodes: list[tuple[int, bool]]
) -> None:
    sampler = TaskSampler(preference, range(4), seed=0)
    for task, success in episodes:
        sampler.record(task, success)
    assert sampler.probabilities.sum() == pytest.approx(1)
    assert sampler.probabilities.min() >= UNIFORM_SHARE / 4 - 1e-12


@given(episodes=Episodes)
def test_uniform_stays_uniform(episodes: list[tuple[int, bool]]) -> None:
    sampler = TaskSampler("uniform", range(4), seed=0)
    for task, success in episodes:
        sampler.record(task, success)
    np.testing.assert_allclose(sampler.probabilities, 0.25)


@pytest.mark.parametrize("preference", PREFERENCES)
def test_with_nothing_known_all_tasks_are_equally_likely(preference: Preference) -> None:
    np.testing.assert_allclose(TaskSampler(preference, (0, 1), seed=0).probabilities, 0.5)


@given(first=st.lists(st.booleans(), max_size=60), second=st.lists(st.booleans(), max_size=60))
def test_the_weights_are_those_of_the_formulas(first: list[bool], second: list[bool]) -> None:
    def average(outcomes: list[bool], rate: float) -> float:
        # an exponential moving average as a sum: rate (1 - rate)^age for each success
        return sum(
            rate * (1 - rate) ** age for age, success in enumerate(reversed(outcomes)) if success
        )

    expected = {
        "lowest_success": [1 - average(outcomes, FAST) for outcomes in (first, second)],
        "learning_progress": [
            abs(average(outcomes, FAST) - average(outcomes, SLOW)) for outcomes in (first, second)
        ],
    }
    for preference, weights in expected.items():
        sampler = TaskSampler(preference, (0, 1), seed=0)
        for task, outcomes in enumerate((first, second)):
            for success in outcomes:
                sampler.record(task, success)
        shares = np.array(weights) / sum(weights) if sum(weights) else np.array([0.5, 0.5])
        np.testing.assert_allclose(
            sampler.probabilities, UNIFORM_SHARE / 2 + (1 - UNIFORM_SHARE) * shares
        )


def test_learning_progress_prefers_what_changes_to_what_is_known_and_to_what_never_succeeds() -> (
    None
):
    sampler = TaskSampler("learning_progress", (0, 1, 2), seed=0)
    for episode in range(5000):
        sampler.record(0, True)
        sampler.record(1, False)
        sampler.record(2, episode > 4900)
    known, hopeless, learned = sampler.probabilities
    assert learned > 0.8 > 0.1 > known
    assert hopeless == pytest.approx(UNIFORM_SHARE / 3)


def test_the_draws_follow_the_probabilities() -> None:
    sampler = TaskSampler("lowest_success", (2, 5, 7), seed=0)
    for _ in range(100):
        sampler.record(5, True)
    drawn = sampler.draw(20_000)
    shares = [np.mean(drawn == task) for task in (2, 5, 7)]
    np.testing.assert_allclose(shares, sampler.probabilities, atol=0.02)


@pytest.mark.parametrize("preference", PREFERENCES)
@given(episodes=Episodes, later=Episodes)
def test_a_state_goes_through_json_and_goes_on_alike(
    preference: Preference, episodes: list[tuple[int, bool]], later: list[tuple[int, bool]]
) -> None:
    first, second = (TaskSampler(preference, range(4), seed=seed) for seed in (0, 1))
    for task, success in episodes:
        first.record(task, success)
    first.draw(3)
    second.load(json.loads(json.dumps(first.state())))
    for task, success in later:
        first.record(task, success)
        second.record(task, success)
        assert first.draw(2).tolist() == second.draw(2).tolist()
    assert first.state() == second.state()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampling": "fixed"}, "sampling=lowest_success, got fixed"),
        ({"tasks": [0, 1, 2]}, r"tasks=\[0, 1\], got \[0, 1, 2\]"),
        ({"recent_success": [0.5]}, r"2 rates of 0 to 1 as 'recent_success', got \[0.5\]"),
        ({"recent_success": [0.5, 1.5]}, "2 rates of 0 to 1"),
        ({"recent_success": [0.5, float("nan")]}, "2 rates of 0 to 1"),
        ({"long_ago_success": "Qapla'"}, "2 rates of 0 to 1 as 'long_ago_success'"),
        ({"generator": None}, "no valid 'generator'"),
        ({"generator": {"bit_generator": "MT19937"}}, "no valid 'generator'"),
        (
            {"generator": {"bit_generator": "PCG64", "state": {"state": -1, "inc": 1}}},
            "no valid 'generator'",
        ),
    ],
)
def test_a_state_that_does_not_fit_is_an_error_and_changes_nothing(
    change: dict[str, Any], message: str
) -> None:
    sampler = TaskSampler("lowest_success", (0, 1), seed=0)
    before = sampler.state()
    with pytest.raises(ConfigError, match=message):
        sampler.load({**before, **change})
    assert sampler.state() == before


@pytest.mark.parametrize("sampling", get_args(SamplingName))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), n_tasks=st.integers(1, 3), more=st.integers(0, 3))
def test_every_episode_is_one_of_its_task_whenever_it_ends(
    sampling: SamplingName, data: st.DataObject, n_tasks: int, more: int
) -> None:
    n = n_tasks + more
    rows = st.lists(st.integers(0, 2), min_size=n, max_size=n)
    plan = np.array(data.draw(st.lists(rows, min_size=1, max_size=15)))
    with closing(SuiteVecEnv(counters(n_tasks), n, sampling=sampling, workers=0)) as env:
        obs = env.reset()
        tasks, counts, returns = env.task_index.copy(), np.zeros(n, int), np.zeros(n)
        for actions in plan:
            np.testing.assert_array_equal(obs["task"], env.task_index)
            np.testing.assert_array_equal(obs["observation"][:, 0], counts)
            obs, rewards, dones, infos = env.step(actions)
            counts += 1
            returns += rewards
            np.testing.assert_array_equal(rewards, actions == 1)
            np.testing.assert_array_equal(dones, (actions > 0) | (counts == toy_envs.LENGTH))
            for slot in range(n):
                if not dones[slot]:
                    assert infos[slot] == {}
                    continue
                info, final = infos[slot], infos[slot]["terminal_observation"]
                assert info["task"] == env.suite.tasks[tasks[slot]].name
                assert final["task"] == tasks[slot]
                assert final["observation"][0] == info["episode"]["l"] == counts[slot]
                assert info["episode"]["r"] == returns[slot]
                assert info["is_success"] is bool(actions[slot] == 1)
                assert info["TimeLimit.truncated"] is bool(actions[slot] == 0)
            np.testing.assert_array_equal(env.task_index[~dones], tasks[~dones])
            tasks, counts[dones], returns[dones] = env.task_index.copy(), 0, 0
            if sampling == "fixed":
                assert tasks.tolist() == sorted(tasks)


@pytest.mark.parametrize("backend", ["gymnasium", "envpool"])
def test_each_episode_draws_its_task(backend: BackendName) -> None:
    with closing(SuiteVecEnv(DOORS, 12, backend=backend, sampling="uniform")) as env:
        env.reset()
        played: Counter[str] = Counter()
        for _ in range(30):
            obs, _, dones, infos = env.step(np.full(12, 6))  # "done" ends every episode
            assert dones.all()
            np.testing.assert_array_equal(obs["task"], env.task_index)
            played.update(info["task"] for info in infos)
    assert set(played) == {"5x5", "6x6", "8x8"}
    assert min(played.values()) > 80  # of 120 expected


@pytest.mark.parametrize("backend", ["gymnasium", "envpool"])
@pytest.mark.parametrize("workers", [0, 2])
def test_episodes_of_drawn_tasks_repeat_with_the_seed(backend: BackendName, workers: int) -> None:
    seen = []
    for _ in range(2):
        with closing(
            SuiteVecEnv(
                DOORS, 5, backend=backend, sampling="lowest_success", seed=3, workers=workers
            )
        ) as env:
            rng, steps = np.random.default_rng(0), [env.reset()]
            steps += [env.step(rng.integers(7, size=5))[0] for _ in range(40)]
            seen.append(steps)
    for first, second in zip(*seen, strict=True):
        for key, values in first.items():
            np.testing.assert_array_equal(values, second[key])


def test_workers_do_not_change_what_drawn_tasks_do() -> None:
    plain, spread = (
        SuiteVecEnv(DOORS, 7, backend="gymnasium", sampling="uniform", workers=workers)
        for workers in (0, 3)
    )
    rng, first, second = np.random.default_rng(1), plain.reset(), spread.reset()
    for _ in range(30):
        np.testing.assert_array_equal(first["image"], second["image"])
        np.testing.assert_array_equal(first["task"], second["task"])
        actions = rng.integers(7, size=7)
        (first, *_), (second, *_) = plain.step(actions), spread.step(actions)
    plain.close()
    spread.close()


@pytest.mark.parametrize("backend", ["gymnasium", "envpool"])
def test_seeding_again_repeats_uniformly_drawn_tasks(backend: BackendName) -> None:
    with closing(SuiteVecEnv(DOORS, 6, backend=backend, sampling="uniform", seed=3)) as env:
        runs = []
        for _ in range(2):
            env.seed(3)
            images = [
                env.reset()["image"],
                *(env.step(np.full(6, 6))[0]["image"] for _ in range(5)),
            ]
            runs.append(np.stack(images))
    np.testing.assert_array_equal(*runs)


def test_more_slots_than_256_move_between_pools_of_envpool() -> None:
    with closing(SuiteVecEnv(DOORS, 600, backend="envpool", sampling="uniform")) as env:
        obs = env.reset()
        for _ in range(5):
            obs, _, dones, _ = env.step(np.random.default_rng(0).integers(7, size=600))
            np.testing.assert_array_equal(obs["task"], env.task_index)
        assert dones.any()
        assert set(env.task_index.tolist()) == {0, 1, 2}


def test_a_resumed_environment_draws_the_same_tasks() -> None:
    def play(env: SuiteVecEnv) -> list[list[int]]:
        env.reset()
        drawn = []
        for _ in range(10):
            env.step(np.array([1, 2, 1, 2]))  # the outcomes depend on the slot alone
            drawn.append(env.task_index.tolist())
        return drawn

    with closing(SuiteVecEnv(counters(3), 4, sampling="learning_progress", seed=1)) as env:
        play(env)
        state = json.loads(json.dumps(env.sampling_state()))
        expected, probabilities = play(env), env.task_probabilities
    with closing(SuiteVecEnv(counters(3), 4, sampling="learning_progress", seed=2)) as env:
        env.load_sampling_state(state)
        assert play(env) == expected
        np.testing.assert_array_equal(env.task_probabilities, probabilities)


def test_a_task_that_fails_is_played_more() -> None:
    suite = SuiteConfig(
        name="choices",
        tasks=tuple(
            TaskConfig(name=f"{n}", env_id="ToyChoice-v0", kwargs={"n_actions": n}) for n in (2, 3)
        ),
    )
    with closing(SuiteVecEnv(suite, 8, sampling="lowest_success", workers=0)) as env:
        env.reset()
        for _ in range(200):
            env.step(np.ones(8, int))  # right in the task of two actions, wrong in that of three
        easy, hard = env.task_probabilities
    assert easy == pytest.approx(UNIFORM_SHARE / 2, abs=0.05)
    assert hard == pytest.approx(1 - UNIFORM_SHARE / 2, abs=0.05)


def test_bound_slots_have_their_shares_as_probabilities_and_a_state_too() -> None:
    with closing(SuiteVecEnv(counters(3), 4)) as env:
        np.testing.assert_allclose(env.task_probabilities, [0.5, 0.25, 0.25])
        env.load_sampling_state(env.sampling_state())
        with pytest.raises(ConfigError, match="sampling=fixed, got uniform"):
            env.load_sampling_state({"sampling": "uniform"})


def test_an_unknown_sampling_names_the_nearest() -> None:
    sampling: Any = "lowest_succes"
    with pytest.raises(
        ConfigError, match=r"unknown sampling 'lowest_succes'. Did you mean 'lowest_success'"
    ):
        SuiteVecEnv(counters(2), 2, sampling=sampling)
