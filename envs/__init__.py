"""Vectorized environments of whole task suites under one observation contract.

``make_vec_env("MiniGrid-GoToDoor-5x5-v0", n_envs=64)`` returns an SB3 ``VecEnv``, and
``ContractObservation(env)`` wraps a single Gymnasium environment.
"""

from typing import TYPE_CHECKING, Any

from mirl.configs.keys import TASK_KEY
from mirl.envs.make import make_env
from mirl.envs.pools.backend import EnvironmentFailedError
from mirl.envs.pools.selection import choose_backend
from mirl.envs.seeds import SeedSplit, env_seeds
from mirl.envs.spaces import ContractObservation
from mirl.envs.texts.codec import mission_space, tokenize
from mirl.envs.texts.draw import draw_vocabulary
from mirl.envs.texts.vocabulary import MAX_TOKENS, N_TOKENS, VOCABULARY

if TYPE_CHECKING:
    from mirl.envs.vector import SuiteVecEnv, make_vec_env

__all__ = [
    "MAX_TOKENS",
    "N_TOKENS",
    "TASK_KEY",
    "VOCABULARY",
    "ContractObservation",
    "EnvironmentFailedError",
    "SeedSplit",
    "SuiteVecEnv",
    "choose_backend",
    "draw_vocabulary",
    "env_seeds",
    "make_env",
    "make_vec_env",
    "mission_space",
    "tokenize",
]


def __getattr__(name: str) -> Any:
    """Import the names that need Stable-Baselines3 on first use.

    Stable-Baselines3 loads torch, which worker processes do not need.
    """
    if name in ("SuiteVecEnv", "make_vec_env"):
        from mirl.envs import vector

        return getattr(vector, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
