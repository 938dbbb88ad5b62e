"""What an off-policy agent has seen, in safetensors: the replay buffers of SB3 can only pickle themselves."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import DictReplayBuffer

REPLAY_BUFFER = "replay_buffer.safetensors"
"""Name of the file."""

_COLUMNS = ("actions", "rewards", "dones", "timeouts")
_EPISODES = ("ep_start", "ep_length")  # of a HerReplayBuffer


def save_replay_buffer(agent: BaseAlgorithm, folder: Path) -> None:
    """Write the timesteps that an agent's replay buffer holds; nothing for an agent that has none."""
    buffer = getattr(agent, "replay_buffer", None)
    if isinstance(buffer, DictReplayBuffer):
        filled = buffer.size()
        tensors = {name: column[:filled] for name, column in _columns(buffer).items()}
        tensors["position"] = np.array([buffer.pos, int(buffer.full)])
        if isinstance(buffer, HerReplayBuffer):
            tensors["episode_under_way"] = buffer._current_ep_start
        save_file(tensors, folder / REPLAY_BUFFER)


def load_replay_buffer(agent: BaseAlgorithm, folder: Path) -> None:
    """Read them back; episodes that were under way count as cut off by time, since their environments are gone.

    :raises ValueError: when the file is of a buffer of another size, or of other spaces.
    """
    buffer = getattr(agent, "replay_buffer", None)
    if not isinstance(buffer, DictReplayBuffer):
        return
    saved = load_file(folder / REPLAY_BUFFER)
    for name, column in _columns(buffer).items():
        if saved[name].shape[1:] != column.shape[1:] or len(saved[name]) > len(column):
            raise ValueError(
                f"its replay buffer holds '{name}' of shape {saved[name].shape}, expected {column.shape}"
            )
        column[: len(saved[name])] = saved[name]
    position, full = saved["position"].tolist()
    buffer.pos, buffer.full = position, bool(full)
    if isinstance(buffer, HerReplayBuffer):
        buffer._current_ep_start[:] = saved["episode_under_way"]
    end_episodes_under_way(agent)


def end_episodes_under_way(agent: BaseAlgorithm) -> None:
    """What an agent will not go on with counts as cut off by time, where its replay buffer knows of episodes."""
    buffer = getattr(agent, "replay_buffer", None)
    if isinstance(buffer, HerReplayBuffer):
        with warnings.catch_warnings(action="ignore"):  # it warns of what it is asked to do
            buffer.truncate_last_trajectory()


def _columns(buffer: DictReplayBuffer) -> dict[str, NDArray[Any]]:
    """The arrays of a buffer, (timesteps, environments, …)."""
    names = (*_COLUMNS, *(_EPISODES if isinstance(buffer, HerReplayBuffer) else ()))
    seen = {f"observations.{key}": column for key, column in buffer.observations.items()}
    next_seen = {
        f"next_observations.{key}": column for key, column in buffer.next_observations.items()
    }
    return {**seen, **next_seen, **{name: getattr(buffer, name) for name in names}}
