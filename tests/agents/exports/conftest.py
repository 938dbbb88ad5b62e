"""Fixtures of the tests of exports: untrained runs whose weights are random."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mirl.configs.schema import TrainConfig

Build = Callable[..., TrainConfig]


@pytest.fixture(scope="session")
def run_of(tmp_path_factory: pytest.TempPathFactory, tiny_in: Build) -> Callable[..., Path]:
    """``run_of(*words)``: a run with one checkpoint, whose random weights depend on the context.

    The first word may be ``sac``, ``td3``, ``tqc`` or ``dqn``, for a toy task with goals.
    """
    # imported here, because the networks must not be imported before pytest is configured
    import torch
    from off_policy_setup import tiny_off_policy
    from run_setup import start_run

    from mirl.agents.builder import build_agent
    from mirl.envs import SuiteVecEnv

    folder = tmp_path_factory.mktemp("runs")
    made: dict[tuple[str, ...], Path] = {}

    def build(*words: str) -> Path:
        if words not in made:
            if words and words[0] in ("sac", "td3", "tqc", "dqn"):
                config = tiny_off_policy(folder, words[0], f"name={words[0]}", *words[1:])
            else:
                config = tiny_in(folder, *words)
            run = start_run(config)
            env = SuiteVecEnv(run.config.task, run.config.agent.n_envs, backend=run.config.backend)
            try:
                agent = build_agent(run.config, env)
                with torch.no_grad():
                    for weight in agent.policy.parameters():
                        weight.add_(0.1 * torch.randn_like(weight))
                run.save_checkpoint(agent, score=1.0)
            finally:
                env.close()
            made[words] = run.config.run_dir
        return made[words]

    return build
