"""The schema of runs: frozen once built, valid or an error. The doc of a field stands under it.

Each builder receives its own part (``build_fusion(config.fusion, …)``), never the whole.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from mirl.configs.agents import (
    AgentConfig,
    OffPolicyConfig,
    OnPolicyConfig,
    PPOConfig,
    check_minibatches,
)
from mirl.configs.aliases import replace_value
from mirl.configs.config import Config, NoBrackets
from mirl.configs.errors import ConfigError, nearest
from mirl.configs.networks import (
    AutoContextConfig,
    AutoEncoderConfig,
    ContextConfig,
    EncoderConfig,
    FusionConfig,
    ImageEncoderConfig,
    MemoryConfig,
    NetworkConfig,
    NoMemoryConfig,
    Site,
    TaskIdContextConfig,
    VectorEncoderConfig,
)
from mirl.configs.tasks import HoldoutConfig, SuiteConfig, file_name

BackendName = Literal["auto", "gymnasium", "envpool"]
SamplingName = Literal["fixed", "uniform", "lowest_success", "learning_progress"]
DeviceName = Literal["auto", "cpu", "cuda"]
PrecisionName = Literal["auto", "fp32", "bf16"]


class EvaluationConfig(Config):
    """Evaluation on unseen seeds while training; it selects the ``best`` checkpoint."""

    every: PositiveInt = 50_000
    """Timesteps between evaluations."""
    episodes: PositiveInt = 256
    """Episodes per evaluation and task."""
    deterministic: bool = False
    """Take the most probable action, or sample from the policy."""
    test_episodes: PositiveInt = 1000
    """Episodes per task, of other seeds, of the evaluation after training."""
    best_by: Literal["mean", "worst"] = "mean"
    """What makes a checkpoint the ``best``: the success rate's mean over the tasks, or that of the worst task."""


class TrainConfig(Config):
    """One run."""

    task: SuiteConfig
    """What to learn."""
    fusion: Annotated[FusionConfig, Field(discriminator="kind")]
    """How the observation meets the context."""
    context: Annotated[ContextConfig | AutoContextConfig, Field(discriminator="kind")]
    """What the context is made of."""
    encoder: Annotated[EncoderConfig | AutoEncoderConfig, Field(discriminator="kind")]
    """What the observation passes through."""
    agent: Annotated[AgentConfig, Field(discriminator="kind")]
    """How to learn."""
    memory: Annotated[MemoryConfig, Field(discriminator="kind")] = NoMemoryConfig()
    """What the policy remembers of the episode."""
    split: HoldoutConfig = HoldoutConfig()
    """What to withhold from training."""
    sampling: Annotated[
        SamplingName, BeforeValidator(lambda value: replace_value("sampling", value))
    ] = "fixed"
    """Which task an environment plays next: always the same, any, or rather those that fail or that change."""
    sites: Annotated[tuple[Site, ...], NoBrackets] = ("map", "heads")
    """Where to fuse: the feature map, the feature vector, the policy and value heads; one or several."""
    name: str = ""
    """Name of the run directory; empty for ``<task>-<fusion>[-<memory>]-<agent>-seed<seed>``."""
    runs_dir: Path = Path("runs")
    """Folder of the run directories."""
    start_from: Path | None = None
    """Weights to start from: a run directory, for its best checkpoint, or a .zip that Stable-Baselines3 saved."""
    total_timesteps: PositiveInt = 500_000
    """Timesteps to train for, all environments together, rounded up to whole rollouts."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of the weights, the actions, the minibatches and the training environments."""
    device: DeviceName = "auto"
    """Where the network lives; ``auto`` takes CUDA where there is one."""
    precision: PrecisionName = "auto"
    """What the network trains in; ``auto`` takes bfloat16 where a short trial finds it clearly faster."""
    on_fault: Literal["stop", "skip"] = "stop"
    """What to do about numbers that are NaN or infinite, after an update (PPO, A2C) or gradient step that would make
    weights so was undone or left out, or when an environment gives such: stop the run, or go on without them."""
    max_restarts: NonNegativeInt = 10
    """How many failures of environments are survived in one go: one raised, or its process died or hung."""
    env_timeout: PositiveFloat = 300.0
    """Seconds without an answer after which a process that steps environments is held to hang."""
    backend: BackendName = "auto"
    """What steps the environments; ``auto`` takes EnvPool where it is installed and knows the tasks."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Evaluation while training."""
    checkpoint_every: PositiveInt = 100_000
    """Timesteps between checkpoints."""
    log_every: PositiveInt = 1
    """Iterations between two rows of the log."""
    progress: bool = True
    """Show a progress bar."""

    @field_validator("name")
    @classmethod
    def _name_is_a_folder_name(cls, name: str) -> str:
        if name and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}", name):
            raise ValueError(
                f"name must be a plain folder name (letters, digits, . _ + -), got '{name}'"
            )
        return name

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        if len(set(self.sites)) != len(self.sites) or not self.sites:
            raise ValueError(
                f"sites must name at least one site and none twice, got {list(self.sites)}"
            )
        if "map" in self.sites and isinstance(self.encoder, VectorEncoderConfig):
            raise ValueError(
                "sites=[map] fuses over cells, and encoder=vector has none; use encoder=grid or sites=[vector]"
            )
        if isinstance(self.context, TaskIdContextConfig) and len(self.task.tasks) == 1:
            raise ValueError(
                f"context=task_id needs several tasks, and '{self.task.name}' has one; use context=mission"
            )
        if isinstance(self.encoder, ImageEncoderConfig) != (
            self.task.observation == "rgb"
        ) and not isinstance(self.encoder, VectorEncoderConfig | AutoEncoderConfig):
            raise ValueError(
                f"encoder={self.encoder.kind} cannot read task.observation={self.task.observation}; "
                "grid reads grid, image reads rgb"
            )
        if self.task.observation == "rgb" and self.backend == "envpool":
            raise ValueError(
                "task.observation=rgb is rendered by backend=gymnasium, not by envpool"
            )
        if len(self.trained_tasks) > self.agent.n_envs:
            raise ValueError(
                f"agent.n_envs must be at least one per task, {len(self.trained_tasks)}, got {self.agent.n_envs}"
            )
        return self

    @model_validator(mode="after")
    def _memory_fits_the_agent(self) -> Self:
        if isinstance(self.memory, NoMemoryConfig):
            if isinstance(self.agent, OnPolicyConfig) and (
                self.agent.sequence_length or self.agent.burn_in
            ):
                raise ValueError(
                    "agent.sequence_length and agent.burn_in are for a memory, and memory=none"
                )
            return self
        if isinstance(self.agent, OffPolicyConfig):
            raise ValueError(
                f"memory={self.memory.kind} is for agent=ppo and agent=a2c, got agent={self.agent.kind}"
            )
        length = self.agent.sequence_length or self.agent.n_steps
        if isinstance(self.agent, PPOConfig):
            check_minibatches(
                self.agent.batch_size, length, self.agent.n_steps, self.agent.n_envs, "agent."
            )
        return self

    @model_validator(mode="after")
    def _one_task_needs_no_choice(self) -> Self:
        if len(self.trained_tasks) == 1:
            projects = isinstance(self.agent, OnPolicyConfig) and self.agent.pcgrad
            for option, chosen in (
                ("sampling", self.sampling != "fixed"),
                ("agent.pcgrad", projects),
            ):
                if chosen:
                    raise ValueError(
                        f"{option} is for several tasks, and '{self.task.name}' trains one"
                    )
        return self

    @model_validator(mode="after")
    def _what_is_withheld_is_not_relabelled(self) -> Self:
        if isinstance(self.agent, OffPolicyConfig) and self.agent.her and self.split.goal_low:
            raise ValueError(
                "hindsight experience replay relabels with whatever goals were reached, those that split.goal_low and "
                "split.goal_high withhold included; use agent.her=false"
            )
        return self

    @model_validator(mode="after")
    def _split_leaves_something_to_learn(self) -> Self:
        names = [task.name for task in self.task.tasks]
        for name in self.split.tasks:
            if name not in names:
                raise ConfigError(
                    f"split.tasks: suite '{self.task.name}' has no task '{name}'."
                    + nearest(name, names)
                )
        if not self.trained_tasks:
            raise ValueError(f"split.tasks withholds every task of suite '{self.task.name}'")
        return self

    @property
    def network(self) -> NetworkConfig:
        """The networks of the policy, as one argument for the builders."""
        return NetworkConfig(
            fusion=self.fusion,
            context=self.context,
            encoder=self.encoder,
            sites=self.sites,
            memory=self.memory,
        )

    @property
    def trained_tasks(self) -> tuple[str, ...]:
        """The names of the tasks that are trained."""
        return tuple(self.task.tasks[i].name for i in self.split.task_indices(self.task, "trained"))

    @property
    def run_name(self) -> str:
        """Name of the run directory."""
        parts = [file_name(self.task.name), self.fusion.kind]
        parts += [] if isinstance(self.memory, NoMemoryConfig) else [self.memory.kind]
        parts += [self.agent.kind]
        if self.split.holds_out_any:
            parts += ["split" if self.split.name == "none" else self.split.name]
        return self.name or "-".join([*parts, f"seed{self.seed}"])

    @property
    def run_dir(self) -> Path:
        """The run directory."""
        return self.runs_dir / self.run_name


class ResolvedConfig(TrainConfig):
    """A run's configuration after ``auto`` was resolved against the environment's spaces.

    A run directory stores this one: its context and its encoder are known without an environment.
    """

    context: Annotated[ContextConfig, Field(discriminator="kind")]
    """How the context is encoded."""
    encoder: Annotated[EncoderConfig, Field(discriminator="kind")]
    """How the observation is encoded."""


class EvalConfig(Config):
    """One evaluation of a checkpoint."""

    run: Path
    """Run directory, e.g. ``runs/goto_door-bilinear-ppo-seed0``."""
    checkpoint: str = "best"
    """``best``, ``last``, or a number of timesteps."""
    episodes: PositiveInt = 1000
    """Episodes per task."""
    n_envs: PositiveInt = 250
    """Environments stepped together, over all tasks, but at least one for each."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Chooses the unseen episodes; no value of it meets a training episode's seed."""
    backend: BackendName = "auto"
    """What steps the environments; need not be the training's."""
    device: DeviceName = "auto"
    """Where the network lives; need not be the training's."""
    deterministic: bool = False
    """Take the most probable action, or sample from the policy."""
    gif: bool = False
    """Also write a GIF of one episode per task."""
    adapt: Literal["no", "context", "network"] = "no"
    """Do not evaluate as it is: learn a task from few episodes by tuning the context z alone, or the whole network."""
    task: str = ""
    """What to adapt to, a preset or an environment id; empty for what the run's split withheld."""
    adapt_episodes: tuple[PositiveInt, ...] = (16, 64, 256, 1024)
    """Episodes of practice after which adaptation is evaluated."""
    export: str = ""
    """Do not evaluate; write the policy of this one mission or task as a program, ``exports/<name>.pt2``."""

    @field_validator("adapt_episodes", mode="before")
    @classmethod
    def _list_needs_no_brackets(cls, numbers: Any) -> Any:
        return numbers.strip("[]").split(",") if isinstance(numbers, str) else numbers

    @model_validator(mode="after")
    def _episodes_ascend(self) -> Self:
        if sorted(set(self.adapt_episodes)) != list(self.adapt_episodes):
            raise ValueError(f"adapt_episodes must ascend, got {list(self.adapt_episodes)}")
        if self.task and self.adapt == "no":
            raise ValueError("task= is what to adapt to; it needs adapt=context or adapt=network")
        asked = [
            f"{name}="
            for name in ("adapt", "export", "gif")
            if getattr(self, name) not in ("no", "", False)
        ]
        if len(asked) > 1:
            raise ValueError(
                f"{' and '.join(asked)} are different things to do; ask for one at a time"
            )
        return self
