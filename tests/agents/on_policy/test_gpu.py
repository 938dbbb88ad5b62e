"""On a CUDA device the rollouts, losses, gradients and precision are those of the CPU."""

from typing import Any

import numpy as np
import pytest
import torch
from multitask_setup import evaluate_samples
from stable_baselines3.common.vec_env import VecEnv

from mirl.agents import A2C, PPO
from mirl.envs import make_vec_env
from mirl.policies import FusionPolicy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SITES = {"sites": ("map", "vector", "heads")}


def door() -> VecEnv:
    return make_vec_env("MiniGrid-GoToDoor-5x5-v0", 8, backend="gymnasium")


def ppo(device: str, **options: Any) -> PPO:
    return PPO(
        FusionPolicy,
        door(),
        n_steps=16,
        batch_size=64,
        policy_kwargs=SITES,
        seed=0,
        device=device,
        **options,
    )


def test_evaluation_matches_the_cpu() -> None:
    """A rollout is evaluated as on the CPU."""
    on_cpu, on_gpu = ppo("cpu"), ppo("cuda")
    on_cpu.learn(128)
    on_gpu.policy.load_state_dict(on_cpu.policy.state_dict())
    for timestep in range(16):  # the same rollout, stored anew
        observation = {
            key: column.take(timestep * 8 + np.arange(8))
            for key, column in on_cpu.rollout_buffer.columns.items()
        }
        distinct = observation.pop("mission")
        missions = distinct.rows[distinct.groups.index]  # type: ignore[union-attr]
        arrays = {key: value.numpy() for key, value in {**observation, "mission": missions}.items()}  # type: ignore[union-attr]
        on_gpu.rollout_buffer.add_observation(arrays)
        on_gpu.rollout_buffer.pos += 1
    for name in ("actions", "values", "log_probs", "advantages"):
        getattr(on_gpu.rollout_buffer, name).copy_(getattr(on_cpu.rollout_buffer, name))
    evaluations = [
        evaluate_samples(agent, agent.rollout_buffer.minibatch(np.arange(128)))
        for agent in (on_cpu, on_gpu)
    ]
    for expected, got in zip(*evaluations, strict=True):
        assert got.is_cuda
        torch.testing.assert_close(got.cpu(), expected, rtol=1e-3, atol=1e-4)
    gradients = [
        torch.autograd.grad(
            (each.values + each.log_probs).sum(), list(agent.policy.parameters()), allow_unused=True
        )
        for each, agent in zip(evaluations, (on_cpu, on_gpu), strict=True)
    ]
    for expected, got in zip(*gradients, strict=True):
        assert (got is None) == (expected is None)
        if got is not None:
            torch.testing.assert_close(got.cpu(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "auto"])
def test_ppo_trains_in_every_precision(precision: Any) -> None:
    agent = ppo("cuda", precision=precision).learn(256)
    assert agent.precision == ("bf16" if precision == "auto" else precision)
    assert all(weight.is_cuda and weight.isfinite().all() for weight in agent.policy.parameters())


def test_a2c_trains() -> None:
    agent = A2C(FusionPolicy, door(), n_steps=8, policy_kwargs=SITES, seed=0, device="cuda").learn(
        256
    )
    assert all(weight.is_cuda and weight.isfinite().all() for weight in agent.policy.parameters())
