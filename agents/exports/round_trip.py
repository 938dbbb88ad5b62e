"""Round trip of an export: compare the written program with the original policy.

The program is loaded from the bytes of its file and is given random observations and the
observations of whole episodes. Policy and program each keep their own hidden state.
"""

from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor

from mirl.agents.eval_mode import restored_global_generators
from mirl.agents.exports.formats import Arrays
from mirl.configs.errors import ConfigError
from mirl.configs.schema import BackendName, ResolvedConfig
from mirl.envs import SuiteVecEnv
from mirl.envs.type_aliases import Observations
from mirl.policies import FusionPolicy, RecurrentFusionPolicy
from mirl.policies.actions import parameters_name
from mirl.policies.memory.episodes import Episodes
from mirl.policies.off_policy import FusionDQNPolicy
from mirl.policies.policy import latents
from mirl.policies.programs import (
    NEXT_STATE_KEY,
    START_KEY,
    STATE_KEY,
    Program,
)

TOLERANCE = 1e-4
"""Maximum difference from the policy's output, relative to max(1, its largest absolute value)."""
SAMPLES = 256
"""Number of random observations for the comparison, and minimum number of those of episodes."""
MEMORY_TIMESTEPS = 8
"""Timesteps of the sequences that the random observations form for a recurrent policy."""
START_PROBABILITY = 0.2
"""Probability that an episode starts at a timestep of such a sequence."""
MIN_EQUAL_ACTIONS = 0.99
"""Minimum share of equal actions on random observations, where two actions can be tied."""
MAX_TIMESTEPS = 10_000
"""Timesteps after which the comparison on episodes ends, even if an episode has no end."""

RunProgram = Callable[[Arrays], dict[str, NDArray[Any]]]
"""A program: inputs to outputs."""
Context = Mapping[str, ArrayLike]
"""Keys replaced in every observation, by one row each; empty if the context is an input."""


class RoundTrip(NamedTuple):
    """Figures of a comparison that passed."""

    observations: int
    """Number of random observations."""
    max_abs_difference: float
    """Largest absolute difference from the policy's outputs on the random observations."""
    equal_actions: float
    """Share of them with equal actions; continuous actions are equal within the tolerance."""
    episodes: int
    """Number of whole episodes, at least one of each task."""
    episode_timesteps: int
    """Number of observations in these and in unfinished episodes."""
    episode_equal_actions: float
    """Share of these observations with equal actions; always 1."""


def check_round_trip(
    pair: "ProgramAndPolicy",
    config: ResolvedConfig,
    space: spaces.Dict,
    *,
    backend: BackendName,
    seed: int,
) -> RoundTrip:
    """Compare a written program with its policy.

    Args:
        pair: the program and the policy.
        config: the configuration of the policy's run.
        space: the observation space of the environments.
        backend: library that steps the environments.
        seed: seed of the observations and of the environments.

    Returns:
        The figures.

    Raises:
        ConfigError: an output differs by more than rounding, or an action in an episode differs.
    """
    difference, equal = compare_samples(pair, random_observations(space, seed), seed)
    env = SuiteVecEnv(
        config.task,
        len(config.task.tasks),
        backend=backend,
        seed=seed,
        seed_split="test",
        max_steps=config.evaluation.max_steps or "auto",
    )
    with restored_global_generators(), closing(env):
        episodes, timesteps, episode_equal = compare_episodes(pair, env)
    return RoundTrip(SAMPLES, difference, equal, episodes, timesteps, episode_equal)


class ProgramAndPolicy:
    """A program and its policy, which are given the same observations.

    Args:
        run: the written program.
        program: the module that it was exported from.
        policy: the policy.
        context: the fixed context of the program; empty if the context is an input.
    """

    def __init__(
        self, run: RunProgram, program: Program, policy: BasePolicy, context: Context
    ) -> None:
        self.run = run
        self.keys = program.keys
        self.state_dim = program.state_dim
        self.policy = policy
        self.context = context
        self._states: tuple[NDArray[np.float32], ...] = ()

    def outputs(
        self, observations: Observations, starts: NDArray[np.bool_]
    ) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
        """Return the outputs of the program and of the policy for one timestep.

        Args:
            observations: a batch of observations.
            starts: (B,), True where an episode starts.
        """
        n_rows = len(starts)
        observations = dict(observations)
        for key, row in self.context.items():
            observations[key] = np.repeat(np.asarray(row)[None], n_rows, axis=0)
        if not self.state_dim:
            ours = self.run({key: observations[key] for key in self.keys})
            return ours, policy_outputs(self.policy, observations, None, starts)
        if not self._states or len(self._states[0]) != n_rows:
            self._states = (np.zeros((n_rows, self.state_dim), np.float32),) * 2
        our_state, their_state = self._states
        inputs = {**observations, STATE_KEY: our_state, START_KEY: starts}
        ours = self.run({key: inputs[key] for key in self.keys})
        theirs = policy_outputs(self.policy, observations, their_state, starts)
        self._states = (ours[NEXT_STATE_KEY], theirs[NEXT_STATE_KEY])
        return ours, theirs


@torch.no_grad()
def policy_outputs(
    policy: BasePolicy,
    observations: Observations,
    state: NDArray[np.float32] | None,
    starts: NDArray[np.bool_],
) -> dict[str, NDArray[Any]]:
    """Return the outputs that a program must reproduce, computed by the policy itself.

    Args:
        policy: the policy.
        observations: a batch of observations.
        state: (B, S), the hidden state before the observations; None if not recurrent.
        starts: (B,), True where an episode starts.

    Returns:
        The outputs by name.
    """
    memory = None
    if state is not None:
        assert isinstance(policy, RecurrentFusionPolicy)
        memory = (state[:, : policy.core.state_dim],)
    action, _ = policy.predict(observations, memory, starts, deterministic=True)
    outputs = {"action": action}
    tensors = cast(dict[str, Tensor], policy.obs_to_tensor(observations)[0])
    if isinstance(policy, FusionDQNPolicy):
        outputs["q_values"] = policy.q_net(tensors).numpy()
    if not isinstance(policy, FusionPolicy):
        return outputs
    features = policy.extract_features(tensors)
    if isinstance(policy, RecurrentFusionPolicy):
        assert state is not None
        before = torch.from_numpy(state)
        features, after = policy.run_cores(features, before, Episodes(starts[None]))
        outputs[NEXT_STATE_KEY] = after.numpy()
    latent_pi, latent_vf = latents(policy, features)
    outputs[parameters_name(policy.action_space)] = policy.action_parameters(latent_pi).numpy()
    outputs["value"] = policy.value_net(latent_vf).numpy()
    return outputs


def compare_samples(
    pair: ProgramAndPolicy, observations: Observations, seed: int
) -> tuple[float, float]:
    """Compare program and policy on random observations.

    Args:
        pair: the program and the policy.
        observations: ``SAMPLES`` observations; if recurrent, parallel sequences, time first.
        seed: seed of the episode starts.

    Returns:
        The largest absolute difference, and the share of equal actions.

    Raises:
        ConfigError: if outputs or actions differ.
    """
    n_steps = MEMORY_TIMESTEPS if pair.state_dim else 1
    n_rows = SAMPLES // n_steps
    generator = np.random.default_rng(seed)
    difference = 0.0
    equal: list[NDArray[np.bool_]] = []
    for step in range(n_steps):
        rows = slice(step * n_rows, (step + 1) * n_rows)
        starts = generator.random(n_rows) < START_PROBABILITY
        batch = {key: values[rows] for key, values in observations.items()}
        ours, theirs = pair.outputs(batch, starts)
        difference = max(difference, checked_difference(ours, theirs))
        equal.append(equal_actions(ours["action"], theirs["action"]))
    share = float(np.concatenate(equal).mean())
    if share < MIN_EQUAL_ACTIONS:
        raise ConfigError(
            f"the program's actions equal the policy's on {share:.1%} of {SAMPLES} observations, "
            f"expected at least {MIN_EQUAL_ACTIONS:.0%}; no export was kept"
        )
    return difference, share


def compare_episodes(pair: ProgramAndPolicy, env: SuiteVecEnv) -> tuple[int, int, float]:
    """Compare program and policy on episodes that the policy plays.

    Each environment finishes at least one episode, and there are at least ``SAMPLES`` observations.

    Args:
        pair: the program and the policy.
        env: the environments.

    Returns:
        The number of whole episodes, the number of observations, and the share of equal actions.

    Raises:
        ConfigError: if an action differs.
    """
    observations: Observations = env.reset()
    starts = np.ones(env.num_envs, np.bool_)
    n_episodes = np.zeros(env.num_envs, np.int64)
    n_steps = 0
    while n_steps < MAX_TIMESTEPS:
        if n_episodes.all() and n_steps * env.num_envs >= SAMPLES:
            break
        ours, theirs = pair.outputs(observations, starts)
        n_steps += 1
        n_equal = int(equal_actions(ours["action"], theirs["action"]).sum())
        if n_equal < env.num_envs:
            raise ConfigError(
                f"the program's action differs from the policy's in timestep {n_steps} of an "
                f"episode ({env.num_envs - n_equal} of {env.num_envs} environments); no export "
                "was kept"
            )
        stepped, _, starts, _ = env.step(theirs["action"])
        observations = cast(Observations, stepped)
        n_episodes += starts
    return int(n_episodes.sum()), n_steps * env.num_envs, 1.0


def equal_actions(ours: NDArray[Any], theirs: NDArray[Any]) -> NDArray[np.bool_]:
    """Return a mask of the rows with equal actions, (B,); continuous ones up to rounding.

    Args:
        ours: (B, *action).
        theirs: (B, *action).
    """
    if theirs.dtype.kind == "f":
        scale = max(1.0, float(np.abs(theirs).max()))
        equal = np.isclose(ours, theirs, rtol=0, atol=TOLERANCE * scale)
    else:
        equal = ours == theirs
    # (B, *action) -> (B,)
    return equal.reshape(len(theirs), -1).all(axis=1)


def checked_difference(
    outputs: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]]
) -> float:
    """Check that a program's outputs are the policy's, up to rounding.

    Args:
        outputs: outputs of the program.
        expected: outputs of the policy.

    Returns:
        The largest absolute difference.

    Raises:
        ConfigError: they differ by more than ``TOLERANCE``.
    """
    largest = 0.0
    for name, theirs in expected.items():
        if theirs.dtype.kind != "f":  # discrete actions are compared by ``equal_actions``
            continue
        difference = float(np.abs(outputs[name] - theirs).max())
        sizes = np.abs(theirs)
        is_masked = sizes == np.finfo(theirs.dtype).max  # the logit of a masked action
        scale = max(1.0, float(sizes[~is_masked].max(initial=0)))
        if not difference <= TOLERANCE * scale:  # True also for NaN
            raise ConfigError(
                f"the program's {name} differs from the policy's by {difference:.1e}, expected at "
                f"most {TOLERANCE * scale:.1e}; no export was kept"
            )
        largest = max(largest, difference)
    return largest


def random_observations(space: spaces.Dict, seed: int) -> Observations:
    """Return a batch of ``SAMPLES`` random observations.

    Args:
        space: the observation space.
        seed: seed of the space.

    Returns:
        The observations by key.
    """
    space.seed(seed)
    samples = [space.sample() for _ in range(SAMPLES)]
    batch = {}
    for key in space:
        batch[key] = np.stack([np.asarray(sample[key]) for sample in samples])
    return batch
