"""Tasks as environments: missions as tokens, one observation contract, and whole suites stepped as one SB3 ``VecEnv``.

``make_vec_env("MiniGrid-GoToDoor-5x5-v0", n_envs=64)`` is the short way in; ``ContractObservation(env)`` puts a single
Gymnasium environment under the same contract.
"""

from mirl.envs.backends import choose_backend
from mirl.envs.making import make_env
from mirl.envs.missions import MAX_TOKENS, N_TOKENS, VOCABULARY, mission_space, tokenise
from mirl.envs.pool import EnvironmentFailedError
from mirl.envs.seeds import Split, slot_seeds
from mirl.envs.spaces import TASK_KEY, ContractObservation
from mirl.envs.vector import SuiteVecEnv, make_vec_env

__all__ = [
    "MAX_TOKENS",
    "N_TOKENS",
    "TASK_KEY",
    "VOCABULARY",
    "ContractObservation",
    "EnvironmentFailedError",
    "Split",
    "SuiteVecEnv",
    "choose_backend",
    "make_env",
    "make_vec_env",
    "mission_space",
    "slot_seeds",
    "tokenise",
]
