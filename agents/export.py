"""Export of a policy for one task: ``python eval.py run=runs/x export="go to the red door"``.

``exports/<name>.pt2`` holds the policy, specialized for one mission or task, as a program of
``torch.export``; the JSON file beside it describes inputs and outputs.
``torch.export.load(path).module()`` runs it without MIRL, on batches of any size. Such a file is
code: load it only from sources that you would run a program from.
"""

import io
import re
import zlib
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import ArrayLike
from torch import Tensor, nn

from mirl.agents.policy_loader import restore_policy
from mirl.agents.runs.atomic_files import write_bytes, write_json
from mirl.agents.runs.checkpoint import Checkpoint
from mirl.agents.runs.run import Run
from mirl.configs.errors import ConfigError, nearest
from mirl.configs.keys import MISSION_KEY, TASK_KEY
from mirl.configs.networks import (
    AnyContextConfig,
    CombinedContextConfig,
    MissionContextConfig,
    SentenceContextConfig,
    TaskIdContextConfig,
)
from mirl.configs.schema import EvalConfig
from mirl.configs.tasks import SuiteConfig, file_name
from mirl.envs import choose_backend
from mirl.envs.suite_spaces import suite_spaces
from mirl.envs.texts.codec import suite_codec
from mirl.envs.type_aliases import Observations
from mirl.policies import FusionPolicy, specialize

TOLERANCE = 1e-4
"""Largest difference of an output to the policy's, relative to the largest output above 1."""
SAMPLES = 256
"""Random observations on which program and policy are compared."""


class Export(NamedTuple):
    """A program that was written."""

    path: Path
    parameters: int
    """Parameters of the program."""
    policy_parameters: int
    """Parameters of the policy."""
    difference: float
    """Largest absolute difference of an output to the policy's."""


class TensorDescription(TypedDict):
    """Shape and type of a batch, for the JSON file."""

    shape: list[str | int]
    dtype: str


def export_run(run: Run, checkpoint: Checkpoint, config: EvalConfig) -> Export:
    """Export the policy of a checkpoint for the mission or task that ``config.export`` names.

    Args:
        run: the run.
        checkpoint: one of its checkpoints.
        config: options of the export; ``run`` and ``checkpoint`` are not read.

    Returns:
        The program that was written.

    Raises:
        ConfigError: there is no such task, the policy cannot be exported, or the program's outputs
            differ from the policy's.
    """
    training = run.config
    context = find_context(config.export, training.context, training.task)
    # a mission or a task id has one key
    [context_key] = training.context.keys
    backend = choose_backend(training.task, config.backend)
    observation_space, action_space = suite_spaces(training.task, backend)
    # the program is for the CPU; ``torch.export`` records the device
    policy = restore_policy(training, checkpoint, "cpu")
    specialized = specialize(policy, context)
    assert isinstance(policy, FusionPolicy), "specialize rejects the others"

    # compare the program with the policy on random observations
    observations = random_observations(observation_space, config.seed)
    # a value per task (PopArt) is that of the first, unless the context names the task
    observations[TASK_KEY] = np.zeros(SAMPLES, np.int64)
    observations[context_key] = np.repeat(np.asarray(context)[None], SAMPLES, axis=0)
    inputs = {name: torch.from_numpy(observations[name]) for name in specialized.keys}
    program, data = export_program(specialized, inputs)
    action_parameters, values = program(inputs)
    difference = checked_difference(
        (action_parameters, values), policy_outputs(policy, observations)
    )

    # write the program, and the description of its inputs and outputs
    result = Export(
        run.path / "exports" / f"{short_name(config.export)}.pt2",
        parameters=count_all_parameters(specialized),
        policy_parameters=count_all_parameters(policy),
        difference=difference,
    )
    result.path.parent.mkdir(exist_ok=True)
    write_bytes(result.path, data)
    outputs = {parameters_name(action_space): action_parameters, "value": values}
    description: dict[str, object] = {
        context_key: config.export,
        "run": run.path.name,
        "checkpoint": checkpoint.name,
        "inputs": {name: describe(tensor) for name, tensor in inputs.items()},
        "outputs": {name: describe(tensor) for name, tensor in outputs.items()},
    }
    if policy.popart and context_key != TASK_KEY:
        description["value_of_task"] = training.task.tasks[0].name
    description |= {
        "action_space": str(action_space),
        "parameters": result.parameters,
        "max_abs_difference": difference,
        "torch": torch.__version__,
    }
    write_json(result.path.with_suffix(".json"), description)
    return result


def checked_difference(outputs: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """Check that a program's outputs are the policy's, up to rounding.

    Args:
        outputs: outputs of the program.
        expected: outputs of the policy.

    Returns:
        The largest absolute difference.

    Raises:
        ConfigError: they differ by more than ``TOLERANCE``.
    """
    differences = []
    for ours, theirs in zip(outputs, expected, strict=True):
        differences.append((ours - theirs).abs().flatten())
    difference = torch.cat(differences).max().item()
    sizes = torch.cat([output.abs().flatten() for output in expected])
    is_masked = sizes == torch.finfo(sizes.dtype).max  # the logit of a masked action
    scale = max(1.0, sizes[~is_masked].max().item())
    if not difference <= TOLERANCE * scale:  # True also for NaN
        raise ConfigError(
            f"the program's outputs differ from the policy's by {difference:.1e}, expected at most "
            f"{TOLERANCE * scale:.1e}; nothing was written"
        )
    return difference


def find_context(name: str, config: AnyContextConfig, suite: SuiteConfig) -> ArrayLike:
    """Return the context of a mission or a task, as an observation holds it.

    Args:
        name: a mission, or the name of a task, whichever the context is made of.
        config: the context of the run.
        suite: the tasks of the run.

    Returns:
        The token ids or bytes of the mission, or the index of the task.

    Raises:
        ConfigError: there is no such task, or the context is a goal, which has no name.
    """
    # a user's context encoder is known by its key
    is_text = isinstance(config, MissionContextConfig | SentenceContextConfig)
    if is_text or config.keys == (MISSION_KEY,):
        return suite_codec(suite).encode(name, config.keys[0])
    if isinstance(config, TaskIdContextConfig) or config.keys == (TASK_KEY,):
        tasks = [task.name for task in suite.tasks]
        if name not in tasks:
            raise ConfigError(f"unknown task '{name}'." + nearest(name, tasks))
        return tasks.index(name)
    if isinstance(config, CombinedContextConfig):
        raise ConfigError(
            "export=… takes a mission or a task, and the context of this run joins "
            f"{', '.join(config.keys)}; use mirl.agents.load_policy(…) and export the module that "
            "mirl.policies.specialize(policy, {key: value, …}) returns with torch.export"
        )
    raise ConfigError(
        "export=… takes a mission or a task, and the context of this run is a goal, which has no "
        "name; use mirl.agents.load_policy(…) and export the module that "
        "mirl.policies.specialize(policy, goal) returns with torch.export"
    )


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


def export_program(module: nn.Module, inputs: dict[str, Tensor]) -> tuple[nn.Module, bytes]:
    """Export a module as a program for batches of any size.

    Args:
        module: the module.
        inputs: one batch of its inputs.

    Returns:
        The program, loaded back from the bytes of its file; and these bytes.

    Raises:
        ConfigError: if torch cannot export the module; built-in parts can all be exported.
    """
    any_batch_size = {key: {0: torch.export.Dim("batch", min=1)} for key in inputs}
    try:
        exported = torch.export.export(module, (inputs,), dynamic_shapes=(any_batch_size,))
    except Exception as error:  # torch raises many types, some of them private
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"torch.export cannot export the policy: {reason} (in an encoder of one's own, len(x) "
            "makes the size of the batch a constant: use x.shape[0])"
        ) from error
    buffer = io.BytesIO()
    torch.export.save(exported, buffer)
    data = buffer.getvalue()
    # what was written is compared, not what was exported
    return torch.export.load(io.BytesIO(data)).module(), data


@torch.no_grad()
def policy_outputs(policy: FusionPolicy, observations: Observations) -> tuple[Tensor, Tensor]:
    """Return the parameters of the action distribution, and the values.

    Args:
        policy: the policy, with its context encoder.
        observations: a batch of observations.

    Returns:
        Parameters (B, ...) and values (B, 1).
    """
    features: Any = policy.extract_features(policy.obs_to_tensor(observations)[0])
    # SB3 returns one tensor, or a pair if actor and critic have an extractor each
    if policy.share_features_extractor:
        actor_features = features
        critic_features = features
    else:
        actor_features, critic_features = features
    mlp = policy.mlp_extractor
    parameters = policy.action_parameters(mlp.forward_actor(actor_features))
    return parameters, policy.value_net(mlp.forward_critic(critic_features))


def parameters_name(action_space: spaces.Space[Any]) -> str:
    """Return the name of the parameters of an action space's distribution.

    Args:
        action_space: the action space.

    Returns:
        "action_mean" for continuous actions, else "action_logits".
    """
    return "action_mean" if isinstance(action_space, spaces.Box) else "action_logits"


def describe(tensor: Tensor) -> TensorDescription:
    """Describe a batch for the JSON file.

    Args:
        tensor: the batch, (B, ...).

    Returns:
        Its shape and type.
    """
    return {
        "shape": ["batch", *tensor.shape[1:]],
        "dtype": str(tensor.dtype).removeprefix("torch."),
    }


def count_all_parameters(module: nn.Module) -> int:
    """Return the number of parameters of a module, frozen ones included.

    Args:
        module: the module.

    Returns:
        The number.
    """
    return sum(parameter.numel() for parameter in module.parameters())


def short_name(name: str) -> str:
    """Return a file name for a mission or task.

    Args:
        name: the mission or task.

    Returns:
        Its words, and a checksum if they are too long or contain other characters.
    """
    if re.fullmatch(r"[A-Za-z0-9 ._+-]{1,100}", name):
        return file_name(name)
    # a command line can hold bytes that are not UTF-8; Python passes them as surrogates
    checksum = zlib.crc32(name.encode("utf-8", "surrogatepass"))
    return f"{file_name(name)[:80]}-{checksum:08x}"
