"""``FusionExtractor`` and ``FusionPolicy`` inside Stable-Baselines3's algorithms: they run, save, load and agree."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3, HerReplayBuffer
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import MultiInputActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch import nn
from toy_goal_envs import FlipMissionEnv, MirrorReachEnv, SampledEnv

from mirl.configs.networks import (
    GridEncoderConfig,
    MissionContextConfig,
    TaskIdContextConfig,
    VectorEncoderConfig,
)
from mirl.envs import ContractObservation
from mirl.policies import FusionExtractor, FusionPolicy
from mirl.policies.features import Features
from mirl.policies.heads import FusionHead

close = torch.testing.assert_close
FUSIONS = ("concat", "bilinear", "low_rank", "hyper", "film", "gate", "attention", "metric")

CODES = np.broadcast_to(np.array([10, 5, 3], np.uint8), (5, 5, 3))
GRID = spaces.Dict(
    {
        "direction": spaces.Discrete(4),
        "image": spaces.Box(np.zeros_like(CODES), CODES.copy(), (5, 5, 3), np.uint8),
        "mission": spaces.Box(0, 20, (6,), np.int16),
        "task": spaces.Discrete(3),
    }
)
TINY: dict[str, Any] = {
    "context": TaskIdContextConfig(dim=8),
    "encoder": GridEncoderConfig(channels=8, features_dim=12),
}
TINY_VECTOR: dict[str, Any] = {"encoder": VectorEncoderConfig(hidden=(), features_dim=12)}


def grid_env(action_space: spaces.Space[Any] | None = None) -> VecEnv:
    return DummyVecEnv(
        [
            lambda seed=seed: SampledEnv(GRID, action_space or spaces.Discrete(3), seed)
            for seed in (0, 1)
        ]
    )


def mission_env() -> gym.Env[Any, Any]:
    return ContractObservation(FlipMissionEnv())


def with_extractor(**options: Any) -> dict[str, Any]:
    return {
        "features_extractor_class": FusionExtractor,
        "features_extractor_kwargs": options,
        "net_arch": [8],
    }


def ppo(
    policy_kwargs: dict[str, Any], policy: Any = FusionPolicy, env: VecEnv | None = None
) -> PPO:
    return PPO(
        policy,
        env or grid_env(),
        n_steps=16,
        batch_size=8,
        n_epochs=2,
        policy_kwargs=policy_kwargs,
        seed=0,
        device="cpu",
    )


def a_few_steps(name: str) -> BaseAlgorithm:
    """One of SB3's algorithms with our extractor, trained for a few gradient steps."""
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
    model = a_few_steps(name)
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
    model = a_few_steps(name)
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


@pytest.mark.parametrize("fusion", FUSIONS)
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
    with torch.no_grad():  # away from the start, where the context does not count
        for weight in model.policy.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    model.train = lambda: None  # type: ignore[method-assign]
    model.learn(32)
    seen = 0
    for batch in model.rollout_buffer.get(8):
        assert batch.observations["task"].shape == (8, 1)  # type: ignore[index]  # one-hot (8, 1, 3) in the networks
        values, log_probs, _ = model.policy.evaluate_actions(
            batch.observations, batch.actions.long().flatten()
        )
        close(log_probs, batch.old_log_prob, rtol=1e-4, atol=1e-5)
        close(values.flatten(), batch.old_values, rtol=1e-4, atol=1e-5)
        seen += len(values)
    assert seen == 32
    assert batch.old_log_prob.std() > 1e-4


# ------------------------------------------------------------------------------------------------------ FusionPolicy


@pytest.mark.parametrize("policy", ["MultiInputPolicy", FusionPolicy], ids=["extractor", "policy"])
def test_separate_extractors_both_train(policy: Any) -> None:
    """Separate extractors share no weight, and both are trained."""
    parts = {**TINY, "sites": ("map",)}
    options = parts if policy is FusionPolicy else with_extractor(**parts)
    model = ppo({**options, "share_features_extractor": False, "net_arch": [8]}, policy)
    trunks = (model.policy.pi_features_extractor, model.policy.vf_features_extractor)
    assert not {id(w) for w in trunks[0].parameters()} & {id(w) for w in trunks[1].parameters()}
    before = [
        {name: weight.detach().clone() for name, weight in trunk.named_parameters()}
        for trunk in trunks
    ]
    model.learn(32)
    for trunk, start in zip(trunks, before, strict=True):
        still = [
            name for name, weight in trunk.named_parameters() if torch.equal(weight, start[name])
        ]
        assert not still


def test_separate_extractors_train_fused_heads() -> None:
    """Separate extractors and both fused heads are trained."""
    model = ppo(
        {**TINY, "sites": ("map", "heads"), "share_features_extractor": False, "net_arch": [8]}
    ).learn(32)
    for head in (model.policy.action_net, model.policy.value_net):
        assert isinstance(head, FusionHead)
        assert head.fusion.get_parameter("weight").any()
    for trunk in (model.policy.pi_features_extractor, model.policy.vf_features_extractor):
        assert trunk.get_parameter("map_fusion.weight").any()


def test_extractor_is_shared_by_default() -> None:
    """Actor and critic share their extractor by default."""
    policy = ppo({**TINY, "sites": ("map", "heads")}).policy
    assert policy.pi_features_extractor is policy.vf_features_extractor


def test_optimizer_contains_fused_heads() -> None:
    """The optimizer contains all weights, those of the fused heads included."""
    policy = ppo({**TINY, "sites": ("heads",)}).policy
    held = {id(weight) for group in policy.optimizer.param_groups for weight in group["params"]}
    assert held == {id(weight) for weight in policy.parameters()}


def test_fused_head_equals_einsum() -> None:
    """A fused head is the bilinear form of the hidden layer and the context of each row."""
    policy = ppo({**TINY, "sites": ("heads",), "net_arch": {"pi": [8], "vf": [6]}}).policy
    for head in (policy.action_net, policy.value_net):
        nn.init.normal_(head.get_parameter("fusion.weight"))
    observation, _ = policy.obs_to_tensor(grid_env().reset())
    features = policy.extract_features(observation)
    assert isinstance(features, Features)
    task = nn.functional.one_hot(observation["task"], 3).float()  # type: ignore[index]
    context = policy.pi_features_extractor.context(task).per_row()  # type: ignore[operator]
    value_net = policy.value_net
    assert isinstance(value_net, FusionHead)
    hidden = policy.mlp_extractor.value_net(features.vector)
    assert hidden.shape == (2, 6)
    product = torch.einsum(
        "bz,zxo,bx->bo", context, value_net.fusion.get_parameter("weight"), hidden
    )
    expected = product + hidden @ value_net.fusion.get_parameter("main.weight")
    close(policy.predict_values(observation), expected, rtol=1e-4, atol=1e-5)


def test_initial_policy_is_nearly_uniform() -> None:
    """The initial policy of fused heads is nearly uniform."""
    policy = ppo({**TINY, "sites": ("map", "heads")}).policy
    observation, _ = policy.obs_to_tensor(grid_env().reset())
    distribution = policy.get_distribution(observation).distribution
    assert isinstance(distribution, torch.distributions.Categorical)
    close(distribution.probs, torch.full((2, 3), 1 / 3), rtol=0, atol=0.02)


@pytest.mark.parametrize(
    "action_space",
    [
        spaces.Discrete(4),
        spaces.MultiDiscrete([2, 3]),
        spaces.MultiBinary(3),
        spaces.Box(-1, 1, (2,), np.float32),
    ],
    ids=lambda space: type(space).__name__,
)
@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_fused_heads_support_all_action_spaces(
    algorithm: Any, action_space: spaces.Space[Any]
) -> None:
    """Fused heads train and act in every action space of PPO and A2C."""
    options = {**TINY, "sites": ("heads",), "net_arch": [8]}
    minibatches = {"batch_size": 8} if algorithm is PPO else {}
    model = algorithm(
        FusionPolicy,
        grid_env(action_space),
        n_steps=8,
        policy_kwargs=options,
        device="cpu",
        **minibatches,
    )
    model.learn(32)
    action, _ = model.predict(grid_env(action_space).reset())
    assert action_space.contains(action[0])


@pytest.mark.parametrize("sites", [("heads",), ("map", "vector", "heads")])
def test_gsde_noise_depends_on_hidden_layer(
    sites: tuple[str, ...],
) -> None:
    """The state-dependent noise of fused heads is a function of the hidden layer."""
    env = grid_env(spaces.Box(-1, 1, (2,), np.float32))
    options = {**TINY, "sites": sites, "net_arch": [8]}
    model = PPO(
        FusionPolicy,
        env,
        n_steps=16,
        batch_size=8,
        policy_kwargs=options,
        use_sde=True,
        sde_sample_freq=4,
        device="cpu",
    )
    before = model.policy.log_std.detach().clone()
    model.learn(32)
    assert before.shape == (8, 2)
    assert not torch.equal(model.policy.log_std, before)
    observation, _ = model.policy.obs_to_tensor(env.reset())
    features = model.policy.extract_features(observation)
    assert isinstance(features, Features)
    hidden = model.policy.mlp_extractor.policy_net(features.vector)
    distribution = model.policy.get_distribution(observation).distribution
    assert isinstance(distribution, torch.distributions.Normal)
    close(distribution.mean, model.policy.action_net(features._replace(vector=hidden)))
    close(distribution.variance, hidden.square() @ model.policy.log_std.exp().square() + 1e-6)


def test_without_heads_equals_sb3_policy() -> None:
    """Without fused heads the policy is SB3's own, except for the initial value head."""
    ours = ppo({**TINY, "sites": ("map",), "net_arch": [8]}).policy
    theirs = ppo(with_extractor(**TINY, sites=("map",)), "MultiInputPolicy").policy
    assert isinstance(ours, MultiInputActorCriticPolicy)
    theirs.value_net.load_state_dict(ours.value_net.state_dict())
    close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("fusion", FUSIONS)
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
