"""Construction of one environment from the configuration of its task."""

import importlib
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any, Literal

import gymnasium as gym
import minigrid  # noqa: F401  (registers MiniGrid's and BabyAI's ids)
from gymnasium.envs import registration
from gymnasium.envs.registration import EnvSpec
from minigrid.envs.babyai.core.roomgrid_level import RoomGridLevel
from minigrid.minigrid_env import MiniGridEnv
from minigrid.wrappers import RGBImgPartialObsWrapper

from mirl.configs.compose import presets
from mirl.configs.errors import ConfigError, ContractError, nearest
from mirl.configs.imports import import_module, import_object, module_of
from mirl.configs.tasks import TaskConfig, WrapperConfig
from mirl.envs.contract.codes import UnknownCodes
from mirl.envs.contract.descriptions import name_task
from mirl.envs.spaces import ContractObservation
from mirl.envs.texts.codec import TextCodec
from mirl.envs.type_aliases import AnyEnv, Info, Observation
from mirl.envs.worlds import (  # noqa: F401  (registers MIRL's own ids)
    cart_pole,
    four_rooms,
    ode,
    point_goal,
    roles,
)

ObservationKind = Literal["grid", "rgb"]
"""Symbolic codes or pixels, for MiniGrid and BabyAI."""
RGB_TILE = 8
"""Pixels per cell and side; a view of 7×7 cells becomes 56×56 pixels."""

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
"""Modules that register ids when they are imported, by the prefix of the id."""
_PIP_TARGETS = {
    "gymnasium_robotics": '"mirl[robotics]"',
    "metaworld": '"mirl[robotics]"',
    "mujoco": '"gymnasium[mujoco]"',
    "Box2D": '"gymnasium[box2d]"',
    "ale_py": "ale-py",
    "networkx": '"minigrid[wfc]"',
    "imageio": '"minigrid[wfc]"',
}
"""Argument of ``pip install`` for a missing package, if it is not the name of the package."""
_REFUSED_WRAPPERS = {
    "RecordVideo": "MIRL records videos itself",
    "Monitor": "MIRL records episodes itself",
    "HumanRendering": "MIRL records videos itself",
    "ArrayConversion": "observations are NumPy arrays",
}
"""Wrappers of Gymnasium that a configuration cannot use, because they write files, open windows or
take modules as arguments, each with the reason why it is not needed here."""
_MUJOCO_MODULES = ("gymnasium.envs.mujoco", "gymnasium_robotics.", "mirl.envs.worlds.metaworld")
"""Modules of environments that MuJoCo renders."""
_DISPLAY_VARIABLES = ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY")
"""Environment variables; MuJoCo needs one of them for rendering on Linux."""


def make_env(
    task: TaskConfig,
    task_index: int = 0,
    n_tasks: int = 1,
    observation: ObservationKind = "grid",
    render_mode: str | None = None,
    texts: TextCodec | None = None,
    unknown_codes: UnknownCodes = "error",
) -> ContractObservation:
    """Return one environment of a task under the observation contract.

    Args:
        task: the task.
        task_index: index of the task in its suite.
        n_tasks: number of tasks in the suite.
        observation: ``grid`` for the environment's own observation, ``rgb`` for MiniGrid's pixels.
        render_mode: render mode of Gymnasium; None for no rendering.
        texts: conversion of the texts; None for the defaults of ``ContractObservation``.
        unknown_codes: handling of unknown codes, see ``ContractObservation``.

    Raises:
        ConfigError: if the id is unknown, a package is missing, the environment does not take
            the keyword arguments, or its observation space is not supported.
    """
    env = _make(task, render_mode)
    env = without_prints(env)
    for wrapper in task.wrappers:
        env = _wrap(env, wrapper, task)
    if observation == "rgb":
        if not isinstance(env.unwrapped, MiniGridEnv):
            raise ConfigError(
                f"task '{task.name}': observation=rgb renders MiniGrid and BabyAI ids, not "
                f"{task.env_id}; use observation=grid"
            )
        env = RGBImgPartialObsWrapper(env, tile_size=RGB_TILE)  # type: ignore[no-untyped-call]
    try:
        if texts is None:
            return ContractObservation(
                env, task_index, n_tasks, unknown_codes=unknown_codes, task_key=True
            )
        return ContractObservation(
            env,
            task_index,
            n_tasks,
            texts.vocabulary,
            texts.length,
            text_form=texts.form,
            unknown_codes=unknown_codes,
            task_key=True,
        )
    except ContractError as error:
        raise ContractError(f"{name_task(task)}: {error}") from None


def check_reset(env: ContractObservation, task: TaskConfig) -> Observation:
    """Return a first observation, or raise an error, for example if a package is missing.

    Args:
        env: the environment.
        task: its task, for the error message.

    Raises:
        ContractError: if the environment returns a value that does not match its spaces.
        ConfigError: if a package is missing, or a task with keyword arguments fails.
    """
    with _failure_as_config_error(task, "cannot start with"):
        observation, _ = env.reset(seed=0)
    return observation


def find_spec(task: TaskConfig) -> EnvSpec:
    """Return the registration of a task's id.

    Args:
        task: the task. ``module:Id`` imports the module, if it may be imported.

    Raises:
        ConfigError: if the id is not registered, its package is missing, or its module may not be
            imported.
    """
    module = module_of(task.env_id)
    # Without the module, because Gymnasium would import whatever is before a colon.
    env_id = task.env_id.rpartition(":")[2]
    if task.env_id.count(":") > 1:
        raise ConfigError(
            f"task '{task.name}': env_id must look like 'my_package:Name-v0', got '{task.env_id}'"
        )
    if module is not None:
        import_module(module, task.env_id, f"task '{task.name}': ")
    try:
        for beginning, plugin in _PLUGINS.items():
            if env_id.startswith(beginning):
                # gymnasium-robotics prints news when it is imported, in every process.
                with redirect_stderr(StringIO()):
                    importlib.import_module(plugin)
                break
        return _registered(env_id)
    except (ImportError, gym.error.DependencyNotInstalled) as error:
        raise _missing_package(task, error) from error
    except gym.error.UnregisteredEnv as error:
        raise _unknown_id(task, module, env_id) from error
    except gym.error.DeprecatedEnv as error:
        raise ConfigError(f"task '{task.name}': {error}") from error
    except gym.error.Error as error:  # an id that cannot be parsed
        raise ConfigError(
            f"task '{task.name}': env_id must look like 'Name-v0', got '{env_id}'"
        ) from error


def is_game(task: TaskConfig) -> bool:
    """Return True if a task is an agent of a game, whose agents only step together.

    Args:
        task: the task.

    Raises:
        ConfigError: as in ``find_spec``.
    """
    # Gymnasium allows an id to have vectorized environments only.
    return find_spec(task).entry_point is None


def _unknown_id(task: TaskConfig, module: str | None, env_id: str) -> ConfigError:
    """Return an error about an unregistered id."""
    start = f"task '{task.name}': "
    if module is None:
        return ConfigError(
            f"{start}no environment is registered as '{env_id}'."
            f"{nearest(env_id, {*gym.registry, *presets('task')})} An environment of your own is "
            f"named with the module that registers it: my_package:{env_id}"
        )
    own = [spec.id for spec in gym.registry.values() if _is_of(spec, module)]
    hint = nearest(env_id, own or gym.registry)
    if not hint:
        hint = " Ids are registered by gymnasium.register(id=…, entry_point=…)."
    return ConfigError(f"{start}module '{module}' does not register '{env_id}'.{hint}")


def _is_of(spec: EnvSpec, module: str) -> bool:
    """Return True if an environment is defined in the package of a module."""
    package = module.partition(".")[0]
    return defining_module(spec).partition(".")[0] == package


def defining_module(spec: EnvSpec) -> str:
    """Return the module in which an environment is defined.

    Args:
        spec: the registration of the environment.
    """
    if isinstance(spec.entry_point, str):
        return spec.entry_point.partition(":")[0]
    return str(getattr(spec.entry_point, "__module__", ""))


def _registered(env_id: str) -> EnvSpec:
    """Return the registration of an id; without a version, the latest one, like gym.make."""
    namespace, name, version = registration.parse_env_id(env_id)
    if version is None and env_id not in gym.registry:
        version = registration.find_highest_version(namespace, name)
        env_id = registration.get_env_id(namespace, name, version)
    return gym.spec(env_id)


def _wrap(env: AnyEnv, wrapper: WrapperConfig, task: TaskConfig) -> AnyEnv:
    """Wrap an environment in one of the wrappers of its task."""
    start = f"task '{task.name}': "
    wrapper_class = import_object(wrapper.wrapper, f"{start}wrappers: ")
    if not isinstance(wrapper_class, type) or not issubclass(wrapper_class, gym.Wrapper):
        raise ConfigError(
            f"{start}wrappers: expected a class derived from gymnasium.Wrapper, got "
            f"{wrapper.wrapper}"
        )
    for base in wrapper_class.__mro__:
        is_library = base.__module__.startswith(("gymnasium.", "stable_baselines3."))
        if is_library and base.__name__ in _REFUSED_WRAPPERS:
            raise ConfigError(
                f"{start}wrappers: {wrapper.wrapper} cannot be used here, because "
                f"{_REFUSED_WRAPPERS[base.__name__]}; leave it out"
            )
    try:
        return wrapper_class(env, **wrapper.kwargs)
    except Exception as error:
        raise ConfigError(
            f"{start}wrapper {wrapper.wrapper} rejected kwargs={wrapper.kwargs}: {error}; "
            f"change wrappers=[{{wrapper: {wrapper.wrapper}, kwargs: {{…}}}}]"
        ) from error


def _make(task: TaskConfig, render_mode: str | None) -> AnyEnv:
    spec = find_spec(task)
    if is_game(task):
        raise ConfigError(
            f"task '{task.name}': {task.env_id} is a game, whose agents only step together, so "
            "that no environment can be made of one; train and evaluate a suite of all agents"
        )
    # Not every environment takes render_mode, so it is passed only when it is needed.
    render_kwargs: dict[str, Any] = {}
    if render_mode is not None:
        render_kwargs["render_mode"] = render_mode
    if render_mode == "rgb_array":
        _check_can_render(task, spec)
    with _failure_as_config_error(task, "rejected"), warnings.catch_warnings():
        # An older version in a configuration is intended, to compare with results on it.
        warnings.filterwarnings("ignore", message=r".*is out of date", category=DeprecationWarning)
        # The contract checks the spaces; Gymnasium's checker would warn in each environment.
        return gym.make(spec, disable_env_checker=True, **render_kwargs, **task.kwargs)


def _check_can_render(task: TaskConfig, spec: EnvSpec) -> None:
    """Raise an error if MuJoCo would have to render without a display.

    MuJoCo itself fails only at the first frame, and at the second attempt ends the whole process.
    """
    has_display = any(os.environ.get(name) for name in _DISPLAY_VARIABLES)
    module = defining_module(spec)
    if module.startswith(_MUJOCO_MODULES) and sys.platform == "linux" and not has_display:
        raise ConfigError(
            f"task '{task.name}': MuJoCo cannot render without a display; set the environment "
            "variable MUJOCO_GL to egl (on a GPU) or osmesa (on a CPU)"
        )


@contextmanager
def _failure_as_config_error(task: TaskConfig, failed: str) -> Iterator[None]:
    """Raise a ``ConfigError`` if the environment of a task fails.

    ``failed`` is the verb of the error message: what the environment did with its kwargs.
    """
    try:
        yield
    except (ImportError, gym.error.DependencyNotInstalled) as error:
        raise _missing_package(task, error) from error
    except ContractError:
        raise
    except Exception as error:
        # Without keyword arguments the mistake is not in the configuration.
        if not task.kwargs:
            raise
        raise ConfigError(
            f"task '{task.name}': {task.env_id} {failed} kwargs={task.kwargs}: {error}; "
            "change kwargs"
        ) from error


def _missing_package(task: TaskConfig, error: Exception) -> ConfigError:
    """Return an error that names the package to install."""
    module = getattr(error, "name", None) or getattr(error.__cause__, "name", None)
    if module is None:  # Gymnasium's own message names the package
        return ConfigError(
            f"task '{task.name}': {task.env_id} needs a package that is missing: {error}"
        )
    package = module.partition(".")[0]
    pip_target = _PIP_TARGETS.get(package, package)
    return ConfigError(
        f"task '{task.name}': {task.env_id} needs '{module}'; pip install {pip_target}"
    )


def without_prints(env: AnyEnv) -> AnyEnv:
    """Return an environment whose resets print nothing; one of BabyAI's gets a wrapper for it.

    Args:
        env: any environment.
    """
    # RoomGridLevel is the base class of BabyAI's levels.
    return _QuietReset(env) if isinstance(env.unwrapped, RoomGridLevel) else env


class _QuietReset(gym.Wrapper[Any, Any, Any, Any]):
    """Wrapper that discards what BabyAI prints: a line for each layout that it rejects.

    Thousands of these lines would bury a progress bar.
    """

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Any, Info]:
        with redirect_stdout(None):
            return self.env.reset(seed=seed, options=options)
