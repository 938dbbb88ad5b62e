"""Games of several agents: each task of the suite is one agent, and all of them step together.

A game is an id that is registered with a ``vector_entry_point`` only, a Gymnasium ``VectorEnv``
whose slots are agents: slot g · n + i is agent i of game g.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from mirl.configs.errors import ConfigError
from mirl.configs.keys import TASK_KEY
from mirl.configs.tasks import SuiteConfig, TaskConfig
from mirl.envs.actions import ActionSpace, check_action_space
from mirl.envs.contract.descriptions import describe_space, name_task
from mirl.envs.make import find_spec, is_game
from mirl.envs.pools.backend import NOT_REPORTED, EnvironmentFailedError, Step
from mirl.envs.spaces import DEFAULT_KEY
from mirl.envs.type_aliases import Array, EnvIndices, Info, Observations

AnyVectorEnv = VectorEnv[Any, Any, Any]


def has_game(suite: SuiteConfig) -> bool:
    """Return True if the tasks of a suite are the agents of one game.

    Args:
        suite: the tasks.

    Raises:
        ConfigError: if an id is unknown, or the tasks are not those of one game.
    """
    first = suite.tasks[0]
    games = [is_game(task) for task in suite.tasks]
    if not any(games):
        return False
    for task, task_is_game in zip(suite.tasks, games, strict=True):
        if not task_is_game or (task.env_id, task.kwargs) != (first.env_id, first.kwargs):
            raise ConfigError(
                f"suite '{suite.name}': the tasks of a game are its agents, which share env_id and "
                f"kwargs, got {first.env_id} {first.kwargs} for '{first.name}' and {task.env_id} "
                f"{task.kwargs} for '{task.name}'; train other tasks apart"
            )
        if task.wrappers:
            raise ConfigError(
                f"{name_task(task)}: a game has no single environments to wrap, got "
                f"{task.wrappers[0].wrapper}; leave wrappers out"
            )
    if len(suite.tasks) == 1:
        raise ConfigError(
            f"{name_task(first)} is an agent of a game and cannot act alone; train and evaluate a "
            "suite whose tasks are all agents"
        )
    if suite.observation != "grid":
        raise ConfigError(
            f"suite '{suite.name}': a game has no observation={suite.observation}; use "
            "observation=grid"
        )
    return True


def game_spaces(suite: SuiteConfig) -> tuple[spaces.Dict, ActionSpace, int | None]:
    """Return the spaces of an agent, and the timesteps after which an episode is truncated.

    Args:
        suite: the tasks, which are the agents.

    Raises:
        ConfigError: if the game cannot be made, or its spaces are not supported.
    """
    first = suite.tasks[0]
    env = _make(suite, n_games=1)
    try:
        where = name_task(first)
        subspaces = {DEFAULT_KEY: env.single_observation_space}
        if isinstance(env.single_observation_space, spaces.Dict):
            subspaces = dict(env.single_observation_space)
        for key, subspace in subspaces.items():
            if key == TASK_KEY or not isinstance(subspace, spaces.Box):
                raise ConfigError(
                    f"{where}: an agent of a game observes a Box, or a Dict of Boxes without the "
                    f"key '{TASK_KEY}', got '{key}': {describe_space(subspace)}"
                )
        observation = spaces.Dict({**subspaces, TASK_KEY: spaces.Discrete(len(suite.tasks))})
        action = check_action_space(env.single_action_space, where)
        return observation, action, find_spec(first).max_episode_steps
    finally:
        env.close()


def make_game_backends(
    suite: SuiteConfig, sizes: Mapping[int, int], n_envs: int
) -> "dict[int, GameBackend]":
    """Return one backend per agent; the backends share the games.

    Args:
        suite: the tasks, which are the agents.
        sizes: number of environments that the backend of each task holds, by its index.
        n_envs: number of environments.

    Raises:
        ConfigError: if an agent is not played, an environment can change its agent, or the numbers
            of environments differ.
    """
    n_agents = len(suite.tasks)
    if len(sizes) < n_agents:
        raise ConfigError(
            f"suite '{suite.name}' is a game, which needs all of its {n_agents} agents, got "
            f"{len(sizes)} of its tasks; hold none out, and evaluate or adapt to none alone"
        )
    if sum(sizes.values()) != n_envs:
        raise ConfigError(
            f"suite '{suite.name}' is a game, each of whose agents has environments of its own, "
            "got a sampling of tasks; use sampling=fixed"
        )
    n_games = sizes[0]
    if any(size != n_games for size in sizes.values()):
        raise ConfigError(
            f"suite '{suite.name}' is a game: n_envs must be a multiple of its {n_agents} agents, "
            f"got {n_envs}"
        )
    games = _Games(suite, n_games)
    return {index: GameBackend(games, index) for index in range(n_agents)}


class GameBackend:
    """Backend of one agent: its environment g is its slot in game g.

    The commands of all agents have to be sent before the first result is received, as
    ``SuiteBackend`` does, and have to be for the same games.

    Args:
        games: the games, shared by the backends of all agents.
        task_index: index of the agent.
    """

    def __init__(self, games: "_Games", task_index: int) -> None:
        self._games = games
        self._task_index = task_index
        self.reset_infos: dict[int, Info] = {}
        """Always empty: a ``VectorEnv`` returns one info for all slots together."""

    def seed(self, seeds: Sequence[int]) -> None:
        """Restart the random streams at the next reset.

        Args:
            seeds: one seed per game.
        """
        self._games.seed(self._task_index, seeds)

    def send_reset(self, env_indices: EnvIndices, options: Sequence[Info] | None = None) -> None:
        """Start an episode.

        Args:
            env_indices: the games, (k,).
            options: None, because one reset concerns several agents.

        Raises:
            ConfigError: if there are options.
        """
        if options is not None and any(options):
            raise ConfigError(f"set_options: a game takes no options, got {options}; set none")
        self._games.send(self._task_index, env_indices, None)

    def recv_reset(self) -> Observations:
        """Return the first observations of these episodes, (k, …)."""
        return self._games.recv(self._task_index).obs

    def send(self, env_indices: EnvIndices, actions: Array) -> None:
        """Start a timestep.

        Args:
            env_indices: the games, (k,).
            actions: the valid actions of this agent, (k, …).
        """
        self._games.send(self._task_index, env_indices, actions)

    def recv(self) -> Step:
        """Finish the timestep and return it."""
        return self._games.recv(self._task_index)

    def close(self) -> None:
        """Close the games; a second call does nothing."""
        self._games.close()


class _Games:
    """The games of a suite, reset or stepped once the commands of all agents have arrived."""

    def __init__(self, suite: SuiteConfig, n_games: int) -> None:
        self._task = suite.tasks[0]
        self._n_agents = len(suite.tasks)
        self._n_games = n_games
        # Any: VectorEnv.reset() accepts lists of seeds, but its annotations do not allow them.
        self._env: Any = _make(suite, n_games)
        self._seeds: NDArray[np.int64] = np.zeros((n_games, self._n_agents), np.int64)
        self._needs_seed = np.zeros(n_games, np.bool_)
        self._commands: dict[int, tuple[EnvIndices, Array | None]] = {}
        self._results: dict[int, Step] = {}

    def seed(self, task_index: int, seeds: Sequence[int]) -> None:
        self._seeds[:, task_index] = seeds
        self._needs_seed[:] = True

    def send(self, task_index: int, games: EnvIndices, actions: Array | None) -> None:
        """Store the command of an agent; actions None is a reset."""
        self._commands[task_index] = (games, actions)

    def recv(self, task_index: int) -> Step:
        """Return the result of an agent; the first call executes the commands of all agents."""
        if self._commands:
            commands = self._commands
            self._commands = {}
            self._execute(commands)
        return self._results.pop(task_index)

    def close(self) -> None:
        env = self._env
        self._env = None
        if env is not None:
            env.close()

    def _execute(self, commands: dict[int, tuple[EnvIndices, Array | None]]) -> None:
        games, _ = next(iter(commands.values()))
        for other_games, _ in commands.values():
            if len(commands) < self._n_agents or not np.array_equal(other_games, games):
                raise EnvironmentFailedError(
                    f"{name_task(self._task)}: the agents of a game must start, step and end "
                    "together; truncate their episodes at the same timestep"
                )
        by_agent = []
        for task_index in range(self._n_agents):
            _, actions = commands[task_index]
            if actions is not None:
                by_agent.append(actions)
        if by_agent:
            # agents × (k, …) -> (k, agents, …)
            joint = np.stack(by_agent, axis=1)
            step = self._call("step", lambda: self._step(games, joint))
        else:
            step = self._call("reset", lambda: self._reset(games))
        for task_index in range(self._n_agents):
            self._results[task_index] = self._of_agent(step, games, task_index)

    def _reset(self, games: EnvIndices) -> Step:
        """Reset some games, (k,); return all slots."""
        in_reset = np.zeros(self._n_games, np.bool_)
        in_reset[games] = True
        seeds: list[int | None] = [None] * (self._n_games * self._n_agents)
        for game in np.flatnonzero(in_reset & self._needs_seed).tolist():
            first = game * self._n_agents
            seeds[first : first + self._n_agents] = self._seeds[game].tolist()
        self._needs_seed[games] = False
        mask = np.repeat(in_reset, self._n_agents)  # (games,) -> (slots,)
        obs, _ = self._env.reset(seed=seeds, options={"reset_mask": mask})
        zeros = np.zeros(len(mask))
        return _as_step(obs, zeros, zeros, zeros, {})

    def _step(self, games: EnvIndices, actions: Array) -> Step:
        """Step some games with actions (k, agents, …); return all slots."""
        # A VectorEnv steps all games; the others get valid actions, and their results are ignored.
        joint = np.repeat(actions[:1], self._n_games, axis=0)
        joint[games] = actions
        # (games, agents, …) -> (slots, …)
        return _as_step(*self._env.step(joint.reshape(-1, *actions.shape[2:])))

    def _call(self, method: str, call: Callable[[], Step]) -> Step:
        try:
            return call()
        except Exception as error:
            raise EnvironmentFailedError(
                f"{name_task(self._task)} failed in {method}(): {type(error).__name__}: {error}"
            ) from error

    def _of_agent(self, step: Step, games: EnvIndices, task_index: int) -> Step:
        """Return the rows of one agent in some games, (k,)."""
        slots = games * self._n_agents + task_index
        obs = {key: values[slots] for key, values in step.obs.items()}
        obs[TASK_KEY] = np.full(len(games), task_index, np.int64)
        return Step(
            obs,
            step.rewards[slots],
            step.terminated[slots],
            step.truncated[slots],
            step.success[slots],
            step.failed[slots],
        )


def _as_step(obs: Any, rewards: Array, terminated: Array, truncated: Array, infos: Info) -> Step:
    """Return a timestep of all slots, as a ``VectorEnv`` gives it."""
    success = np.full(len(rewards), NOT_REPORTED, np.int8)
    if "is_success" in infos:
        # Gymnasium marks the slots that have an entry under "_" + its name.
        is_given = infos.get("_is_success", np.ones(len(rewards), np.bool_))
        success[is_given] = infos["is_success"][is_given]
    return Step(
        obs=dict(obs) if isinstance(obs, dict) else {DEFAULT_KEY: obs},
        rewards=np.asarray(rewards, np.float32),
        terminated=np.asarray(terminated, np.bool_),
        truncated=np.asarray(truncated, np.bool_),
        success=success,
        failed=np.zeros(len(rewards), np.bool_),
    )


def _make(suite: SuiteConfig, n_games: int) -> AnyVectorEnv:
    task: TaskConfig = suite.tasks[0]
    n_agents = len(suite.tasks)
    try:
        env = gym.make_vec(
            find_spec(task),
            num_envs=n_games * n_agents,
            vectorization_mode="vector_entry_point",
            n_agents=n_agents,
            **task.kwargs,
        )
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{name_task(task)} cannot be made with n_agents={n_agents}, kwargs={task.kwargs}: "
            f"{error}; change kwargs or the number of tasks"
        ) from error
    mode = env.metadata.get("autoreset_mode")
    if mode != AutoresetMode.DISABLED:
        env.close()
        raise ConfigError(
            f"{name_task(task)}: a game must have autoreset_mode=DISABLED in its metadata, because "
            f"MIRL resets each of the games itself, got {mode}"
        )
    return env
