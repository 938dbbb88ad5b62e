"""Policy and value heads, compared with independent networks."""

from typing import Any

import numpy as np
import pytest
import torch
from grid_models import TINY, grid_env, ppo
from gymnasium import spaces
from torch import nn

from mirl.configs.networks import (
    GridEncoderConfig,
    ProductConfig,
    TaskIdContextConfig,
    VectorEncoderConfig,
)
from mirl.policies import FusionExtractor, FusionPolicy
from mirl.policies.features import Features
from mirl.policies.fusions.product import ProductSimilarity
from mirl.policies.heads import FusionHead, VectorHead
from mirl.policies.off_policy import FusionDQNPolicy, FusionSACPolicy
from mirl.policies.specialize import specialize

close = torch.testing.assert_close

N_TASKS, N_ACTIONS = 3, 4
SPACE = spaces.Dict(
    {"observation": spaces.Box(-1, 1, (6,), np.float32), "task": spaces.Discrete(N_TASKS)}
)


@pytest.mark.parametrize("size", [5, 600], ids=["row by row", "grouped"])
def test_one_hot_gives_head_per_task(size: int) -> None:
    """Bilinear heads over a one-hot context are one linear head per task."""
    torch.manual_seed(0)
    policy = FusionPolicy(
        SPACE,
        spaces.Discrete(N_ACTIONS),
        lambda _: 1e-3,
        fusion="bilinear",
        context=TaskIdContextConfig(hidden=()),
        encoder=VectorEncoderConfig(hidden=(), features_dim=8),
        sites=("heads",),
        net_arch=[7],
    )
    observation = {"observation": torch.rand(size, 6), "task": torch.arange(size) % N_TASKS}
    features = policy.extract_features(observation)
    for head, mlp in (
        (policy.action_net, policy.mlp_extractor.policy_net),
        (policy.value_net, policy.mlp_extractor.value_net),
    ):
        assert isinstance(head, FusionHead)
        for weight in head.parameters():
            nn.init.normal_(weight)
        weights = dict(head.fusion.named_parameters())
        hidden = mlp(features.vector)
        got = head(features._replace(vector=hidden))
        for task in range(N_TASKS):
            one = nn.Linear(7, got.shape[1])
            with torch.no_grad():
                one.weight.copy_((weights["weight"][task] + weights["main.weight"]).T)
                one.bias.copy_(weights["shift.weight"][task] + weights["main.bias"])
            mine = observation["task"] == task
            torch.testing.assert_close(got[mine], one(hidden[mine]), rtol=1e-4, atol=1e-5)


def test_fused_head_equals_einsum() -> None:
    """A fused head is the bilinear form of the hidden layer and the context of each row."""
    policy = ppo({**TINY, "sites": ("heads",), "net_arch": {"pi": [8], "vf": [6]}}).policy
    for head in (policy.action_net, policy.value_net):
        nn.init.normal_(head.get_parameter("fusion.weight"))
    observation, _ = policy.obs_to_tensor(grid_env().reset())
    features = policy.extract_features(observation)
    assert isinstance(features, Features)
    task = nn.functional.one_hot(observation["task"], 3).float()  # type: ignore[index]
    context_encoder = policy.pi_features_extractor.context
    context = context_encoder({"task": task}).per_row()  # type: ignore[operator]
    value_net = policy.value_net
    assert isinstance(value_net, FusionHead)
    hidden = policy.mlp_extractor.value_net(features.vector)
    assert hidden.shape == (2, 6)
    product = torch.einsum(
        "bz,zxo,bx->bo",
        context / context.shape[1],
        value_net.fusion.get_parameter("weight"),
        hidden,
    )
    expected = product + hidden @ value_net.fusion.get_parameter("main.weight")
    close(policy.predict_values(observation), expected, rtol=1e-4, atol=1e-5)


CODES = np.broadcast_to(np.array([3, 2], np.uint8), (5, 6, 2))
GRID = spaces.Dict(
    {
        "image": spaces.Box(np.zeros_like(CODES), CODES.copy(), (5, 6, 2), np.uint8),
        "direction": spaces.Discrete(4),
        "task": spaces.Discrete(N_TASKS),
    }
)


def similarity_policy(**options: Any) -> FusionPolicy:
    """Return a policy with random weights whose heads read similarities of the cells."""
    torch.manual_seed(0)
    policy = FusionPolicy(
        GRID,
        spaces.Discrete(N_ACTIONS),
        lambda _: 1e-3,
        fusion=ProductConfig(products=2, rank=3, main_rank=4),
        context=TaskIdContextConfig(dim=8),
        encoder=GridEncoderConfig(channels=12, attributes=4, features_dim=8),
        sites=("map", "heads"),
        net_arch=[7],
        **options,
    )
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return policy


def grid_batch(size: int) -> dict[str, torch.Tensor]:
    GRID.seed(0)
    samples = [GRID.sample() for _ in range(size)]
    return {
        key: torch.from_numpy(np.stack([np.asarray(sample[key]) for sample in samples]))
        for key in GRID
    }


@pytest.mark.parametrize("size", [3, 600], ids=["row by row", "by type"])
def test_heads_read_similarities_of_cells(size: int) -> None:
    """The policy head is V h + W vec(softmax ∏ s) over all cells, computed here cell by cell."""
    policy = similarity_policy()
    batch = grid_batch(size)
    extractor = policy.features_extractor
    assert isinstance(extractor, FusionExtractor)
    fusion = extractor.map_fusion
    assert isinstance(fusion, ProductSimilarity)
    features = policy.extract_features(batch)
    # K products for each of 5 * 6 cells
    assert extractor.similarities_dim == 30 * 2
    hidden = policy.mlp_extractor.policy_net(features.vector)
    weight = policy.action_net.linear.weight
    parameters = policy.action_parameters(policy.mlp_extractor.forward_actor(features))
    for row in range(3):
        z = extractor.context.mlp(torch.eye(N_TASKS)[batch["task"][row]])
        similarities: list[torch.Tensor] = []
        cells = extractor.encoder.to_cells(batch["image"][row : row + 1].float())[0]
        projected = fusion.project_context(z.view(1, 1, -1))[0]
        for cell in cells:
            factors = []
            for index in range(2):
                x = fusion.factor_features[index](cell[4 * index : 4 * index + 4]).view(2, 3)
                factors.append((x * projected[index]).sum(-1))
            similarities.append(factors[0] * factors[1])
        # softmax over the cells, for each of the two products by itself
        weights = [32 * torch.stack(similarities)[:, k].softmax(0) for k in range(2)]
        read = torch.cat([hidden[row], torch.stack(weights, dim=1).flatten()])
        close(parameters[row], weight @ read + policy.action_net.linear.bias, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("popart", [False, True])
def test_new_heads_ignore_similarities(popart: bool) -> None:
    torch.manual_seed(0)
    policy = FusionPolicy(
        GRID,
        spaces.Discrete(N_ACTIONS),
        lambda _: 1e-3,
        fusion=ProductConfig(),
        encoder=GridEncoderConfig(attributes=4),
        sites=("map", "heads"),
        popart=popart,
    )
    batch = grid_batch(4)
    other = {**batch, "task": (batch["task"] + 1) % N_TASKS}
    assert policy.extract_features(batch).similarities.abs().max() > 0.01
    close(
        policy.get_distribution(batch).distribution.logits,
        policy.get_distribution(other).distribution.logits,
    )
    close(policy.predict_values(batch), policy.predict_values(other))


@pytest.mark.parametrize("share", [True, False], ids=["shared", "separate"])
@pytest.mark.parametrize("popart", [False, True])
def test_specialized_heads_read_similarities(popart: bool, share: bool) -> None:
    policy = similarity_policy(popart=popart, share_features_extractor=share)
    policy.set_training_mode(False)
    batch = grid_batch(5)
    batch["task"] = torch.full((5,), 2)
    logits, values = specialize(policy, 2)(batch)
    expected = policy.get_distribution(batch).distribution.logits
    close(logits.log_softmax(-1), expected, rtol=1e-4, atol=1e-4)
    close(values, policy.predict_values(batch), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("algorithm", ["SAC", "DQN"])
def test_off_policy_heads_read_similarities(algorithm: str) -> None:
    action_space = spaces.Discrete(3) if algorithm == "DQN" else spaces.Box(-1, 1, (2,))
    policy_class: Any = FusionDQNPolicy if algorithm == "DQN" else FusionSACPolicy
    policy = policy_class(
        GRID,
        action_space,
        lambda _: 1e-3,
        fusion=ProductConfig(products=2),
        encoder=GridEncoderConfig(attributes=4),
        sites=("map", "heads"),
    )
    batch = grid_batch(4)
    network = policy.q_net.q_net if algorithm == "DQN" else policy.critic.q_networks[0]
    head = network[1]
    assert isinstance(head, VectorHead)
    assert head.linear.in_features > 30 * 2
    if algorithm == "DQN":
        values = policy.q_net(batch)
    else:
        values = policy.critic(batch, torch.zeros(4, 2))[0]
    values.sum().backward()
    gradient = head.linear.weight.grad
    assert gradient is not None
    assert gradient[:, -30 * 2 :].abs().max() > 0
