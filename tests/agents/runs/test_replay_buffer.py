"""Replay buffers are saved with the last checkpoint and continued where they were."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from off_policy_setup import (
    make_agent_fixture,  # noqa: F401  (a fixture)
    tiny_fixture,  # noqa: F401  (a fixture)
)

from mirl.agents.runs.checkpoint_directory import CheckpointDirectory
from mirl.agents.runs.replay_buffer import REPLAY_BUFFER
from mirl.configs.errors import ConfigError
from mirl.configs.schema import TrainConfig

Build = Callable[..., TrainConfig]
Agents = Callable[[TrainConfig], Any]


def test_unfinished_episode_is_truncated(tiny: Build, make_agent: Agents, tmp_path: Path) -> None:
    """An unfinished episode is truncated when the buffer is loaded."""
    config = tiny("sac")
    saved, loaded = make_agent(config).learn(33), make_agent(config)
    CheckpointDirectory(tmp_path).save(saved).load_agent(loaded)
    buffer = loaded.replay_buffer
    assert saved.replay_buffer.ep_length[30:33].tolist() == [[0], [0], [0]]
    assert buffer.ep_length[30:33].tolist() == [[3], [3], [3]]
    assert (buffer.dones[32, 0], buffer.timeouts[32, 0], buffer._current_ep_start[0]) == (1, 1, 33)


def test_full_buffer_keeps_its_position(tiny: Build, make_agent: Agents, tmp_path: Path) -> None:
    """A full buffer is continued at its position."""
    config = tiny("sac", "agent.buffer_size=30")
    saved, loaded = make_agent(config).learn(45), make_agent(config)
    CheckpointDirectory(tmp_path).save(saved).load_agent(loaded)
    assert (loaded.replay_buffer.pos, loaded.replay_buffer.full) == (15, True)
    np.testing.assert_array_equal(loaded.replay_buffer.rewards, saved.replay_buffer.rewards)


@pytest.mark.parametrize("n_steps", [18, 20])  # episodes have 5 timesteps
def test_longer_run_has_room(tiny: Build, make_agent: Agents, tmp_path: Path, n_steps: int) -> None:
    """A buffer that the end of a run filled exactly is continued behind its last timestep."""
    short = tiny("sac", "agent.n_envs=2", f"total_timesteps={2 * n_steps - 1}")
    saved = make_agent(short).learn(2 * n_steps - 1)
    assert (saved.replay_buffer.pos, saved.replay_buffer.full) == (0, True)
    loaded = make_agent(short.model_copy(update={"total_timesteps": 80}))
    CheckpointDirectory(tmp_path).save(saved).load_agent(loaded)
    buffer = loaded.replay_buffer
    assert (buffer.pos, buffer.full) == (n_steps, False)
    assert buffer._current_ep_start.tolist() == [n_steps, n_steps]
    assert (buffer.ep_length[:n_steps] > 0).all()
    assert not buffer.ep_length[n_steps:].any()


def test_only_last_checkpoint_holds_buffer(tiny: Build, make_agent: Agents, tmp_path: Path) -> None:
    """Only the last checkpoint holds the replay buffer."""
    agent = make_agent(tiny("td3"))
    directory = CheckpointDirectory(tmp_path)
    for score in (0.5, None, None):
        directory.save(agent.learn(30, reset_num_timesteps=False), score=score)
    [path] = tmp_path.rglob(REPLAY_BUFFER)
    assert path.parent == directory.find("last").folder
    assert directory.find("best").name == "step_000000030"


@pytest.mark.parametrize("words", [("agent.buffer_size=20",), ("agent.n_envs=2",)])
def test_buffer_of_other_size_is_rejected(
    tiny: Build, make_agent: Agents, tmp_path: Path, words: tuple[str, ...]
) -> None:
    checkpoint = CheckpointDirectory(tmp_path).save(make_agent(tiny("sac")).learn(40))
    with pytest.raises(
        ConfigError, match=r"its replay buffer holds 'observations\.achieved_goal' of shape"
    ):
        checkpoint.load_agent(make_agent(tiny("sac", *words)))
