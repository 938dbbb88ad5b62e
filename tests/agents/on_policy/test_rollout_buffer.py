"""The buffer stores a rollout compactly and returns it as SB3's buffers do."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from stable_baselines3.common.buffers import DictRolloutBuffer
from stable_baselines3.common.buffers import RolloutBuffer as SB3RolloutBuffer

from mirl.agents.on_policy.rollout_buffer import RolloutBuffer
from mirl.policies.features import UniqueRows

close = torch.testing.assert_close

fractions = st.floats(0, 1, width=32)


@given(st.integers(1, 6), st.integers(1, 4), fractions, fractions, st.integers(0, 2**32 - 1))
def test_advantages_and_returns_match_sb3(
    n_steps: int, n_envs: int, gamma: float, gae_lambda: float, seed: int
) -> None:
    """Advantages and returns equal those of SB3's buffer."""
    rng, space = np.random.default_rng(seed), spaces.Discrete(2)
    sizes = {"gamma": gamma, "gae_lambda": gae_lambda, "n_envs": n_envs}
    ours, theirs = (
        kind(n_steps, space, space, "cpu", **sizes) for kind in (RolloutBuffer, SB3RolloutBuffer)
    )
    for _ in range(n_steps):
        seen, action = rng.integers(2, size=(2, n_envs))
        rewards, values, log_probs = rng.normal(size=(3, n_envs)).astype(np.float32)
        starts = rng.random(n_envs) < 0.3
        ours.add_observation(seen)
        ours.add(
            torch.tensor(action), rewards, starts, torch.tensor(values), torch.tensor(log_probs)
        )
        theirs.add(seen, action, rewards, starts, torch.tensor(values), torch.tensor(log_probs))
    last_values, dones = (
        torch.tensor(rng.normal(size=n_envs), dtype=torch.float32),
        rng.random(n_envs) < 0.5,
    )
    for buffer in (ours, theirs):
        buffer.compute_returns_and_advantage(last_values, dones)
    np.testing.assert_allclose(ours.advantages.numpy(), theirs.advantages, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours.returns.numpy(), theirs.returns, rtol=1e-5, atol=1e-5)


def fill_both(door: spaces.Dict, *, share: bool) -> tuple[RolloutBuffer, DictRolloutBuffer]:
    """Return the same random rollout of 5 timesteps of 3 environments in both buffers.

    The observations of every other timestep repeat.
    """
    door.seed(0)
    rng, actions = np.random.default_rng(0), spaces.Discrete(7)
    ours, theirs = (
        kind(5, door, actions, "cpu", n_envs=3) for kind in (RolloutBuffer, DictRolloutBuffer)
    )
    ours.group_by_context("mission")
    if share:
        ours.share_equal_observations()
    missions = [door["mission"].sample() for _ in range(2)]
    for timestep in range(5):
        if timestep % 2 == 0:
            samples = [{**door.sample(), "mission": missions[rng.integers(2)]} for _ in range(3)]
        observation = {key: np.stack([sample[key] for sample in samples]) for key in door}
        action, starts = rng.integers(7, size=3), rng.random(3) < 0.3
        rewards, values, log_probs = rng.normal(size=(3, 3)).astype(np.float32)
        ours.add_observation(observation)
        ours.add(
            torch.tensor(action), rewards, starts, torch.tensor(values), torch.tensor(log_probs)
        )
        theirs.add(
            observation,
            action.reshape(3, 1),
            rewards,
            starts,
            torch.tensor(values),
            torch.tensor(log_probs),
        )
    for buffer in (ours, theirs):
        buffer.compute_returns_and_advantage(torch.ones(3), np.array([False, True, False]))
    return ours, theirs


def test_observations_match_sb3(door: spaces.Dict) -> None:
    """Callbacks read the observations as arrays of SB3's shapes and dtypes."""
    ours, theirs = fill_both(door, share=False)
    assert isinstance(ours.observations, dict)
    assert ours.observations.keys() == theirs.observations.keys()
    for key, expected in theirs.observations.items():
        np.testing.assert_array_equal(ours.observations[key], expected, strict=True)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(5),
        spaces.MultiDiscrete([3, 300]),
        spaces.MultiBinary(4),
        spaces.Box(-1, 1, (2, 3), np.float32),
    ],
    ids=lambda space: type(space).__name__,
)
def test_actions_match_sb3(space: spaces.Space[Any]) -> None:
    """Callbacks read the actions as arrays of SB3's shapes and types."""
    seen = spaces.Box(0, 1, (2,), np.float32)
    ours, theirs = (
        kind(4, seen, space, "cpu", n_envs=3) for kind in (RolloutBuffer, SB3RolloutBuffer)
    )
    space.seed(0)
    zeros = np.zeros(3, np.float32)
    for _ in range(4):
        actions = np.stack([space.sample() for _ in range(3)])
        observations = np.zeros((3, 2), np.float32)
        ours.add_observation(observations)
        outputs = torch.zeros(3), torch.zeros(3)
        ours.add(torch.as_tensor(actions), zeros, zeros.astype(np.bool_), *outputs)
        theirs.add(observations, actions, zeros, zeros, *outputs)
    np.testing.assert_array_equal(ours.actions, theirs.actions, strict=True)
    copy = ours.actions
    copy[:] = 0
    assert ours.actions.any(), "a copy"


def multitask_buffer(*, share: bool) -> tuple[RolloutBuffer, NDArray[np.int64]]:
    """Return 3 timesteps of 4 environments with three tasks; the value of a step is its row."""
    parts = spaces.Dict(task=spaces.Discrete(3), cell=spaces.Discrete(2))
    buffer, tasks = (
        RolloutBuffer(3, parts, spaces.Discrete(2), "cpu", n_envs=4),
        np.array([[0, 1, 2, 2], [2, 0, 1, 0], [1] * 4]),
    )
    buffer.group_by_context("task")
    if share:
        buffer.share_equal_observations()
    for timestep, current in enumerate(tasks):
        buffer.add_observation({"task": current, "cell": np.zeros(4, np.int64)})
        values = torch.arange(4.0) + 4 * timestep
        buffer.add(
            torch.zeros(4), np.ones(4, np.float32), np.zeros(4, np.bool_), values, torch.zeros(4)
        )
    buffer.compute_returns_and_advantage(torch.zeros(4), np.zeros(4, np.bool_))
    return buffer, tasks


def test_returns_rms_has_unit_of_advantages() -> None:
    """The size of the returns is in the same unit as the advantages for the policy loss."""
    buffer, _ = multitask_buffer(share=False)
    size = buffer.returns.square().mean().sqrt()
    close(buffer.returns_rms(), size)
    buffer.scale_advantages(torch.full_like(buffer.advantages, 4.0))
    close(buffer.returns_rms(), size / 4)
    # the next rollout starts without a unit
    buffer.compute_returns_and_advantage(torch.zeros(4), np.zeros(4, np.bool_))
    close(buffer.returns_rms(), size)


@pytest.mark.parametrize("share", [False, True], ids=["each its own", "equal ones shared"])
def test_samples_have_their_task(share: bool) -> None:
    """Each sample has the task id of its own timestep."""
    buffer, tasks = multitask_buffer(share=share)
    close(buffer.task_ids, torch.tensor(tasks))
    samples = buffer.minibatch(np.array([7, 0, 2, 9, 5]))
    assert samples.task_ids is not None
    close(samples.task_ids, torch.tensor(tasks.reshape(-1))[samples.old_values.long()])
    assert sorted(samples.old_values.tolist()) == [0, 2, 5, 7, 9]


def test_single_task_stores_no_ids(door: spaces.Dict) -> None:
    """With one task no task ids are stored."""
    buffer, _ = fill_both(door, share=False)
    assert buffer.host_task_ids is None
    assert buffer.minibatch(np.arange(3)).task_ids is None
    close(buffer.task_ids, torch.zeros(5, 3, dtype=torch.int64))


def test_scaled_advantages_leave_returns() -> None:
    """Scaling the advantages for the policy loss does not change the returns."""
    buffer, _ = multitask_buffer(share=False)
    rows = np.arange(12)
    returns, plain = buffer.returns.clone(), buffer.minibatch(rows)
    buffer.normalize_advantages_per_task()
    rescaled = buffer.minibatch(rows)
    close(rescaled.advantages, buffer.policy_advantages.flatten()[rescaled.old_values.long()])
    assert not torch.allclose(rescaled.advantages, plain.advantages)
    close(rescaled.returns, plain.returns, rtol=0, atol=0)
    close(buffer.returns, returns, rtol=0, atol=0)


@pytest.mark.parametrize("share", [False, True], ids=["each its own", "equal ones shared"])
def test_minibatches_match_sb3(door: spaces.Dict, share: bool) -> None:
    """Minibatches have the samples of SB3's, in another order within each."""
    epochs = []
    for buffer in fill_both(door, share=share):
        np.random.seed(4)  # noqa: NPY002 (the generator that SB3 uses)
        epochs.append(list(buffer.get(4)))
    assert [len(samples.actions) for samples in epochs[0]] == [4, 4, 4, 3]
    for ours, theirs in zip(*epochs, strict=True):
        mine, yours = ours.old_log_prob.argsort(), theirs.old_log_prob.argsort()
        for name in ("actions", "old_values", "old_log_prob", "advantages", "returns"):
            got, expected = getattr(ours, name)[mine], getattr(theirs, name).squeeze(-1)[yours]
            close(got.float(), expected.float())
        for key, got in ours.observations.items():
            rows = got.rows[got.groups.index] if isinstance(got, UniqueRows) else got
            rows = rows if ours.inverse is None else rows[ours.inverse]
            close(
                rows[mine],
                theirs.observations[key][yours].view(rows.shape),
                check_dtype=False,
                rtol=0,
                atol=0,
            )


def test_buffer_is_small(door: spaces.Dict) -> None:
    """A rollout takes at most a quarter of the memory of SB3's."""
    ours, theirs = (
        kind(128, door, spaces.Discrete(7), "cpu", n_envs=1024)
        for kind in (RolloutBuffer, DictRolloutBuffer)
    )
    ours.group_by_context("mission")
    ours.share_equal_observations()
    arrays = [
        *theirs.observations.values(),
        *(value for value in vars(theirs).values() if isinstance(value, np.ndarray)),
    ]
    assert ours.nbytes <= sum(array.nbytes for array in arrays) / 4
