"""Tests of the choice of the backend."""

import importlib
from typing import Any

import pytest
from suites import EMPTY, single_task

from mirl.configs.errors import ConfigError
from mirl.configs.tasks import SuiteConfig, TaskConfig
from mirl.envs import SuiteVecEnv, choose_backend, make_vec_env
from mirl.envs.pools.backend import Restarts
from mirl.envs.pools.selection import MAX_IN_PROCESS_ENVS, make_workers


def hide_envpool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the import of EnvPool fail."""
    import_module = importlib.import_module

    def refuse(name: str, *arguments: Any) -> Any:
        if name == "envpool":
            raise ImportError("No module named 'envpool'")
        return import_module(name, *arguments)

    monkeypatch.setattr("mirl.envs.pools.envpool.importlib.import_module", refuse)


def test_auto_prefers_envpool() -> None:
    """Auto chooses EnvPool if it can step every task."""
    env = make_vec_env([EMPTY, "BabyAI-GoToLocal-v0"], 2)
    assert env.backend == "envpool"
    env.close()


@pytest.mark.parametrize(
    "suite",
    [
        single_task("CartPole-v1"),
        single_task(EMPTY, kwargs={"size": 6}),
        single_task(EMPTY, wrappers=("minigrid.wrappers:FullyObsWrapper",)),
        single_task("MiniGrid-MultiRoom-N4-S5-v1"),
        single_task(EMPTY).model_copy(update={"observation": "rgb"}),
        single_task(EMPTY, success="info"),
    ],
    ids=["other id", "kwargs", "wrappers", "unknown to envpool", "rgb", "success in the info"],
)
def test_auto_falls_back_to_gymnasium(suite: SuiteConfig) -> None:
    """Auto chooses Gymnasium for a suite that EnvPool cannot step; envpool is an error then."""
    env = SuiteVecEnv(suite, 1)
    assert env.backend == "gymnasium"
    env.close()
    with pytest.raises(ConfigError, match="backend=envpool cannot step suite 'suite'"):
        SuiteVecEnv(suite, 1, backend="envpool")


def test_auto_works_without_envpool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Auto chooses Gymnasium if EnvPool is not installed."""
    hide_envpool(monkeypatch)
    env = make_vec_env(EMPTY, 1)
    assert env.backend == "gymnasium"
    env.close()


def test_missing_envpool_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error about a missing EnvPool says what to install."""
    hide_envpool(monkeypatch)
    with pytest.raises(ConfigError, match=r'pip install "mirl\[fast\]"'):
        make_vec_env(EMPTY, 1, backend="envpool")


def test_envpool_does_not_step_metaworld() -> None:
    """EnvPool's Meta-World has other rewards, so it is not chosen."""
    task = TaskConfig(name="task", env_id="Meta-World/reach-v3", success="any_step")
    suite = SuiteConfig(name="suite", tasks=(task,))
    assert choose_backend(suite, "auto") == "gymnasium"
    with pytest.raises(ConfigError, match="rewards"):
        choose_backend(suite, "envpool")


def test_workers_need_many_environments() -> None:
    """Without a number, worker processes are used only for many environments on Gymnasium."""
    restarts = Restarts()
    assert make_workers("gymnasium", MAX_IN_PROCESS_ENVS, None, restarts, 1.0) is None
    assert make_workers("gymnasium", MAX_IN_PROCESS_ENVS + 1, None, restarts, 1.0) is not None
    assert make_workers("envpool", 100, 2, restarts, 1.0) is None
    assert make_workers("gymnasium", 100, 0, restarts, 1.0) is None
    with pytest.raises(ConfigError, match="workers must be at least 0, got -1"):
        make_workers("envpool", 100, -1, restarts, 1.0)
