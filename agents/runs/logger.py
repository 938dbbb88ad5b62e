"""TODO docstring."""

import csv
import warnings
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

from mirl.agents.runs.metric_names import TIMESTEPS
from mirl.agents.video import Gif


class WarnOnWriteError:
    """Goes on where a log cannot be written, and says so once: no run ends for its curves."""

    def __init__(self, what: str) -> None:
        self.what, self.said = what, False

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, OSError):
            return False
        if not self.said:
            warnings.warn(
                f"{self.what} cannot be written ({error}); training goes on without", stacklevel=3
            )
        self.said = True
        return True


class FaultTolerantWriter(KVWriter):
    """What the two logs share: neither ends a run."""

    tolerant: WarnOnWriteError

    def write(
        self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0
    ) -> None:
        with self.tolerant:
            super().write(key_values, key_excluded, step)

    def close(self) -> None:
        with self.tolerant:
            super().close()


class MetricsCsv(FaultTolerantWriter, CSVOutputFormat):
    """SB3's CSV table; a continued run keeps its rows up to the checkpoint that it goes on from."""

    def __init__(self, path: Path, resumed_at: int | None) -> None:
        self.keys: list[str] = []
        self.separator, self.quotechar = ",", '"'
        if resumed_at and path.exists():
            with path.open(encoding="utf-8", newline="") as old:
                table = csv.DictReader(old)
                rows = [row for row in table if int(row.get(TIMESTEPS) or 0) <= resumed_at]
            self.keys = list(table.fieldnames or [])
            temporary = path.with_name(f".{path.name}.tmp")
            with temporary.open("w", encoding="utf-8", newline="") as kept:
                writer = csv.DictWriter(kept, self.keys, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
            temporary.replace(path)
        self.file = path.open("r+" if self.keys else "w+", encoding="utf-8")
        self.file.seek(0, 2)
        self.tolerant = WarnOnWriteError(str(path))


class TensorBoard(FaultTolerantWriter, TensorBoardOutputFormat):
    """SB3's TensorBoard writer; points behind ``resumed_at``, left by a run that was cut off, are hidden."""

    def __init__(self, folder: Path, resumed_at: int | None) -> None:
        purge_from = None if resumed_at is None else resumed_at + 1 if resumed_at else 0
        self.writer = SummaryWriter(str(folder), purge_step=purge_from)
        self._is_closed = False
        self.tolerant = WarnOnWriteError(f"TensorBoard's events in {folder}")

    def write_gif(self, tag: str, gif: Gif, step: int) -> None:
        """An animation, as the image summary that the page plays (``add_video`` needs an old moviepy)."""
        image = Summary.Image(
            encoded_image_string=gif.data, width=gif.width, height=gif.height, colorspace=3
        )
        assert self.writer.file_writer is not None
        with self.tolerant:
            self.writer.file_writer.add_summary(
                Summary(value=[Summary.Value(tag=tag, image=image)]), step
            )
            self.writer.flush()


def build_logger(run_dir: Path, resumed_at: int | None) -> tuple[Logger, TensorBoard]:
    """SB3's logger over ``metrics.csv`` and TensorBoard events in the run directory.

    :param resumed_at: the timestep that a continued run goes on from, 0 where it has no checkpoint; None for a new run.
    """
    board = TensorBoard(run_dir, resumed_at)
    return Logger(str(run_dir), [board, MetricsCsv(run_dir / "metrics.csv", resumed_at)]), board
