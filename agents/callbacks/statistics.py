"""TODO docstring."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.utils import obs_as_tensor
from torch import Tensor

from mirl.agents.callbacks.schedule import Interval, IterationTimer
from mirl.agents.runs import metric_names as metrics
from mirl.agents.runs.metric_names import task_metric
from mirl.policies import FusionExtractor

WINDOW = 256
"""Episodes per task behind each rolling mean."""


class TaskStatistics(BaseCallback):
    """Rolling success rate, return and length of each task's last episodes."""

    def __init__(self, tasks: tuple[str, ...]) -> None:
        super().__init__()
        self._episodes: dict[str, deque[tuple[bool, float, int]]] = {
            task: deque(maxlen=WINDOW) for task in tasks
        }

    def _on_step(self) -> bool:
        infos = self.locals["infos"]
        for slot in np.flatnonzero(self.locals["dones"]):
            episode = infos[slot]["episode"]
            self._episodes[infos[slot]["task"]].append(
                (infos[slot]["is_success"], episode["r"], episode["l"])
            )
        return True

    def _on_rollout_end(self) -> None:
        self.record()

    def state(self) -> dict[str, list[tuple[bool, float, int]]]:
        """The episodes that count, by task, for JSON."""
        return {task: list(episodes) for task, episodes in self._episodes.items()}

    def load(self, state: Mapping[str, Sequence[Sequence[Any]]]) -> None:
        """Go on from a ``state()``."""
        for task, episodes in state.items():
            self._episodes[task].extend(
                (bool(won), float(total), int(length)) for won, total, length in episodes
            )

    def record(self) -> None:
        """Put the means into the row of the log that is written next."""
        for task, episodes in self._episodes.items():
            if episodes:
                for name, value in zip(
                    ("success_rate", "return", "length"),
                    np.mean(list(episodes), axis=0),
                    strict=True,
                ):
                    self.logger.record(task_metric("task", task, name), float(value))


class OffPolicyLogger(TaskStatistics):
    """Writes a row of the log every so many timesteps: an iteration of an off-policy algorithm is a single one of them.

    It is the first of the callbacks, and its ``clock`` the last: the speed leaves out what others do between the two.
    """

    model: OffPolicyAlgorithm

    def __init__(self, tasks: tuple[str, ...], interval: int) -> None:
        super().__init__(tasks)
        self.every, self.clock, self.seconds, self.timesteps = (
            Interval(interval),
            IterationTimer(),
            0.0,
            0,
        )

    def _on_training_start(self) -> None:
        self.every.last = self.timesteps = self.num_timesteps
        self.clock.start()

    def _on_rollout_end(self) -> None:
        pass

    def _on_rollout_start(self) -> None:
        self.seconds += self.clock.seconds()
        if self.every.due(self.num_timesteps):
            self.write()

    def _on_training_end(self) -> None:
        self.seconds += self.clock.seconds()
        if self.num_timesteps > self.timesteps:
            self.write()

    def write(self) -> None:
        """One row."""
        self.record()
        self.logger.record(metrics.SPEED, (self.num_timesteps - self.timesteps) / self.seconds)
        self.seconds, self.timesteps = 0.0, self.num_timesteps
        self.model.dump_logs()


class ObservationStatistics(BaseCallback):
    """Shows the policy each rollout before the next begins, for the statistics by which it has_running_norm, if it does.

    Within a rollout and its update they stay as they are: PPO compares probabilities of the same network.
    """

    def _on_training_start(self) -> None:
        modules = self.model.policy.modules()
        self.extractors = [
            each for each in modules if isinstance(each, FusionExtractor) and each.has_running_norm
        ]
        self.seen: list[dict[str, NDArray[Any]]] = []

    def _on_step(self) -> bool:
        if self.extractors:
            self.seen.append(
                dict(self.locals["new_obs"])
            )  # a replay buffer reshapes what is in SB3's own
        return True

    def _on_rollout_start(self) -> None:
        if not self.seen:
            return
        joined = {key: np.concatenate([each[key] for each in self.seen]) for key in self.seen[0]}
        self.seen.clear()
        policy = self.model.policy
        tensors = preprocess_obs(
            obs_as_tensor(joined, policy.device), policy.observation_space, policy.normalize_images
        )
        for extractor in self.extractors:
            extractor.update_statistics(cast(dict[str, Tensor], tensors))
