"""Observations are normalized by everything seen up to the last rollout, and nothing else."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from run_setup import checkpoint_of, resolve
from toy_goal_envs import MirrorReachEnv

from mirl.agents import load_policy, train
from mirl.agents.builder import build_agent
from mirl.agents.callbacks.statistics import ObservationStatistics
from mirl.agents.on_policy.ppo import PPO, ppo_losses
from mirl.configs.compose import compose_train
from mirl.configs.schema import TrainConfig
from mirl.envs import SuiteVecEnv
from mirl.policies import FusionExtractor
from mirl.policies.running_norm import RunningNorm

close = torch.testing.assert_close
LIMIT = 5


class FarReachEnv(MirrorReachEnv):
    """Observations with a large scale and offset."""

    def __init__(self, n_steps: int = 2) -> None:
        super().__init__(n_steps)
        seen = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.observation_space = spaces.Dict({**self.observation_space, "observation": seen})

    def _observation(self) -> dict[str, Any]:
        seen = super()._observation()
        return {**seen, "observation": 30 + 100 * seen["observation"]}


gym.register("ToyFarReach-v0", FarReachEnv, max_episode_steps=LIMIT, kwargs={"n_steps": LIMIT})

TINY = (
    "task.name=far",
    "task.tasks=[{name: far, env_id: ToyFarReach-v0, success: info}]",
    "context=goal",
    "context.normalize=true",
    "context.dim=4",
    "encoder=vector",
    "encoder.normalize=true",
    "encoder.hidden=[]",
    "encoder.features_dim=8",
    "sites=[vector, heads]",
    "agent.net_arch=[8]",
    "evaluation.episodes=4",
    "evaluation.max_steps=20",
    "progress=false",
    "device=cpu",
)
KINDS = {
    "ppo": (
        "agent=ppo",
        "agent.n_envs=4",
        "agent.n_steps=16",
        "agent.batch_size=32",
        "total_timesteps=256",
    ),
    "sac": ("agent=sac", "agent.learning_starts=20", "agent.batch_size=16", "total_timesteps=60"),
}
PER_ROLLOUT = {"ppo": 64, "sac": 1}


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., TrainConfig]:
    return lambda kind, *words: compose_train([*KINDS[kind], *TINY, f"runs_dir={tmp_path}", *words])


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, np.ndarray]]:
    """Record the observations of training after each timestep."""
    recorded: list[dict[str, np.ndarray]] = []
    step_wait = SuiteVecEnv.step_wait

    def record(env: SuiteVecEnv) -> Any:
        result = step_wait(env)
        if env.seed_split == "train":
            recorded.append({key: values.copy() for key, values in result[0].items()})
        return result

    monkeypatch.setattr(SuiteVecEnv, "step_wait", record)
    return recorded


def extractors(policy: torch.nn.Module) -> list[FusionExtractor]:
    return [module for module in policy.modules() if isinstance(module, FusionExtractor)]


def norms(policy: torch.nn.Module) -> list[RunningNorm]:
    return [module for module in policy.modules() if isinstance(module, RunningNorm)]


def rows_of(extractor: FusionExtractor, steps: list[dict[str, np.ndarray]]) -> np.ndarray:
    """Return the inputs of the extractor's encoder over these timesteps."""
    joined = {
        key: np.concatenate([step[key] for step in steps]).astype(np.float64) for key in steps[0]
    }
    assert extractor.context.keys == ("desired_goal",)
    return np.concatenate(
        [joined[key].reshape(len(joined[key]), -1) for key in extractor.encoder.keys], axis=1
    )


@pytest.mark.parametrize(("kind", "networks"), [("ppo", 1), ("sac", 3)])
def test_statistics_cover_all_earlier_rollouts(
    tiny: Callable[..., TrainConfig], seen: list[dict[str, np.ndarray]], kind: str, networks: int
) -> None:
    """The statistics are those of everything seen up to the last rollout."""
    config = tiny(kind)
    train(config)
    rollout = PER_ROLLOUT[kind] // config.agent.n_envs
    before_the_last = seen[:-rollout]
    policy = load_policy(config.run_dir, "last", "cpu")
    assert len(extractors(policy)) == networks
    for extractor in extractors(policy):
        rows = rows_of(extractor, before_the_last)
        goals = np.concatenate([step["desired_goal"] for step in before_the_last]).astype(
            np.float64
        )
        for norm, expected in (
            (extractor.encoder.normalize, rows),
            (extractor.context.normalize, goals),
        ):
            assert int(norm.count) == len(expected) == config.total_timesteps - PER_ROLLOUT[kind]
            close(norm.mean, torch.from_numpy(expected.mean(0)))
            close(norm.variance, torch.from_numpy(expected.var(0)))
    assert abs(rows.mean()) > 1, "raw numbers are far from normal"


@pytest.mark.parametrize("kind", ["ppo", "sac"])
def test_statistics_change_between_rollouts_only(
    tiny: Callable[..., TrainConfig], kind: str
) -> None:
    config = tiny(kind)
    with closing(SuiteVecEnv(config.task, config.agent.n_envs, seed=0)) as env:
        agent = build_agent(resolve(config), env)
        [first, *_] = norms(agent.policy)
        counts: list[tuple[str, int, int]] = []
        collect, learn = agent.collect_rollouts, agent.train

        def collected(*arguments: Any, **options: Any) -> Any:
            step, within = env.step_wait, set[int]()

            def recorded() -> Any:
                within.add(int(first.count))
                return step()

            env.step_wait = recorded  # type: ignore[method-assign]
            result = collect(*arguments, **options)
            env.step_wait = step  # type: ignore[method-assign]
            [count] = within
            counts.append(("rollout", count, int(first.count)))
            return result

        def trained(*arguments: Any, **options: Any) -> None:
            before = int(first.count)
            learn(*arguments, **options)
            counts.append(("update", before, int(first.count)))

        agent.collect_rollouts, agent.train = collected, trained  # type: ignore[method-assign]
        agent.learn(4 * PER_ROLLOUT[kind] + 20, callback=ObservationStatistics())
    per_rollout = PER_ROLLOUT[kind]
    rollouts = [(start, end) for part, start, end in counts if part == "rollout"]
    assert rollouts == [(i * per_rollout, i * per_rollout) for i in range(len(rollouts))]
    updates = [(start, end) for part, start, end in counts if part == "update"]
    assert updates
    assert all(start == end for start, end in updates)


def test_first_minibatch_has_unchanged_policy(
    tiny: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first minibatch of each iteration sees the policy that acted."""
    config = tiny("ppo")
    log_ratios: list[float] = []

    def recorded(evaluation: Any, samples: Any, *others: Any) -> Any:
        log_ratios.append(float((evaluation.log_probs.detach() - samples.old_log_prob).abs().max()))
        return ppo_losses(evaluation, samples, *others)

    monkeypatch.setattr("mirl.agents.on_policy.ppo.ppo_losses", recorded)
    with closing(SuiteVecEnv(config.task, config.agent.n_envs, seed=0)) as env:
        agent = build_agent(resolve(config), env)
        assert isinstance(agent, PPO)
        agent.learn(4 * 64, callback=ObservationStatistics())
    per_iteration = len(log_ratios) // 4
    assert max(log_ratios[::per_iteration]) < 1e-4
    assert max(log_ratios) > 1e-3, "later minibatches find another"


@pytest.mark.parametrize("kind", ["ppo", "sac"])
def test_statistics_are_restored(tiny: Callable[..., TrainConfig], kind: str) -> None:
    config = tiny(kind)
    train(config)
    with closing(SuiteVecEnv(config.task, config.agent.n_envs, seed=1)) as env:
        saved, fresh = (build_agent(resolve(config), env) for _ in range(2))
        checkpoint_of(config.run_dir, "last").load_agent(saved)
        assert all(int(norm.count) > 0 for norm in norms(saved.policy))
        assert all(int(norm.count) == 0 for norm in norms(fresh.policy))
        counts = [int(norm.count) for norm in norms(saved.policy)]
        saved.learn(
            2 * PER_ROLLOUT[kind] if kind == "ppo" else 3,
            callback=ObservationStatistics(),
            reset_num_timesteps=False,
        )
    moved = [
        int(norm.count) - count for norm, count in zip(norms(saved.policy), counts, strict=True)
    ]
    assert set(moved) == {PER_ROLLOUT[kind] if kind == "ppo" else 2}, (
        "new observations are added to the earlier ones"
    )


def test_nothing_is_stored_without_normalization(tiny: Callable[..., TrainConfig]) -> None:
    config = tiny("ppo", "encoder.normalize=false", "context.normalize=false")
    callback = ObservationStatistics()
    with closing(SuiteVecEnv(config.task, config.agent.n_envs, seed=0)) as env:
        agent = build_agent(resolve(config), env)
        agent.learn(128, callback=callback)
    assert not norms(agent.policy)
    assert callback.seen == []
