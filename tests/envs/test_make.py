"""Tests of the construction of single environments."""

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import toy_envs  # noqa: F401  (registers its ids)

from mirl.configs import imports
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


OWN_MODULE = """
import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv
from stable_baselines3.common.monitor import Monitor

class Own(CartPoleEnv): ...

class Wrap(gym.Wrapper):
    def __init__(self, env, scale=1):
        super().__init__(env)
        self.scale = scale

    def step(self, action):
        observation, reward, *rest = self.env.step(action)
        return observation, self.scale * reward, *rest

class OwnVideo(gym.wrappers.RecordVideo): ...
class OwnMonitor(Monitor): ...

NoWrapper = dict
gym.register("Space/Own-v0", entry_point=Own)
gym.register("Space/Own-v1", entry_point=f"{__name__}:Own")
gym.register("Unversioned", entry_point=Own)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return the name of a module that registers environments, which is not imported yet."""
    monkeypatch.setattr(imports, "_allowed", set())
    monkeypatch.setattr(imports, "_imported", {})
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(gym.envs.registration, "registry", dict(gym.registry))
    monkeypatch.setattr(gym, "registry", gym.envs.registration.registry)
    name = f"own_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(OWN_MODULE)
    yield name
    sys.modules.pop(name, None)


@pytest.mark.parametrize("env_id", ["Space/Own-v0", "Space/Own-v1", "Space/Own", "Unversioned"])
def test_id_may_name_its_module(own: str, env_id: str) -> None:
    """Whatever ``gym.make`` takes is taken, without a word about versions."""
    imports.allow_imports(own)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = make_env(make_task(f"{own}:{env_id}"))
    assert type(env.unwrapped).__module__ == own


def test_task_may_not_import(own: str) -> None:
    """A task that was not typed by a user, such as a file's, imports nothing."""
    with pytest.raises(ConfigError, match=rf"names code of '{own}', .* add import={own}"):
        make_env(make_task(f"{own}:Space/Own-v0"))
    assert own not in sys.modules


def test_argument_may_import(own: str) -> None:
    """An id that is an argument of ``make_vec_env`` imports its module."""
    env = make_vec_env(f"{own}:Unversioned", 2)
    assert own in sys.modules
    env.close()


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("{own}:Space/Onw-v0", "does not register 'Space/Onw-v0'. Did you mean 'Space/Own-v0'?"),
        ("{own}:Space/Own-v7", "does not register 'Space/Own-v7'. Did you mean 'Space/Own-v"),
        ("{own}:a:b", "env_id must look like 'my_package:Name-v0'"),
        ("{own}x:Own-v0", "there is no module '{own}x' on PYTHONPATH or in the current folder."),
        ("Space/Own-v0", "no environment is registered .* my_package:Space/Own-v0"),
        ("CarRacing-v2", "v2 for `CarRacing` is deprecated. Please use `CarRacing-v3` instead"),
        ("Goto_door", "Did you mean 'goto_door'?"),
    ],
)
def test_unknown_id_says_where(own: str, env_id: str, message: str) -> None:
    imports.allow_imports(own, f"{own}x")
    with pytest.raises(ConfigError, match=message.format(own=own)) as caught:
        make_env(make_task(env_id.format(own=own)))
    assert "\n" not in str(caught.value)


def wrapped_task(*wrappers: Any, env_id: str = "MiniGrid-Empty-5x5-v0") -> TaskConfig:
    return TaskConfig(name="task", env_id=env_id, wrappers=wrappers)


def test_wrappers_are_applied_in_order(own: str) -> None:
    imports.allow_imports(own)
    scaled = {"wrapper": f"{own}:Wrap", "kwargs": {"scale": 3}}
    env = make_env(wrapped_task(f"{own}:Wrap", scaled, env_id=f"{own}:Unversioned"))
    assert env.get_wrapper_attr("scale") == 3
    assert env.reset(seed=0)
    assert env.step(0)[1] == 3.0


def test_wrapped_grid_has_code_bounds() -> None:
    """The whole grid in MiniGrid's codes is no picture."""
    env = make_env(wrapped_task("minigrid.wrappers:FullyObsWrapper"))
    space = env.observation_space["image"]
    assert space.shape == (5, 5, 3)
    assert space.high.max() < 255
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)


@pytest.mark.parametrize(
    ("wrapper", "message"),
    [
        ("{own}:NoWrapper", "expected a class derived from gymnasium.Wrapper, got {own}:NoWrapper"),
        ("os:system", "expected a class derived from gymnasium.Wrapper, got os:system"),
        ("{own}:gym.Wrapper", "only a module or a class can hold 'Wrapper'"),
        ("{own}:Warp", "has no 'Warp'. Did you mean 'Wrap'?"),
        ("gymnasium.wrappers:RecordVideo", "cannot be used here, because MIRL records videos"),
        ("gymnasium.wrappers:HumanRendering", "cannot be used here"),
        ("{own}:OwnVideo", "cannot be used here, because MIRL records videos"),
        ("{own}:OwnMonitor", "cannot be used here, because MIRL records episodes"),
        (
            "stable_baselines3.common.monitor:Monitor",
            "cannot be used here, because MIRL records episodes",
        ),
        ("gymnasium.wrappers:JaxToNumpy", "cannot be (used here|loaded)"),
        ("gymnasium.wrappers:TimeLimit", "TimeLimit rejected kwargs={{}}.*; change wrappers="),
        ("not_allowed:Wrap", "'not_allowed:Wrap' names code of 'not_allowed'"),
    ],
)
def test_unfit_wrapper_is_refused(own: str, wrapper: str, message: str) -> None:
    imports.allow_imports(own)
    with pytest.raises(ConfigError, match=message.format(own=own)) as caught:
        make_env(wrapped_task(wrapper.format(own=own)))
    assert str(caught.value).startswith("task 'task': ")
    assert "\n" not in str(caught.value)


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
