"""Checkpoints: weights and optimizers in safetensors, everything else in JSON. Nothing is ever unpickled.

A checkpoint is a folder ``checkpoints/step_<timesteps>/`` that appears whole or not at all: it is written under a
temporary name, sealed with the SHA-256 of each of its files, flushed to the disk and renamed. Whatever is read is
compared with the seal first. ``checkpoints/index.json`` says which one is ``last`` and ``best``. The replay buffer of
an algorithm that has one is large, and lies in the ``last`` checkpoint only.
"""

import shutil
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, load_model, save_file, save_model
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import nn

from mirl.agents.runs.atomic_files import (
    MANIFEST,
    check_regular,
    flush,
    load_json,
    verify_manifest,
    write_json,
    write_manifest,
)
from mirl.agents.runs.replay_buffer import REPLAY_BUFFER, load_replay_buffer, save_replay_buffer
from mirl.configs.errors import ConfigError, nearest

SCHEMA_VERSION = 2
READABLE = (1, 2)
"""Schema versions that are loaded; 1 had no seal."""
POLICY = "policy.safetensors"
"""File of the weights."""
STATE = "state.json"
"""File of all that is no tensor."""
COUNTERS = ("_episode_num", "_n_calls")
"""What SB3's algorithms count beside timesteps and updates, as far as they do."""
WINDOWS = ("ep_info_buffer", "ep_success_buffer")
"""The last episodes, as SB3 keeps them for the log."""
TENSORS = "tensors.safetensors"
"""File of the tensors that are neither the policy's nor an optimizer's, such as the learned weight of the entropy."""


_DTYPES = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.bool: "BOOL",
    torch.int64: "I64",
    torch.uint8: "U8",
}
"""What safetensors calls the types that weights and buffers have."""


def checkpoint_name(timesteps: int) -> str:
    """Folder of the checkpoint after so many timesteps."""
    return f"step_{timesteps:09d}"


def save_checkpoint(
    directory: Path,
    agent: BaseAlgorithm,
    *,
    best: float | None = None,
    episodes: Mapping[str, Any] | None = None,
) -> Path:
    """Save the agent under ``directory`` as its ``last`` checkpoint, and as its ``best`` one if a score is given.

    :param episodes: what is known of the last episodes beside what the agent keeps of them itself, for JSON.
    :raises OSError: when it cannot be written; what was there is as it was.
    """
    directory.mkdir(parents=True, exist_ok=True)
    final = directory / checkpoint_name(agent.num_timesteps)
    if not final.exists():
        temporary = directory / f".{final.name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir()
            _write(temporary, agent, best, episodes or {})
            write_manifest(temporary)
            temporary.replace(final)
            flush(directory)
        except (
            OSError,
            SafetensorError,
        ) as error:  # the latter is what safetensors says of a full disk
            shutil.rmtree(temporary, ignore_errors=True)
            raise OSError(str(error)) from error
    index = load_index(directory)
    index["last"] = final.name
    if best is not None:
        index |= {"best": final.name, "best_score": best}
    write_json(directory / "index.json", index)
    for folder in _folders(directory):
        if folder != final:
            (folder / REPLAY_BUFFER).unlink(missing_ok=True)
    return final


def _write(
    folder: Path, agent: BaseAlgorithm, best: float | None, episodes: Mapping[str, Any]
) -> None:
    save_model(agent.policy, str(folder / POLICY))
    state = {
        "schema_version": SCHEMA_VERSION,
        "num_timesteps": agent.num_timesteps,
        "n_updates": agent._n_updates,
        "counters": {name: getattr(agent, name) for name in COUNTERS if hasattr(agent, name)},
        "precision": getattr(agent, "precision", "fp32"),
        "exploration_rate": getattr(agent, "exploration_rate", None),
        "windows": {name: list(getattr(agent, name) or ()) for name in WINDOWS},
        "episodes": episodes,
        "best_score": best,
    }
    for name, optimizer in get_optimizers(agent).items():
        tensors, state[f"{name}_groups"] = _optimizer_state(optimizer)
        save_file(tensors, folder / f"{name}.safetensors")
    if tensors := _tensors(agent):
        save_file({name: tensor.detach() for name, tensor in tensors.items()}, folder / TENSORS)
    if agent.env is not None and hasattr(agent.env, "sampling_state"):
        state["sampling"] = agent.env.sampling_state()
    save_replay_buffer(agent, folder)
    write_json(folder / STATE, state)


def delete_checkpoints_after(directory: Path, timesteps: int) -> None:
    """Delete what a run that was cut off saved behind the checkpoint it is continued from."""
    for folder in _folders(directory):
        if folder.name > checkpoint_name(timesteps):
            shutil.rmtree(folder)


def _folders(directory: Path) -> list[Path]:
    """The checkpoints, from the first to the last.

    :raises ConfigError: when one of them, or where they lie, is a link, which could lead anywhere.
    """
    found = sorted(directory.glob("step_*"))
    for path in (directory, *found):
        if path.is_symlink():
            raise ConfigError(f"{path} is a link; nothing of a run directory may be")
    return found


def load_index(directory: Path) -> dict[str, Any]:
    """Which checkpoint is ``last`` and which ``best``; empty before the first."""
    path = directory / "index.json"
    if not path.exists():
        return {}
    index = load_json(path)
    for name in ("last", "best"):  # a name from a file must not lead out of the folder
        if name in index and not (
            isinstance(index[name], str) and Path(index[name]).name == index[name]
        ):
            raise ConfigError(f"{path}: '{name}' must name a folder beside it, got {index[name]!r}")
    return index


def latest_valid_checkpoint(directory: Path) -> Path | None:
    """The last checkpoint, or the newest before it that is what was written; warns of each that is not.

    None where there is none yet.

    :raises ConfigError: when there are some, and all are damaged.
    """
    folders = _folders(directory)
    if not folders:
        return None
    try:
        last = load_index(directory)["last"]
    except (ConfigError, KeyError) as error:
        what = (
            error
            if isinstance(error, ConfigError)
            else f"{directory / 'index.json'} names no last checkpoint"
        )
        warnings.warn(
            f"{what}; it is made again from what the checkpoints say of themselves", stacklevel=2
        )
        last = _rebuild_index(folders)
    folders = [path for path in reversed(folders) if path.name <= last]
    for folder in folders:
        try:
            load_state(folder)
            if (folder / MANIFEST).exists():
                verify_manifest(folder)
        except ConfigError as error:
            warnings.warn(f"a damaged checkpoint is passed over: {error}", stacklevel=2)
        else:
            return folder
    raise ConfigError(
        f"no checkpoint in {directory} is what was written; choose another name=… to begin again"
    )


def _rebuild_index(folders: Sequence[Path]) -> str:
    """The index of the checkpoints that can be read; the name of the last."""
    index: dict[str, Any] = {"last": folders[-1].name}
    for folder in folders:
        with suppress(ConfigError):
            score = load_state(folder).get("best_score")
            index["last"] = folder.name
            if isinstance(score, float) and score >= index.get("best_score", score):
                index |= {"best": folder.name, "best_score": score}
    write_json(folders[0].parent / "index.json", index)
    return str(index["last"])


def find_checkpoint(directory: Path, which: str) -> Path:
    """``last``, ``best`` or a number of timesteps.

    :raises ConfigError: when there is no such checkpoint, naming those there are.
    """
    index = load_index(directory)
    folders = {
        path.name: path
        for path in _folders(directory)
        if path.name.removeprefix("step_").isdecimal()
    }
    found = {str(int(name.removeprefix("step_"))): path for name, path in folders.items()}
    found |= {name: folders[index[name]] for name in ("last", "best") if index.get(name) in folders}
    asked = str(int(which)) if which.isdecimal() else which
    if asked not in found:
        raise ConfigError(
            f"no checkpoint '{which}' in {directory}."
            + (nearest(which, found) or " It holds none.")
        )
    return found[asked]


def load_weights(checkpoint: Path, policy: nn.Module) -> None:
    """Load the policy's weights onto the device it is on; nothing is loaded that does not fit it exactly."""
    load_state(checkpoint)
    try:
        _check_fits(checkpoint / POLICY, policy.state_dict())
        if (checkpoint / MANIFEST).exists():
            verify_manifest(checkpoint, [POLICY])
        load_model(policy, checkpoint / POLICY)
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        # torch heads its list of what does not fit with a line of its own
        what = str(error).split("\n", 1)[-1].strip().splitlines()[0][:300]
        raise ConfigError(
            f"{checkpoint} does not hold the weights of this policy: {what}"
        ) from None


def _check_fits(path: Path, expected: Mapping[str, torch.Tensor]) -> None:
    """By the header alone, before anything is read: torch would convert what is of another type without a word."""
    check_regular(path)
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  (it is no mapping)
            tensor = expected.get(name)
            if tensor is None:
                raise ValueError(f"the policy has no weight '{name}'")
            shape, found = list(tensor.shape), file.get_slice(name)
            if found.get_shape() != shape or found.get_dtype() != _DTYPES.get(tensor.dtype):
                raise ValueError(
                    f"'{name}' should be {_DTYPES.get(tensor.dtype)} {shape}, "
                    f"got {found.get_dtype()} {found.get_shape()}"
                )


def load_agent(checkpoint: Path, agent: BaseAlgorithm) -> Mapping[str, Any]:
    """Load weights, optimizers, counters and what is replayed into an agent built from the same configuration.

    Returns the ``episodes`` that were saved beside it.
    """
    state = load_state(checkpoint)
    if (checkpoint / MANIFEST).exists():
        verify_manifest(checkpoint)
    load_weights(checkpoint, agent.policy)
    try:
        for name, optimizer in get_optimizers(agent).items():
            per_parameter: dict[int, dict[str, torch.Tensor]] = {}
            for path, tensor in load_file(checkpoint / f"{name}.safetensors").items():
                parameter, _, key = path.partition(".")
                per_parameter.setdefault(int(parameter), {})[key] = tensor
            optimizer.load_state_dict(
                {"state": per_parameter, "param_groups": state[f"{name}_groups"]}
            )
        if tensors := _tensors(agent):
            saved = load_file(checkpoint / TENSORS)
            for name, tensor in tensors.items():
                tensor.data.copy_(saved[name])  # in place: an optimizer holds it
        load_replay_buffer(agent, checkpoint)
        if (
            "sampling" in state
            and agent.env is not None
            and hasattr(agent.env, "load_sampling_state")
        ):
            agent.env.load_sampling_state(state["sampling"])
        counters = {
            name: int(state.get("counters", {}).get(name, 0))
            for name in COUNTERS
            if hasattr(agent, name)
        }
        counters |= {
            "num_timesteps": int(state["num_timesteps"]),
            "_n_updates": int(state["n_updates"]),
        }
        windows = {
            name: deque(episodes, maxlen=agent._stats_window_size)
            for name, episodes in state.get("windows", {}).items()
            if name in WINDOWS
        }
        if "precision" in state and hasattr(agent, "use_precision"):
            agent.use_precision(
                state["precision"]
            )  # another machine, or another moment, would choose another
        rate = state.get("exploration_rate")
        explored = {} if rate is None else {"exploration_rate": float(rate)}
    except (
        SafetensorError,
        OSError,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        RuntimeError,
    ) as error:
        raise ConfigError(f"{checkpoint} does not hold the state of this agent: {error}") from None
    for name, value in (counters | windows | explored).items():
        setattr(agent, name, value)
    return dict(state.get("episodes", {}))


def load_state(checkpoint: Path) -> Mapping[str, Any]:
    """The JSON part of a checkpoint of a schema version that can be read.

    :raises ConfigError: when it is of another, or is not what was written.
    """
    state = load_json(checkpoint / STATE)
    version = state.get("schema_version")
    if version not in READABLE:
        known = " and ".join(str(each) for each in READABLE)
        raise ConfigError(f"{checkpoint} has schema version {version!r}, this MIRL reads {known}")
    if version > 1:
        verify_manifest(checkpoint, [STATE])
    return state


def get_optimizers(agent: BaseAlgorithm) -> dict[str, torch.optim.Optimizer]:
    """An agent's optimizers by the names of their files: ``optimizer`` of the policy, ``actor.optimizer`` …"""
    names, _ = agent._get_torch_save_params()
    return {
        name.removeprefix("policy."): attrgetter(name)(agent)
        for name in names
        if name.endswith("optimizer")
    }


def _tensors(agent: BaseAlgorithm) -> dict[str, torch.Tensor]:
    _, names = agent._get_torch_save_params()
    return {name: attrgetter(name)(agent) for name in names}


def _optimizer_state(
    optimizer: torch.optim.Optimizer,
) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    state = optimizer.state_dict()
    tensors = {
        f"{parameter}.{name}": tensor.contiguous()
        for parameter, values in state["state"].items()
        for name, tensor in values.items()
    }
    return tensors, state["param_groups"]
