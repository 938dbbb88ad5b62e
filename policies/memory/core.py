"""Interface of recurrent cores.

Shapes: T timesteps, N sequences, X features, Z context, G distinct contexts, S hidden state of one
sequence, O output.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from mirl.configs.errors import ConfigError
from mirl.configs.networks import RecurrentCoreConfig
from mirl.configs.parts import Method, Part, explain_own_errors, own_place
from mirl.policies.fusions import Affine
from mirl.policies.grouped_matmul import ContextGroups
from mirl.policies.memory.episodes import Episodes


class Core(nn.Module, Part, ABC):
    """A recurrent core: (features, state, episode_start, context) -> (output, state).

    The hidden state of a sequence is one row of numbers. It is reset to zeros when an episode
    starts. The output for T timesteps at once equals that of T calls for one timestep each, as long
    as all numbers are finite. Under autocast the core computes in float32, because rounding errors
    would accumulate over time.

    With a skip connection the output is x + P y, where y is the output of the core and P starts
    at zero: the agent first learns to react, like an agent without memory. No gradient flows from
    y to x, so that an untrained memory does not disturb the features.

    Every core is a class with a ``Config``, built by ``(features_dim, context_dim, config)``.

    Args:
        features_dim: X, the size of the features.
        state_dim: S, the size of the hidden state.
        config: the options that all cores share.

    Raises:
        ConfigError: if a single feature is to be normalized.

    References:
        Parisotto et al., "Stabilizing Transformers for Reinforcement Learning", ICML 2020, for the
        identity map at initialization.

    Examples:
        Three timesteps of two sequences (``docs/extending/memory_core.md`` derives a core):

        >>> import torch
        >>> from mirl.configs.networks import GruConfig
        >>> from mirl.policies.memory.build import build_core
        >>> core = build_core(GruConfig(size=16), features_dim=8, context_dim=0)
        >>> starts = torch.tensor([[True, True], [False, True], [False, False]])
        >>> y, state = core(torch.zeros(3, 2, 8), torch.zeros(2, core.state_dim), starts)
        >>> y.shape, state.shape
        (torch.Size([3, 2, 16]), torch.Size([2, 16]))
    """

    Config: ClassVar[type[RecurrentCoreConfig]] = RecurrentCoreConfig
    explained_methods: ClassVar[Mapping[str, Method]] = {
        "forward": Method(
            "is given (features, state, episode_start, context, groups) and must return the "
            "pair (output (T, N, O), state (N, S)); a core defines run, which needs no other "
            "forward",
            tuple,
        )
    }

    def __init__(self, features_dim: int, state_dim: int, config: RecurrentCoreConfig) -> None:
        super().__init__()
        if config.normalize and features_dim < 2:
            raise ConfigError(
                "a memory with normalize=true needs two features or more, got 1; "
                "use memory.normalize=false"
            )
        self.features_dim = features_dim
        self.size = config.size
        self.state_dim = state_dim
        self.normalize = config.normalize
        self.add: Affine | None = None
        if config.skip_connection:
            self.add = Affine(config.size, features_dim, gain=0, bias=False)

    @property
    def out_dim(self) -> int:
        """Return O: the size of the core or, with a skip connection, that of the features."""
        return self.size if self.add is None else self.features_dim

    def forward(
        self,
        features: Float[Tensor, "time batch features"],
        state: Float[Tensor, "batch state"],
        episode_start: Episodes | Shaped[Tensor, "time batch"] | Shaped[np.ndarray, "time batch"],
        context: Float[Tensor, "rows context"] | None = None,
        groups: ContextGroups | None = None,
    ) -> tuple[Float[Tensor, "time batch out"], Float[Tensor, "batch state"]]:
        """Run the core over T timesteps of N sequences.

        Args:
            features: (T, N, X).
            state: (N, S), the hidden state before the first timestep.
            episode_start: (T, N), whether a timestep is the first of an episode.
            context: (T * N, Z), time first; or (G, Z), the distinct contexts, with ``groups``.
            groups: the context of each timestep, among the G contexts.

        Returns:
            (T, N, O), the output; (N, S), the hidden state after the last timestep.

        Raises:
            ValueError: if the sizes do not fit.
            ConfigError: if ``run`` of a custom class returns wrong shapes.
        """
        episodes = _as_episodes(episode_start, features.device)
        self._check_sizes(features, state, episodes, context, groups)
        # Resets at t = 0 are the same for every core; later ones depend on how a core computes.
        state = episodes.reset_state(state)
        x = to_float32(features)
        z = None if context is None else to_float32(context)
        with torch.autocast(features.device.type, enabled=False):
            # With a skip connection, x gets gradients only through the direct path.
            inputs = x if self.add is None else x.detach()
            if self.normalize:
                # The part that is common to the features of all observations would dominate.
                inputs = F.layer_norm(inputs, (self.features_dim,))
            with explain_own_errors(
                type(self),
                "run",
                lambda: (
                    "is given (x, state, episodes, z, groups) with x of shape "
                    f"{tuple(inputs.shape)} and must return (T, N, size) = "
                    f"{(*episodes.shape, self.size)} and the state {tuple(state.shape)}"
                ),
            ):
                returned = self.run(inputs, state, episodes, z, groups)
            self._check_outputs(returned, episodes)
            y, state = returned
            if self.add is not None:
                y = x + self.add(y)
            return y, state

    @abstractmethod
    def run(
        self,
        x: Float[Tensor, "time batch features"],
        state: Float[Tensor, "batch state"],
        episodes: Episodes,
        z: Float[Tensor, "rows context"] | None,
        groups: ContextGroups | None,
    ) -> tuple[Float[Tensor, "time batch size"], Float[Tensor, "batch state"]]:
        """Run the core itself, in float32 and on normalized features.

        Args:
            x: (T, N, X), the features.
            state: (N, S), the hidden state, already reset where an episode starts at t = 0.
            episodes: the episode starts.
            z: (T * N, Z) or (G, Z), the contexts; None if there are none.
            groups: the context of each timestep, among the G contexts.

        Returns:
            (T, N, size), the output; (N, S), the hidden state afterwards.
        """

    def _check_outputs(self, returned: object, episodes: Episodes) -> None:
        """Raise if ``run``, which may be that of a custom class, returns wrong types or shapes."""
        expected = (*episodes.shape, self.size)
        expected_state = (episodes.shape[1], self.state_dim)
        if isinstance(returned, tuple | list):
            shapes = [_shape_or_type(part) for part in returned]
            if shapes == [expected, expected_state]:
                return
            got = " and ".join(map(str, shapes))
        else:
            got = type(returned).__name__
        raise ConfigError(
            f"{type(self).__name__}.run must return (T, N, size) = {expected} and (N, state) = "
            f"{expected_state}, got {got}{own_place(type(self), 'run')}"
        )

    def _check_sizes(
        self,
        features: Tensor,
        state: Tensor,
        episodes: Episodes,
        context: Tensor | None,
        groups: ContextGroups | None,
    ) -> None:
        n_steps, n_sequences = episodes.shape
        features_size = (n_steps, n_sequences, self.features_dim)
        state_size = (n_sequences, self.state_dim)
        if tuple(features.shape) != features_size or tuple(state.shape) != state_size:
            raise ValueError(
                f"{type(self).__name__} expects features {features_size} and state {state_size}, "
                f"got {tuple(features.shape)} and {tuple(state.shape)}"
            )
        if context is None or groups is not None:
            return
        if context.shape[0] != math.prod(episodes.shape):
            raise ValueError(
                f"expected a context for each of {episodes.shape} timesteps, got {context.shape[0]}"
            )


def _shape_or_type(value: object) -> tuple[object, ...] | str:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def _as_episodes(episode_start: Episodes | Tensor | np.ndarray, device: torch.device) -> Episodes:
    if isinstance(episode_start, Episodes):
        return episode_start
    starts = episode_start.cpu() if isinstance(episode_start, Tensor) else episode_start
    return Episodes(np.asarray(starts, np.bool_), device)


def to_float32(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Convert bfloat16, which autocast may have produced, to float32; keep float64.

    Args:
        values: a floating-point tensor.
    """
    return values if values.dtype == torch.float64 else values.float()
