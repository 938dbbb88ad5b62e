"""Cells of a view lie where MiniGrid says, and marks are drawn around those picked out."""

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from minigrid.minigrid_env import MiniGridEnv
from minigrid.wrappers import FullyObsWrapper, ViewSizeWrapper
from PIL import Image

from mirl.agents.watch.cells import MARK_COLOR, cells_of_view, marked, view_picture
from mirl.agents.watch.single_env import Env

EMPTY = "MiniGrid-Empty-8x8-v0"


def placed(env: Env, seed: int) -> MiniGridEnv:
    """Return the grid of an environment whose agent was put somewhere."""
    env.reset(seed=seed)
    grid_env = env.unwrapped
    assert isinstance(grid_env, MiniGridEnv)
    generator = np.random.default_rng(seed)
    grid_env.agent_pos = tuple(generator.integers(1, 7, 2).tolist())
    grid_env.agent_dir = int(generator.integers(4))
    return grid_env


@given(seed=st.integers(0, 10_000))
def test_cells_are_where_minigrid_says(seed: int) -> None:
    """``get_view_coords`` leads from the grid back to the cell of the view."""
    env: Env = gym.make(EMPTY)
    grid_env = placed(env, seed)
    cells = cells_of_view(env)
    assert cells.shape == (7, 7, 2)
    for column in range(7):
        for row in range(7):
            back = grid_env.get_view_coords(*cells[column, row].tolist())
            assert tuple(int(part) for part in back) == (column, row)


def test_view_size_of_wrapper_counts() -> None:
    """The agent is in the middle of the last row of a smaller view."""
    env: Env = ViewSizeWrapper(gym.make(EMPTY), agent_view_size=5)
    grid_env = placed(env, seed=3)
    cells = cells_of_view(env)
    assert cells.shape == (5, 5, 2)
    assert tuple(cells[2, 4]) == tuple(grid_env.agent_pos)
    picture = view_picture(env)
    assert picture is not None
    assert picture.shape == (5 * 32, 5 * 32, 3)


def test_whole_grid_keeps_its_places() -> None:
    """With ``FullyObsWrapper`` each cell is at its own place."""
    env: Env = FullyObsWrapper(gym.make(EMPTY))
    env.reset(seed=0)
    cells = cells_of_view(env)
    assert cells.shape == (8, 8, 2)
    assert cells[3, 5].tolist() == [3, 5]
    picture = view_picture(env)
    assert picture is not None
    assert picture.shape == (8 * 32, 8 * 32, 3)


def test_view_is_minigrids_own() -> None:
    """Without wrappers, the picture is that of ``get_pov_render``."""
    env: Env = gym.make("BabyAI-GoToLocal-v0")
    grid_env = placed(env, seed=1)
    np.testing.assert_array_equal(view_picture(env), grid_env.get_pov_render(32))


def test_other_environment_has_no_view() -> None:
    """Outside of MiniGrid and BabyAI there is none."""
    assert view_picture(gym.make("CartPole-v1")) is None


@pytest.mark.parametrize("seed", range(5))
def test_marks_are_around_their_cell(seed: int) -> None:
    """The frame is around the one cell that has all of the shares, and equal shares have none."""
    env: Env = gym.make(EMPTY)
    grid_env = placed(env, seed)
    picture = Image.new("RGB", (8 * 20, 8 * 20))
    shares = np.zeros((7, 7))
    shares[3, 6] = 1  # the agent's own cell
    with_frame = marked(picture, env, shares)
    assert with_frame is not None
    drawn = np.asarray(with_frame)
    colors = np.argwhere((drawn == tuple(bytes.fromhex(MARK_COLOR[1:]))).all(2))
    column, row = grid_env.agent_pos
    assert colors.min(0).tolist() == [20 * row, 20 * column]
    assert colors.max(0).tolist() == [20 * row + 19, 20 * column + 19]
    assert not np.asarray(picture).any(), "the picture itself is not changed"
    unmarked = marked(picture, env, np.full((7, 7), 1 / 49))
    assert unmarked is not None
    assert not np.asarray(unmarked).any()


def test_cells_of_unknown_places_unmarked() -> None:
    """No marks are drawn for a layout that a wrapper made, nor outside of MiniGrid."""
    env: Env = gym.make(EMPTY)
    placed(env, seed=0)
    picture = Image.new("RGB", (160, 160))
    assert marked(picture, env, np.full((3, 7), 1 / 21)) is None
    assert marked(picture, gym.make("CartPole-v1"), np.full((7, 7), 1 / 49)) is None
