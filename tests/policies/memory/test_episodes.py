"""Episode boundaries inside sequences."""

from typing import Any

import numpy as np
import torch

from mirl.policies.memory.episodes import Episodes, OneTimestep

close = torch.testing.assert_close
exactly: dict[str, Any] = {"rtol": 0, "atol": 0}


STARTS = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 0, 1]], np.bool_)
"""(T, N) = (4, 3): segments of 2 + 2, 4, and 1 + 2 + 1 timesteps."""


def test_unpack_undoes_pack() -> None:
    episodes = Episodes(STARTS)
    values = torch.randn(4, 3, 2)
    close(episodes.unpack(episodes.pack(values)), values, **exactly)


def test_segments_are_packed_by_length() -> None:
    """The longest segment comes first, and each row of the packing holds one timestep."""
    episodes = Episodes(STARTS)
    assert episodes.batch_sizes == [6, 4, 1, 1]
    assert episodes.packing.sequence.tolist() == [1, 0, 0, 2, 2, 2]
    assert episodes.packing.starts_episode.flatten().tolist() == [0, 0, 1, 1, 0, 1]
    assert episodes.packing.last.tolist() == [2, 0, 5]


def test_states_of_segments() -> None:
    """Segments inside a sequence start from zeros; the last segments give the final states."""
    episodes = Episodes(STARTS)
    state = episodes.reset_state(torch.tensor([[1.0], [2.0], [3.0]]))
    close(state, torch.tensor([[1.0], [0.0], [3.0]]))
    close(episodes.first_states(state).flatten(), torch.tensor([0.0, 1.0, 0.0, 0.0, 3.0, 0.0]))
    last = episodes.last_states(torch.arange(6.0).unsqueeze(1))
    close(last.flatten(), torch.tensor([2.0, 0.0, 5.0]))


def test_unbroken_sequences_are_not_moved() -> None:
    """Sequences without an episode start inside are one segment each."""
    starts = np.zeros((4, 3), np.bool_)
    starts[0, 1] = True
    episodes = Episodes(starts)
    assert episodes.are_unbroken
    assert episodes.batch_sizes == [3] * 4
    state = torch.randn(3, 2)
    assert episodes.first_states(state) is state
    assert episodes.last_states(state) is state


def test_age_counts_timesteps_of_episode() -> None:
    age = Episodes(STARTS).age(torch.tensor([5.0, 7.0, 1.0]))
    expected = [[5, 0, 1], [6, 1, 0], [0, 2, 1], [1, 3, 0]]
    close(age, torch.tensor(expected, dtype=torch.float32))


def test_episodes_are_numbered() -> None:
    expected = [[0, 1, 0], [0, 1, 1], [1, 1, 1], [1, 1, 2]]
    assert Episodes(STARTS).number.tolist() == expected


def test_one_timestep_equals_episodes() -> None:
    """The episode starts of a single timestep, as a tensor, give what those of a sequence give."""
    starts = torch.tensor([True, False, False, True])
    expected = Episodes(starts[None].numpy())
    one = OneTimestep(starts)
    state = torch.arange(8.0).reshape(4, 2)
    ages = torch.tensor([3.0, 0.0, 5.0, 7.0])
    assert one.shape == expected.shape
    assert one.are_unbroken == expected.are_unbroken
    assert one.batch_sizes == expected.batch_sizes
    torch.testing.assert_close(one.number, expected.number)
    torch.testing.assert_close(one.reset_state(state), expected.reset_state(state))
    torch.testing.assert_close(one.age(ages), expected.age(ages))
