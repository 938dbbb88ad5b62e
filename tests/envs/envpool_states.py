"""Transfer of the state of an EnvPool MiniGrid environment to a Python MiniGrid environment."""

from typing import Any

import numpy as np
from minigrid.core.constants import IDX_TO_COLOR, IDX_TO_OBJECT
from minigrid.core.grid import Grid
from minigrid.core.world_object import Box, WorldObj
from minigrid.envs.babyai.core.roomgrid_level import RoomGridLevel
from minigrid.envs.babyai.core.verifier import (
    COLOR_NAMES,
    ActionInstr,
    AfterInstr,
    AndInstr,
    BeforeInstr,
    GoToInstr,
    Instr,
    ObjDesc,
    OpenInstr,
    PickupInstr,
    PutNextInstr,
)
from minigrid.minigrid_env import MiniGridEnv

LOCATIONS = {
    " on your left": "left",
    " on your right": "right",
    " in front of you": "front",
    " behind you": "behind",
}


def inject(env: MiniGridEnv, state: Any) -> None:
    """Let ``env``, which has been reset, continue from the start of EnvPool's episode."""
    # EnvPool's ObstructedMaze-1D* has additional closed rooms.
    env.width = state.width
    env.height = state.height
    env.grid = _grid(state)
    env.agent_pos = tuple(state.agent_pos)
    env.agent_dir = state.agent_dir
    env.carrying = None
    if state.has_carrying:
        env.carrying = WorldObj.decode(
            state.carrying_type, state.carrying_color, state.carrying_state
        )
        env.carrying.cur_pos = np.array([-1, -1])
    env.mission = state.mission
    env.step_count = 0
    if isinstance(env, RoomGridLevel):
        _inject_instructions(env)
        if not env.fixed_max_steps:
            rooms = env.num_rows * env.num_cols
            env.max_steps = env.num_navs_needed(env.instrs) * env.room_size**2 * rooms
    assert env.max_steps == state.max_steps
    _inject_targets(env, state)


def _grid(state: Any) -> Grid:
    codes = np.array(state.grid).reshape(state.width, state.height, 3)
    contents = np.array(state.grid_contains).reshape(state.width, state.height, 3)
    grid = Grid(state.width, state.height)
    for x, y in np.ndindex(state.width, state.height):
        cell = WorldObj.decode(*codes[x, y].tolist())
        if cell is None:
            continue
        cell.init_pos = cell.cur_pos = (x, y)
        if isinstance(cell, Box) and contents[x, y].any():
            cell.contains = WorldObj.decode(*contents[x, y].tolist())
        grid.set(x, y, cell)
    return grid


def _inject_targets(env: Any, state: Any) -> None:
    """Set the targets of MiniGrid's classes, under each name that one of them uses."""
    env.target_pos = tuple(state.target_pos)
    env.move_pos = tuple(state.move_pos)
    env.success_pos = tuple(state.success_pos)
    env.failure_pos = tuple(state.failure_pos)
    env.target_type = env.targetType = IDX_TO_OBJECT[state.target_type]
    env.target_color = env.targetColor = IDX_TO_COLOR[state.target_color]
    env.move_type = IDX_TO_OBJECT[state.move_type]
    env.moveColor = IDX_TO_COLOR[state.move_color]
    if env.target_pos != (-1, -1):
        env.obj = env.door = env.grid.get(*env.target_pos)
    doors = {cell.color: cell for cell in env.grid.grid if cell is not None and cell.type == "door"}
    env.red_door = doors.get("red")
    env.blue_door = doors.get("blue")


def _inject_instructions(env: RoomGridLevel) -> None:
    """Replace the level's instructions by those of EnvPool's mission."""
    own = _actions(env.instrs)
    carried = env.carrying
    env.carrying = None
    # The Python level looks for the objects on the grid before it gives one to the agent.
    if carried is not None:
        free = next(i for i, cell in enumerate(env.grid.grid) if cell is None)
        env.grid.grid[free] = carried
    env.instrs = _parse(env.mission)
    parsed = _actions(env.instrs)
    if [type(action) for action in own] == [type(action) for action in parsed]:
        strict = [getattr(action, "strict", False) for action in own]
    else:
        # Levels that draw the form of their mission are strict about all actions of a kind, or
        # about none.
        kinds = {type(action) for action in own if getattr(action, "strict", False)}
        strict = [type(action) in kinds for action in parsed]
    for action, is_strict in zip(parsed, strict, strict=True):
        action.strict = is_strict
    env.instrs.reset_verifier(env)
    if carried is not None:
        env.grid.grid[free] = None
        env.carrying = carried


def _actions(instruction: Instr) -> list[Instr]:
    """Return the actions that an instruction is made of."""
    if isinstance(instruction, ActionInstr):
        return [instruction]
    return [instruction, *_actions(instruction.instr_a), *_actions(instruction.instr_b)]


def _parse(mission: str) -> Instr:
    """Return the instruction of a mission in BabyAI's grammar."""
    for connector, kind in (
        (", then ", BeforeInstr),
        (" after you ", AfterInstr),
        (" and ", AndInstr),
    ):
        first, found, second = mission.partition(connector)
        if found:
            return kind(_parse(first), _parse(second))
    for verb, kind in (("go to ", GoToInstr), ("open ", OpenInstr), ("pick up ", PickupInstr)):
        if mission.startswith(verb):
            return kind(_parse_object(mission.removeprefix(verb)))
    move, found, fixed = mission.removeprefix("put ").partition(" next to ")
    assert found, mission
    return PutNextInstr(_parse_object(move), _parse_object(fixed))


def _parse_object(text: str) -> ObjDesc:
    place = next((name for ending, name in LOCATIONS.items() if text.endswith(ending)), None)
    for ending in LOCATIONS:
        text = text.removesuffix(ending)
    _, *color, kind = text.split()
    assert not color or color[0] in COLOR_NAMES, text
    return ObjDesc(None if kind == "object" else kind, color[0] if color else None, place)
