"""SB3's logger with a CSV table, TensorBoard events and trackers that a resumed run continues."""

import csv
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import (
    CSVOutputFormat,
    KVWriter,
    Logger,
    TensorBoardOutputFormat,
)
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from mirl.agents.runs.dashboard import (
    RunDescription,
    custom_scalars,
    hyperparameter_summaries,
)
from mirl.agents.runs.metric_names import TIMESTEPS
from mirl.agents.runs.run_directory import METRICS
from mirl.agents.runs.trackers import (
    SB3_FORMATS,
    Outcome,
    Tracker,
    WandbTracker,
    open_trackers,
    to_number,
)
from mirl.agents.video import Gif
from mirl.configs.errors import PlainWarning
from mirl.configs.stored import check_regular

RGB = 3
"""``colorspace`` of TensorBoard's image summaries."""


class WarnOnWriteError:
    """A context that turns the first ``OSError`` into a warning and ignores the others.

    A failed log must not end a run.

    Args:
        target: description of the output, for the warning.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self.has_warned = False

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, OSError):
            return False
        if not self.has_warned:
            warnings.warn(
                f"{self.target} cannot be written ({error}); training continues without it",
                stacklevel=3,
            )
        self.has_warned = True
        return True


class FaultTolerantWriter(KVWriter):
    """A writer of SB3's logger whose errors never end a run."""

    write_errors: WarnOnWriteError

    def write(
        self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0
    ) -> None:
        """Write a row.

        Args:
            key_values: values by metric.
            key_excluded: writers that leave a metric out, by metric.
            step: timesteps.
        """
        numbers = {name: to_number(value) for name, value in key_values.items()}
        with self.write_errors:
            super().write(numbers, key_excluded, step)

    def close(self) -> None:
        """Close the file."""
        with self.write_errors:
            super().close()


class MetricsCsv(FaultTolerantWriter, CSVOutputFormat):
    """SB3's CSV table; a resumed run keeps the rows up to its checkpoint.

    Args:
        path: the file.
        resumed_at: timesteps of the checkpoint that the run is resumed from; 0 or None if there is
            none.
    """

    def __init__(self, path: Path, resumed_at: int | None) -> None:
        # instead of SB3's constructor, which empties the file
        self.keys: list[str] = []
        self.separator = ","
        self.quotechar = '"'
        if path.exists() or path.is_symlink():
            check_regular(path)
        if resumed_at and path.exists():
            try:
                self.keys = _drop_rows_after(path, resumed_at)
            except (csv.Error, ValueError) as error:
                _set_aside(path, error)
        # readable, because SB3 rewrites the whole table when a column is added
        self.file = path.open("r+" if self.keys else "w+", encoding="utf-8")
        self.file.seek(0, 2)  # to the end
        self.write_errors = WarnOnWriteError(str(path))


def _set_aside(path: Path, error: Exception) -> None:
    """Rename a table that cannot be read, so that a new one begins."""
    aside = path.with_name(f"damaged_{path.name}")
    path.replace(aside)
    warnings.warn(
        f"{path} is damaged ({error}); it is {aside.name} now, and a new table begins",
        PlainWarning,
        stacklevel=5,
    )


def _drop_rows_after(path: Path, timesteps: int) -> list[str]:
    """Rewrite a table without the rows after ``timesteps``; return its columns."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        # the first row, the number of parameters, has no timesteps and is kept
        rows = [row for row in reader if int(row.get(TIMESTEPS) or 0) <= timesteps]
    columns = list(reader.fieldnames or [])
    # the reader stores surplus cells under the column None
    if any(None in row for row in rows):
        raise ValueError("its rows do not fit its columns")
    temporary = path.with_name(f".{path.name}.tmp")
    # always a new file, because a link of this name would point to another file
    temporary.unlink(missing_ok=True)
    with temporary.open("x", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(path)
    return columns


class TensorBoard(FaultTolerantWriter, TensorBoardOutputFormat):
    """SB3's TensorBoard writer; a resumed run hides the points after its checkpoint.

    Args:
        folder: folder of the event files.
        resumed_at: timesteps of the checkpoint that the run is resumed from, 0 if there is no
            checkpoint yet; None for a new run.
    """

    def __init__(self, folder: Path, resumed_at: int | None) -> None:
        # TensorBoard hides the points of earlier files from purge_step on
        purge_step = resumed_at
        if resumed_at:
            purge_step = resumed_at + 1  # the points at the checkpoint itself are valid
        self.writer = SummaryWriter(str(folder), purge_step=purge_step)
        self._is_closed = False
        self.write_errors = WarnOnWriteError(f"TensorBoard's events in {folder}")

    def write_gif(self, tag: str, gif: Gif, step: int) -> None:
        """Write an animation as an image summary; ``add_video`` needs an old moviepy.

        Args:
            tag: name of the animation.
            gif: the animation.
            step: timesteps.
        """
        image = Summary.Image(
            encoded_image_string=gif.data, width=gif.width, height=gif.height, colorspace=RGB
        )
        summary = Summary(value=[Summary.Value(tag=tag, image=image)])
        assert self.writer.file_writer is not None
        with self.write_errors:
            self.writer.file_writer.add_summary(summary, step)
            self.writer.flush()  # videos are rare; show them at once

    def write_dashboard(self, run: RunDescription) -> None:
        """Write the layout of TensorBoard's pages.

        Args:
            run: hyperparameters and tasks of the run.
        """
        assert self.writer.file_writer is not None
        with self.write_errors:
            for summary in hyperparameter_summaries(run):
                self.writer.file_writer.add_summary(summary)
            self.writer.add_custom_scalars(custom_scalars(run.tasks))


class RunLogger(Logger):
    """SB3's logger of a run directory.

    Args:
        run_dir: the run directory.
        writers: the writers.
    """

    def __init__(self, run_dir: Path, writers: Sequence[KVWriter]) -> None:
        super().__init__(str(run_dir), list(writers))
        self.writers = writers

    def write_gif(self, tag: str, gif: Gif, step: int) -> None:
        """Write an animation with the writers that support it.

        Args:
            tag: name of the animation.
            gif: the animation.
            step: timesteps.
        """
        for writer in self.writers:
            if isinstance(writer, TensorBoard | WandbTracker):
                writer.write_gif(tag, gif, step)

    def write_dashboard(self, run: RunDescription) -> None:
        """Write the layout of TensorBoard's pages, if TensorBoard is used.

        Args:
            run: hyperparameters and tasks of the run.
        """
        for writer in self.writers:
            if isinstance(writer, TensorBoard):
                writer.write_dashboard(run)

    def set_outcome(self, outcome: Outcome) -> None:
        """Tell the trackers how the training ended; otherwise they assume that it failed.

        Args:
            outcome: the end of the training.
        """
        for writer in self.writers:
            if isinstance(writer, Tracker):
                writer.outcome = outcome


def build_logger(
    run_dir: Path,
    resumed_at: int | None,
    names: Sequence[str] = ("tensorboard",),
    options: Mapping[str, object] | None = None,
) -> RunLogger:
    """Build SB3's logger over ``metrics.csv`` and other loggers.

    Args:
        run_dir: the run directory.
        resumed_at: timesteps of the checkpoint that the run is resumed from, 0 if there is no
            checkpoint yet; None for a new run.
        names: the loggers; ``metrics.csv`` is written in any case.
        options: the configuration, nested, for the trackers.

    Returns:
        The logger.
    """
    table_path = run_dir / METRICS
    logged: dict[str, int] = {}
    if resumed_at is not None and set(names) - SB3_FORMATS:
        # read before the table drops the rows that the run will repeat
        logged = _last_timesteps(table_path)
    writers: list[KVWriter] = []
    if "tensorboard" in names:
        writers.append(TensorBoard(run_dir, resumed_at))
    # before the table, so that if the process is killed they have everything the table has
    writers += open_trackers(names, run_dir, options or {}, logged)
    writers.append(MetricsCsv(table_path, resumed_at))
    return RunLogger(run_dir, writers)


def _last_timesteps(path: Path) -> dict[str, int]:
    """Return the last timesteps at which each metric of a table has a value."""
    last: dict[str, int] = {}
    if not path.is_file() or path.is_symlink():
        return last
    # a damaged table is reported by its writer
    with suppress(csv.Error, ValueError), path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            timesteps = int(row.get(TIMESTEPS) or 0)
            for name, value in row.items():
                if name and value:
                    last[name] = timesteps
    return last
