"""Few-shot adaptation: learning a new task from a few episodes.

A policy that fuses by f(x, z) has a small handle on its behavior: the context z. Adaptation by
*context* tunes an offset δ to it, z ← z + δ, with all weights frozen; adaptation by *network* also
tunes all weights, from the same start, for comparison.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import torch
from rich.table import Table
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import ConstantSchedule
from torch import nn

from mirl.agents.builder import build_agent, with_input_keys
from mirl.agents.evaluation import evaluate
from mirl.agents.on_policy.a2c import A2C
from mirl.agents.on_policy.ppo import PPO
from mirl.agents.result_tables import success_cells
from mirl.agents.runs.atomic_files import make_folder, warn_if_unwritable, write_json
from mirl.agents.runs.checkpoint import Checkpoint
from mirl.agents.runs.run_directory import RunDirectory
from mirl.agents.statistics import TaskResult
from mirl.configs.agents import A2CConfig, PPOConfig
from mirl.configs.compose import compose_suite
from mirl.configs.errors import ConfigError
from mirl.configs.schema import EvalConfig, ResolvedConfig, TrainConfig
from mirl.configs.tasks import HoldoutConfig, SuiteConfig, TaskConfig, file_name
from mirl.envs import SeedSplit, SuiteVecEnv
from mirl.policies import FusionExtractor
from mirl.policies.contexts import ContextEncoder, TaskIdContext
from mirl.policies.features import Context, Observations, is_word

N_ENVS = 16
"""Number of environments for practice."""
N_STEPS = 32
"""Timesteps per rollout; it is short so that updates need not wait for many episodes."""
BATCH_SIZE = 128
"""Timesteps per minibatch of PPO."""
CONTEXT_RATE = 1e-2
"""Initial learning rate of δ, which is one short vector; the network keeps that of its training.
Both fall linearly to 0."""


class ShiftedContext(ContextEncoder):
    """Context encoder with a learned offset: z + δ.

    The id of a new task would select untrained weights; the mean context of the trained ids is used
    instead.

    Args:
        encoder: a trained context encoder.
        trained_ids: ids of the trained tasks.
    """

    def __init__(self, encoder: ContextEncoder, trained_ids: Sequence[int]) -> None:
        super().__init__()
        self.encoder = encoder
        self.keys = encoder.keys
        self.out_dim = encoder.out_dim
        self.delta = nn.Parameter(torch.zeros(self.out_dim))
        # a new task has no trained id, so it starts from the mean context of the trained tasks
        for module in encoder.modules():
            if isinstance(module, TaskIdContext):
                module.average_over = list(trained_ids)

    @property
    def grouped_key(self) -> str | None:
        """Key that may come as ``UniqueRows``: that of the encoder."""
        return self.encoder.grouped_key

    def forward(self, observations: Observations) -> Context:
        """Encode the context and add the offset.

        Args:
            observations: the observations that the encoder takes.

        Returns:
            The context.
        """
        context: Context = self.encoder(observations)
        words = context.words
        if words is not None:
            # the padding after the last word stays zero
            words = words + self.delta * is_word(words)
        return context._replace(values=context.values + self.delta, words=words)

    def update_statistics(self, observations: Observations) -> None:
        """Update the running statistics of the encoder.

        Args:
            observations: the observations that the encoder takes.
        """
        self.encoder.update_statistics(observations)


class CurvePoint(NamedTuple):
    """The evaluation after a number of episodes of practice."""

    episodes: int
    timesteps: int
    result: TaskResult


class Adaptation(NamedTuple):
    """The adaptation to one task."""

    task: str
    curve: list[CurvePoint]
    path: Path | None
    """File that holds the curve; None if the run directory cannot be written."""


class _EpisodeCounter(BaseCallback):
    """A callback that counts the episodes that ended."""

    def __init__(self) -> None:
        super().__init__()
        self.episodes = 0

    def _on_step(self) -> bool:
        self.episodes += int(self.locals["dones"].sum())
        return True


# --------------------------------------------------------------------------------------------- runs


def adapt_run(
    run: RunDirectory, checkpoint: Checkpoint, config: EvalConfig
) -> Iterator[Adaptation]:
    """Adapt a checkpoint to each of the requested tasks and write the curves.

    Args:
        run: the run.
        checkpoint: one of its checkpoints.
        config: options of the adaptation; ``run`` and ``checkpoint`` are not read.

    Yields:
        The adaptation to each task, once its curve is written.

    Raises:
        ConfigError: the run's agent cannot be adapted, or no task is named and none was held out.
    """
    for named_suite, named in adaptation_tasks(run.config, config.task, config.config_dir):
        suite = named_suite.with_success(config.success)
        [task] = [each for each in suite.tasks if each.name == named.name]
        curve = adapt(run, checkpoint, config, suite, task)
        path = run.results_dir / "eval" / _file_name(checkpoint, config, task)
        written: Path | None = None
        with warn_if_unwritable(path.parent):
            make_folder(path.parent)
            write_json(path, _report(checkpoint, config, task, curve))
            written = path
        yield Adaptation(task.name, curve, written)


def _file_name(checkpoint: Checkpoint, config: EvalConfig, task: TaskConfig) -> str:
    parts = [
        "adapt",
        file_name(task.name),
        config.adapt,
        checkpoint.name,
        f"seed{config.seed}",
        f"{config.episodes}ep",
    ]
    if config.deterministic:
        parts.append("deterministic")
    if config.success is not None:
        parts.append(file_name(config.success))
    return "-".join(parts) + ".json"


def _report(
    checkpoint: Checkpoint, config: EvalConfig, task: TaskConfig, curve: Sequence[CurvePoint]
) -> dict[str, object]:
    points = []
    for point in curve:
        practice = {"practiced": point.episodes, "timesteps": point.timesteps}
        points.append({**practice, **point.result.summary()})
    return {
        "checkpoint": checkpoint.name,
        "seed": config.seed,
        "deterministic": config.deterministic,
        "task": task.model_dump(mode="json"),
        "adapt": config.adapt,
        "curve": points,
    }


def curve_table(curve: Sequence[CurvePoint], title: str) -> Table:
    """Return a table of the success after each number of episodes.

    Args:
        curve: the points of the curve.
        title: title of the table.

    Returns:
        The table, for the terminal.
    """
    table = Table(title=title, title_justify="left")
    for column in ("episodes", "timesteps", "success", "95 % interval", "return"):
        table.add_column(column, justify="right")
    for episodes, timesteps, result in curve:
        practice = (f"{episodes:,}", f"{timesteps:,}")
        table.add_row(*practice, *success_cells(result), f"{result.mean_return:.3f}")
    return table


def adaptation_tasks(
    training: TrainConfig, name: str, config_dir: Path | None = None
) -> list[tuple[SuiteConfig, TaskConfig]]:
    """Return the tasks to adapt to, each with the suite that it is part of.

    Args:
        training: the configuration of the run.
        name: a preset or an environment id; empty for the tasks that the run held out.
        config_dir: folder of the user's own presets.

    Returns:
        For each task, a suite with as many tasks as were trained. A new task replaces the task of
        the same name, or else the first.

    Raises:
        ConfigError: no task is named, and the run did not hold out any.
    """
    if name:
        named = compose_suite(name, config_dir)
        return [(training.task.with_task(task), task) for task in named.tasks]
    held_out = [task for task in training.task.tasks if task.name in training.split.tasks]
    if not held_out:
        raise ConfigError(
            "adapt= needs task=…, a preset or an environment id, because the run held out no task"
        )
    return [(training.task, task) for task in held_out]


# ----------------------------------------------------------------------------------------- one task


def adapt(
    run: RunDirectory,
    checkpoint: Checkpoint,
    config: EvalConfig,
    suite: SuiteConfig,
    task: TaskConfig,
) -> list[CurvePoint]:
    """Adapt a checkpoint to one task.

    Args:
        run: the run.
        checkpoint: one of its checkpoints.
        config: options of the adaptation.
        suite: a suite that the task is part of.
        task: the task.

    Returns:
        The evaluation before practice, and after each of ``config.adapt_episodes``.

    Raises:
        ConfigError: the run's agent cannot be adapted, or the task has other spaces.
    """
    agent_config = run.config.agent
    if not isinstance(agent_config, PPOConfig | A2CConfig):
        raise ConfigError(
            f"adapt= practices with PPO or A2C, and this run's agent is {agent_config.kind}"
        )
    # more environments than episodes would be idle
    n_test_envs = min(config.n_envs, config.episodes)
    limit = config.max_steps or run.config.evaluation.max_steps
    config = config.model_copy(update={"max_steps": limit})
    with (
        closing(_build_env(config, suite, task, N_ENVS, "train")) as env,
        closing(_build_env(config, suite, task, n_test_envs, "test")) as test_env,
    ):
        agent = _load(run.config, checkpoint, config, env)
        return _practice(agent, test_env, config)


def _practice(agent: PPO | A2C, test_env: SuiteVecEnv, config: EvalConfig) -> list[CurvePoint]:
    first_rate = agent.lr_schedule(1.0)
    last_budget = config.adapt_episodes[-1]
    counter = _EpisodeCounter()
    curve = []
    for budget in (0, *config.adapt_episodes):  # 0: before any practice
        # several episodes end in a rollout, so a point may come after more than its budget
        while counter.episodes < budget:
            rate = first_rate * (1 - counter.episodes / last_budget)
            # set by hand, because SB3 would anneal over each call of learn
            agent.lr_schedule = ConstantSchedule(rate)
            agent.learn(N_ENVS * N_STEPS, callback=counter, reset_num_timesteps=False)
        [result] = evaluate(
            agent.policy,
            test_env,
            episodes=config.episodes,
            seed=config.seed,
            deterministic=config.deterministic,
        )
        curve.append(CurvePoint(counter.episodes, agent.num_timesteps, result))
    return curve


def _build_env(
    config: EvalConfig, suite: SuiteConfig, task: TaskConfig, n_envs: int, seed_split: SeedSplit
) -> SuiteVecEnv:
    """Build environments that play only one task of a suite."""
    return SuiteVecEnv(
        suite,
        n_envs,
        backend=config.backend,
        seed=config.seed,
        seed_split=seed_split,
        holdout=HoldoutConfig(name="adaptation", tasks=(task.name,)),
        subset="held_out",
        # endless episodes would neither be counted nor evaluated
        max_steps=config.max_steps or "auto",
    )


def _load(
    training: ResolvedConfig, checkpoint: Checkpoint, config: EvalConfig, env: SuiteVecEnv
) -> PPO | A2C:
    """Build the run's agent on another task, with an optimizer of the tuned parameters only."""
    completed = with_input_keys(training, env.observation_space)
    agent = build_agent(_adaptation_config(completed, config), env)
    assert isinstance(agent, PPO | A2C)
    checkpoint.load_weights(agent.policy)
    policy = agent.policy
    if config.adapt == "context":
        # the offset is created after this, so that only the offset is trained
        policy.requires_grad_(False)
    trained_ids = training.split.task_indices(training.task, "trained")
    for module in policy.modules():
        if isinstance(module, FusionExtractor):
            shifted = ShiftedContext(module.context, trained_ids)
            module.context = shifted.to(policy.device)
    tuned = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    # the policy's original optimizer holds frozen parameters, and not the offset
    policy.optimizer = policy.optimizer_class(  # type: ignore[call-arg]
        tuned, lr=agent.lr_schedule(1.0), **policy.optimizer_kwargs
    )
    return agent


def _adaptation_config(training: ResolvedConfig, config: EvalConfig) -> ResolvedConfig:
    """Return the run's configuration with the rollouts and learning rate of the adaptation."""
    options: dict[str, int | float] = {
        "n_envs": N_ENVS,
        "n_steps": N_STEPS,
        "anneal": False,  # _practice lowers the rate itself
        "conflict_every": 0,  # a single task has no conflict
        # the run's own sequence length may not divide the shorter rollouts
        "sequence_length": 0,
        "burn_in": 0,
    }
    if isinstance(training.agent, PPOConfig):
        options["batch_size"] = BATCH_SIZE
    if config.adapt == "context":
        options["learning_rate"] = CONTEXT_RATE
    changes = {
        "agent": training.agent.model_copy(update=options),
        "device": config.device,
        "seed": config.seed,
        "precision": "fp32",
    }
    return training.model_copy(update=changes)
