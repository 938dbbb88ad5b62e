"""A whole suite as one SB3 ``VecEnv``; with ``sampling=fixed`` every task is in every rollout."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from numpy.typing import ArrayLike, NDArray
from stable_baselines3.common.env_util import make_vec_env as sb3_make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from mirl.configs.compose import validate
from mirl.configs.errors import ConfigError
from mirl.configs.imports import allow_imports, module_of
from mirl.configs.keys import ACTION_MASK_KEY
from mirl.configs.schema import BackendName, SamplingName
from mirl.configs.tasks import HoldoutConfig, Subset, SuiteConfig, TaskConfig
from mirl.envs.actions import ActionValidator
from mirl.envs.assignment import TaskAssignment
from mirl.envs.contract.episode_limits import EpisodeLimits, MaxSteps
from mirl.envs.env_attributes import EnvAttributes
from mirl.envs.episode_start import EpisodeStarter
from mirl.envs.episode_statistics import EpisodeStatistics
from mirl.envs.faults import FaultHandler, FaultPolicy, close_on_error
from mirl.envs.holdout import EpisodeFilter, active_tasks
from mirl.envs.make import find_spec, without_prints
from mirl.envs.pools.selection import choose_backend, make_suite_backend
from mirl.envs.pools.workers import DEFAULT_TIMEOUT
from mirl.envs.sampling import SamplingState
from mirl.envs.seeds import SeedSplit
from mirl.envs.spaces import ContractObservation
from mirl.envs.suite_spaces import joined_spaces
from mirl.envs.type_aliases import AnyEnv, Array, EnvIndices, Info, Observations

NO_HOLDOUT = HoldoutConfig()
"""The default: nothing is held out."""

_State = Literal["new", "ready", "stepping", "all_inactive", "closed"]
_NEXT_CALL: dict[_State, str] = {
    "new": "reset()",
    "stepping": "step_wait()",
    "all_inactive": "reset()",
    "closed": "a new SuiteVecEnv",
}
"""Call that is missing before ``step_async()``, by state."""


class SuiteVecEnv(EnvAttributes):
    """Vectorized environment that steps all tasks of a suite together, with same-step autoreset.

    The environments are split evenly over the tasks, those of one task contiguous, and keep
    their task, unless ``sampling`` draws the task of each episode. If the tasks have different
    numbers of actions, the observation ``action_mask`` marks the available ones.

    The info of an environment whose episode ended holds ``terminal_observation``,
    ``TimeLimit.truncated``, ``task`` (its name), ``episode`` (as SB3's Monitor: return ``r``,
    length ``l``, seconds since the start ``t``) and, unless its success is unknown,
    ``is_success``. All other entries of the infos come from the environments; worker processes
    pass on only plain data: numbers, strings, arrays, and lists and dictionaries of these.

    Args:
        suite: the tasks. The attribute ``suite`` also has the vocabulary and the length of their
            texts, which are drawn from the environments if the suite does not state them.
        n_envs: number of environments over all active tasks, at least one per task.
        backend: backend that steps the environments.
        seed: seed from which the seed of each environment and that of the task sampler derive.
        seed_split: range of the environments' seeds; training and evaluation share no seeds.
        workers: number of worker processes of the ``gymnasium`` backend, shared by the tasks; 0
            steps the environments in this process, None chooses the number.
        sampling: how the task of the next episode is chosen (see ``TaskSampler``); ``fixed``
            keeps the task of each environment.
        holdout: tasks and episodes that are held out from training.
        subset: whether to play the episodes of training or the held-out ones; tasks keep their
            index in the suite.
        max_restarts: number of tolerated failures on the ``gymnasium`` backend. An
            environment that raises is made again, a worker process that dies or hangs is
            restarted, each with a warning. Their episodes are truncated and marked ``failed`` in
            the info; the next ones use new seeds.
        timeout: seconds without a reply after which a worker process counts as hung.
        restart_non_finite: whether non-finite observations and rewards count as such failures
            too; otherwise they raise an error.
        max_steps: timesteps after which an episode is truncated; "auto" for 1,000, with a warning,
            if the environment has no limit of its own; None for no limit.

    Raises:
        ConfigError: if an argument does not fit the suite, or its tasks do not fit together.

    Examples:
        >>> from mirl.configs.tasks import SuiteConfig, TaskConfig
        >>> from mirl.envs import SuiteVecEnv
        >>> small = TaskConfig(name="small", env_id="MiniGrid-Empty-5x5-v0")
        >>> large = TaskConfig(name="large", env_id="MiniGrid-Empty-8x8-v0")
        >>> env = SuiteVecEnv(SuiteConfig(name="rooms", tasks=(small, large)), n_envs=4)
        >>> env.reset()["task"].tolist()
        [0, 0, 1, 1]
        >>> observations, rewards, dones, infos = env.step([2, 2, 2, 2])
        >>> rewards.shape
        (4,)
    """

    def __init__(
        self,
        suite: SuiteConfig,
        n_envs: int,
        *,
        backend: BackendName = "auto",
        seed: int = 0,
        seed_split: SeedSplit = "train",
        workers: int | None = None,
        sampling: SamplingName = "fixed",
        holdout: HoldoutConfig = NO_HOLDOUT,
        subset: Subset = "trained",
        max_restarts: int = 0,
        timeout: float = DEFAULT_TIMEOUT,
        restart_non_finite: bool = False,
        max_steps: MaxSteps = None,
    ) -> None:
        # Each group of arguments goes to the part that it concerns, which validates it.
        fault_policy = FaultPolicy(max_restarts, timeout, restart_non_finite)
        backend_name = choose_backend(suite, backend)
        if backend_name == "envpool":
            fault_policy = FaultPolicy()  # a single environment of EnvPool cannot be restarted
        self.seed_split: SeedSplit = seed_split
        self.active_tasks = active_tasks(suite, holdout, subset)
        """Indices of the tasks that are played."""
        self._assignment = TaskAssignment(suite, self.active_tasks, n_envs, sampling, seed)
        self.task_index = self._assignment.task_ids
        """Index of the task that each environment plays now, (n_envs,)."""
        joined = joined_spaces(suite, backend_name)
        suite = joined.suite  # with the vocabulary and the length of its texts
        task_names = [task.name for task in suite.tasks]
        self._actions = ActionValidator(joined.action, joined.n_actions, task_names)
        episode_filter = EpisodeFilter(suite, holdout, subset, joined.observation)
        self.rejects = episode_filter.rejects
        """True if some episodes are rejected at their start and drawn again."""
        self._statistics = EpisodeStatistics(suite.tasks, n_envs)
        self._limits = EpisodeLimits(suite.tasks, joined.episode_limits, max_steps)
        self._deactivated = np.zeros(n_envs, dtype=np.bool_)
        self._masks: Array | None = None
        self._state: _State = "new"
        super().__init__(suite, backend_name, n_envs, joined.observation, joined.action)
        self.seed(seed)
        self._faults = FaultHandler(suite.tasks, fault_policy)
        restarts = self._faults.restarts
        self._backend = make_suite_backend(
            suite, backend_name, self._assignment, joined.n_actions, workers, restarts, timeout
        )
        self.reset_infos = self._backend.reset_infos
        self._starter = EpisodeStarter(self._backend, episode_filter, self._faults)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Restart the random streams: that of the sampler now, the others at the next reset.

        Args:
            seed: the new seed; None changes nothing.

        Returns:
            The seed of each environment in the task that it plays now.
        """
        if seed is not None:
            self._backend_seeds = self._assignment.backend_seeds(seed, self.seed_split)
            self._reseed_at_reset = True
            self._assignment.seed_sampler(seed)
        return self._assignment.current_seeds(self._backend_seeds)

    def set_options(self, options: list[Info] | Info | None = None) -> None:
        """Set the options of the next ``reset()``.

        Args:
            options: options of every environment, or a list of them, one per environment.

        Raises:
            ConfigError: if the environments are EnvPool's, which take no options.
        """
        if options and self.backend == "envpool":
            raise ConfigError(
                f"set_options: EnvPool's environments take no options, got {options}; make them "
                "with backend='gymnasium'"
            )
        if isinstance(options, list) and len(options) != self.num_envs:
            raise ConfigError(
                f"set_options: expected options of {self.num_envs} environments, got "
                f"{len(options)}; pass one dictionary for all of them"
            )
        super().set_options(options)

    def action_masks(self) -> NDArray[np.bool_]:
        """Return a mask of the available actions, (n_envs, n_actions), for sb3-contrib.

        Raises:
            AttributeError: if the observations have no ``action_mask``.
            RuntimeError: if ``reset()`` has not been called yet.
        """
        self._check_has_masks()
        if self._masks is None:
            raise RuntimeError("action_masks() needs reset() first")
        return self._masks.astype(np.bool_)

    def reset(self) -> Observations:
        """Start an episode in every environment and drop the running ones.

        Returns:
            The first observations, (n_envs, …).
        """
        if self._state == "closed":
            raise RuntimeError("this SuiteVecEnv is closed; make a new one")
        if self._state == "stepping":
            self.step_wait()  # its replies have to be received before a reset can be sent
        # Cleared first: if the reset fails, the environments are closed anyway.
        reseed = self._reseed_at_reset
        self._reseed_at_reset = False
        self._deactivated[:] = False
        with close_on_error(self.close):
            if reseed:
                self._backend.seed(self._backend_seeds)
            options = self._options if any(self._options) else None
            self._reset_options()
            obs = self._start_episodes(np.arange(self.num_envs), options)
        self._state = "ready"
        self._store_last_obs(obs)
        return obs

    def step_async(self, actions: ArrayLike) -> None:
        """Start a timestep in all backends, so that they work at the same time.

        Args:
            actions: one action per environment, (n_envs, …).

        Raises:
            ValueError: if an action is not in the action space; nothing has been stepped.
            RuntimeError: if another call has to come first.
        """
        if self._state != "ready":
            raise RuntimeError(f"step_async() needs {_NEXT_CALL[self._state]} first")
        valid = self._actions.validate(actions, self.task_index)
        with close_on_error(self.close):
            self._backend.send(valid)
        self._state = "stepping"

    def step_wait(self) -> tuple[Observations, NDArray[np.float32], NDArray[np.bool_], list[Info]]:
        """Finish the timestep.

        Returns:
            Observations (n_envs, …), rewards (n_envs,), dones (n_envs,) and n_envs infos. If an
            episode ended, the observation is the first one of the next episode.

        Raises:
            RuntimeError: if ``step_async()`` has to come first.
        """
        if self._state != "stepping":
            raise RuntimeError("step_wait() needs step_async() first")
        with close_on_error(self.close):
            step = self._backend.recv()
            # Faults come first: they change rewards, ends and last observations.
            self._statistics.add_timestep()
            self._faults.check_step(step, self.task_index, self._statistics.lengths)
            self._limits.truncate(
                step, self.task_index, self._statistics.lengths, self._backend.inactive
            )
            self._statistics.update(step)
            done = step.done
            ended = np.flatnonzero(done)
            infos = self._statistics.infos(step, ended, self.task_index)
            if ended.size:
                # The success rates decide the tasks of the next episodes.
                self._assignment.record(ended, [infos[i].get("is_success") for i in ended])
                self._start_next_episodes(ended, step.obs)
        self._state = "all_inactive" if self._backend.all_inactive else "ready"
        self._store_last_obs(step.obs)
        return step.obs, step.rewards, done, infos

    def deactivate(self, env_indices: EnvIndices, *, at_once: bool = False) -> None:
        """Keep environments from starting another episode until the next ``reset()``.

        An evaluation uses this to play no episodes beyond those that it counts. The running
        episodes still end; after that, observations, rewards and dones are zeros, infos are empty
        and actions have no effect.

        Args:
            env_indices: the environments, (k,).
            at_once: drop the running episodes too; no timestep may be in progress.
        """
        self._deactivated[env_indices] = True
        if at_once and len(env_indices):
            self._backend.deactivate(env_indices)
            if self._backend.all_inactive:
                self._state = "all_inactive"

    def close(self) -> None:
        """End processes and threads; a second call does nothing."""
        # Set first, so that an error below leaves no environment that seems usable.
        self._state = "closed"
        self._backend.close()
        super().close()

    @property
    def task_probabilities(self) -> NDArray[np.float64]:
        """Probability of drawing each task for the next episode, (n_tasks,).

        With ``sampling="fixed"``, the share of the environments that play the task.
        """
        return self._assignment.task_probabilities

    @property
    def sampling_depends_on_success(self) -> bool:
        """True if the tasks of the next episodes depend on the success of earlier ones."""
        return self._assignment.depends_on_success

    def record_elsewhere(self, episodes: Sequence[Mapping[str, Any]]) -> None:
        """Update the success rates of the sampler with episodes that ran in other processes.

        Args:
            episodes: the infos of their last timesteps, with ``task`` and ``is_success``.
        """
        for info in episodes:
            self._assignment.record_elsewhere(info["task"], info["is_success"])

    def sampling_state(self) -> SamplingState:
        """Return the state that determines the next tasks, as JSON data."""
        return self._assignment.state()

    def load_sampling_state(self, state: SamplingState) -> None:
        """Restore a state that ``sampling_state()`` returned.

        Args:
            state: the state of an environment with the same suite and sampling.

        Raises:
            ConfigError: if the state does not fit; the sampling is then unchanged.
        """
        self._assignment.load_state(state)

    def _store_last_obs(self, obs: Observations) -> None:
        """Store the observations, for failures, and the masks, for ``action_masks()``."""
        self._faults.store_last_obs(obs)
        if ACTION_MASK_KEY in obs:
            self._masks = obs[ACTION_MASK_KEY].copy()

    def _start_episodes(
        self, env_indices: EnvIndices, options: Sequence[Info] | None = None
    ) -> Observations:
        """Start the next episodes of environments (k,); return their first observations (k, …)."""
        task_ids = self._assignment.start_episodes(env_indices)
        self._statistics.start_episodes(env_indices)
        return self._starter.start(env_indices, task_ids, options)

    def _start_next_episodes(self, ended: EnvIndices, obs: Observations) -> None:
        """Start the next episode of each environment that is active.

        The first observations replace the last ones in ``obs``.
        """
        deactivated = self._deactivated[ended]
        if deactivated.any():
            self._backend.deactivate(ended[deactivated])
        active = ended[~deactivated]
        if active.size:
            # (k, …) -> the k rows of (n_envs, …)
            for key, values in self._start_episodes(active).items():
                obs[key][active] = values


def make_vec_env(
    env: str | Sequence[str] | SuiteConfig | Callable[..., AnyEnv],
    n_envs: int = 1,
    backend: BackendName = "auto",
    seed: int | None = 0,
    seed_split: SeedSplit = "train",
    *,
    env_kwargs: dict[str, Any] | None = None,
    render_mode: str | None = None,
    wrapper_class: Callable[..., AnyEnv] | None = None,
    wrapper_kwargs: dict[str, Any] | None = None,
    monitor_dir: str | None = None,
    monitor_kwargs: dict[str, Any] | None = None,
    vec_env_cls: type[DummyVecEnv | SubprocVecEnv] | None = None,
    vec_env_kwargs: dict[str, Any] | None = None,
) -> VecEnv:
    """Return vectorized environments of one id, of several ids, of a suite, or of a class.

    The result is a ``SuiteVecEnv``, unless ``env`` is a class or function or one of the arguments
    from ``render_mode`` on is given. It is then the result of SB3's ``make_vec_env``, with each
    environment in a ``ContractObservation``, and gives access to single environments.

    Args:
        env: an id, several ids (one task each, named by its id), a suite, or a class or function
            that returns an environment. ``module:Id`` imports the module that registers the id.
        n_envs: number of environments over all tasks, at least one per task.
        backend: backend that steps the environments.
        seed: seed from which the seed of each environment derives; None for a random one.
        seed_split: range of the environments' seeds; training and evaluation share no seeds.
        env_kwargs: keyword arguments of the environments.
        render_mode: render mode of the environments.
        wrapper_class: wrapper of each environment, below ``ContractObservation``.
        wrapper_kwargs: keyword arguments of the wrapper.
        monitor_dir: folder of the files of SB3's Monitor.
        monitor_kwargs: keyword arguments of SB3's Monitor.
        vec_env_cls: SB3's class of the vectorized environments.
        vec_env_kwargs: keyword arguments of this class.

    Raises:
        ConfigError: if an id is unknown, the tasks do not fit together, or arguments exclude each
            other.
    """
    env_kwargs = dict(env_kwargs or {})
    if render_mode is not None:
        env_kwargs["render_mode"] = render_mode
    sb3_arguments = {
        "wrapper_class": wrapper_class,
        "wrapper_kwargs": wrapper_kwargs,
        "monitor_dir": monitor_dir,
        "monitor_kwargs": monitor_kwargs,
        "vec_env_cls": vec_env_cls,
        "vec_env_kwargs": vec_env_kwargs,
        "render_mode": env_kwargs.get("render_mode"),
    }
    given = [name for name, value in sb3_arguments.items() if value is not None]
    if callable(env) or given:
        if not callable(env) and not isinstance(env, str):
            raise ConfigError(
                f"make_vec_env: {given[0]} is for one id or class, got several tasks; leave it out"
            )
        if backend == "envpool" or seed_split != "train":
            raise ConfigError(
                "make_vec_env: backend and seed_split cannot be chosen with "
                f"{[*given, 'a class'][0]}, got backend={backend} and seed_split={seed_split}; "
                "leave them out"
            )
        return sb3_make_vec_env(
            _env_factory(env),
            n_envs,
            seed,
            monitor_dir=monitor_dir,
            monitor_kwargs=monitor_kwargs,
            wrapper_class=partial(_wrap_contract, wrapper_class, wrapper_kwargs or {}),
            env_kwargs=env_kwargs,
            vec_env_cls=vec_env_cls,
            vec_env_kwargs=vec_env_kwargs,
        )
    if isinstance(env, SuiteConfig):
        if env_kwargs:
            raise ConfigError(
                "make_vec_env: env_kwargs is for ids, and a suite has kwargs for each task, got "
                f"{env_kwargs}; set them there"
            )
        suite = env
    else:
        ids = (env,) if isinstance(env, str) else tuple(env)
        # The caller names these modules; those in a suite may come from a file.
        allow_imports(*filter(None, map(module_of, ids)))
        tasks = [{"name": each, "env_id": each, "kwargs": env_kwargs} for each in ids]
        suite = validate(SuiteConfig, {"name": "+".join(ids), "tasks": tasks})
    if seed is None:
        seed = int(np.random.SeedSequence().generate_state(1)[0])
    return SuiteVecEnv(suite, n_envs, backend=backend, seed=seed, seed_split=seed_split)


def _env_factory(env: str | Callable[..., AnyEnv]) -> Callable[..., AnyEnv]:
    """Return a function that makes an environment, also in another process."""
    if not isinstance(env, str):
        return env
    allow_imports(*filter(None, [module_of(env)]))
    # A process that has not imported the id's module makes it from its registration.
    spec = find_spec(validate(TaskConfig, {"name": env, "env_id": env}))
    return partial(gym.make, spec, disable_env_checker=True)


def _wrap_contract(
    wrapper_class: Callable[..., AnyEnv] | None, wrapper_kwargs: dict[str, Any], env: AnyEnv
) -> ContractObservation:
    env = without_prints(env)
    if wrapper_class is not None:
        env = wrapper_class(env, **wrapper_kwargs)
    return ContractObservation(env)
