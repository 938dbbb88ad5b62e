"""Tests of the backend of games, whose agents are the tasks of a suite."""

from contextlib import closing
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from stable_baselines3 import PPO
from suites import EMPTY

from mirl.configs.errors import ConfigError
from mirl.configs.tasks import HoldoutConfig, SuiteConfig, TaskConfig
from mirl.envs import EnvironmentFailedError, SuiteVecEnv, env_seeds, make_env
from mirl.envs.pools.game import has_game
from mirl.envs.worlds.roles import N_STEPS, RolesVectorEnv

ROLES = "MIRL/Roles-v0"
TOY = "ToyGame-v0"


class ToyGame(RolesVectorEnv):
    """Roles with a Dict of observations, success in the infos, and options that break rules."""

    def __init__(self, breaks: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.breaks = breaks
        inner = self.single_observation_space
        self.single_observation_space = spaces.Dict({"joint": inner})  # type: ignore[assignment]
        if breaks == "space":
            self.single_observation_space = spaces.Discrete(2)  # type: ignore[assignment]
        if breaks == "autoreset":
            self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}

    def reset(self, **kwargs: Any) -> Any:
        obs, info = super().reset(**kwargs)
        return {"joint": obs}, info

    def step(self, actions: Any) -> Any:
        if self.breaks == "step":
            raise ZeroDivisionError("a mistake of the toy")
        obs, rewards, terminated, truncated, info = super().step(actions)
        if self.breaks == "end":
            truncated[0] = True
        info["is_success"] = rewards == 1
        info["_is_success"] = np.arange(len(rewards)) % self.n_agents > 0  # not of agent 0
        return {"joint": obs}, rewards, terminated, truncated, info


gym.register(TOY, vector_entry_point=ToyGame, max_episode_steps=2)


def game(n_agents: int, env_id: str = ROLES, **fields: Any) -> SuiteConfig:
    """Return a suite whose tasks are the agents of a game."""
    tasks = [TaskConfig(name=f"agent_{i}", env_id=env_id, **fields) for i in range(n_agents)]
    return SuiteConfig(name="game", tasks=tuple(tasks))


def test_steps_equal_a_plain_loop() -> None:
    """The environments of a suite equal games that are stepped by hand, one by one."""
    n_agents = 3
    n_games = 4
    rng = np.random.default_rng(0)
    seeds = env_seeds(5, "train", 0, n_games)  # those of agent 0 are the games'
    games = [RolesVectorEnv(n_agents, n_agents) for _ in range(n_games)]
    expected = np.array([each.reset(seed=seed)[0] for each, seed in zip(games, seeds, strict=True)])
    with closing(SuiteVecEnv(game(n_agents), n_agents * n_games, seed=5)) as env:
        obs = env.reset()
        returns = np.zeros((n_games, n_agents))
        for timestep in range(1, 2 * N_STEPS + 1):
            # environments are in the order of the tasks, (agents · games,), games side by side
            by_game = obs["observation"].reshape(n_agents, n_games, -1).swapaxes(0, 1)
            assert np.array_equal(by_game, expected)
            assert obs["task"].tolist() == np.repeat(range(n_agents), n_games).tolist()
            actions = rng.integers(n_agents, size=(n_games, n_agents))
            obs, rewards, dones, infos = env.step(actions.T.reshape(-1))
            for index, each in enumerate(games):
                expected[index], own_rewards, _, truncated, _ = each.step(actions[index])
                assert rewards[index::n_games] == pytest.approx(own_rewards)
                returns[index] += own_rewards
                assert truncated.all() == (timestep % N_STEPS == 0)
                if truncated.all():
                    final = [info["terminal_observation"] for info in infos[index::n_games]]
                    assert np.array_equal([o["observation"] for o in final], expected[index])
                    expected[index], _ = each.reset()
            assert dones.all() == dones.any() == (timestep % N_STEPS == 0)
            if dones.all():
                of_envs = [info["episode"]["r"] for info in infos]
                assert of_envs == pytest.approx(returns.T.reshape(-1), rel=1e-6)
                assert all(info["TimeLimit.truncated"] for info in infos)
                assert not any("is_success" in info for info in infos)
                returns[:] = 0


def test_seed_repeats_the_game() -> None:
    with closing(SuiteVecEnv(game(4), 8, seed=1)) as env:
        first = env.reset()["observation"]
        second = env.reset()["observation"]
        env.seed(1)
        assert np.array_equal(env.reset()["observation"], first)
        assert np.array_equal(env.reset()["observation"], second)
        assert not np.array_equal(first, second)


def test_inactive_games_do_not_matter() -> None:
    """A game goes on alike whether or not another one is deactivated, which is rows of zeros."""
    both = SuiteVecEnv(game(2), 4, seed=0)
    one = SuiteVecEnv(game(2), 4, seed=0)
    with closing(both), closing(one):
        both.reset()
        one.reset()
        one.deactivate(np.array([1, 3]), at_once=True)  # game 1
        for _ in range(N_STEPS + 3):
            actions = np.array([0, 1, 1, 1])
            obs, rewards, *_ = both.step(actions)
            own_obs, own_rewards, *_ = one.step(actions)
            assert np.array_equal(own_obs["observation"][::2], obs["observation"][::2])
            assert np.array_equal(own_rewards[::2], rewards[::2])
            assert not own_rewards[1::2].any()


def test_success_is_passed_on() -> None:
    """Success in the infos of a game is that of its slots, and a Dict keeps its keys."""
    with closing(SuiteVecEnv(game(2, TOY), 4)) as env:
        assert list(env.observation_space) == ["joint", "task"]
        env.reset()
        env.step(np.zeros(4, int))
        # agents (0, 0, 1, 1), games (0, 1, 0, 1): only those of game 0 differ
        _, _, dones, infos = env.step(np.array([0, 1, 1, 1]))
        assert dones.all()
        assert [info.get("is_success") for info in infos] == [None, None, True, False]


def test_sb3_trains_a_game() -> None:
    """SB3's own PPO trains on the environments."""
    with closing(SuiteVecEnv(game(2), 4)) as env:
        model = PPO("MultiInputPolicy", env, n_steps=32, batch_size=32, n_epochs=1, device="cpu")
        assert model.learn(128).num_timesteps == 128


@pytest.mark.parametrize(
    ("suite", "n_envs", "options", "message"),
    [
        (game(3), 4, {}, "n_envs must be a multiple of its 3 agents, got 4"),
        (game(3), 6, {"sampling": "uniform"}, "use sampling=fixed"),
        (
            game(3),
            6,
            {"holdout": HoldoutConfig(name="mine", tasks=("agent_1",))},
            "needs all of its 3 agents, got 2",
        ),
        (game(1), 2, {}, "cannot act alone"),
        (game(2, kwargs={"size": 3}), 2, {}, "kwargs={'size': 3}: .*unexpected keyword"),
        (game(2, wrappers=("minigrid.wrappers:NoDeath",)), 2, {}, "leave wrappers out"),
        (game(2).model_copy(update={"observation": "rgb"}), 2, {}, "use observation=grid"),
        (
            game(2).with_task(TaskConfig(name="agent_0", env_id=EMPTY)),
            2,
            {},
            "are its agents, which share env_id and kwargs",
        ),
        (game(2, TOY, kwargs={"breaks": "space"}), 2, {}, "a Dict of Boxes .*Discrete"),
        (game(2, TOY, kwargs={"breaks": "autoreset"}), 2, {}, "autoreset_mode=DISABLED"),
    ],
)
def test_bad_suite_is_an_error(
    suite: SuiteConfig, n_envs: int, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        SuiteVecEnv(suite, n_envs, **options)


def test_options_are_an_error() -> None:
    with closing(SuiteVecEnv(game(2), 2)) as env:
        env.set_options({"size": 3})
        with pytest.raises(ConfigError, match="a game takes no options"):
            env.reset()


def test_agents_act_together() -> None:
    """An agent cannot be deactivated without the others of its game."""
    with closing(SuiteVecEnv(game(2), 2)) as env:
        env.reset()
        env.deactivate(np.array([0]), at_once=True)
        with pytest.raises(EnvironmentFailedError, match="start, step and end together"):
            env.step(np.zeros(2, int))


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        ("end", "start, step and end together"),
        ("step", r"'agent_0' \(ToyGame-v0\) failed in step\(\): ZeroDivisionError: a mistake"),
    ],
)
def test_failing_game_is_named(breaks: str, message: str) -> None:
    env = SuiteVecEnv(game(2, TOY, kwargs={"breaks": breaks}), 4)
    with closing(env):
        env.reset()
        with pytest.raises(EnvironmentFailedError, match=message):
            env.step(np.zeros(4, int))
        with pytest.raises(RuntimeError, match="a new SuiteVecEnv"):
            env.step(np.zeros(4, int))


def test_single_environment_is_refused() -> None:
    with pytest.raises(ConfigError, match="is a game, whose agents only step together"):
        make_env(game(2).tasks[0])


def test_other_suites_are_no_games() -> None:
    tasks = (TaskConfig(name="empty", env_id=EMPTY), TaskConfig(name="pole", env_id="CartPole-v1"))
    assert not has_game(SuiteConfig(name="two", tasks=tasks))
