"""Access to a run from a notebook or a script: configuration, curves, policy and evaluations."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from mirl.agents.builder import Policy
from mirl.agents.evaluation import RunEvaluation, evaluate_run
from mirl.agents.policy_loader import restore_policy
from mirl.agents.runs.metric_names import TIMESTEPS
from mirl.agents.runs.run_directory import METRICS, RunDirectory
from mirl.agents.video import Gif, encode_gif, record_episode
from mirl.configs.compose import validate
from mirl.configs.errors import ConfigError
from mirl.configs.schema import DeviceName, EvalConfig, ResolvedConfig
from mirl.envs import env_seeds

if TYPE_CHECKING:  # pandas is imported on use
    import pandas as pd


class Run:
    """A run that has been trained, or is being trained, opened for reading.

    Args:
        path: the run directory, or ``pretrained:NAME``.
        checkpoint: "best", "last", a number of timesteps, or the name of a checkpoint's folder.
        device: device of the policy.

    Raises:
        ConfigError: the folder is not a run directory, or it has no such checkpoint.

    Examples:
        >>> from mirl.agents import Run
        >>> run = Run("pretrained:goto_local")
        >>> run.config.task.name, run.config.fusion.kind
        ('goto_local', 'product')
        >>> run.policy.action_space
        Discrete(7)

        In a notebook, ``run.video()`` at the end of a cell shows an episode, and
        ``run.curves()["eval/success_rate"].dropna().plot()`` plots a curve of one of your own runs.
    """

    def __init__(
        self, path: str | Path, checkpoint: str = "best", device: DeviceName = "auto"
    ) -> None:
        self._directory = RunDirectory.open(path)
        self._checkpoint = self._directory.checkpoint(checkpoint)
        self._device: DeviceName = device

    def __repr__(self) -> str:
        """Return the call that opens the run."""
        return f"Run('{self.path}', checkpoint='{self._checkpoint.name}')"

    @property
    def path(self) -> Path:
        """The run directory."""
        return self._directory.path

    @property
    def config(self) -> ResolvedConfig:
        """All options of the training; ``config.fusion.kind`` is the option ``fusion``."""
        return self._directory.config

    @cached_property
    def policy(self) -> Policy:
        """The policy of the checkpoint, in evaluation mode; loaded once.

        Raises:
            ConfigError: the checkpoint is damaged.
        """
        return restore_policy(self.config, self._checkpoint, self._device)

    def curves(self) -> "pd.DataFrame":
        """Return the logged metrics, the same that TensorBoard shows.

        Returns:
            A column per metric, in alphabetical order, and a row per log entry, indexed by its
            timesteps. A metric that was not logged there is NaN.

        Raises:
            ConfigError: the run has no table of metrics.
        """
        import pandas as pd  # takes half a second to load

        path = self.path / METRICS
        try:
            table = pd.read_csv(path)
        except (OSError, ValueError) as error:  # pandas' errors of parsing are ValueErrors
            raise ConfigError(f"{path} cannot be read: {error}") from None
        # the first row holds values known before training, and has no timesteps
        table = table.dropna(subset=[TIMESTEPS]).astype({TIMESTEPS: "int64"})
        # an evaluation is a separate entry with the same timesteps as another one
        return table.groupby(TIMESTEPS).last().sort_index(axis="columns")

    def evaluate(self, **options: object) -> RunEvaluation:
        """Evaluate the checkpoint on unseen episodes; the results are also written to ``eval/``.

        Args:
            options: options of ``mirl-eval``, such as ``episodes=200`` or ``task="goto_obj"``.

        Returns:
            The results; ``to_dataframe`` makes a table of them.

        Raises:
            ConfigError: an option is not valid, or the environments cannot be created.
        """
        values = {"device": self._device, **options, "run": str(self.path)}
        return evaluate_run(self._directory, self._checkpoint, validate(EvalConfig, values))

    def video(
        self, task: str = "", *, seed: int = 0, deterministic: bool = False, inside: bool = False
    ) -> Gif:
        """Play one test episode and return its frames as an animation, which a notebook displays.

        Args:
            task: name of a task of the run; empty for the first.
            seed: seed of the episode; every value gives episodes that were not trained on.
            deterministic: take the most probable actions.
            inside: mark the cells that the mission picks out, as ``mirl-eval inside=true`` does.

        Returns:
            The animation; ``Path("episode.gif").write_bytes(gif.data)`` saves it.

        Raises:
            ConfigError: the run has no such task, or its environment does not render pictures.
        """
        suite = self.config.task
        index = self._directory.task_index(task)
        [env_seed] = env_seeds(seed, "test", index, 1)
        recording = record_episode(
            self.policy,
            suite,
            index,
            seed=env_seed,
            deterministic=deterministic,
            inside=inside,
        )
        if recording is None:
            raise ConfigError(
                f"task '{suite.tasks[index].name}' has no video: its environment renders no "
                "rgb_array; choose another task"
            )
        return encode_gif(recording)
