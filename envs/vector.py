"""A whole suite as one SB3 ``VecEnv``: several slots per task, every task in every rollout."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, assert_never, get_args

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

from mirl.configs.compose import validate
from mirl.configs.errors import ConfigError, nearest
from mirl.configs.schema import BackendName, SamplingName
from mirl.configs.tasks import HoldoutConfig, Subset, SuiteConfig, TaskConfig
from mirl.envs.actions import check_tasks_have, checked_actions
from mirl.envs.holdout import EpisodeFilter, active_tasks
from mirl.envs.make import make_env
from mirl.envs.pools.backend import (
    NOT_REPORTED,
    EnvIndices,
    EnvironmentFailedError,
    Observations,
    Restarts,
    Step,
)
from mirl.envs.pools.selection import choose_backend, make_backends
from mirl.envs.pools.suite import SuiteBackend
from mirl.envs.pools.workers import TIMEOUT, Workers, available_cpus
from mirl.envs.sampling import TaskSampler
from mirl.envs.seeds import SeedSplit, env_seeds
from mirl.envs.suite_spaces import joined_spaces

MAX_IN_PROCESS_ENVS = 4
"""Up to so many slots, worker processes cost more than they bring."""

NO_HOLDOUT = HoldoutConfig()


class SuiteVecEnv(VecEnv):
    """Steps all tasks of a suite together, with same-step autoreset.

    Slots are spread over the tasks as evenly as possible, those of one task side by side, and stay with them, unless
    ``sampling`` lets each episode's task be drawn. The ``infos`` of a slot whose episode ended hold
    ``terminal_observation``, ``TimeLimit.truncated``, ``is_success``, ``task`` (its name) and ``episode`` (as SB3's
    Monitor has it: ``r`` return, ``l`` length, ``t`` seconds since the start); others are empty. Where the tasks have
    different numbers of actions, the observation ``action_mask`` says which there are.

    Args:
        suite: the tasks.
        n_envs: slots over all played tasks, at least one per task.
        backend: what steps the environments.
        seed: of the environments, each of which gets its own, derived from it, and of the tasks drawn.
        split: training and evaluation never share an environment's seed.
        workers: processes of the ``gymnasium`` backend, which the tasks share; 0 for none; None chooses.
        sampling: which task a slot plays next (see ``TaskSampler``); ``fixed`` for always the same.
        holdout: what training withholds.
        subset: play what training has, or what it withholds; tasks keep their index in the suite.
        max_restarts: how many failures of environments on the ``gymnasium`` backend are survived: an environment that
            raises is made anew, a process that dies or hangs started again, each with a warning. Their episodes end
            where they were, cut off, as failed ones (``infos[slot]["failed"]``); the next begin with other seeds.
        timeout: seconds after which a worker process that does not answer is held to hang.
        restart_non_finite: treat observations and rewards that are no finite numbers as such failures too.

    Raises:
        ConfigError: an argument does not fit the suite, or its tasks do not fit together; says which and in what.
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
        timeout: float = TIMEOUT,
        restart_non_finite: bool = False,
    ) -> None:
        if sampling not in get_args(SamplingName):
            raise ConfigError(
                f"unknown sampling '{sampling}'." + nearest(sampling, get_args(SamplingName))
            )
        for name, number in {
            "seed": seed,
            "workers": workers or 0,
            "max_restarts": max_restarts,
        }.items():
            if number < 0:
                raise ConfigError(f"{name} must be at least 0, got {number}")
        if timeout <= 0:
            raise ConfigError(f"timeout must be more than 0 seconds, got {timeout}")
        played = active_tasks(suite, holdout, subset)
        if n_envs < len(played):
            raise ConfigError(
                f"n_envs must be at least one per task of suite '{suite.name}', {len(played)}, got {n_envs}"
            )
        self.backend = choose_backend(suite, backend)
        joined = joined_spaces(suite, self.backend)
        self._actions_in, self._n_actions = joined.action, joined.n_actions
        self._withholding = EpisodeFilter(suite, holdout, subset, joined.observation)
        self._sampler = None if sampling == "fixed" else TaskSampler(sampling, played, seed)
        self.rejects = self._withholding.rejects
        """Whether some episodes are drawn again at their start, since they are not to be played."""
        self.suite = suite
        self.seed_split: SeedSplit = seed_split
        self.played = played
        """The tasks that are played, as indices into the suite."""
        chunks = np.array_split(np.arange(n_envs), len(played))
        self.task_index: NDArray[np.int64] = np.repeat(played, [len(chunk) for chunk in chunks])
        """(n_envs,), the task that each slot plays now."""
        bound = self._sampler is None
        self._pool_sizes = {
            task: len(chunk) if bound else n_envs
            for task, chunk in zip(played, chunks, strict=True)
        }
        self._first_env_indices = {
            task: int(chunk[0]) if bound else 0 for task, chunk in zip(played, chunks, strict=True)
        }
        self._returns = np.zeros(n_envs, dtype=np.float64)
        self._lengths = np.zeros(n_envs, dtype=np.int64)
        self._succeeded_once = np.full(
            n_envs, NOT_REPORTED, dtype=np.int8
        )  # the most that an episode reported of success so far
        self._deactivated = np.zeros(n_envs, dtype=np.bool_)
        self._rewards_of: gym.Env[Any, Any] | None = None
        self._start = time.perf_counter()
        self._state: Literal["new", "ready", "stepping", "over", "closed"] = "new"
        super().__init__(n_envs, joined.observation, joined.action)
        self.seed(seed)
        if workers is None:
            workers = 0 if n_envs <= MAX_IN_PROCESS_ENVS else available_cpus()
        self._restarts = Restarts(max_restarts)
        self._restart_non_finite = restart_non_finite and self.backend == "gymnasium"
        self._last_obs: Observations = {}  # where an episode that fails ends
        self._workers = (
            Workers(workers, self._restarts, timeout)
            if workers and self.backend == "gymnasium"
            else None
        )
        pools = make_backends(suite, self._pool_sizes, self.backend, self._workers, self._restarts)
        self._pools = SuiteBackend(pools, self._first_env_indices, n_envs, joined.n_actions)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Restart the random streams: of the tasks drawn now, of the environments at the next ``reset()``.

        None leaves them. Returns the seeds that the slots have in the tasks that they play now.
        """
        if seed is not None:
            self._task_seeds = {
                task: env_seeds(seed, self.seed_split, task, n)
                for task, n in self._pool_sizes.items()
            }
            self._reseed = True
            if self._sampler is not None:
                self._sampler.seed(seed)
        return [
            self._task_seeds[task][slot - self._first_env_indices[task]]
            for slot, task in enumerate(self.task_index.tolist())
        ]

    def reset(self) -> Observations:
        """Start an episode in every slot, drop those under way."""
        if self._state == "closed":
            raise RuntimeError("this SuiteVecEnv is closed; make a new one")
        if self._state == "stepping":
            self.step_wait()
        reseed, self._reseed = self._reseed, False
        self._deactivated[:] = False
        with self._closed_on_failure():
            if reseed:
                self._pools.seed(self._task_seeds)
            obs = self._start_episodes(np.arange(self.num_envs))
        self._state = "ready"
        self._remember(obs)
        return obs

    def step_async(self, actions: Any) -> None:
        """Start a timestep with actions (n_envs, …) in every pool, so that all work at the same time.

        Raises:
            ValueError: an action is not of the action space; nothing has been stepped.
        """
        if self._state != "ready":
            needed = {
                "new": "reset()",
                "stepping": "step_wait()",
                "over": "reset()",
                "closed": "a new SuiteVecEnv",
            }
            raise RuntimeError(f"step_async() needs {needed[self._state]} first")
        checked = checked_actions(actions, self._actions_in, self.num_envs)
        if self._n_actions is not None:
            check_tasks_have(
                checked, self.task_index, self._n_actions, [task.name for task in self.suite.tasks]
            )
        with self._closed_on_failure():
            self._pools.send(checked)
        self._state = "stepping"

    def step_wait(
        self,
    ) -> tuple[Observations, NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """Finish the timestep: observations, rewards (n_envs,), dones (n_envs,), infos."""
        if self._state != "stepping":
            raise RuntimeError("step_wait() needs step_async() first")
        with self._closed_on_failure():
            step = self._pools.recv()
            self._lengths += 1
            step.failed[
                self._check_finite({"reward": step.rewards, **step.obs}, np.arange(self.num_envs))
            ] = True
            if step.failed.any():
                self._cut_off(step)
            self._returns += step.rewards
            np.maximum(self._succeeded_once, step.success, out=self._succeeded_once)
            done = step.done
            ended = np.flatnonzero(done)
            infos = self._infos(step, ended)
            if ended.size:
                self._record(infos, ended)
                self._start_next_episodes(ended, step.obs)
        self._state = "over" if self._pools.all_inactive else "ready"
        self._remember(step.obs)
        return step.obs, step.rewards, done, infos

    def deactivate(self, slots: EnvIndices) -> None:
        """Let slots (k,) begin no further episode, so that an evaluation need not play what nobody counts.

        Each ends the one under way; after that its rows are zeros, its infos empty and its actions without effect.
        ``reset()`` brings all back.
        """
        self._deactivated[slots] = True

    def _start_next_episodes(self, ended: EnvIndices, obs: Observations) -> None:
        """Begin the next episodes of slots whose last ended, their first observations taking the place of the last."""
        retired = self._deactivated[ended]
        if retired.any():
            self._pools.deactivate(ended[retired])
        going_on = ended[~retired]
        if going_on.size:
            for key, values in self._start_episodes(going_on).items():
                obs[key][going_on] = values

    def close(self) -> None:
        """End processes and threads; a second call does nothing."""
        self._state = "closed"
        self._pools.close()
        if self._workers is not None:
            self._workers.close()
        reference, self._rewards_of = self._rewards_of, None
        if reference is not None:
            reference.close()

    @property
    def task_probabilities(self) -> NDArray[np.float64]:
        """(number of tasks,), of each to be a next episode's; with bound slots, its share of them."""
        if self._sampler is None:
            return np.bincount(self.task_index, minlength=len(self.suite.tasks)) / self.num_envs
        probabilities = np.zeros(len(self.suite.tasks))
        probabilities[list(self.played)] = self._sampler.probabilities
        return probabilities

    def sampling_state(self) -> dict[str, Any]:
        """What decides on the tasks to come, for JSON."""
        return {"sampling": "fixed"} if self._sampler is None else self._sampler.state()

    def load_sampling_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a ``sampling_state()``.

        Raises:
            ConfigError: it is not one of this suite and this way of sampling; nothing has changed.
        """
        if self._sampler is not None:
            self._sampler.load(state)
        elif state.get("sampling") != "fixed":
            raise ConfigError(
                f"the state of the sampling must have sampling=fixed, got {state.get('sampling')}"
            )

    def _start_episodes(self, slots: EnvIndices) -> Observations:
        """First observations (k, …) of the next episodes of slots (k,)."""
        if self._sampler is not None:
            self.task_index[slots] = self._sampler.draw(len(slots))
        tasks = self.task_index[slots]
        self._returns[slots] = 0.0
        self._lengths[slots] = 0
        self._succeeded_once[slots] = NOT_REPORTED
        return self._withholding.draw(
            lambda rows: self._reset_slots(slots[rows], tasks[rows]), len(slots)
        )

    def _reset_slots(self, slots: EnvIndices, tasks: NDArray[np.int64]) -> Observations:
        obs = self._pools.reset(slots, tasks)
        while (bad := self._check_finite(obs, slots)).any():
            for key, values in self._pools.reset(slots[bad], tasks[bad]).items():
                obs[key][bad] = values
        return obs

    def _record(self, infos: list[dict[str, Any]], ended: EnvIndices) -> None:
        if self._sampler is not None:
            for slot in ended.tolist():
                self._sampler.record(int(self.task_index[slot]), infos[slot]["is_success"])

    def _check_finite(
        self, arrays: Mapping[str, NDArray[Any]], slots: EnvIndices
    ) -> NDArray[np.bool_]:
        """Stop at what no network can read or learn from, before it spreads, and say whose it is.

        Where it is to be survived, the rows (k,) of slots (k,) that have it.
        """
        bad = np.zeros(len(slots), dtype=np.bool_)
        for name, values in arrays.items():
            if values.dtype.kind != "f" or np.isfinite(values).all():
                continue
            for row in np.unique(np.argwhere(~np.isfinite(values))[:, 0]).tolist():
                slot = slots[row]
                task = self.suite.tasks[self.task_index[slot]]
                what = "a reward" if name == "reward" else f"an observation '{name}'"
                failure = EnvironmentFailedError(
                    f"task '{task.name}' ({task.env_id}, environment {slot}) gave {what} that is no finite number, "
                    f"in timestep {self._lengths[slot]} of its episode"
                )
                if not self._restart_non_finite:
                    raise failure
                if not bad[row]:
                    self._restarts.count(failure)
                bad[row] = True
        return bad

    def _cut_off(self, step: Step) -> None:
        """End the episodes whose environments failed where they were, without a reward."""
        failed = step.failed
        for key, values in step.obs.items():
            values[failed] = self._last_obs[key][failed]
        step.rewards[failed], step.terminated[failed], step.truncated[failed] = 0.0, False, True

    def _remember(self, obs: Observations) -> None:
        if self._restarts.max_restarts and self.backend == "gymnasium":
            self._last_obs = {key: values.copy() for key, values in obs.items()}

    def _infos(self, step: Step, ended: EnvIndices) -> list[dict[str, Any]]:
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        final_obs = {key: values[ended] for key, values in step.obs.items()}
        timed_out = step.truncated & ~step.terminated
        success = self._success(step, ended)
        columns = (
            ended,
            self.task_index[ended],
            timed_out[ended],
            self._returns[ended],
            self._lengths[ended],
        )
        elapsed = round(time.perf_counter() - self._start, 6)
        for row, (slot, task, cut, total, length) in enumerate(
            zip(*(column.tolist() for column in columns), strict=True)
        ):
            infos[slot] = {
                "terminal_observation": {key: values[row] for key, values in final_obs.items()},
                "TimeLimit.truncated": cut,
                "is_success": success[row],
                "episode": {"r": total, "l": length, "t": elapsed},
                "task": self.suite.tasks[task].name,
                **({"failed": True} if step.failed[slot] else {}),
            }
        return infos

    def _success(self, step: Step, ended: EnvIndices) -> list[bool]:
        """Of the episodes that ended, by their tasks' rules."""
        each = (self.task_index, step.rewards, step.success, self._succeeded_once, step.failed)
        columns = (column[ended].tolist() for column in each)
        return [
            not failed and _is_success(self.suite.tasks[task], reward, report, best_report)
            for task, reward, report, best_report, failed in zip(*columns, strict=True)
        ]

    @contextmanager
    def _closed_on_failure(self) -> Iterator[None]:
        # After a failure in one pool the others hold answers that nobody fetched: no later step could be right.
        try:
            yield
        except BaseException:
            self.close()
            raise

    # SB3 asks for single environments' attributes; here the environments may live in C++ or in other processes.

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """``render_mode`` is None; there is nothing else."""
        if attr_name == "render_mode":
            return [None for _ in self._get_indices(indices)]
        raise AttributeError(
            f"SuiteVecEnv gives no access to single environments, so not to their '{attr_name}'"
        )

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Not possible."""
        raise AttributeError(
            f"SuiteVecEnv gives no access to single environments, so not to their '{attr_name}'"
        )

    def env_method(
        self,
        method_name: str,
        *method_args: Any,
        indices: VecEnvIndices = None,
        **method_kwargs: Any,
    ) -> list[Any]:
        """``compute_reward`` of a suite's only task, as SB3's HerReplayBuffer asks for it; nothing else is possible."""
        if method_name != "compute_reward":
            raise AttributeError(
                f"SuiteVecEnv gives no access to single environments, so not to their '{method_name}'"
            )
        compute_reward = self._goal_env().get_wrapper_attr("compute_reward")
        return [compute_reward(*method_args, **method_kwargs) for _ in self._get_indices(indices)]

    def _goal_env(self) -> gym.Env[Any, Any]:
        """An environment in this process that knows the rewards, whatever steps the others."""
        if self._rewards_of is None:
            if len(self.suite.tasks) > 1 or self.backend != "gymnasium":
                raise AttributeError(
                    "SuiteVecEnv has 'compute_reward' of suites with one task on backend=gymnasium; suite "
                    f"'{self.suite.name}' has {len(self.suite.tasks)} and backend={self.backend}"
                )
            env = make_env(self.suite.tasks[0], 0, 1, self.suite.observation)
            if not env.has_wrapper_attr("compute_reward"):
                env.close()
                raise AttributeError(
                    f"{self.suite.tasks[0].env_id} has no 'compute_reward': it is no GoalEnv"
                )
            self._rewards_of = env
        return self._rewards_of

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None
    ) -> list[bool]:
        """True for SB3's Monitor, whose ``episode`` statistics are written here too; False for all others."""
        return [issubclass(wrapper_class, Monitor) for _ in self._get_indices(indices)]


def make_vec_env(
    env: str | Sequence[str] | SuiteConfig,
    n_envs: int,
    backend: BackendName = "auto",
    seed: int = 0,
    seed_split: SeedSplit = "train",
) -> SuiteVecEnv:
    """A ``SuiteVecEnv`` of one id, of several ids (one task each, named by its id), or of a suite."""
    if not isinstance(env, SuiteConfig):
        ids = (env,) if isinstance(env, str) else tuple(env)
        tasks = [{"name": env_id, "env_id": env_id} for env_id in ids]
        env = validate(SuiteConfig, {"name": "+".join(ids), "tasks": tasks})
    return SuiteVecEnv(env, n_envs, backend=backend, seed=seed, seed_split=seed_split)


def _is_success(task: TaskConfig, last_reward: float, last_report: int, best_report: int) -> bool:
    match task.success:
        case "reward":
            return last_reward > 0
        case "auto":
            return last_report == 1 if last_report != NOT_REPORTED else last_reward > 0
        case "info":
            report, infos = last_report, "the last info"
        case "any_step":
            report, infos = best_report, "every info"
        case _:
            assert_never(task.success)
    if report == NOT_REPORTED:
        raise ConfigError(
            f"task '{task.name}' has success={task.success}, but {infos} of {task.env_id} has no 'is_success'; "
            "use success=reward"
        )
    return report == 1
