"""Observation spaces of every kind, in any combination: training, gradients and order of keys."""

from typing import Any

import numpy as np
import pytest
import stable_baselines3
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from space_kinds import ASKED, SEEN
from stable_baselines3.common.vec_env import DummyVecEnv
from toy_goal_envs import SampledEnv

from mirl.agents import PPO
from mirl.policies import FusionExtractor, FusionPolicy

SUBSPACES = [part for parts in SEEN.values() for part in parts.values()]
TARGETS = [name for name in ASKED if name != "nothing"]
KEYS = ("image", "left.camera", "right.camera", "observation", "a b", "note")


@st.composite
def observation_spaces(draw: st.DrawFn) -> spaces.Dict:
    """Draw one to three inputs of any kind under any keys, and a context."""
    asked = ASKED[draw(st.sampled_from(TARGETS))]
    keys = draw(st.lists(st.sampled_from(KEYS), min_size=1, max_size=3, unique=True))
    seen: dict[str, spaces.Space[Any]] = {}
    for key in keys:
        # texts are contexts by default, and another input is needed beside them
        subspace = draw(st.sampled_from(SUBSPACES))
        seen[key] = spaces.Discrete(3) if subspace.dtype == np.int16 else subspace
    return spaces.Dict({"task": spaces.Discrete(1), **seen, **asked})


def randomize(module: torch.nn.Module) -> None:
    """Move the weights off their start, where the output ignores the context."""
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(0.05 * torch.randn_like(weight))


def samples_of(space: spaces.Dict, count: int) -> dict[str, torch.Tensor]:
    space.seed(0)
    rows = [space.sample() for _ in range(count)]
    return {
        key: torch.from_numpy(np.stack([np.asarray(row[key]) for row in rows])) for key in space
    }


@given(observation_spaces())
@settings(max_examples=12, deadline=None, derandomize=True)
def test_gradients_reach_every_weight(space: spaces.Dict) -> None:
    """Every key is seen or asked, and every weight gets a gradient."""
    torch.manual_seed(0)
    policy = FusionPolicy(space, spaces.Discrete(2), lambda _: 1e-3, net_arch=[8])
    extractor = policy.pi_features_extractor
    assert isinstance(extractor, FusionExtractor)
    used = {*extractor.encoder.keys, *extractor.context.keys}
    assert used | {"task"} == {*space.spaces}
    randomize(policy)
    _, values, log_probs = policy(samples_of(space, 8))
    (values.square().sum() + log_probs.sum()).backward()
    reads_words = getattr(extractor.map_fusion, "reads_words", False)
    for name, weight in policy.named_parameters():
        if reads_words and ".context." in name and ".norm." in name:
            continue  # of the vector of the whole text
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
        assert weight.grad.any(), name


@pytest.mark.parametrize("algorithm", [PPO, stable_baselines3.PPO])
@given(space=observation_spaces())
@settings(max_examples=4, deadline=None, derandomize=True)
def test_any_space_trains(algorithm: Any, space: spaces.Dict) -> None:
    """SB3's PPO and MIRL's take a step on any space, and change the weights."""
    env = DummyVecEnv([lambda: SampledEnv(space, spaces.Discrete(2))])
    options = {"n_steps": 8, "batch_size": 4, "n_epochs": 1, "seed": 0, "device": "cpu"}
    agent = algorithm(FusionPolicy, env, policy_kwargs={"net_arch": [8]}, **options)
    before = [weight.clone() for weight in agent.policy.parameters()]
    agent.learn(8)
    after = list(agent.policy.parameters())
    assert all(weight.isfinite().all() for weight in after)
    assert any(not torch.equal(new, old) for new, old in zip(after, before, strict=True))


@given(observation_spaces(), st.randoms(use_true_random=False))
@settings(max_examples=10, deadline=None, derandomize=True)
def test_order_of_keys_does_not_matter(space: spaces.Dict, random: Any) -> None:
    """A space whose keys are given in another order gives the same networks."""
    keys = list(space.spaces)
    random.shuffle(keys)
    shuffled = spaces.Dict({key: space[key] for key in keys})
    networks = [FusionExtractor(given).network for given in (space, shuffled)]
    assert networks[0] == networks[1]
