"""The folder ``checkpoints/`` of a run: its checkpoints and the index of the last and the best.

Only the last checkpoint holds the replay buffer, which is large.
"""

import shutil
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from stable_baselines3.common.base_class import BaseAlgorithm

from mirl.agents.runs.atomic_files import JsonObject, load_json, write_json
from mirl.agents.runs.checkpoint import (
    Checkpoint,
    Criterion,
    EpisodeRecords,
    checkpoint_name,
    checkpoint_timesteps,
    parse_criterion,
    write_checkpoint,
)
from mirl.agents.runs.replay_buffer import REPLAY_BUFFER
from mirl.configs.errors import ConfigError, nearest

INDEX = "index.json"
"""JSON file with the names of the last and the best checkpoint, and the score of the best one with
its criterion."""


class CheckpointDirectory:
    """The checkpoints of a run.

    Args:
        path: the folder that holds them; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def is_empty(self) -> bool:
        """True before the first checkpoint."""
        return not self._folders()

    @property
    def best_score(self) -> float | None:
        """Score of the best checkpoint; None if there is none yet."""
        score = self.load_index().get("best_score")
        return score if isinstance(score, int | float) else None

    @property
    def best_criterion(self) -> Criterion:
        """Quantity that ``best_score`` measures; ``success`` if there is no score yet."""
        return parse_criterion(self.load_index().get("best_criterion"))

    def save(
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
        self.path.mkdir(parents=True, exist_ok=True)
        folder = self.path / checkpoint_name(agent.num_timesteps)
        # a checkpoint appears only when it is complete, so an existing one is kept
        if not folder.exists():
            write_checkpoint(folder, agent, score, episodes or {}, criterion)
        # the index names the checkpoint only once it is complete
        index = self.load_index()
        index["last"] = folder.name
        if score is not None:
            _set_best(index, folder.name, score, criterion)
        write_json(self.path / INDEX, index)
        # replay buffers are large, and only the last one is ever loaded
        for other in self._folders():
            if other != folder:
                (other / REPLAY_BUFFER).unlink(missing_ok=True)
        return Checkpoint.open(folder)

    def find(self, which: str) -> Checkpoint:
        """Find a checkpoint.

        Args:
            which: "last", "best", a number of timesteps, or the name of a folder.

        Returns:
            The checkpoint.

        Raises:
            ConfigError: there is no such checkpoint (the error suggests the nearest), or its state
                is damaged.
        """
        index = self.load_index()
        by_name = {}
        found = {}
        for folder in self._folders():
            by_name[folder.name] = folder
            found[str(checkpoint_timesteps(folder.name))] = folder
        # the index may name a folder that was deleted
        for key in ("last", "best"):
            if index.get(key) in by_name:
                found[key] = by_name[index[key]]
        # leading zeros are allowed, as in folder names; shell completion appends a slash
        digits = which.removesuffix("/").removeprefix("step_")
        # without int(), which raises an error for thousands of digits
        key = (digits.lstrip("0") or "0") if digits.isdecimal() else which
        if key not in found:
            hint = nearest(which, found) or " It holds none."
            if which == "best" and found:
                hint = " It is chosen by the first evaluation (evaluation.every=); use 'last'."
            raise ConfigError(f"no checkpoint '{which}' in {self.path}.{hint}")
        return Checkpoint.open(found[key])

    def latest_valid(self) -> Checkpoint | None:
        """Return the last checkpoint, or the newest before it that is not damaged.

        Warns of each damaged checkpoint, and rebuilds a damaged index.

        Returns:
            The checkpoint, verified; None if there is none yet.

        Raises:
            ConfigError: there are checkpoints, and all of them are damaged.
        """
        folders = self._folders()
        if not folders:
            return None
        last = self._last_timesteps(folders)
        for folder in reversed(folders):
            if _timesteps(folder) > last:
                continue  # the process died before the index named it
            try:
                checkpoint = Checkpoint.open(folder)
                checkpoint.verify()
            except ConfigError as error:
                warnings.warn(f"a damaged checkpoint is skipped: {error}", stacklevel=3)
            else:
                return checkpoint
        raise ConfigError(
            f"every checkpoint in {self.path} is damaged; choose another name=… to start again"
        )

    def delete_after(self, timesteps: int) -> None:
        """Delete the checkpoints that were saved after the one that a run is resumed from.

        Args:
            timesteps: timesteps of the checkpoint that the run is resumed from.
        """
        for folder in self._folders():
            if _timesteps(folder) > timesteps:
                shutil.rmtree(folder)

    def load_index(self) -> JsonObject:
        """Load the index.

        Returns:
            ``last``, ``best``, ``best_score`` and, unless that is a success rate,
            ``best_criterion``, if they are known; empty before the first checkpoint.

        Raises:
            ConfigError: the index is damaged.
        """
        path = self.path / INDEX
        if not path.exists():
            return {}
        index = load_json(path)
        for key in ("last", "best"):
            name = index.get(key, "")
            # a path would point outside of the folder
            if not isinstance(name, str) or Path(name).name != name:
                raise ConfigError(f"{path}: '{key}' must name a folder beside it, got {name!r}")
        return index

    def _folders(self) -> list[Path]:
        """Return the folders of the checkpoints, oldest first; reject links."""
        found = list(self.path.glob("step_*"))
        for path in (self.path, *found):
            if path.is_symlink():
                raise ConfigError(f"{path} is a link; a run directory must not contain links")
        # folders with other names are not checkpoints
        folders = [path for path in found if checkpoint_timesteps(path.name) is not None]
        # not by name: from 10⁹ timesteps on, names have more digits
        return sorted(folders, key=_timesteps)

    def _last_timesteps(self, folders: Sequence[Path]) -> int:
        """Return the timesteps of the last checkpoint; rebuild the index if it lacks them."""
        try:
            index = self.load_index()
        except ConfigError as error:
            reason = str(error)
        else:
            last = checkpoint_timesteps(str(index.get("last")))
            if last is not None:
                return last
            reason = f"{self.path / INDEX} names no last checkpoint"
        warnings.warn(f"{reason}; it is rebuilt from the checkpoints", stacklevel=4)
        return self._rebuild_index(folders)

    def _rebuild_index(self, folders: Sequence[Path]) -> int:
        """Rebuild the index from the checkpoints that can be read.

        Returns:
            The timesteps of the last one.
        """
        last = folders[-1]
        index: JsonObject = {}
        for folder in folders:
            with suppress(ConfigError):
                checkpoint = Checkpoint.open(folder)
                last = folder
                score = checkpoint.score
                if score is None:
                    continue
                # scores of different criteria cannot be compared; the later criterion applies
                is_comparable = checkpoint.criterion == parse_criterion(index.get("best_criterion"))
                # on a tie, prefer the later one, as during training
                if not is_comparable or score >= index.get("best_score", score):
                    _set_best(index, folder.name, score, checkpoint.criterion)
        index["last"] = last.name
        write_json(self.path / INDEX, index)
        return _timesteps(last)


def _set_best(index: JsonObject, name: str, score: float, criterion: Criterion) -> None:
    """Record a checkpoint as the best one in an index."""
    index["best"] = name
    index["best_score"] = score
    index.pop("best_criterion", None)
    if criterion != "success":
        index["best_criterion"] = criterion


def _timesteps(folder: Path) -> int:
    """Return the timesteps of a folder that ``_folders`` returned."""
    timesteps = checkpoint_timesteps(folder.name)
    assert timesteps is not None
    return timesteps
