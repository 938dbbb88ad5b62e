"""Tests of the construction of single environments."""

from typing import Any

import gymnasium as gym
import pytest
import toy_envs  # noqa: F401  (registers its ids)

from mirl.configs.errors import ConfigError
from mirl.configs.tasks import TaskConfig
from mirl.envs import make_env, make_vec_env
from mirl.envs.make import find_spec


def make_task(env_id: str, **kwargs: Any) -> TaskConfig:
    return TaskConfig(name="task", env_id=env_id, kwargs=kwargs)


def test_unknown_id_suggests_a_name() -> None:
    message = r"'MiniGrid-GoToDor-5x5-v0'.*Did you mean 'MiniGrid-GoToDoor-5x5-v0'"
    with pytest.raises(ConfigError, match=message):
        make_env(make_task("MiniGrid-GoToDor-5x5-v0"))


def test_malformed_id_is_an_error() -> None:
    with pytest.raises(ConfigError, match="must look like 'Name-v0', got '!!'"):
        make_env(make_task("!!"))


@pytest.mark.parametrize("env_id", ["MIRL/ODE-v0", "MIRL/ReachCell-v0", "MIRL/ReachPicture-v0"])
def test_own_ids_are_registered(env_id: str) -> None:
    """MIRL's own ids are registered without another import."""
    assert find_spec(make_task(env_id)).id == env_id


@pytest.mark.parametrize("env_id", ["MiniGrid-Empty-5x5-v0", "CartPole-v1"])
def test_rejected_kwargs_are_named(env_id: str) -> None:
    """Keyword arguments that the environment does not take are named."""
    with pytest.raises(ConfigError, match=rf"{env_id} rejected kwargs=.*'sise'"):
        make_env(make_task(env_id, sise=3))


def test_kwargs_reach_the_environment() -> None:
    assert make_env(make_task("MiniGrid-Empty-5x5-v0", size=7)).unwrapped.width == 7


@pytest.mark.parametrize(
    ("env_id", "error", "pip_target"),
    [
        (
            "FetchReach-v4",
            ModuleNotFoundError(name="gymnasium_robotics"),
            r'pip install "mirl\[robotics\]"',
        ),
        (
            "Meta-World/MT1",
            ModuleNotFoundError(name="metaworld"),
            r'pip install "mirl\[robotics\]"',
        ),
    ],
)
def test_missing_plugin_names_the_package(
    env_id: str, error: ImportError, pip_target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An id whose plugin is missing is an error that says what to install."""

    def refuse(name: str) -> None:
        raise error

    monkeypatch.setattr("mirl.envs.make.importlib.import_module", refuse)
    with pytest.raises(ConfigError, match=pip_target):
        make_env(make_task(env_id))


def test_missing_dependency_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing dependency of an environment is an error that says what to install."""

    def refuse(*_: Any, **__: Any) -> None:
        raise ModuleNotFoundError("No module named 'networkx'", name="networkx")

    monkeypatch.setattr(gym, "make", refuse)
    with pytest.raises(ConfigError, match=r'pip install "minigrid\[wfc\]"'):
        make_env(make_task("MiniGrid-WFC-MazeSimple-v0"))


def test_missing_package_at_first_reset() -> None:
    """A package that is missing at the first reset is reported at construction."""
    message = r"ToyLazy-v0 needs a package that is missing: .*pip install klingon"
    with pytest.raises(ConfigError, match=message):
        make_vec_env("ToyLazy-v0", 8)


def test_rgb_needs_a_grid() -> None:
    """observation=rgb of an environment without a grid is an error."""
    message = "observation=rgb renders MiniGrid and BabyAI ids, not CartPole-v1"
    with pytest.raises(ConfigError, match=message):
        make_env(make_task("CartPole-v1"), observation="rgb")


def test_rejected_layouts_are_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """The lines that BabyAI prints about rejected layouts are discarded."""
    env = make_env(make_task("BabyAI-PutNextS7N4-v0"))
    for seed in range(30):
        env.reset(seed=seed)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("env_id", ["Meta-World/reach-v3", "FetchReach-v4", "PointMaze_UMaze-v3"])
def test_mujoco_needs_a_display(env_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rendering MuJoCo without a display is an error that says which variable to set."""
    pytest.importorskip("metaworld")
    for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    message = r"MuJoCo cannot render without a display; set .* MUJOCO_GL to egl"
    with pytest.raises(ConfigError, match=message):
        make_env(make_task(env_id), render_mode="rgb_array")


def test_grid_renders_without_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    env = make_env(make_task("MiniGrid-Empty-5x5-v0"), render_mode="rgb_array")
    env.reset(seed=0)
    assert env.render().ndim == 3  # type: ignore[union-attr]
