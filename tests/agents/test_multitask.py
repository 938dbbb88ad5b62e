"""What an update can do about several tasks: PopArt, advantages per task, and gradients that conflict."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch import Tensor

from mirl.agents import A2C, PPO
from mirl.agents.on_policy.a2c import a2c_losses
from mirl.agents.on_policy.advantages import normalize_per_task
from mirl.agents.on_policy.losses import ActionEvaluation, LossWeights, value_losses_of
from mirl.agents.on_policy.ppo import ppo_losses
from mirl.agents.on_policy.rollout_buffer import Samples
from mirl.agents.on_policy.task_gradients import task_gradients
from mirl.agents.runs.metric_names import GRADIENT_CONFLICT, GRADIENT_COSINE
from mirl.configs.errors import ConfigError
from mirl.envs import ContractObservation, make_vec_env
from mirl.policies import FusionPolicy
from mirl.policies.popart import PopArtHead

close = torch.testing.assert_close
exactly: dict[str, Any] = {"rtol": 0, "atol": 0}
SMALL: dict[str, Any] = {"n_steps": 8, "batch_size": 32, "n_epochs": 2}


class SidesEnv(gym.Env[Any, Any]):
    """One timestep: the right action is the sign of x₀, or the opposite one, and it is paid for half of the time.

    Both look the same. What is left to chance keeps a task's returns varying after it has been learned.
    """

    def __init__(self, opposite: bool, pay: float) -> None:
        self.opposite, self.pay = opposite, pay
        self.observation_space = spaces.Box(-1, 1, (3,), np.float32)
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.seen = self.np_random.choice([-1.0, 1.0], 3).astype(np.float32)
        return self.seen, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        right = bool(action) == (bool(self.seen[0] > 0) ^ self.opposite)
        paid = right and self.np_random.random() < 0.5
        return self.seen, self.pay * paid, True, False, {"is_success": right}


def sides(*pays: float, n_envs: int = 8) -> VecEnv:
    """A task for each pay, in turn one way round and the other; the environments are spread over them."""

    def make(slot: int) -> Callable[[], gym.Env[Any, Any]]:
        task = slot % len(pays)
        return lambda: ContractObservation(SidesEnv(bool(task % 2), pays[task]), task, len(pays))

    return DummyVecEnv([make(slot) for slot in range(n_envs)])


def agent(algorithm: Any, *pays: float, popart: bool = False, **options: Any) -> Any:
    """An untrained agent whose only context is the task's number."""
    sizes = SMALL if algorithm is PPO else {"n_steps": 8}
    policy: dict[str, Any] = {
        "fusion": "film",
        "context": "task_id",
        "net_arch": [16],
        "popart": popart,
    }
    return algorithm(
        FusionPolicy,
        sides(*pays),
        policy_kwargs=policy,
        **{**sizes, "seed": 0, "device": "cpu", **options},
    )


def samples(**given: Tensor) -> Samples:
    names = ("actions", "old_values", "old_log_prob", "advantages", "returns")
    return Samples(None, **{name: given.get(name, torch.zeros(2)) for name in names})


def test_values_are_compared_in_units_of_their_tasks_scale() -> None:
    evaluation = ActionEvaluation(
        torch.tensor([1.0, 1.0]), torch.zeros(2), torch.zeros(2), torch.tensor([1.0, 100.0])
    )
    close(
        value_losses_of(evaluation, samples(returns=torch.tensor([3.0, 201.0]))),
        torch.tensor([4.0, 4.0]),
    )


def test_values_are_clipped_in_units_of_their_tasks_scale() -> None:
    evaluation = ActionEvaluation(
        torch.tensor([1.0, 500.0]), torch.zeros(2), torch.zeros(2), torch.tensor([1.0, 100.0])
    )
    given = samples(old_values=torch.zeros(2), returns=torch.tensor([2.0, 200.0]))
    close(value_losses_of(evaluation, given, clip_range_vf=0.5), torch.tensor([1.5**2, 1.5**2]))


def test_the_losses_of_the_samples_are_those_computed_by_hand() -> None:
    log_probs, entropy = torch.tensor([-1.0, -2.0]), torch.tensor([0.5, 0.25])
    evaluation = ActionEvaluation(torch.tensor([1.0, 2.0]), log_probs, entropy)
    given = samples(
        returns=torch.tensor([2.0, 4.0]),
        advantages=torch.tensor([3.0, -1.0]),
        old_log_prob=log_probs,
    )
    weights = LossWeights(ent_coef=0.1, vf_coef=0.5, normalize_advantage=False)
    ppo, _ = ppo_losses(evaluation, given, weights, clip_range=0.2)
    a2c, _ = a2c_losses(evaluation, given, weights)
    close(ppo, torch.tensor([-3.0 - 0.05 + 0.5, 1.0 - 0.025 + 2.0]))
    close(a2c, torch.tensor([3.0 - 0.05 + 0.5, -2.0 - 0.025 + 2.0]))


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_popart_moves_with_the_returns_and_weighs_advantages_by_its_scale(algorithm: Any) -> None:
    model = agent(algorithm, 1.0, 1000.0, popart=True, gae_lambda=1.0)
    model.learn(64)
    buffer, head = model.rollout_buffer, model.policy.value_net
    assert isinstance(head, PopArtHead)
    tasks = buffer.task_ids
    small, large = head.scale(torch.tensor([0, 1])).tolist()
    assert large > 30 * small, "moved"
    advantages, returns = buffer.advantages, buffer.returns
    for task, scale in enumerate((small, large)):
        close(buffer.policy_advantages[tasks == task], advantages[tasks == task] / scale)
    close(buffer.returns, advantages + buffer.values, **exactly)
    close(
        model._evaluate_actions(buffer.take(np.arange(64))).value_scale.unique().tolist(),
        sorted([small, large]),
    )
    close(returns[tasks == 0].abs().max(), torch.tensor(1.0))


def test_the_values_of_a_rollout_stay_valid_when_popart_moves() -> None:
    model = agent(PPO, 1.0, 1000.0, popart=True)
    model.learn(128)
    model._begin_update()
    model.collect_rollouts(model.env, model._init_callback(None), model.rollout_buffer, 8)
    before = model.policy.value_net.scale(torch.tensor([0, 1])).clone()
    model._begin_update()
    after = model.policy.value_net.scale(torch.tensor([0, 1]))
    judged = model._evaluate_actions(model.rollout_buffer.take(np.arange(64)))
    assert not torch.equal(before, after)
    close(
        judged.values.sort().values,
        model.rollout_buffer.values.flatten().sort().values,
        rtol=1e-4,
        atol=1e-4,
    )


def test_of_one_task_popart_keeps_the_one_scale() -> None:
    model = agent(PPO, 1000.0, popart=True)
    model.learn(64)
    scale = model._evaluate_actions(model.rollout_buffer.take(np.arange(5))).value_scale
    close(scale, model.policy.value_net.scale(torch.zeros(5, dtype=torch.int64)), **exactly)
    assert scale[0] > 30


def test_advantages_per_task_are_not_normalised_a_second_time() -> None:
    model = agent(PPO, 1.0, 1000.0, advantages_per_task=True)
    model.learn(64)
    weights, _ = model._begin_update()
    buffer = model.rollout_buffer
    expected = normalize_per_task(buffer.advantages, buffer.task_ids).flatten()
    rows = np.arange(20)
    close(weights.advantages(buffer.take(rows)).sort().values, expected[:20].sort().values)


def test_raw_advantages_cannot_be_normalised_per_task() -> None:
    with pytest.raises(ConfigError, match="normalize_advantage must be true"):
        agent(A2C, 1.0, 1.0, advantages_per_task=True)


def steps_of(model: Any) -> list[dict[str, Tensor]]:
    """By gradient step, the gradient that the optimizer is given; filled while the model learns."""
    steps, step = list[dict[str, Tensor]](), model.policy.optimizer.step

    def noted() -> None:
        steps.append(
            {name: weight.grad.clone() for name, weight in model.policy.named_parameters()}
        )
        step()

    model.policy.optimizer.step = noted
    return steps


def test_pcgrad_steps_along_the_projected_gradient() -> None:
    model = agent(
        A2C, 10.0, -10.0, pcgrad=True
    )  # of which the values pull on the trunk in opposite directions
    steps = steps_of(model)
    weights = {name: weight.clone() for name, weight in model.policy.state_dict().items()}
    model.learn(64)
    model.policy.load_state_dict(weights)
    taken = model.rollout_buffer.take(np.arange(64))
    losses, _ = a2c_losses(
        model._evaluate_actions(taken), taken, LossWeights(model.ent_coef, model.vf_coef, False)
    )
    first, second = task_gradients(losses, taken.tasks, list(model.policy.parameters()))
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


def test_of_observations_that_share_a_pass_the_tasks_gradients_sum_to_the_plain_one() -> None:
    env = make_vec_env(
        ("MiniGrid-GoToDoor-5x5-v0", "MiniGrid-Empty-5x5-v0"), 8, backend="gymnasium"
    )
    model = PPO(FusionPolicy, env, **SMALL, seed=0, device="cpu")
    model.learn(64)
    env.close()
    taken = model.rollout_buffer.take(np.arange(64))
    assert taken.rows is not None
    assert taken.tasks is not None
    losses, _ = ppo_losses(
        model._evaluate_actions(taken), taken, LossWeights(0.01, 0.5, normalize_advantage=True), 0.2
    )
    parameters = list(model.policy.parameters())
    gradients = task_gradients(losses, taken.tasks, parameters)
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


def trained(algorithm: Any, *pays: float, **options: Any) -> dict[str, Tensor]:
    model = agent(algorithm, *pays, **options)
    model.learn(3 * 64)
    return model.policy.state_dict()


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_pcgrad_leaves_a_single_task_alone(algorithm: Any) -> None:
    close(trained(algorithm, 1.0, pcgrad=True), trained(algorithm, 1.0), **exactly)


def test_pcgrad_trains_the_same_weights_twice_and_others_than_without() -> None:
    first, second, without = (
        trained(PPO, 1.0, 2.0, 3.0, pcgrad=pcgrad) for pcgrad in (True, True, False)
    )
    close(first, second, **exactly)
    assert any(not torch.equal(first[name], without[name]) for name in first)


def test_projections_are_drawn_from_the_seed_and_where_the_run_stands() -> None:
    def drawn(seed: int, timesteps: int) -> float:
        model = agent(PPO, 1.0, 2.0, pcgrad=True, seed=seed)
        model.learn(64)
        model.num_timesteps = timesteps
        model._begin_update()
        return float(model._projection_rng.random())

    assert drawn(0, 128) == drawn(0, 128)
    assert len({drawn(0, 128), drawn(0, 192), drawn(1, 128)}) == 3


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_conflict_is_measured_in_the_first_iteration_and_every_so_many(algorithm: Any) -> None:
    model = agent(algorithm, 1.0, 2.0, 3.0, conflict_every=2)
    logged, train = list[dict[str, float]](), model.train

    def noted() -> None:
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
    close(trained(algorithm, 1.0, 2.0, conflict_every=1), trained(algorithm, 1.0, 2.0), **exactly)


def test_of_one_task_no_conflict_is_measured() -> None:
    model = agent(PPO, 1.0, conflict_every=1)
    model.learn(64)
    model.train()
    assert GRADIENT_COSINE not in model.logger.name_to_value


def success_of_each(model: PPO, n_tasks: int) -> list[float]:
    """How often the right action is drawn, by task."""
    rng = np.random.default_rng(1)
    seen = rng.choice([-1.0, 1.0], (1000, 3)).astype(np.float32)
    rates = []
    for task in range(n_tasks):
        actions, _ = model.predict({"observation": seen, "task": np.full(1000, task)})
        rates.append(float((actions == ((seen[:, 0] > 0) ^ bool(task % 2))).mean()))
    return rates


@pytest.mark.learning
@pytest.mark.parametrize("seed", range(3))
def test_a_task_of_a_thousandth_of_the_pay_is_learned_with_popart_and_not_without(
    seed: int,
) -> None:
    """The large task's errors fill the norm that gradients are clipped to, and its advantages a minibatch's deviation.

    PopArt answers both: errors of values and advantages are in units of their task's deviation.
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
        success[popart] = success_of_each(model.learn(12288), 2)
    assert success[False][large] > 0.9
    assert success[False][small] < 0.7
    assert min(success[True]) > 0.9
