"""The part of SB3's ``VecEnv`` interface that concerns attributes of single environments.

Single environments live in C++ or in other processes, so almost all of it is rejected.
"""

from contextlib import closing
from functools import partial
from typing import Literal, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

from mirl.configs.errors import ConfigError
from mirl.configs.keys import ACTION_MASK_KEY
from mirl.configs.tasks import SuiteConfig
from mirl.envs.actions import ActionSpace
from mirl.envs.contract.episode_limits import episode_limit
from mirl.envs.contract.goals import batch_of_rewards, check_compute_reward, ends_within
from mirl.envs.make import make_env
from mirl.envs.spaces import ContractObservation
from mirl.envs.texts.codec import suite_codec
from mirl.envs.type_aliases import AnyEnv, Array


class EnvAttributes(VecEnv):
    """``VecEnv`` without access to single environments, except for the rewards of goals.

    Args:
        suite: the tasks.
        backend: backend of the environments.
        n_envs: number of environments.
        observation_space: observation space of one environment.
        action_space: action space of one environment.
    """

    def __init__(
        self,
        suite: SuiteConfig,
        backend: Literal["gymnasium", "envpool"],
        n_envs: int,
        observation_space: spaces.Dict,
        action_space: ActionSpace,
    ) -> None:
        self.suite = suite
        self.backend: Literal["gymnasium", "envpool"] = backend
        self._goal_env: AnyEnv | None = None
        super().__init__(n_envs, observation_space, action_space)

    def close(self) -> None:
        """Close the environment that computes rewards, if there is one."""
        goal_env = self._goal_env
        self._goal_env = None
        if goal_env is not None:
            goal_env.close()

    def get_attr(
        self, attr_name: str, indices: VecEnvIndices = None
    ) -> list[None] | list[partial[NDArray[np.bool_]]]:
        """Return None for ``render_mode``, or a function for ``action_masks``, per environment.

        Args:
            attr_name: name of the attribute.
            indices: the environments; None for all.

        Raises:
            AttributeError: for any other attribute.
        """
        # VecEnv's constructor asks for this one attribute.
        if attr_name == "render_mode":
            return [None for _ in self._get_indices(indices)]
        # sb3-contrib asks for the attribute, and then calls the method
        if attr_name == "action_masks":
            self._check_has_masks()
            return [partial(self._mask_of, i) for i in self._get_indices(indices)]
        raise _no_access(attr_name)

    def action_masks(self) -> NDArray[np.bool_]:
        """Return a mask of the actions that are available now, (n_envs, n_actions)."""
        raise NotImplementedError

    def _mask_of(self, env_index: int) -> NDArray[np.bool_]:
        mask: NDArray[np.bool_] = self.action_masks()[env_index]
        return mask

    def _check_has_masks(self) -> None:
        """Raise an AttributeError if the observations have no masks."""
        assert isinstance(self.observation_space, spaces.Dict), "the contract is a Dict"
        if ACTION_MASK_KEY not in self.observation_space.spaces:
            raise AttributeError(f"the observations have no '{ACTION_MASK_KEY}'")

    def set_attr(self, attr_name: str, value: object, indices: VecEnvIndices = None) -> None:
        """Raise an error, because single environments cannot be changed.

        Args:
            attr_name: name of the attribute.
            value: its value.
            indices: the environments; None for all.

        Raises:
            AttributeError: always.
        """
        raise _no_access(attr_name)

    def env_method(
        self,
        method_name: str,
        *method_args: object,
        indices: VecEnvIndices = None,
        **method_kwargs: object,
    ) -> list[Array]:
        """Return rewards of relabeled goals for SB3's HerReplayBuffer, or masks for sb3-contrib.

        Args:
            method_name: ``compute_reward`` or ``action_masks``; there are no other methods.
            *method_args: positional arguments of the method.
            indices: the environments; None for all.
            **method_kwargs: keyword arguments of the method.

        Returns:
            The same rewards for each environment, or the mask of each environment, (n_actions,).

        Raises:
            AttributeError: for any other method, or if the suite has no ``compute_reward``.
        """
        if method_name == "action_masks":
            self._check_has_masks()
            return list(self.action_masks()[list(self._get_indices(indices))])
        if method_name != "compute_reward":
            raise _no_access(method_name)
        if self._goal_env is None:
            self._goal_env = self._make_goal_env()
        # The rewards depend only on the goals, so they are the same for each environment.
        compute_reward = self._goal_env.get_wrapper_attr("compute_reward")
        rewards = []
        # SB3 passes the goals as positional arguments
        n_pairs = len(cast(Array, method_args[0]))
        for _ in self._get_indices(indices):
            result = compute_reward(*method_args, **method_kwargs)
            rewards.append(batch_of_rewards(result, n_pairs))
        return rewards

    def check_compute_reward(self, n_steps: int) -> None:
        """Raise an error if hindsight experience replay cannot relabel the goals of the suite.

        Args:
            n_steps: timesteps of an environment within which an episode has to end.

        Raises:
            AttributeError: if the suite has no ``compute_reward``.
            ConfigError: if its rewards are wrong, or its episodes do not end.
        """
        with closing(self._make_goal_env()) as env:
            check_compute_reward(env)
            if episode_limit(env) is None and not ends_within(env, n_steps):
                raise ConfigError(
                    f"no episode ended within {n_steps:,} random timesteps, where learning starts, "
                    "and goals are taken from episodes that have ended; set "
                    "task.kwargs.max_episode_steps=…"
                )

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Return True per environment for SB3's Monitor, because the infos hold its statistics.

        Args:
            wrapper_class: the class of a wrapper.
            indices: the environments; None for all.
        """
        return [issubclass(wrapper_class, Monitor) for _ in self._get_indices(indices)]

    def _make_goal_env(self) -> ContractObservation:
        """Return an environment in this process, for the computation of rewards."""
        tasks = self.suite.tasks
        if len(tasks) > 1 or self.backend != "gymnasium":
            raise AttributeError(
                "compute_reward() needs a suite with one task on backend=gymnasium, got suite "
                f"'{self.suite.name}' with {len(tasks)} on backend={self.backend}"
            )
        env = make_env(
            tasks[0],
            0,
            1,
            self.suite.observation,
            texts=suite_codec(self.suite),
            unknown_codes=self.suite.unknown_codes,
        )
        if not env.has_wrapper_attr("compute_reward"):
            env.close()
            raise AttributeError(
                f"{tasks[0].env_id} has no 'compute_reward', so it is not a goal environment; "
                "train without hindsight experience replay"
            )
        return env


def _no_access(name: str) -> AttributeError:
    return AttributeError(
        f"SuiteVecEnv gives no access to single environments, so not to their '{name}'; use "
        "mirl.envs.make_env() to make a single environment"
    )
