"""Networks with arbitrary spaces and arguments: they work, or raise the documented error."""

from typing import Any

import numpy as np
from batches import batch_of
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from mirl.configs.errors import ConfigError
from mirl.configs.networks import (
    BilinearConfig,
    GoalContextConfig,
    MissionContextConfig,
    VectorEncoderConfig,
)
from mirl.policies import FusionExtractor, FusionPolicy

CODES = np.broadcast_to(np.array([4, 3, 2], np.uint8), (7, 7, 3))
SPACES: dict[str, list[spaces.Space[Any]]] = {
    "observation": [
        spaces.Box(-1, 1, (3,), np.float32),
        spaces.Box(-np.inf, np.inf, (2, 2), np.float64),
        spaces.MultiDiscrete([2, 3]),
        spaces.Text(5),
    ],
    "image": [
        spaces.Box(np.zeros_like(CODES), CODES.copy(), (7, 7, 3), np.uint8),
        spaces.Box(0, 255, (40, 40, 3), np.uint8),
        spaces.Box(0, 255, (3, 40, 40), np.uint8),
        spaces.Box(0, 1, (7, 7, 3), np.float32),
        spaces.Box(0, 255, (2, 2, 3), np.uint8),
    ],
    "direction": [spaces.Discrete(4), spaces.Discrete(3, start=2)],
    "mission": [
        spaces.Box(0, 20, (6,), np.int16),
        spaces.Box(0, 1, (6,), np.float32),
        spaces.Text(20),
    ],
    "task": [spaces.Discrete(3), spaces.Discrete(1), spaces.Box(0, 1, (2,), np.float32)],
    "desired_goal": [
        spaces.Box(-1, 1, (3,), np.float32),
        spaces.Box(np.zeros_like(CODES), CODES.copy(), dtype=np.uint8),
    ],
    "achieved_goal": [spaces.Box(-1, 1, (3,), np.float32), spaces.Box(-1, 1, (2,), np.float32)],
    "action_mask": [
        spaces.MultiBinary(4),
        spaces.MultiBinary(3),
        spaces.Box(0, 1, (4,), np.float32),
    ],
}
DICTS = st.fixed_dictionaries(
    {}, optional={key: st.sampled_from(each) for key, each in SPACES.items()}
).map(spaces.Dict)
ARGUMENTS: dict[str, st.SearchStrategy[Any]] = {
    "fusion": st.sampled_from(
        [
            "concat",
            "bilinear",
            "low_rank",
            "hyper",
            "film",
            "gate",
            "attention",
            "metric",
            "bilinar",
            "",
            None,
            3,
        ]
    )
    | st.builds(BilinearConfig),
    "context": st.sampled_from([None, "task_id", "mission", "goal", "gaol", 3])
    | st.builds(
        GoalContextConfig,
        normalize=st.booleans(),
        relative_to=st.sampled_from(["", "achieved_goal", "x"]),
    )
    | st.builds(MissionContextConfig, encoder=st.sampled_from(["attention", "gru", "bag"])),
    "encoder": st.sampled_from([None, "grid", "image", "vector", "gird", 3])
    | st.builds(VectorEncoderConfig),
    "sites": st.lists(st.sampled_from(["map", "vector", "heads", "haeds"]), max_size=3),
    "observation_keys": st.none() | st.lists(st.sampled_from([*SPACES, "imge"]), max_size=3),
}
ANY = st.fixed_dictionaries({}, optional=ARGUMENTS)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(DICTS | st.sampled_from(SPACES["observation"]), ANY)
def test_extractor_works_or_raises_config_error(
    space: spaces.Dict, arguments: dict[str, Any]
) -> None:
    """For any space and arguments, the extractor returns finite features or raises ConfigError."""
    try:
        extractor = FusionExtractor(space, **arguments)
    except ConfigError:
        return
    features = extractor(batch_of(space, 3))
    assert features.shape == (3, extractor.features_dim)
    assert features.isfinite().all()


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    DICTS,
    st.sampled_from(
        [spaces.Discrete(4), spaces.Box(-1, 1, (2,), np.float32), spaces.MultiDiscrete([2, 3])]
    ),
    ANY,
    st.booleans(),
)
def test_policy_acts_or_raises_config_error(
    space: spaces.Dict, action_space: spaces.Space[Any], arguments: dict[str, Any], popart: bool
) -> None:
    """For any space and arguments, the policy returns a valid action or raises ConfigError."""
    try:
        policy = FusionPolicy(space, action_space, lambda _: 1e-3, popart=popart, **arguments)
    except ConfigError:
        return
    space.seed(0)
    action, _ = policy.predict(space.sample())
    assert action_space.contains(action)
