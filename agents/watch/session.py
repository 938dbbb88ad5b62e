"""Episodes of one environment, played by a policy one timestep at a time."""

from contextlib import ExitStack, closing
from functools import cached_property
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from mirl.agents.builder import Policy
from mirl.agents.eval_mode import eval_mode
from mirl.agents.policy_loader import restore_policy
from mirl.agents.runs.run_directory import RunDirectory
from mirl.agents.watch.cells import view_picture
from mirl.agents.watch.decision import Decision, decide
from mirl.agents.watch.episode import EpisodePlayer
from mirl.agents.watch.single_env import (
    Frame,
    as_batch,
    first_observation,
    open_env,
    render,
    text_of,
)
from mirl.configs.errors import ConfigError
from mirl.configs.keys import MISSION_KEY
from mirl.configs.networks import AutoContextConfig
from mirl.configs.schema import WatchConfig
from mirl.configs.tasks import SuiteConfig
from mirl.configs.texts import split_words
from mirl.envs import env_seeds
from mirl.envs.texts.codec import is_text, suite_codec

DRAWN_MISSIONS = 200
"""Number of episodes from whose missions the words of a task are collected."""


class Moment(NamedTuple):
    """One timestep of an episode, as it is shown."""

    picture: Frame
    """The environment."""
    view: Frame | None
    """The part of the environment that the agent sees; None outside of MiniGrid and BabyAI."""
    shares: NDArray[np.float64] | None
    """Share of each cell of the view, rows first, in what the mission picks out."""
    mission: str
    """The text that the agent reads, or the name of the task."""
    unknown_words: tuple[str, ...]
    """Words of a typed mission that the missions of the task do not have."""
    episode: int
    timestep: int
    episode_return: float
    action: str
    """The action that is taken next; empty at the end of an episode."""
    probabilities: dict[str, float]
    """Probability of each action by its name; empty unless the actions are ``Discrete``."""
    value: float | None
    outcome: str
    """``running``, ``success``, ``failure``, or ``over`` if no success is reported; with the reason
    if that is because the agent reads a mission other than the environment's."""


class Session:
    """A policy in one environment.

    Args:
        policy: the policy.
        suite: the suite that it was trained on.
        task_index: index of the task in the suite.
        seed: seed of the first episode and of the actions.
        deterministic: take the most probable actions.
        mission: text that the agent reads in place of the environment's; empty for none.

    Raises:
        ConfigError: the environment cannot be rendered, or its observations have no text.
    """

    def __init__(
        self,
        policy: Policy,
        suite: SuiteConfig,
        task_index: int,
        *,
        seed: int,
        deterministic: bool = False,
        mission: str = "",
    ) -> None:
        env = open_env(suite, task_index)
        name = suite.tasks[task_index].name
        if env is None:
            raise ConfigError(
                f"task '{name}' cannot be watched: its environment renders no rgb_array; choose "
                "another task"
            )
        self.policy = policy
        self.suite = suite
        self.task = name
        self._player = EpisodePlayer(env, suite, task_index)
        self.deterministic = deterministic
        self._env = env
        self._seed: int | None = seed
        self._resources = ExitStack()
        self._resources.callback(env.close)
        self._resources.enter_context(eval_mode(policy, seed))
        self._text_key = _text_key(policy)
        self._task_index = task_index
        self.typed_mission = ""
        self.episode = 0
        self.set_mission(mission)
        self.next_episode()

    @classmethod
    def open(cls, config: WatchConfig) -> Self:
        """Return the session that a command line describes.

        Args:
            config: its options.

        Raises:
            ConfigError: there is no such run, checkpoint or task, or it cannot be watched.
        """
        run = RunDirectory.open(config.run)
        task_index = run.task_index(config.task)
        policy = restore_policy(run.config, run.checkpoint(config.checkpoint), config.device)
        [seed] = env_seeds(config.seed, "test", task_index, 1)
        return cls(
            policy,
            run.config.task,
            task_index,
            seed=seed,
            deterministic=config.deterministic,
            mission=config.mission,
        )

    def __enter__(self) -> Self:
        """Return the session, which the end of the context closes."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the environment, and restore the policy's mode and torch's random state."""
        self._resources.close()

    @property
    def timestep(self) -> int:
        """Number of actions that were taken in the episode."""
        return self._player.timestep

    @property
    def is_over(self) -> bool:
        """True if the episode has ended."""
        return self._player.is_over

    def set_mission(self, text: str) -> None:
        """Replace the text that the agent reads, from the next timestep on.

        Args:
            text: the text; empty for the environment's own text.

        Raises:
            ConfigError: the observations have no text.
        """
        if text and self._text_key is None:
            raise ConfigError(
                f"task '{self.task}' has no mission: the policy reads no text; leave mission= out"
            )
        self.typed_mission = text
        if self.episode:
            self._decide()

    def next_episode(self) -> None:
        """Start another episode."""
        self._observation = self._player.start(self._seed)
        self._seed = None
        self.episode += 1
        self._typed_at_end = False
        self._state: Tensor | None = None
        self._decide()

    def step(self) -> None:
        """Take the action that was chosen; nothing happens once the episode is over."""
        if self.is_over:
            return
        self._observation = self._player.step(self._decision.action)
        self._state = self._decision.state
        self._typed_at_end = bool(self.typed_mission)
        self._decide()

    def moment(self) -> Moment:
        """Return the current timestep."""
        decision = self._decision
        view = view_picture(self._env)
        shares = decision.shares
        if view is not None and shares is not None:
            # MiniGrid's observations have the column first
            shares = shares.T
        player = self._player
        probabilities: dict[str, float] = {}
        if decision.probabilities is not None:
            # a task may have fewer actions than the suite
            for name, probability in zip(
                player.action_names, decision.probabilities.tolist(), strict=False
            ):
                probabilities[name] = probability
        return Moment(
            picture=render(self._env),
            view=view,
            shares=shares,
            mission=self.typed_mission or player.mission,
            unknown_words=self._unknown_words(),
            episode=self.episode,
            timestep=player.timestep,
            episode_return=player.episode_return,
            action="" if self.is_over else player.name_of(decision.action),
            probabilities=probabilities,
            value=decision.value,
            outcome=self._outcome,
        )

    def _decide(self) -> None:
        observation = dict(self._observation)
        if self.typed_mission and self._text_key is not None:
            codec = suite_codec(self.suite)
            observation[self._text_key] = codec.encode(self.typed_mission)
        self._decision: Decision = decide(
            self.policy,
            as_batch(observation, self._env, self.policy),
            self._state,
            deterministic=self.deterministic,
        )

    @property
    def _outcome(self) -> str:
        # the environment reports success for its own mission
        if self.is_over and self._typed_at_end:
            return "over (not judged: the mission was typed)"
        return self._player.outcome

    @cached_property
    def _known_words(self) -> frozenset[str]:
        """Words in the missions of some episodes, sampled when the first mission is typed."""
        words: set[str] = set()
        # a separate environment, because the watched episode continues
        env = open_env(self.suite, self._task_index)
        assert env is not None
        with closing(env):
            for seed in range(DRAWN_MISSIONS):
                first_observation(env, self.suite, seed)
                words.update(split_words(text_of(env, self.task)))
        return frozenset(words)

    def _unknown_words(self) -> tuple[str, ...]:
        if not self.typed_mission:
            return ()
        typed = dict.fromkeys(split_words(self.typed_mission))
        return tuple(word for word in typed if word not in self._known_words)


def _text_key(policy: Policy) -> str | None:
    """Return the key of the text that a policy reads, the mission if it reads several."""
    space = policy.observation_space
    assert isinstance(space, spaces.Dict)
    network = policy.network
    # the network of a policy has been resolved
    assert not isinstance(network.context, AutoContextConfig)
    read = {*network.context.keys, *(network.observation_keys or ())}
    keys = [key for key, subspace in space.items() if key in read and is_text(subspace)]
    if MISSION_KEY in keys:
        return MISSION_KEY
    return keys[0] if keys else None
