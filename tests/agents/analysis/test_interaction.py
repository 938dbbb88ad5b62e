"""Shares of variance, similarity of contexts, and outputs for all pairs."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mirl.agents.analysis.interaction import (
    context_similarity,
    crossed_outputs,
    variance_shares,
)
from mirl.agents.on_policy.a2c import A2C
from mirl.agents.on_policy.ppo import PPO
from mirl.configs.schema import TrainConfig

Build = Callable[..., TrainConfig]
Agents = Callable[[TrainConfig], PPO | A2C]


def random_parts(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return functions of 20 observations and of 6 contexts, each with 4 outputs and mean 0."""
    generator = np.random.default_rng(seed)
    of_x = generator.normal(size=(20, 1, 4))
    of_z = generator.normal(size=(1, 6, 4))
    return of_x - of_x.mean(0), of_z - of_z.mean(1)


@given(st.integers(0, 10**6), st.floats(0.01, 100), st.floats(0.01, 100), st.floats(0.01, 100))
def test_shares_are_those_of_the_parts(seed: int, a: float, b: float, c: float) -> None:
    """A f(x) + b g(z) + c f(x) g(z) + a constant: the parts are orthogonal."""
    of_x, of_z = random_parts(seed)
    sizes = []
    for part in (a * of_x, b * of_z, c * of_x * of_z):
        sizes.append(float((part**2).mean((0, 1)).sum()))
    shares = variance_shares(a * of_x + b * of_z + c * of_x * of_z + 5)
    assert shares == pytest.approx(np.array(sizes) / sum(sizes))
    assert sum(shares) == pytest.approx(1)


def test_concatenation_has_no_interaction() -> None:
    """A linear layer on concatenated inputs is a sum; with a ReLU behind it, it is none."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(5 + 3, 7)
    x = torch.randn(20, 1, 5).expand(20, 6, 5)
    z = torch.randn(1, 6, 3).expand(20, 6, 3)
    linear = layer(torch.cat([x, z], -1)).detach()
    assert variance_shares(linear.numpy()).interaction == pytest.approx(0, abs=1e-12)
    assert variance_shares(linear.relu().numpy()).interaction > 0.01


def test_bilinear_layer_is_all_interaction() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Bilinear(5, 3, 7, bias=False)
    x = torch.randn(20, 1, 5)
    z = torch.randn(1, 6, 3)
    x = (x - x.mean(0)).expand(20, 6, 5).contiguous()
    z = (z - z.mean(1)).expand(20, 6, 3).contiguous()
    assert variance_shares(layer(x, z).detach().numpy()).interaction == pytest.approx(1)


def test_constant_output_has_no_shares() -> None:
    assert variance_shares(np.full((20, 6, 4), 0.1, np.float32)) == (0, 0, 0)


def test_similarity_compares_effects() -> None:
    """Equal contexts have cosine 1, opposite ones −1, and one without an effect 0."""
    effect = np.random.default_rng(0).normal(size=(20, 1, 4))
    outputs = np.concatenate([effect, effect, -2 * effect, 0 * effect], axis=1) + 3
    cosines = context_similarity(outputs)
    assert cosines == pytest.approx(
        np.array([[1, 1, -1, 0], [1, 1, -1, 0], [-1, -1, 1, 0], [0, 0, 0, 0]]), abs=1e-9
    )


@pytest.mark.parametrize("fusion", ["concat", "film", "bilinear", "product"])
def test_outputs_are_those_of_each_pair(tiny: Build, make_agent: Agents, fusion: str) -> None:
    agent = make_agent(tiny("task=goto_local", f"fusion={fusion}"))
    policy = agent.policy
    policy.set_training_mode(False)
    assert agent.env is not None
    first = agent.env.reset()
    observations = {key: rows[:3] for key, rows in first.items()}
    contexts = {"mission": first["mission"][1:3]}
    outputs = crossed_outputs(policy, observations, contexts)
    assert outputs["action"].shape == (3, 2, 7)
    for i in range(3):
        for j in range(2):
            pair = {key: rows[i : i + 1] for key, rows in observations.items()}
            pair["mission"] = contexts["mission"][j : j + 1]
            tensors, _ = policy.obs_to_tensor(pair)
            with torch.no_grad():
                logits = policy.get_distribution(tensors).distribution.logits[0].numpy()
                value = policy.predict_values(tensors)[0].numpy()
            centered = logits - logits.mean()
            assert outputs["action"][i, j] == pytest.approx(centered, abs=1e-5)
            assert outputs["value"][i, j] == pytest.approx(value, abs=1e-5)


def test_memory_ends_with_the_features(tiny: Build, make_agent: Agents) -> None:
    agent = make_agent(tiny("task=goto_local", "memory=gru", "memory.size=8"))
    assert agent.env is not None
    first = agent.env.reset()
    outputs = crossed_outputs(agent.policy, first, {"mission": first["mission"][:2]})
    assert list(outputs) == ["context", "features"]
