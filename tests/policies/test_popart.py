"""Value heads with a unit: PopArt preserves values and normalizes targets; one unit for all."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fusion_cases import VECTOR_CONFIGS, X, Z, normal, randomize
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor
from toy_goal_envs import SampledEnv

from mirl.configs.errors import ConfigError
from mirl.configs.networks import FusionConfig, TaskIdContextConfig, VectorEncoderConfig
from mirl.policies import FusionPolicy, build_fusion
from mirl.policies.features import Context, Features
from mirl.policies.grouped_matmul import ContextGroups
from mirl.policies.heads import FusionHead
from mirl.policies.popart import MIN_STD, RATE, PopArtHead, ScaledHead

close = torch.testing.assert_close
N_TASKS, HIDDEN, BATCH = 4, 5, 12
TASKS = torch.arange(N_TASKS).repeat(BATCH // N_TASKS)
FUSIONS: dict[str, FusionConfig | None] = {"no fusion": None, **VECTOR_CONFIGS}
SITES: list[tuple[Any, ...]] = [("vector",), ("vector", "heads")]


def head_of(
    config: FusionConfig | None = None, dtype: torch.dtype = torch.float64, **options: Any
) -> PopArtHead:
    """Return a head with random weights, different for each task."""
    torch.manual_seed(0)
    fusion = None if config is None else randomize(build_fusion(config, X, Z, HIDDEN))
    head = PopArtHead(N_TASKS, X if fusion is None else HIDDEN, fusion, **options)
    with torch.no_grad():
        head.weight.copy_(normal(*head.weight.shape, seed=1))
        head.bias.copy_(normal(N_TASKS, seed=2))
    return (
        head.double() if dtype == torch.float64 else head
    )  # the statistics are float64 in either case


def features_of(dtype: torch.dtype = torch.float64) -> Features:
    context = Context(normal(3, Z, seed=4).to(dtype), ContextGroups(torch.arange(BATCH) % 3, 3))
    return Features(normal(BATCH, X, seed=3).to(dtype), context, TASKS)


def returns_of(size: int, mean: float, deviation: float, seed: int = 0) -> Tensor:
    return mean + deviation * normal(size, seed=seed)


@st.composite
def rollouts(draw: st.DrawFn) -> list[tuple[Tensor, Tensor]]:
    """Draw returns and tasks of several updates, at different scales and with tasks missing."""
    updates = []
    for seed in range(draw(st.integers(1, 4))):
        of_tasks = draw(st.lists(st.integers(0, N_TASKS - 1), min_size=1, max_size=20))
        mean, deviation = draw(st.floats(-1e3, 1e3)), draw(st.floats(0.1, 1e3))
        updates.append((returns_of(len(of_tasks), mean, deviation, seed), torch.tensor(of_tasks)))
    return updates


# --------------------------------------------------------------------------------------------- head


@pytest.mark.parametrize("fusion", FUSIONS)
@given(updates=rollouts(), exact=st.booleans())
@settings(max_examples=15, deadline=None, derandomize=True)
def test_update_preserves_values(
    fusion: str, updates: list[tuple[Tensor, Tensor]], exact: bool
) -> None:
    """No update of the statistics changes a value."""
    dtype, tolerance = (torch.float64, 1e-12) if exact else (torch.float32, 1e-5)
    head, features = head_of(FUSIONS[fusion], dtype), features_of(dtype)
    for returns, tasks in updates:
        before, mean = head(features), head.mean[TASKS].unsqueeze(1)
        head.update(returns.to(dtype), tasks)
        # a value is a sum that contains the mean: the rounding error is relative to the largest
        # term
        terms = torch.stack([before.double(), mean, head.mean[TASKS].unsqueeze(1)]).abs().amax(0)
        assert ((head(features) - before).abs() <= tolerance * terms).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_absent_tasks_stay_unchanged(dtype: torch.dtype) -> None:
    """Tasks that are not in the batch keep their statistics and weights."""
    head = head_of(dtype=dtype)
    head.update(returns_of(8, 3.0, 7.0), torch.arange(8) % N_TASKS)
    before = {name: value.clone() for name, value in head.state_dict().items()}
    head.update(returns_of(6, -50.0, 20.0), torch.tensor([1, 3, 3, 1, 1, 3]))
    for name, value in head.state_dict().items():
        assert torch.equal(value[[0, 2]], before[name][[0, 2]]), name
        assert (value[[1, 3]] != before[name][[1, 3]]).flatten(1 if value.ndim > 1 else 0).all(), (
            name
        )


def test_update_normalizes_targets_per_task() -> None:
    """After one update the targets of each task have mean 0 and standard deviation 1."""
    head, tasks = head_of(), torch.arange(400) % N_TASKS
    returns = (
        returns_of(400, 0.0, 1.0) * torch.tensor([0.01, 1.0, 50.0, 3e4])[tasks] + 7.0 * tasks - 1e3
    )
    head.update(returns, tasks)
    normalized = (returns - head.mean[tasks]) / head.scale(tasks)
    for task in range(N_TASKS):
        own = normalized[tasks == task]
        close(
            torch.stack([own.mean(), own.std(correction=0)]),
            torch.tensor([0.0, 1.0]).double(),
            rtol=1e-5,
            atol=1e-5,
        )


def test_values_are_in_units_of_returns() -> None:
    """A value is the normalized value in the units of its task."""
    head, features = head_of(VECTOR_CONFIGS["bilinear"]), features_of()
    head.update(returns_of(40, 20.0, 3.0), torch.arange(40) % N_TASKS)
    assert head.fusion is not None
    hidden = head.fusion(features.vector, features.context.per_row()).relu()
    for row, task in enumerate(TASKS.tolist()):
        n = head.weight[task] @ hidden[row] + head.bias[task]
        close(head(features)[row, 0], head.scale(torch.tensor([task]))[0] * n + head.mean[task])


def test_statistics_are_unbiased_exponential_averages() -> None:
    """The statistics are exponential averages that start at the first batch."""
    head, rate = head_of(rate=0.2), 0.2
    batches = [returns_of(5, 10.0 * k, 1.0 + k, seed=k) for k in range(3)]
    for batch in batches:
        head.update(batch, torch.full((5,), 2))
    weights = torch.tensor([(1 - rate) ** 2, 1 - rate, 1.0]).double()
    weights = weights / weights.sum()
    close(head.mean[2], weights @ torch.stack([batch.mean() for batch in batches]))
    close(
        head.mean_of_squares[2], weights @ torch.stack([batch.square().mean() for batch in batches])
    )
    assert head.n_updates.tolist() == [0, 0, 3, 0]


def test_constant_returns_have_minimum_scale() -> None:
    """The scale of constant returns is the lower bound, and values stay unchanged."""
    head, features = head_of(dtype=torch.float32), features_of(torch.float32)
    before = head(features)
    head.update(torch.full((8,), 3.0), torch.arange(8) % N_TASKS)
    assert head.scale(torch.arange(N_TASKS)).tolist() == pytest.approx([MIN_STD] * N_TASKS)
    close(head(features), before, rtol=1e-4, atol=1e-5)


def test_small_std_beside_large_mean() -> None:
    """A standard deviation that is small beside the mean is not lost to rounding."""
    head = head_of(dtype=torch.float32)
    returns = returns_of(1000, 1e5, 1.0).float()
    head.update(returns, torch.zeros(1000, dtype=torch.int64))
    close(
        head.scale(torch.tensor([0]))[0].double(),
        returns.double().std(correction=0),
        rtol=1e-3,
        atol=0,
    )


def test_initial_values_ignore_the_task() -> None:
    """Initial values do not depend on the task, and each row has the length ``gain``."""
    head = PopArtHead(N_TASKS, X)
    one = features_of(torch.float32)._replace(vector=torch.ones(BATCH, X))
    close(head(one), head(one)[:1].expand(BATCH, 1))
    close(head.weight.norm(dim=1), torch.ones(N_TASKS))


def test_statistics_are_saved_with_weights() -> None:
    """The statistics are part of the state dict, and updates continue from them."""
    head = head_of(VECTOR_CONFIGS["film"])
    head.update(returns_of(8, 5.0, 2.0), torch.arange(8) % 3)
    other = PopArtHead(N_TASKS, HIDDEN, build_fusion(VECTOR_CONFIGS["film"], X, Z, HIDDEN)).double()
    other.load_state_dict(head.state_dict())
    close(other(features_of()), head(features_of()), rtol=0, atol=0)
    for each in (head, other):
        each.update(returns_of(8, -1.0, 3.0, seed=1), torch.arange(8) % N_TASKS)
    close(other.state_dict(), head.state_dict(), rtol=0, atol=0)


# ------------------------------------------------------------------------------------------- policy

SPACE = spaces.Dict(
    {
        "observation": spaces.Box(-1, 1, (4,), np.float32),
        "desired_goal": spaces.Box(-1, 1, (2,), np.float32),
        "task": spaces.Discrete(N_TASKS),
    }
)
ACTIONS: dict[str, spaces.Space[Any]] = {
    "Discrete": spaces.Discrete(3),
    "Box": spaces.Box(-1, 1, (2,), np.float32),
}


def ppo(
    sites: tuple[Any, ...] = ("vector", "heads"),
    actions: str = "Discrete",
    sde: bool = False,
    **options: Any,
) -> PPO:
    """Return SB3's own PPO with a PopArt policy."""
    env = DummyVecEnv(
        [lambda seed=seed: SampledEnv(SPACE, ACTIONS[actions], seed) for seed in (0, 1)]
    )
    parts = {
        "encoder": VectorEncoderConfig(features_dim=12),
        "net_arch": [8],
        "popart": True,
        "sites": sites,
    }
    return PPO(
        FusionPolicy,
        env,
        n_steps=16,
        batch_size=8,
        n_epochs=2,
        policy_kwargs={**parts, **options},
        use_sde=sde,
        seed=0,
        device="cpu",
    )


def popart_of(model: PPO) -> PopArtHead:
    head = model.policy.value_net
    assert isinstance(head, PopArtHead)
    return head


@pytest.mark.parametrize(("actions", "sde"), [("Discrete", False), ("Box", False), ("Box", True)])
@pytest.mark.parametrize("context", ["goal", "task_id"])
@pytest.mark.parametrize("sites", SITES, ids=str)
def test_unmodified_ppo_trains_every_row(
    sites: tuple[Any, ...], context: str, actions: str, sde: bool
) -> None:
    """SB3's own PPO trains the row of every task."""
    model = ppo(sites, actions, sde, context=context)
    head = popart_of(model)
    assert (head.fusion is not None) == ("heads" in sites)
    before = head.weight.detach().clone()
    model.learn(64)
    assert (head.weight != before).any(1).all()
    assert all(weight.isfinite().all() for weight in model.policy.parameters())


@pytest.mark.parametrize("share", [True, False], ids=["shared", "separate"])
def test_value_belongs_to_the_task(share: bool) -> None:
    """Every method of the policy returns the value of the observation's own task."""
    policy = ppo(share_features_extractor=share).policy
    head = policy.value_net
    assert isinstance(head, PopArtHead)
    head.update(
        returns_of(400, 0.0, 1.0).float() + 100.0 * (torch.arange(400) % N_TASKS),
        torch.arange(400) % N_TASKS,
    )
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    SPACE.seed(0)
    batch = {key: torch.as_tensor(np.stack([SPACE[key].sample()] * N_TASKS)) for key in SPACE}
    batch["task"] = torch.tensor([3, 1, 0, 2])
    expected = torch.tensor([[300.0], [100.0], [0.0], [200.0]])
    close(policy.predict_values(batch), expected, rtol=0, atol=1.0)
    close(policy(batch)[1], policy.predict_values(batch))
    minibatch = {**batch, "task": batch["task"].unsqueeze(1)}
    actions = torch.zeros(N_TASKS, dtype=torch.int64)
    close(policy.evaluate_actions(minibatch, actions)[0], policy.predict_values(batch))


def test_optimizer_contains_the_head() -> None:
    """The optimizer contains all weights of the policy."""
    for sites in SITES:
        policy = ppo(sites).policy
        held = {id(weight) for group in policy.optimizer.param_groups for weight in group["params"]}
        assert held == {id(weight) for weight in policy.parameters()}


def test_saved_policy_keeps_statistics(tmp_path: Path) -> None:
    """A saved policy has its statistics after it is loaded."""
    policy = ppo(context=TaskIdContextConfig(dim=8)).policy
    assert isinstance(policy.value_net, PopArtHead)
    policy.value_net.update(returns_of(8, 5.0, 2.0).float(), torch.arange(8) % 3)
    policy.save(str(tmp_path / "policy"))
    loaded = FusionPolicy.load(str(tmp_path / "policy"), device="cpu")
    close(loaded.state_dict(), policy.state_dict(), rtol=0, atol=0)
    assert loaded.popart


@pytest.mark.parametrize(
    ("task", "given"),
    [(None, "none"), (spaces.Box(0, 1, (3,), np.float32), r"Box")],
    ids=["none", "Box"],
)
def test_popart_needs_a_discrete_task(task: spaces.Space[Any] | None, given: str) -> None:
    """Observations without a Discrete task raise an error."""
    parts = {**SPACE} if task is None else {**SPACE, "task": task}
    if task is None:
        del parts["task"]
    with pytest.raises(ConfigError, match=f"a Discrete space under 'task', got {given}"):
        FusionPolicy(spaces.Dict(parts), spaces.Discrete(3), lambda _: 1e-3, popart=True)


# ------------------------------------------------------------------------------- one unit for all


def scaled_head(fusion: str = "bilinear") -> ScaledHead:
    return ScaledHead(FusionHead(randomize(build_fusion(VECTOR_CONFIGS[fusion], X, Z, 1)))).double()


@given(updates=rollouts())
@settings(max_examples=30, deadline=None, derandomize=True)
def test_unit_follows_the_returns(updates: list[tuple[Tensor, Tensor]]) -> None:
    """The unit is the root of the bias-corrected mean of all squared returns, at least 1."""
    head = scaled_head()
    numerator = denominator = 0.0
    for returns, tasks in updates:
        head.update(returns, tasks)
        numerator = (1 - RATE) * numerator + RATE * float(returns.square().mean())
        denominator = (1 - RATE) * denominator + RATE
    expected = max(1.0, (numerator / denominator) ** 0.5)
    close(float(head.unit), expected)
    close(head.scale(torch.tensor([2, 0])), torch.full((2,), expected))


@pytest.mark.parametrize("fusion", VECTOR_CONFIGS)
def test_values_count_in_the_unit(fusion: str) -> None:
    """The values are those of the head within, times the unit."""
    head, features = scaled_head(fusion), features_of()
    within = head.head(features)
    head.update(torch.tensor([0.5, -1.0]), TASKS[:2])
    close(head(features), within, rtol=0, atol=0)
    head = scaled_head(fusion)
    head.update(torch.tensor([30.0, -40.0]).double(), TASKS[:2])
    close(head(features), within * 1250**0.5)


@pytest.mark.parametrize("sites", SITES, ids=str)
def test_scaled_policy_is_saved(sites: tuple[Any, ...], tmp_path: Path) -> None:
    """A saved policy has its unit after it is loaded."""
    policy = ppo(sites, popart=False, scale_values=True).policy
    assert isinstance(policy.value_net, ScaledHead)
    policy.value_net.update(torch.tensor([50.0]), torch.tensor([0]))
    policy.save(str(tmp_path / "policy"))
    loaded = FusionPolicy.load(str(tmp_path / "policy"), device="cpu")
    close(loaded.state_dict(), policy.state_dict(), rtol=0, atol=0)
    assert isinstance(loaded.value_net, ScaledHead)
    close(float(loaded.value_net.unit), 50.0)


def test_popart_has_precedence() -> None:
    """A policy with a unit per task needs none for all."""
    policy = ppo(scale_values=True).policy
    assert isinstance(policy.value_net, PopArtHead)
