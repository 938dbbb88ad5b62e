"""Run directories: a configuration, its checkpoints, and a lock for the training process."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import yaml
from filelock import FileLock, Timeout
from stable_baselines3.common.base_class import BaseAlgorithm

from mirl.agents.runs.atomic_files import write_bytes, write_text
from mirl.agents.runs.checkpoint import Checkpoint, Criterion, EpisodeRecords
from mirl.agents.runs.checkpoint_directory import CheckpointDirectory
from mirl.agents.runs.trackers import IDS
from mirl.configs.commands.pretrained import results_folder, run_path
from mirl.configs.errors import ConfigError, RunError, first_lines
from mirl.configs.schema import ResolvedConfig, TrainConfig
from mirl.configs.stored import CONFIG, check_regular, load_stored
from mirl.configs.tasks import file_name, short_file_name

LOCK = ".lock"
"""File that the training process locks."""
METRICS = "metrics.csv"
"""Table of the logged metrics, a row per log entry."""
LOG_FILES = (METRICS, "events.out.tfevents.*", IDS)
"""Patterns of the files of the loggers."""
FREE_FIELDS = frozenset(
    (
        *("device", "progress", "videos", "runs_dir", "name", "imports", "fusion_is_chosen"),
        *("on_fault", "max_restarts", "env_timeout", "logger"),
    )
)
"""Fields in which a resumed run may differ, because they do not affect learning."""
MAX_NAMED = 3
"""Maximum number of differing options in the suggested name for another run."""
Difference = tuple[str, object, object]
"""An option, its stored value and its current value."""
Scalar = bool | int | float | str
PROBE = ".probe"
"""File that is written and removed to check that the run directory is writable."""
PROBE_BYTES = 2**16
"""Size of the probe: about what a run writes before its first checkpoint."""


class RunDirectory:
    """A run directory: its path, its configuration and its checkpoints.

    ``open`` opens an existing run for reading, ``find`` opens the run of a configuration to resume
    it, and ``create`` creates it.

    Args:
        path: the run directory.
        config: the configuration that it holds.
        is_new: True if the directory was created just now.
    """

    def __init__(self, path: Path, config: ResolvedConfig, *, is_new: bool = False) -> None:
        self.path = path
        self.config = config
        self.is_new = is_new
        self.checkpoints = CheckpointDirectory(path / "checkpoints")

    @property
    def results_dir(self) -> Path:
        """Folder for results: the run directory, or one in ``runs/`` for a pretrained run."""
        return results_folder(self.path)

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open an existing run, or a pretrained one that comes with MIRL.

        Args:
            path: the run directory, or ``pretrained:NAME``.

        Returns:
            The run.

        Raises:
            ConfigError: the folder is not a run directory, its configuration is not valid, or it
                names a module that may not be imported.
        """
        path = run_path(path)
        return cls(path, load_stored(path))

    @classmethod
    def create(cls, config: ResolvedConfig) -> Self:
        """Create the run directory of a configuration.

        Args:
            config: the configuration, which is written to the directory.

        Returns:
            The run.

        Raises:
            ConfigError: the directory holds something else, or cannot be created.
        """
        path = config.run_dir
        try:
            if path.is_dir() and any(path.iterdir()):
                raise ConfigError(f"{path} exists and is not a run directory; choose a name=…")
            path.mkdir(parents=True, exist_ok=True)
            _store_config(path, config)
        except OSError as error:
            raise ConfigError(
                f"the run directory {path} cannot be created: {error.strerror}"
            ) from None
        return cls(path, config, is_new=True)

    @classmethod
    def stored(cls, config: TrainConfig) -> ResolvedConfig | None:
        """Load the configuration stored in a run directory, which may differ from the given one.

        Args:
            config: the configuration of a training command.

        Returns:
            The stored configuration; None if there is none yet.

        Raises:
            ConfigError: the stored configuration is not valid.
        """
        # a training command reads the stored configuration only here
        if not (config.run_dir / CONFIG).exists():
            return None
        return load_stored(config.run_dir, advice="; if this is another run, choose another name=…")

    @classmethod
    def find(
        cls,
        config: ResolvedConfig,
        complete: Callable[[ResolvedConfig], ResolvedConfig] = lambda stored: stored,
        stored: ResolvedConfig | None = None,
    ) -> Self | None:
        """Find the existing run of a configuration, to resume it.

        Args:
            config: the configuration; it may differ from that of the directory in ``FREE_FIELDS``,
                and have more timesteps.
            complete: adds the fields that a stored configuration of an earlier version lacks.
            stored: the stored configuration, if it was loaded before.

        Returns:
            The run, with ``config`` as its configuration; None if there is none yet.

        Raises:
            ConfigError: the directory holds a run with another configuration (the error lists the
                differences), or one that names a module that may not be imported.
        """
        path = config.run_dir
        stored = stored or cls.stored(config)
        if stored is None:
            return None
        differences = _differences(complete(stored), config)
        if differences:
            lines = [f"  {name}: {old!r} there, {new!r} now" for name, old, new in differences]
            listed = "\n".join(first_lines(lines))
            raise ConfigError(
                f"{path} holds a run of another configuration; choose another name, e.g. "
                f"name={_other_name(config.run_name, differences)}\n{listed}"
            )
        if config.total_timesteps < stored.total_timesteps:
            raise ConfigError(
                f"{path} is a run of total_timesteps={stored.total_timesteps}, which may only "
                f"grow, got {config.total_timesteps}; repeat that number to resume it, or choose "
                "another name=…"
            )
        return cls(path, config)

    def task_index(self, name: str) -> int:
        """Return the index of a task in the suite of the run.

        Args:
            name: its name; empty for the first.

        Returns:
            The index.

        Raises:
            ConfigError: the run has no such task; the error suggests the nearest.
        """
        return self.config.task.task_index(name, where=f"{self.path}: ") if name else 0

    def store_length(self, stored: ResolvedConfig) -> None:
        """Store the timesteps of a run that is trained for longer than planned.

        Args:
            stored: the configuration that the directory holds; nothing else in it changes.

        Raises:
            ConfigError: the file cannot be written.
        """
        length = {"total_timesteps": self.config.total_timesteps}
        try:
            _store_config(self.path, stored.model_copy(update=length))
        except OSError as error:
            raise ConfigError(
                f"{self.path / CONFIG} cannot be written: {error.strerror}; choose another name=…"
            ) from None

    def discard(self) -> None:
        """Delete all files that a new run has written before its first checkpoint.

        The corrected command then starts from scratch instead of finding a run with another
        configuration.
        """
        if not self.is_new or not self.checkpoints.is_empty:
            return
        written = [self.path / CONFIG, self.path / LOCK]
        for pattern in LOG_FILES:
            written += self.path.glob(pattern)
        # an error while deleting must not hide the one that ended the run
        with suppress(OSError):
            for path in written:
                path.unlink(missing_ok=True)
            self.path.rmdir()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from training in the run directory, which must be writable.

        The operating system releases the lock when the process ends, however it ends.

        Raises:
            ConfigError: another process trains in the run directory, or its lock is not a file.
            RunError: the directory cannot be written: the disk is full, or another user owns it.
        """
        path = self.path / LOCK
        if path.exists() or path.is_symlink():
            check_regular(path)
        lock = FileLock(path)
        try:
            # no waiting, because an immediate error is better than a command that seems to hang
            lock.acquire(timeout=0)
        except Timeout:
            raise ConfigError(
                f"another process is training in {self.path}; wait for it, or choose a name=…"
            ) from None
        except OSError as error:
            raise self._unwritable(error) from None
        try:
            self._check_writable()
            yield
        finally:
            lock.release()

    def _check_writable(self) -> None:
        """Raise at once if the folder cannot be written, instead of after hours of training."""
        probe = self.path / PROBE
        try:
            write_bytes(probe, bytes(PROBE_BYTES))
            probe.unlink()
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> RunError:
        return RunError(
            f"{self.path} cannot be written: {error.strerror}. Nothing in it was changed; mend "
            "that and run the same command again, or choose another runs_dir=…"
        )

    def checkpoint(self, which: str) -> Checkpoint:
        """Find a checkpoint.

        Args:
            which: "last", "best", or a number of timesteps.

        Returns:
            The checkpoint.

        Raises:
            ConfigError: there is no such checkpoint (the error suggests the nearest), or its state
                is damaged.
        """
        return self.checkpoints.find(which)

    def latest_valid_checkpoint(self) -> Checkpoint | None:
        """Return the newest checkpoint that is not damaged, to resume from it.

        Returns:
            The checkpoint, verified; None if there is none yet.

        Raises:
            ConfigError: there are checkpoints, and all of them are damaged.
        """
        return self.checkpoints.latest_valid()

    def save_checkpoint(
        self,
        agent: BaseAlgorithm,
        *,
        score: float | None = None,
        criterion: Criterion = "success",
        episodes: EpisodeRecords | None = None,
    ) -> Checkpoint:
        """Save an agent as the last checkpoint, and as the best one if a score is given.

        Args:
            agent: the agent.
            score: score of the evaluation that made it the best.
            criterion: quantity that the score measures.
            episodes: the last episodes of each task.

        Returns:
            The checkpoint.

        Raises:
            OSError: it cannot be written; the earlier checkpoints are unchanged.
        """
        return self.checkpoints.save(agent, score=score, criterion=criterion, episodes=episodes)


def adopt_texts(config: TrainConfig, stored: ResolvedConfig | None) -> TrainConfig:
    """Add the vocabulary of the weights that a configuration continues from.

    The weights depend on the ids of words, so words are only sampled for new weights.

    Args:
        config: the configuration of a training command.
        stored: the configuration that its run directory holds, if there is one.

    Returns:
        The configuration with the vocabulary and the text length from its run directory, or with
        the vocabulary of the run that it starts from; values that it sets itself are kept.

    Raises:
        ConfigError: the configuration of the other run is not valid.
    """
    changes: dict[str, object] = {}
    if stored is not None:
        suite = stored.task
        changes = {"vocabulary": suite.vocabulary, "text_length": suite.text_length}
    elif config.start_from is not None and (config.start_from / CONFIG).exists():
        changes = {"vocabulary": RunDirectory.open(config.start_from).config.task.vocabulary}
    for name in list(changes):
        if getattr(config.task, name) is not None:
            del changes[name]
    if not changes:
        return config
    return config.model_copy(update={"task": config.task.model_copy(update=changes)})


def _store_config(run_dir: Path, config: ResolvedConfig) -> None:
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    write_text(run_dir / CONFIG, text)


def _other_name(name: str, differences: Sequence[Difference]) -> str:
    """Return a name for the run that distinguishes it from the existing run of the same name."""
    parts = [name]
    for option, _, value in differences[:MAX_NAMED]:
        last = option.rpartition(".")[2]
        label = "" if last == "kind" else last  # fusion.kind: film
        parts.append(file_name(f"{label}{value}") if isinstance(value, Scalar) else last)
    return short_file_name("-".join(parts))


def _differences(stored: ResolvedConfig, current: ResolvedConfig) -> list[Difference]:
    """Return each option that differs but must not; the timesteps are checked elsewhere."""
    fixed = set(FREE_FIELDS) | {"total_timesteps"}
    old = stored.model_dump(exclude=fixed)
    new = current.model_dump(exclude=fixed)
    return list(_differing_options(old, new, prefix=""))


def _differing_options(
    old: Mapping[str, object], new: Mapping[str, object], prefix: str
) -> Iterator[Difference]:
    # a key may be missing on one side: kinds of fusions have different options
    for key in sorted({*old, *new}):
        before = old.get(key)
        after = new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _differing_options(before, after, f"{prefix}{key}.")
        elif before != after and 0 < len(_parts(before)) == len(_parts(after)):
            parts = zip(_parts(before), _parts(after), strict=True)
            for index, (old_part, new_part) in enumerate(parts):
                yield from _differing_options(old_part, new_part, f"{prefix}{key}[{index}].")
        elif before != after:
            yield f"{prefix}{key}", before, after


def _parts(value: object) -> Sequence[Mapping[str, object]]:
    """Return the parts with options of their own, as the tasks of a suite; none of other values."""
    if isinstance(value, tuple) and all(isinstance(part, dict) for part in value):
        return value
    return ()
