"""Start of episodes: reset until the first observation is finite and accepted by the filter."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mirl.envs.faults import FaultHandler
from mirl.envs.holdout import EpisodeFilter
from mirl.envs.pools.suite import SuiteBackend
from mirl.envs.type_aliases import EnvIndices, Info, Observations


class EpisodeStarter:
    """Starter of episodes that belong to the wanted subset.

    Args:
        backend: backend of the whole suite.
        episode_filter: filter that rejects episodes by their first observation.
        faults: handler of non-finite observations.
    """

    def __init__(
        self, backend: SuiteBackend, episode_filter: EpisodeFilter, faults: FaultHandler
    ) -> None:
        self._backend = backend
        self._episode_filter = episode_filter
        self._faults = faults

    def start(
        self,
        env_indices: EnvIndices,
        task_ids: NDArray[np.int64],
        options: Sequence[Info] | None = None,
    ) -> Observations:
        """Start the next episodes.

        Args:
            env_indices: the environments, (k,).
            task_ids: task of each of them, (k,).
            options: the options of each reset, k of them; None for no options.

        Returns:
            The first observations, (k, …).
        """

        def reset_rows(rows: NDArray[np.int64]) -> Observations:
            own_options = None
            if options is not None:
                own_options = [options[row] for row in rows.tolist()]
            return self._reset_until_finite(env_indices[rows], task_ids[rows], own_options)

        return self._episode_filter.draw(reset_rows, len(env_indices))

    def _reset_until_finite(
        self,
        env_indices: EnvIndices,
        task_ids: NDArray[np.int64],
        options: Sequence[Info] | None,
    ) -> Observations:
        obs = self._backend.reset(env_indices, task_ids, options)
        # Each non-finite row uses up a restart, so the loop ends with an error at the latest.
        while True:
            is_bad = self._faults.find_non_finite(obs, env_indices, task_ids)
            if not is_bad.any():
                return obs
            bad_options = None
            if options is not None:
                bad_options = [options[row] for row in np.flatnonzero(is_bad).tolist()]
            fresh = self._backend.reset(env_indices[is_bad], task_ids[is_bad], bad_options)
            for key, values in fresh.items():
                obs[key][is_bad] = values
