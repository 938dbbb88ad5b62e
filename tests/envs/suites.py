"""Suites that several test modules use."""

from importlib.util import find_spec
from typing import Any

import gymnasium as gym
import minigrid  # noqa: F401  (registers its ids)
import toy_envs  # noqa: F401  (registers its ids)

from mirl.configs.schema import BackendName
from mirl.configs.tasks import SuiteConfig, TaskConfig

BACKENDS: tuple[BackendName, ...] = ("gymnasium", "envpool")

COUNTER = "ToyCounter-v0"
FRAGILE = "ToyFragile-v0"
EMPTY = "MiniGrid-Empty-5x5-v0"

MINIGRID_IDS = sorted(
    name
    for name in gym.registry
    if name.startswith(("MiniGrid-", "BabyAI-"))
    and ("-WFC-" not in name or find_spec("imageio"))  # these ids need an extra
)
"""Every id of MiniGrid and BabyAI."""

FORWARD = 2
DONE = 6
"""MiniGrid's action that ends every episode of GoToDoor."""
SOLUTION = (2, 2, 1, 2, 2)
"""Actions that reach the goal of ``EMPTY``: twice forward, right, twice forward."""

GRIDS = SuiteConfig(
    name="suite",
    tasks=(
        TaskConfig(name="doors", env_id="MiniGrid-GoToDoor-5x5-v0"),
        TaskConfig(name="empty", env_id="MiniGrid-Empty-Random-5x5-v0"),
        TaskConfig(name="local", env_id="BabyAI-GoToLocalS5N2-v0"),
    ),
)
"""Three tasks with grids and missions."""

DOORS = SuiteConfig(
    name="doors",
    tasks=tuple(
        TaskConfig(name=size, env_id=f"MiniGrid-GoToDoor-{size}-v0")
        for size in ("5x5", "6x6", "8x8")
    ),
)
"""Three tasks with one mission per color."""


def single_task(env_id: str, **fields: Any) -> SuiteConfig:
    """Return a suite with one task named ``toy``."""
    return SuiteConfig(name="suite", tasks=(TaskConfig(name="toy", env_id=env_id, **fields),))


def counters(n_tasks: int) -> SuiteConfig:
    """Return a suite of counters; see ``toy_envs.CounterEnv``."""
    tasks = tuple(
        TaskConfig(name=f"task{i}", env_id=COUNTER, success="reward") for i in range(n_tasks)
    )
    return SuiteConfig(name="counters", tasks=tasks)


def fragile(n_tasks: int = 1, **kwargs: Any) -> SuiteConfig:
    """Return a suite of environments that can fail; see ``toy_envs.FragileEnv``."""
    tasks = tuple(
        TaskConfig(name=f"task{i}", env_id=FRAGILE, kwargs=kwargs, success="reward")
        for i in range(n_tasks)
    )
    return SuiteConfig(name="fragile", tasks=tasks)


def choices(*counts: int, **kwargs: Any) -> SuiteConfig:
    """Return a suite of tasks with these numbers of actions; see ``toy_envs.ChoiceEnv``."""
    tasks = tuple(
        TaskConfig(
            name=f"task{i}",
            env_id="ToyChoice-v0",
            kwargs={"n_actions": n, **kwargs},
            success="reward",
        )
        for i, n in enumerate(counts)
    )
    return SuiteConfig(name="choices", tasks=tasks)
