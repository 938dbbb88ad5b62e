"""Programs: exported for any batch size, they choose the actions that ``predict`` chooses."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.dqn.policies import MultiInputPolicy

from mirl.configs.errors import ConfigError
from mirl.configs.networks import (
    CombinedContextConfig,
    GoalContextConfig,
    MissionContextConfig,
    RawContextConfig,
)
from mirl.policies import FusionPolicy, RecurrentFusionPolicy
from mirl.policies.off_policy import (
    FusionDQNPolicy,
    FusionSACPolicy,
    FusionTD3Policy,
    FusionTQCPolicy,
)
from mirl.policies.programs import (
    NEXT_STATE_KEY,
    START_KEY,
    STATE_KEY,
    Program,
    build_program,
)

ROWS = 12
SPACE = spaces.Dict(
    {
        "image": spaces.Box(0, 3, (5, 5, 3), np.uint8),
        "mission": spaces.Box(0, 20, (6,), np.int16),
        "task": spaces.Discrete(3),
    }
)
GOALS = spaces.Dict(
    {
        "observation": spaces.Box(-2, 2, (4,), np.float64),
        "achieved_goal": spaces.Box(-2, 2, (3,), np.float64),
        "desired_goal": spaces.Box(-2, 2, (3,), np.float64),
    }
)
MASKED = spaces.Dict({**SPACE.spaces, "action_mask": spaces.MultiBinary(5)})
BOUNDS = spaces.Box(np.float32([-3, 0.5]), np.float32([1, 2]))
SIZES: dict[str, Any] = {"net_arch": [8]}
MISSION = {"context": "mission", **SIZES}
CONTEXTS: dict[str, tuple[spaces.Dict, Any]] = {
    "mission": (SPACE, "mission"),
    "task": (SPACE, "task_id"),
    "goal": (GOALS, "goal"),
    "combined": (SPACE, None),
    "raw": (GOALS, RawContextConfig(key="desired_goal")),
}
FUSIONS = ("bilinear", "low_rank", "hyper", "film", "attention", "metric", "product", "adapter")
CORES = ("lstm", "gru", "mi_lstm", "fast_weights", "attention")


def randomized(policy: Any) -> Any:
    """Return the policy with random weights, so that its output depends on the context."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    policy.set_training_mode(False)
    return policy


def build(policy_class: type[Any], space: spaces.Dict, actions: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    return randomized(policy_class(space, actions, lambda _: 1e-3, **options))


def sampled(space: spaces.Dict, rows: int = ROWS) -> dict[str, np.ndarray]:
    space.seed(0)
    samples = [space.sample() for _ in range(rows)]
    batch = {key: np.stack([np.asarray(each[key]) for each in samples]) for key in space}
    for key in batch:  # few distinct contexts, so that the policy groups its rows
        if key in ("mission", "desired_goal"):
            batch[key][:] = batch[key][np.arange(rows) % 3]
    return batch


def exported(program: Program, batch: dict[str, np.ndarray]) -> Any:
    """Return the program of torch.export for any batch size, as a function of arrays."""
    inputs = {key: torch.from_numpy(batch[key]) for key in program.keys}
    any_size = {key: {0: torch.export.Dim("batch", min=1)} for key in inputs}
    module = torch.export.export(program, (inputs,), dynamic_shapes=(any_size,)).module()

    def run(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        tensors = {key: torch.from_numpy(arrays[key]) for key in program.keys}
        return {key: value.numpy() for key, value in module(tensors).items()}

    return run


def assert_same_actions(policy: BasePolicy, space: spaces.Dict, context: Any = None) -> None:
    """Assert equal actions for batches of 1, 5 and all rows."""
    batch = sampled(space)
    run = exported(build_program(policy, context), batch)
    for key, row in (context or {}).items():
        batch[key] = np.stack([np.asarray(row)] * ROWS)
    for size in (1, 5, ROWS):
        some = {key: values[:size] for key, values in batch.items()}
        expected, _ = policy.predict(some, deterministic=True)
        np.testing.assert_allclose(run(some)["action"], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_rows_equal_groups(fusion: str) -> None:
    """The row-by-row form of a program equals the policy's grouped form, in values too."""
    options = {**MISSION, "sites": ("map", "vector", "heads"), "fusion": fusion}
    policy = build(FusionPolicy, SPACE, spaces.Discrete(5), **options)
    batch = sampled(SPACE)
    outputs = exported(build_program(policy), batch)(batch)
    observations, _ = policy.obs_to_tensor(batch)
    with torch.no_grad():
        expected = policy.get_distribution(observations).distribution.logits
        values = policy.predict_values(observations).numpy()
    logits = torch.from_numpy(outputs["action_logits"]).log_softmax(-1)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(outputs["value"], values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("context", CONTEXTS)
def test_context_is_an_input(context: str) -> None:
    space, config = CONTEXTS[context]
    policy = build(FusionPolicy, space, spaces.Discrete(5), context=config, **SIZES)
    is_combined = isinstance(policy.network.context, CombinedContextConfig)
    assert is_combined == (context == "combined")
    assert_same_actions(policy, space)


# torch.export names the flat weights of a GRU, which are its parameters; the commands hide it
@pytest.mark.filterwarnings("ignore:The tensor attributes")
@pytest.mark.parametrize("encoder", ["attention", "gru", "bag"])
def test_mission_encoders(encoder: str) -> None:
    config = MissionContextConfig(encoder=encoder, dim=8)
    assert_same_actions(
        build(FusionPolicy, SPACE, spaces.Discrete(5), context=config, **SIZES), SPACE
    )


@pytest.mark.parametrize(
    "actions",
    [spaces.Discrete(5), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3), BOUNDS],
    ids=["discrete", "multi_discrete", "multi_binary", "box"],
)
def test_action_spaces(actions: spaces.Space[Any]) -> None:
    assert_same_actions(build(FusionPolicy, SPACE, actions, **MISSION), SPACE)


def test_squashed_actions_are_unscaled() -> None:
    """Actions of gSDE with a tanh have asymmetric bounds, as ``predict`` scales them."""
    options = {**MISSION, "use_sde": True, "squash_output": True}
    assert_same_actions(build(FusionPolicy, SPACE, BOUNDS, **options), SPACE)


@pytest.mark.parametrize("policy_class", [FusionPolicy, FusionDQNPolicy])
def test_masked_actions_are_not_chosen(policy_class: type[Any]) -> None:
    policy = build(policy_class, MASKED, spaces.Discrete(5), **MISSION)
    assert "action_mask" in build_program(policy).keys
    assert_same_actions(policy, MASKED)


def test_separate_extractors() -> None:
    options = {**MISSION, "share_features_extractor": False}
    assert_same_actions(build(FusionPolicy, SPACE, spaces.Discrete(5), **options), SPACE)


def test_popart_reads_the_task() -> None:
    """The value is that of the row's task; a fixed context needs one task."""
    policy = build(FusionPolicy, SPACE, spaces.Discrete(5), popart=True, **MISSION)
    policy.value_net.mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    batch = sampled(SPACE)
    program = build_program(policy)
    assert "task" in program.keys
    values = exported(program, batch)(batch)["value"]
    expected = policy.predict_values(policy.obs_to_tensor(batch)[0]).detach().numpy()
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fixed", [False, True], ids=["input", "fixed"])
@pytest.mark.parametrize("core", CORES)
def test_memory_goes_in_and_out(core: str, fixed: bool) -> None:
    """The hidden state of a program is that of ``predict``, with resets where episodes start."""
    policy = build(RecurrentFusionPolicy, SPACE, spaces.Discrete(5), memory=core, **MISSION)
    batch = sampled(SPACE)
    context = {"mission": batch["mission"][0]} if fixed else None
    program = build_program(policy, context)
    assert ("mission" in program.keys) != fixed
    hidden_state = np.zeros((ROWS, program.state_dim), np.float32)
    starts = np.ones(ROWS, np.bool_)
    run = exported(program, {**batch, STATE_KEY: hidden_state, START_KEY: starts})
    if fixed:
        batch["mission"][:] = batch["mission"][0]
    expected_state = None
    for step in range(4):
        outputs = run({**batch, STATE_KEY: hidden_state, START_KEY: starts})
        actions, expected_state = policy.predict(batch, expected_state, starts, deterministic=True)
        np.testing.assert_array_equal(outputs["action"], actions)
        hidden_state = outputs[NEXT_STATE_KEY]
        np.testing.assert_allclose(hidden_state, expected_state[0], rtol=1e-4, atol=1e-5)
        starts = np.arange(ROWS) % 3 == step
    assert np.abs(hidden_state).max() > 0


def test_memory_of_actor_and_critic() -> None:
    """With separate extractors the state of a program is that of both cores."""
    options = {**MISSION, "share_features_extractor": False, "memory": "lstm"}
    policy = build(RecurrentFusionPolicy, SPACE, spaces.Discrete(5), **options)
    program = build_program(policy)
    assert program.state_dim == policy.state_dim == 2 * policy.core.state_dim


@pytest.mark.parametrize("sites", [("vector",), ("vector", "heads")], ids=["vector", "heads"])
@pytest.mark.parametrize("policy_class", [FusionSACPolicy, FusionTD3Policy, FusionTQCPolicy])
def test_goal_actors(policy_class: type[Any], sites: Any) -> None:
    """Actors with goals give actions in the units of the environment."""
    assert_same_actions(build(policy_class, GOALS, BOUNDS, context="goal", sites=sites), GOALS)


def test_relative_goals_read_the_state() -> None:
    context = GoalContextConfig(relative_to="achieved_goal")
    keys = ("observation",)
    policy = build(FusionSACPolicy, GOALS, BOUNDS, context=context, observation_keys=keys)
    assert set(build_program(policy).keys) == set(GOALS)
    assert_same_actions(policy, GOALS)


def test_fixed_goal_of_an_actor() -> None:
    policy = build(FusionSACPolicy, GOALS, BOUNDS, context="goal")
    goal = {"desired_goal": np.array([0.5, -1, 2])}
    assert "desired_goal" not in build_program(policy, goal).keys
    assert_same_actions(policy, GOALS, goal)


def test_dqn_gives_all_values() -> None:
    policy = build(FusionDQNPolicy, SPACE, spaces.Discrete(5), **MISSION)
    batch = sampled(SPACE)
    outputs = exported(build_program(policy), batch)(batch)
    expected = policy.q_net(policy.obs_to_tensor(batch)[0]).detach().numpy()
    np.testing.assert_allclose(outputs["q_values"], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(outputs["action"], policy.predict(batch, deterministic=True)[0])


def test_policy_is_left_as_it_is() -> None:
    policy = build(RecurrentFusionPolicy, SPACE, spaces.Discrete(5), memory="lstm", **MISSION)
    program = build_program(policy, {"mission": sampled(SPACE)["mission"][0]})
    with torch.no_grad():
        for weight in program.parameters():
            weight.zero_()
    assert all(weight.requires_grad for weight in policy.parameters())
    assert any(weight.any() for weight in policy.parameters())
    policy.predict(sampled(SPACE))


def test_other_policies_have_none() -> None:
    policy = MultiInputPolicy(SPACE, spaces.Discrete(2), lambda _: 1e-3)
    with pytest.raises(ConfigError, match=r"expected a policy of mirl.policies .* MultiInput"):
        build_program(policy)


def test_key_of_hidden_state_is_taken() -> None:
    space = spaces.Dict({**SPACE.spaces, STATE_KEY: spaces.Box(-1, 1, (2,), np.float32)})
    policy = build(RecurrentFusionPolicy, space, spaces.Discrete(5), memory="lstm", **MISSION)
    with pytest.raises(ConfigError, match="rename the key"):
        build_program(policy)
