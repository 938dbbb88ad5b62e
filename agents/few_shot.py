"""Few-shot learning: a task that was never trained on, from a few episodes.

A policy that fuses by f(x, z) has a small handle on what it does: z. Adaptation by *context* tunes an offset δ to it,
z ← z + δ, with every weight frozen; adaptation by *network* tunes all weights too, from the same start, for comparison.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from rich.table import Table
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import ConstantSchedule
from torch import Tensor, nn

from mirl.agents.builder import build_agent
from mirl.agents.evaluation import evaluate
from mirl.agents.on_policy.a2c import A2C
from mirl.agents.on_policy.ppo import PPO
from mirl.agents.runs.atomic_files import write_json
from mirl.agents.runs.checkpoint import find_checkpoint, load_weights
from mirl.agents.runs.run import load_config
from mirl.agents.statistics import TaskResult, wilson_interval
from mirl.configs.agents import A2CConfig, PPOConfig
from mirl.configs.compose import compose_train
from mirl.configs.errors import ConfigError
from mirl.configs.schema import EvalConfig, TrainConfig
from mirl.configs.tasks import HoldoutConfig, SuiteConfig, TaskConfig, file_name
from mirl.envs import SuiteVecEnv
from mirl.policies import FusionExtractor
from mirl.policies.contexts import TaskIdContext
from mirl.policies.features import Context

N_ENVS, N_STEPS, BATCH_SIZE = 16, 32, 128
"""Short rollouts: with few episodes the updates must not wait for many."""
CONTEXT_RATE = 1e-2
"""First step size of δ, which is one short vector; the network's is that of its training. Both fall linearly to 0."""


class ShiftedContext(nn.Module):
    """z + δ: the contexts of a trained encoder, moved by one learned offset.

    The id of a task that was never trained selects weights that never were: its place is taken by the mean of the
    contexts of the ``trained`` ids.
    """

    def __init__(self, encoder: nn.Module, trained: Sequence[int]) -> None:
        super().__init__()
        self.encoder = encoder
        self.out_dim: int = encoder.out_dim  # type: ignore[assignment]
        self.delta = nn.Parameter(torch.zeros(self.out_dim))
        self.trained = list(trained) if isinstance(encoder, TaskIdContext) else None

    def forward(self, observed: Any) -> Context:
        context: Context = self.encoder(observed)
        return context._replace(values=self._start(context.values) + self.delta)

    def _start(self, values: Float[Tensor, "rows context"]) -> Float[Tensor, "rows context"]:
        if self.trained is None:
            return values
        assert isinstance(self.encoder, TaskIdContext)
        ids = torch.eye(self.encoder.n_tasks, device=values.device)[self.trained]
        return self.encoder(ids).per_row().mean(0).expand_as(values)


class Point(NamedTuple):
    """How a task is played after so many episodes of practice."""

    episodes: int
    timesteps: int
    result: TaskResult


class _EpisodeCount(BaseCallback):
    """Counts the episodes that ended."""

    def __init__(self) -> None:
        super().__init__()
        self.episodes = 0

    def _on_step(self) -> bool:
        self.episodes += int(self.locals["dones"].sum())
        return True


def adapt_run(config: EvalConfig) -> Iterator[tuple[str, list[Point], Path]]:
    """Adapt a run's checkpoint to each task asked for: its name, its curve and the file that now holds it.

    :raises ConfigError: when the run's agent cannot be adapted, or no task is named and none was withheld.
    """
    training = load_config(config.run)
    for suite, task in adaptation_tasks(training, config.task):
        curve = adapt(config, training, suite, task)
        checkpoint = find_checkpoint(config.run / "checkpoints", config.checkpoint).name
        played = f"{config.episodes}ep" + ("-deterministic" if config.deterministic else "")
        name = f"adapt-{file_name(task.name)}-{config.adapt}-{checkpoint}-seed{config.seed}-{played}.json"
        path = config.run / "eval" / name
        path.parent.mkdir(exist_ok=True)
        points = [
            {"practiced": p.episodes, "timesteps": p.timesteps, **p.result.summary()} for p in curve
        ]
        report = {
            "checkpoint": checkpoint,
            "seed": config.seed,
            "deterministic": config.deterministic,
        }
        asked = {"task": task.model_dump(mode="json"), "adapt": config.adapt}
        write_json(path, {**report, **asked, "curve": points})
        yield task.name, curve, path


def curve_table(curve: Sequence[Point], title: str) -> Table:
    """Success after each number of episodes, for the terminal."""
    table = Table(title=title, title_justify="left")
    for column in ("episodes", "timesteps", "success", "95 % interval", "return"):
        table.add_column(column, justify="right")
    for episodes, timesteps, result in curve:
        low, high = wilson_interval(int(result.success.sum()), len(result.success))
        success, interval = f"{result.success_rate:.1%}", f"{low:.1%} – {high:.1%}"
        table.add_row(
            f"{episodes:,}", f"{timesteps:,}", success, interval, f"{result.returns.mean():.3f}"
        )
    return table


def adaptation_tasks(training: TrainConfig, name: str) -> list[tuple[SuiteConfig, TaskConfig]]:
    """Each task with a suite that has it in its place: that of its name, or that of the first for a new task."""
    if name:
        return [
            (_with_task(training.task, task), task)
            for task in compose_train([f"task={name}"]).task.tasks
        ]
    withheld = [task for task in training.task.tasks if task.name in training.split.tasks]
    if not withheld:
        raise ConfigError(
            "adapt= needs task=…, a preset or an environment id: the run's split withheld no task"
        )
    return [(training.task, task) for task in withheld]


def _with_task(suite: SuiteConfig, task: TaskConfig) -> SuiteConfig:
    tasks = list(suite.tasks)
    place = next((i for i, each in enumerate(tasks) if each.name == task.name), 0)
    # as many tasks as were trained: the weights have their number in their shapes
    return suite.model_copy(update={"tasks": (*tasks[:place], task, *tasks[place + 1 :])})


def adapt(
    config: EvalConfig, training: TrainConfig, suite: SuiteConfig, task: TaskConfig
) -> list[Point]:
    """The curve of one task: before practice, and after each of ``config.adapt_episodes``."""
    if not isinstance(training.agent, PPOConfig | A2CConfig):
        raise ConfigError(
            f"adapt= practices with PPO or A2C, and this run's agent is {training.agent.kind}"
        )
    practice = HoldoutConfig(name="adaptation", tasks=(task.name,))
    with (
        closing(_vec_env(config, suite, practice, N_ENVS, "train")) as env,
        closing(
            _vec_env(config, suite, practice, min(config.n_envs, config.episodes), "test")
        ) as unseen,
    ):
        agent = _load(config, training, env)
        rate = agent.lr_schedule(1.0)
        count = _EpisodeCount()
        points = []
        for budget in (0, *config.adapt_episodes):
            while count.episodes < budget:
                agent.lr_schedule = ConstantSchedule(
                    rate * (1 - count.episodes / config.adapt_episodes[-1])
                )
                agent.learn(N_ENVS * N_STEPS, callback=count, reset_num_timesteps=False)
            [result] = evaluate(
                agent.policy,
                unseen,
                episodes=config.episodes,
                seed=config.seed,
                deterministic=config.deterministic,
            )
            points.append(Point(count.episodes, agent.num_timesteps, result))
        return points


def _vec_env(
    config: EvalConfig, suite: SuiteConfig, split: HoldoutConfig, n_envs: int, seeds: Any
) -> SuiteVecEnv:
    return SuiteVecEnv(
        suite,
        n_envs,
        backend=config.backend,
        seed=config.seed,
        seed_split=seeds,
        holdout=split,
        subset="held_out",
    )


def _load(config: EvalConfig, training: TrainConfig, env: SuiteVecEnv) -> PPO | A2C:
    """The run's agent on another task, with only what is to be tuned left to the optimizer."""
    options: dict[str, Any] = {
        "n_envs": N_ENVS,
        "n_steps": N_STEPS,
        "anneal": False,
        "conflict_every": 0,
    }
    options |= {"sequence_length": 0, "burn_in": 0}
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
    agent = build_agent(training.model_copy(update=changes), env)
    assert isinstance(agent, PPO | A2C)
    load_weights(find_checkpoint(config.run / "checkpoints", config.checkpoint), agent.policy)
    policy = agent.policy
    if config.adapt == "context":
        policy.requires_grad_(False)
    trained = training.split.task_indices(training.task, "trained")
    for module in policy.modules():
        if isinstance(module, FusionExtractor):
            module.context = ShiftedContext(module.context, trained).to(policy.device)  # type: ignore[assignment]
    tuned = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    rate = agent.lr_schedule(1.0)
    policy.optimizer = policy.optimizer_class(tuned, lr=rate, **policy.optimizer_kwargs)  # type: ignore[call-arg]
    return agent
