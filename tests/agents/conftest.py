"""Fixtures for tiny runs: at most a few seconds of training, in a folder of the test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import tiny_runs

from mirl.configs.compose import compose_train
from mirl.configs.schema import TrainConfig

if TYPE_CHECKING:  # at run time the networks must not be imported before pytest is configured
    from mirl.agents import A2C, PPO
    from mirl.envs import SuiteVecEnv

TINY = (
    "agent.n_envs=4",  # few enough to be stepped in this process
    "agent.n_steps=32",
    "total_timesteps=512",
    "evaluation.episodes=4",
    "evaluation.max_steps=20",
    *tiny_runs.NETWORK,
    "progress=false",
    "device=cpu",
    "precision=fp32",  # which auto takes depends on the machine
    "videos=false",  # a third of the time
    "evaluation.context_use=false",  # it would take as long again
)
Build = Callable[..., TrainConfig]


@pytest.fixture(scope="session")
def tiny_in() -> Callable[..., TrainConfig]:
    """``tiny_in(folder, *words)``: a tiny configuration of four iterations of 128 timesteps."""

    def build(folder: Path, *words: str) -> TrainConfig:
        batch = () if "agent=a2c" in words else ("agent.batch_size=64", "agent.n_epochs=2")
        return compose_train([*TINY, *batch, f"runs_dir={folder}", *words])

    return build


@pytest.fixture
def tiny(tmp_path: Path, tiny_in: Build) -> Build:
    """``tiny(*words)``: a tiny configuration whose runs live in ``tmp_path``."""
    return lambda *words: tiny_in(tmp_path, *words)


@pytest.fixture
def make_agent() -> Iterator[Callable[[TrainConfig], PPO | A2C]]:
    """``make_agent(config)``: an untrained agent; its environments are closed after the test."""
    from mirl.agents.builder import build_agent, resolve_auto
    from mirl.envs import SuiteVecEnv

    opened: list[SuiteVecEnv] = []

    def make(config: TrainConfig) -> PPO | A2C:
        env = SuiteVecEnv(
            config.task, config.agent.n_envs, backend=config.backend, seed=config.seed
        )
        opened.append(env)
        return build_agent(resolve_auto(config, env.observation_space), env)

    yield make
    for env in opened:
        env.close()
