"""Rolling statistics of training: episodes per task, and observations for normalization."""

import copy
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.utils import obs_as_tensor
from torch import Tensor

from mirl.agents.callbacks.schedule import Interval, IterationTimer
from mirl.agents.callbacks.selection import SuccessNotice
from mirl.agents.runs import metric_names as metrics
from mirl.agents.runs.checkpoint import EpisodeRecords
from mirl.agents.runs.metric_names import task_metric
from mirl.agents.runs.ranks import ONE_PROCESS, Ranks
from mirl.agents.statistics import Episode
from mirl.envs import SuiteVecEnv
from mirl.envs.type_aliases import Observations
from mirl.policies import FusionExtractor
from mirl.policies.running_norm import RunningNorm

WINDOW = 256
"""Episodes per task in each rolling mean."""
EPISODE_METRICS = ("success_rate", "return", "length")
"""Metrics of a task, in the order of the fields of an episode."""


class TaskStatistics(BaseCallback):
    """Rolling success rate, return and length over the last episodes of each task.

    Args:
        tasks: names of the tasks.
        notice: logs the tasks that report no success; None to log nothing.
        ranks: the processes that train the agent.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        notice: SuccessNotice | None = None,
        ranks: Ranks = ONE_PROCESS,
    ) -> None:
        super().__init__()
        self._ranks = ranks
        self._notice = notice
        self._episodes: dict[str, deque[Episode]] = {task: deque(maxlen=WINDOW) for task in tasks}

    def _on_step(self) -> bool:
        # SB3's local variables; an info holds an outcome only if an episode has ended
        infos = self.locals["infos"]
        for env_index in np.flatnonzero(self.locals["dones"]):
            self._add(infos[env_index])
        return True

    def _add(self, info: Mapping[str, Any]) -> None:
        episode = info["episode"]
        outcome = Episode(info.get("is_success"), episode["r"], episode["l"])
        self._episodes[info["task"]].append(outcome)

    def _on_rollout_end(self) -> None:
        if self._ranks.size > 1:
            self._add_other_ranks(self.locals["other_episodes"])
        self.record()

    def _add_other_ranks(self, episodes: Sequence[Mapping[str, Any]]) -> None:
        """Add the episodes of other ranks; give each rank the success rates of the first one."""
        for info in episodes:
            self._add(info)
        env = self.training_env.unwrapped
        if not isinstance(env, SuiteVecEnv) or not env.sampling_depends_on_success:
            return
        if self._ranks.is_first:
            env.record_elsewhere(episodes)
        own = env.sampling_state()
        first = self._ranks.gather_objects(own)[0]
        # each rank keeps its own random generator
        env.load_sampling_state({**first, "generator": own["generator"]})

    def state(self) -> dict[str, list[Episode]]:
        """Return the episodes over which the means are taken.

        Returns:
            The episodes by task, for JSON.
        """
        return {task: list(episodes) for task, episodes in self._episodes.items()}

    def load(self, state: EpisodeRecords) -> None:
        """Continue from a saved state.

        Args:
            state: the value that ``state`` returned.
        """
        for task, episodes in state.items():
            for success, episode_return, length in episodes:
                is_success = None if success is None else bool(success)
                outcome = Episode(is_success, float(episode_return), int(length))
                self._episodes[task].append(outcome)

    def record(self) -> None:
        """Record the means for the next row of the log; a success rate only if it is known."""
        tasks_without_success = []
        for task, episodes in self._episodes.items():
            if not episodes:
                continue
            has_success = all(episode.success is not None for episode in episodes)
            if not has_success:
                tasks_without_success.append(task)
            # an unknown success counts as 0 here, and its mean is left out below
            rows = [(episode.success or 0, *episode[1:]) for episode in episodes]
            means = np.mean(rows, axis=0)
            for name, mean in zip(EPISODE_METRICS, means, strict=True):
                if has_success or name != "success_rate":
                    self.logger.record(task_metric("task", task, name), float(mean))
        if self._notice is not None:
            self._notice.tell(tasks_without_success)


class OffPolicyLogger(TaskStatistics):
    """Task statistics that also write the log, because an off-policy iteration is very short.

    This is the first callback, and its ``timer`` is the last, so that the logged speed excludes the
    time that the callbacks between them take.

    Args:
        tasks: names of the tasks.
        interval: timesteps between two rows of the log.
        notice: logs the tasks that report no success; None to log nothing.
    """

    model: OffPolicyAlgorithm

    def __init__(
        self, tasks: Sequence[str], interval: int, notice: SuccessNotice | None = None
    ) -> None:
        super().__init__(tasks, notice)
        self.interval = Interval(interval)
        self.timer = IterationTimer()
        self.seconds = 0.0
        """Time since the last row in seconds, excluding other callbacks."""
        self.logged_at = 0
        """Timesteps of the last row."""

    def _on_training_start(self) -> None:
        self.interval.last = self.num_timesteps
        self.logged_at = self.num_timesteps
        self.timer.start()

    def _on_rollout_end(self) -> None:
        pass  # a rollout is a few timesteps; see ``write``

    def _on_rollout_start(self) -> None:
        self.seconds += self.timer.seconds()
        if self.interval.due(self.num_timesteps):
            self.write()

    def _on_training_end(self) -> None:
        self.seconds += self.timer.seconds()
        if self.num_timesteps > self.logged_at:
            self.write()

    def write(self) -> None:
        """Write a row of the log."""
        self.record()
        speed = (self.num_timesteps - self.logged_at) / self.seconds
        self.logger.record(metrics.SPEED, speed)
        self.seconds = 0.0
        self.logged_at = self.num_timesteps
        self.model.dump_logs()


class ObservationStatistics(BaseCallback):
    """Updates of the running statistics by which networks normalize observations.

    The observations of a rollout are added before the next one begins. Within a rollout and its
    update the statistics stay fixed, because PPO compares old and new probabilities.

    Args:
        ranks: the processes whose observations are added.
    """

    def __init__(self, ranks: Ranks = ONE_PROCESS) -> None:
        super().__init__()
        self.ranks = ranks

    def _on_training_start(self) -> None:
        self.extractors: list[FusionExtractor] = []
        for module in self.model.policy.modules():
            if isinstance(module, FusionExtractor) and module.has_running_norm:
                self.extractors.append(module)
        self.seen: list[Observations] = []

    def _on_step(self) -> bool:
        if self.extractors:
            # copy the dictionary, because a replay buffer reshapes the arrays in SB3's one
            self.seen.append(dict(self.locals["new_obs"]))
        return True

    def _on_rollout_start(self) -> None:
        if not self.seen:
            return
        # (timesteps, environments, ...) -> (timesteps · environments, ...)
        joined = {}
        for key in self.seen[0]:
            joined[key] = np.concatenate([observations[key] for observations in self.seen])
        self.seen.clear()
        policy = self.model.policy
        tensors = preprocess_obs(
            obs_as_tensor(joined, policy.device), policy.observation_space, policy.normalize_images
        )
        for extractor in self.extractors:
            norms = [module for module in extractor.modules() if isinstance(module, RunningNorm)]
            with merged_over(self.ranks, norms):
                extractor.update_statistics(cast(dict[str, Tensor], tensors))


@contextmanager
def merged_over(ranks: Ranks, norms: Sequence[RunningNorm]) -> Iterator[None]:
    """Merge into running statistics the updates that each rank makes inside the context, in order.

    Args:
        ranks: the processes.
        norms: the statistics, which are the same on each rank.
    """
    if ranks.size == 1:
        yield
        return
    before = [copy.deepcopy(norm.state_dict()) for norm in norms]
    for norm in norms:
        norm.count.zero_()  # the statistics then cover only this rank's observations
    yield
    for norm, old in zip(norms, before, strict=True):
        # count, mean and variance as one tensor, (1 + 2 · features,)
        own = torch.cat([norm.count[None], norm.mean, norm.variance])
        norm.load_state_dict(old)
        for moments in ranks.gather(own):
            mean, variance = moments[1:].chunk(2)
            if moments[0]:
                norm.merge(mean, variance, int(moments[0]))
