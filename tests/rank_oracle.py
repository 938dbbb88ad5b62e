"""One update by several ranks, beside the same update by one process. Run by ``torchrun``.

Each process collects a rollout with all environments and trains on it alone; then the ranks train
on it together, each with its share of the environments. The differences go to a file per rank.
"""

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from multitask_setup import SidesEnv
from recall_setup import recall_envs
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch import nn

from mirl.agents import A2C, PPO
from mirl.agents.callbacks.statistics import merged_over
from mirl.agents.runs.ranks import Ranks
from mirl.configs.errors import RunError
from mirl.configs.networks import RecurrentConfig, choose
from mirl.envs import ContractObservation
from mirl.policies import FusionPolicy, RecurrentFusionPolicy
from mirl.policies.running_norm import RunningNorm

PAYS = (1.0, 10.0, 0.1, 3.0)
"""Scales of the rewards of the tasks."""
N_ENVS = 8
SEED = 7
"""Seed of the permutations."""
RECORDED = (
    "add_observation",
    "store_hidden_state",
    "add",
    "add_bootstrapped_values",
    "compute_returns_and_advantage",
)
"""Methods by which a rollout comes into the buffer."""
BOOTSTRAP = "add_bootstrapped_values"
Call = tuple[str, tuple[Any, ...]]


def sides(n_envs: int) -> VecEnv:
    """Return environments whose tasks are side by side, so that a rank lacks half of the tasks."""

    def make(env_index: int) -> Callable[[], ContractObservation]:
        task = env_index * len(PAYS) // n_envs
        return lambda: ContractObservation(
            SidesEnv(bool(task % 2), PAYS[task]), task, len(PAYS), task_key=True
        )

    return DummyVecEnv([make(env_index) for env_index in range(n_envs)])


def build(case: str, n_envs: int) -> Any:
    """Build an untrained agent of a case."""
    policy = {"fusion": "film", "context": "task_id", "net_arch": [16]}
    policy["scale_values" if case == "ppo" else "popart"] = True
    shared = {"policy_kwargs": policy, "seed": 0, "device": "cpu", "ent_coef": 0.01}
    ppo = {"n_steps": 8, "n_epochs": 2, **shared}
    match case:
        case "ppo":
            # minibatches so small that a rank often has no sample
            options = {"batch_size": 2, "clip_range_vf": 0.2, "kl_coef": 0.1, "target_kl": 0.5}
            return PPO(FusionPolicy, sides(n_envs), **ppo, **options)
        case "popart":
            options = {"pcgrad": True, "advantages_per_task": True, "conflict_every": 1}
            floor = {"batch_size": 16, "advantage_floor": 0.1}
            return PPO(FusionPolicy, sides(n_envs), **ppo, **options, **floor)
        case "a2c":
            options = {"normalize_advantage": True, "advantage_floor": 0.1, "n_steps": 8}
            return A2C(FusionPolicy, sides(n_envs), **options, **shared)
        case "lstm":
            core = choose("lstm", RecurrentConfig)
            recurrent = {"memory": core, "sites": ("vector", "heads")}
            options = {"sequence_length": 4, "burn_in": 4, "batch_size": 16}
            env = recall_envs(n_envs, truncate=True)
            given = {**ppo, **options, "n_steps": 16, "policy_kwargs": recurrent}
            return PPO(RecurrentFusionPolicy, env, **given)
    raise ValueError(case)


def record_rollout(agent: Any) -> list[Call]:
    """Collect a rollout; return how it came into the buffer."""
    calls: list[Call] = []
    buffer = agent.rollout_buffer

    def recorded(name: str) -> Callable[..., Any]:
        method = getattr(buffer, name)

        def call(*values: Any, **named: Any) -> Any:
            arguments = (*values, *named.values())
            calls.append((name, tuple(_copied(value) for value in arguments)))
            return method(*arguments)

        return call

    for name in RECORDED:
        if hasattr(buffer, name):
            setattr(buffer, name, recorded(name))
    _, callback = agent._setup_learn(1)
    assert agent.collect_rollouts(agent.env, callback, buffer, agent.n_steps)
    return calls


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(part) for key, part in value.items()}
    if isinstance(value, torch.Tensor):
        return value.clone()
    return np.array(value) if isinstance(value, np.ndarray) else value


def replay(agent: Any, calls: list[Call], ranks: Ranks) -> None:
    """Fill the buffer with the environments that a rank has of a recorded rollout."""
    agent._setup_learn(1)
    buffer = agent.rollout_buffer
    buffer.reset()
    for name, arguments in calls:
        if name == BOOTSTRAP:
            arguments = _own_truncations(*arguments, buffer.own)
        else:
            arguments = tuple(_own_rows(value, buffer.own) for value in arguments)
        getattr(buffer, name)(*arguments)


def _own_rows(value: Any, own: slice) -> Any:
    if isinstance(value, dict):
        return {key: part[own] for key, part in value.items()}
    return value[own]


def _own_truncations(
    timesteps: list[int], envs: list[int], values: torch.Tensor, own: slice
) -> tuple[list[int], list[int], torch.Tensor]:
    chosen = [row for row, env in enumerate(envs) if own.start <= env < own.stop]
    own_envs = [envs[row] - own.start for row in chosen]
    return [timesteps[row] for row in chosen], own_envs, values[chosen]


def compare(case: str, ranks: Ranks) -> dict[str, Any]:
    """Train once alone and once with the other ranks; return the differences."""
    alone = build(case, N_ENVS)
    calls = record_rollout(alone)
    shared = build(case, N_ENVS // ranks.size)
    shared.use_ranks(ranks)
    start = nn.utils.parameters_to_vector(shared.policy.parameters()).detach().clone()
    replay(shared, calls, ranks)
    shared.num_timesteps = alone.num_timesteps
    for agent, seed in ((alone, SEED), (shared, SEED + ranks.rank)):
        np.random.seed(seed)  # noqa: NPY002
        agent.train()
    ranks.check_equal(shared.policy)
    weights = [agent.policy.state_dict() for agent in (alone, shared)]
    metrics = [agent.logger.name_to_value for agent in (alone, shared)]
    end = nn.utils.parameters_to_vector(shared.policy.parameters()).detach()
    digest = hashlib.sha256(end.numpy().tobytes())
    return {
        "difference": max(_distance(weights[1][name], weights[0][name]) for name in weights[0]),
        "change": _distance(start, end),
        "metrics": {
            name: [float(value), float(metrics[1][name])]
            for name, value in metrics[0].items()
            if name.startswith("train/") and "distinct" not in name
        },
        "digest": digest.hexdigest(),
    }


def _distance(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first - second).abs().max())


def check_collectives(ranks: Ranks) -> dict[str, Any]:
    """Return what the collectives do with values that differ by rank."""
    own = torch.full((2,), float(ranks.rank))
    network = nn.Linear(2, 2)
    nn.init.constant_(network.weight, float(ranks.rank))
    error = ""
    try:
        ranks.check_equal(network)
    except RunError as raised:
        error = str(raised)
    strided = "summed"
    try:
        ranks.sum_(torch.arange(4.0).view(2, 2).T)
    except AssertionError:
        strided = "refused"
    return {
        "strided": strided,
        "flags": ranks.any_of(ranks.rank == 1, False),
        "gathered": torch.cat(ranks.gather(own)).tolist(),
        "objects": ranks.gather_objects({"rank": ranks.rank}),
        "from_first": ranks.from_first(np.array([ranks.rank + 5])).tolist(),
        "unequal": error,
    }


def compare_norms(ranks: Ranks) -> list[list[float]]:
    """Return statistics that each rank adds its rows to, and those of all rows in one process."""
    rows = torch.randn(3, 10, 2, generator=torch.Generator().manual_seed(0)).double() * 5 + 100
    shared = RunningNorm(2)
    alone = RunningNorm(2)
    for batch in rows:
        with merged_over(ranks, [shared]):
            shared.update(batch[ranks.rank :: ranks.size])
        alone.update(batch)
    statistics = []
    for norm in (shared, alone):
        statistics.append([*norm.mean.tolist(), *norm.variance.tolist(), float(norm.count)])
    return statistics


def main(folder: Path) -> None:
    """Write the results of this rank."""
    torch.set_num_threads(1)
    ranks = Ranks.from_environment("cpu")
    references = sys.getrefcount(dist.group.WORLD)
    results: dict[str, Any] = {
        case: compare(case, ranks) for case in ("ppo", "popart", "lstm", "a2c")
    }
    results["norm"] = compare_norms(ranks)
    results["collectives"] = check_collectives(ranks)
    results["references"] = sys.getrefcount(dist.group.WORLD) - references
    (folder / f"{ranks.rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
