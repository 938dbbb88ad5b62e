"""Policies for SAC, TD3, TQC and DQN: outputs, training, saving and loading."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from fusion_cases import KINDS
from gymnasium import spaces
from sb3_contrib import TQC
from stable_baselines3 import DQN, SAC, TD3, HerReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor, nn
from toy_goal_envs import MirrorReachEnv

from mirl.configs.errors import ConfigError
from mirl.configs.networks import (
    ConcatConfig,
    GoalContextConfig,
    HyperConfig,
    VectorEncoderConfig,
    network_config,
)
from mirl.policies import FusionExtractor, specialize
from mirl.policies.features import Features
from mirl.policies.heads import FusionHead
from mirl.policies.off_policy import (
    FusionDQNPolicy,
    FusionSACPolicy,
    FusionTD3Policy,
    FusionTQCPolicy,
)

POLICIES: dict[type[OffPolicyAlgorithm], Any] = {
    SAC: FusionSACPolicy,
    TD3: FusionTD3Policy,
    TQC: FusionTQCPolicy,
    DQN: FusionDQNPolicy,
}
ALGORITHMS = tuple(POLICIES)
TINY: dict[str, Any] = {
    "context": GoalContextConfig(dim=5),
    "encoder": VectorEncoderConfig(hidden=(), features_dim=7),
    "net_arch": [6],
}
HEADS = {**TINY, "sites": ("heads",)}


class PushReachEnv(MirrorReachEnv):
    """``MirrorReachEnv`` with two discrete actions: push and pull."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Discrete(2)  # type: ignore[assignment]

    def step(self, action: Any) -> Any:
        return super().step(np.array([2.0 * int(action) - 1.0]))


def build(algorithm: type[OffPolicyAlgorithm], options: dict[str, Any], **others: Any) -> Any:
    """Build the algorithm with HER and a toy environment, on the CPU."""
    her = {
        "replay_buffer_class": HerReplayBuffer,
        "learning_starts": 8,
        "batch_size": 16,
        "buffer_size": 100,
    }
    env = DummyVecEnv([PushReachEnv if algorithm is DQN else MirrorReachEnv])
    kinds: dict[str, Any] = {
        "policy": POLICIES[algorithm],
        "device": "cpu",
        "seed": 0,
        **her,
        **others,
    }
    return cast(Any, algorithm)(
        env=env, policy_kwargs=dict(options), **kinds
    )  # SB3 changes the dictionary


def networks(policy: BasePolicy) -> Iterator[Any]:
    """Yield the actor and the critic, or the Q-network."""
    for name in ("actor", "critic", "q_net"):
        if hasattr(policy, name):
            yield getattr(policy, name)


def heads(module: nn.Module) -> list[FusionHead]:
    return [part for part in module.modules() if isinstance(part, FusionHead)]


def with_random_weights(policy: BasePolicy) -> BasePolicy:
    """Replace all weights by random ones, since some start at zero."""
    torch.manual_seed(1)
    for weight in policy.parameters():
        nn.init.normal_(weight, std=0.5)
    return policy


def batch(policy: BasePolicy, n: int = 4) -> tuple[dict[str, Tensor], Tensor]:
    """Return random observations and actions."""
    space = cast(spaces.Dict, policy.observation_space)
    generator = torch.Generator().manual_seed(2)
    obs = {
        key: torch.randn(n, *cast(Any, part.shape), generator=generator)
        for key, part in space.items()
    }
    return obs, torch.rand(n, *cast(Any, policy.action_space.shape), generator=generator)


def bilinear(head: FusionHead, x: Tensor, z: Tensor) -> Tensor:
    """Compute c zᵀ𝕎x + Uᵀz + Vx + b with c = 1/Z and the weights of the head's fusion."""
    weights = dict(head.fusion.named_parameters())
    product = torch.einsum("bz,zxo,bx->bo", z / z.shape[1], weights["weight"], x)
    return product + z @ weights["shift.weight"] + x @ weights["main.weight"] + weights["main.bias"]


def seen(network: Any, obs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the features and the context of each row."""
    features = network.extract_features(obs, network.features_extractor)
    return features.vector, features.context.per_row()


@pytest.mark.parametrize("algorithm", [SAC, TD3])
def test_critic_is_bilinear_form(algorithm: Any) -> None:
    """Q is the bilinear form of the hidden layer and the goal."""
    policy = with_random_weights(build(algorithm, HEADS).policy)
    critic = cast(Any, policy).critic
    obs, actions = batch(policy)
    vector, z = seen(critic, obs)
    x = torch.cat([vector, actions], dim=1)
    expected = []
    for q_network in critic.q_networks:
        over_vector, head = q_network
        linear = over_vector.layers[0]
        expected.append(bilinear(head, torch.relu(x @ linear.weight.T + linear.bias), z))
    assert len(expected) == 2
    for q, by_hand in zip(critic(obs, actions), expected, strict=True):
        torch.testing.assert_close(q, by_hand)
    torch.testing.assert_close(critic.q1_forward(obs, actions), expected[0])


def test_quantiles_are_bilinear_forms() -> None:
    """The quantiles of TQC are bilinear forms of the hidden layer and the goal."""
    policy = with_random_weights(build(TQC, {**HEADS, "n_critics": 3, "n_quantiles": 4}).policy)
    critic = cast(Any, policy).critic
    obs, actions = batch(policy)
    vector, z = seen(critic, obs)
    x = torch.cat([vector, actions], dim=1)
    hidden = [
        q_network[0].layers(Features(x, z)._replace(vector=x).vector)
        for q_network in critic.q_networks
    ]
    by_hand = [
        bilinear(q_network[1], h, z) for q_network, h in zip(critic.q_networks, hidden, strict=True)
    ]
    assert critic(obs, actions).shape == (4, 3, 4)
    torch.testing.assert_close(critic(obs, actions), torch.stack(by_hand, dim=1))


def test_dqn_head_is_bilinear_form() -> None:
    """The head of DQN is a bilinear form with one output per action."""
    policy = with_random_weights(build(DQN, HEADS).policy)
    q_net = cast(Any, policy).q_net
    obs, _ = batch(policy)
    vector, z = seen(q_net, obs)
    over_vector, head = q_net.q_net
    assert q_net(obs).shape == (4, 2)
    torch.testing.assert_close(q_net(obs), bilinear(head, over_vector.layers(vector), z))


@pytest.mark.parametrize("algorithm", [SAC, TQC])
def test_gaussian_actor_heads_are_bilinear(algorithm: Any) -> None:
    """The mean and the log standard deviation of the actor are bilinear forms."""
    policy = with_random_weights(build(algorithm, HEADS).policy)
    actor = cast(Any, policy).actor
    obs, _ = batch(policy)
    vector, z = seen(actor, obs)
    hidden = actor.latent_pi.layers(vector)
    mean, log_std, _ = actor.get_action_dist_params(obs)
    torch.testing.assert_close(mean, bilinear(actor.mu, hidden, z))
    torch.testing.assert_close(log_std, bilinear(actor.log_std, hidden, z).clamp(-20, 2))


def test_td3_actor_squashes_bilinear_form() -> None:
    """The actor of TD3 is the tanh of a bilinear form."""
    policy = with_random_weights(build(TD3, HEADS).policy)
    actor = cast(Any, policy).actor
    obs, _ = batch(policy)
    vector, z = seen(actor, obs)
    over_vector, head, squash = actor.mu
    assert isinstance(squash, nn.Tanh)
    torch.testing.assert_close(
        actor(obs), torch.tanh(bilinear(head, over_vector.layers(vector), z))
    )


@pytest.mark.parametrize("algorithm", [SAC, TD3])
def test_critic_without_hidden_layers(
    algorithm: Any,
) -> None:
    """Without hidden layers the critic fuses the features and the action themselves."""
    policy = with_random_weights(build(algorithm, {**HEADS, "net_arch": []}).policy)
    critic = cast(Any, policy).critic
    obs, actions = batch(policy)
    vector, z = seen(critic, obs)
    x = torch.cat([vector, actions], dim=1)
    torch.testing.assert_close(critic(obs, actions)[1], bilinear(critic.q_networks[1][1], x, z))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_initial_networks_ignore_the_goal(
    algorithm: Any,
) -> None:
    """The initial networks ignore the goal, and the weights of the goal get a gradient."""
    policy = build(algorithm, HEADS).policy
    obs, actions = batch(policy)
    for network in networks(policy):
        takes = (obs, actions) if network is getattr(policy, "critic", None) else (obs,)
        other = ({**obs, "desired_goal": obs["desired_goal"] + 1}, *takes[1:])
        torch.manual_seed(0)
        first = network(*takes)
        torch.manual_seed(0)
        torch.testing.assert_close(network(*other), first)
    for head in heads(policy):
        features = torch.randn(3, head.fusion.features_dim)
        head.fusion(features, torch.randn(3, head.fusion.context_dim)).square().sum().backward()
        assert cast(Tensor, head.fusion.get_parameter("weight").grad).any()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_training_updates_both_context_encoders(algorithm: Any) -> None:
    """Training changes the context encoders of the actor and of the critic."""
    agent = build(algorithm, HEADS)
    before = [
        [w.clone() for w in network.features_extractor.context.parameters()]
        for network in networks(agent.policy)
    ]
    agent.learn(40)
    for network, old in zip(networks(agent.policy), before, strict=True):
        weights = list(network.features_extractor.context.parameters())
        assert weights
        assert not any(torch.equal(new, w) for new, w in zip(weights, old, strict=True))
        assert all(weight.isfinite().all() for weight in network.parameters())


@pytest.mark.parametrize("fusion", KINDS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_fusion_trains_everywhere(algorithm: Any, fusion: str) -> None:
    """Every fusion trains in every algorithm and at both sites."""
    agent = build(algorithm, {**TINY, "fusion": fusion, "sites": ("vector", "heads")})
    before = {name: weight.clone() for name, weight in agent.policy.named_parameters()}
    agent.learn(20)
    assert agent._n_updates > 0
    changed = {
        name
        for name, weight in agent.policy.named_parameters()
        if not torch.equal(weight, before[name])
    }
    assert all(weight.isfinite().all() for weight in agent.policy.parameters())
    for network in ("actor", "critic", "q_net"):
        if hasattr(agent.policy, network):
            for site in ("vector_fusion", "fusion"):
                assert any(
                    name.startswith(f"{network}.") and f".{site}." in name for name in changed
                ), (network, site)


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("algorithm", [SAC, TD3, TQC])
def test_extractor_sharing_follows_the_option(algorithm: Any, share: bool) -> None:
    """Actor and critic share their extractor only if the option says so."""
    agent = build(algorithm, {**HEADS, "share_features_extractor": share})
    assert (agent.actor.features_extractor is agent.critic.features_extractor) == share
    agent.learn(12)
    of_critic = agent.critic.features_extractor.encoder.state_dict()
    of_actor = agent.actor.features_extractor.encoder.state_dict()
    assert all(torch.equal(of_actor[name], of_critic[name]) for name in of_actor) == share


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("algorithm", [SAC, TD3, TQC])
def test_actor_loss_leaves_critic_gradients_empty(algorithm: Any, share: bool) -> None:
    """The actor's loss gets the gradient of the actions, and the critic's weights get none."""
    policy = cast(
        Any,
        with_random_weights(build(algorithm, {**TINY, "share_features_extractor": share}).policy),
    )
    obs, actions = batch(policy)
    ask = policy.critic.q1_forward if algorithm is TD3 else policy.critic

    def total(of: Tensor) -> Tensor:
        return torch.stack([*ask(obs, of)]).sum()

    asked = actions.clone().requires_grad_()
    total(asked).backward()
    assert all(
        weight.grad is None and weight.requires_grad for weight in policy.critic.parameters()
    )
    step = 1e-3
    for column in range(actions.shape[1]):
        ahead, back = (
            actions.index_add(1, torch.tensor([column]), torch.full((len(actions), 1), by))
            for by in (step, -step)
        )
        with torch.no_grad():
            slope = (total(ahead) - total(back)) / (2 * step)
        torch.testing.assert_close(
            cast(Tensor, asked.grad)[:, column].sum(), slope, rtol=1e-2, atol=1e-2
        )
    total(actions).backward()
    assert any(
        weight.grad is not None and weight.grad.any()
        for weight in policy.critic.q_networks[0].parameters()
    )


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_targets_start_equal(algorithm: Any) -> None:
    """The target networks start as separate copies of the networks."""
    policy = build(algorithm, HEADS).policy
    name = "q_net" if algorithm is DQN else "critic"
    network, target = (
        dict(getattr(policy, part).named_parameters()) for part in (name, f"{name}_target")
    )
    torch.testing.assert_close(network, target, rtol=0, atol=0)
    assert not {id(weight) for weight in network.values()} & {
        id(weight) for weight in target.values()
    }


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_optimizers_contain_fused_heads(algorithm: Any) -> None:
    """The optimizers contain all weights, those of the fused heads included."""
    policy = build(algorithm, HEADS).policy
    for network in networks(policy):
        optimizer = policy.optimizer if algorithm is DQN else network.optimizer
        held = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
        assert held == {id(weight) for weight in network.parameters()}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_without_heads_equals_sb3_policy(algorithm: Any) -> None:
    """Without fused heads the policy is SB3's own with the extractor."""
    ours = build(algorithm, {**TINY, "sites": ("vector",)}).policy
    extractor = {key: value for key, value in TINY.items() if key != "net_arch"}
    plain = {
        "features_extractor_class": FusionExtractor,
        "features_extractor_kwargs": extractor,
        "net_arch": [6],
    }
    theirs = build(algorithm, plain, policy="MultiInputPolicy").policy
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("algorithm", [SAC, TD3, TQC])
def test_concat_critic_equals_linear_critic(
    algorithm: Any,
) -> None:
    """With no hidden layers both are affine in (features, action, context), and of one size."""
    policy = with_random_weights(
        build(algorithm, {**HEADS, "fusion": ConcatConfig(), "net_arch": []}).policy
    )
    critic = cast(Any, policy).critic
    obs, actions = batch(policy)
    vector, z = seen(critic, obs)
    fusion = critic.q_networks[0][1].fusion
    own = nn.Linear(vector.shape[1] + actions.shape[1] + z.shape[1], fusion.out_dim)
    weights = dict(fusion.named_parameters())
    assert sum(w.numel() for w in weights.values()) == own.weight.numel() + own.bias.numel()
    with torch.no_grad():
        own.weight.copy_(torch.cat([weights["main.weight"], weights["shift.weight"]]).T)
        own.bias.copy_(weights["main.bias"])
    first = critic(obs, actions)[:, 0] if algorithm is TQC else critic(obs, actions)[0]
    torch.testing.assert_close(first, own(torch.cat([vector, actions, z], dim=1)))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_saved_policy_and_agent_are_restored(algorithm: Any, tmp_path: Path) -> None:
    """A saved policy and a saved agent act as before after they are loaded."""
    options = {**TINY, "fusion": HyperConfig(hidden=(3,)), "sites": ("vector", "heads")}
    agent = build(algorithm, options).learn(20)
    agent.policy.save(tmp_path / "policy")
    agent.save(tmp_path / "agent")
    observation = agent.env.reset()
    action, _ = agent.policy.predict(observation, deterministic=True)
    for policy in (
        POLICIES[algorithm].load(tmp_path / "policy", device="cpu"),
        algorithm.load(tmp_path / "agent", env=agent.env, device="cpu").policy,
    ):
        torch.testing.assert_close(policy.state_dict(), agent.policy.state_dict(), rtol=0, atol=0)
        np.testing.assert_array_equal(policy.predict(observation, deterministic=True)[0], action)


@pytest.mark.parametrize("algorithm", [SAC, TD3, TQC])
def test_shared_extractor_survives_saving(algorithm: Any, tmp_path: Path) -> None:
    """A policy with a shared extractor has one after it is loaded."""
    build(algorithm, {**HEADS, "share_features_extractor": True}).policy.save(tmp_path / "policy")
    policy = POLICIES[algorithm].load(tmp_path / "policy", device="cpu")
    assert policy.actor.features_extractor is policy.critic.features_extractor


@pytest.mark.parametrize("algorithm", [SAC, TQC])
def test_gsde_with_fused_heads_raises(algorithm: Any) -> None:
    """State-dependent exploration with fused heads raises an error with alternatives."""
    with pytest.raises(ConfigError, match="use_sde=True does not work with fused heads here"):
        build(algorithm, HEADS, use_sde=True)


def test_specialize_is_rejected() -> None:
    """Off-policy policies have no specialized form."""
    with pytest.raises(ConfigError, match="only policies of PPO and A2C have a specialized form"):
        specialize(build(SAC, HEADS).policy, np.zeros(1, np.float32))


# ------------------------------------------------------------------------------------ normalization


NORMALIZED = {
    **HEADS,
    "encoder": VectorEncoderConfig(normalize=True),
    "context": GoalContextConfig(normalize=True),
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_all_networks_have_running_norms(algorithm: Any) -> None:
    """Every network normalizes its inputs and the goal."""
    policy = build(algorithm, NORMALIZED).policy
    extractors = [module for module in policy.modules() if isinstance(module, FusionExtractor)]
    assert len(extractors) == {SAC: 3, TD3: 4, TQC: 3, DQN: 2}[algorithm]
    assert all(extractor.has_running_norm for extractor in extractors)


def test_running_norms_are_saved(tmp_path: Path) -> None:
    """The statistics of the normalization are saved with the policy."""
    policy = build(SAC, NORMALIZED).policy
    obs, actions = batch(policy)
    before = policy.critic(obs, actions)
    for module in policy.modules():
        if isinstance(module, FusionExtractor):
            module.update_statistics({key: 3 + 2 * value for key, value in obs.items()})
    policy.save(tmp_path / "policy")
    loaded = FusionSACPolicy.load(tmp_path / "policy", device="cpu")
    torch.testing.assert_close(
        loaded.critic(obs, actions), policy.critic(obs, actions), rtol=0, atol=0
    )
    assert not torch.equal(policy.critic(obs, actions)[0], before[0])


# ---------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_constructor_lists_sb3_parameters(algorithm: Any) -> None:
    """Every parameter of SB3's policy has its own name and default in the signature."""
    policy = POLICIES[algorithm]
    ours = inspect.signature(policy).parameters
    theirs = inspect.signature(policy.__mro__[2]).parameters
    assert policy.__mro__[2].__module__.startswith(("stable_baselines3", "sb3_contrib"))
    fixed = {"features_extractor_class", "features_extractor_kwargs"}
    assert not fixed & set(ours)
    for name in set(theirs) - fixed:
        assert ours[name].default == theirs[name].default, name


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_network_equals_separate_options(algorithm: Any) -> None:
    """A network config builds the same policy as the separate options."""
    parts = {key: value for key, value in HEADS.items() if key != "net_arch"}
    network = network_config(**parts, fusion="film")
    separate = build(algorithm, {**HEADS, "fusion": "film"}).policy
    single = build(algorithm, {"network": network, "net_arch": [6]}).policy
    torch.testing.assert_close(single.state_dict(), separate.state_dict(), rtol=0, atol=0)
    assert single.network == separate.network


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_network_excludes_separate_options(algorithm: Any) -> None:
    """A network config together with a separate option raises an error."""
    with pytest.raises(ConfigError, match="got network and fusion"):
        build(algorithm, {"network": network_config(), "fusion": "film"})


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_memory_is_rejected(algorithm: Any) -> None:
    """A network with a memory raises an error that names the algorithms without one."""
    with pytest.raises(ConfigError, match="memory=lstm is for PPO and A2C"):
        build(algorithm, {"network": network_config(memory="lstm")})
