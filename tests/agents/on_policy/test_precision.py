"""Mixed precision: a fast trunk in bfloat16, and everything that PPO compares in float32."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from multitask_setup import evaluate_samples
from safetensors.torch import load_file
from stable_baselines3.common.env_util import make_vec_env as sb3_vec_env
from stable_baselines3.common.utils import obs_as_tensor
from torch import Tensor, nn

from mirl import train as train_command
from mirl.agents import A2C, PPO
from mirl.agents.on_policy import precision as precision_module
from mirl.agents.on_policy.losses import LossWeights
from mirl.agents.on_policy.ppo import ppo_losses
from mirl.agents.on_policy.precision import autocast, in_float32, resolve_precision
from mirl.configs.errors import ConfigError
from mirl.configs.schema import PrecisionName
from mirl.envs import make_vec_env
from mirl.policies import (
    FusionPolicy,
)
from mirl.policies.features import Context, Features

exactly: dict[str, Any] = {"rtol": 0, "atol": 0}
CPU = torch.device("cpu")


def build_agent(kind: str, precision: PrecisionName = "bf16") -> PPO:
    """Return an agent: ``fusion`` has fused heads and discrete actions, ``plain`` linear heads."""
    options: dict[str, Any] = {
        "n_steps": 32,
        "batch_size": 64,
        "n_epochs": 2,
        "seed": 0,
        "device": "cpu",
    }
    if kind == "plain":
        return PPO("MlpPolicy", sb3_vec_env("Pendulum-v1", 4), precision=precision, **options)
    env = make_vec_env("MiniGrid-GoToDoor-5x5-v0", 4, backend="gymnasium")
    return PPO(
        FusionPolicy,
        env,
        precision=precision,
        policy_kwargs={"sites": ("map", "vector", "heads")},
        **options,
    )


def act(policy: Any, observation: Any) -> tuple[Tensor, ...]:
    """Act under autocast, with a fixed seed."""
    torch.manual_seed(0)
    with torch.no_grad(), autocast("bf16", CPU):
        return tuple(policy(obs_as_tensor(observation, CPU)))


@pytest.mark.parametrize("kind", ["fusion", "plain"])
def test_heads_compute_in_float32(kind: str) -> None:
    """The heads compute in float32 on the trunk's output in bfloat16."""
    model, inputs_of, outputs_of = (
        build_agent(kind),
        dict[nn.Module, Any](),
        dict[nn.Module, Tensor](),
    )
    policy = model.policy
    heads: tuple[nn.Module, ...] = (policy.action_net, policy.value_net)
    for head in heads:
        head.register_forward_pre_hook(
            lambda head, inputs: inputs_of.update({head: inputs[0]}), prepend=True
        )
        head.register_forward_hook(lambda head, _, output: outputs_of.update({head: output}))
    _, values, log_probs = act(policy, model.env.reset())
    assert values.dtype == log_probs.dtype == torch.float32
    for head in heads:
        latent, output = inputs_of[head], outputs_of[head]
        assert (latent.vector if kind == "fusion" else latent).dtype == torch.bfloat16
        with torch.no_grad():
            torch.testing.assert_close(head(latent), output, **exactly)  # outside of autocast


def test_integers_are_not_converted() -> None:
    """Task ids and masks are not converted."""
    task, mask = torch.tensor([2]), torch.tensor([[True]])
    features = Features(
        torch.ones(1, 2, dtype=torch.bfloat16),
        Context(torch.ones(1, 2, dtype=torch.bfloat16), None),
    )
    exact = in_float32(features._replace(task=task, action_mask=mask))
    assert exact.vector.dtype == exact.context.values.dtype == torch.float32
    assert exact.task is task
    assert exact.action_mask is mask
    assert in_float32(features).task is None


def test_failing_head_restores_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that raises leaves autocast as it was."""
    model = build_agent("plain")
    monkeypatch.setattr(model.policy.value_net, "forward", lambda _: 1 / 0)
    observation = model.env.reset()
    with autocast("bf16", CPU):
        with pytest.raises(ZeroDivisionError):
            act(model.policy, observation)
        assert torch.is_autocast_enabled("cpu")
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16
    assert not torch.is_autocast_enabled("cpu")


def test_float32_adds_no_hooks() -> None:
    """In float32 the policy gets no hooks."""
    policy = build_agent("plain", "fp32").policy
    for head in (policy.action_net, policy.value_net):
        assert not head._forward_pre_hooks
        assert not head._forward_hooks
    with autocast("fp32", CPU):
        assert not torch.is_autocast_enabled("cpu")


@pytest.fixture
def clear_measurement() -> Iterator[None]:
    """Forget which precision was found to be faster, before and after."""
    precision_module._bf16_is_faster.cache_clear()
    yield
    precision_module._bf16_is_faster.cache_clear()


@pytest.mark.usefixtures("clear_measurement")
@pytest.mark.parametrize(
    ("times_as_fast", "expected"), [(2.0, "bf16"), (1.2, "fp32"), (0.1, "fp32")]
)
def test_auto_measures_once(
    monkeypatch: pytest.MonkeyPatch, times_as_fast: float, expected: str
) -> None:
    """With "auto", bfloat16 is chosen if it is clearly faster; it is measured once."""
    tried = []

    def seconds(dtype: torch.dtype, hopeless: float = 0.0) -> float:
        tried.append(dtype)
        return 1 / times_as_fast if dtype == torch.bfloat16 else 1.0

    monkeypatch.setattr(precision_module, "_time_matmul", seconds)
    assert [resolve_precision("auto", CPU) for _ in range(3)] == [expected] * 3
    assert tried == [torch.float32, torch.bfloat16]


@pytest.mark.usefixtures("clear_measurement")
def test_auto_resolves_to_a_precision() -> None:
    """The precision "auto" is one of the two; the others are themselves."""
    assert resolve_precision("auto", CPU) in ("bf16", "fp32")
    assert [resolve_precision(name, CPU) for name in ("bf16", "fp32")] == ["bf16", "fp32"]


def test_unknown_precision_raises() -> None:
    with pytest.raises(ConfigError, match=r"unknown precision 'bf61'.*Did you mean 'bf16'"):
        build_agent("plain").use_precision("bf61")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["fusion", "plain"])
def test_gradients_agree_between_precisions(kind: str) -> None:
    """Gradients in bfloat16 point in the direction of those in float32."""
    exact, fast = build_agent(kind, "fp32"), build_agent(kind)
    exact.learn(128)  # a rollout, and weights that differ from the start
    fast.policy.load_state_dict(exact.policy.state_dict())
    gradients = []
    for model in (exact, fast):
        samples = exact.rollout_buffer.minibatch(torch.arange(128).numpy())
        losses, _ = ppo_losses(
            evaluate_samples(model, samples),
            samples,
            LossWeights(0.01, 0.5, normalize_advantage=True),
            0.2,
        )
        model.policy.zero_grad()
        losses.mean().backward()
        gradients.append(torch.cat([weight.grad.flatten() for weight in model.policy.parameters()]))
    assert not torch.equal(*gradients)
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_saved_model_keeps_its_precision(algorithm: Any, tmp_path: Path) -> None:
    """A saved model is loaded in its precision, and training continues."""
    env = sb3_vec_env("CartPole-v1", 4)
    algorithm("MlpPolicy", env, n_steps=32, precision="bf16", seed=0, device="cpu").learn(128).save(
        tmp_path / "model"
    )
    loaded = algorithm.load(tmp_path / "model", env=env, device="cpu")
    before = {name: weight.clone() for name, weight in loaded.policy.state_dict().items()}
    assert loaded.precision == "bf16"
    assert len(loaded.policy.action_net._forward_pre_hooks) == 1
    loaded.learn(128, reset_num_timesteps=False)
    assert loaded.num_timesteps == 256
    for name, weight in loaded.policy.state_dict().items():
        assert weight.dtype == torch.float32
        assert not torch.equal(weight, before[name]), name


def test_copied_policy_acts_the_same() -> None:
    model = build_agent("fusion")
    observation = model.env.reset()
    first, second = act(model.policy, observation), act(copy.deepcopy(model.policy), observation)
    torch.testing.assert_close(first, second, **exactly)


def test_command_saves_float32(tmp_path: Path) -> None:
    """The command trains in bfloat16 and saves weights in float32."""
    sizes = [
        "agent.scale_values=false",  # its statistics are float64
        "agent.n_envs=4",
        "agent.n_steps=16",
        "agent.batch_size=64",
        "encoder.channels=8",
        "evaluation.episodes=4",
        "evaluation.max_steps=20",
    ]
    words = [
        "precision=bf16",
        "total_timesteps=64",
        f"runs_dir={tmp_path}",
        "name=run",
        "device=cpu",
        "progress=false",
    ]
    assert train_command.run([*words, *sizes]) == 0
    weights = load_file(tmp_path / "run" / "checkpoints" / "step_000000064" / "policy.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
