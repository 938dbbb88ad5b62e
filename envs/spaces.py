"""The observation contract: a Dict of arrays that SB3 can batch, with the index of the task."""

from collections.abc import Callable, KeysView, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit
from minigrid.minigrid_env import MiniGridEnv
from minigrid.wrappers import RGBImgObsWrapper, RGBImgPartialObsWrapper
from numpy.typing import NDArray

from mirl.configs.errors import ConfigError, ContractError
from mirl.configs.keys import ACTION_MASK_KEY, ENV_TASK_KEY, TASK_KEY
from mirl.configs.texts import TextForm
from mirl.envs.contract.codes import UnknownCodes, grid_high
from mirl.envs.contract.descriptions import describe_value, shorten
from mirl.envs.contract.masks import convert_mask, mask_space
from mirl.envs.contract.timesteps import check_reset_result, check_step_result
from mirl.envs.contract.values import Values
from mirl.envs.texts.codec import TextCodec, text_codec
from mirl.envs.texts.draw import constant_text, default_length, is_raw_text
from mirl.envs.type_aliases import AnyEnv, AnySpace, Array, Info, Observation

DEFAULT_KEY = "observation"
"""Key of an observation that is not a Dict."""


class ContractObservation(
    gym.ObservationWrapper[Observation, Any, Any], gym.utils.RecordConstructorArgs
):
    """Wrapper that converts each observation to a Dict, with a ``task`` index if there are several.

    An observation that is not a Dict is stored under ``observation``; an environment's own key
    ``task`` becomes ``env_task``, and all other keys keep their names. Texts under any key become
    token ids, a Box of int16 of shape (text_length,). MiniGrid's symbolic image gets the bounds
    of its codes instead of 0 to 255, which SB3 would take for pixels. An ``action_mask`` becomes a
    MultiBinary, and Discrete values start at 0.

    Everything that an environment returns is checked against its spaces. Values of another dtype
    are converted if that is lossless, and so are rewards that are arrays of one number. MiniGrid's
    and BabyAI's own environments are not checked, to save time.

    Args:
        env: the environment.
        task_index: index of its task in the suite.
        n_tasks: number of tasks in the suite.
        vocabulary: words with token ids of their own, besides MiniGrid's and BabyAI's;
            ``mirl.envs.draw_vocabulary`` collects those of an environment. All other words share
            64 ids.
        text_length: length of each text, in words; longer ones are cut. None means 80 for
            MiniGrid's texts, and the space's maximum length, at most 256, for others.
        text_form: ``tokens``, or ``utf8`` for the text's bytes plus 1.
        unknown_codes: handling of codes of a symbolic image beyond MiniGrid's tables or the bounds
            of its space: "error", or "hash" to map them to values reserved for them.
        task_key: whether observations have the key ``task``, as those of ``SuiteVecEnv`` always
            do; None adds it only if there are several tasks.

    Raises:
        ValueError: if ``task_index`` is not below ``n_tasks``.
        ConfigError: if an observation cannot be converted.

    Examples:
        >>> import gymnasium as gym
        >>> from mirl.envs import ContractObservation
        >>> env = ContractObservation(gym.make("MiniGrid-GoToDoor-5x5-v0"))
        >>> observation, info = env.reset(seed=0)
        >>> observation["image"].shape
        (7, 7, 3)
        >>> observation["mission"].shape, observation["mission"].dtype
        ((80,), dtype('int16'))
        >>> env.texts["mission"].startswith("go to the")
        True
    """

    def __init__(
        self,
        env: AnyEnv,
        task_index: int = 0,
        n_tasks: int = 1,
        vocabulary: Sequence[str] = (),
        text_length: int | None = None,
        *,
        text_form: TextForm = "tokens",
        unknown_codes: UnknownCodes = "error",
        task_key: bool | None = None,
    ) -> None:
        # Gymnasium re-creates the wrapper from these; they are not copied for each environment.
        gym.utils.RecordConstructorArgs.__init__(
            self,
            _disable_deepcopy=True,
            task_index=task_index,
            n_tasks=n_tasks,
            vocabulary=tuple(vocabulary),
            text_length=text_length,
            text_form=text_form,
            unknown_codes=unknown_codes,
            task_key=task_key,
        )
        gym.ObservationWrapper.__init__(self, env)
        if not 0 <= task_index < n_tasks:
            raise ValueError(f"task_index must be in [0, n_tasks={n_tasks}), got {task_index}")
        # an environment that sets no space has no such attribute
        space = getattr(env, "observation_space", None)
        self._is_dict = isinstance(space, spaces.Dict)
        declared: dict[str, Any] = {DEFAULT_KEY: space}
        if isinstance(space, spaces.Dict):
            declared = dict(space)
        self._has_task_key = TASK_KEY in declared
        self._is_checked = not is_known(env)
        self._keys = declared.keys()
        inner = _without_task_key(declared)
        self._task_index: np.int64 | None = None
        if task_key or (task_key is None and n_tasks > 1):
            # a scalar: SB3's check_env accepts no array for a Discrete
            self._task_index = np.int64(task_index)
        self._codecs: dict[str, TextCodec] = {}
        self.texts: dict[str, str] = {}
        """The texts of the last observation, by key, before their conversion."""
        self.constant_texts: dict[str, str] = {}
        """The texts that are the same in all episodes, by key."""
        self._values: dict[str, Values] = {}
        self._n_actions: int | None = None
        self._mask: Array | None = None
        contract: dict[str, AnySpace] = {}
        for key, subspace in inner.items():
            if is_raw_text(subspace):
                length = text_length or default_length(subspace, env, text_form)
                codec = text_codec(tuple(vocabulary), length, text_form)
                self._codecs[key] = codec
                constant = constant_text(subspace)
                if constant is not None:
                    self.constant_texts[key] = constant
                contract[key] = codec.space(is_constant=constant is not None)
            elif key == ACTION_MASK_KEY:
                mask = mask_space(subspace, env.action_space)
                self._n_actions = mask.n  # type: ignore[assignment]
                contract[key] = mask
            else:
                # some wrappers return only the image instead of the Dict
                is_image = key == "image" or not self._is_dict
                is_symbolic = is_image and _is_symbolic(subspace, env)
                known = subspace
                if is_symbolic and isinstance(subspace, spaces.Box):
                    known = _with_code_bounds(subspace)
                values = Values(key, known, unknown_codes, from_minigrid=is_symbolic)
                self._values[key] = values
                contract[key] = values.space
        if self._task_index is not None:
            contract[TASK_KEY] = spaces.Discrete(n_tasks)
        self.observation_space = spaces.Dict(contract)  # type: ignore[assignment]

    @property
    def text_keys(self) -> tuple[str, ...]:
        """Keys of the texts."""
        return tuple(self._codecs)

    @property
    def action_masks(self) -> Callable[[], NDArray[np.bool_]]:
        """Function that returns the mask of the last observation, as sb3-contrib calls it.

        Raises:
            AttributeError: if the observations have no ``action_mask``.
        """
        if self._n_actions is None:
            raise AttributeError(f"the observations have no '{ACTION_MASK_KEY}'")
        return self._last_mask

    @property
    def compute_reward(self) -> Callable[..., Any]:
        """The function of a goal environment that returns the reward for relabeled goals.

        Raises:
            AttributeError: if the environment has none.
        """
        function: Callable[..., Any] = self.env.get_wrapper_attr("compute_reward")
        return function

    def _last_mask(self) -> NDArray[np.bool_]:
        assert self._mask is not None, "reset() comes first"
        return self._mask.astype(np.bool_)

    def reset(
        self, *, seed: int | None = None, options: Info | None = None
    ) -> tuple[Observation, Info]:
        """Start an episode.

        Args:
            seed: seed of the environment's random stream; None continues it.
            options: options of the environment.

        Returns:
            The first observation and the info.

        Raises:
            ContractError: if the environment returns a value that does not match its spaces.
        """
        result = self.env.reset(seed=seed, options=options)
        if self._is_checked:
            result = check_reset_result(result)
        observation, info = result
        return self.observation(observation), info

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, Info]:
        """Take a timestep.

        Args:
            action: an action of the wrapped environment's space.

        Returns:
            The observation, the reward, whether the episode terminated or was truncated, and the
            info.

        Raises:
            ContractError: if the environment returns a value that does not match its spaces.
        """
        result = self.env.step(action)
        if not self._is_checked:
            observation, reward, terminated, truncated, info = result
            return self.observation(observation), float(reward), terminated, truncated, info
        timestep = check_step_result(result)
        is_last = timestep.terminated or timestep.truncated
        return (self._convert(timestep.observation, is_last), *timestep[1:])

    def observation(self, observation: Any) -> Observation:
        """Return an observation of the wrapped environment in the contract's form.

        Args:
            observation: the observation of the wrapped environment.

        Raises:
            ContractError: if it is not in the space of the wrapped environment.
        """
        return self._convert(observation, is_last=False)

    def check_bounds(self, observation: Observation) -> None:
        """Raise an error if a float exceeds its bounds; this is too slow for every timestep.

        Args:
            observation: an observation in the contract's form.

        Raises:
            ContractError: if a float exceeds its bounds.
        """
        for key, values in self._values.items():
            values.check_bounds(observation[key])

    def _convert(self, observation: Any, is_last: bool) -> Observation:
        """Return an observation in the contract's form; the last one needs no available action."""
        converted: Observation = {DEFAULT_KEY: observation}
        if self._is_dict:
            if self._is_checked:
                _check_keys(observation, self._keys)
            converted = dict(observation)
        if self._has_task_key:
            converted[ENV_TASK_KEY] = converted.pop(TASK_KEY)
        for key, codec in self._codecs.items():
            if self._is_checked and not isinstance(converted[key], str):
                raise ContractError(
                    f"observation '{key}': expected a text, as its space says, got "
                    f"{describe_value(converted[key])}; return a str, or change the space"
                )
            self.texts[key] = str(converted[key])
            converted[key] = codec.encode(self.texts[key], key)
        if self._is_checked:
            for key, values in self._values.items():
                converted[key] = values.convert(converted[key])
            if self._n_actions is not None:
                mask = converted[ACTION_MASK_KEY]
                converted[ACTION_MASK_KEY] = convert_mask(mask, self._n_actions, is_last)
        if self._n_actions is not None:
            self._mask = converted[ACTION_MASK_KEY]
        if self._task_index is not None:
            converted[TASK_KEY] = self._task_index  # type: ignore[assignment]
        return converted


def _without_task_key(inner: dict[str, AnySpace]) -> dict[str, AnySpace]:
    """Return the subspaces with the environment's own ``task`` under ``env_task``."""
    if TASK_KEY not in inner:
        return inner
    if ENV_TASK_KEY in inner:
        raise ConfigError(
            f"the observation has both '{TASK_KEY}' and '{ENV_TASK_KEY}', and the first is renamed "
            f"to the second, because '{TASK_KEY}' is the index of the task; rename one of them "
            "with a wrapper"
        )
    return {ENV_TASK_KEY if key == TASK_KEY else key: space for key, space in inner.items()}


def is_known(env: AnyEnv) -> bool:
    """Return True if an environment and all of its wrappers come with MiniGrid or MIRL.

    Their observations are known to be in their spaces.

    Args:
        env: any environment.
    """
    layer: AnyEnv = env
    while isinstance(layer, gym.Wrapper):
        module = type(layer).__module__
        if not module.startswith(_KNOWN_MODULES) and not isinstance(layer, _HARMLESS):
            return False
        layer = layer.env
    return type(layer).__module__.startswith(_KNOWN_MODULES)


_KNOWN_MODULES = ("minigrid.", "mirl.envs.worlds.", "mirl.envs.make")
"""Modules whose environments and wrappers return only values of their spaces."""
_HARMLESS = (OrderEnforcing, PassiveEnvChecker, TimeLimit)
"""Wrappers of ``gym.make``, which change nothing that is checked."""


def _check_keys(observation: Any, keys: KeysView[str]) -> None:
    """Raise an error unless an observation is a dict with the keys of its space."""
    if not isinstance(observation, Mapping):
        raise ContractError(
            f"observation: expected a dict with the keys {shorten(str(list(keys)))}, as the "
            f"space says, got {describe_value(observation)}; return a dict"
        )
    if observation.keys() == keys:
        return
    missing = sorted(keys - observation.keys())
    if missing:
        raise ContractError(
            f"observation: expected the key '{missing[0]}', as the space says, got "
            f"{describe_value(observation)}; return it, or take it out of the space"
        )
    [extra, *_] = sorted(map(str, observation.keys() - keys))
    raise ContractError(
        f"observation: expected only the keys {shorten(str(list(keys)))}, got '{extra}' too; add "
        "it to the observation space, or return it in the info"
    )


def _with_code_bounds(space: spaces.Box) -> spaces.Box:
    """Return the space of a symbolic image with the largest codes as its bounds."""
    # (3,) -> (W, H, 3)
    high = np.broadcast_to(np.asarray(grid_high(), dtype=np.uint8), space.shape)
    return spaces.Box(np.zeros_like(high), high.copy(), space.shape, np.uint8)


def _is_symbolic(space: AnySpace, env: AnyEnv) -> bool:
    """Return True if an image holds MiniGrid's codes (W, H, 3), not pixels of the same dtype."""
    if not isinstance(env.unwrapped, MiniGridEnv) or not isinstance(space, spaces.Box):
        return False
    if space.dtype != np.uint8 or space.shape[2:] != (3,):
        return False
    # Wrappers may render the codes to pixels.
    wrapper: AnyEnv = env
    while isinstance(wrapper, gym.Wrapper):
        if isinstance(wrapper, (RGBImgObsWrapper, RGBImgPartialObsWrapper)):
            return False
        wrapper = wrapper.env
    # MiniGrid declares 0 to 255 for its codes; other bounds come from a wrapper and are kept.
    return bool((space.high == 255).all())
