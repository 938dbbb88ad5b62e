"""``auto`` is resolved by the observation space."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from mirl.agents.builder import annealed_rate, resolve_auto, with_input_keys
from mirl.configs.agents import A2CConfig, OnPolicyConfig, PPOConfig
from mirl.configs.compose import compose_train
from mirl.configs.errors import ConfigError
from mirl.configs.schema import ResolvedConfig

GRID = spaces.Box(
    np.zeros((7, 7, 3), np.uint8),
    np.broadcast_to(np.array([10, 5, 3], np.uint8), (7, 7, 3)),
    (7, 7, 3),
    np.uint8,
)
VECTOR = spaces.Box(-np.inf, np.inf, (4,), np.float32)
TASK = spaces.Discrete(1)


def space(**keys: gym.Space[Any]) -> spaces.Dict:
    return spaces.Dict({**keys, "task": TASK})


@pytest.mark.parametrize(
    ("observed", "context", "encoder", "sites"),
    [
        (
            space(image=GRID, mission=spaces.Box(0, 9, (80,), np.int16)),
            "mission",
            "grid",
            ("map", "heads"),
        ),
        (
            space(observation=VECTOR, achieved_goal=VECTOR, desired_goal=VECTOR),
            "goal",
            "vector",
            ("vector", "heads"),
        ),
        (space(image=GRID, desired_goal=VECTOR), "goal", "grid", ("map", "heads")),
    ],
)
def test_auto_follows_observation_space(
    observed: spaces.Dict, context: str, encoder: str, sites: tuple[str, ...]
) -> None:
    """The observation space decides on context, encoder and sites."""
    config = resolve_auto(compose_train(["task=Some-v0"]), observed)
    assert (config.context.kind, config.encoder.kind, config.sites) == (context, encoder, sites)


def test_explicit_options_stay() -> None:
    """Options that the command line states stay as they are."""
    config = compose_train(
        [
            *("task=Some-v0", "context=goal", "context.dim=7", "encoder=vector"),
            *("fusion=film", "sites=heads"),
        ]
    )
    resolved = resolve_auto(config, space(observation=VECTOR, desired_goal=VECTOR))
    # the inputs are filled in
    filled_in = {"observation_keys": ("observation",), "fusion_is_chosen": False}
    assert resolved.model_dump() == {**config.model_dump(), **filled_in}


def test_single_task_without_context() -> None:
    """A single task with neither a goal nor a mission has no context."""
    with pytest.raises(
        ConfigError, match=r"no context among .*; add a goal or a text to the observation"
    ):
        resolve_auto(compose_train(["task=Some-v0"]), space(observation=VECTOR))


def test_task_id_needs_several_tasks() -> None:
    """The id of a single task is the same in every episode, so it is no context."""
    config = compose_train(["task=Some-v0", "context=task_id"])
    observed = space(observation=VECTOR, desired_goal=VECTOR)
    with pytest.raises(ConfigError, match=r"'task' has one; use context=auto$"):
        resolve_auto(config, observed)


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["context=task_id"], "use context.key=env_task"),
        (["context=one_hot"], "use context.key=env_task"),
        (["context.key=task"], "use context=auto and remove context.key"),
    ],
)
def test_own_task_id_is_the_context(words: list[str], advice: str) -> None:
    """The advice names the key of the environment's own task id."""
    # the environment's own "task" has this name beside the index of the suite's tasks
    observed = space(observation=VECTOR, env_task=spaces.Discrete(4))
    with pytest.raises(ConfigError, match=rf"'task' has one; {advice}$"):
        resolve_auto(compose_train(["task=Some-v0", *words]), observed)
    followed = ["context=one_hot", "context.key=env_task"] if "key=" in advice else []
    context = resolve_auto(compose_train(["task=Some-v0", *followed]), observed).context
    assert context.keys == ("env_task",)


@pytest.mark.parametrize(
    ("encoder", "image", "message"),
    [
        ("image", GRID, r"encoder=image needs pixels.*image \(grid\); use encoder=auto$"),
        (
            "grid",
            spaces.Box(0, 255, (40, 40, 3), np.uint8),
            r"encoder=grid needs codes or planes.*image \(image\); use encoder=auto$",
        ),
    ],
)
def test_encoder_must_read_the_observation(
    encoder: str, image: spaces.Space[Any], message: str
) -> None:
    """The space decides whether an encoder fits, once ``task.observation`` did."""
    config = compose_train(["task=Some-v0", f"encoder={encoder}"])
    with pytest.raises(ConfigError, match=message):
        resolve_auto(config, space(image=image, desired_goal=VECTOR))


def test_old_runs_keep_their_inputs() -> None:
    """A stored configuration without ``observation_keys`` gets the inputs that it had."""
    observed = space(image=GRID, mission=spaces.Box(0, 9, (80,), np.int16), desired_goal=VECTOR)
    config = compose_train(
        ["task=Some-v0", "context=goal", "encoder=grid", "fusion=film", "sites=map"]
    )
    stored = ResolvedConfig.model_validate(config.model_dump())
    assert stored.observation_keys is None
    # a text beside the goal was not an input then; today it is
    assert with_input_keys(stored, observed).observation_keys == ("image",)
    today = resolve_auto(config, observed)
    assert today.observation_keys == ("image", "mission")
    assert with_input_keys(today, observed) is today


def test_resolved_config_has_no_auto() -> None:
    config = compose_train(["task=Some-v0"])
    resolved = resolve_auto(config, space(observation=VECTOR, desired_goal=VECTOR))
    assert type(resolved) is ResolvedConfig
    assert resolved.network.is_resolved
    assert not config.network.is_resolved


@given(
    st.sampled_from([PPOConfig(n_envs=4, n_steps=8, batch_size=32), A2CConfig(n_envs=4)]),
    st.integers(1, 1000),
)
def test_every_update_has_a_learning_rate(config: OnPolicyConfig, total_timesteps: int) -> None:
    """The first update has the full rate, and every later one a smaller one above zero."""
    schedule = annealed_rate(config, total_timesteps)
    n_updates = -(-total_timesteps // config.rollout_size)  # rounded up
    rates = []
    for update in range(1, n_updates + 1):
        # as SB3 computes it, after the rollout
        progress_remaining = 1 - update * config.rollout_size / total_timesteps
        rates.append(schedule(progress_remaining))
    assert rates[0] == pytest.approx(config.learning_rate)
    assert min(rates) > 0
    assert all(np.diff(rates) < 0)


@pytest.mark.parametrize("words", [["encoder=vector"], ["encoder=vector", "encoder.hidden=[8]"]])
def test_map_site_needs_feature_map(words: list[str]) -> None:
    """The advice of the space comes first, then that of the sites, which trains."""
    observed = space(image=GRID, desired_goal=VECTOR)
    given = ["task=Some-v0", "sites=[map]", *words]
    with pytest.raises(ConfigError, match=r"encoder=vector has none; use sites=\[vector\]$"):
        resolve_auto(compose_train(given), observed)
    advised = ["task=Some-v0", "sites=[vector]", *words]
    config = resolve_auto(compose_train(advised), observed)
    assert config.sites == ("vector",)
    with pytest.raises(ConfigError, match="no context among") as caught:
        resolve_auto(compose_train(given), space(observation=VECTOR))
    assert "sites" not in str(caught.value)
