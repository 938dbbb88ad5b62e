"""Names of what MIRL logs beside SB3's own scalars (docs/metrics.md explains each), and the two files they go to."""

from pathlib import Path

from stable_baselines3.common.logger import CSVOutputFormat, Logger, TensorBoardOutputFormat
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from mirl.agents.video import Gif

SPEED_TOTAL = "speed/total"
SPEED_ENVIRONMENT = "speed/environment"
SPEED_FORWARD = "speed/forward"
SPEED_UPDATE = "speed/update"
EVAL_SUCCESS = "eval/success_rate"
EVAL_RETURN = "eval/return"


def task_metric(split: str, task: str, metric: str) -> str:
    """``train/<task>/success_rate`` and its like; ``split`` is ``task`` while training and ``eval`` on unseen seeds."""
    return f"{split}/{task}/{metric}"


class MetricsCsv(CSVOutputFormat):
    """SB3's CSV table, continued instead of overwritten when the run is."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("r+" if path.exists() else "w+", encoding="utf-8")
        header = self.file.readline().strip()
        self.keys = header.split(",") if header else []
        self.separator, self.quotechar = ",", '"'
        self.file.seek(0, 2)


class TensorBoard(TensorBoardOutputFormat):
    """SB3's TensorBoard writer; points after ``purge_step``, left by a run that was cut off, are hidden."""

    def __init__(self, folder: Path, purge_step: int | None) -> None:
        self.writer = SummaryWriter(str(folder), purge_step=purge_step)
        self._is_closed = False

    def write_gif(self, tag: str, gif: Gif, step: int) -> None:
        """An animation, as the image summary that the page plays (``add_video`` needs an old moviepy)."""
        image = Summary.Image(encoded_image_string=gif.data, width=gif.width, height=gif.height, colorspace=3)
        assert self.writer.file_writer is not None
        self.writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)
        self.writer.flush()


def build_logger(run_dir: Path, resumed_at: int | None) -> tuple[Logger, TensorBoard]:
    """SB3's logger over ``metrics.csv`` and TensorBoard events in the run directory."""
    board = TensorBoard(run_dir, None if resumed_at is None else resumed_at + 1)
    return Logger(str(run_dir), [board, MetricsCsv(run_dir / "metrics.csv")]), board
