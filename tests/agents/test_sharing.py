"""Equal observations share one pass through the network, and nothing else changes."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from mirl.agents import PPO
from mirl.agents.on_policy.losses import ActionEvaluation
from mirl.agents.on_policy.observation_hashes import ObservationHashes
from mirl.envs import make_vec_env
from mirl.policies import FusionPolicy

TWO_TASKS = ("MiniGrid-GoToDoor-5x5-v0", "MiniGrid-Empty-5x5-v0")
OPTIONS: dict[str, dict[str, Any]] = {
    "every site": {"sites": ("map", "vector", "heads")},
    "heads alone": {"sites": ("heads",)},
    "task id": {"context": "task_id"},
    "value per task": {"popart": True},
    "two trunks": {"share_features_extractor": False},
    "attention": {"fusion": "attention", "sites": ("map", "heads")},
}


@given(
    arrays(np.uint8, (12, 4), elements=st.integers(0, 3)),
    st.lists(st.integers(0, 300), min_size=12, max_size=12),
)
def test_digests_are_equal_where_observations_are(
    image: NDArray[np.uint8], numbers: list[int]
) -> None:
    parts = {"image": spaces.Box(0, 3, (4,), np.uint8), "number": spaces.Discrete(301)}
    assert ObservationHashes.supports(parts)
    digests = ObservationHashes(parts, (1, 12))
    digests.store(0, {"image": image, "number": np.array(numbers)})
    rows = [(*row, number) for row, number in zip(image.tolist(), numbers, strict=True)]
    for i, one in enumerate(rows):
        for j, other in enumerate(rows):
            assert (digests.values[0, i] == digests.values[0, j]) == (one == other)


@pytest.mark.parametrize(
    "part",
    [
        spaces.Box(0, 1, (3,), np.float32),
        spaces.Box(-1, 1, (3,), np.int8),
        spaces.Box(0, 255, (84, 84, 3), np.uint8),
        spaces.Box(0, 2**20, (3,), np.int32),
        spaces.Discrete(2**20),
    ],
    ids=str,
)
def test_what_hardly_repeats_is_not_digested(part: spaces.Space[Any]) -> None:
    assert not ObservationHashes.supports({"part": part})


def judged(agent: PPO, *, share: bool) -> tuple[ActionEvaluation, list[Tensor]]:
    """What the policy says about the whole rollout, sample by sample, and a gradient of it."""
    buffer = agent.rollout_buffer
    kept, buffer.digests = buffer.digests, buffer.digests if share else None
    rows = np.arange(buffer.buffer_size * buffer.n_envs)
    samples, order = buffer.take(rows), buffer._arrange(rows)[0]
    buffer.digests = kept
    assert (samples.rows is not None) is share
    evaluation = agent._evaluate_actions(samples)
    assert evaluation.entropy is not None
    inverse = torch.from_numpy(np.argsort(order))
    in_order = ActionEvaluation(*(part[inverse] for part in evaluation if part is not None))
    weights = torch.randn(len(rows), generator=torch.Generator().manual_seed(0))
    loss = ((in_order.values + in_order.log_probs) * weights + evaluation.entropy).sum()
    parameters = list(agent.policy.parameters())
    return in_order, list(
        torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    )


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_sharing_changes_neither_what_is_judged_nor_its_gradient(options: dict[str, Any]) -> None:
    env = make_vec_env(TWO_TASKS, 8, backend="gymnasium")
    agent = PPO(
        FusionPolicy,
        env,
        n_steps=16,
        batch_size=64,
        n_epochs=1,
        policy_kwargs=options,
        seed=0,
        device="cpu",
    )
    agent.learn(128)
    shared, shared_gradients = judged(agent, share=True)
    own, own_gradients = judged(agent, share=False)
    assert agent.rollout_buffer.n_unique < agent.rollout_buffer.n_samples  # some were equal
    torch.testing.assert_close(tuple(shared), tuple(own), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(shared_gradients, own_gradients, rtol=1e-4, atol=1e-4)
    env.close()


class Overridden(ActorCriticPolicy):
    """A policy with a evaluation of its own."""

    def evaluate_actions(self, obs: Any, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        return super().evaluate_actions(obs, actions)


@pytest.mark.parametrize("reason", ["own evaluate_actions", "dropout", "batch norm", "none"])
def test_a_policy_that_may_treat_rows_differently_shares_nothing(reason: str) -> None:
    activation: dict[str, Any] = {
        "dropout": {"activation_fn": nn.Dropout},
        "batch norm": {"activation_fn": lambda: nn.BatchNorm1d(64)},
    }
    policy = Overridden if reason == "own evaluate_actions" else "MlpPolicy"
    agent = PPO(
        policy,
        "Taxi-v4",
        n_steps=8,
        batch_size=8,
        policy_kwargs=activation.get(reason),
        device="cpu",
    )
    assert (agent.rollout_buffer.digests is not None) is (reason == "none")
