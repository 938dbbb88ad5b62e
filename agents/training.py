"""A run from its configuration to its last checkpoint, as a recipe."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext
from typing import Any, NamedTuple

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import HParam, Logger

from mirl.agents import metrics
from mirl.agents.algorithms import A2C, PPO
from mirl.agents.building import Agent, build_agent, fitted
from mirl.agents.callbacks import (
    Checkpointing,
    Evaluation,
    ObservationStatistics,
    OffPolicyRows,
    ProgressBar,
    TaskStatistics,
    stop_signals,
)
from mirl.agents.checkpoint import forget_later_checkpoints, load_agent, newest_intact, step_name
from mirl.agents.faults import NonFiniteError, memory_told
from mirl.agents.importing import start_from
from mirl.agents.run_directory import only_process, open_run
from mirl.agents.synchronising import synchronise
from mirl.configs.errors import RunError
from mirl.configs.schema import TrainConfig
from mirl.envs import SuiteVecEnv
from mirl.policies import count_parameters

ROW = 1_000
"""Timesteps between two rows of the log, per ``log_every``, where an iteration is only a few timesteps."""
VALIDATION_SLOTS = 4
"""Environments that evaluate at least; an off-policy agent often trains in a single one."""


class Outcome(NamedTuple):
    """How a run stands after ``train``."""

    timesteps: int
    finished: bool


def train(config: TrainConfig, say: Callable[[str], None] = lambda _: None) -> Outcome:
    """Train, or resume the run of this configuration; stop after the iteration on Ctrl-C or SIGTERM.

    :param say: is told in a line what starts, once nothing can be wrong with the configuration any more.
    :raises ConfigError: before anything is written, when the environments or the device cannot be had.
    """
    n_tasks, n_envs = len(config.trained_tasks), config.agent.n_envs
    slots = min(config.evaluation.episodes * n_tasks, max(n_envs, VALIDATION_SLOTS, n_tasks))
    shared: dict[str, Any] = {
        "backend": config.backend,
        "seed": config.seed,
        "withheld": config.split,
        "max_restarts": config.max_restarts,
        "timeout": config.env_timeout,
        "restart_non_finite": config.on_fault == "skip",
    }
    with (
        memory_told(config),
        ExitStack() as stack,
        closing(SuiteVecEnv(config.task, n_envs, sampling=config.sampling, **shared)) as env,
        closing(SuiteVecEnv(config.task, slots, split="validation", **shared)) as validation,
        closing(_held_out(config, slots // n_tasks, shared)) if config.split.withholds else nullcontext() as held_out,
    ):
        for unseen in (validation, held_out):
            if unseen is not None and unseen.draws_again:
                unseen.reset()  # tells before anything is written if what is wanted never comes
        config = fitted(config, env.observation_space)
        agent = build_agent(config, env)
        checkpoints = config.run_dir / "checkpoints"
        if config.start_from is not None and not any(checkpoints.glob("step_*")):
            start_from(agent.policy, config.start_from)
        continued = open_run(config)
        stack.enter_context(only_process(config.run_dir))
        episodes: Mapping[str, Any] = {}
        if continued and (last := newest_intact(checkpoints)) is not None:
            episodes = load_agent(last, agent)
            forget_later_checkpoints(checkpoints, agent.num_timesteps)
            synchronise(agent)
        start = f"Resuming at {agent.num_timesteps:,} of" if agent.num_timesteps else "Training for"
        precision = agent.precision if isinstance(agent, PPO | A2C) else "fp32"
        where = f"{agent.device} ({precision}) and {env.backend}"
        say(f"{start} {config.total_timesteps:,} timesteps on {where}: {config.run_dir}")
        return _learn(config, agent, validation, held_out, episodes if continued else None)


def _held_out(config: TrainConfig, slots_per_task: int, shared: dict[str, Any]) -> SuiteVecEnv:
    slots = slots_per_task * len(config.split.tasks_of(config.task, "held_out"))
    return SuiteVecEnv(config.task, slots, split="validation", part="held_out", **shared)


def _learn(
    config: TrainConfig,
    agent: Agent,
    validation: SuiteVecEnv,
    held_out: SuiteVecEnv | None,
    continued: Mapping[str, Any] | None,
) -> Outcome:
    """Learn to the end; ``continued`` holds the last episodes of the run that goes on, if one does."""
    start = agent.num_timesteps
    if start >= config.total_timesteps:
        return Outcome(start, finished=True)
    logger, board = metrics.build_logger(config.run_dir, resumed_at=None if continued is None else start)
    agent.set_logger(logger)
    if not start:
        _log_hyperparameters(config, logger, count_parameters(agent.policy))
    tasks = tuple(task.name for task in config.task.tasks)
    on_policy = isinstance(agent, PPO | A2C)
    rows = TaskStatistics(tasks) if on_policy else OffPolicyRows(tasks, ROW * config.log_every)
    rows.load(continued or {})
    with stop_signals() as asked_to_stop:
        evaluation = Evaluation(config, validation, held_out)
        checkpointing = Checkpointing(config, board, rows, evaluation, asked_to_stop)
        callbacks: list[BaseCallback] = [rows, ObservationStatistics(), evaluation, checkpointing]
        bar = ProgressBar(config.total_timesteps)
        if config.progress:
            callbacks.append(bar)
        if isinstance(rows, OffPolicyRows):
            callbacks.append(rows.clock)
        with closing(logger), bar.progress if config.progress else nullcontext():
            try:
                agent.learn(
                    config.total_timesteps - start,
                    callback=callbacks,
                    log_interval=config.log_every if on_policy else None,  # type: ignore[arg-type]  # SB3 takes None
                    reset_num_timesteps=start == 0,
                )
            except NonFiniteError as error:
                try:
                    kept = str(error.save(config.run_dir / "faults" / step_name(agent.num_timesteps)))
                except OSError as full:
                    kept = f"could not be kept, {full}"
                raise RunError(f"{error}. What was learned from: {kept}") from error
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
