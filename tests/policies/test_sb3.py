"""``FusionExtractor`` and ``FusionPolicy`` in SB3's algorithms: training, saving, loading."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from fusion_cases import KINDS
from grid_models import TINY, grid_env, ppo, with_extractor
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3, HerReplayBuffer
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv
from toy_goal_envs import FlipMissionEnv, MirrorReachEnv

from mirl.configs.networks import (
    MissionContextConfig,
    TaskIdContextConfig,
    VectorEncoderConfig,
)
from mirl.envs import ContractObservation
from mirl.policies import FusionExtractor, FusionPolicy

close = torch.testing.assert_close

TINY_VECTOR: dict[str, Any] = {"encoder": VectorEncoderConfig(hidden=(), features_dim=12)}


def mission_env() -> gym.Env[Any, Any]:
    return ContractObservation(FlipMissionEnv())


def train_briefly(name: str) -> BaseAlgorithm:
    """Train one of SB3's algorithms with our extractor for a few gradient steps."""
    match name:
        case "PPO":
            model: BaseAlgorithm = ppo(
                with_extractor(**TINY, sites=("map", "vector")), "MultiInputPolicy"
            )
        case "A2C":
            options = with_extractor(**TINY, sites=("map",))
            model = A2C(
                "MultiInputPolicy",
                grid_env(),
                n_steps=4,
                policy_kwargs=options,
                seed=0,
                device="cpu",
            )
        case "FusionPolicy":
            model = ppo({**TINY, "sites": ("map", "heads"), "net_arch": [8]})
        case "DQN":
            options = with_extractor(**TINY_VECTOR, context=MissionContextConfig(dim=8, heads=2))
            model = DQN(
                "MultiInputPolicy",
                DummyVecEnv([mission_env]),
                buffer_size=100,
                learning_starts=8,
                batch_size=8,
                policy_kwargs=options,
                seed=0,
                device="cpu",
            )
        case "SAC" | "TD3":
            model = {"SAC": SAC, "TD3": TD3}[name](
                "MultiInputPolicy",
                DummyVecEnv([MirrorReachEnv]),
                replay_buffer_class=HerReplayBuffer,
                buffer_size=100,
                learning_starts=10,
                batch_size=8,
                policy_kwargs=with_extractor(**TINY_VECTOR),
                seed=0,
                device="cpu",
            )
        case _:
            raise AssertionError(name)
    return model.learn(64)


ALGORITHMS = ("PPO", "A2C", "FusionPolicy", "DQN", "SAC", "TD3")


@pytest.mark.parametrize("name", ALGORITHMS)
def test_training_changes_every_fusion(name: str) -> None:
    """Training keeps all weights finite and moves the fusions off their initial zeros."""
    torch.manual_seed(0)
    model = train_briefly(name)
    trained = [part for name, part in model.policy.named_modules() if "target" not in name]
    extractors = [part for part in trained if isinstance(part, FusionExtractor)]
    assert extractors
    assert all(weight.isfinite().all() for weight in model.policy.parameters())
    for part in extractors:
        for fusion in (part.map_fusion, part.vector_fusion):
            if fusion is not None:
                assert fusion.get_parameter("weight").any(), (
                    "the bilinear weights are still at their start"
                )


@pytest.mark.parametrize("name", ALGORITHMS)
def test_saved_model_acts_as_before(name: str, tmp_path: Path) -> None:
    """A saved model has the same weights and outputs after it is loaded."""
    model = train_briefly(name)
    model.save(tmp_path / "model.zip")
    env = model.get_env()
    assert env is not None
    loaded = type(model).load(
        tmp_path / "model.zip", env=env if name in ("SAC", "TD3") else None, device="cpu"
    )
    env.seed(3)
    observation = env.reset()
    before, after = (each.predict(observation, deterministic=True)[0] for each in (model, loaded))
    np.testing.assert_array_equal(before, after)
    close(loaded.policy.state_dict(), model.policy.state_dict(), rtol=0, atol=0)
    if isinstance(model, OnPolicyAlgorithm) and isinstance(loaded, OnPolicyAlgorithm):
        tensors, _ = model.policy.obs_to_tensor(observation)
        close(
            loaded.policy.predict_values(tensors),
            model.policy.predict_values(tensors),
            rtol=0,
            atol=0,
        )


@pytest.mark.parametrize("share", [True, False], ids=["shared", "separate"])
@pytest.mark.parametrize("sites", [("vector",), ("heads",), ("map", "vector", "heads")])
def test_saved_policy_acts_as_before(sites: tuple[str, ...], share: bool, tmp_path: Path) -> None:
    """A saved policy has the same weights and values after it is loaded."""
    options = {
        **TINY,
        "sites": sites,
        "net_arch": [8],
        "fusion": "film",
        "share_features_extractor": share,
    }
    policy = ppo(options).learn(32).policy
    policy.save(tmp_path / "policy.pt")
    loaded = FusionPolicy.load(tmp_path / "policy.pt", device="cpu")
    close(loaded.state_dict(), policy.state_dict(), rtol=0, atol=0)
    observation, _ = policy.obs_to_tensor(grid_env().reset())
    close(loaded.predict_values(observation), policy.predict_values(observation), rtol=0, atol=0)


@pytest.mark.parametrize("fusion", KINDS)
@pytest.mark.parametrize("policy", ["MultiInputPolicy", FusionPolicy], ids=["extractor", "policy"])
@pytest.mark.parametrize("key", ["task", "mission"])
def test_minibatches_reproduce_the_rollout(policy: Any, fusion: str, key: str) -> None:
    """Minibatches give the log-probabilities and values of the rollout."""
    context = TaskIdContextConfig(dim=8) if key == "task" else MissionContextConfig(dim=8, heads=2)
    parts = {**TINY, "context": context, "fusion": fusion}
    if policy is FusionPolicy:
        model = ppo({**parts, "sites": ("map", "vector", "heads"), "net_arch": [8]})
    else:
        model = ppo(with_extractor(**parts, sites=("map", "vector")), policy)
    with torch.no_grad():  # at initialization the output ignores the context
        for weight in model.policy.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    model.train = lambda: None  # type: ignore[method-assign]
    model.learn(32)
    seen = 0
    for batch in model.rollout_buffer.get(8):
        assert batch.observations["task"].shape == (8, 1)  # type: ignore[index]
        values, log_probs, _ = model.policy.evaluate_actions(
            batch.observations, batch.actions.long().flatten()
        )
        close(log_probs, batch.old_log_prob, rtol=1e-4, atol=1e-5)
        close(values.flatten(), batch.old_values, rtol=1e-4, atol=1e-5)
        seen += len(values)
    assert seen == 32
    assert batch.old_log_prob.std() > 1e-4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("fusion", KINDS)
def test_cuda_equals_cpu(fusion: str) -> None:
    """The outputs on a CUDA device equal those on the CPU."""
    options = {
        **TINY,
        "context": MissionContextConfig(dim=8, heads=2),
        "sites": ("map", "vector", "heads"),
    }
    model = ppo({**options, "fusion": fusion, "net_arch": [8]}).learn(32)
    observation = grid_env().reset()
    on_cpu, _ = model.policy.obs_to_tensor(observation)
    expected = model.policy.predict_values(on_cpu)
    model.policy.to("cuda")
    on_gpu, _ = model.policy.obs_to_tensor(observation)
    close(model.policy.predict_values(on_gpu).cpu(), expected, rtol=1e-3, atol=1e-4)
    weights = dict(model.policy.named_parameters())
    model.policy.predict_values(on_gpu).sum().backward()
    assert all(weight.grad is None or weight.grad.is_cuda for weight in weights.values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_ppo_trains_on_cuda() -> None:
    """PPO trains on a CUDA device."""
    options = {**TINY, "sites": ("map", "heads")}
    model = PPO(
        FusionPolicy, grid_env(), n_steps=16, batch_size=8, policy_kwargs=options, device="cuda"
    ).learn(64)
    assert all(weight.is_cuda and weight.isfinite().all() for weight in model.policy.parameters())
