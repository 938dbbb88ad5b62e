"""A run from its configuration to its last checkpoint, as a recipe."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext
from typing import Any, NamedTuple

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import HParam, Logger

from mirl.agents.builder import Agent, build_agent, resolve_auto
from mirl.agents.callbacks.checkpointing import Checkpointing
from mirl.agents.callbacks.evaluation import Evaluation
from mirl.agents.callbacks.progress import ProgressBar
from mirl.agents.callbacks.schedule import stop_signals
from mirl.agents.callbacks.statistics import ObservationStatistics, OffPolicyLogger, TaskStatistics
from mirl.agents.faults import NonFiniteError, explain_out_of_memory
from mirl.agents.on_policy.a2c import A2C
from mirl.agents.on_policy.ppo import PPO
from mirl.agents.runs import metric_names as metrics
from mirl.agents.runs.checkpoint import (
    checkpoint_name,
    delete_checkpoints_after,
    latest_valid_checkpoint,
    load_agent,
)
from mirl.agents.runs.logger import build_logger
from mirl.agents.runs.run import open_run, run_lock
from mirl.agents.runs.synchronization import reseed_all
from mirl.agents.runs.warm_start import warm_start
from mirl.configs.errors import RunError
from mirl.configs.schema import TrainConfig
from mirl.envs import SuiteVecEnv
from mirl.policies import count_parameters

TIMESTEPS_PER_ROW = 1_000
"""Timesteps between two rows of the log, per ``log_every``, where an iteration is only a few timesteps."""
MIN_VALIDATION_ENVS = 4
"""Environments that evaluate at least; an off-policy agent often trains in a single one."""


class TrainResult(NamedTuple):
    """How a run stands after ``train``."""

    timesteps: int
    finished: bool


def train(config: TrainConfig, say: Callable[[str], None] = lambda _: None) -> TrainResult:
    """Train, or resume the run of this configuration; stop after the iteration on Ctrl-C or SIGTERM.

    :param say: is told in a line what starts, once nothing can be wrong with the configuration any more.
    :raises ConfigError: before anything is written, when the environments or the device cannot be had.
    """
    n_tasks, n_envs = len(config.trained_tasks), config.agent.n_envs
    slots = min(config.evaluation.episodes * n_tasks, max(n_envs, MIN_VALIDATION_ENVS, n_tasks))
    shared: dict[str, Any] = {
        "backend": config.backend,
        "seed": config.seed,
        "holdout": config.split,
        "max_restarts": config.max_restarts,
        "timeout": config.env_timeout,
        "restart_non_finite": config.on_fault == "skip",
    }
    with (
        explain_out_of_memory(config),
        ExitStack() as stack,
        closing(SuiteVecEnv(config.task, n_envs, sampling=config.sampling, **shared)) as env,
        closing(SuiteVecEnv(config.task, slots, seed_split="validation", **shared)) as validation,
        closing(_held_out(config, slots // n_tasks, shared))
        if config.split.holds_out_any
        else nullcontext() as held_out,
    ):
        for unseen in (validation, held_out):
            if unseen is not None and unseen.rejects:
                unseen.reset()  # tells before anything is written if what is wanted never comes
        config = resolve_auto(config, env.observation_space)
        agent = build_agent(config, env)
        checkpoints = config.run_dir / "checkpoints"
        if config.start_from is not None and not any(checkpoints.glob("step_*")):
            warm_start(agent.policy, config.start_from)
        continued = open_run(config)
        stack.enter_context(run_lock(config.run_dir))
        episodes: Mapping[str, Any] = {}
        if continued and (last := latest_valid_checkpoint(checkpoints)) is not None:
            episodes = load_agent(last, agent)
            delete_checkpoints_after(checkpoints, agent.num_timesteps)
            reseed_all(agent)
        start = f"Resuming at {agent.num_timesteps:,} of" if agent.num_timesteps else "Training for"
        precision = agent.precision if isinstance(agent, PPO | A2C) else "fp32"
        where = f"{agent.device} ({precision}) and {env.backend}"
        say(f"{start} {config.total_timesteps:,} timesteps on {where}: {config.run_dir}")
        return _learn(config, agent, validation, held_out, episodes if continued else None)


def _held_out(config: TrainConfig, slots_per_task: int, shared: dict[str, Any]) -> SuiteVecEnv:
    slots = slots_per_task * len(config.split.task_indices(config.task, "held_out"))
    return SuiteVecEnv(config.task, slots, seed_split="validation", subset="held_out", **shared)


def _learn(
    config: TrainConfig,
    agent: Agent,
    validation: SuiteVecEnv,
    held_out: SuiteVecEnv | None,
    continued: Mapping[str, Any] | None,
) -> TrainResult:
    """Learn to the end; ``continued`` holds the last episodes of the run that goes on, if one does."""
    start = agent.num_timesteps
    if start >= config.total_timesteps:
        return TrainResult(start, finished=True)
    logger, board = build_logger(config.run_dir, resumed_at=None if continued is None else start)
    agent.set_logger(logger)
    if not start:
        _log_hyperparameters(config, logger, count_parameters(agent.policy))
    tasks = tuple(task.name for task in config.task.tasks)
    on_policy = isinstance(agent, PPO | A2C)
    rows = (
        TaskStatistics(tasks)
        if on_policy
        else OffPolicyLogger(tasks, TIMESTEPS_PER_ROW * config.log_every)
    )
    rows.load(continued or {})
    with stop_signals() as asked_to_stop:
        evaluation = Evaluation(config, validation, held_out)
        checkpointing = Checkpointing(config, board, rows, evaluation, asked_to_stop)
        callbacks: list[BaseCallback] = [rows, ObservationStatistics(), evaluation, checkpointing]
        bar = ProgressBar(config.total_timesteps)
        if config.progress:
            callbacks.append(bar)
        if isinstance(rows, OffPolicyLogger):
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
                    kept = str(
                        error.save(config.run_dir / "faults" / checkpoint_name(agent.num_timesteps))
                    )
                except OSError as full:
                    kept = f"could not be kept, {full}"
                raise RunError(f"{error}. What was learned from: {kept}") from error
    return TrainResult(checkpointing.saved_at, finished=not checkpointing.stopping)


def _log_hyperparameters(config: TrainConfig, logger: Logger, parameters: int) -> None:
    flat = dict(_flatten(config.model_dump(mode="json")))
    shown = {metrics.EVAL_SUCCESS: 0.0, metrics.EVAL_RETURN: 0.0}
    logger.record("hparams", HParam({**flat, "parameters": parameters}, shown), exclude=("csv",))
    logger.record("model/parameters", parameters)
    logger.dump(0)


def _flatten(
    values: dict[str, Any], prefix: str = ""
) -> Sequence[tuple[str, bool | int | float | str]]:
    flat: list[tuple[str, bool | int | float | str]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            flat += _flatten(value, f"{prefix}{key}.")
        else:
            flat.append(
                (prefix + key, value if isinstance(value, bool | int | float | str) else str(value))
            )
    return flat
