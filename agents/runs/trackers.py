"""Experiment trackers as writers of SB3's logger: Weights & Biases, Trackio and MLflow.

Their packages are optional and imported when a run begins. A tracker continues the run whose id is
stored in the run directory, and its errors never end the training.
"""

import contextvars
import os
import posixpath
import re
import time
import uuid
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from stable_baselines3.common.logger import KVWriter
from torch import Tensor

from mirl.agents.runs.atomic_files import load_json, write_json
from mirl.agents.runs.metric_names import TIMESTEPS
from mirl.agents.video import Gif
from mirl.configs.errors import ConfigError, PlainWarning
from mirl.configs.stored import check_regular

PROJECT = "mirl"
"""Project, or experiment, of all runs unless the tracker's environment variable names another."""
IDS = "loggers.json"
"""File of a run directory with the ids of its runs in the trackers."""
ID = r"[\w.+-]{1,300}"
"""Pattern of an id."""
SB3_FORMATS = {"csv", "tensorboard"}
"""Formats of SB3's logger in a run; what both leave out, the trackers leave out, too."""
PATIENCE = 10
"""Pause of a tracker after a failed attempt, in multiples of the time that the attempt took."""
MLFLOW_NAME = 250
"""Maximum length of a name in MLflow."""
MLFLOW_BATCH = 100
"""Maximum number of parameters that MLflow accepts at once."""

Scalar = bool | int | float | str
Outcome = Literal["finished", "killed", "failed"]
"""Outcome of a training: completed, stopped by a signal, or stopped by an error."""
EXIT_CODES: dict[Outcome, int] = {"finished": 0, "killed": 255, "failed": 1}
"""Exit codes of a run for Weights & Biases, which interprets 255 as Ctrl-C."""


def to_number(value: object) -> object:
    """Return the number in a zero-dimensional tensor or array; return other values unchanged.

    SB3's writers would print "tensor(0.5)" into the table and draw a histogram of one number.

    Args:
        value: a value of SB3's logger.
    """
    if isinstance(value, Tensor | np.ndarray) and value.ndim == 0:
        return value.item()
    return value


def flatten(options: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, Scalar]]:
    """Yield options by dotted names; values that are not scalars become strings.

    Args:
        options: nested dictionaries.
        prefix: text before each name.
    """
    for key, value in options.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        elif isinstance(value, Scalar):
            yield prefix + key, value
        else:
            yield prefix + key, str(value)


class Tracker(KVWriter, ABC):
    """A tracker as a writer of SB3's logger: numbers by timestep; other values are left out.

    The first error causes a warning; training continues in any case.

    Args:
        run_dir: the run directory, whose name is also the run's name in the tracker.
        options: the configuration.
        logged: last timestep that the tracker has of each metric, from before the run was
            resumed; these values are not logged again.
    """

    name: ClassVar[str]
    """Name of the option's value, of the package and of the extra."""

    def __init__(
        self, run_dir: Path, options: Mapping[str, object], logged: Mapping[str, int]
    ) -> None:
        self.run_dir = run_dir
        self.options = options
        self.outcome: Outcome = "failed"
        """Outcome of the training; ``failed`` until another outcome is known."""
        self.is_open = False
        self.has_warned = False
        self.rests_until = 0.0
        ids = load_ids(run_dir)
        self.id = ids.get(self.name)
        # a tracker that was just added to the run has no logged values
        self.logged = logged if self.id else {}
        self._attempt(self._open)

    def _open(self) -> None:
        run_id = self.open()
        # the ids of other trackers may have been added since
        write_json(self.run_dir / IDS, {**load_ids(self.run_dir), self.name: run_id})
        self.is_open = True

    def write(
        self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0
    ) -> None:
        """Send the numbers of a row.

        Args:
            key_values: values by metric; texts, figures, videos and the like are left out.
            key_excluded: writers that leave a metric out, by metric.
            step: timesteps.
        """
        if not self.is_open or time.monotonic() < self.rests_until:
            return
        self._attempt(lambda: self._send_new(key_values, key_excluded, int(step)))

    def _send_new(
        self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int
    ) -> None:
        numbers: dict[str, float] = {}
        for key, value in key_values.items():
            number = to_number(value)
            excluded = set(key_excluded.get(key) or ())
            # callers only know SB3's formats; excluding all of them means excluding the metric
            if self.name in excluded or excluded >= SB3_FORMATS:
                continue
            if isinstance(number, Real) and step > self.logged.get(key, -1):
                # plain floats, because not every tracker accepts numpy's
                numbers[key] = float(number)
        if numbers:
            self.send(numbers, step)

    def close(self) -> None:
        """End the run with ``outcome``."""
        if self.is_open:
            self.is_open = False
            self._attempt(self.finish)

    def _attempt(self, call: Callable[[], None]) -> None:
        start = time.monotonic()
        try:
            call()
        except Exception as error:  # third-party packages may raise anything
            # pause, so that an unavailable server does not slow down training
            end = time.monotonic()
            self.rests_until = end + PATIENCE * (end - start)
            if not self.has_warned:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                warnings.warn(
                    f"logger={self.name} failed ({reason}); training continues without it, and "
                    "metrics.csv has all values",
                    PlainWarning,
                    stacklevel=4,
                )
            self.has_warned = True

    @abstractmethod
    def open(self) -> str:
        """Begin a run, or continue the run ``id``; return its id."""

    @abstractmethod
    def send(self, numbers: dict[str, float], step: int) -> None:
        """Send numbers.

        Args:
            numbers: values by metric.
            step: timesteps.
        """

    @abstractmethod
    def finish(self) -> None:
        """End the run with ``outcome``."""


class WandbTracker(Tracker):
    """Weights & Biases, with videos. Timesteps are its steps.

    Its environment variables (``WANDB_PROJECT``, ``WANDB_ENTITY``, ``WANDB_MODE``, …) apply.
    """

    name = "wandb"

    def open(self) -> str:
        """Begin a run, or continue the run ``id``; return its id."""
        import wandb

        run_id = self.id or uuid.uuid4().hex[:12]
        # in addition to other runs of the process; wandb would otherwise return the first of them
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=self.run_dir.name,
            id=run_id,
            resume="allow",
            reinit="create_new",
            config=dict(self.options),
            allow_val_change=True,  # total_timesteps may grow
        )
        if self.run.offline:
            # if the process was killed, the file may lack the last seconds
            self.logged = {}
        return run_id

    def send(self, numbers: dict[str, float], step: int) -> None:
        """Send numbers.

        Args:
            numbers: values by metric.
            step: timesteps.
        """
        self.run.log(numbers, step=step)

    def write_gif(self, tag: str, gif: Gif, step: int) -> None:
        """Send an animation.

        Args:
            tag: name of the animation.
            gif: the animation.
            step: timesteps.
        """
        import wandb

        if self.is_open and step > self.logged.get(TIMESTEPS, -1):
            video = {tag: wandb.Video(BytesIO(gif.data), format="gif")}
            self._attempt(lambda: self.run.log(video, step=step))

    def finish(self) -> None:
        """End the run with ``outcome``."""
        self.run.finish(exit_code=EXIT_CODES[self.outcome])


class TrackioTracker(Tracker):
    """Trackio, local unless its environment variables (``TRACKIO_SPACE_ID``, …) say otherwise.

    Trackio does not store the state of a run, so a stopped one looks like a finished one. It finds
    a run by its name, which is the id here.
    """

    name = "trackio"

    def open(self) -> str:
        """Begin a run, or continue the run ``id``; return its id."""
        import trackio

        name = self.id or self._free_name()
        # in a separate context, because init ends the run of the current one
        self.run = contextvars.Context().run(
            trackio.init,
            project=PROJECT,
            name=name,
            config=dict(self.options),
            resume="allow" if self.id else "never",
        )
        # rows are stored in the background; if the process was killed, the last may be missing
        self.logged = {}
        return name

    def _free_name(self) -> str:
        """Return the name of the run directory, with a suffix if another run has the same name."""
        import trackio

        name = self.run_dir.name
        try:
            taken = [run.name for run in trackio.Api().runs(PROJECT)]
        except ValueError:  # no project yet
            taken = []
        return f"{name}-{uuid.uuid4().hex[:6]}" if name in taken else name

    def send(self, numbers: dict[str, float], step: int) -> None:
        """Send numbers.

        Args:
            numbers: values by metric.
            step: timesteps.
        """
        self.run.log(numbers, step=step)

    def finish(self) -> None:
        """End the run with ``outcome``."""
        self.run.finish()


class MlflowTracker(Tracker):
    """MLflow. Its environment variables (``MLFLOW_TRACKING_URI``, …) apply.

    Parameters are those that the run began with, because MLflow does not allow changing them.
    """

    name = "mlflow"

    def open(self) -> str:
        """Begin a run, or continue the run ``id``; return its id."""
        from mlflow import MlflowClient

        # the client has no active run, which other runs of the process would share
        self.client = MlflowClient()
        if self.id is not None:
            self.client.update_run(self.id, status="RUNNING")
            self.run_id = self.id
            return self.id
        run = self.client.create_run(self._experiment_id(), run_name=self.run_dir.name)
        self.run_id = run.info.run_id
        self._attempt(self._log_parameters)
        return self.run_id

    def _experiment_id(self) -> str:
        from mlflow.exceptions import MlflowException

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return self.client.create_experiment(name)
            except MlflowException:  # another process was faster
                experiment = self.client.get_experiment_by_name(name)
                if experiment is None:
                    raise
        return experiment.experiment_id

    def _log_parameters(self) -> None:
        from mlflow.entities import Param

        parameters: list[Any] = []
        for name, value in flatten(self.options):
            parameters.append(Param(_mlflow_name(name), str(value)))
        for first in range(0, len(parameters), MLFLOW_BATCH):
            self.client.log_batch(self.run_id, params=parameters[first : first + MLFLOW_BATCH])

    def send(self, numbers: dict[str, float], step: int) -> None:
        """Send numbers.

        Args:
            numbers: values by metric.
            step: timesteps.
        """
        from mlflow.entities import Metric

        milliseconds = int(time.time() * 1000)
        metrics: list[Any] = []
        for name, value in numbers.items():
            metrics.append(Metric(_mlflow_name(name), value, milliseconds, step))
        self.client.log_batch(self.run_id, metrics=metrics, synchronous=True)

    def finish(self) -> None:
        """End the run with ``outcome``."""
        self.client.set_terminated(self.run_id, status=self.outcome.upper())


def _mlflow_name(name: str) -> str:
    """Return a name that MLflow accepts, because names of tasks may contain any character."""
    name = re.sub(r"[^/\w.\- :]", "_", name)
    if posixpath.normpath(name) != name or name.startswith(("/", "..")):
        name = name.replace("/", "_")
    return name[:MLFLOW_NAME]


TRACKERS: dict[str, type[Tracker]] = {
    tracker.name: tracker for tracker in (WandbTracker, TrackioTracker, MlflowTracker)
}
"""Trackers by their names."""


def open_trackers(
    names: Sequence[str],
    run_dir: Path,
    options: Mapping[str, object],
    logged: Mapping[str, int],
) -> list[Tracker]:
    """Begin or continue the runs of a run directory in trackers.

    Args:
        names: names of loggers; those that are not trackers are left out.
        run_dir: the run directory.
        options: the configuration, nested.
        logged: last timestep before the run was resumed, by metric.

    Returns:
        The trackers, some of which may have failed with a warning.
    """
    trackers: list[Tracker] = []
    for name in dict.fromkeys(names):
        if name in TRACKERS:
            trackers.append(TRACKERS[name](run_dir, options, logged))
    return trackers


def load_ids(run_dir: Path) -> dict[str, str]:
    """Return the ids of a run in the trackers, by their names; empty if there are none.

    Args:
        run_dir: the run directory.

    Raises:
        ConfigError: the file is a link, or damaged.
    """
    path = run_dir / IDS
    if not path.exists() and not path.is_symlink():
        return {}
    check_regular(path)
    ids = load_json(path)
    for name, run_id in ids.items():
        if not isinstance(run_id, str) or not re.fullmatch(ID, run_id):
            raise ConfigError(
                f"{path}: expected the id of a run in {name}, got {run_id!r}; delete the file to "
                "log to new runs"
            )
    return ids
