"""Tests of the Meta-World tasks: they are the package's own, with a new goal in every episode."""

import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from mirl.configs.compose import compose_train
from mirl.configs.errors import ConfigError
from mirl.configs.tasks import SuiteConfig, TaskConfig
from mirl.envs import SuiteVecEnv, make_env

metaworld = pytest.importorskip("metaworld")
from metaworld.env_dict import MT10_V3, MT50_V3  # noqa: E402
from metaworld.policies import SawyerReachV3Policy  # noqa: E402

from mirl.envs.worlds.metaworld import MetaWorldEnv  # noqa: E402

GOAL = slice(36, 39)


def task_config(name: str = "reach-v3", **kwargs: Any) -> TaskConfig:
    return TaskConfig(name="task", env_id=f"Meta-World/{name}", kwargs=kwargs, success="any_step")


@pytest.mark.parametrize(
    "name", ["reach-v3", "pick-place-v3", "drawer-open-v3", "peg-insert-side-v3"]
)
def test_task_equals_the_packages_task(name: str) -> None:
    """From the same places, observations, rewards and successes are those of the package."""
    ours = MetaWorldEnv(name)
    start, _ = ours.reset(seed=3)
    theirs = gym.make("Meta-World/MT1", env_name=name, seed=0, disable_env_checker=True).unwrapped
    place = {
        "env_cls": type(theirs),
        "rand_vec": ours._sawyer._last_rand_vec,
        "partially_observable": False,
    }
    theirs.set_task(metaworld.types.Task(env_name=name, data=pickle.dumps(place)))
    expected, _ = theirs.reset()
    np.testing.assert_allclose(start, expected, atol=1e-6)
    for action in np.random.default_rng(0).uniform(-1, 1, (60, 4)).astype(np.float32):
        obs, reward, terminated, truncated, info = ours.step(action)
        expected, expected_reward, *ends, expected_info = theirs.step(action)
        np.testing.assert_allclose(obs, expected, atol=1e-6)
        assert reward == pytest.approx(float(expected_reward), abs=1e-9)
        assert [terminated, truncated] == ends
        assert info["success"] == expected_info["success"]


def test_places_follow_the_benchmarks() -> None:
    """The places have the distribution of those of the benchmarks."""
    benchmark = metaworld.MT1("reach-v3", seed=0)
    theirs = np.array([pickle.loads(task.data)["rand_vec"] for task in benchmark.train_tasks])
    env = MetaWorldEnv("reach-v3")
    env.reset(seed=0)
    places = []
    for _ in range(100):
        env.reset()
        places.append(env._sawyer._last_rand_vec)
    ours = np.array(places)
    assert len(np.unique(ours, axis=0)) == 100
    spread = env._sawyer._random_reset_space.high - env._sawyer._random_reset_space.low
    np.testing.assert_allclose(ours.mean(0), theirs.mean(0), atol=0.25 * spread.max())
    assert (abs(ours.min(0) - theirs.min(0)) <= 0.2 * spread + 1e-9).all()
    assert (abs(ours.max(0) - theirs.max(0)) <= 0.2 * spread + 1e-9).all()


def test_every_episode_has_a_new_goal() -> None:
    """The goal is observed, and differs between episodes."""
    env = MetaWorldEnv("reach-v3")
    goals = [env.reset(seed=0)[0][GOAL], env.reset()[0][GOAL], env.reset()[0][GOAL]]
    assert all(goal.all() for goal in goals)
    assert len(np.unique(goals, axis=0)) == 3


def test_seed_decides_later_episodes() -> None:
    """The seed decides every episode after it, whatever numpy's global seed is."""

    def starts(seed: int) -> list[Any]:
        env = MetaWorldEnv("push-v3")
        return [env.reset(seed=seed)[0].tolist(), env.reset()[0].tolist()]

    np.random.seed(0)  # noqa: NPY002  (Meta-World's default generator)
    first = starts(1)
    assert first == starts(1)
    assert all(a != b for a, b in zip(first, starts(2), strict=True))


def test_environments_have_different_goals() -> None:
    """All environments and episodes have different goals."""
    suite = SuiteConfig(name="suite", tasks=(task_config(),))
    env = SuiteVecEnv(suite, 3, backend="gymnasium", seed=0, workers=0)
    goals = [*env.reset()["observation"][:, GOAL], *env.reset()["observation"][:, GOAL]]
    env.close()
    assert len(np.unique(goals, axis=0)) == 6


@pytest.mark.filterwarnings("ignore:.*Box observation space m.* value is")  # see MetaWorldEnv
def test_gymnasium_check_passes() -> None:
    check_env(MetaWorldEnv("reach-v3"), skip_render_check=True)


@pytest.mark.filterwarnings("ignore:Constant")  # the expert's actions are clipped
def test_episodes_can_end_at_success() -> None:
    """Episodes are truncated, or terminate at their first success if asked to."""

    def play(env: MetaWorldEnv) -> tuple[int, bool, bool]:
        policy = SawyerReachV3Policy()
        obs, _ = env.reset(seed=0)
        for step in range(1, 501):
            action = policy.get_action(obs).clip(-1, 1).astype(np.float32)
            obs, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                return step, terminated, truncated
        return 501, False, False

    assert play(MetaWorldEnv("reach-v3")) == (500, False, True)
    step, terminated, truncated = play(MetaWorldEnv("reach-v3", terminate_on_success=True))
    assert step < 150
    assert (terminated, truncated) == (True, False)


def test_tasks_share_one_space() -> None:
    """All tasks have the same observation space, in float32."""
    spaces = [
        make_env(task_config(name)).observation_space for name in ("reach-v3", "drawer-open-v3")
    ]
    assert spaces[0] == spaces[1]
    obs, _ = make_env(task_config()).reset(seed=0)
    assert obs["observation"].dtype == np.float32


@pytest.mark.parametrize(("preset", "listed"), [("mt10", MT10_V3), ("mt50", MT50_V3)])
def test_presets_list_the_benchmarks_tasks(preset: str, listed: dict[str, Any]) -> None:
    """The presets list the tasks of the benchmarks in their order."""
    tasks = compose_train([f"task={preset}"]).task.tasks
    assert [task.env_id for task in tasks] == [f"Meta-World/{name}" for name in listed]
    assert {task.success for task in tasks} == {"any_step"}


def test_every_task_is_registered() -> None:
    assert {f"Meta-World/{name}" for name in metaworld.ALL_V3_ENVIRONMENTS} <= set(gym.registry)


def test_misspelled_task_suggests_a_name() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'Meta-World/reach-v3'"):
        make_env(task_config("reech-v3"))


class FakeCamera:
    """Camera whose vertical axis points up (1.0) or down (-1.0)."""

    def __init__(self, up: float) -> None:
        self.xmat = np.diag([1.0, up, up]).flatten()[[0, 1, 2, 6, 7, 8, 3, 4, 5]]


@pytest.mark.parametrize(("up", "turned"), [(-1.0, True), (1.0, False)])
def test_upside_down_pictures_are_turned(
    up: float, turned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pictures of cameras that hang upside down are turned."""
    env = MetaWorldEnv("reach-v3", render_mode="rgb_array")
    frame = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    monkeypatch.setattr(env._sawyer, "render", lambda: frame)
    monkeypatch.setattr(
        env._sawyer, "data", type("Data", (), {"camera": staticmethod(lambda name: FakeCamera(up))})
    )
    np.testing.assert_array_equal(env.render(), np.rot90(frame, 2) if turned else frame)
