"""Action masks, compared with sb3_contrib's masked distribution."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from sb3_contrib.common.maskable.distributions import MaskableCategorical
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor
from torch.distributions import Categorical
from toy_goal_envs import SampledEnv

from mirl.configs.errors import ConfigError
from mirl.configs.networks import TaskIdContextConfig, VectorEncoderConfig
from mirl.policies import FusionPolicy
from mirl.policies.action_mask import mask_logits
from mirl.policies.features import Features
from mirl.policies.off_policy import FusionDQNPolicy

close = torch.testing.assert_close
N_ACTIONS = 5
SPACE = spaces.Dict(
    {
        "observation": spaces.Box(-1, 1, (4,), np.float32),
        "task": spaces.Discrete(3),
        "action_mask": spaces.MultiBinary(N_ACTIONS),
    }
)
SITES: list[tuple[Any, ...]] = [("vector",), ("vector", "heads")]


def policy_of(
    sites: tuple[Any, ...] = ("vector", "heads"), space: spaces.Dict = SPACE, **options: Any
) -> FusionPolicy:
    """With random weights, at which actions differ much in probability."""
    torch.manual_seed(0)
    parts: dict[str, Any] = {
        "context": TaskIdContextConfig(dim=8),
        "encoder": VectorEncoderConfig(features_dim=12),
    }
    policy = FusionPolicy(
        space, spaces.Discrete(N_ACTIONS), lambda _: 1e-3, sites=sites, **parts, **options
    )
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return policy


def batch_of(size: int = 64) -> dict[str, Tensor]:
    """Random observations in which each mask leaves an action or more."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.randint(0, 2, (size, N_ACTIONS), generator=generator).to(torch.int8)
    mask[torch.arange(size), torch.randint(0, N_ACTIONS, (size,), generator=generator)] = 1
    return {
        "observation": torch.rand(size, 4, generator=generator),
        "task": torch.randint(0, 3, (size,), generator=generator),
        "action_mask": mask,
    }


def unmasked(policy: FusionPolicy, batch: dict[str, Tensor]) -> Tensor:
    """Return the logits before masking."""
    features = policy.extract_features(batch)
    actor = features if policy.share_features_extractor else features[0]
    logits: Tensor = policy.action_net(policy.mlp_extractor.forward_actor(actor))
    return logits


def oracle_of(policy: FusionPolicy, batch: dict[str, Tensor]) -> MaskableCategorical:
    return MaskableCategorical(logits=unmasked(policy, batch), masks=batch["action_mask"].numpy())


# ------------------------------------------------------------------------------------------- logits


@given(
    st.integers(2, 7).flatmap(
        lambda n: st.tuples(
            st.lists(st.floats(-30, 30), min_size=n, max_size=n),
            st.lists(st.booleans(), min_size=n, max_size=n).filter(any),
            st.integers(0, n - 1),
        )
    ),
    st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_masked_distribution_equals_sb3_contrib(
    case: tuple[list[float], list[bool], int], dtype: torch.dtype
) -> None:
    """Probabilities, entropy and gradients equal those of sb3_contrib's masked distribution."""
    logits, mask, action = (
        torch.tensor([case[0]], dtype=dtype),
        torch.tensor([case[1]]),
        torch.tensor([case[2]]),
    )
    results = []
    for masked in (False, True):
        leaf = logits.clone().requires_grad_()
        theirs = MaskableCategorical(logits=leaf, masks=mask.numpy())
        distribution = Categorical(logits=mask_logits(leaf, mask)) if masked else theirs
        log_prob = distribution.log_prob(action) if mask[0, action] else leaf.new_zeros(1)
        entropy = distribution.entropy()
        (gradient,) = torch.autograd.grad((log_prob + 0.3 * entropy).sum(), leaf)
        results.append((distribution.probs, log_prob, entropy, gradient))
    close(
        *results,
        rtol=1e-4 if dtype == torch.float32 else 1e-9,
        atol=1e-5 if dtype == torch.float32 else 1e-9,
    )
    assert (results[1][0][~mask] == 0).all()


def test_empty_mask_is_uniform_without_gradient() -> None:
    """If no action is available, all are equally probable and the logits get no gradient."""
    logits = torch.tensor([[1.0, -2.0, 3.0], [0.5, 0.0, 9.0]], requires_grad=True)
    mask = torch.tensor([[False] * 3, [True, False, True]])
    distribution = Categorical(logits=mask_logits(logits, mask))
    oracle = MaskableCategorical(logits=logits, masks=mask.numpy())
    close(distribution.probs, oracle.probs)
    close(distribution.entropy()[0], torch.tensor(3.0).log())
    (gradient,) = torch.autograd.grad(
        (distribution.log_prob(torch.tensor([1, 0])) + distribution.entropy()).sum(), logits
    )
    assert not gradient[0].any()
    assert gradient[1, [0, 2]].all()


# ------------------------------------------------------------------------------------------- policy


@pytest.mark.parametrize("share", [True, False], ids=["shared", "separate"])
@pytest.mark.parametrize("sites", SITES, ids=str)
def test_policy_equals_sb3_contrib(sites: tuple[Any, ...], share: bool) -> None:
    """Every method of the policy uses the distribution that sb3_contrib's gives."""
    policy, batch = policy_of(sites, share_features_extractor=share), batch_of()
    oracle, mask = oracle_of(policy, batch), batch["action_mask"].bool()
    close(policy.get_distribution(batch).distribution.probs, oracle.probs)  # type: ignore[union-attr]

    actions, values, log_prob = policy(batch)
    close(log_prob, oracle.log_prob(actions), rtol=1e-4, atol=1e-5)
    again, log_prob, entropy = policy.evaluate_actions(batch, actions)
    close(
        (again, log_prob, entropy),
        (values, oracle.log_prob(actions), oracle.entropy()),
        rtol=1e-4,
        atol=1e-5,
    )

    arrays = {key: value.numpy() for key, value in batch.items()}
    best, _ = policy.predict(arrays, deterministic=True)
    close(torch.from_numpy(best), oracle.probs.argmax(-1))
    assert (best != unmasked(policy, batch).argmax(-1).numpy()).any(), "the mask changes no action"
    for _ in range(20):
        drawn, _ = policy.predict(arrays)
        assert mask[torch.arange(len(mask)), torch.from_numpy(drawn)].all()
        assert mask[torch.arange(len(mask)), policy(batch)[0]].all()


@pytest.mark.parametrize("sites", SITES, ids=str)
def test_policy_gradients_equal_sb3_contrib(sites: tuple[Any, ...]) -> None:
    """The gradients of all weights equal those through sb3_contrib's distribution."""
    policy, batch = policy_of(sites), batch_of()
    actions, weights = policy(batch)[0], [*policy.parameters()]
    _, log_prob, entropy = policy.evaluate_actions(batch, actions)
    assert entropy is not None
    oracle = oracle_of(policy, batch)
    ours, theirs = (
        torch.autograd.grad(objective, weights, allow_unused=True, materialize_grads=True)
        for objective in (
            (log_prob + entropy).sum(),
            (oracle.log_prob(actions) + oracle.entropy()).sum(),
        )
    )
    close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert any(gradient.any() for gradient in ours)


def test_selected_rows_keep_their_masks() -> None:
    """Selected rows have their own masks, as when equal observations share one pass."""
    policy, batch, rows = policy_of(), batch_of(8), torch.tensor([0, 0, 3, 5, 5, 7])
    latent = policy.mlp_extractor.forward_actor(policy.extract_features(batch))
    assert isinstance(latent, Features)
    distribution = policy._get_action_dist_from_latent(latent.index_select(0, rows)).distribution
    assert isinstance(distribution, Categorical)
    close(distribution.probs, oracle_of(policy, batch).probs[rows])


@pytest.mark.parametrize("sites", SITES, ids=str)
def test_unmodified_ppo_trains_with_masks(sites: tuple[Any, ...]) -> None:
    """SB3's own PPO trains a policy that masks actions."""
    env = DummyVecEnv([lambda: SampledEnv(SPACE, spaces.Discrete(N_ACTIONS))] * 2)
    options = {"sites": sites, "context": TaskIdContextConfig(dim=8), "net_arch": [8]}
    model = PPO(
        FusionPolicy,
        env,
        n_steps=16,
        batch_size=8,
        policy_kwargs=options,
        seed=0,
        device="cpu",
        ent_coef=0.1,
    )
    start = {name: weight.detach().clone() for name, weight in model.policy.named_parameters()}
    model.learn(64)
    assert all(weight.isfinite().all() for weight in model.policy.parameters())
    assert not torch.equal(
        start["mlp_extractor.policy_net.0.weight"], model.policy.mlp_extractor.policy_net[0].weight
    )


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.bool_, np.float32])
@pytest.mark.parametrize("sites", SITES, ids=str)
def test_box_masks_equal_binary_masks(sites: tuple[Any, ...], dtype: Any) -> None:
    """A Box of zeros and ones masks actions as a MultiBinary does."""
    box = spaces.Box(0, 1, (N_ACTIONS,), dtype)
    space = spaces.Dict({**SPACE, "action_mask": box})
    batch = batch_of()
    expected = policy_of(sites).get_distribution(batch).distribution.probs  # type: ignore[union-attr]
    mask = torch.from_numpy(batch["action_mask"].numpy().astype(dtype))
    boxed = {**batch, "action_mask": mask}
    probs = policy_of(sites, space).get_distribution(boxed).distribution.probs  # type: ignore[union-attr]
    close(probs, expected)


def dqn_policy_of(sites: tuple[Any, ...]) -> FusionDQNPolicy:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "context": TaskIdContextConfig(dim=8),
        "encoder": VectorEncoderConfig(features_dim=12),
        "sites": sites,
    }
    return FusionDQNPolicy(SPACE, spaces.Discrete(N_ACTIONS), lambda _: 1e-3, **options)


@pytest.mark.parametrize("sites", SITES, ids=str)
def test_dqn_is_greedy_among_available_actions(sites: tuple[Any, ...]) -> None:
    """The greedy action and the target's values are those of available actions."""
    policy = dqn_policy_of(sites)
    batch = batch_of()
    mask = batch["action_mask"].bool()
    values = policy.q_net(batch)
    best = values.masked_fill(~mask, -torch.inf).argmax(1)
    arrays = {key: value.numpy() for key, value in batch.items()}
    assert policy.predict(arrays, deterministic=True)[0].tolist() == best.tolist()
    assert (best != values.argmax(1)).any(), "the mask changes no action"
    # the target network maximizes over the available actions
    targets = policy.q_net_target(batch).max(1).values
    close(targets, values.masked_fill(~mask, -torch.inf).max(1).values)
    # an action that was taken without a mask is trained to a finite value
    assert values.isfinite().all()


def test_dqn_values_nothing_after_the_end() -> None:
    """A state without available actions has a finite value, which SB3 multiplies by 0."""
    policy = dqn_policy_of(("vector",))
    batch = batch_of(4)
    batch["action_mask"] = torch.zeros_like(batch["action_mask"])
    assert not policy.q_net_target(batch).any()


def test_unmodified_dqn_trains_with_masks() -> None:
    """SB3's own DQN, which explores any action, keeps finite weights."""
    env = DummyVecEnv([lambda: SampledEnv(SPACE, spaces.Discrete(N_ACTIONS))] * 2)
    model = DQN(
        FusionDQNPolicy,
        env,
        learning_starts=8,
        batch_size=8,
        buffer_size=100,
        policy_kwargs={"context": TaskIdContextConfig(dim=8), "net_arch": [8]},
        seed=0,
        device="cpu",
    )
    model.learn(64)
    assert all(weight.isfinite().all() for weight in model.policy.parameters())


@pytest.mark.parametrize(
    ("mask", "actions", "message"),
    [
        (
            spaces.MultiBinary(4),
            spaces.Discrete(5),
            r"expected MultiBinary\(5\) or Box.* under 'action_mask', got MultiBinary\(4\)",
        ),
        (
            spaces.Box(0, 2, (5,)),
            spaces.Discrete(5),
            r"expected MultiBinary\(5\) or Box.* under 'action_mask', got Box",
        ),
        (
            spaces.MultiBinary(4),
            spaces.MultiDiscrete([2, 2]),
            "masks Discrete actions, and these are MultiDiscrete",
        ),
    ],
)
def test_mask_must_fit_the_actions(mask: Any, actions: Any, message: str) -> None:
    """A mask that does not fit the action space raises an error that names both."""
    with pytest.raises(ConfigError, match=message):
        FusionPolicy(spaces.Dict({**SPACE, "action_mask": mask}), actions, lambda _: 1e-3)
