"""Programs: a policy's deterministic actions as a function of raw observations, for export.

A program is a module from one dictionary of tensors to another, which ``torch.export`` can trace
for batches of any size. It computes in the row-by-row form: every row has its own context.

Shapes: B rows of a batch, A parameters of the action distribution, S hidden state.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib.tqc.policies import Actor as TQCActor
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.sac.policies import Actor as SACActor
from torch import Tensor, nn

from mirl.configs.errors import ConfigError
from mirl.configs.keys import ACTION_MASK_KEY, TASK_KEY
from mirl.policies.action_mask import mask_logits
from mirl.policies.actions import ToActions, parameters_name
from mirl.policies.contexts import ContextEncoder, GoalContext
from mirl.policies.extractor import FusionExtractor
from mirl.policies.features import Context, Observations
from mirl.policies.memory.episodes import OneTimestep
from mirl.policies.policy import FusionPolicy, latents
from mirl.policies.recurrent import RecurrentFusionPolicy
from mirl.policies.specialize import (
    OneContext,
    SpecializedPolicy,
    channels_first,
    check_keys,
    encode_one_context,
)
from mirl.policies.text.sentence_context import SentenceContext

STATE_KEY = "hidden_state"
"""Input of the hidden state, (B, S); zeros before the first timestep."""
NEXT_STATE_KEY = "next_hidden_state"
"""Output of the hidden state, (B, S), the input of the next timestep. Its name differs from the
input's, because names in ONNX are unique."""
START_KEY = "episode_start"
"""Input (B,), True where an episode starts: the hidden state is reset there."""


class Program(nn.Module, ABC):
    """Base class of the programs: raw inputs to deterministic actions and other outputs.

    Args:
        keys: keys of the inputs.
    """

    state_dim = 0
    """S, the size of the hidden state; 0 for a policy without a memory."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        super().__init__()
        self.keys = keys

    @abstractmethod
    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Compute one timestep.

        Args:
            inputs: ``keys``, as the environment returns them, each with a first axis B.

        Returns:
            ``action``, (B, *action), as ``predict(deterministic=True)`` returns it, and the other
            outputs of the policy by name.
        """


def build_program(policy: BasePolicy, context: OneContext | None = None, task: int = 0) -> Program:
    """Return the program of a policy; its weights are copies.

    Args:
        policy: a policy of ``mirl.policies``; it is not changed.
        context: one row as in the observation, which is then no input of the program; a
            dictionary of rows if the context has several keys. None if it is an input.
        task: index of the task whose value is computed if values are per task (``popart``) and a
            context is given that is not the task.

    Raises:
        ConfigError: if the policy has no program, or if the context does not fit its space.
    """
    if isinstance(policy, FusionPolicy):
        if context is not None and not policy.is_recurrent:
            return SpecializedProgram(policy, context, task)
        return ActorCriticProgram(policy, context, task)
    for name, program_class in (("actor", ActorProgram), ("q_net", QNetworkProgram)):
        network = getattr(policy, name, None)
        extractor = getattr(network, "features_extractor", None)
        if isinstance(network, nn.Module) and isinstance(extractor, FusionExtractor):
            return program_class(policy, copy.deepcopy(network), context)
    raise ConfigError(f"expected a policy of mirl.policies to export, got {type(policy).__name__}")


# ---------------------------------------------------------------------------------- PPO and A2C


class SpecializedProgram(Program):
    """Program of a ``FusionPolicy`` for one context, at the cost of a plain network.

    Args:
        policy: the policy, without a memory.
        context: one row as in the observation.
        task: index of the task whose value is computed if values are per task.
    """

    def __init__(self, policy: FusionPolicy, context: OneContext, task: int) -> None:
        specialized = SpecializedPolicy(policy, context, task)
        super().__init__(specialized.keys)
        self.policy = specialized
        self.to_actions = ToActions(policy.action_space, squash=policy.squash_output)
        self.parameters_name = parameters_name(policy.action_space)

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Compute one timestep; see ``Program.forward``."""
        parameters, values = self.policy(inputs)
        return {
            "action": self.to_actions(parameters),
            self.parameters_name: parameters,
            "value": values,
        }


class FixedContext(ContextEncoder):
    """Context encoder that gives every row the same context.

    Args:
        context: the encoded context, with z as (1, Z).
    """

    z: Tensor
    """(1, Z)."""
    words: Tensor | None
    """(1, W, Z); None if the context is not a text."""

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.keys = ()
        self.out_dim = context.values.shape[1]
        self.register_buffer("z", context.values.detach())
        self.register_buffer("words", None if context.words is None else context.words.detach())

    def forward(self, observations: Observations) -> Context:
        """Return the context of every row.

        Args:
            observations: any keys of B rows.
        """
        first = next(iter(observations.values()))
        assert isinstance(first, Tensor), "programs take no UniqueRows"
        n_rows = first.shape[0]
        words = self.words
        if words is not None:
            words = words.expand(n_rows, -1, -1)
        return Context(self.z.expand(n_rows, -1), None, words)


def _fix_context(extractor: FusionExtractor, context: OneContext, normalize_images: bool) -> None:
    """Replace the context encoder of an extractor by one encoded context."""
    encoded = encode_one_context(extractor, context, normalize_images)
    extractor.context = FixedContext(encoded)


def _input_keys(extractor: FusionExtractor) -> tuple[str, ...]:
    """Return the keys that an extractor reads, without those that pass through it."""
    keys = [*extractor.encoder.keys, *extractor.context.keys]
    for module in extractor.context.modules():
        if isinstance(module, GoalContext) and module.relative_to is not None:
            keys.append(module.relative_to)
        if isinstance(module, SentenceContext):
            raise ConfigError(
                "context=sentence reads texts by MiniLM, which is no part of a program; export the "
                'policy for one mission, export="…", or train with context=mission'
            )
    return tuple(dict.fromkeys(keys))


def _raw_observations(
    keys: tuple[str, ...], inputs: Mapping[str, Tensor], space: spaces.Dict
) -> dict[str, Tensor]:
    """Return inputs in the shapes that SB3 trains on, with the channels of an image first."""
    raw: dict[str, Tensor] = {}
    for key in keys:
        if key in space.spaces:
            raw[key] = channels_first(key, inputs[key], space)
    return raw


class ActorCriticProgram(Program):
    """Program of a ``FusionPolicy`` or a ``RecurrentFusionPolicy``.

    Args:
        policy: the policy; it is copied.
        context: one row as in the observation; None if it is an input.
        task: index of the task whose value is computed if values are per task and a context is
            given that is not the task.
    """

    def __init__(self, policy: FusionPolicy, context: OneContext | None, task: int) -> None:
        # without the distribution: that of gSDE holds noise with a gradient, which cannot be copied
        policy = copy.deepcopy(policy, {id(policy.action_dist): None})
        extractor = cast(FusionExtractor, policy.pi_features_extractor)
        self_task = None
        if context is not None:
            if policy.popart:
                self_task = _task_of(extractor, context, task)
            for each in {extractor, cast(FusionExtractor, policy.vf_features_extractor)}:
                _fix_context(each, context, policy.normalize_images)
        keys = list(_input_keys(extractor))
        if policy.masks_actions:
            keys.append(ACTION_MASK_KEY)
        if policy.popart and self_task is None:
            keys.append(TASK_KEY)
        if isinstance(policy, RecurrentFusionPolicy):
            _check_free(keys)
            keys += [STATE_KEY, START_KEY]
        super().__init__(tuple(dict.fromkeys(keys)))
        self.task = self_task
        self.policy = policy
        self.space = cast(spaces.Dict, policy.observation_space)
        self.to_actions = ToActions(policy.action_space, squash=policy.squash_output)
        self.parameters_name = parameters_name(policy.action_space)
        if isinstance(policy, RecurrentFusionPolicy):
            self.state_dim = policy.state_dim
        self.requires_grad_(False).eval()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Compute one timestep; see ``Program.forward``."""
        check_keys(self.keys, inputs)
        observations = _raw_observations(self.keys, inputs, self.space)
        if self.task is not None:
            n_rows = next(iter(observations.values())).shape[0]
            observations[TASK_KEY] = torch.full((n_rows,), self.task)
        features = self.policy.extract_features(observations)
        outputs: dict[str, Tensor] = {}
        if isinstance(self.policy, RecurrentFusionPolicy):
            start = OneTimestep(inputs[START_KEY])
            features, state = self.policy.run_cores(features, inputs[STATE_KEY], start)
            outputs[NEXT_STATE_KEY] = state
        latent_pi, latent_vf = latents(self.policy, features)
        parameters = self.policy.action_parameters(latent_pi)
        return {
            "action": self.to_actions(parameters),
            self.parameters_name: parameters,
            "value": self.policy.value_net(latent_vf),
            **outputs,
        }


def _task_of(extractor: FusionExtractor, context: OneContext, task: int) -> int:
    """Return the task that a context names, or else the given one."""
    if TASK_KEY not in extractor.context.keys:
        return task
    index = context[TASK_KEY] if isinstance(context, Mapping) else context
    return int(np.asarray(index))


def _check_free(keys: list[str]) -> None:
    taken = [key for key in (STATE_KEY, START_KEY) if key in keys]
    if taken:
        raise ConfigError(
            f"the program of a policy with a memory has an input '{taken[0]}' of its own, and the "
            "observation has a key of this name; rename the key"
        )


# ------------------------------------------------------------------------- SAC, TD3, TQC and DQN


class OffPolicyProgram(Program):
    """Base class of the programs of one network with a features extractor of its own.

    Args:
        policy: the policy.
        network: a copy of its network.
        context: one row as in the observation; None if it is an input.
    """

    def __init__(self, policy: BasePolicy, network: nn.Module, context: OneContext | None) -> None:
        extractor = cast(FusionExtractor, network.features_extractor)
        if context is not None:
            _fix_context(extractor, context, policy.normalize_images)
        keys = list(_input_keys(extractor))
        if getattr(policy, "masks_actions", False):
            keys.append(ACTION_MASK_KEY)
        super().__init__(tuple(dict.fromkeys(keys)))
        self.network: Any = network
        self.space = extractor.observation_space
        self.requires_grad_(False).eval()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Compute one timestep; see ``Program.forward``."""
        check_keys(self.keys, inputs)
        return self.act(_raw_observations(self.keys, inputs, self.space))

    @abstractmethod
    def act(self, observations: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the outputs.

        Args:
            observations: ``keys``, in the shapes that SB3 trains on.
        """


class ActorProgram(OffPolicyProgram):
    """Program of the actor of SAC, TD3 or TQC, whose actions are scaled to their bounds.

    Args:
        policy: the policy.
        network: a copy of its actor.
        context: one row as in the observation; None if it is an input.
    """

    def __init__(self, policy: BasePolicy, network: nn.Module, context: OneContext | None) -> None:
        super().__init__(policy, network, context)
        self.to_actions = ToActions(policy.action_space)

    def act(self, observations: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the actions."""
        if isinstance(self.network, SACActor | TQCActor):
            # calling the actor would build a distribution, which validates its numbers
            mean, _, _ = self.network.get_action_dist_params(observations)
            scaled = mean.tanh()
        else:
            scaled = self.network(observations)
        # (B, A) -> (B, *action)
        shape = cast(tuple[int, ...], self.to_actions.space.shape)
        return {"action": self.to_actions.unscale(scaled.unflatten(1, shape))}


class QNetworkProgram(OffPolicyProgram):
    """Program of the Q-network of DQN: the values of all actions, and the best action.

    Args:
        policy: the policy.
        network: a copy of its Q-network.
        context: one row as in the observation; None if it is an input.
    """

    def act(self, observations: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the best available actions, (B,), and the values of all actions, (B, A)."""
        values: Tensor = self.network(observations)
        available = values
        if ACTION_MASK_KEY in self.keys:
            available = mask_logits(values, observations[ACTION_MASK_KEY] != 0)
        return {"action": available.argmax(-1), "q_values": values}
