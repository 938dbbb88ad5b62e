"""Schema of the commands: a configuration class for each.

A configuration is frozen and valid once it is built. Each builder receives only its own part
(``build_fusion(config.fusion, ...)``), never the whole.
"""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

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
from mirl.configs.commands.pretrained import RunPath
from mirl.configs.config import AllowSingle, Config
from mirl.configs.networks import (
    AutoContextField,
    AutoEncoderField,
    AutoFusionConfig,
    AutoFusionField,
    ContextField,
    EncoderField,
    FusionField,
    MemoryField,
    NetworkConfig,
    NoMemoryConfig,
    Site,
)
from mirl.configs.parts import short_name
from mirl.configs.tasks import HoldoutConfig, Success, SuiteConfig, file_name, short_file_name

BackendName = Literal["auto", "gymnasium", "envpool"]
"""Library that steps the environments."""
SamplingName = Literal["fixed", "uniform", "lowest_success", "learning_progress"]
"""Rule that chooses the task of each new episode."""
DeviceName = Literal["auto", "cpu", "cuda"]
"""Device of the network."""
PrecisionName = Literal["auto", "fp32", "bf16"]
"""Floating-point precision of the training."""
LoggerName = Literal["tensorboard", "csv", "wandb", "trackio", "mlflow"]
"""Destination of the metrics."""

# Neither a slash nor a leading dot, so that a run stays inside of runs_dir.
MAX_FOLDER_NAME = 255
"""Maximum length of a file's name in most file systems."""
RUN_NAME = r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}"
"""Pattern of the name of a run directory."""


def split_names(value: object) -> object:
    """Return ``a,b`` and ``[a,b]`` as a list; brackets have to be quoted in some shells.

    Args:
        value: value of an option; anything but a text is returned unchanged.
    """
    if isinstance(value, str):
        return [name.strip() for name in value.strip("[]").split(",") if name.strip()]
    return value


Imports = Annotated[tuple[str, ...], BeforeValidator(split_names)]
"""Modules to import; the option is typed ``import=``."""


class EvaluationConfig(Config):
    """Evaluation during training, on environment seeds that are not trained on."""

    every: PositiveInt = 50_000
    """Timesteps between evaluations."""
    episodes: PositiveInt = 256
    """Episodes per task in each evaluation during training."""
    deterministic: bool = False
    """Take the most probable action (the mean of a Gaussian); false to sample from the policy."""
    test_episodes: PositiveInt = 1000
    """Episodes per task in the final evaluation after training, on test seeds."""
    max_steps: PositiveInt | None = None
    """Timesteps after which an evaluated episode is truncated; None for 1,000 if the environment
    has no time limit of its own, else for no limit."""
    context_use: bool = True
    """Also play episodes with contexts swapped between them, to see if the agent uses its
    context; never more timesteps than the other episodes."""
    context_use_episodes: PositiveInt = 64
    """Maximum number of episodes per task with swapped contexts."""
    best_by: Literal["mean", "worst"] = "mean"
    """Criterion of the ``best`` checkpoint: the mean success rate over the tasks, or the success
    rate of the worst task; if a task reports no success, the same of scores or returns."""


class TrainConfig(Config):
    """A training run.

    Examples:
        >>> from mirl.configs.compose import compose_train
        >>> config = compose_train(["task=goto_door", "fusion=film", "agent.gamma=0.9", "seed=3"])
        >>> config.run_name
        'goto_door-film-ppo-seed3'
        >>> config.fusion.kind, config.agent.gamma
        ('film', 0.9)
    """

    # The next five have no default here: train.yaml always names a preset for them.
    task: SuiteConfig
    """Tasks to train on: a preset, or one or several environment ids joined by ``+``."""
    fusion: AutoFusionField
    """Fusion of the observation features x and the context z into y."""
    context: AutoContextField
    """Encoder of the context z: task id, mission or goal."""
    encoder: AutoEncoderField
    """Encoder of the observation into the features x."""
    agent: Annotated[AgentConfig, Field(discriminator="kind")]
    """Algorithm and its hyperparameters, named as in Stable-Baselines3."""
    memory: MemoryField = NoMemoryConfig()
    """Recurrent core of the policy (PPO and A2C)."""
    split: HoldoutConfig = HoldoutConfig()
    """Missions, goals or tasks to hold out of training and to evaluate separately."""
    sampling: Annotated[
        SamplingName, BeforeValidator(lambda value: replace_value("sampling", value))
    ] = "fixed"
    """Task of each new episode: ``fixed`` keeps one task per environment, ``uniform`` draws any,
    ``lowest_success`` and ``learning_progress`` prefer tasks with a low or a changing success
    rate."""
    sites: Annotated[tuple[Site, ...], AllowSingle] | None = None
    """Sites of the fusion, one or several: the feature map, the feature vector, the policy and
    value heads; null to choose them with the fusion."""
    observation_keys: Annotated[tuple[str, ...], AllowSingle] | None = None
    """Observation keys that are inputs; null for all keys except the context's, ``action_mask``,
    and the index of the task."""
    name: str = ""
    """Name of the run directory; empty for
    ``<task>[-<fusion>][-<memory>]-<agent>[-<split>]-seed<seed>``, without an ``auto`` fusion."""
    runs_dir: Path = Path("runs")
    """Parent folder of the run directories."""
    start_from: RunPath | None = None
    """Initial weights: a run directory (its best checkpoint), ``pretrained:NAME``, or a .zip file
    saved by Stable-Baselines3; None for random weights."""
    imports: Imports = ()
    """Modules of your own to import first, e.g. because they register environments."""
    total_timesteps: PositiveInt = 500_000
    """Timesteps to train for, over all environments; rounded up to whole rollouts. Many presets of
    tasks set it."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of the weights, the actions, the minibatches and the training environments."""
    device: DeviceName = "auto"
    """Device of the network; ``auto`` for CUDA if it is available."""
    precision: PrecisionName = "auto"
    """Precision of the training; ``auto`` for bfloat16 if a short measurement finds it clearly
    faster."""
    on_fault: Literal["stop", "skip"] = "stop"
    """Reaction to NaN or infinite weights, observations or rewards: ``stop`` ends the run with an
    error, ``skip`` continues without the update, gradient step or episode that caused them."""
    max_restarts: NonNegativeInt = 10
    """Maximum number of environment restarts, per start of the command, after an environment raised
    an error or its process died or hung."""
    env_timeout: PositiveFloat = 300.0
    """Seconds to wait for a worker process to answer; after that it counts as hung."""
    backend: BackendName = "auto"
    """Library that steps the environments; ``auto`` for EnvPool if it is installed and has all
    tasks."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Evaluation during training."""
    checkpoint_every: PositiveInt = 100_000
    """Timesteps between checkpoints."""
    videos: Annotated[
        bool | PositiveInt, BeforeValidator(lambda value: value == "every" or value)
    ] = True
    """GIFs of an episode per task: true (or ``every``) at each checkpoint, false for none, or the
    timesteps between them; those after the last timestep are recorded unless it is false."""
    logger: Annotated[tuple[LoggerName, ...], AllowSingle] = ("tensorboard", "csv")
    """Loggers of the metrics, one or several. ``metrics.csv`` is written in any case: resumed runs
    and comparisons read it. wandb, trackio and mlflow need ``pip install "mirl[NAME]"``."""
    log_every: PositiveInt = 1
    """Iterations between rows of the log."""
    progress: bool = True
    """Show a progress bar, or without a terminal a line per row of the log."""

    @model_validator(mode="before")
    @classmethod
    def _sentences_need_the_text(cls, values: object) -> object:
        # the environments must return the texts themselves instead of token ids
        if isinstance(values, dict) and _has_sentences(values.get("context")):
            return _with_task_option(values, "text_form", "utf8")
        return values

    @model_validator(mode="before")
    @classmethod
    def _unknown_codes_are_those_of_the_encoder(cls, values: object) -> object:
        # the environments must declare the rows that the encoder reads
        if isinstance(values, dict) and _option(values.get("encoder"), "unknown") == "hash":
            return _with_task_option(values, "unknown_codes", "hash")
        return values

    @field_validator("name")
    @classmethod
    def _name_is_a_folder_name(cls, name: str) -> str:
        if name and not re.fullmatch(RUN_NAME, name):
            raise ValueError(
                "name must be a plain folder name (at most 128 letters, digits, . _ + -, "
                f"the first a letter or digit), got '{name}'"
            )
        return name

    # Pydantic runs the validators in the order in which they are written.
    @model_validator(mode="after")
    def _sites_are_unique(self) -> Self:
        if self.sites is None:
            return self
        if len(set(self.sites)) != len(self.sites) or not self.sites:
            raise ValueError(
                f"sites must name at least one site and none twice, got {list(self.sites)}"
            )
        return self

    @model_validator(mode="after")
    def _backend_renders_pixels(self) -> Self:
        if self.task.observation == "rgb" and self.backend == "envpool":
            raise ValueError(
                "task.observation=rgb needs backend=gymnasium, got backend=envpool, "
                "which renders no pixels"
            )
        return self

    @model_validator(mode="after")
    def _every_task_has_an_environment(self) -> Self:
        if len(self.trained_tasks) > self.agent.n_envs:
            raise ValueError(
                f"agent.n_envs must be at least one per task, {len(self.trained_tasks)}, "
                f"got {self.agent.n_envs}"
            )
        return self

    @model_validator(mode="after")
    def _sequence_options_have_a_recurrent_core(self) -> Self:
        if not isinstance(self.memory, NoMemoryConfig):
            return self
        if not isinstance(self.agent, OnPolicyConfig):
            return self
        if self.agent.sequence_length or self.agent.burn_in:
            raise ValueError(
                "agent.sequence_length and agent.burn_in need a recurrent core, got memory=none"
            )
        return self

    @model_validator(mode="after")
    def _agent_trains_the_recurrent_core(self) -> Self:
        if isinstance(self.memory, NoMemoryConfig):
            return self
        # SB3's replay buffers store no hidden states
        if isinstance(self.agent, OffPolicyConfig):
            raise ValueError(
                f"memory={self.memory.kind} needs agent=ppo or agent=a2c, "
                f"got agent={self.agent.kind}"
            )
        length = self.agent.sequence_length or self.agent.n_steps
        # A2C has no minibatches: it trains on the whole rollout
        if isinstance(self.agent, PPOConfig):
            check_minibatches(
                self.agent.batch_size,
                length,
                self.agent.n_steps,
                self.agent.n_envs,
                prefix="agent.",
            )
        return self

    @model_validator(mode="after")
    def _multitask_options_have_several_tasks(self) -> Self:
        if len(self.trained_tasks) != 1:
            return self
        if self.sampling != "fixed":
            raise ValueError(
                f"sampling={self.sampling} needs several trained tasks, "
                f"and '{self.task.name}' has one; use sampling=fixed"
            )
        if isinstance(self.agent, OnPolicyConfig) and self.agent.pcgrad:
            raise ValueError(
                "agent.pcgrad=true needs several trained tasks, "
                f"and '{self.task.name}' has one; use agent.pcgrad=false"
            )
        return self

    @model_validator(mode="after")
    def _held_out_goals_are_not_relabeled(self) -> Self:
        if isinstance(self.agent, OffPolicyConfig) and self.agent.her and self.split.goal_low:
            raise ValueError(
                "agent.her=true would train on every achieved goal, including those that "
                "split.goal_low and split.goal_high hold out; use agent.her=false"
            )
        return self

    @model_validator(mode="after")
    def _split_leaves_a_task_to_train(self) -> Self:
        for name in self.split.tasks:
            self.task.task_index(name, where="split.tasks: ")
        if not self.trained_tasks:
            raise ValueError(
                f"split.tasks must leave a task to train on, got every task of '{self.task.name}'"
            )
        return self

    @property
    def network(self) -> NetworkConfig:
        """Return the networks of the policy, as one argument for the builders."""
        return NetworkConfig(
            fusion=self.fusion,
            context=self.context,
            encoder=self.encoder,
            sites=self.sites,
            memory=self.memory,
            observation_keys=self.observation_keys,
        )

    @property
    def trained_tasks(self) -> tuple[str, ...]:
        """Return the names of the tasks that are trained on."""
        indices = self.split.task_indices(self.task, "trained")
        return tuple(self.task.tasks[index].name for index in indices)

    @property
    def run_name(self) -> str:
        """Return the name of the run directory."""
        if self.name:
            return self.name
        parts = [file_name(self.task.name), *self._named_fusion]
        if not isinstance(self.memory, NoMemoryConfig):
            parts.append(short_name(self.memory))
        parts.append(self.agent.kind)
        if self.split.holds_out_any:
            # a split written on the command line keeps the default name "none"
            parts.append("split" if self.split.name == "none" else self.split.name)
        parts.append(f"seed{self.seed}")
        name = "-".join(parts)
        # the ids of many environments can make the name too long
        return name if len(name) <= MAX_FOLDER_NAME else short_file_name(name)

    @property
    def _named_fusion(self) -> tuple[str, ...]:
        """The fusion as a part of the run's name; empty if it is ``auto``."""
        # a run is opened before its environments exist, and the fusion is only chosen after that
        if isinstance(self.fusion, AutoFusionConfig):
            return ()
        return (short_name(self.fusion),)

    @property
    def run_dir(self) -> Path:
        """Return the path of the run directory."""
        return self.runs_dir / self.run_name

    @property
    def test_evaluation(self) -> "EvalConfig":
        """Return the evaluation after training, on seeds that were not used for training."""
        return EvalConfig(
            run=self.run_dir,
            checkpoint="last",
            backend=self.backend,
            device=self.device,
            deterministic=self.evaluation.deterministic,
            episodes=self.evaluation.test_episodes,
            context_use=self.evaluation.context_use,
            context_use_episodes=self.evaluation.context_use_episodes,
        )


def _has_sentences(context: object) -> bool:
    """Return True if a context, or a part of one, embeds sentences; it need not be valid."""
    if context == "sentence" or _option(context, "kind") == "sentence":
        return True
    parts = _option(context, "parts")
    return isinstance(parts, list | tuple) and any(_has_sentences(part) for part in parts)


def _option(group: object, name: str) -> object:
    """Return an option of a group, which may be plain values or a config."""
    if isinstance(group, dict):
        return group.get(name)
    return getattr(group, name, None)


def _with_task_option(values: dict[str, object], name: str, value: object) -> dict[str, object]:
    """Return values of a ``TrainConfig`` with an option of its suite; they need not be valid."""
    task = values.get("task")
    if isinstance(task, dict):
        return {**values, "task": {**task, name: value}}
    if isinstance(task, SuiteConfig):
        return {**values, "task": task.model_copy(update={name: value})}
    return values


class ResolvedConfig(TrainConfig):
    """A training run after ``auto`` was resolved against the environments' spaces.

    Run directories store this one, so that their networks are known without an environment.
    """

    fusion: FusionField
    """Fusion of the observation features x and the context z into y."""
    context: ContextField
    """Encoder of the context z: task id, mission or goal."""
    encoder: EncoderField
    """Encoder of the observation into the features x."""
    sites: Annotated[tuple[Site, ...], AllowSingle]
    """Sites of the fusion."""
    fusion_is_chosen: bool = False
    """The fusion was ``auto``, so it is not part of the run's name."""

    @property
    def _named_fusion(self) -> tuple[str, ...]:
        """The fusion as a part of the run's name; empty if it was ``auto``."""
        if self.fusion_is_chosen:
            return ()
        return super()._named_fusion


class EvalConfig(Config):
    """An evaluation, few-shot adaptation or export of a checkpoint.

    Examples:
        >>> from mirl.configs.schema import EvalConfig
        >>> config = EvalConfig(run="pretrained:goto_local", episodes=200)
        >>> config.run.name, config.checkpoint, config.deterministic
        ('goto_local', 'best', False)
    """

    run: RunPath
    """Run directory, e.g. ``runs/goto_door-ppo-seed0``, or ``pretrained:goto_local``."""
    imports: Imports = ()
    """Modules of your own that the run needs; a run directory imports none by itself."""
    checkpoint: str = "best"
    """Checkpoint: ``best``, ``last``, its number of timesteps, or the name of its folder."""
    episodes: PositiveInt = 1000
    """Episodes per task."""
    n_envs: PositiveInt = 250
    """Number of parallel environments, over all tasks; at least one per task is used."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of the test episodes; every value gives episodes that are not trained on."""
    backend: BackendName = "auto"
    """Library that steps the environments; it may differ from the training's."""
    device: DeviceName = "auto"
    """Device of the network; it may differ from the training's."""
    deterministic: bool = False
    """Take the most probable action (the mean of a Gaussian); false to sample from the policy."""
    context_use: bool = True
    """Also play episodes with contexts swapped between them, to see if the agent uses its
    context; never more timesteps than the other episodes."""
    context_use_episodes: PositiveInt = 64
    """Maximum number of episodes per task with swapped contexts."""
    inside: bool = False
    """Also measure how much of the policy's outputs depends on the observation, on the context and
    on both together, and write it as JSON, as a PNG and for TensorBoard. In videos of MiniGrid and
    BabyAI, mark the cells that the mission picks out."""
    gif: bool = False
    """Also write GIFs of a successful and a failed episode per task; of one if the task reports no
    success."""
    mp4: bool = False
    """Also write the episodes of ``gif`` as MP4s; it needs imageio-ffmpeg."""
    max_steps: PositiveInt | None = None
    """Timesteps after which an episode is truncated; None for ``evaluation.max_steps`` of the
    run."""
    adapt: Literal["no", "context", "network"] = "no"
    """Few-shot adaptation to a task in place of an evaluation: train only its context z, or the
    whole network."""
    success: Success | None = None
    """Success rule of every task in place of the run's, e.g. ``success=return>=5``; None for the
    run's own."""
    task: str = ""
    """Another level or suite to evaluate on, or to adapt to: a preset or environment ids. Empty for
    the run's own tasks, or to adapt to the held-out ones."""
    config_dir: Path | None = None
    """Folder of your own presets, for ``task``; it may be typed as ``--config-dir DIR``."""
    adapt_episodes: tuple[PositiveInt, ...] = (16, 64, 256, 1024)
    """Numbers of training episodes after which the adapted policy is evaluated, ascending."""
    export: str = ""
    """Export the policy in place of an evaluation: ``policy.onnx`` or ``policy.pt2`` with its
    context as an input; a mission or task, also with such an ending, for only that context."""

    @field_validator("adapt_episodes", mode="before")
    @classmethod
    def _brackets_may_be_omitted(cls, numbers: object) -> object:
        if isinstance(numbers, str):
            # brackets have to be quoted in some shells
            return numbers.strip("[]").split(",")
        return numbers

    @model_validator(mode="after")
    def _adapt_episodes_ascend(self) -> Self:
        if sorted(set(self.adapt_episodes)) != list(self.adapt_episodes):
            raise ValueError(f"adapt_episodes must ascend, got {list(self.adapt_episodes)}")
        return self

    @model_validator(mode="after")
    def _export_names_its_task(self) -> Self:
        if self.task and self.export:
            raise ValueError("task= and export= cannot be combined; export=… names the task itself")
        return self

    @model_validator(mode="after")
    def _one_result_is_asked_for(self) -> Self:
        video = self.gif or self.mp4
        given = {"adapt=": self.adapt != "no", "export=": self.export, "gif=": video}
        asked = [option for option, is_given in given.items() if is_given]
        if len(asked) > 1:
            raise ValueError(f"{' and '.join(asked)} cannot be combined; choose one of them")
        return self


class CardConfig(Config):
    """A model card: the evaluation of a checkpoint, written down with its settings and limits."""

    run: RunPath
    """Run directory, e.g. ``runs/goto_door-ppo-seed0``."""
    imports: Imports = ()
    """Modules of your own that the run needs; a run directory imports none by itself."""
    checkpoint: str = "best"
    """Checkpoint: ``best``, ``last``, its number of timesteps, or the name of its folder."""
    episodes: PositiveInt = 1000
    """Episodes per task."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of the test episodes; every value gives episodes that are not trained on."""
    deterministic: bool = False
    """Take the most probable action (the mean of a Gaussian); false to sample from the policy."""
    device: DeviceName = "auto"
    """Device of the network."""


class WatchConfig(Config):
    """A view of a trained agent: its episodes, its missions and its outputs."""

    run: RunPath
    """Run directory, e.g. ``runs/goto_door-ppo-seed0``, or ``pretrained:goto_local``."""
    imports: Imports = ()
    """Modules of your own that the run needs; a run directory imports none by itself."""
    checkpoint: str = "best"
    """Checkpoint: ``best``, ``last``, its number of timesteps, or the name of its folder."""
    task: str = ""
    """Name of one of the run's tasks; empty for the first."""
    mission: str = ""
    """Text that the agent reads in place of the environment's; the page also takes one."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of the first episode; every value gives episodes that are not trained on."""
    deterministic: bool = False
    """Take the most probable action (the mean of a Gaussian); false to sample from the policy."""
    device: DeviceName = "auto"
    """Device of the network."""
    view: Literal["page", "terminal"] = "page"
    """A page in this computer's browser, or frames in the terminal."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8642
    """Port of the page; 0 for any free port."""
    speed: Annotated[float, Field(gt=0, le=60)] = 6.0
    """Timesteps per second in the terminal; the page has a control for it."""


class PlayConfig(Config):
    """Episodes of a task, played with the keyboard."""

    task: str
    """Task to play: a preset or an environment id."""
    level: str = ""
    """Name of one of the tasks of a suite; empty for the first."""
    imports: Imports = ()
    """Modules of your own to import first, e.g. because they register environments."""
    config_dir: Path | None = None
    """Folder of your own presets; it may be typed as ``--config-dir DIR``."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of the first episode; the same seed gives it in ``mirl-watch``."""
    view: Literal["auto", "window", "terminal"] = "auto"
    """A window or the terminal; ``auto`` for a window if there is a display and the task can be
    played in one."""
