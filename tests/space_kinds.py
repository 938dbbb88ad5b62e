"""Observation spaces of every kind: what is seen, and what is asked."""

from typing import Any

import numpy as np
from gymnasium import spaces

from mirl.envs.texts.codec import TextSpace

CODES = np.broadcast_to(np.array([10, 5, 3], np.uint8), (5, 5, 3))
VECTOR = spaces.Box(-1, 1, (3,), np.float32)
TEXT = spaces.Box(0, 20, (6,), np.int16)
CODE_GRID = spaces.Box(np.zeros_like(CODES), CODES.copy(), (5, 5, 3), np.uint8)
PICTURE = spaces.Box(0, 255, (32, 32, 3), np.uint8)
PLANES = spaces.Box(0, 1, (6, 6, 4), np.bool_)

SEEN: dict[str, dict[str, spaces.Space[Any]]] = {
    "vector": {"observation": VECTOR},
    "vectors": {"observation": VECTOR, "speed": spaces.Box(-1, 1, (2, 2), np.float32)},
    "picture": {"image": PICTURE},
    "channels_first": {"image": spaces.Box(0, 255, (3, 36, 40), np.uint8)},
    "float_picture": {"image": spaces.Box(0, 1, (32, 32, 3), np.float32)},
    "gray": {"image": spaces.Box(0, 255, (16, 16), np.uint8)},
    "pictures": {"front": PICTURE, "wrist": spaces.Box(0, 255, (36, 36, 3), np.uint8)},
    "picture_and_vector": {"image": PICTURE, "observation": VECTOR},
    "picture_and_codes": {"camera": PICTURE, "grid": CODE_GRID},
    "codes": {"image": CODE_GRID, "direction": spaces.Discrete(4)},
    "flat_codes": {"image": spaces.Box(0, 6, (5, 5), np.uint8)},
    "flat_codes_and_matrix": {
        "image": spaces.Box(0, 6, (5, 5), np.uint8),
        "speed": spaces.Box(-1, 1, (2, 2), np.float32),
    },
    "many_codes": {"image": spaces.Box(0, 900, (5, 5, 2), np.int64)},
    "planes": {"image": PLANES},
    "byte_planes": {"image": spaces.Box(0, 1, (6, 6, 4), np.uint8)},
    "float_planes": {"image": spaces.Box(0, 1, (6, 6, 4), np.float32)},
    "multi_binary": {"image": spaces.MultiBinary([6, 6, 4])},
    "discrete": {"observation": spaces.Discrete(5)},
    "multi_discrete": {"observation": spaces.MultiDiscrete([3, 4])},
    "bits": {"observation": spaces.MultiBinary(6)},
    "note": {"note": TEXT},
    "note_and_vector": {"note": TEXT, "observation": VECTOR},
    "nothing": {},
}
"""Inputs. A text is one only beside a context that is given; by itself it is the context."""

ASKED: dict[str, dict[str, spaces.Space[Any]]] = {
    "nothing": {},
    "goal": {"desired_goal": VECTOR, "achieved_goal": VECTOR},
    "named_goal": {"goal": VECTOR},
    "goal_picture": {"desired_goal": PICTURE},
    "goal_codes": {"desired_goal": CODE_GRID},
    "goal_bits": {"desired_goal": spaces.MultiBinary(4)},
    "mission": {"mission": TEXT},
    "instruction": {"instruction": TEXT},
    "constant_mission": {"mission": TextSpace(21, 6, is_constant=True)},
    "embedding": {"mission": spaces.Box(-1, 1, (8,), np.float32)},
    "own_task": {"env_task": spaces.Discrete(3)},
    "tasks": {"task": spaces.Discrete(3)},
    "goal_and_mission": {"desired_goal": VECTOR, "mission": TEXT},
    "two_missions": {"mission": TEXT, "order": TEXT},
    "all": {"desired_goal": VECTOR, "mission": TEXT, "task": spaces.Discrete(3)},
}
"""Contexts."""


def observation_of(seen: str, asked: str) -> spaces.Dict:
    """Return the space of an observation as MIRL's contract has it, with the index of the task."""
    return spaces.Dict({"task": spaces.Discrete(1)} | SEEN[seen] | ASKED[asked])


PAIRS = [(seen, "mission") for seen in SEEN] + [
    ("vector", asked) for asked in ASKED if asked != "mission"
]
PAIRS += [("picture", "goal"), ("codes", "all"), ("nothing", "goal_and_mission")]
PAIRS += [("nothing", "goal"), ("picture_and_vector", "nothing"), ("note", "nothing")]
