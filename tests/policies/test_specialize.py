"""Specialized networks: outputs of the general network for one context."""

from typing import Any

import numpy as np
import pytest
import torch
from fusion_cases import CROSS, MEMBERS, O, X, Z, normal, randomize, randomized
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor, nn
from toy_goal_envs import SampledEnv

from mirl.configs.errors import ConfigError
from mirl.configs.networks import (
    AdapterConfig,
    AttentionConfig,
    ConcatConfig,
    ContextConfig,
    EncoderConfig,
    FusionConfig,
    GoalContextConfig,
    GridEncoderConfig,
    ImageEncoderConfig,
    MetricConfig,
    MissionContextConfig,
    ProductConfig,
    TaskIdContextConfig,
    VectorEncoderConfig,
)
from mirl.policies import (
    Fusion,
    FusionExtractor,
    FusionPolicy,
    specialize,
    specialize_extractor,
)
from mirl.policies.contexts import GoalContext, MissionContext, TaskIdContext
from mirl.policies.features import Context
from mirl.policies.fusions import per_row
from mirl.policies.popart import PopArtHead, ScaledHead
from mirl.policies.specialize import specialize_fusion

close = torch.testing.assert_close


def assert_equal_to_scale(got: Tensor, expected: Tensor, tolerance: float = 1e-6) -> None:
    """Relative to the largest expected value; the smallest ones are differences of larger ones."""
    close(got, expected, rtol=0, atol=tolerance * max(1.0, expected.abs().max().item()))


# ------------------------------------------------------------------------------------------ fusions


def one_context() -> Context:
    return Context(normal(1, Z), None)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)], ids=str
)
@pytest.mark.parametrize("sizes", [(X, Z, O), (32, 16, 32)], ids=str)
@pytest.mark.parametrize("member", MEMBERS)
def test_specialized_fusion_equals_general_one(
    member: str, sizes: tuple[int, int, int], dtype: torch.dtype, tolerance: float
) -> None:
    """A specialized fusion equals the general one for its context."""
    fusion = randomized(member, *sizes).to(dtype)
    z = normal(sizes[1], seed=2).to(dtype)
    plain = specialize_fusion(fusion, Context(z.unsqueeze(0), None))
    cells = normal(9, 4, sizes[0], seed=1).to(dtype)
    assert_equal_to_scale(plain(cells), fusion(cells, z.expand(9, -1)), tolerance)
    if member != CROSS:  # which needs cells
        vector = cells[:, 0]
        assert_equal_to_scale(plain(vector), fusion(vector, z.expand(9, -1)), tolerance)


@pytest.mark.parametrize(
    "member", ["concat", "bilinear", "low_rank", "hyper", "hyper-affine", "film"]
)
def test_affine_fusions_become_linear_layers(member: str) -> None:
    """A fusion that is affine in x becomes one linear layer."""
    plain = specialize_fusion(randomized(member), one_context())
    assert type(plain) is nn.Linear
    assert plain.weight.shape == (O, X)


def test_hidden_layer_keeps_its_size() -> None:
    """The hidden layer of ``concat`` keeps its size."""
    plain = specialize_fusion(randomized("concat-hidden"), one_context())
    assert [type(layer) for layer in plain.children()] == [nn.Linear, nn.ReLU, nn.Linear]


@pytest.mark.parametrize("member", MEMBERS)
def test_specializing_has_no_side_effects(member: str) -> None:
    """Specializing changes neither the fusion nor torch's random state."""
    fusion, cells, state = randomized(member), normal(3, 4, X), torch.get_rng_state()
    plain = specialize_fusion(fusion, one_context())
    before = plain(cells)
    assert torch.equal(torch.get_rng_state(), state)
    close(fusion.state_dict(), randomized(member).state_dict(), rtol=0, atol=0)
    randomize(fusion, seed=1)
    close(plain(cells), before, rtol=0, atol=0)
    assert not before.requires_grad


class Squared(Fusion):
    """A fusion of one's own, without a specialized form: y = x² + Σz."""

    def interact(self, x: Tensor, z: Tensor, groups: Any) -> Tensor:
        return x.square() + per_row(z, groups).sum(-1, keepdim=True)


class WronglySquared(Squared):
    """A fusion of one's own whose specialized form is that of an affine fusion, which it is not."""

    def specialize(self, z: Tensor) -> nn.Module:
        return self.specialize_affine(z)


def test_missing_specialized_form_is_named() -> None:
    with pytest.raises(ConfigError, match=r"Squared has no form .*specialize\(self, z\)") as error:
        specialize_fusion(Squared(X, Z, X), one_context())
    assert "\n" not in str(error.value)


def test_wrong_specialized_form_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"WronglySquared\.specialize\(z\) returns a module"):
        specialize_fusion(WronglySquared(X, Z, X), one_context())


# -------------------------------------------------------------------------- extractors and policies

CODES = np.broadcast_to(np.array([10, 5, 3], np.uint8), (5, 5, 3))
SPACE = spaces.Dict(
    {
        "image": spaces.Box(np.zeros_like(CODES), CODES.copy(), (5, 5, 3), np.uint8),
        "direction": spaces.Discrete(4),
        "buttons": spaces.MultiBinary(3),
        "dials": spaces.MultiDiscrete([2, 3]),
        "mission": spaces.Box(0, 20, (6,), np.int16),
        "task": spaces.Discrete(3),
        "desired_goal": spaces.Box(-1, 1, (2, 2), np.float32),
    }
)
MASKED = spaces.Dict({**SPACE, "action_mask": spaces.MultiBinary(5)})
PIXELS = spaces.Dict(
    {"image": spaces.Box(0, 255, (3, 16, 24), np.uint8), "task": spaces.Discrete(3)}
)
FUSIONS: dict[str, str | FusionConfig] = {
    "concat": ConcatConfig(hidden=6),
    **{name: name for name in ("bilinear", "low_rank", "hyper", "film", "gate")},
    "attention": AttentionConfig(heads=2),
    "softmax": AttentionConfig(heads=2, mask="softmax"),
    "metric": MetricConfig(projections=2, rank=3),
    "product": ProductConfig(products=2, rank=3),
    "product-bounded": ProductConfig(products=2, rank=3, bound=2.0),
    "adapter": AdapterConfig(bottleneck=4),
}
ASKED: dict[str, tuple[ContextConfig, Any]] = {
    "task": (TaskIdContextConfig(dim=8), 2),
    "mission": (MissionContextConfig(dim=8, heads=2), [4, 9, 2, 0, 0, 0]),
    "desired_goal": (GoalContextConfig(dim=8), [[0.5, -1.0], [0.25, 0.0]]),
}
SEEN: dict[str, tuple[EncoderConfig, spaces.Dict]] = {
    "grid": (GridEncoderConfig(channels=8, features_dim=12), SPACE),
    "image": (ImageEncoderConfig(channels=8, features_dim=12), PIXELS),
    "vector": (VectorEncoderConfig(hidden=(), features_dim=12), SPACE),
    "masked": (GridEncoderConfig(channels=8, features_dim=12), MASKED),
}


def policy_of(
    fusion: str = "bilinear",
    sites: tuple[Any, ...] = ("map", "vector", "heads"),
    key: str = "task",
    encoder: str = "grid",
    action_space: spaces.Space[Any] | None = None,
    **options: Any,
) -> FusionPolicy:
    """Return a policy with random weights, so that its output depends on the context."""
    torch.manual_seed(0)
    encoder_config, space = SEEN[encoder]
    parts = {
        "fusion": FUSIONS[fusion],
        "sites": sites,
        "context": ASKED[key][0],
        "encoder": encoder_config,
    }
    policy = FusionPolicy(
        space,
        action_space or spaces.Discrete(5),
        lambda _: 1e-3,
        **parts,
        **{"net_arch": [8], **options},
    )
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    policy.set_training_mode(False)
    return policy


def asked(space: spaces.Dict, key: str, size: int = 7) -> dict[str, np.ndarray]:
    """Return random observations that share a context."""
    space.seed(1)
    samples = [
        {**space.sample(), key: np.asarray(ASKED[key][1], space[key].dtype)} for _ in range(size)
    ]
    return {name: np.stack([sample[name] for sample in samples]) for name in space}


def tensors(observation: dict[str, np.ndarray], but: str = "") -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in observation.items() if name != but}


def assert_specialized_equals(
    policy: FusionPolicy, key: str, value_tolerance: float = 1e-6
) -> None:
    space = policy.observation_space
    assert isinstance(space, spaces.Dict)
    observation = asked(space, key)
    general, _ = policy.obs_to_tensor(observation)
    logits, values = specialize(policy, ASKED[key][1])(tensors(observation, but=key))
    with torch.no_grad():
        distribution = policy.get_distribution(general).distribution
        assert_equal_to_scale(values, policy.predict_values(general), value_tolerance)
        assert_equal_to_scale(logits.log_softmax(-1), distribution.logits)  # type: ignore[union-attr]
        assert logits.std(dim=0).min() > 1e-3, "the output ignores the inputs"
    others = specialize(
        policy, {"task": 0, "mission": [1] * 6, "desired_goal": np.ones((2, 2))}[key]
    )
    assert (others(tensors(observation))[1] - values).abs().max() > 1e-3, (
        "the output ignores the context"
    )


@pytest.mark.parametrize("share", [True, False], ids=["shared", "separate"])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_specialized_policy_equals_general_one(fusion: str, share: bool) -> None:
    """A specialized policy equals the general one, for every fusion."""
    assert_specialized_equals(policy_of(fusion, share_features_extractor=share), "task")


@pytest.mark.parametrize("key", ASKED)
@pytest.mark.parametrize("sites", [("map",), ("vector",), ("heads",), ("map", "heads")], ids=str)
def test_every_context_at_every_site(sites: tuple[str, ...], key: str) -> None:
    """A specialized policy equals the general one, for every context and site."""
    assert_specialized_equals(policy_of(sites=sites, key=key), key)


@pytest.mark.parametrize("net_arch", [[], {"pi": [8, 6], "vf": [7]}], ids=str)
@pytest.mark.parametrize("encoder", ["grid", "image", "vector"])
def test_every_encoder_and_architecture(encoder: str, net_arch: Any) -> None:
    """A specialized policy equals the general one, for every encoder and architecture."""
    sites = ("vector", "heads") if encoder == "vector" else ("map", "vector", "heads")
    assert_specialized_equals(policy_of(sites=sites, encoder=encoder, net_arch=net_arch), "task")


@pytest.mark.parametrize(
    ("action_space", "use_sde"),
    [
        (spaces.MultiDiscrete([2, 3]), False),
        (spaces.MultiBinary(3), False),
        (spaces.Box(-1, 1, (2,), np.float32), False),
        (spaces.Box(-1, 1, (2,), np.float32), True),
    ],
    ids=["MultiDiscrete", "MultiBinary", "Box", "Box-gSDE"],
)
def test_parameters_give_the_policy_distribution(
    action_space: spaces.Space[Any], use_sde: bool
) -> None:
    """The returned parameters give the distribution of the policy."""
    policy, observation = (
        policy_of(action_space=action_space, use_sde=use_sde),
        asked(SPACE, "task"),
    )
    expected = policy.get_distribution(policy.obs_to_tensor(observation)[0])
    actions = expected.sample()
    log_prob, mode = expected.log_prob(actions), expected.mode()
    parameters, _ = specialize(policy, 2)(tensors(observation))
    if isinstance(action_space, spaces.Box):
        assert_equal_to_scale(parameters, mode)
    else:  # the same distribution, made from the returned logits
        assert_equal_to_scale(
            policy.action_dist.proba_distribution(parameters).log_prob(actions), log_prob
        )  # type: ignore[call-arg]


def test_channels_first_or_last() -> None:
    """Pixels may have the layout of the environment or that of SB3."""
    specialized, observation = (
        specialize(policy_of(encoder="image"), 2),
        tensors(asked(PIXELS, "task")),
    )
    channels_last = {"image": observation["image"].permute(0, 2, 3, 1).contiguous()}
    close(specialized(channels_last), specialized(observation), rtol=1e-5, atol=1e-5)


def test_extractor_of_sb3_model() -> None:
    """The extractor of an unmodified SB3 model can be specialized."""
    env = DummyVecEnv([lambda: SampledEnv(SPACE, spaces.Discrete(3))])
    options = {
        "context": TaskIdContextConfig(dim=8),
        "encoder": GridEncoderConfig(channels=8, features_dim=12),
    }
    kwargs = {
        "features_extractor_class": FusionExtractor,
        "features_extractor_kwargs": {**options, "sites": ("map",)},
    }
    model = DQN("MultiInputPolicy", env, buffer_size=10, policy_kwargs=kwargs, device="cpu")
    extractor = model.policy.q_net.features_extractor
    randomize(extractor)
    observation = tensors(asked(SPACE, "task"))
    expected = extractor(preprocess_obs(observation, SPACE))
    features = specialize_extractor(extractor, 2)(observation)
    assert_equal_to_scale(features, expected)
    assert features.shape == (7, 12)


def test_specialized_policy_has_no_context_modules() -> None:
    """A specialized policy has no fusion, no context encoder, and shares no weight."""
    policy = policy_of(key="mission", share_features_extractor=False)
    specialized = specialize(policy, ASKED["mission"][1])
    parts = [type(module) for module in specialized.modules()]
    assert not {Fusion, *Fusion.__subclasses__(), MissionContext, TaskIdContext, GoalContext} & {
        *parts
    }
    assert not specialized.training
    assert not any(weight.requires_grad for weight in specialized.parameters())
    storages = {weight.data_ptr() for weight in policy.parameters()}
    assert not {weight.data_ptr() for weight in specialized.parameters()} & storages


@pytest.mark.parametrize("share", [True, False], ids=["shared", "separate"])
def test_specialized_policy_size(
    share: bool,
) -> None:
    """A specialized bilinear policy is no larger than a context-free concat policy."""

    def size(module: nn.Module) -> int:
        return sum(weight.numel() for weight in module.parameters())

    torch.manual_seed(0)
    options = {
        "context": ASKED["task"][0],
        "sites": ("map", "vector", "heads"),
        # without the text and the goal, whose encoders are no smaller for one context
        "observation_keys": ("buttons", "dials", "direction", "image"),
        "share_features_extractor": share,
    }
    bilinear, concat = (
        FusionPolicy(SPACE, spaces.Discrete(5), lambda _: 1e-3, fusion=fusion, **options)  # type: ignore[arg-type]
        for fusion in ("bilinear", "concat")
    )
    encoders = {
        *(
            extractor.context
            for extractor in (concat.pi_features_extractor, concat.vf_features_extractor)
        )
    }
    assert size(specialize(bilinear, 2)) <= size(concat) - sum(
        size(encoder) for encoder in encoders
    )  # type: ignore[arg-type]
    assert size(bilinear) > 2 * size(specialize(bilinear, 2))


@pytest.mark.parametrize(
    ("key", "context", "message"),
    [
        (
            "mission",
            [4, 9, 2],
            r"under 'mission', shape \(6,\) of int16, got shape \(3,\) of int64$",
        ),
        (
            "mission",
            "go to the red door",
            "got shape .* of <U18; mirl.envs.tokenize makes token ids of a text",
        ),
        ("mission", [4.5, 0, 0, 0, 0, 0], "got shape .* of float64"),
        (
            "mission",
            [4, 9, 21, 0, 0, 0],
            r"expected a context in Box\(0, 20, .* got \[4, 9, 21, 0, 0, 0\]",
        ),
        ("mission", [[4, 9, 2, 0, 0, 0]], r"got shape \(1, 6\)"),
        ("task", 3, r"expected a context in Discrete\(3\) under 'task', got 3"),
        ("task", -1, r"expected a context in Discrete\(3\)"),
        ("task", [2], r"shape \(\) of int64, got shape \(1,\)"),
        ("task", "reach", "got shape .* of <U5"),
        ("desired_goal", [0.5, 1.0], r"shape \(2, 2\) of float32, got shape \(2,\)"),
    ],
)
def test_context_must_fit_its_space(key: str, context: Any, message: str) -> None:
    """A context that does not fit its space raises an error with both."""
    with pytest.raises(ConfigError, match=message):
        specialize(policy_of(key=key), context)


def test_joined_context_is_a_dictionary() -> None:
    """A context of several keys is given as a dictionary, and specialized like any other."""
    space = spaces.Dict(
        {
            "observation": spaces.Box(-1, 1, (4,), np.float32),
            "mission": spaces.Box(0, 20, (6,), np.int16),
            "task": spaces.Discrete(3),
        }
    )
    torch.manual_seed(0)
    policy = FusionPolicy(space, spaces.Discrete(5), lambda _: 1e-3)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    mission = np.array([4, 9, 2, 0, 0, 0], np.int16)
    specialized = specialize(policy, {"mission": mission, "task": 2})
    seen = torch.randn(7, 4)
    batch = {
        "observation": seen,
        "mission": torch.as_tensor(mission).expand(7, -1),
        "task": torch.full((7,), 2),
    }
    logits, values = specialized({"observation": seen})
    expected = policy.get_distribution(batch).distribution.logits
    close(logits.log_softmax(-1), expected, rtol=1e-4, atol=1e-5)
    close(values, policy.predict_values(batch), rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="a dictionary with the keys mission, task, got int"):
        specialize(policy, 2)
    with pytest.raises(ConfigError, match="expected a context for mission, task, got one for task"):
        specialize(policy, {"task": 2})


def test_relative_goal_cannot_be_specialized() -> None:
    """An extractor whose goal changes at every step has no specialized form."""
    point = spaces.Box(-1, 1, (3,), np.float32)
    space = spaces.Dict({"observation": point, "achieved_goal": point, "desired_goal": point})
    extractor = FusionExtractor(space, context=GoalContextConfig(relative_to="achieved_goal"))
    with pytest.raises(ConfigError, match="changes at every step"):
        specialize_extractor(extractor, np.zeros(3, np.float32))


def test_observations_must_fit() -> None:
    """Observations with missing keys or other shapes raise an error."""
    specialized, observation = specialize(policy_of(), 2), tensors(asked(SPACE, "task"))
    keys = "buttons, desired_goal, dials, direction, image, mission"
    with pytest.raises(ValueError, match=rf"expected the keys {keys}, got direction$"):
        specialized({"direction": observation["direction"]})
    with pytest.raises(
        ValueError, match=r"'image' expects a batch of shape \(5, 5, 3\), got \(5, 5, 3\)"
    ):
        specialized({**observation, "image": observation["image"][0]})


# -------------------------------------------------------------------- values per task, action masks

HEADS: list[tuple[Any, ...]] = [("vector",), ("vector", "heads")]
ROUNDING = 1e-5
"""Tolerance of values σ n + μ with a mean μ as large as the values."""


def popart_policy(
    sites: tuple[Any, ...], key: str, fusion: str = "bilinear", **options: Any
) -> FusionPolicy:
    """Return a policy whose tasks have different scales."""
    policy = policy_of(fusion, sites=sites, key=key, popart=True, **options)
    assert isinstance(policy.value_net, PopArtHead)
    tasks = torch.arange(60) % 3
    policy.value_net.update(torch.randn(60) * (1 + tasks) + 5.0 * tasks, tasks)
    return policy


@pytest.mark.parametrize("share", [True, False], ids=["shared", "separate"])
@pytest.mark.parametrize("key", ["task", "mission"])
@pytest.mark.parametrize("sites", HEADS, ids=str)
def test_popart_value_of_the_task(sites: tuple[Any, ...], key: str, share: bool) -> None:
    """The value of a specialized PopArt policy is that of its task."""
    policy = popart_policy(sites, key, share_features_extractor=share)
    for task in (2,) if key == "task" else (0, 1, 2):
        observation = {**asked(SPACE, key), "task": np.full(7, task)}
        general, _ = policy.obs_to_tensor(observation)
        specialized = specialize(policy, ASKED[key][1], **({} if key == "task" else {"task": task}))
        values = specialized(tensors(observation, but="task"))[1]
        assert_equal_to_scale(values, policy.predict_values(general), ROUNDING)
        assert not {PopArtHead, Fusion} & {type(module) for module in specialized.modules()}


@pytest.mark.parametrize("fusion", FUSIONS)
def test_popart_with_every_fusion(fusion: str) -> None:
    """A specialized PopArt policy equals the general one, for every fusion."""
    assert_specialized_equals(
        popart_policy(("map", "vector", "heads"), "task", fusion), "task", ROUNDING
    )


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("sites", HEADS, ids=str)
def test_scaled_values_keep_their_unit(sites: tuple[Any, ...], fusion: str) -> None:
    """A specialized policy has the values of the general one, in the units of the rewards."""
    policy = policy_of(fusion, sites=sites, key="task", scale_values=True)
    assert isinstance(policy.value_net, ScaledHead)
    policy.value_net.update(torch.full((3,), 80.0), torch.arange(3))
    assert_specialized_equals(policy, "task", ROUNDING)


@pytest.mark.parametrize("task", [-1, 3])
def test_unknown_task_is_rejected(task: int) -> None:
    """A task that the policy does not have raises an error."""
    with pytest.raises(ConfigError, match=f"expected a task from 0 to 2, got {task}"):
        specialize(popart_policy(("heads",), "mission"), ASKED["mission"][1], task=task)


@pytest.mark.parametrize("sites", HEADS, ids=str)
def test_specialized_policy_masks_actions(
    sites: tuple[Any, ...],
) -> None:
    """A specialized policy masks the actions that the policy masks."""
    policy, observation = policy_of(sites=sites, encoder="masked"), asked(MASKED, "task", size=40)
    observation["action_mask"][0] = 0
    observation["action_mask"][1:, 4] = 1
    specialized = specialize(policy, 2)
    logits, _ = specialized(tensors(observation, but="task"))
    expected = policy.get_distribution(policy.obs_to_tensor(observation)[0]).distribution
    close(logits.softmax(-1), expected.probs, rtol=1e-4, atol=1e-6)  # type: ignore[union-attr]
    assert not logits.softmax(-1)[1:][observation["action_mask"][1:] == 0].any()
    del observation["action_mask"]
    with pytest.raises(ValueError, match=r"expected the keys .*, action_mask, got "):
        specialized(tensors(observation))


def test_goal_image_as_context() -> None:
    """A goal image can be the context of a specialized policy."""
    codes = np.full((5, 5, 2), 2, np.uint8)
    goal_space = spaces.Box(np.zeros_like(codes), codes, (5, 5, 2), np.uint8)
    space = spaces.Dict(
        {"desired_goal": goal_space, "observation": spaces.Box(-1, 1, (3,), np.float32)}
    )
    torch.manual_seed(0)
    context = GoalContextConfig(encoder="grid", dim=8)
    policy = FusionPolicy(space, spaces.Discrete(3), lambda _: 1e-3, context=context)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    space.seed(0)
    goals, seen = goal_space.sample(), np.stack([space["observation"].sample() for _ in range(4)])
    general, _ = policy.obs_to_tensor({"observation": seen, "desired_goal": np.stack([goals] * 4)})
    values = specialize(policy, goals)({"observation": torch.from_numpy(seen)})[1]
    assert_equal_to_scale(values, policy.predict_values(general))
    assert policy.grouped_context_key == "desired_goal", "a batch has few distinct goal images"


# ------------------------------------------------------------------------------------------- export


FORMS = ("bilinear", "concat", "gate", "attention", "softmax", "metric", "product", "adapter")
"""Fusions whose specialized forms differ."""


@pytest.mark.parametrize(
    ("fusion", "encoder"),
    [
        *((form, "grid") for form in FORMS),
        # a fusion gets the vectors of an encoder, whatever it is
        *((form, "image") for form in ("bilinear", "attention")),
        *((form, "masked") for form in ("bilinear", "softmax")),
    ],
)
def test_export_supports_any_batch_size(fusion: str, encoder: str) -> None:
    """A specialized policy can be exported for batches of any size."""
    policy = policy_of(fusion, encoder=encoder, popart=encoder == "masked")
    specialized = specialize(policy, 2)
    observation = tensors(asked(SEEN[encoder][1], "task"), but="task")
    inputs = {key: observation[key] for key in specialized.keys}
    any_size = {key: {0: torch.export.Dim("batch", min=1)} for key in inputs}
    program = torch.export.export(specialized, (inputs,), dynamic_shapes=(any_size,)).module()
    for size in (1, 2, 3, 7):
        some = {key: value[:size] for key, value in inputs.items()}
        close(program(some), specialized(some), rtol=1e-5, atol=2e-6)
