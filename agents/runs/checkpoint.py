"""Checkpoints: weights and optimizers as safetensors, everything else as JSON. No pickles.

A checkpoint is a folder ``step_<timesteps>``. It is written under a temporary name, sealed with the
SHA-256 of each file, flushed to the disk and renamed, so that it appears completely or not at all.
Every file is verified against its seal before it is loaded.
"""

import re
import shutil
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, Self, cast, get_args, runtime_checkable

import torch
from gymnasium import spaces
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file, save_model
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor, nn

from mirl.agents.runs.atomic_files import (
    JsonObject,
    flush,
    load_json,
    verify_manifest,
    write_json,
    write_manifest,
)
from mirl.agents.runs.migration import (
    FIRST_SEALED,
    SCHEMA_VERSION,
    check_schema_version,
    migrate_state,
)
from mirl.agents.runs.ranks import ONE_PROCESS
from mirl.agents.runs.replay_buffer import load_replay_buffer, save_replay_buffer
from mirl.agents.runs.space_json import (
    action_space_from_json,
    observation_space_from_json,
    space_to_json,
)
from mirl.agents.runs.weights import load_weights
from mirl.configs.errors import ConfigError
from mirl.configs.schema import PrecisionName
from mirl.envs import SuiteVecEnv
from mirl.envs.actions import ActionSpace

POLICY = "policy.safetensors"
"""File with the weights of the policy."""
STATE = "state.json"
"""JSON file with the non-tensor state."""
TENSORS = "tensors.safetensors"
"""File with the other tensors, such as the learned entropy coefficient."""
COUNTERS = ("_episode_num", "_n_calls")
"""Counters that only some of SB3's algorithms have, in addition to timesteps and updates."""
WINDOWS = ("ep_info_buffer", "ep_success_buffer")
"""SB3's windows over the last episodes, for its log."""

# at most 18 digits, because int() raises an error for thousands of digits
_NAME = re.compile(r"step_([0-9]{1,18})")
_LOADING_ERRORS = (
    SafetensorError,
    OSError,
    ArithmeticError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    RuntimeError,
)
"""Exceptions that a file with unexpected content can cause while it is loaded."""

EpisodeRecords = Mapping[str, Sequence[Sequence[Any]]]
"""The last episodes of each task, as (success, return, length), for JSON; success may be None."""
Criterion = Literal["success", "score", "return"]
"""Quantity of an evaluation that selects the best checkpoint."""


def parse_criterion(value: object) -> Criterion:
    """Return a criterion from a JSON file.

    Args:
        value: the stored value; None in files that select by success, as in all early ones.

    Returns:
        The criterion; ``success`` if the value is unknown.
    """
    for criterion in get_args(Criterion):
        if value == criterion:
            return cast(Criterion, criterion)
    return "success"


@runtime_checkable
class HasPrecision(Protocol):
    """An algorithm that trains in a chosen floating-point precision: MIRL's PPO and A2C."""

    precision: PrecisionName

    def use_precision(self, name: PrecisionName) -> None:
        """Compute in a precision.

        Args:
            name: the precision.
        """


class Spaces(NamedTuple):
    """The spaces that a policy was trained on."""

    observation: spaces.Dict
    """Images are channels-first, as SB3 trains on them."""
    action: ActionSpace


def checkpoint_name(timesteps: int) -> str:
    """Return the name of a checkpoint's folder.

    Args:
        timesteps: timesteps of training after which it is saved.

    Returns:
        The name. Names of 10⁹ timesteps or more are longer, so order checkpoints by
        ``checkpoint_timesteps``, not by name.
    """
    return f"step_{timesteps:09d}"


def checkpoint_timesteps(name: str) -> int | None:
    """Return the timesteps in the name of a checkpoint's folder.

    Args:
        name: the name; it may come from a damaged index.

    Returns:
        The timesteps; None if the name is not that of a checkpoint.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    return int(match[1])


class Checkpoint:
    """One checkpoint: its state is loaded and verified once, its other files when they are needed.

    Args:
        folder: the folder of the checkpoint.
        state: its non-tensor state, in the current format.
        version: its schema version.
    """

    def __init__(self, folder: Path, state: JsonObject, version: int) -> None:
        self.folder = folder
        self.state = state
        self.version = version
        self._is_verified = False

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Load the state of a checkpoint.

        Args:
            folder: the folder of the checkpoint.

        Returns:
            The checkpoint.

        Raises:
            ConfigError: the state is missing or damaged, or a newer version wrote it.
        """
        state = load_json(folder / STATE)
        try:
            version = check_schema_version(state.get("schema_version"), folder)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        # earlier checkpoints have no manifest to check against
        if version >= FIRST_SEALED:
            verify_manifest(folder, [STATE])
        return cls(folder, migrate_state(state, version), version)

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.name

    @property
    def policy_path(self) -> Path:
        """File with the weights of the policy."""
        return self.folder / POLICY

    @property
    def score(self) -> float | None:
        """Score of the evaluation that made this the best checkpoint, if one did."""
        score = self.state.get("best_score")
        return score if isinstance(score, float) else None

    @property
    def criterion(self) -> Criterion:
        """Quantity that ``score`` measures."""
        return parse_criterion(self.state.get("best_criterion"))

    @property
    def n_ranks(self) -> int:
        """Number of processes that trained the agent."""
        n_ranks = self.state.get("ranks", 1)
        return n_ranks if isinstance(n_ranks, int) else 1

    def spaces(self) -> Spaces | None:
        """Return the spaces that the policy was trained on.

        Returns:
            The spaces; None if the checkpoint has schema version 1 or 2, which lack them.

        Raises:
            ConfigError: they are damaged.
        """
        if "observation_space" not in self.state:
            return None
        try:
            return Spaces(
                observation_space_from_json(self.state["observation_space"]),
                action_space_from_json(self.state.get("action_space")),
            )
        except ValueError as error:
            raise ConfigError(f"{self.folder / STATE}: {error}") from None

    def verify(self) -> None:
        """Check that every file is unchanged since the checkpoint was saved.

        Raises:
            ConfigError: a file is missing or differs; the error says how.
        """
        if self.version >= FIRST_SEALED and not self._is_verified:
            verify_manifest(self.folder)
        self._is_verified = True

    def load_weights(self, policy: nn.Module) -> None:
        """Load weights into the policy, on its own device.

        Args:
            policy: a policy with exactly these weights, by name, shape and type.

        Raises:
            ConfigError: the file is missing or damaged, or a weight does not fit; the policy is
                then unchanged.
        """
        try:
            if self.version >= FIRST_SEALED and not self._is_verified:
                verify_manifest(self.folder, [POLICY])
            load_weights(self.policy_path, policy, self.version)
        except (SafetensorError, OSError, RuntimeError, ValueError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            raise ConfigError(
                f"{self.folder} does not hold the weights of this policy: {reason}"
            ) from None

    def load_agent(self, agent: BaseAlgorithm) -> EpisodeRecords:
        """Load weights, optimizers, counters and the replay buffer.

        Args:
            agent: an agent that was built from the same configuration.

        Returns:
            The last episodes of each task when the checkpoint was saved.

        Raises:
            ConfigError: a file is missing or damaged, or does not fit the agent.
        """
        # verify every file first, so that a damaged checkpoint leaves the agent unchanged
        self.verify()
        self.load_weights(agent.policy)
        with self._explain_loading_errors():
            for name, optimizer in get_optimizers(agent).items():
                self._load_optimizer(name, optimizer)
            tensors = _get_tensors(agent)
            if tensors:
                saved = load_file(self.folder / TENSORS)
                for name, tensor in tensors.items():
                    tensor.data.copy_(saved[name])  # in place: an optimizer refers to it
            load_replay_buffer(agent, self.folder)
            sampling = self.state.get("sampling")
            env = _suite_env(agent)
            if sampling is not None and env is not None:
                env.load_sampling_state(sampling)
            attributes = self._attributes(agent)
            if "precision" in self.state and isinstance(agent, HasPrecision):
                # "auto" could choose another precision on this machine
                agent.use_precision(self.state["precision"])
            episodes = dict(self.state.get("episodes", {}))
        # last, when nothing can fail any more
        for name, value in attributes.items():
            setattr(agent, name, value)
        return episodes

    @contextmanager
    def _explain_loading_errors(self) -> Iterator[None]:
        try:
            yield
        except _LOADING_ERRORS as error:
            raise ConfigError(
                f"{self.folder} does not hold the state of this agent: {error}"
            ) from None

    def _load_optimizer(self, name: str, optimizer: torch.optim.Optimizer) -> None:
        # "3.exp_avg" is the state "exp_avg" of parameter 3
        states: dict[int, dict[str, Tensor]] = {}
        for path, tensor in load_file(self.folder / f"{name}.safetensors").items():
            parameter, _, key = path.partition(".")
            states.setdefault(int(parameter), {})[key] = tensor
        groups = self.state[f"{name}_groups"]
        optimizer.load_state_dict({"state": states, "param_groups": groups})

    def _attributes(self, agent: BaseAlgorithm) -> dict[str, int | float | deque[Any]]:
        """Return the counters and windows of the agent by the names of its attributes."""
        attributes: dict[str, int | float | deque[Any]] = {
            "num_timesteps": _to_count("num_timesteps", self.state["num_timesteps"]),
            "_n_updates": _to_count("n_updates", self.state["n_updates"]),
        }
        counters = self.state.get("counters", {})
        for name in COUNTERS:
            if hasattr(agent, name):
                attributes[name] = _to_count(name, counters.get(name, 0))
        for name, episodes in self.state.get("windows", {}).items():
            if name in WINDOWS:
                attributes[name] = deque(episodes, maxlen=agent._stats_window_size)
        # DQN computes the rate from the progress, but only after its first action
        rate = self.state.get("exploration_rate")
        if rate is not None:
            if not 0 <= rate <= 1:
                raise ValueError(f"its exploration_rate must be from 0 to 1, got {rate}")
            attributes["exploration_rate"] = float(rate)
        return attributes


def _to_count(name: str, value: object) -> int:
    """Return a counter from a JSON file."""
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"its {name} must be a number of at least 0, got {value!r}")
    return value


def write_checkpoint(
    folder: Path,
    agent: BaseAlgorithm,
    score: float | None,
    episodes: EpisodeRecords,
    criterion: Criterion = "success",
) -> None:
    """Write a checkpoint; it appears completely or not at all.

    Args:
        folder: final path of the checkpoint.
        agent: the agent to save.
        score: score of the evaluation that made it the best, if one did.
        episodes: the last episodes of each task.
        criterion: quantity that the score measures.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    # a crash may have left it behind
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        if temporary.is_symlink():
            temporary.unlink()  # rmtree rejects links, and the target does not belong to the run
        temporary.mkdir()
        _write_files(temporary, agent, score, episodes, criterion)
        write_manifest(temporary)
        # the rename makes the checkpoint appear; it must be on the disk before the index names it
        temporary.replace(folder)
        flush(folder.parent)
    except (OSError, SafetensorError) as error:  # safetensors has its own error for a full disk
        shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(str(error)) from error


def _write_files(
    folder: Path,
    agent: BaseAlgorithm,
    score: float | None,
    episodes: EpisodeRecords,
    criterion: Criterion,
) -> None:
    save_model(agent.policy, str(folder / POLICY))
    # off-policy algorithms have additional counters
    counters = {name: getattr(agent, name) for name in COUNTERS if hasattr(agent, name)}
    state: JsonObject = {
        "schema_version": SCHEMA_VERSION,
        "num_timesteps": agent.num_timesteps,
        "n_updates": agent._n_updates,
        "counters": counters,
        "precision": agent.precision if isinstance(agent, HasPrecision) else "fp32",
        "exploration_rate": getattr(agent, "exploration_rate", None),  # DQN only
        # SB3 creates the windows when learning starts; until then they are None
        "windows": {name: list(getattr(agent, name) or ()) for name in WINDOWS},
        "episodes": episodes,
        "best_score": score,
        "observation_space": space_to_json(agent.observation_space),
        "action_space": space_to_json(agent.action_space),
    }
    if score is not None and criterion != "success":
        state["best_criterion"] = criterion
    ranks = getattr(agent, "ranks", ONE_PROCESS)  # off-policy agents have none
    if ranks.size > 1:
        state["ranks"] = ranks.size
    # tensors as safetensors, the options of the parameter groups as JSON
    for name, optimizer in get_optimizers(agent).items():
        optimizer_state = optimizer.state_dict()
        state[f"{name}_groups"] = optimizer_state["param_groups"]
        save_file(_flatten_states(optimizer_state["state"]), folder / f"{name}.safetensors")
    tensors = {name: tensor.detach() for name, tensor in _get_tensors(agent).items()}
    if tensors:
        save_file(tensors, folder / TENSORS)
    env = _suite_env(agent)
    if env is not None:
        state["sampling"] = env.sampling_state()
    save_replay_buffer(agent, folder)
    write_json(folder / STATE, state)


def get_optimizers(agent: BaseAlgorithm) -> dict[str, torch.optim.Optimizer]:
    """Return an agent's optimizers.

    Args:
        agent: the agent.

    Returns:
        The optimizers by the names of their files: ``optimizer``, ``actor.optimizer``, ...
    """
    # paths of attributes, such as "policy.optimizer" and "ent_coef_optimizer"
    names, _ = agent._get_torch_save_params()
    optimizers = {}
    for name in names:
        if name.endswith("optimizer"):
            optimizers[name.removeprefix("policy.")] = attrgetter(name)(agent)
    return optimizers


def _suite_env(agent: BaseAlgorithm) -> SuiteVecEnv | None:
    """Return the environment below SB3's wrappers, which transpose images."""
    env = None if agent.env is None else agent.env.unwrapped
    return env if isinstance(env, SuiteVecEnv) else None


def _get_tensors(agent: BaseAlgorithm) -> dict[str, Tensor]:
    """Return the tensors that are neither the policy's nor an optimizer's."""
    _, names = agent._get_torch_save_params()
    return {name: attrgetter(name)(agent) for name in names}


def _flatten_states(states: Mapping[int, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return an optimizer's states by "parameter.state", for example "3.exp_avg"."""
    flat = {}
    for parameter, values in states.items():
        for name, tensor in values.items():
            flat[f"{parameter}.{name}"] = tensor.contiguous()
    return flat
