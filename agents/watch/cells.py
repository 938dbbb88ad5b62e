"""The part of a MiniGrid that an agent sees, and marks on the cells that a mission picks out."""

import gymnasium as gym
import numpy as np
from jaxtyping import Float, Int
from minigrid.core.grid import Grid
from minigrid.minigrid_env import MiniGridEnv
from minigrid.wrappers import FullyObsWrapper
from PIL import Image, ImageDraw

from mirl.agents.watch.single_env import Env, Frame

VIEW_TILE = 32
"""Width of a cell in the picture of an agent's view, in pixels."""
MARK_COLOR = "#ff9f00"
LEGEND = "orange: what the mission picks out"
"""Meaning of the marks, for the caption."""
WIDEST_MARK = 0.25
"""Maximum width of a mark, as a fraction of a cell's width."""
MARK_SLOPE = 2.5
"""Width of a mark per unit of the share, as a fraction of a cell's width."""


def view_picture(env: Env) -> Frame | None:
    """Return a picture of the agent's view; None outside of MiniGrid and BabyAI.

    Args:
        env: the environment.
    """
    grid_env = env.unwrapped
    if not isinstance(grid_env, MiniGridEnv):
        return None
    if _sees_all(env):
        return grid_env.get_full_render(False, VIEW_TILE)  # type: ignore[no-untyped-call]
    size = _view_size(env)
    grid, is_visible = grid_env.gen_obs_grid(size)  # type: ignore[no-untyped-call]
    assert isinstance(grid, Grid)
    # the agent is in the middle of the last row and faces up
    position = (size // 2, size - 1)
    return grid.render(VIEW_TILE, position, agent_dir=3, highlight_mask=is_visible)


def cells_of_view(env: Env) -> Int[np.ndarray, "width height 2"]:
    """Return the grid column and row of each cell in an observation.

    Cells of the view that are outside of the grid have columns and rows outside of it, too.

    Args:
        env: an environment of MiniGrid or BabyAI.
    """
    grid_env = env.unwrapped
    assert isinstance(grid_env, MiniGridEnv)
    if _sees_all(env):
        grid = grid_env.grid
        return np.stack(np.meshgrid(range(grid.width), range(grid.height), indexing="ij"), axis=-1)
    size = _view_size(env)
    columns, rows = np.meshgrid(range(size), range(size), indexing="ij")
    steps_ahead = (size - 1 - rows)[..., None]
    steps_right = (columns - size // 2)[..., None]
    return (
        np.array(grid_env.agent_pos)
        + grid_env.dir_vec * steps_ahead
        + grid_env.right_vec * steps_right
    )


def marked(
    picture: Image.Image, env: Env, shares: Float[np.ndarray, "width height"]
) -> Image.Image | None:
    """Return a picture of a grid with a frame around each cell that the mission picks out.

    The result is None outside of MiniGrid and BabyAI, and if a wrapper changes the cells of the
    observation, because then their places in the grid are unknown.

    Args:
        picture: the picture of the whole grid.
        env: the environment, in the state of the picture.
        shares: share of each cell of the observation in what the mission picks out, summing to 1.
    """
    grid_env = env.unwrapped
    if not isinstance(grid_env, MiniGridEnv):
        return None
    cells = cells_of_view(env)
    if cells.shape[:2] != shares.shape:
        return None
    cell_width = picture.width / grid_env.grid.width
    cell_height = picture.height / grid_env.grid.height
    picture = picture.copy()
    draw = ImageDraw.Draw(picture)
    # threshold halfway between equal shares, which pick out no cell, and the largest share
    least = (shares.max() + 1 / shares.size) / 2
    for (column, row), share in zip(cells.reshape(-1, 2).tolist(), shares.ravel(), strict=True):
        # a frame, because a filled cell would change the colors that the mission names
        width = max(round(cell_width * min(WIDEST_MARK, MARK_SLOPE * float(share))), 1)
        is_inside = 0 <= column < grid_env.grid.width and 0 <= row < grid_env.grid.height
        if share > least and is_inside:
            left, top = round(column * cell_width), round(row * cell_height)
            right, bottom = round((column + 1) * cell_width), round((row + 1) * cell_height)
            draw.rectangle((left, top, right - 1, bottom - 1), outline=MARK_COLOR, width=width)
    return picture


def _view_size(env: Env) -> int:
    """Return the number of cells along a side of the view, which a wrapper may have changed."""
    return int(env.get_wrapper_attr("agent_view_size"))


def _sees_all(env: Env) -> bool:
    while isinstance(env, gym.Wrapper):
        if isinstance(env, FullyObsWrapper):
            return True
        env = env.env
    return False
