"""From a task's configuration to one environment, and from what can go wrong to one message."""

import importlib
import os
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any, Literal

import gymnasium as gym
import minigrid  # noqa: F401  (registers MiniGrid's and BabyAI's ids)
from gymnasium.envs.registration import EnvSpec
from minigrid.envs.babyai.core.roomgrid_level import RoomGridLevel
from minigrid.minigrid_env import MiniGridEnv
from minigrid.wrappers import RGBImgPartialObsWrapper

from mirl.configs.errors import ConfigError, nearest
from mirl.configs.tasks import TaskConfig
from mirl.envs.spaces import ContractObservation
from mirl.envs.worlds import ode  # noqa: F401  (register our own ids)

ObservationKind = Literal["grid", "rgb"]
RGB_TILE = 8
"""Pixels per cell and side; a view of 7×7 cells becomes 56×56 pixels."""

# Packages whose ids exist only once they are imported, by the beginning of the id.
_PLUGINS = {
    "Fetch": "gymnasium_robotics",
    "HandManipulate": "gymnasium_robotics",
    "HandReach": "gymnasium_robotics",
    "PointMaze": "gymnasium_robotics",
    "AntMaze": "gymnasium_robotics",
    "AdroitHand": "gymnasium_robotics",
    "FrankaKitchen": "gymnasium_robotics",
    "Meta-World/": "mirl.envs.worlds.metaworld",
}
# What to install for a module that is missing, where it is not the module's own name.
_INSTALLS = {
    "gymnasium_robotics": '"mirl[robotics]"',
    "metaworld": '"mirl[robotics]"',
    "mujoco": '"gymnasium[mujoco]"',
    "Box2D": '"gymnasium[box2d]"',
    "ale_py": "ale-py",
    "networkx": '"minigrid[wfc]"',
    "imageio": '"minigrid[wfc]"',
}
# Where the environments live that MuJoCo renders.
_MUJOCO_MODULES = ("gymnasium.envs.mujoco", "gymnasium_robotics.", "mirl.envs.worlds.metaworld")


def make_env(
    task: TaskConfig,
    task_index: int = 0,
    n_tasks: int = 1,
    observation: ObservationKind = "grid",
    render_mode: str | None = None,
) -> gym.Env[Any, Any]:
    """One environment of a task under the observation contract.

    Raises:
        ConfigError: the id is unknown, a package is missing, or the environment refuses the keyword arguments.
    """
    env = _make(task, render_mode)
    if isinstance(env.unwrapped, RoomGridLevel):
        env = _QuietReset(env)
    if observation == "rgb":
        if not isinstance(env.unwrapped, MiniGridEnv):
            raise ConfigError(
                f"task '{task.name}': observation=rgb renders MiniGrid and BabyAI ids, not {task.env_id}"
            )
        env = RGBImgPartialObsWrapper(env, tile_size=RGB_TILE)  # type: ignore[no-untyped-call]
    return ContractObservation(env, task_index, n_tasks)


def check_starts(env: gym.Env[Any, Any], task: TaskConfig) -> None:
    """Raise a ConfigError if an environment misses a package that it imports at its first reset only."""
    try:
        env.reset(seed=0)
    except (ImportError, gym.error.DependencyNotInstalled) as error:
        raise _missing_package(task, error) from error
    except Exception as error:
        if not task.kwargs:
            raise
        raise ConfigError(
            f"task '{task.name}': {task.env_id} cannot start with kwargs={task.kwargs}: {error}"
        ) from error


def find_spec(task: TaskConfig) -> gym.envs.registration.EnvSpec:
    """The registration of a task's id.

    Raises:
        ConfigError: nobody registered it; names the nearest id that is, or the package to install.
    """
    plugin = next(
        (module for beginning, module in _PLUGINS.items() if task.env_id.startswith(beginning)),
        None,
    )
    try:
        if plugin:
            with redirect_stderr(
                StringIO()
            ):  # gymnasium-robotics prints news at its import, in every process
                importlib.import_module(plugin)
        return gym.spec(task.env_id)
    except (ImportError, gym.error.DependencyNotInstalled) as error:
        raise _missing_package(task, error) from error
    except gym.error.UnregisteredEnv as error:
        raise ConfigError(
            f"task '{task.name}': no environment is registered as '{task.env_id}'.{nearest(task.env_id, gym.registry)}"
        ) from error
    except gym.error.Error as error:  # an id that does not parse
        raise ConfigError(
            f"task '{task.name}': env_id must look like 'Name-v0', got '{task.env_id}'"
        ) from error


def _make(task: TaskConfig, render_mode: str | None) -> gym.Env[Any, Any]:
    spec = find_spec(task)
    if render_mode == "rgb_array":
        _check_can_draw(task, spec)
    render: dict[str, Any] = (
        {} if render_mode is None else {"render_mode": render_mode}
    )  # not every environment has the argument
    try:
        with warnings.catch_warnings():
            # A configuration names an older version on purpose: to compare with results on it.
            warnings.filterwarnings(
                "ignore", message=r".*is out of date", category=DeprecationWarning
            )
            return gym.make(spec, disable_env_checker=True, **render, **task.kwargs)
    except (ImportError, gym.error.DependencyNotInstalled) as error:
        raise _missing_package(task, error) from error
    except Exception as error:
        if not task.kwargs:
            raise
        raise ConfigError(
            f"task '{task.name}': {task.env_id} refused kwargs={task.kwargs}: {error}"
        ) from error


def _check_can_draw(task: TaskConfig, spec: EnvSpec) -> None:
    # Left to itself, MuJoCo fails without a display only when it draws, and ends the whole process the second time.
    module = (
        spec.entry_point
        if isinstance(spec.entry_point, str)
        else getattr(spec.entry_point, "__module__", "")
    )
    has_context = any(os.environ.get(name) for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"))
    if module.startswith(_MUJOCO_MODULES) and sys.platform == "linux" and not has_context:
        raise ConfigError(
            f"task '{task.name}': MuJoCo cannot draw without a display; set the environment variable MUJOCO_GL to egl "
            "(on a GPU) or osmesa (on a processor)"
        )


def _missing_package(task: TaskConfig, error: Exception) -> ConfigError:
    module = getattr(error, "name", None) or getattr(error.__cause__, "name", None)
    if module is None:  # Gymnasium's own message already says what to install
        return ConfigError(
            f"task '{task.name}': {task.env_id} needs a package that is missing: {error}"
        )
    package = module.partition(".")[0]
    install = _INSTALLS.get(package, package)
    return ConfigError(f"task '{task.name}': {task.env_id} needs '{module}'; pip install {install}")


class _QuietReset(gym.Wrapper[Any, Any, Any, Any]):
    """BabyAI prints a line for each layout it rejects; thousands of them would bury a progress bar."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        with redirect_stdout(None):
            return self.env.reset(seed=seed, options=options)
