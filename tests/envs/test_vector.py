"""``SuiteVecEnv`` steps a whole suite as SB3 expects, on both backends."""

from typing import Any

import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy

from mirl.configs.errors import ConfigError
from mirl.configs.schema import BackendName
from mirl.configs.tasks import SuiteConfig, TaskConfig
from mirl.envs import SuiteVecEnv, make_vec_env
from mirl.envs.make import make_env

BACKENDS: tuple[BackendName, ...] = ("gymnasium", "envpool")
pytestmark = pytest.mark.parametrize("backend", BACKENDS)

FORWARD = 2
EMPTY = "MiniGrid-Empty-5x5-v0"  # from the corner: 2 × forward, right, 2 × forward reaches the goal; 100 steps at most
SOLUTION = (2, 2, 1, 2, 2)
SUITE = SuiteConfig(
    name="suite",
    tasks=(
        TaskConfig(name="doors", env_id="MiniGrid-GoToDoor-5x5-v0"),
        TaskConfig(name="empty", env_id="MiniGrid-Empty-Random-5x5-v0"),
        TaskConfig(name="local", env_id="BabyAI-GoToLocalS5N2-v0"),
    ),
)


def trajectory(env: SuiteVecEnv, n_steps: int, action_seed: int = 0) -> list[np.ndarray]:
    """Images, missions, rewards and dones under random actions."""
    rng = np.random.default_rng(action_seed)
    obs = env.reset()
    seen = [obs["image"], obs["mission"]]
    for _ in range(n_steps):
        obs, rewards, dones, _ = env.step(rng.integers(7, size=env.num_envs))
        seen += [obs["image"], obs["mission"], rewards, dones]
    return seen


def same(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def step_all(env: SuiteVecEnv, action: int) -> Any:
    return env.step(np.full(env.num_envs, action))


def test_every_task_is_present_in_equal_shares(backend: BackendName) -> None:
    env = SuiteVecEnv(SUITE, 8, backend=backend)
    assert env.task_index.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert env.reset()["task"].tolist() == env.task_index.tolist()
    assert step_all(env, FORWARD)[0]["task"].tolist() == env.task_index.tolist()
    env.close()


def test_the_backend_that_was_asked_for_is_used(backend: BackendName) -> None:
    env = SuiteVecEnv(SUITE, 3, backend=backend)
    assert env.backend == backend
    env.close()


def test_a_success_terminates_and_is_a_success(backend: BackendName) -> None:
    env = make_vec_env(EMPTY, 2, backend=backend)
    env.reset()
    for action in SOLUTION[:-1]:
        _, rewards, dones, infos = step_all(env, action)
        assert not dones.any()
        assert infos == [{}, {}]
    _, rewards, dones, infos = step_all(env, SOLUTION[-1])
    assert dones.all()
    assert rewards == pytest.approx(1 - 0.9 * 5 / 100)
    assert infos[1]["is_success"] is True
    assert infos[1]["TimeLimit.truncated"] is False
    assert infos[1]["task"] == EMPTY
    assert infos[1]["episode"]["r"] == pytest.approx(1 - 0.9 * 5 / 100)
    assert infos[1]["episode"]["l"] == 5
    assert infos[1]["episode"]["t"] > 0
    env.close()


def test_the_next_episode_starts_in_the_same_step(backend: BackendName) -> None:
    env = make_vec_env(EMPTY, 1, backend=backend)
    start = env.reset()
    for action in SOLUTION:
        before = step_all(env, action)
    obs, _, dones, infos = before
    assert dones[0]
    for key, values in obs.items():
        np.testing.assert_array_equal(values, start[key])
    final = infos[0]["terminal_observation"]
    assert set(final) == set(obs)
    assert final["direction"] == 1  # facing down on the goal, where the new episode faces right
    assert not np.array_equal(final["image"], start["image"][0])
    # and the first action of the new episode is not eaten by the reset
    moved, *_ = step_all(env, FORWARD)
    assert not np.array_equal(moved["image"], start["image"])
    env.close()


def test_a_time_out_is_truncated_and_no_success(backend: BackendName) -> None:
    env = make_vec_env(EMPTY, 1, backend=backend)
    env.reset()
    for _ in range(99):
        assert not step_all(env, 0)[2].any()
    _, _, dones, infos = step_all(env, 0)
    assert dones[0]
    assert infos[0]["TimeLimit.truncated"] is True
    assert infos[0]["is_success"] is False
    assert infos[0]["episode"]["l"] == 100
    env.close()


def test_a_success_on_the_last_allowed_step_is_not_truncated(backend: BackendName) -> None:
    env = make_vec_env(EMPTY, 1, backend=backend)
    env.reset()
    for action in (*SOLUTION[:-1], *[6] * 95):
        assert not step_all(env, action)[2].any()
    _, rewards, dones, infos = step_all(env, SOLUTION[-1])
    assert dones[0]
    assert rewards[0] == pytest.approx(0.1)
    assert infos[0]["is_success"] is True
    assert infos[0]["TimeLimit.truncated"] is False
    env.close()


def test_a_failure_terminates_and_is_no_success(backend: BackendName) -> None:
    env = make_vec_env("MiniGrid-GoToDoor-5x5-v0", 4, backend=backend)
    env.reset()
    _, rewards, dones, infos = step_all(
        env, 6
    )  # "done" nowhere near the door, or (with luck) in front of it
    assert dones.all()
    for reward, info in zip(rewards, infos, strict=True):
        assert info["TimeLimit.truncated"] is False
        assert info["is_success"] is bool(reward > 0)
    assert (rewards == 0).any()
    env.close()


def test_episode_statistics_equal_a_plain_count(backend: BackendName) -> None:
    env = SuiteVecEnv(SUITE, 6, backend=backend)
    env.reset()
    rng = np.random.default_rng(0)
    returns, lengths, episodes = [0.0] * 6, [0] * 6, 0
    for _ in range(150):
        _, rewards, dones, infos = env.step(rng.integers(7, size=6))
        for slot in range(6):
            returns[slot] += float(rewards[slot])
            lengths[slot] += 1
            assert bool(infos[slot]) == dones[slot]
            if dones[slot]:
                assert infos[slot]["episode"]["r"] == pytest.approx(returns[slot])
                assert infos[slot]["episode"]["l"] == lengths[slot]
                assert infos[slot]["task"] == SUITE.tasks[env.task_index[slot]].name
                returns[slot], lengths[slot], episodes = 0.0, 0, episodes + 1
    assert episodes > 20
    env.close()


def test_the_terminal_observation_shows_the_mission_of_its_own_episode(
    backend: BackendName,
) -> None:
    env = make_vec_env("MiniGrid-GoToDoor-5x5-v0", 4, backend=backend)
    mission, changed = env.reset()["mission"], False
    for _ in range(20):
        obs, _, dones, infos = step_all(env, 6)
        assert dones.all()
        np.testing.assert_array_equal(
            [info["terminal_observation"]["mission"] for info in infos], mission
        )
        changed |= not np.array_equal(obs["mission"], mission)
        mission = obs["mission"]
    assert changed
    env.close()


def test_the_same_seed_gives_the_same_trajectory(backend: BackendName) -> None:
    first, second = (SuiteVecEnv(SUITE, 6, backend=backend, seed=3) for _ in range(2))
    assert same(trajectory(first, 60), trajectory(second, 60))
    first.close()
    second.close()


@pytest.mark.parametrize("other", [{"seed": 4}, {"split": "test"}])
def test_another_seed_or_split_gives_another_trajectory(
    backend: BackendName, other: dict[str, Any]
) -> None:
    first = SuiteVecEnv(SUITE, 6, backend=backend, seed=3)
    second = SuiteVecEnv(SUITE, 6, backend=backend, **{"seed": 3, **other})
    assert not same(trajectory(first, 10), trajectory(second, 10))
    first.close()
    second.close()


def test_seeding_again_restarts_the_streams_at_the_next_reset(backend: BackendName) -> None:
    env = SuiteVecEnv(SUITE, 6, backend=backend, seed=3)
    first = trajectory(env, 30)
    assert not same(trajectory(env, 30), first)  # a plain reset goes on in the streams
    env.seed(3)
    assert same(trajectory(env, 30), first)
    env.seed(4)
    assert not same(trajectory(env, 30), first)
    env.close()


def test_neighboring_seeds_share_no_layouts(backend: BackendName) -> None:
    layouts: set[bytes] = set()
    for seed in range(4):
        env = make_vec_env("BabyAI-UnlockPickupDist-v0", 16, backend=backend, seed=seed)
        views = [env.reset()["image"]] + [
            step_all(env, 0)[0]["image"] for _ in range(3)
        ]  # all around
        layouts |= {around.tobytes() for around in np.stack(views, axis=1)}
        env.close()
    assert len(layouts) == 4 * 16


def test_a_new_reset_drops_the_step_under_way(backend: BackendName) -> None:
    env = make_vec_env(EMPTY, 2, backend=backend)
    start = env.reset()
    env.step_async(np.array([FORWARD, FORWARD]))
    np.testing.assert_array_equal(env.reset()["image"], start["image"])
    assert not step_all(env, FORWARD)[2].any()
    env.close()


def test_observations_are_not_overwritten_by_later_steps(backend: BackendName) -> None:
    env = SuiteVecEnv(SUITE, 6, backend=backend)
    obs = env.reset()
    kept = {key: values.copy() for key, values in obs.items()}
    for action in (FORWARD, 6, FORWARD, 1):
        later, *_ = step_all(env, action)
        for key, values in obs.items():
            np.testing.assert_array_equal(values, kept[key])
        obs, kept = later, {key: values.copy() for key, values in later.items()}
    env.close()


def test_a_retired_slot_ends_its_episode_and_rests_while_the_others_go_on_as_ever(
    backend: BackendName,
) -> None:
    task = {"name": "empty", "env_id": EMPTY}
    suite = SuiteConfig(
        name="rooms", tasks=(TaskConfig(**task), TaskConfig(**{**task, "name": "again"}))
    )
    env, twin = (SuiteVecEnv(suite, 4, backend=backend) for _ in range(2))
    env.reset()
    twin.reset()
    env.deactivate(np.array([1, 2]))
    for number, action in enumerate(SOLUTION + SOLUTION):
        (obs, rewards, dones, infos), others = step_all(env, action), step_all(twin, action)
        rests = number >= len(SOLUTION)
        for slot in range(4):
            if rests and slot in (1, 2):
                assert not any((dones[slot], rewards[slot], infos[slot], obs["image"][slot].any()))
            else:
                assert (dones[slot], rewards[slot]) == (others[2][slot], others[1][slot])
                end = number == len(SOLUTION) - 1 and slot in (
                    1,
                    2,
                )  # the last observation stays, as in the infos
                expected = (
                    others[3][slot]["terminal_observation"]["image"]
                    if end
                    else others[0]["image"][slot]
                )
                np.testing.assert_array_equal(obs["image"][slot], expected)
    env.deactivate(np.arange(4))
    for action in SOLUTION:
        step_all(env, action)
    with pytest.raises(RuntimeError, match=r"needs reset\(\) first"):
        step_all(env, FORWARD)
    assert env.reset()["image"].any(axis=(1, 2, 3)).all()
    assert not step_all(env, FORWARD)[2].any()
    env.close()
    twin.close()


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.zeros(5, int), r"shape \(6,\).*got \(5,\)"),
        (np.zeros((6, 1), int), r"shape \(6,\).*got \(6, 1\)"),
        (np.zeros(12, int), r"shape \(6,\).*got \(12,\)"),
        (np.zeros(6), "integers, got float64"),
        (np.array([0, 0, 7, 0, 0, 0]), r"Discrete\(7\), got 7 for environment 2"),
        (np.array([0, 0, 0, 0, 0, -1]), r"Discrete\(7\), got -1 for environment 5"),
        (np.full(6, 2**32), "got 4294967296 for environment 0"),
    ],
)
def test_invalid_actions_are_errors_and_the_environment_goes_on(
    backend: BackendName, actions: np.ndarray, message: str
) -> None:
    env = SuiteVecEnv(SUITE, 6, backend=backend, workers=0)
    env.reset()
    with pytest.raises(ValueError, match=message):
        env.step(actions)
    assert step_all(env, FORWARD)[1].shape == (6,)
    env.close()


def test_steps_out_of_order_say_what_is_missing(backend: BackendName) -> None:
    env = make_vec_env(EMPTY, 2, backend=backend)
    with pytest.raises(RuntimeError, match=r"needs reset\(\) first"):
        env.step_async(np.zeros(2, int))
    env.reset()
    with pytest.raises(RuntimeError, match=r"needs step_async\(\) first"):
        env.step_wait()
    env.close()
    with pytest.raises(RuntimeError, match="closed"):
        env.reset()


def test_closing_twice_is_harmless(backend: BackendName) -> None:
    env = SuiteVecEnv(SUITE, 6, backend=backend)
    env.reset()
    env.close()
    env.close()


def test_an_unknown_id_names_the_nearest(backend: BackendName) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'MiniGrid-GoToDoor-5x5-v0'"):
        make_vec_env("MiniGrid-GoToDor-5x5-v0", 2, backend=backend)


def test_fewer_slots_than_tasks_are_an_error(backend: BackendName) -> None:
    with pytest.raises(ConfigError, match="at least one per task of suite 'suite', 3, got 2"):
        SuiteVecEnv(SUITE, 2, backend=backend)


def test_sb3_learns_and_evaluates_on_it_without_warnings(backend: BackendName) -> None:
    env = SuiteVecEnv(SUITE, 6, backend=backend)
    model = PPO(
        "MultiInputPolicy", env, n_steps=16, batch_size=48, n_epochs=1, seed=5, device="cpu"
    )
    model.learn(96)
    assert model.num_timesteps == 96
    assert len(model.ep_info_buffer) > 0
    evaluate_policy(model, env, n_eval_episodes=3)
    env.close()


def test_single_environments_cannot_be_reached(backend: BackendName) -> None:
    env = make_vec_env(EMPTY, 2, backend=backend)
    assert env.get_attr("render_mode") == [None, None]
    for call in (
        lambda: env.get_attr("x"),
        lambda: env.set_attr("x", 1),
        lambda: env.env_method("x"),
    ):
        with pytest.raises(
            AttributeError, match="no access to single environments, so not to their 'x'"
        ):
            call()
    env.close()


def test_a_replay_in_single_environments_gives_the_same(backend: BackendName) -> None:
    if backend == "envpool":
        pytest.skip("EnvPool draws other layouts; test_parity.py replays its states")
    env = SuiteVecEnv(SUITE, 6, backend=backend, seed=1)
    singles = [make_env(SUITE.tasks[task], task, 3) for task in env.task_index]
    expected = [
        single.reset(seed=seed)[0] for single, seed in zip(singles, env.seed(1), strict=True)
    ]
    obs = env.reset()
    rng = np.random.default_rng(0)
    for _ in range(80):
        for slot in range(6):
            np.testing.assert_array_equal(obs["image"][slot], expected[slot]["image"])
            np.testing.assert_array_equal(obs["mission"][slot], expected[slot]["mission"])
        actions = rng.integers(7, size=6)
        obs, rewards, dones, infos = env.step(actions)
        for slot, single in enumerate(singles):
            expected[slot], reward, terminated, truncated, _ = single.step(actions[slot])
            assert rewards[slot] == pytest.approx(reward)
            assert dones[slot] == (terminated or truncated)
            if dones[slot]:
                final = infos[slot]["terminal_observation"]
                np.testing.assert_array_equal(final["image"], expected[slot]["image"])
                expected[slot], _ = single.reset()
    env.close()
