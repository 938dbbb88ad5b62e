"""The schema of tasks, agents and runs: frozen once built, valid or an error. The doc of a field stands under it.

Each builder receives its own part (``build_fusion(config.fusion, …)``), never the whole.
"""

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator, model_validator

from mirl.configs.config import Config
from mirl.configs.networks import (
    ContextConfig,
    EncoderConfig,
    FusionConfig,
    ImageEncoderConfig,
    Site,
    TaskIdContextConfig,
    VectorEncoderConfig,
)

Unit = Annotated[float, Field(ge=0.0, le=1.0)]
BackendName = Literal["auto", "gymnasium", "envpool"]
DeviceName = Literal["auto", "cpu", "cuda"]
PrecisionName = Literal["auto", "fp32", "bf16"]


def file_name(name: str) -> str:
    """A task's name as part of a file's name: ``ALE/Pong-v5`` must not become a folder."""
    return re.sub(r"[^A-Za-z0-9._+-]", "-", name)


# ---------------------------------------------------------------------------------------------------------- tasks


class TaskConfig(Config):
    """One task: an environment, how to build it, and what counts as success."""

    name: Annotated[str, Field(pattern=r'^[^,"\r\n]+$')]
    """Name in logs and tables."""
    env_id: str
    """Registered gymnasium id, e.g. ``MiniGrid-GoToDoor-5x5-v0``."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the environment (the ``gymnasium`` backend only)."""
    success: Literal["reward", "info"] = "reward"
    """An episode succeeds when its last reward is positive, or when its last info says ``is_success``."""
    score_low: float = 0.0
    """Return that counts as score 0."""
    score_high: float = 1.0
    """Return that counts as score 1."""

    @model_validator(mode="after")
    def _bounds_are_ordered(self) -> Self:
        if self.score_high <= self.score_low:
            raise ValueError(f"score_high must exceed score_low={self.score_low}, got {self.score_high}")
        return self


class SuiteConfig(Config):
    """An ordered tuple of tasks, trained together."""

    name: str
    """Name of the suite."""
    tasks: tuple[TaskConfig, ...]
    """Its tasks; the position of a task is its task index."""
    observation: Literal["grid", "rgb"] = "grid"
    """MiniGrid's symbolic view, or the same view as pixels (the ``gymnasium`` backend only)."""

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [task.name for task in self.tasks]
        if not names:
            raise ValueError("tasks must list at least one task, got []")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"task names must be unique, these come twice: {', '.join(twice)}")
        return self


# ----------------------------------------------------------------------------------------------------------- agents


class AgentBase(Config):
    """What PPO and A2C share; names and meanings are Stable-Baselines3's."""

    n_envs: PositiveInt = 256
    """Environments stepped together, over all tasks."""
    n_steps: PositiveInt = 32
    """Timesteps per environment and rollout."""
    learning_rate: PositiveFloat = 1e-3
    """Step size of the optimiser."""
    anneal: bool = True
    """Lower the learning rate linearly to zero over ``total_timesteps``."""
    gamma: Unit = 0.99
    """Discount."""
    gae_lambda: Unit = 0.95
    """λ of generalised advantage estimation."""
    ent_coef: NonNegativeFloat = 0.01
    """Weight of the entropy bonus."""
    vf_coef: NonNegativeFloat = 0.5
    """Weight of the value loss."""
    max_grad_norm: PositiveFloat = 0.5
    """Gradients are clipped to this norm."""
    normalize_advantage: bool = True
    """Advantages to mean 0 and deviation 1."""
    net_arch: tuple[PositiveInt, ...] = (64,)
    """Hidden layers of the policy and of the value network, above the features extractor."""
    share_features_extractor: bool = True
    """One trunk for actor and critic, or one each."""

    @model_validator(mode="after")
    def _rollout_has_a_deviation(self) -> Self:
        if self.normalize_advantage and self.rollout_size < 2:
            raise ValueError("normalize_advantage needs n_envs × n_steps of at least 2, got 1")
        return self

    @property
    def rollout_size(self) -> int:
        """Timesteps of one rollout, all environments together."""
        return self.n_envs * self.n_steps


class PPOConfig(AgentBase):
    """Proximal policy optimisation."""

    kind: Literal["ppo"] = "ppo"
    batch_size: PositiveInt = 1024
    """Timesteps per minibatch; it must divide ``n_envs × n_steps``."""
    n_epochs: PositiveInt = 4
    """Passes over each rollout."""
    clip_range: PositiveFloat = 0.2
    """ε of the clipped objective."""

    @model_validator(mode="after")
    def _batch_divides_rollout(self) -> Self:
        if self.rollout_size % self.batch_size:
            raise ValueError(
                f"batch_size must divide the rollout, n_envs × n_steps = {self.rollout_size}, got {self.batch_size}; "
                f"agent.batch_size={math.gcd(self.rollout_size, self.batch_size)} would"
            )
        if self.batch_size == 1:
            raise ValueError("batch_size must be at least 2, got 1")
        return self


class A2CConfig(AgentBase):
    """Advantage actor-critic: one gradient step per rollout; λ = 1 and raw advantages, as SB3 has them."""

    kind: Literal["a2c"] = "a2c"
    n_envs: PositiveInt = 64
    """Environments stepped together, over all tasks."""
    n_steps: PositiveInt = 8
    """Timesteps per environment and rollout."""
    learning_rate: PositiveFloat = 7e-4
    """Step size of the optimiser."""
    gae_lambda: Unit = 1.0
    """λ of generalised advantage estimation."""
    normalize_advantage: bool = False
    """Advantages to mean 0 and deviation 1."""
    rms_prop_eps: PositiveFloat = 1e-5
    """ε of RMSprop."""


AgentConfig = PPOConfig | A2CConfig


# --------------------------------------------------------------------------------------------------------- training


class EvaluationConfig(Config):
    """Evaluation on unseen seeds while training; it selects the ``best`` checkpoint."""

    every: PositiveInt = 50_000
    """Timesteps between evaluations."""
    episodes: PositiveInt = 256
    """Episodes per evaluation and task."""
    deterministic: bool = False
    """Take the most probable action, or sample from the policy."""


class TrainConfig(Config):
    """One run."""

    task: SuiteConfig
    """What to learn."""
    fusion: Annotated[FusionConfig, Field(discriminator="kind")]
    """How the observation meets the context."""
    context: Annotated[ContextConfig, Field(discriminator="kind")]
    """What the context is made of."""
    encoder: Annotated[EncoderConfig, Field(discriminator="kind")]
    """What the observation passes through."""
    agent: Annotated[AgentConfig, Field(discriminator="kind")]
    """How to learn."""
    sites: tuple[Site, ...] = ("map", "heads")
    """Where to fuse: the feature map, the feature vector, the policy and value heads; one or several."""
    name: str = ""
    """Name of the run directory; empty for ``<task>-<fusion>-<agent>-seed<seed>``."""
    runs_dir: Path = Path("runs")
    """Folder of the run directories."""
    total_timesteps: PositiveInt = 500_000
    """Timesteps to train for, all environments together, rounded up to whole rollouts."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of the weights, the actions, the minibatches and the training environments."""
    device: DeviceName = "auto"
    """Where the network lives; ``auto`` takes CUDA where there is one."""
    precision: PrecisionName = "auto"
    """What the network trains in; ``auto`` takes bfloat16 where a short trial finds it clearly faster."""
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

    @field_validator("sites", mode="before")
    @classmethod
    def _one_site_needs_no_brackets(cls, sites: Any) -> Any:
        return (sites,) if isinstance(sites, str) else sites

    @field_validator("name")
    @classmethod
    def _name_is_a_folder_name(cls, name: str) -> str:
        if name and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}", name):
            raise ValueError(f"name must be a plain folder name (letters, digits, . _ + -), got '{name}'")
        return name

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        if len(set(self.sites)) != len(self.sites) or not self.sites:
            raise ValueError(f"sites must name at least one site and none twice, got {list(self.sites)}")
        if "map" in self.sites and isinstance(self.encoder, VectorEncoderConfig):
            raise ValueError(
                "sites=[map] fuses over cells, and encoder=vector has none; use encoder=grid or sites=[vector]"
            )
        if isinstance(self.context, TaskIdContextConfig) and len(self.task.tasks) == 1:
            raise ValueError(
                f"context=task_id needs several tasks, and '{self.task.name}' has one; use context=mission"
            )
        if isinstance(self.encoder, ImageEncoderConfig) != (self.task.observation == "rgb") and not isinstance(
            self.encoder, VectorEncoderConfig
        ):
            raise ValueError(
                f"encoder={self.encoder.kind} cannot read task.observation={self.task.observation}; "
                "grid reads grid, image reads rgb"
            )
        if self.task.observation == "rgb" and self.backend == "envpool":
            raise ValueError("task.observation=rgb is rendered by backend=gymnasium, not by envpool")
        if len(self.task.tasks) > self.agent.n_envs:
            raise ValueError(
                f"agent.n_envs must be at least one per task, {len(self.task.tasks)}, got {self.agent.n_envs}"
            )
        return self

    @property
    def run_name(self) -> str:
        """Name of the run directory."""
        return self.name or f"{file_name(self.task.name)}-{self.fusion.kind}-{self.agent.kind}-seed{self.seed}"

    @property
    def run_dir(self) -> Path:
        """The run directory."""
        return self.runs_dir / self.run_name


class EvalConfig(Config):
    """One evaluation of a checkpoint."""

    run: Path
    """Run directory, e.g. ``runs/goto_door-bilinear-ppo-seed0``."""
    checkpoint: str = "best"
    """``best``, ``last``, or a number of timesteps."""
    episodes: PositiveInt = 1000
    """Episodes per task."""
    n_envs: PositiveInt = 250
    """Environments stepped together, per task."""
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
    export: str = ""
    """Do not evaluate; write the policy of this one mission or task as a program, ``exports/<name>.pt2``."""
