"""Policy and value heads, compared with independent networks."""

import numpy as np
import pytest
import torch
from grid_models import TINY, grid_env, ppo
from gymnasium import spaces
from torch import nn

from mirl.configs.networks import TaskIdContextConfig, VectorEncoderConfig
from mirl.policies import FusionPolicy
from mirl.policies.features import Features
from mirl.policies.heads import FusionHead

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
        "bz,zxo,bx->bo", context, value_net.fusion.get_parameter("weight"), hidden
    )
    expected = product + hidden @ value_net.fusion.get_parameter("main.weight")
    close(policy.predict_values(observation), expected, rtol=1e-4, atol=1e-5)
