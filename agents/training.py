"""A run from its configuration to its last checkpoint, as a recipe."""

from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from typing import Any, NamedTuple

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import HParam, Logger

from mirl.agents import metrics
from mirl.agents.algorithms import A2C, PPO
from mirl.agents.building import build_agent
from mirl.agents.callbacks import Checkpointing, Evaluation, ProgressBar, TaskStatistics, stop_signals
from mirl.agents.checkpoint import find_checkpoint, forget_later_checkpoints, load_agent
from mirl.agents.run_directory import open_run
from mirl.configs.schema import TrainConfig
from mirl.envs import SuiteVecEnv
from mirl.policies import count_parameters


class Outcome(NamedTuple):
    """How a run stands after ``train``."""

    timesteps: int
    finished: bool


def train(config: TrainConfig, say: Callable[[str], None] = lambda _: None) -> Outcome:
    """Train, or resume the run of this configuration; stop after the iteration on Ctrl-C or SIGTERM.

    :param say: is told in a line what starts, once nothing can be wrong with the configuration any more.
    :raises ConfigError: before anything is written, when the environments or the device cannot be had.
    """
    slots = min(config.evaluation.episodes * len(config.task.tasks), config.agent.n_envs)
    with (
        closing(SuiteVecEnv(config.task, config.agent.n_envs, backend=config.backend, seed=config.seed)) as env,
        closing(
            SuiteVecEnv(config.task, slots, backend=config.backend, seed=config.seed, split="validation")
        ) as validation,
    ):
        agent = build_agent(config, env)
        continued = open_run(config)
        if continued and (config.run_dir / "checkpoints" / "index.json").exists():
            load_agent(find_checkpoint(config.run_dir / "checkpoints", "last"), agent)
            forget_later_checkpoints(config.run_dir / "checkpoints", agent.num_timesteps)
        start = f"Resuming at {agent.num_timesteps:,} of" if agent.num_timesteps else "Training for"
        where = f"{agent.device} ({agent.precision}) and {env.backend}"
        say(f"{start} {config.total_timesteps:,} timesteps on {where}: {config.run_dir}")
        return _learn(config, agent, validation, continued)


def _learn(config: TrainConfig, agent: PPO | A2C, validation: SuiteVecEnv, continued: bool) -> Outcome:
    start = agent.num_timesteps
    if start >= config.total_timesteps:
        return Outcome(start, finished=True)
    logger, board = metrics.build_logger(config.run_dir, resumed_at=start if continued else None)
    agent.set_logger(logger)
    if not start:
        _log_hyperparameters(config, logger, count_parameters(agent.policy))
    with stop_signals() as asked_to_stop:
        checkpointing = Checkpointing(config, validation.suite, board, asked_to_stop)
        callbacks: list[BaseCallback] = [
            TaskStatistics(tuple(task.name for task in config.task.tasks)),
            Evaluation(config, validation),
            checkpointing,
        ]
        bar = ProgressBar(config.total_timesteps)
        if config.progress:
            callbacks.append(bar)
        with closing(logger), bar.progress if config.progress else nullcontext():
            agent.learn(
                config.total_timesteps - start,
                callback=callbacks,
                log_interval=config.log_every,
                reset_num_timesteps=start == 0,
            )
    return Outcome(checkpointing.saved_at, finished=not checkpointing.stopping)


def _log_hyperparameters(config: TrainConfig, logger: Logger, parameters: int) -> None:
    flat = dict(_flatten(config.model_dump(mode="json")))
    shown = {metrics.EVAL_SUCCESS: 0.0, metrics.EVAL_RETURN: 0.0}
    logger.record("hparams", HParam({**flat, "parameters": parameters}, shown), exclude=("csv",))
    logger.record("model/parameters", parameters)
    logger.dump(0)


def _flatten(values: dict[str, Any], prefix: str = "") -> Sequence[tuple[str, bool | int | float | str]]:
    flat: list[tuple[str, bool | int | float | str]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            flat += _flatten(value, f"{prefix}{key}.")
        else:
            flat.append((prefix + key, value if isinstance(value, bool | int | float | str) else str(value)))
    return flat
