"""Training: a run from its configuration to its last checkpoint."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import HParam, Logger

from mirl.agents.builder import Agent, build_agent, resolve_auto, with_input_keys
from mirl.agents.callbacks.checkpointing import Checkpointing
from mirl.agents.callbacks.evaluation import Evaluation
from mirl.agents.callbacks.progress import ProgressBar, ProgressLines
from mirl.agents.callbacks.schedule import stop_signals
from mirl.agents.callbacks.selection import SuccessNotice
from mirl.agents.callbacks.statistics import ObservationStatistics, OffPolicyLogger, TaskStatistics
from mirl.agents.faults import NonFiniteError, explain_out_of_memory
from mirl.agents.on_policy.a2c import A2C
from mirl.agents.on_policy.ppo import PPO
from mirl.agents.runs import metric_names as metrics
from mirl.agents.runs.checkpoint import Checkpoint, EpisodeRecords, checkpoint_name
from mirl.agents.runs.choices import adopt_choices
from mirl.agents.runs.logger import build_logger
from mirl.agents.runs.run import Run, adopt_texts
from mirl.agents.runs.synchronization import reseed_all
from mirl.agents.runs.warm_start import warm_start
from mirl.configs.agents import OnPolicyConfig, PPOConfig
from mirl.configs.errors import ConfigError, RunError
from mirl.configs.parts import check_can_be_stored
from mirl.configs.schema import ResolvedConfig, TrainConfig
from mirl.envs import SuiteVecEnv
from mirl.policies import count_parameters
from mirl.policies.routing import describe

TIMESTEPS_PER_ROW = 1_000
"""Timesteps between two rows of an off-policy algorithm's log, times ``log_every``."""
MIN_VALIDATION_ENVS = 4
"""Smallest number of validation environments; an off-policy agent often trains in a single one."""

Scalar = bool | int | float | str


class TrainResult(NamedTuple):
    """The state of a run after ``train``."""

    timesteps: int
    """Timesteps of the last checkpoint."""
    finished: bool
    """True if the run has reached its total timesteps, False if it was stopped."""
    run: Run
    checkpoint: Checkpoint
    """The last checkpoint."""


@dataclass(frozen=True)
class Environments:
    """The environments of a run."""

    training: SuiteVecEnv
    validation: SuiteVecEnv
    held_out: SuiteVecEnv | None
    """Validation environments of the held-out subset, if the run holds anything out."""


# ------------------------------------------------------------------------------------------- recipe


def train(
    config: TrainConfig,
    log: Callable[[str], None] = lambda _: None,
    report: Callable[[int, float], bool] = lambda _timesteps, _score: False,
) -> TrainResult:
    """Train a run, or resume it; stop after the current iteration on Ctrl-C or SIGTERM.

    Args:
        config: the configuration of the run.
        log: called with two lines when training begins, once the configuration is known to work,
            or with one if the run is finished, with one more if a run is trained for longer than
            before, with one when a task turns out to report no success, with one if videos take
            long, and with one per evaluation and, with ``progress``, per row of the log unless a
            progress bar is shown, which needs a terminal.
        report: called with the timesteps and the score of each evaluation, by which the best
            checkpoint is selected; True stops the run as a signal does.

    Returns:
        The state of the run.

    Raises:
        ConfigError: the environments or the device are not available, or the run directory belongs
            to another configuration, an environment shows that an option does not fit it, or the
            class of a part was defined in a script; nothing of a new run is left then.
        RunError: training failed; the checkpoints are kept.
    """
    for part in (config.fusion, config.context, config.encoder, config.memory):
        check_can_be_stored(part)
    stored = Run.stored(config)
    config = _with_rollout(adopt_texts(config, stored), stored)
    with explain_out_of_memory(config), _open_environments(config) as envs:
        # from here on the configuration is complete; nothing is written before the agent is built
        config = config.model_copy(update={"task": envs.training.suite})
        resolved = resolve_auto(config, envs.training.observation_space)
        resolved = adopt_choices(config, resolved, stored)
        agent = build_agent(resolved, envs.training)
        run = _create_or_resume(resolved, agent, envs.training, stored)
        with _discard_on_config_error(run), run.lock():
            checkpoint = run.latest_valid_checkpoint()
            episodes = _load(run, checkpoint, agent)
            # everything that can be known to be wrong with the configuration has been checked
            if checkpoint is not None and agent.num_timesteps >= resolved.total_timesteps:
                log(
                    f"{run.path} is finished, with {agent.num_timesteps:,} timesteps; to train it "
                    "further, give a larger total_timesteps=…"
                )
                return TrainResult(agent.num_timesteps, True, run, checkpoint)
            log(_first_line(run, agent, envs.training.backend))
            log(_describe(resolved, envs.training))
            if stored is not None and resolved.total_timesteps > stored.total_timesteps:
                run.store_length(stored)
                log(_longer_line(resolved, stored.total_timesteps, agent.num_timesteps))
            return _learn(run, agent, envs, episodes, log, report)


def _with_rollout(config: TrainConfig, stored: ResolvedConfig | None) -> TrainConfig:
    """Return the configuration with a rollout that fits a short run.

    A run that exists keeps its own rollout, whatever its length and the defaults are now.
    """
    agent = config.agent
    if not isinstance(agent, PPOConfig):
        return config
    if stored is not None and isinstance(stored.agent, PPOConfig):
        fitted = agent.with_rollout_of(stored.agent)
    else:
        fitted = agent.fit_rollout(config.total_timesteps, len(config.trained_tasks))
    return config.model_copy(update={"agent": fitted})


@contextmanager
def _discard_on_config_error(run: Run) -> Iterator[None]:
    """Leave nothing of a new run if an environment shows that its configuration is invalid."""
    try:
        yield
    except ConfigError:
        run.discard()
        raise


@contextmanager
def _open_environments(config: TrainConfig) -> Iterator[Environments]:
    """Open training and validation environments; close them on exit."""
    n_tasks = len(config.trained_tasks)
    n_envs = config.agent.n_envs
    # at least one per task, and no more than there are episodes to play
    n_validation_envs = min(
        config.evaluation.episodes * n_tasks, max(n_envs, MIN_VALIDATION_ENVS, n_tasks)
    )
    # options that all environments of the run share
    build = partial(
        SuiteVecEnv,
        backend=config.backend,
        seed=config.seed,
        holdout=config.split,
        max_restarts=config.max_restarts,
        timeout=config.env_timeout,
        restart_non_finite=config.on_fault == "skip",
    )
    build_validation = partial(
        build, seed_split="validation", max_steps=config.evaluation.max_steps or "auto"
    )
    with (
        closing(build(config.task, n_envs=n_envs, sampling=config.sampling)) as training,
        # the suite of the first has the words and the length of the texts that were drawn
        closing(build_validation(training.suite, n_envs=n_validation_envs)) as validation,
    ):
        if not config.split.holds_out_any:
            _check_episodes_exist(validation)
            yield Environments(training, validation, held_out=None)
            return
        # as many environments per task as for validation
        n_held_out_tasks = len(config.split.task_indices(config.task, "held_out"))
        n_held_out_envs = n_validation_envs // n_tasks * n_held_out_tasks
        held_out = build_validation(training.suite, n_envs=n_held_out_envs, subset="held_out")
        with closing(held_out):
            _check_episodes_exist(validation)
            _check_episodes_exist(held_out)
            yield Environments(training, validation, held_out)


def _check_episodes_exist(env: SuiteVecEnv) -> None:
    """Raise, before anything is written, if no episode is on the wanted side of the holdout."""
    if env.rejects:
        env.reset()


def _create_or_resume(
    config: ResolvedConfig, agent: Agent, env: SuiteVecEnv, stored: ResolvedConfig | None
) -> Run:
    """Open the run for training; load initial weights if it has no checkpoint yet."""
    complete = partial(with_input_keys, observation_space=env.observation_space)
    run = Run.find(config, complete, stored)
    has_checkpoints = run is not None and not run.checkpoints.is_empty
    # a run that has a checkpoint resumes from it instead
    if config.start_from is not None and not has_checkpoints:
        warm_start(agent.policy, config.start_from)
    return run or Run.create(config)


def _load(run: Run, checkpoint: Checkpoint | None, agent: Agent) -> EpisodeRecords:
    """Load a checkpoint into the agent; return the last episodes of each task."""
    if checkpoint is None:
        return {}
    episodes = checkpoint.load_agent(agent)
    # a run that was killed may have saved checkpoints that it does not resume from
    run.checkpoints.delete_after(agent.num_timesteps)
    # as the run did after saving this checkpoint, so that it continues the same way
    reseed_all(agent)
    return episodes


def _first_line(run: Run, agent: Agent, backend: str) -> str:
    start = "Training for"
    if agent.num_timesteps:
        start = f"Resuming at {agent.num_timesteps:,} of"
    precision = agent.precision if isinstance(agent, PPO | A2C) else "fp32"
    total = f"{run.config.total_timesteps:,} timesteps"
    return f"{start} {total} on {agent.device} ({precision}) and {backend}: {run.path}"


def _longer_line(config: ResolvedConfig, timesteps_before: int, reached: int) -> str:
    """Return one line about a run that is trained for longer than it was to be."""
    total = config.total_timesteps
    line = f"Longer than before: {total:,} timesteps in place of {timesteps_before:,}."
    if not isinstance(config.agent, OnPolicyConfig) or not config.agent.anneal:
        return line
    # that of a run which was to be as long from the start
    rate = config.agent.learning_rate * (1 - reached / total)
    return f"{line} The learning rate goes on at {rate:.2g} and falls to zero at the new end."


def _describe(config: ResolvedConfig, env: SuiteVecEnv) -> str:
    """Return one line: what is seen, what is asked, and where the two are fused."""
    assert isinstance(env.observation_space, spaces.Dict), "the observation contract is a Dict"
    seen_and_asked = describe(config.network, env.observation_space)
    line = f"{seen_and_asked} Fusion: {config.fusion.kind} ({', '.join(config.sites)})."
    if "heads" in config.sites and not config.fusion.fits_heads:
        line += f" Warning: {config.fusion.kind} is unfit for the heads; leave them out of sites=."
    return line


# ----------------------------------------------------------------------------------------- learning


def _learn(
    run: Run,
    agent: Agent,
    envs: Environments,
    episodes: EpisodeRecords,
    log: Callable[[str], None],
    report: Callable[[int, float], bool],
) -> TrainResult:
    """Learn to the end, or until a signal or ``report`` stops it; save the last checkpoint."""
    config = run.config
    start = agent.num_timesteps
    logger, tensorboard = build_logger(run.path, resumed_at=None if run.is_new else start)
    agent.set_logger(logger)
    if not start:  # a resumed run has logged them
        _log_hyperparameters(config, logger, count_parameters(agent.policy))
    is_on_policy = isinstance(agent, PPO | A2C)
    notice = SuccessNotice(config, log)
    statistics = _build_statistics(config, is_on_policy, notice)
    statistics.load(episodes)
    # from here on the first signal ends learning in order, with a checkpoint
    with stop_signals() as stop_requested:
        bar = ProgressBar(config.total_timesteps)
        shows_bar = config.progress and bar.progress.console.is_terminal
        evaluation = Evaluation(
            run, envs.validation, envs.held_out, notice, None if shows_bar else log, report
        )
        checkpointing = Checkpointing(run, tensorboard, statistics, evaluation, stop_requested, log)
        # statistics first and checkpoints after the evaluation; the timer must come last
        callbacks: list[BaseCallback] = [
            statistics,
            ObservationStatistics(),
            evaluation,
            checkpointing,
        ]
        display: AbstractContextManager[object] = nullcontext()
        if shows_bar:
            callbacks.append(bar)
            display = bar.progress
        elif config.progress:
            callbacks.append(ProgressLines(config.total_timesteps, _row_interval(config), log))
        if isinstance(statistics, OffPolicyLogger):
            callbacks.append(statistics.timer)
        # OffPolicyLogger writes the log itself
        log_interval = config.log_every if is_on_policy else None
        with closing(logger), display:
            try:
                agent.learn(
                    config.total_timesteps - start,
                    callback=callbacks,
                    log_interval=log_interval,  # type: ignore[arg-type]
                    # SB3 would count and anneal from zero again
                    reset_num_timesteps=start == 0,
                )
            except NonFiniteError as error:
                raise _with_evidence(error, run, agent) from error
    assert checkpointing.last_saved is not None, "learning ends with a checkpoint or an error"
    return TrainResult(
        timesteps=checkpointing.saved_at,
        finished=not checkpointing.is_stopping,
        run=run,
        checkpoint=checkpointing.last_saved,
    )


def _build_statistics(
    config: ResolvedConfig, is_on_policy: bool, notice: SuccessNotice
) -> TaskStatistics:
    tasks = [task.name for task in config.task.tasks]
    if is_on_policy:
        return TaskStatistics(tasks, notice)
    return OffPolicyLogger(tasks, _row_interval(config), notice)


def _row_interval(config: ResolvedConfig) -> int:
    """Return the timesteps between two rows of the log."""
    if isinstance(config.agent, OnPolicyConfig):
        return config.agent.rollout_size * config.log_every
    return TIMESTEPS_PER_ROW * config.log_every


def _with_evidence(error: NonFiniteError, run: Run, agent: Agent) -> RunError:
    """Save the evidence of a failure; return an error that names its folder."""
    folder = run.path / "faults" / checkpoint_name(agent.num_timesteps)
    try:
        saved = str(error.save(folder))
    except OSError as write_error:
        saved = f"cannot be written, {write_error}"
    return RunError(f"{error}. The tensors that caused it: {saved}")


# --------------------------------------------------------------------------------- hyperparameters


def _log_hyperparameters(config: ResolvedConfig, logger: Logger, n_parameters: int) -> None:
    options = dict(_flatten(config.model_dump(mode="json")))
    # TensorBoard compares runs by these metrics; their values are logged later
    shown = {metrics.EVAL_SUCCESS: 0.0, metrics.EVAL_RETURN: 0.0}
    hyperparameters = HParam({**options, "parameters": n_parameters}, shown)
    logger.record("hparams", hyperparameters, exclude=("csv",))
    logger.record("model/parameters", n_parameters)
    logger.dump(0)


def _flatten(options: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, Scalar]]:
    """Yield options by dotted names; values that TensorBoard does not take become strings."""
    for key, value in options.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        elif isinstance(value, Scalar):
            yield prefix + key, value
        else:
            yield prefix + key, str(value)
