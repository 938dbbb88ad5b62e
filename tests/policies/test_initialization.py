"""Initialization inside SB3's PPO: initial outputs ignore the context, updates reach it."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor, nn
from toy_goal_envs import SampledEnv

from mirl.configs.networks import (
    AdapterConfig,
    AttentionConfig,
    BilinearConfig,
    ConcatConfig,
    FilmConfig,
    FusionConfig,
    GateConfig,
    GridEncoderConfig,
    HyperConfig,
    LowRankConfig,
    MetricConfig,
    MissionContextConfig,
    ProductConfig,
    TaskIdContextConfig,
)
from mirl.policies import Fusion, FusionExtractor, FusionPolicy

SIZE, N_TASKS, LENGTH = 5, 3, 4
CODES = np.broadcast_to(np.array([10, 5, 3], np.uint8), (SIZE, SIZE, 3))
SPACE = spaces.Dict(
    {
        "direction": spaces.Discrete(4),
        "image": spaces.Box(np.zeros_like(CODES), CODES.copy(), (SIZE, SIZE, 3), np.uint8),
        "mission": spaces.Box(0, 20, (LENGTH,), np.int16),
        "task": spaces.Discrete(N_TASKS),
    }
)
FUSIONS: dict[str, FusionConfig] = {
    "concat": ConcatConfig(),
    "concat-hidden": ConcatConfig(hidden=8),
    "bilinear": BilinearConfig(),
    "low_rank": LowRankConfig(rank=4),
    "hyper": HyperConfig(hidden=(8,)),
    "hyper-affine": HyperConfig(hidden=()),
    "film": FilmConfig(),
    "gate": GateConfig(),
    "attention-sigmoid": AttentionConfig(heads=2, mask="sigmoid", rank=4),
    "attention-softmax": AttentionConfig(heads=2, mask="softmax", rank=4),
    "metric": MetricConfig(projections=2, rank=4),
    "product": ProductConfig(products=2, rank=4),
    "adapter": AdapterConfig(bottleneck=4, hidden=(8,), chunk_size=16, chunk_embedding=4),
}
CONTEXT_WEIGHTS = {
    "concat": ("shift.weight",),
    "concat-hidden": ("shift.weight",),
    "bilinear": ("weight", "shift.weight"),
    "low_rank": ("project.weight", "shift.weight"),
    "hyper": ("generate.weight", "generate.shift.weight"),
    "hyper-affine": ("generate.weight", "generate.shift.weight"),
    "film": ("to_scale_shift.weight",),
    "gate": ("gate_context.weight",),
    "attention-sigmoid": ("to_mask.project.weight", "to_mask.shift.weight"),
    "attention-softmax": ("to_mask.project.weight", "to_mask.shift.weight"),
    "attention-cross": ("project.weight",),
    "metric": ("output.weight",),
    "product": ("factor_context.weight",),
    "adapter": ("generator.from_context.weight",),
}
"""Weights between the context and the output that start at zero."""

ENV = DummyVecEnv([lambda: SampledEnv(SPACE, spaces.Discrete(3))])
CONTEXTS: dict[str, Any] = {
    "task": TaskIdContextConfig(dim=8),
    "mission": MissionContextConfig(dim=8, heads=2),
}


def build(
    policy: str | type[ActorCriticPolicy],
    fusion: str,
    sites: tuple[str, ...],
    key: str,
    **options: Any,
) -> PPO:
    parts = {
        "fusion": FUSIONS[fusion],
        "sites": sites,
        "context": CONTEXTS[key],
        "encoder": GridEncoderConfig(channels=8, features_dim=16),
        # without the mission, which is seen beside another context
        "observation_keys": tuple(name for name in SPACE if name not in CONTEXTS),
    }
    extractor = {"features_extractor_class": FusionExtractor, "features_extractor_kwargs": parts}
    policy_kwargs = {"net_arch": [8], **(parts if policy is FusionPolicy else extractor), **options}
    return PPO(
        policy,
        ENV,
        n_steps=8,
        batch_size=8,
        learning_rate=0.02,
        policy_kwargs=policy_kwargs,
        seed=0,
        device="cpu",
    )


def observations(size: int) -> dict[str, np.ndarray]:
    SPACE.seed(1)
    samples = [SPACE.sample() for _ in range(size)]
    return {key: np.stack([one[key] for one in samples]) for key in SPACE}


def outputs(policy: ActorCriticPolicy, observation: dict[str, np.ndarray]) -> Tensor:
    """Log-probabilities of all actions and the value, (B, 4)."""
    tensors, _ = policy.obs_to_tensor(observation)
    distribution = policy.get_distribution(tensors).distribution
    assert isinstance(distribution, torch.distributions.Categorical)
    return torch.cat([distribution.logits, policy.predict_values(tensors)], dim=1)


def under_other_contexts(observation: dict[str, np.ndarray], key: str) -> dict[str, np.ndarray]:
    """Return the observations with other contexts; the keys beside the context are seen."""
    others = {
        "mission": observation["mission"][::-1].copy(),
        "task": (observation["task"] + 1) % N_TASKS,
    }
    return {**observation, key: others[key]}


def fusions_of(policy: nn.Module) -> list[tuple[str, Fusion]]:
    """Return each fusion once; a fusion inside another is a part of it."""
    found = {name: module for name, module in policy.named_modules() if isinstance(module, Fusion)}
    return [
        (name, module) for name, module in found.items() if name.rpartition(".")[0] not in found
    ]


WAYS = [
    pytest.param("MultiInputPolicy", ("map",), "task", id="extractor-map"),
    pytest.param("MultiInputPolicy", ("vector",), "mission", id="extractor-vector"),
    pytest.param("MultiInputPolicy", ("map", "vector"), "mission", id="extractor-map-vector"),
    pytest.param(FusionPolicy, ("heads",), "task", id="policy-heads"),
    pytest.param(FusionPolicy, ("map", "heads"), "mission", id="policy-map-heads"),
    pytest.param(FusionPolicy, ("vector", "heads"), "task", id="policy-vector-heads"),
]


@pytest.mark.parametrize("ortho_init", [True, False], ids=["sb3s-init", "own-init"])
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize(("policy", "sites", "key"), WAYS)
def test_initial_outputs_ignore_the_context(
    policy: Any, sites: tuple[str, ...], key: str, fusion: str, ortho_init: bool
) -> None:
    """The initial policy and value do not depend on the context, but on the inputs."""
    model = build(policy, fusion, sites, key, ortho_init=ortho_init)
    seen = observations(12)
    with torch.no_grad():
        y = outputs(model.policy, seen)
        torch.testing.assert_close(
            outputs(model.policy, under_other_contexts(seen, key)), y, rtol=1e-6, atol=1e-6
        )
        assert y.std(dim=0).min() > 1e-6, "it ignores the inputs, too"


@pytest.mark.parametrize("popart", [False, True], ids=["one-scale", "popart"])
@pytest.mark.parametrize("sites", [("map",), ("map", "heads")], ids=str)
def test_initial_values_are_near_zero(sites: tuple[str, ...], popart: bool) -> None:
    """The initial values are near zero."""
    values = outputs(
        build(FusionPolicy, "bilinear", sites, "task", popart=popart).policy, observations(12)
    )[:, -1]
    assert 0 < values.abs().max() < 0.05


@pytest.mark.parametrize("ortho_init", [True, False], ids=["sb3s-init", "own-init"])
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize(("policy", "sites", "key"), WAYS)
def test_first_gradients_reach_the_context(
    policy: Any, sites: tuple[str, ...], key: str, fusion: str, ortho_init: bool
) -> None:
    """The first gradient reaches the weights of the context, the second the context encoder."""
    model = build(policy, fusion, sites, key, ortho_init=ortho_init)
    seen, target = observations(12), torch.randn(12, 4, generator=torch.Generator().manual_seed(0))

    def backward() -> None:
        model.policy.optimizer.zero_grad()
        (outputs(model.policy, seen) - target).square().mean().backward()

    backward()
    fusions = fusions_of(model.policy)
    n_heads = 2 * ("heads" in sites)
    if fusion == "product" and "map" in sites:
        n_heads = 0  # its heads read the similarities of the cells, see test_heads.py
    assert len(fusions) == len([site for site in sites if site != "heads"]) + n_heads
    for name, module in fusions:
        kind = "attention-cross" if type(module).__name__ == "CrossAttention" else fusion
        for weight in CONTEXT_WEIGHTS[kind]:
            gradient = module.get_parameter(weight).grad
            assert gradient is not None, f"{name}.{weight}"
            assert gradient.any(), f"{name}.{weight}"
            assert not module.get_parameter(weight).any(), f"{name}.{weight}"
    assert not any(
        weight.grad is not None and weight.grad.any() for weight in context_weights(model.policy)
    )
    model.policy.optimizer.step()
    backward()
    assert all(
        weight.grad is not None and weight.grad.any()
        for weight in last_weights_of_context(model.policy)
    )
    changes = []
    for _ in range(5):  # the first changes may be lost in float32
        model.policy.optimizer.step()
        backward()
        with torch.no_grad():
            changes.append(
                outputs(model.policy, seen) - outputs(model.policy, under_other_contexts(seen, key))
            )
    assert torch.stack(changes).abs().max() > 1e-5


def context_weights(policy: ActorCriticPolicy) -> list[nn.Parameter]:
    extractor = policy.pi_features_extractor
    assert isinstance(extractor, FusionExtractor)
    return list(extractor.context.parameters())


def last_weights_of_context(policy: ActorCriticPolicy) -> list[nn.Parameter]:
    """Return weights behind which no ReLU can block the gradient: those of the last layer.

    For a fusion that reads the words, which the last layer does not change, their embeddings.
    """
    weights = context_weights(policy)
    extractor = policy.pi_features_extractor
    assert isinstance(extractor, FusionExtractor)
    if extractor.network.chosen_fusion.kind == "product":
        return weights[:1]
    return weights[-2:]
