"""One task of a run as a program of its own: ``python eval.py run=runs/x export="go to the red door"``.

``exports/<name>.pt2`` holds the policy specialized for that task, by ``torch.export``, and the JSON beside it says what
it takes and gives. ``torch.export.load(path).module()`` runs it without MIRL, on batches of any size. Such a file is
code: load it only from where you would take a program.
"""

import io
import re
import zlib
from pathlib import Path
from typing import Any, NamedTuple, assert_never

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn

from mirl.agents.builder import load_policy
from mirl.agents.runs.atomic_files import write_bytes, write_json
from mirl.agents.runs.run import load_config
from mirl.configs.errors import ConfigError, nearest
from mirl.configs.keys import TASK_KEY
from mirl.configs.networks import (
    AutoContextConfig,
    ContextConfig,
    GoalContextConfig,
    MissionContextConfig,
    TaskIdContextConfig,
)
from mirl.configs.schema import EvalConfig
from mirl.configs.tasks import SuiteConfig, file_name
from mirl.envs import choose_backend, tokenize
from mirl.envs.suite_spaces import suite_spaces
from mirl.policies import FusionPolicy, specialize

TOLERANCE = 1e-4
"""An exported program may differ from its policy by so much, relative to the largest output where that exceeds 1."""

SAMPLES = 256
"""Random observations on which the two are compared."""

Observations = dict[str, NDArray[Any]]


class Export(NamedTuple):
    """A program that was written."""

    path: Path
    parameters: int
    parameters_of_policy: int
    difference: float
    """The largest one to an output of the policy."""


def export_run(config: EvalConfig) -> Export:
    """Write the policy of a run's checkpoint for the one task that ``config.export`` names.

    :raises ConfigError: when there is no such run, checkpoint or task, or the program does not do what the policy does.
    """
    training = load_config(config.run)
    asks = training.context
    assert not isinstance(asks, AutoContextConfig), (
        "what a run stores is fitted to its observations"
    )
    key, context = asks.key, context_named(config.export, asks, training.task)
    observation_space, action_space = suite_spaces(
        training.task, choose_backend(training.task, config.backend)
    )
    policy, checkpoint = load_policy(
        config.run, config.checkpoint, observation_space, action_space, "cpu"
    )
    specialized = specialize(policy, context)

    first_task = np.zeros(
        SAMPLES, np.int64
    )  # whose value is given, where values are per task; a context may overrule
    asked = {TASK_KEY: first_task, key: np.repeat(np.asarray(context)[None], SAMPLES, axis=0)}
    observations = {**random_observations(observation_space, config.seed), **asked}
    inputs = {name: torch.from_numpy(observations[name]) for name in specialized.keys}
    program, data = as_program(specialized, inputs)
    outputs = dict(zip((parameters_name(action_space), "value"), program(inputs), strict=True))
    difference = checked_difference(tuple(outputs.values()), outputs_of(policy, observations))

    result = Export(
        config.run / "exports" / f"{short_name(config.export)}.pt2",
        parameters=n_parameters(specialized),
        parameters_of_policy=n_parameters(policy),
        difference=difference,
    )
    result.path.parent.mkdir(exist_ok=True)
    write_bytes(result.path, data)
    description = {
        key: config.export,
        "run": config.run.name,
        "checkpoint": checkpoint.name,
        "inputs": {name: described(value) for name, value in inputs.items()},
        "outputs": {name: described(value) for name, value in outputs.items()},
        **(
            {"value_of_task": training.task.tasks[0].name}
            if policy.popart and key != TASK_KEY
            else {}
        ),
        "action_space": str(action_space),
        "parameters": result.parameters,
        "max_abs_difference": difference,
        "torch": torch.__version__,
    }
    write_json(result.path.with_suffix(".json"), description)
    return result


def checked_difference(outputs: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """The largest difference of a program to its policy.

    :raises ConfigError: when it is more than rounding.
    """
    apart = torch.cat(
        [(ours - theirs).abs().flatten() for ours, theirs in zip(outputs, expected, strict=True)]
    )
    sizes = torch.cat([output.abs().flatten() for output in expected])
    masked = sizes == torch.finfo(sizes.dtype).max  # the logit of a masked action
    difference, scale = apart.max().item(), max(1.0, sizes[~masked].max().item())
    if not difference <= TOLERANCE * scale:  # nor is NaN
        raise ConfigError(
            f"the program's outputs differ from the policy's by {difference:.1e}; nothing was written"
        )
    return difference


def context_named(name: str, config: ContextConfig, suite: SuiteConfig) -> Any:
    """The context of a mission or a task, as an observation holds it."""
    match config:
        case MissionContextConfig():
            return tokenize(name)
        case TaskIdContextConfig():
            tasks = [task.name for task in suite.tasks]
            if name not in tasks:
                raise ConfigError(f"unknown task '{name}'." + nearest(name, tasks))
            return tasks.index(name)
        case GoalContextConfig():
            raise ConfigError(
                "export=… takes a mission or a task, and this run is told goals, which have no name: "
                "mirl.agents.load_policy(…) gives its policy, and mirl.policies.specialize(policy, goal) "
                "the module that torch.export takes"
            )
        case _:
            assert_never(config)


def random_observations(space: spaces.Dict, seed: int) -> Observations:
    """A batch of samples of a space."""
    space.seed(seed)
    samples = [space.sample() for _ in range(SAMPLES)]
    return {key: np.stack([np.asarray(sample[key]) for sample in samples]) for key in space}


def as_program(module: nn.Module, inputs: dict[str, Tensor]) -> tuple[nn.Module, bytes]:
    """A module as a program for batches of any size, read back from the bytes of its file, and these."""
    any_size = {key: {0: torch.export.Dim("batch", min=1)} for key in inputs}
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(module, (inputs,), dynamic_shapes=(any_size,)), buffer)
    data = buffer.getvalue()
    return torch.export.load(io.BytesIO(data)).module(), data


@torch.no_grad()
def outputs_of(policy: FusionPolicy, observations: Observations) -> tuple[Tensor, Tensor]:
    """What the policy, with its context, makes its distribution of, and the values."""
    features = policy.extract_features(policy.obs_to_tensor(observations)[0])
    for_actor, for_critic = (features, features) if policy.share_features_extractor else features
    mlp = policy.mlp_extractor
    return policy.action_parameters(mlp.forward_actor(for_actor)), policy.value_net(
        mlp.forward_critic(for_critic)
    )


def parameters_name(action_space: spaces.Space[Any]) -> str:
    """What the parameters of an action space's distribution are."""
    return "action_mean" if isinstance(action_space, spaces.Box) else "action_logits"


def described(tensor: Tensor) -> dict[str, Any]:
    """Shape and type of a batch, for the JSON."""
    return {
        "shape": ["batch", *tensor.shape[1:]],
        "dtype": str(tensor.dtype).removeprefix("torch."),
    }


def n_parameters(module: nn.Module) -> int:
    """All parameters, frozen or not."""
    return sum(parameter.numel() for parameter in module.parameters())


def short_name(name: str) -> str:
    """A mission or task as a file's name: its words, and a checksum where they are too long or not plain enough."""
    if re.fullmatch(r"[A-Za-z0-9 ._+-]{1,100}", name):
        return file_name(name)
    return f"{file_name(name)[:80]}-{zlib.crc32(name.encode('utf-8', 'surrogatepass')):08x}"
