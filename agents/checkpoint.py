"""Checkpoints: weights and optimisers in safetensors, everything else in JSON. Nothing is ever unpickled.

A checkpoint is a folder ``checkpoints/step_<timesteps>/`` that appears whole or not at all: it is written under a
temporary name, flushed to the disk and renamed. ``checkpoints/index.json`` says which one is ``last`` and ``best``.
The replay buffer of an algorithm that has one is large, and lies in the ``last`` checkpoint only.
"""

import json
import os
import shutil
from collections import deque
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file, save_model
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import nn

from mirl.agents.replay import REPLAY_BUFFER, load_replay_buffer, save_replay_buffer
from mirl.configs.errors import ConfigError, nearest

SCHEMA_VERSION = 1
COUNTERS = ("_episode_num", "_n_calls")
"""What SB3's algorithms count beside timesteps and updates, as far as they do."""
WINDOWS = ("ep_info_buffer", "ep_success_buffer")
"""The last episodes, as SB3 keeps them for the log."""
TENSORS = "tensors.safetensors"
"""File of the tensors that are neither the policy's nor an optimiser's, such as the learned weight of the entropy."""


def write_json(path: Path, value: Any) -> None:
    """A JSON file, written atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """A text file, written atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Atomically: a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    _flush(temporary)
    temporary.replace(path)
    _flush(path.parent)


def _flush(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows has no handle to flush a directory by
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def step_name(timesteps: int) -> str:
    """Folder of the checkpoint after so many timesteps."""
    return f"step_{timesteps:09d}"


def save_checkpoint(
    directory: Path, agent: BaseAlgorithm, *, best: float | None = None, episodes: Mapping[str, Any] | None = None
) -> Path:
    """Save the agent under ``directory`` as its ``last`` checkpoint, and as its ``best`` one if a score is given.

    :param episodes: what is known of the last episodes beside what the agent keeps of them itself, for JSON.
    """
    directory.mkdir(parents=True, exist_ok=True)
    final = directory / step_name(agent.num_timesteps)
    if not final.exists():
        temporary = directory / f".{final.name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        save_model(agent.policy, str(temporary / "policy.safetensors"))
        state = {
            "schema_version": SCHEMA_VERSION,
            "num_timesteps": agent.num_timesteps,
            "n_updates": agent._n_updates,
            "counters": {name: getattr(agent, name) for name in COUNTERS if hasattr(agent, name)},
            "precision": getattr(agent, "precision", "fp32"),
            "exploration_rate": getattr(agent, "exploration_rate", None),
            "windows": {name: list(getattr(agent, name) or ()) for name in WINDOWS},
            "episodes": episodes or {},
        }
        for name, optimizer in _optimizers(agent).items():
            tensors, state[f"{name}_groups"] = _optimizer_state(optimizer)
            save_file(tensors, temporary / f"{name}.safetensors")
        if tensors := _tensors(agent):
            save_file({name: tensor.detach() for name, tensor in tensors.items()}, temporary / TENSORS)
        if agent.env is not None and hasattr(agent.env, "sampling_state"):
            state["sampling"] = agent.env.sampling_state()
        save_replay_buffer(agent, temporary)
        write_json(temporary / "state.json", state)
        for file in temporary.iterdir():
            _flush(file)
        temporary.replace(final)
        _flush(directory)
    index = read_index(directory)
    index["last"] = final.name
    if best is not None:
        index |= {"best": final.name, "best_score": best}
    write_json(directory / "index.json", index)
    for replay_buffer in directory.glob(f"step_*/{REPLAY_BUFFER}"):
        if replay_buffer.parent != final:
            replay_buffer.unlink()
    return final


def forget_later_checkpoints(directory: Path, timesteps: int) -> None:
    """Delete what a run that was cut off saved behind the checkpoint it is continued from."""
    for path in directory.glob("step_*"):
        if path.name > step_name(timesteps):
            shutil.rmtree(path)


def read_index(directory: Path) -> dict[str, Any]:
    """Which checkpoint is ``last`` and which ``best``; empty before the first."""
    path = directory / "index.json"
    if not path.exists():
        return {}
    index = _read_json(path)
    for name in ("last", "best"):  # a name from a file must not lead out of the folder
        if name in index and not (isinstance(index[name], str) and Path(index[name]).name == index[name]):
            raise ConfigError(f"{path}: '{name}' must name a folder beside it, got {index[name]!r}")
    return index


def find_checkpoint(directory: Path, which: str) -> Path:
    """``last``, ``best`` or a number of timesteps.

    :raises ConfigError: when there is no such checkpoint, naming those there are.
    """
    index = read_index(directory)
    folders = {path.name: path for path in directory.glob("step_*") if path.name.removeprefix("step_").isdecimal()}
    found = {str(int(name.removeprefix("step_"))): path for name, path in folders.items()}
    found |= {name: folders[index[name]] for name in ("last", "best") if index.get(name) in folders}
    asked = str(int(which)) if which.isdecimal() else which
    if asked not in found:
        raise ConfigError(f"no checkpoint '{which}' in {directory}." + (nearest(which, found) or " It holds none."))
    return found[asked]


def load_weights(checkpoint: Path, policy: nn.Module) -> None:
    """Load the policy's weights onto the device it is on."""
    read_state(checkpoint)
    try:
        load_model(policy, checkpoint / "policy.safetensors")
    except (SafetensorError, OSError, RuntimeError) as error:
        what = str(error).split("\n", 1)[-1].strip()  # torch heads its list of what does not fit with a line of its own
        raise ConfigError(f"{checkpoint} does not hold the weights of this policy: {what.splitlines()[0]}") from None


def load_agent(checkpoint: Path, agent: BaseAlgorithm) -> Mapping[str, Any]:
    """Load weights, optimisers, counters and what is replayed into an agent built from the same configuration.

    Returns the ``episodes`` that were saved beside it.
    """
    state = read_state(checkpoint)
    load_weights(checkpoint, agent.policy)
    try:
        for name, optimizer in _optimizers(agent).items():
            per_parameter: dict[int, dict[str, torch.Tensor]] = {}
            for path, tensor in load_file(checkpoint / f"{name}.safetensors").items():
                parameter, _, key = path.partition(".")
                per_parameter.setdefault(int(parameter), {})[key] = tensor
            optimizer.load_state_dict({"state": per_parameter, "param_groups": state[f"{name}_groups"]})
        if tensors := _tensors(agent):
            saved = load_file(checkpoint / TENSORS)
            for name, tensor in tensors.items():
                tensor.data.copy_(saved[name])  # in place: an optimiser holds it
        load_replay_buffer(agent, checkpoint)
        if "sampling" in state and agent.env is not None and hasattr(agent.env, "load_sampling_state"):
            agent.env.load_sampling_state(state["sampling"])
        counters = {name: int(state.get("counters", {}).get(name, 0)) for name in COUNTERS if hasattr(agent, name)}
        counters |= {"num_timesteps": int(state["num_timesteps"]), "_n_updates": int(state["n_updates"])}
        windows = {
            name: deque(episodes, maxlen=agent._stats_window_size)
            for name, episodes in state.get("windows", {}).items()
            if name in WINDOWS
        }
        if "precision" in state and hasattr(agent, "use_precision"):
            agent.use_precision(state["precision"])  # another machine, or another moment, would choose another
        rate = state.get("exploration_rate")
        explored = {} if rate is None else {"exploration_rate": float(rate)}
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ConfigError(f"{checkpoint} does not hold the state of this agent: {error}") from None
    for name, value in (counters | windows | explored).items():
        setattr(agent, name, value)
    return dict(state.get("episodes", {}))


def read_state(checkpoint: Path) -> Mapping[str, Any]:
    """The JSON part of a checkpoint of this schema version."""
    state = _read_json(checkpoint / "state.json")
    if state.get("schema_version") != SCHEMA_VERSION:
        raise ConfigError(
            f"{checkpoint} has schema version {state.get('schema_version')!r}, this MIRL reads {SCHEMA_VERSION}"
        )
    return state


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path} should hold a JSON object, got {type(value).__name__}")
    return value


def _optimizers(agent: BaseAlgorithm) -> dict[str, torch.optim.Optimizer]:
    """An agent's optimisers by the names of their files: ``optimizer`` of the policy, ``actor.optimizer`` …"""
    names, _ = agent._get_torch_save_params()
    return {name.removeprefix("policy."): attrgetter(name)(agent) for name in names if name.endswith("optimizer")}


def _tensors(agent: BaseAlgorithm) -> dict[str, torch.Tensor]:
    _, names = agent._get_torch_save_params()
    return {name: attrgetter(name)(agent) for name in names}


def _optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    state = optimizer.state_dict()
    tensors = {
        f"{parameter}.{name}": tensor.contiguous()
        for parameter, values in state["state"].items()
        for name, tensor in values.items()
    }
    return tensors, state["param_groups"]
