"""Replay buffers as safetensors files; SB3 itself can only pickle them."""

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import DictReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

REPLAY_BUFFER = "replay_buffer.safetensors"
"""File with the replay buffer."""

_COLUMNS = ("actions", "rewards", "dones", "timeouts")
_HER_COLUMNS = ("ep_start", "ep_length")


def save_replay_buffer(agent: BaseAlgorithm, folder: Path) -> None:
    """Save the filled part of an agent's replay buffer, if it has one.

    Args:
        agent: the agent.
        folder: the folder of the checkpoint.
    """
    buffer = _get_buffer(agent)
    if buffer is None:
        return
    # the rest of the arrays has never been written
    n_filled = buffer.size()
    arrays: dict[str, NDArray[np.generic]] = {}
    for name, column in _columns(buffer).items():
        # safetensors writes the raw memory of an array and ignores its strides
        arrays[name] = np.ascontiguousarray(column[:n_filled])
    # a safetensors file holds arrays only
    arrays["position"] = np.array([buffer.pos, int(buffer.full)])
    if isinstance(buffer, HerReplayBuffer):
        arrays["episode_under_way"] = buffer._current_ep_start
    save_file(arrays, folder / REPLAY_BUFFER)


def load_replay_buffer(agent: BaseAlgorithm, folder: Path) -> None:
    """Load an agent's replay buffer and truncate its unfinished episodes.

    Args:
        agent: the agent; without a replay buffer nothing is loaded.
        folder: the folder of the checkpoint.

    Raises:
        ValueError: the buffer in the file has another size or other spaces.
    """
    buffer = _get_buffer(agent)
    if buffer is None:
        return
    saved = load_file(folder / REPLAY_BUFFER)
    for name, column in _columns(buffer).items():
        values = saved[name]
        if values.shape[1:] != column.shape[1:] or len(values) > len(column):
            raise ValueError(
                f"its replay buffer holds '{name}' of shape {values.shape}, expected {column.shape}"
            )
        column[: len(values)] = values  # in place: SB3 has allocated the full size
    position, is_full = saved["position"].tolist()
    n_saved = len(saved["actions"])
    # a buffer that was exactly full has room again if the run is trained for longer
    has_room = bool(is_full) and position == 0 and n_saved < buffer.buffer_size
    buffer.pos = n_saved if has_room else position
    buffer.full = bool(is_full) and not has_room
    if isinstance(buffer, HerReplayBuffer):
        starts = saved["episode_under_way"]
        if has_room:
            # the next episode begins after the saved ones, if the last one is over
            starts = np.where(saved["ep_length"][-1] > 0, n_saved, starts)
        buffer._current_ep_start[:] = starts
    truncate_unfinished_episodes(agent)


def truncate_unfinished_episodes(agent: BaseAlgorithm) -> None:
    """Mark unfinished episodes in a ``HerReplayBuffer`` as truncated.

    Their environments are closed or reset, so the episodes cannot continue.

    Args:
        agent: the agent; without such a buffer nothing is done.
    """
    buffer = _get_buffer(agent)
    if isinstance(buffer, HerReplayBuffer):
        # SB3 warns that the trajectory is truncated, which is intended here
        with warnings.catch_warnings(action="ignore"):
            buffer.truncate_last_trajectory()


def _get_buffer(agent: BaseAlgorithm) -> DictReplayBuffer | None:
    if not isinstance(agent, OffPolicyAlgorithm):
        return None
    buffer = agent.replay_buffer
    return buffer if isinstance(buffer, DictReplayBuffer) else None


def _columns(buffer: DictReplayBuffer) -> dict[str, NDArray[np.generic]]:
    """Return the arrays of a buffer, (timesteps, environments, ...), by their names in the file."""
    columns: dict[str, NDArray[np.generic]] = {}
    for key, column in buffer.observations.items():
        columns[f"observations.{key}"] = column
    for key, column in buffer.next_observations.items():
        columns[f"next_observations.{key}"] = column
    names = list(_COLUMNS)
    if isinstance(buffer, HerReplayBuffer):
        names += _HER_COLUMNS
    for name in names:
        columns[name] = getattr(buffer, name)
    return columns
