"""Updates over several tasks: PopArt, advantages per task, PCGrad."""

from typing import Any

import numpy as np
import pytest
import torch
from multitask_setup import SMALL_PPO, build_multitask_agent, evaluate_samples, sides
from torch import Tensor

from mirl.agents import A2C, PPO
from mirl.agents.on_policy.a2c import a2c_losses
from mirl.agents.on_policy.advantages import normalize_per_task
from mirl.agents.on_policy.losses import LossWeights
from mirl.agents.on_policy.ppo import ppo_losses
from mirl.agents.on_policy.task_gradients import (
    task_gradients,
)
from mirl.agents.runs.metric_names import GRADIENT_CONFLICT, GRADIENT_COSINE
from mirl.envs import make_vec_env
from mirl.policies import FusionPolicy
from mirl.policies.popart import PopArtHead, ScaledHead

close = torch.testing.assert_close
exactly: dict[str, Any] = {"rtol": 0, "atol": 0}


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_popart_scales_advantages(algorithm: Any) -> None:
    """PopArt's statistics follow the returns, and advantages are divided by its scale."""
    model = build_multitask_agent(algorithm, 1.0, 1000.0, popart=True, gae_lambda=1.0)
    model.learn(64)
    buffer, head = model.rollout_buffer, model.policy.value_net
    assert isinstance(head, PopArtHead)
    task_ids = buffer.task_ids
    small, large = head.scale(torch.tensor([0, 1])).tolist()
    assert large > 30 * small, "moved"
    advantages, returns = buffer.advantages, buffer.returns
    for task, scale in enumerate((small, large)):
        close(buffer.policy_advantages[task_ids == task], advantages[task_ids == task] / scale)
    close(buffer.returns, advantages + buffer.values, **exactly)
    close(
        evaluate_samples(model, buffer.minibatch(np.arange(64))).value_scale.unique().tolist(),
        sorted([small, large]),
    )
    close(returns[task_ids == 0].abs().max(), torch.tensor(1.0))


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_large_returns_have_a_unit(algorithm: Any) -> None:
    """Advantages and value losses are in units of the returns of all tasks, if those are large."""
    model = build_multitask_agent(algorithm, 1.0, 1000.0, scale_values=True, gae_lambda=1.0)
    model.learn(64)
    buffer, head = model.rollout_buffer, model.policy.value_net
    assert isinstance(head, ScaledHead)
    assert 300 < head.unit < 1000
    close(buffer.policy_advantages, buffer.advantages / head.unit.float())
    scale = evaluate_samples(model, buffer.minibatch(np.arange(64))).value_scale
    close(scale, head.unit.float().expand(64))
    assert model.logger.name_to_value["train/value_loss"] < 10


def test_small_returns_change_nothing() -> None:
    """With returns of at most 1, an agent with scaled values learns exactly as without."""
    weights = []
    for scale_values in (False, True):
        model = build_multitask_agent(PPO, 1.0, 0.5, scale_values=scale_values)
        model.learn(256)
        weights.append(list(model.policy.parameters()))
    close(*weights, **exactly)


def test_frozen_values_keep_their_unit() -> None:
    """The unit of a value head whose weights are frozen stays as it is."""
    model = build_multitask_agent(PPO, 1000.0, scale_values=True)
    model.policy.value_net.requires_grad_(False)
    model.learn(64)
    assert model.policy.value_net.unit == 1.0


def test_popart_update_preserves_values() -> None:
    """An update of PopArt's statistics does not change the values of a rollout."""
    model = build_multitask_agent(PPO, 1.0, 1000.0, popart=True)
    model.learn(128)
    model.begin_update()
    model.collect_rollouts(model.env, model._init_callback(None), model.rollout_buffer, 8)
    before = model.policy.value_net.scale(torch.tensor([0, 1])).clone()
    model.begin_update()
    after = model.policy.value_net.scale(torch.tensor([0, 1]))
    evaluation = evaluate_samples(model, model.rollout_buffer.minibatch(np.arange(64)))
    assert not torch.equal(before, after)
    close(
        evaluation.values.sort().values,
        model.rollout_buffer.values.flatten().sort().values,
        rtol=1e-4,
        atol=1e-4,
    )


def test_popart_of_single_task() -> None:
    """With one task PopArt has one scale."""
    model = build_multitask_agent(PPO, 1000.0, popart=True)
    model.learn(64)
    scale = evaluate_samples(model, model.rollout_buffer.minibatch(np.arange(5))).value_scale
    close(scale, model.policy.value_net.scale(torch.zeros(5, dtype=torch.int64)), **exactly)
    assert scale[0] > 30


def test_advantages_are_normalized_once() -> None:
    """Advantages that are normalized per task are not normalized per minibatch."""
    model = build_multitask_agent(PPO, 1.0, 1000.0, advantages_per_task=True)
    model.learn(64)
    weights = model.begin_update().weights
    buffer = model.rollout_buffer
    expected = normalize_per_task(buffer.advantages, buffer.task_ids, buffer.returns).flatten()
    rows = np.arange(20)
    close(weights.advantages(buffer.minibatch(rows)).sort().values, expected[:20].sort().values)


def record_gradients(model: Any) -> list[dict[str, Tensor]]:
    """Return a list that gets the gradient of each step while the model learns."""
    steps, step = list[dict[str, Tensor]](), model.policy.optimizer.step

    def noted() -> None:
        steps.append(
            {name: weight.grad.clone() for name, weight in model.policy.named_parameters()}
        )
        step()

    model.policy.optimizer.step = noted
    return steps


def test_pcgrad_steps_along_projected_gradient() -> None:
    """PCGrad steps along the projected gradient, clipped to the maximum norm."""
    # the values of these two tasks pull on the trunk in opposite directions
    model = build_multitask_agent(A2C, 10.0, -10.0, pcgrad=True)
    steps = record_gradients(model)
    weights = {name: weight.clone() for name, weight in model.policy.state_dict().items()}
    model.learn(64)
    model.policy.load_state_dict(weights)
    samples = model.rollout_buffer.minibatch(np.arange(64))
    losses, _ = a2c_losses(
        evaluate_samples(model, samples), samples, LossWeights(model.ent_coef, model.vf_coef, False)
    )
    first, second = task_gradients(losses, samples.task_ids, list(model.policy.parameters()))
    inner = first @ second
    assert inner < 0, "they conflict"
    expected = (
        first
        - inner / second.square().sum() * second
        + second
        - inner / first.square().sum() * first
    )
    expected *= min(1.0, model.max_grad_norm / (float(expected.norm()) + 1e-6))
    close(
        torch.cat([gradient.flatten() for gradient in steps[0].values()]),
        expected,
        rtol=1e-4,
        atol=1e-5,
    )


def test_task_gradients_of_shared_observations() -> None:
    """The tasks' gradients sum to the plain one, also if observations are shared."""
    env = make_vec_env(
        ("MiniGrid-GoToDoor-5x5-v0", "MiniGrid-Empty-5x5-v0"), 8, backend="gymnasium"
    )
    model = PPO(FusionPolicy, env, **SMALL_PPO, seed=0, device="cpu")
    model.learn(64)
    env.close()
    samples = model.rollout_buffer.minibatch(np.arange(64))
    assert samples.inverse is not None
    assert samples.task_ids is not None
    losses, _ = ppo_losses(
        evaluate_samples(model, samples),
        samples,
        LossWeights(0.01, 0.5, normalize_advantage=True),
        0.2,
    )
    parameters = list(model.policy.parameters())
    gradients = task_gradients(losses, samples.task_ids, parameters)
    model.policy.optimizer.zero_grad()
    losses.mean().backward()
    plain = [
        torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in parameters
    ]
    close(
        gradients.sum(0),
        torch.cat([gradient.flatten() for gradient in plain]),
        rtol=1e-4,
        atol=1e-5,
    )


def train_weights(algorithm: Any, *pays: float, **options: Any) -> dict[str, Tensor]:
    """Train for three iterations and return the weights."""
    model = build_multitask_agent(algorithm, *pays, **options)
    model.learn(3 * 64)
    return model.policy.state_dict()


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_pcgrad_ignores_single_task(algorithm: Any) -> None:
    """PCGrad changes nothing if there is one task."""
    close(train_weights(algorithm, 1.0, pcgrad=True), train_weights(algorithm, 1.0), **exactly)


def test_pcgrad_is_deterministic() -> None:
    """PCGrad trains the same weights twice, and others than without it."""
    first, second, without = (
        train_weights(PPO, 1.0, 2.0, 3.0, pcgrad=pcgrad) for pcgrad in (True, True, False)
    )
    close(first, second, **exactly)
    assert any(not torch.equal(first[name], without[name]) for name in first)


def test_pcgrad_orders_depend_on_progress() -> None:
    """PCGrad's orders depend on the seed and on the timesteps so far."""

    def drawn(seed: int, timesteps: int) -> float:
        model = build_multitask_agent(PPO, 1.0, 2.0, pcgrad=True, seed=seed)
        model.learn(64)
        model.num_timesteps = timesteps
        projection_rng = model.begin_update().projection_rng
        assert projection_rng is not None
        return float(projection_rng.random())

    assert drawn(0, 128) == drawn(0, 128)
    assert len({drawn(0, 128), drawn(0, 192), drawn(1, 128)}) == 3


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_conflict_is_measured_periodically(algorithm: Any) -> None:
    """The conflict is measured in the first iteration and every ``conflict_every`` after it."""
    model = build_multitask_agent(algorithm, 1.0, 2.0, 3.0, conflict_every=2)
    logged, train = list[dict[str, float]](), model.train

    def noted() -> None:
        for name in (GRADIENT_COSINE, GRADIENT_CONFLICT):
            model.logger.name_to_value.pop(name, None)  # callbacks see the last value
        train()
        values = model.logger.name_to_value
        logged.append(
            {name: values[name] for name in (GRADIENT_COSINE, GRADIENT_CONFLICT) if name in values}
        )

    model.train = noted
    model.learn(5 * 64)
    assert [len(update) for update in logged] == [2, 0, 2, 0, 2]
    for update in logged[::2]:
        assert -1 <= update[GRADIENT_COSINE] <= 1
        assert update[GRADIENT_CONFLICT] * 3 == pytest.approx(
            round(update[GRADIENT_CONFLICT] * 3)
        ), "of three pairs"


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_measuring_conflict_changes_nothing(algorithm: Any) -> None:
    close(
        train_weights(algorithm, 1.0, 2.0, conflict_every=1),
        train_weights(algorithm, 1.0, 2.0),
        **exactly,
    )


def test_single_task_has_no_conflict() -> None:
    model = build_multitask_agent(PPO, 1.0, conflict_every=1)
    model.learn(64)
    model.train()
    assert GRADIENT_COSINE not in model.logger.name_to_value


def success_per_task(model: PPO, n_tasks: int) -> list[float]:
    """Return the success rate of each task."""
    rng = np.random.default_rng(1)
    observations = rng.choice([-1.0, 1.0], (1000, 3)).astype(np.float32)
    rates = []
    for task in range(n_tasks):
        actions, _ = model.predict({"observation": observations, "task": np.full(1000, task)})
        rates.append(float((actions == ((observations[:, 0] > 0) ^ bool(task % 2))).mean()))
    return rates


@pytest.mark.learning
@pytest.mark.parametrize("seed", range(3))
def test_popart_learns_small_rewards(
    seed: int,
) -> None:
    """A task with a thousandth of the reward is learned with PopArt and not without it.

    Without it the errors of the large task dominate the clipped gradient, and its advantages the
    standard deviation of a minibatch. PopArt divides both by the scale of their task.
    """
    large, small = 0, 1
    success = {}
    for popart in (False, True):
        options: dict[str, Any] = {
            "n_steps": 16,
            "batch_size": 64,
            "n_epochs": 4,
            "learning_rate": 1e-3,
            "seed": seed,
        }
        model = PPO(
            FusionPolicy,
            sides(1000.0, 1.0, n_envs=16),
            policy_kwargs={
                "context": "task_id",
                "net_arch": [32],
                "sites": ("vector",),
                "popart": popart,
            },
            device="cpu",
            **options,
        )
        success[popart] = success_per_task(model.learn(12288), 2)
    assert success[False][large] > 0.9
    assert success[False][small] < 0.7
    assert min(success[True]) > 0.9
