"""RolloutBuffer hold what happened, in little memory, and give it back as Stable-Baselines3's buffers do."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from stable_baselines3.common.buffers import DictRolloutBuffer
from stable_baselines3.common.buffers import RolloutBuffer as SB3RolloutBuffer

from mirl.agents.on_policy.advantages import generalized_advantages, normalize_per_task
from mirl.agents.on_policy.rollout_buffer import RolloutBuffer
from mirl.agents.on_policy.storage import CategoricalColumn, PackedColumn, PlainColumn, build_column
from mirl.envs import make_vec_env
from mirl.policies.features import UniqueRows

CPU = torch.device("cpu")
close = torch.testing.assert_close


@pytest.fixture(scope="module")
def door() -> spaces.Dict:
    """GoToDoor's observations: image, direction, mission, task."""
    env = make_vec_env("MiniGrid-GoToDoor-5x5-v0", 1)
    env.close()
    assert isinstance(env.observation_space, spaces.Dict)
    return env.observation_space


def test_advantages_are_those_computed_by_hand() -> None:
    """With γ = λ = 1/2: δ_t = r_t + c_t V_{t+1} / 2 − V_t and A_t = δ_t + c_t A_{t+1} / 4."""
    advantages = generalized_advantages(
        # environment 0 terminates at t = 1, and is cut off at t = 2 before a state that is worth 8
        rewards=torch.tensor([[1.0, 1.0], [3.0, 1.0], [3.0 + 8.0 / 2, 1.0], [4.0, 1.0]]),
        values=torch.tensor([[4.0, 0.0], [2.0, 0.0], [6.0, 0.0], [10.0, 0.0]]),
        episode_starts=torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 0.0], [1.0, 0.0]]),
        last_values=torch.tensor([20.0, 100.0]),
        last_episode_starts=torch.tensor([0.0, 1.0]),  # environment 1 terminates at t = 3
        gamma=0.5,
        gae_lambda=0.5,
    )
    first = [1 + 2 / 2 - 4 + 1 / 4, 3 - 2, 7 - 6, 4 + 20 / 2 - 10]
    second = [1 + (1 + (1 + 1 / 4) / 4) / 4, 1 + (1 + 1 / 4) / 4, 1 + 1 / 4, 1]
    close(advantages, torch.tensor([first, second]).T)


fractions = st.floats(0, 1, width=32)


@given(st.integers(1, 6), st.integers(1, 4), fractions, fractions, st.integers(0, 2**32 - 1))
def test_advantages_and_returns_are_those_of_sb3(
    n_steps: int, n_envs: int, gamma: float, gae_lambda: float, seed: int
) -> None:
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


@given(
    arrays(np.float32, (4, 5), elements=st.floats(-100, 100, width=32)),
    arrays(np.int64, (4, 5), elements=st.integers(0, 3)),
)
def test_advantages_per_task_have_mean_0_and_deviation_1(
    advantages: NDArray[np.float32], tasks: NDArray[np.int64]
) -> None:
    normalized = normalize_per_task(torch.tensor(advantages), torch.tensor(tasks)).numpy()
    for task in np.unique(tasks):
        mine, got = advantages[tasks == task].astype(np.float64), normalized[tasks == task]
        deviation = mine.std(ddof=1) if len(mine) > 1 else 0.0
        np.testing.assert_allclose(
            got, (mine - mine.mean()) / (deviation + 1e-8), rtol=1e-4, atol=1e-4
        )


def test_what_does_not_vary_within_a_task_is_centred_and_not_blown_up() -> None:
    advantages, tasks = torch.tensor([[1000.1, 1000.1, 1000.1, 7.0]]), torch.tensor([[0, 0, 0, 1]])
    close(normalize_per_task(advantages, tasks), torch.zeros(1, 4), rtol=0, atol=1e-4)


@st.composite
def integer_boxes(draw: st.DrawFn) -> spaces.Box:
    """Bounds of any size within the type, and often ones that are worth packing."""
    dtype = draw(
        st.sampled_from([np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.int64])
    )
    shape, limits = draw(array_shapes(min_dims=0, max_dims=3, max_side=4)), np.iinfo(dtype)
    highest = draw(st.sampled_from([1, 3, 10, min(255, limits.max), limits.max]))
    high = draw(arrays(dtype, shape, elements=st.integers(0, highest)))
    low = draw(
        arrays(dtype, shape, elements=st.integers(draw(st.sampled_from([0, limits.min])), 0))
    )
    return spaces.Box(low, high, dtype=dtype)  # type: ignore[arg-type]


@given(integer_boxes(), st.integers(0, 2**32 - 1))
def test_what_is_stored_is_taken_back(space: spaces.Box, seed: int) -> None:
    n_steps, n_envs, rng = 3, 4, np.random.default_rng(seed)
    size = (n_steps, n_envs, *space.shape)
    values = rng.integers(space.low, space.high, size, dtype=space.dtype.type, endpoint=True)
    column, rows = (
        build_column("seen", space, (n_steps, n_envs), CPU),
        rng.integers(n_steps * n_envs, size=7),
    )
    assert isinstance(column, PackedColumn) is PackedColumn.supports(space)
    for timestep, current in enumerate(values):
        close(column.store(timestep, current), torch.tensor(current), rtol=0, atol=0)
    close(column.take(rows), torch.tensor(values.reshape(-1, *space.shape)[rows]), rtol=0, atol=0)
    assert column.nbytes <= values.nbytes


def test_minigrids_view_takes_56_bytes(door: spaces.Dict) -> None:
    assert (
        build_column("image", door["image"], (1, 1), CPU).nbytes == 56
    )  # 49 cells of 4 + 3 + 2 bits


@pytest.mark.parametrize("wrong", [4, 300, -1, -0.5])
def test_values_beyond_the_bounds_are_an_error_that_names_the_key(wrong: float) -> None:
    column = build_column("lamp", spaces.Box(0, 3, (2, 2), np.int64), (1, 3), CPU)
    values = np.zeros((3, 2, 2), np.array(wrong).dtype)
    column.store(0, values)
    values[1, 0, 1] = wrong
    with pytest.raises(ValueError, match=r"'lamp' goes beyond the bounds of its space"):
        column.store(0, values)


@pytest.mark.parametrize(
    ("n", "size"), [(2, 1), (256, 1), (257, 2), (2**15, 2), (2**15 + 1, 4), (2**31 + 1, 8)]
)
def test_a_number_takes_no_more_bytes_than_the_largest_needs(n: int, size: int) -> None:
    column = PlainColumn(spaces.Discrete(n), (1, 2), CPU)
    column.store(0, np.array([0, n - 1]))
    assert column.nbytes == 2 * size
    close(column.take(np.array([1, 0])), torch.tensor([n - 1, 0]))


def test_numbers_that_start_below_zero_are_taken_back() -> None:
    column = PlainColumn(spaces.Discrete(3, start=-1), (1, 3), CPU)
    column.store(0, np.array([-1, 0, 1]))
    close(column.take(np.arange(3)), torch.tensor([-1, 0, 1]))


def check(distinct: UniqueRows | torch.Tensor, expected: NDArray[Any], *, ordered: bool) -> None:
    assert isinstance(distinct, UniqueRows)
    rows, groups = distinct
    close(rows[groups.index], torch.tensor(expected), rtol=0, atol=0)
    assert len(rows) == groups.count == len(np.unique(expected, axis=0))
    assert groups.counts == torch.bincount(groups.index).tolist()
    assert groups.ordered is ordered
    assert not ordered or bool((groups.index.diff() >= 0).all())


@given(st.integers(0, 2**32 - 1), st.sampled_from([(), (3,)]), st.floats(0, 1))
def test_an_interned_column_gives_back_what_it_was_given(
    seed: int, shape: tuple[int, ...], change: float
) -> None:
    n_steps, n_envs, rng = 5, 6, np.random.default_rng(seed)
    column = CategoricalColumn((n_steps, n_envs), CPU)
    for _ in range(2):  # rollouts
        missions, now = (
            np.zeros((n_steps, n_envs, *shape), np.int16),
            rng.integers(3, size=(n_envs, *shape)),
        )
        for timestep in range(n_steps):
            changed = rng.random(n_envs) < change
            now[changed] = rng.integers(3, size=now[changed].shape)
            missions[timestep] = now
            check(
                column.store(timestep, missions[timestep].copy()), missions[timestep], ordered=False
            )
        rows = rng.permutation(n_steps * n_envs)[:17]
        rows = rows[np.argsort(column.index.reshape(-1)[rows])]
        check(column.take(rows), missions.reshape(-1, *shape)[rows], ordered=True)
        column.forget()
        assert column.nbytes == column.index.nbytes


def filled(door: spaces.Dict, *, share: bool) -> tuple[RolloutBuffer, DictRolloutBuffer]:
    """The same random rollout in both, of 5 timesteps of 3 environments; every other timestep's observations repeat."""
    door.seed(0)
    rng, actions = np.random.default_rng(0), spaces.Discrete(7)
    ours, theirs = (
        kind(5, door, actions, "cpu", n_envs=3) for kind in (RolloutBuffer, DictRolloutBuffer)
    )
    ours.intern("mission")
    if share:
        ours.share_equal_observations()
    missions = [door["mission"].sample() for _ in range(2)]
    for timestep in range(5):
        if timestep % 2 == 0:
            samples = [{**door.sample(), "mission": missions[rng.integers(2)]} for _ in range(3)]
        seen = {key: np.stack([sample[key] for sample in samples]) for key in door}
        action, starts = rng.integers(7, size=3), rng.random(3) < 0.3
        rewards, values, log_probs = rng.normal(size=(3, 3)).astype(np.float32)
        ours.add_observation(seen)
        ours.add(
            torch.tensor(action), rewards, starts, torch.tensor(values), torch.tensor(log_probs)
        )
        theirs.add(
            seen,
            action.reshape(3, 1),
            rewards,
            starts,
            torch.tensor(values),
            torch.tensor(log_probs),
        )
    for buffer in (ours, theirs):
        buffer.compute_returns_and_advantage(torch.ones(3), np.array([False, True, False]))
    return ours, theirs


def multitask(*, share: bool) -> tuple[RolloutBuffer, NDArray[np.int64]]:
    """A rollout of 3 timesteps of 4 environments whose observation also says the task, and whose value is its row."""
    parts = spaces.Dict(task=spaces.Discrete(3), cell=spaces.Discrete(2))
    rollouts, tasks = (
        RolloutBuffer(3, parts, spaces.Discrete(2), "cpu", n_envs=4),
        np.array([[0, 1, 2, 2], [2, 0, 1, 0], [1] * 4]),
    )
    rollouts.intern("task")
    if share:
        rollouts.share_equal_observations()
    for timestep, current in enumerate(tasks):
        rollouts.add_observation({"task": current, "cell": np.zeros(4, np.int64)})
        values = torch.arange(4.0) + 4 * timestep
        rollouts.add(
            torch.zeros(4), np.ones(4, np.float32), np.zeros(4, np.bool_), values, torch.zeros(4)
        )
    rollouts.compute_returns_and_advantage(torch.zeros(4), np.zeros(4, np.bool_))
    return rollouts, tasks


@pytest.mark.parametrize("share", [False, True], ids=["each its own", "equal ones shared"])
def test_each_sample_says_its_task(share: bool) -> None:
    rollouts, tasks = multitask(share=share)
    close(rollouts.task_ids, torch.tensor(tasks))
    samples = rollouts.take(np.array([7, 0, 2, 9, 5]))
    assert samples.tasks is not None
    close(samples.tasks, torch.tensor(tasks.reshape(-1))[samples.old_values.long()])
    assert sorted(samples.old_values.tolist()) == [0, 2, 5, 7, 9]


def test_of_one_task_nothing_is_kept(door: spaces.Dict) -> None:
    rollouts, _ = filled(door, share=False)
    assert rollouts.tasks is None
    assert rollouts.take(np.arange(3)).tasks is None
    close(rollouts.task_ids, torch.zeros(5, 3, dtype=torch.int64))


def test_advantages_on_another_scale_leave_the_returns_alone() -> None:
    rollouts, _ = multitask(share=False)
    rows = np.arange(12)
    returns, plain = rollouts.returns.clone(), rollouts.take(rows)
    rollouts.policy_advantages = normalize_per_task(rollouts.advantages, rollouts.task_ids)
    rescaled = rollouts.take(rows)
    close(rescaled.advantages, rollouts.policy_advantages.flatten()[rescaled.old_values.long()])
    assert not torch.allclose(rescaled.advantages, plain.advantages)
    close(rescaled.returns, plain.returns, rtol=0, atol=0)
    close(rollouts.returns, returns, rtol=0, atol=0)


@pytest.mark.parametrize("share", [False, True], ids=["each its own", "equal ones shared"])
def test_minibatches_are_those_of_sb3_up_to_the_order_within_each(
    door: spaces.Dict, share: bool
) -> None:
    epochs = []
    for buffer in filled(door, share=share):
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
            rows = rows if ours.rows is None else rows[ours.rows]
            close(
                rows[mine],
                theirs.observations[key][yours].view(rows.shape),
                check_dtype=False,
                rtol=0,
                atol=0,
            )


def test_a_rollout_takes_at_most_a_quarter_of_sb3s_memory(door: spaces.Dict) -> None:
    ours, theirs = (
        kind(128, door, spaces.Discrete(7), "cpu", n_envs=1024)
        for kind in (RolloutBuffer, DictRolloutBuffer)
    )
    ours.intern("mission")
    ours.share_equal_observations()
    arrays = [
        *theirs.observations.values(),
        *(value for value in vars(theirs).values() if isinstance(value, np.ndarray)),
    ]
    assert ours.nbytes <= sum(array.nbytes for array in arrays) / 4
