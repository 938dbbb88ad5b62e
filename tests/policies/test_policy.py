"""``FusionPolicy``: its parts, its arguments, and SB3's options with fused heads."""

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from grid_models import GRID, TINY, grid_env, ppo, with_extractor
from gymnasium import spaces
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.policies import MultiInputActorCriticPolicy

from mirl.configs.errors import ConfigError
from mirl.configs.networks import LstmConfig, NetworkConfig, network_config
from mirl.policies import FusionPolicy, RecurrentFusionPolicy
from mirl.policies.features import Features
from mirl.policies.heads import FusionHead
from mirl.policies.routing import resolve_network

close = torch.testing.assert_close


@pytest.mark.parametrize("policy", ["MultiInputPolicy", FusionPolicy], ids=["extractor", "policy"])
def test_separate_extractors_both_train(policy: Any) -> None:
    """Separate extractors share no weight, and both are trained."""
    parts = {**TINY, "sites": ("map",)}
    options = parts if policy is FusionPolicy else with_extractor(**parts)
    model = ppo({**options, "share_features_extractor": False, "net_arch": [8]}, policy)
    extractors = (model.policy.pi_features_extractor, model.policy.vf_features_extractor)
    assert not {id(w) for w in extractors[0].parameters()} & {
        id(w) for w in extractors[1].parameters()
    }
    before = [
        {name: weight.detach().clone() for name, weight in extractor.named_parameters()}
        for extractor in extractors
    ]
    model.learn(32)
    for extractor, start in zip(extractors, before, strict=True):
        still = [
            name
            for name, weight in extractor.named_parameters()
            if torch.equal(weight, start[name])
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
    for extractor in (model.policy.pi_features_extractor, model.policy.vf_features_extractor):
        assert extractor.get_parameter("map_fusion.weight").any()


def test_extractor_is_shared_by_default() -> None:
    """Actor and critic share their extractor by default."""
    policy = ppo({**TINY, "sites": ("map", "heads")}).policy
    assert policy.pi_features_extractor is policy.vf_features_extractor


def test_optimizer_contains_fused_heads() -> None:
    """The optimizer contains all weights, those of the fused heads included."""
    policy = ppo({**TINY, "sites": ("heads",)}).policy
    held = {id(weight) for group in policy.optimizer.param_groups for weight in group["params"]}
    assert held == {id(weight) for weight in policy.parameters()}


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
    model = ppo(options, env=env, use_sde=True, sde_sample_freq=4)
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


# ---------------------------------------------------------------------------------------- arguments


def build(network: NetworkConfig | None = None, **options: Any) -> FusionPolicy:
    torch.manual_seed(0)
    return FusionPolicy(GRID, spaces.Discrete(3), lambda _: 1e-3, network, **options)


def test_network_equals_separate_options() -> None:
    """A network config builds the same policy as the separate options."""
    sites = ("map", "vector", "heads")
    network = network_config(**TINY, fusion="film", sites=sites)
    separate = build(**TINY, fusion="film", sites=sites)
    close(build(network).state_dict(), separate.state_dict(), rtol=0, atol=0)
    assert separate.network == resolve_network(network, GRID)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"fusion": "film"}, "network and fusion"),
        ({"sites": ("map",), "observation_keys": ["image"]}, "network and sites, observation_keys"),
        ({"context": "task_id", "encoder": "grid"}, "network and context, encoder"),
        ({"memory": "lstm"}, "network and memory"),
    ],
)
def test_network_excludes_separate_options(options: dict[str, Any], named: str) -> None:
    """A network config together with a separate option raises an error that names the option."""
    with pytest.raises(ConfigError, match=named):
        build(network_config(), **options)


def test_auto_members_are_resolved() -> None:
    """The stored network has the context and the encoder that the space calls for."""
    assert build(network_config()).network.is_resolved
    assert build().network == build(network_config()).network


def test_memory_needs_recurrent_policy() -> None:
    """A feed-forward policy rejects a memory, and a recurrent policy needs one."""
    with pytest.raises(ConfigError, match="FusionPolicy has no memory, got memory=lstm"):
        build(network_config(memory="lstm"))
    arguments = (GRID, spaces.Discrete(3), lambda _: 1e-3)
    with pytest.raises(ConfigError, match="expected one of lstm, "):
        RecurrentFusionPolicy(*arguments, network_config())
    default = RecurrentFusionPolicy(*arguments)
    assert default.network.memory == LstmConfig()


def test_constructor_lists_sb3_parameters() -> None:
    """Every parameter of SB3's policy has its own name and default in the signature."""
    ours = inspect.signature(FusionPolicy).parameters
    theirs = inspect.signature(MultiInputActorCriticPolicy).parameters
    fixed = {"features_extractor_class", "features_extractor_kwargs"}
    assert not fixed & set(ours)
    for name in set(theirs) - fixed:
        assert ours[name].default == theirs[name].default, name


def test_context_as_input_is_not_grouped() -> None:
    """A context key that is also an input must come row by row, not as ``UniqueRows``."""
    assert build(**TINY).grouped_context_key == "task"
    assert build(**TINY, observation_keys=("image", "task")).grouped_context_key is None
