"""Type aliases for environments and their data."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

AnyEnv = gym.Env[Any, Any]
"""An environment with any observations and actions."""
AnySpace = spaces.Space[Any]
"""A space of any kind."""
Array = NDArray[Any]
"""An array of any data type."""
EnvIndices = NDArray[np.int64]
"""Indices of environments in ascending order, (k,)."""
Info = dict[str, Any]
"""The info dictionary of one timestep, or the options of a reset."""
Observation = dict[str, Array]
"""One observation: an array per key."""
Observations = dict[str, Array]
"""A batch of observations: an array (k, …) per key, whose first axis runs over environments."""
