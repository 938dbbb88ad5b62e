"""Training: a run from its configuration to its last checkpoint."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback

from mirl.agents.builder import (
    Agent,
    build_agent,
    resolve_auto,
    resolve_device,
    with_input_keys,
)
from mirl.agents.callbacks.checkpointing import Checkpointing
from mirl.agents.callbacks.evaluation import Evaluation
from mirl.agents.callbacks.progress import ProgressBar, ProgressLines
from mirl.agents.callbacks.schedule import stop_signals
from mirl.agents.callbacks.selection import SuccessNotice
from mirl.agents.callbacks.statistics import ObservationStatistics, OffPolicyLogger, TaskStatistics
from mirl.agents.faults import NonFiniteError, explain_out_of_memory
from mirl.agents.off_policy import has_goal_keys
from mirl.agents.on_policy.a2c import A2C
from mirl.agents.on_policy.ppo import PPO
from mirl.agents.runs.checkpoint import Checkpoint, EpisodeRecords, checkpoint_name
from mirl.agents.runs.choices import adopt_choices
from mirl.agents.runs.dashboard import RunDescription
from mirl.agents.runs.logger import RunLogger, build_logger
from mirl.agents.runs.ranks import ONE_PROCESS, Ranks
from mirl.agents.runs.run_directory import RunDirectory, adopt_texts
from mirl.agents.runs.synchronization import reseed_all
from mirl.agents.runs.trackers import flatten
from mirl.agents.runs.warm_start import warm_start
from mirl.configs.agents import OffPolicyConfig, OnPolicyConfig, PPOConfig
from mirl.configs.compose import check_loggers
from mirl.configs.errors import ConfigError, RunError, reported_by_first_process
from mirl.configs.parts import check_can_be_stored
from mirl.configs.schema import ResolvedConfig, TrainConfig
from mirl.envs import SuiteVecEnv
from mirl.policies import count_parameters
from mirl.policies.routing import describe

TIMESTEPS_PER_ROW = 1_000
"""Timesteps per row of an off-policy algorithm's log if ``log_every`` is 1."""
MIN_VALIDATION_ENVS = 4
"""Smallest number of validation environments; an off-policy agent often trains in a single one."""


class TrainResult(NamedTuple):
    """The state of a run after ``train``."""

    timesteps: int
    """Timesteps of the last checkpoint."""
    finished: bool
    """True if the run has reached its total timesteps, False if it was stopped."""
    run: RunDirectory
    checkpoint: Checkpoint
    """The last checkpoint."""
    ranks: Ranks = ONE_PROCESS
    """The processes that trained; the first one reports."""


@dataclass(frozen=True)
class Environments:
    """The environments of a run."""

    training: SuiteVecEnv
    validation: SuiteVecEnv | None
    """Validation environments; None on the ranks that do not evaluate."""
    held_out: SuiteVecEnv | None
    """Validation environments of the held-out subset, if the run holds anything out."""


# ------------------------------------------------------------------------------------------- recipe


def train(
    config: TrainConfig,
    log: Callable[[str], None] = lambda _: None,
    report: Callable[[int, float], bool] = lambda _timesteps, _score: False,
) -> TrainResult:
    """Train a run, or resume it; stop after the current iteration on Ctrl-C or SIGTERM.

    The processes of ``torchrun`` train it together, with the environments divided among them.

    Args:
        config: the configuration of the run.
        log: called once per line. There are two lines when training begins, once the configuration
            is known to work, or one if the run is finished; one more if a run is trained for longer
            than before; one when a task turns out to report no success; one if videos take long;
            one per evaluation; and, with ``progress``, one per row of the log unless a progress bar
            is shown, which needs a terminal.
        report: called with the timesteps and the score of each evaluation, by which the best
            checkpoint is selected; True stops the run as a signal does.

    Returns:
        The state of the run.

    Raises:
        ConfigError: the environments or the device are not available, the run directory belongs to
            another configuration, an environment shows that an option does not fit it, or the class
            of a part was defined in a script; a new run leaves no files behind in these cases.
        RunError: training failed; the checkpoints are kept.
    """
    with reported_by_first_process():
        ranks = Ranks.from_environment(resolve_device(config.device))
    with ranks.one_error():
        ranks.wait()  # so that no rank fails while another one is still joining
        return _train(config, log if ranks.is_first else lambda _: None, report, ranks)


def _train(
    config: TrainConfig,
    log: Callable[[str], None],
    report: Callable[[int, float], bool],
    ranks: Ranks,
) -> TrainResult:
    check_loggers(config.logger)
    for part in (config.fusion, config.context, config.encoder, config.memory):
        check_can_be_stored(part)
    stored = RunDirectory.stored(config)
    config = _with_rollout(adopt_texts(config, stored), stored)
    check_divisible(config, ranks)
    with explain_out_of_memory(config), _open_environments(config, ranks) as envs:
        # from here on the configuration is complete; nothing is written before the agent is built
        config = config.model_copy(update={"task": envs.training.suite})
        resolved = resolve_auto(config, envs.training.observation_space)
        resolved = adopt_choices(config, resolved, stored)
        agent = build_agent(resolved, envs.training, ranks)
        run = _create_or_resume(resolved, agent, envs.training, stored, ranks)
        with _opened_for_writing(run, ranks):
            checkpoint = _latest_checkpoint(run, ranks)
            episodes = _load(run, checkpoint, agent, ranks)
            # by now, every check of the configuration has passed
            if checkpoint is not None and agent.num_timesteps >= resolved.total_timesteps:
                log(
                    f"{run.path} is finished, with {agent.num_timesteps:,} timesteps; to train it "
                    "further, give a larger total_timesteps=…"
                )
                return TrainResult(agent.num_timesteps, True, run, checkpoint, ranks)
            log(_first_line(run, agent, envs.training.backend))
            if checkpoint is not None and checkpoint.n_ranks != ranks.size:
                log(_ranks_line(checkpoint.n_ranks, ranks.size))
            log(_describe(resolved, envs.training, agent))
            if stored is not None and resolved.total_timesteps > stored.total_timesteps:
                if ranks.is_first:
                    run.store_length(stored)
                log(_longer_line(resolved, stored.total_timesteps, agent.num_timesteps))
            return _learn(run, agent, envs, episodes, log, report, ranks)


def check_divisible(config: TrainConfig, ranks: Ranks) -> None:
    """Check that the environments can be divided among the processes.

    Args:
        config: the configuration of a run.
        ranks: the processes that train it.

    Raises:
        ConfigError: they cannot, or the algorithm does not support several processes.
    """
    if ranks.size == 1:
        return
    if not isinstance(config.agent, OnPolicyConfig):
        raise ConfigError(
            f"several processes train with agent=ppo or agent=a2c, got agent={config.agent.kind} "
            f"and torchrun's {ranks.size} processes; start one"
        )
    n_envs = config.agent.n_envs
    smallest = ranks.size * len(config.trained_tasks)
    if n_envs % ranks.size or n_envs < smallest:
        nearest_multiple = max(round(n_envs / ranks.size) * ranks.size, smallest)
        raise ConfigError(
            f"agent.n_envs must be a multiple of torchrun's {ranks.size} processes, with an "
            f"environment per task in each of them, got {n_envs}; use for example "
            f"agent.n_envs={nearest_multiple}"
        )


def _with_rollout(config: TrainConfig, stored: ResolvedConfig | None) -> TrainConfig:
    """Return the configuration with a rollout that fits a short run.

    An existing run keeps its own rollout, whatever its length and the defaults are now.
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
def _discard_on_config_error(run: RunDirectory) -> Iterator[None]:
    """Remove a new run if an environment shows that its configuration is invalid."""
    try:
        yield
    except ConfigError:
        run.discard()
        raise


@contextmanager
def _opened_for_writing(run: RunDirectory, ranks: Ranks) -> Iterator[None]:
    """Lock the run directory, and discard a new run whose configuration is invalid.

    One process does so for all.
    """
    if ranks.is_first:
        with _discard_on_config_error(run), run.lock():
            yield
    else:
        yield


def _latest_checkpoint(run: RunDirectory, ranks: Ranks) -> Checkpoint | None:
    """Return the newest checkpoint that is not damaged, the same one on each rank."""
    checkpoint: Checkpoint | None = None
    if ranks.is_first:
        checkpoint = run.latest_valid_checkpoint()
    name = ranks.gather_objects(checkpoint and checkpoint.name)[0]
    if name is None or ranks.is_first:
        return checkpoint
    return run.checkpoint(name)


@contextmanager
def _open_environments(config: TrainConfig, ranks: Ranks = ONE_PROCESS) -> Iterator[Environments]:
    """Open the environments of a rank; close them on exit. Only the first rank evaluates."""
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
    n_envs = config.agent.n_envs // ranks.size
    with closing(build(config.task, n_envs=n_envs, sampling=config.sampling)) as training:
        if ranks.is_first:
            with _open_validation(config, training, build) as envs:
                yield envs
        else:
            yield Environments(training, validation=None, held_out=None)


@contextmanager
def _open_validation(
    config: TrainConfig, training: SuiteVecEnv, build: Callable[..., SuiteVecEnv]
) -> Iterator[Environments]:
    """Open validation environments beside the training environments; close them on exit."""
    n_tasks = len(config.trained_tasks)
    # at least one per task, and no more than there are episodes to play
    n_envs = max(config.agent.n_envs, MIN_VALIDATION_ENVS, n_tasks)
    n_validation_envs = min(config.evaluation.episodes * n_tasks, n_envs)
    build_validation = partial(
        build, seed_split="validation", max_steps=config.evaluation.max_steps or "auto"
    )
    # the suite of the training environments has the vocabulary and length of the sampled texts
    with closing(build_validation(training.suite, n_envs=n_validation_envs)) as validation:
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
    config: ResolvedConfig,
    agent: Agent,
    env: SuiteVecEnv,
    stored: ResolvedConfig | None,
    ranks: Ranks,
) -> RunDirectory:
    """Open the run for training; load initial weights if it has no checkpoint yet."""
    complete = partial(with_input_keys, observation_space=env.observation_space)
    run = RunDirectory.find(config, complete, stored)
    has_checkpoints = run is not None and not run.checkpoints.is_empty
    # a run that has a checkpoint resumes from it instead
    if config.start_from is not None and not has_checkpoints:
        warm_start(agent.policy, config.start_from)
    # every rank has looked for the run before one of them creates it
    ranks.wait()
    if run is None:
        run = (
            RunDirectory.create(config) if ranks.is_first else RunDirectory(config.run_dir, config)
        )
    return run


def _load(
    run: RunDirectory, checkpoint: Checkpoint | None, agent: Agent, ranks: Ranks
) -> EpisodeRecords:
    """Load a checkpoint into the agent; return the last episodes of each task."""
    if checkpoint is None:
        if ranks.size > 1:
            reseed_all(agent)  # until now each rank has the same seeds
        return {}
    episodes = checkpoint.load_agent(agent)
    if ranks.is_first:
        # a run that was killed may have saved checkpoints that it does not resume from
        run.checkpoints.delete_after(agent.num_timesteps)
    # as the run did after saving this checkpoint, so that it continues the same way
    reseed_all(agent)
    return episodes


def _first_line(run: RunDirectory, agent: Agent, backend: str) -> str:
    start = "Training for"
    if agent.num_timesteps:
        start = f"Resuming at {agent.num_timesteps:,} of"
    precision = agent.precision if isinstance(agent, PPO | A2C) else "fp32"
    total = f"{run.config.total_timesteps:,} timesteps"
    return f"{start} {total} on {agent.device} ({precision}) and {backend}: {run.path}"


def _ranks_line(n_before: int, n_now: int) -> str:
    return (
        f"Trained by {n_before} processes so far and by {n_now} from here on: the run goes on with "
        "other episodes than it would have had."
    )


def _longer_line(config: ResolvedConfig, timesteps_before: int, reached: int) -> str:
    """Return one line about a run that is trained for longer than planned."""
    total = config.total_timesteps
    line = f"Longer than before: {total:,} timesteps in place of {timesteps_before:,}."
    if not isinstance(config.agent, OnPolicyConfig) or not config.agent.anneal:
        return line
    # the rate that a run of this total length has at this point
    rate = config.agent.learning_rate * (1 - reached / total)
    return f"{line} The learning rate goes on at {rate:.2g} and falls to zero at the new end."


def _describe(config: ResolvedConfig, env: SuiteVecEnv, agent: Agent) -> str:
    """Return one line that describes the inputs, the fusion with its sites, and the size."""
    assert isinstance(env.observation_space, spaces.Dict), "the observation contract is a Dict"
    seen_and_asked = describe(config.network, env.observation_space)
    line = f"{seen_and_asked} Fusion: {config.fusion.kind} ({', '.join(config.sites)})."
    line += f" {count_parameters(agent.policy):,} parameters."
    if isinstance(config.agent, OffPolicyConfig):
        is_on = config.agent.her and has_goal_keys(env.observation_space)
        line += f" Hindsight experience replay: {'on' if is_on else 'off'}."
    if "heads" in config.sites and not config.fusion.fits_heads:
        line += f" Warning: {config.fusion.kind} is unfit for the heads; leave them out of sites=."
    return line


# ----------------------------------------------------------------------------------------- learning


def _learn(
    run: RunDirectory,
    agent: Agent,
    envs: Environments,
    episodes: EpisodeRecords,
    log: Callable[[str], None],
    report: Callable[[int, float], bool],
    ranks: Ranks,
) -> TrainResult:
    """Learn to the end, or until a signal or ``report`` stops it; save the last checkpoint."""
    config = run.config
    start = agent.num_timesteps
    logger = RunLogger(run.path, [])
    run_logger: RunLogger | None = None
    if ranks.is_first:
        options = config.model_dump(mode="json")
        run_logger = build_logger(run.path, None if run.is_new else start, config.logger, options)
        logger = run_logger
    agent.set_logger(logger)
    if not start:  # a resumed run has logged them
        _log_hyperparameters(config, logger, count_parameters(agent.policy))
    is_on_policy = isinstance(agent, PPO | A2C)
    notice = SuccessNotice(config, log)
    statistics = _build_statistics(config, is_on_policy, notice, ranks)
    statistics.load(episodes)
    # from here on the first signal ends learning in order, with a checkpoint
    with stop_signals() as stop_requested:
        bar = ProgressBar(config.total_timesteps)
        shows_bar = config.progress and bar.progress.console.is_terminal and ranks.is_first
        # statistics first and checkpoints after the evaluation; the timer must come last
        callbacks: list[BaseCallback] = [statistics, ObservationStatistics(ranks)]
        evaluation: Evaluation | None = None
        if envs.validation is not None:
            evaluation = Evaluation(
                run, envs.validation, envs.held_out, notice, None if shows_bar else log, report
            )
            callbacks.append(evaluation)
        checkpointing = Checkpointing(
            run, run_logger, statistics, evaluation, stop_requested, log, ranks
        )
        callbacks.append(checkpointing)
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
                raise _with_evidence(error, run, agent, ranks) from error
            if run_logger is not None:
                run_logger.set_outcome("killed" if checkpointing.is_stopping else "finished")
    # the first rank has saved the last checkpoint
    ranks.wait()
    checkpoint = checkpointing.last_saved
    if not ranks.is_first:
        checkpoint = run.checkpoint("last")
    assert checkpoint is not None, "learning ends with a checkpoint or an error"
    return TrainResult(
        timesteps=checkpointing.saved_at,
        finished=not checkpointing.is_stopping,
        run=run,
        checkpoint=checkpoint,
        ranks=ranks,
    )


def _build_statistics(
    config: ResolvedConfig, is_on_policy: bool, notice: SuccessNotice, ranks: Ranks
) -> TaskStatistics:
    tasks = [task.name for task in config.task.tasks]
    if is_on_policy:
        return TaskStatistics(tasks, notice, ranks)
    return OffPolicyLogger(tasks, _row_interval(config), notice)


def _row_interval(config: ResolvedConfig) -> int:
    """Return the timesteps between two rows of the log."""
    if isinstance(config.agent, OnPolicyConfig):
        return config.agent.rollout_size * config.log_every
    return TIMESTEPS_PER_ROW * config.log_every


def _with_evidence(
    error: NonFiniteError, run: RunDirectory, agent: Agent, ranks: Ranks
) -> RunError:
    """Save the evidence of a failure; return an error that names its folder."""
    name = checkpoint_name(agent.num_timesteps)
    if not ranks.is_first:
        name = f"{name}_rank_{ranks.rank}"
    folder = run.path / "faults" / name
    try:
        saved = str(error.save(folder))
    except OSError as write_error:
        saved = f"cannot be written, {write_error}"
    return RunError(f"{error}. The tensors that caused it: {saved}")


# --------------------------------------------------------------------------------- hyperparameters


def _log_hyperparameters(config: ResolvedConfig, logger: RunLogger, n_parameters: int) -> None:
    options = dict(flatten(config.model_dump(mode="json")))
    # TensorBoard shows only five columns by default
    main = {
        "agent": config.agent.kind,
        "fusion": config.fusion.kind,
        "memory": config.memory.kind,
        "seed": options.pop("seed"),
        "task": config.task.name,
    }
    options["parameters"] = n_parameters
    tasks = [task.name for task in config.task.tasks]
    logger.write_dashboard(RunDescription(main, options, tasks))
    logger.record("model/parameters", n_parameters)
    logger.dump(0)
