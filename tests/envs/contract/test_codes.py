"""Tests of the codes of symbolic images beyond the known ones."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from minigrid.core import constants
from minigrid.core.grid import Grid
from minigrid.core.mission import MissionSpace
from minigrid.core.world_object import Ball
from minigrid.minigrid_env import MiniGridEnv
from minigrid.wrappers import ImgObsWrapper

from mirl.configs.errors import ContractError
from mirl.envs import ContractObservation
from mirl.envs.contract.codes import (
    N_BUCKETS,
    CodeValues,
    add_to_minigrid_tables,
    grid_high,
    is_code_space,
    minigrid_tables,
)


class OneBallEnv(MiniGridEnv):
    """A room with one ball, whose code is given."""

    def __init__(self, code: tuple[int, int, int] = (6, 0, 0)) -> None:
        self.code = code
        super().__init__(MissionSpace(lambda: "look"), grid_size=5, max_steps=5)

    def _gen_grid(self, width: int, height: int) -> None:
        self.grid = Grid(width, height)
        self.grid.wall_rect(0, 0, width, height)
        ball = Ball("red")
        ball.encode = lambda: self.code  # type: ignore[method-assign]
        self.grid.set(3, 1, ball)
        self.agent_pos = np.array((1, 1))
        self.agent_dir = 0
        self.mission = "look"


def test_minigrids_own_tables_give_its_bounds() -> None:
    assert grid_high() == (10, 5, 3)


@pytest.mark.parametrize(
    ("table", "channel"), [("OBJECT_TO_IDX", 0), ("COLOR_TO_IDX", 1), ("STATE_TO_IDX", 2)]
)
def test_bounds_follow_tables_when_made(
    monkeypatch: pytest.MonkeyPatch, table: str, channel: int
) -> None:
    """An environment knows what was added to a table before it was made."""
    code = [6, 0, 0]
    code[channel] = 20
    before = ContractObservation(OneBallEnv(tuple(code)))
    with pytest.raises(ContractError, match=rf"got 20 in cell .*constants\.{table} before"):
        before.reset(seed=0)
    monkeypatch.setitem(getattr(constants, table), "own", 20)
    after = ContractObservation(OneBallEnv(tuple(code)))
    observation, _ = after.reset(seed=0)
    assert after.observation_space.contains(observation)
    assert after.observation_space["image"].high[0, 0, channel] == 20


@settings(deadline=None)
@given(st.integers(0, 2), st.sets(st.integers(0, 255), min_size=1, max_size=8))
def test_unknown_codes_share_no_known_row(channel: int, codes: set[int]) -> None:
    """Hashed codes are in the bounds, and never equal to a known code."""
    space = ContractObservation(OneBallEnv()).observation_space["image"]
    values = CodeValues("image", space, "hash", from_minigrid=True)
    known = grid_high()[channel]
    for code in codes:
        image = np.zeros(space.shape, np.uint8)
        image[2, 1, channel] = code
        row = int(values.convert(image)[2, 1, channel])
        if code <= known:
            assert row == code
        else:
            assert row == known + 1 + code % N_BUCKETS
    assert values.space.high.reshape(-1, 3)[0].tolist() == [26, 21, 19]


def test_hash_tells_neighbors_apart() -> None:
    """Sixteen unknown codes that follow each other get sixteen rows."""
    rows = set()
    for color in range(6, 22):
        env = ContractObservation(OneBallEnv((6, color, 0)), unknown_codes="hash")
        observation, _ = env.reset(seed=0)
        assert env.observation_space.contains(observation)
        rows.add(tuple(np.unique(observation["image"][..., 1])))
    assert len(rows) == 16


@pytest.mark.parametrize("unknown_codes", ["error", "hash"])
def test_bare_image_has_code_bounds(unknown_codes: Any) -> None:
    """Codes stay codes if a wrapper leaves nothing but the image."""
    env = ContractObservation(ImgObsWrapper(OneBallEnv()), unknown_codes=unknown_codes)
    assert is_code_space(env.observation_space["observation"])


@settings(deadline=None)
@given(
    st.integers(1, 200),
    st.sampled_from([np.uint8, np.int16, np.int64]),
    st.sampled_from(["error", "hash"]),
    st.integers(0, 2**31),
)
def test_bounds_of_other_images_are_kept(
    high: int, dtype: Any, unknown_codes: Any, seed: int
) -> None:
    """Codes of other environments are known by the bounds of their space."""
    space = spaces.Box(0, high, (3, 3, 2), dtype)
    values = CodeValues("map", space, unknown_codes)
    image = np.random.default_rng(seed).integers(0, min(high + 5, 127), space.shape, dtype)
    if (image <= high).all():
        np.testing.assert_array_equal(values.convert(image), image)
    elif unknown_codes == "error":
        with pytest.raises(ContractError, match=r"observation 'map': .*raise the bound 'high'"):
            values.convert(image)
    else:
        converted = values.convert(image)
        assert values.space.contains(converted)
        assert ((converted > high) == (image > high)).all()


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (spaces.Box(0, 255, (8, 8, 3), np.uint8), False),
        (spaces.Box(0, 10, (8, 8, 3), np.uint8), True),
        (spaces.Box(0, 1, (8, 8, 3), np.float32), False),
        (spaces.Box(0, 10, (8,), np.int64), False),
        (spaces.Box(-1, 10, (8, 8, 3), np.int64), False),
        (spaces.Discrete(3), False),
    ],
)
def test_codes_are_bounded_integers(space: spaces.Space[Any], expected: bool) -> None:
    assert is_code_space(space) == expected


def test_tables_are_sent_to_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that lacks an entry gets it; what it has stays."""
    monkeypatch.setitem(constants.COLOR_TO_IDX, "teal", 6)
    tables = minigrid_tables()
    monkeypatch.delitem(constants.COLOR_TO_IDX, "teal")
    add_to_minigrid_tables(tables)
    assert constants.COLOR_TO_IDX["teal"] == 6
    assert constants.COLOR_TO_IDX["red"] == 0
    del constants.COLOR_TO_IDX["teal"]


def test_own_codes_are_not_checked() -> None:
    """MiniGrid's own environments cost no check, because their codes are known."""
    env = ContractObservation(gym.make("MiniGrid-DoorKey-5x5-v0"))
    assert not env._is_checked
