"""Policies from checkpoints, ready to act."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.vec_env import VecTransposeImage
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from mirl.agents.builder import Policy, build_policy, resolve_device, with_input_keys
from mirl.agents.runs.checkpoint import Checkpoint, Spaces
from mirl.agents.runs.run_directory import RunDirectory
from mirl.configs.commands.pretrained import PREFIX
from mirl.configs.errors import ConfigError
from mirl.configs.keys import ACTION_MASK_KEY, TASK_KEY
from mirl.configs.schema import BackendName, DeviceName, ResolvedConfig
from mirl.configs.stored import check_regular
from mirl.configs.tasks import SuiteConfig
from mirl.envs import SuiteVecEnv, choose_backend
from mirl.envs.actions import ActionSpace
from mirl.envs.contract.descriptions import describe_space
from mirl.envs.suite_spaces import suite_spaces

BYTES_PER_FILE_BYTE = 8
"""Maximum size of a network while it is built, relative to the size of its weights file.

The file does not hold target networks or the layers that a policy replaces.
"""
SPARE_BYTES = 2**26
"""Bytes that a network may have in addition to that."""


def load_policy(run: Path | str, checkpoint: str = "best", device: DeviceName = "auto") -> Policy:
    """Load the policy of a run, ready to act.

    Args:
        run: the run directory, or ``pretrained:NAME``.
        checkpoint: "best", "last", or a number of timesteps.
        device: device of the policy.

    Returns:
        The policy in evaluation mode: a ``FusionPolicy`` for PPO and A2C, a
        ``RecurrentFusionPolicy`` if the run has a memory, and one of ``mirl.policies.off_policy``
        for the other algorithms.

    Raises:
        ConfigError: there is no such run or checkpoint, or it is damaged.
    """
    opened = RunDirectory.open(run)
    return restore_policy(opened.config, opened.checkpoint(checkpoint), device)


def load_pretrained(name: str, device: DeviceName = "auto") -> Policy:
    """Load the policy of a pretrained agent that comes with MIRL, ready to act.

    Args:
        name: the name of the agent, such as "goto_local"; docs/pretrained.md lists them.
        device: device of the policy.

    Returns:
        The policy, as ``load_policy`` returns it.

    Raises:
        ConfigError: no agent has this name.
    """
    return load_policy(f"{PREFIX}{name}", device=device)


def restore_policy(
    config: ResolvedConfig,
    checkpoint: Checkpoint,
    device: DeviceName,
    env: SuiteVecEnv | None = None,
) -> Policy:
    """Build the policy of a run and load a checkpoint's weights into it.

    Args:
        config: the configuration of the run.
        checkpoint: one of its checkpoints.
        device: device of the policy.
        env: environments that the policy will act in, whose spaces are compared with its own.

    Returns:
        The policy in evaluation mode.

    Raises:
        ConfigError: the checkpoint is damaged, or the environments have other spaces.
    """
    env_spaces = None
    if env is not None:
        env_spaces = _trained_spaces(env.observation_space, env.action_space)
    # checkpoints of earlier versions do not store their spaces
    saved_spaces = checkpoint.spaces() or env_spaces or _spaces_of_run(config)
    if env_spaces is not None:
        _check_same_spaces(checkpoint, saved_spaces, env_spaces)
    completed = with_input_keys(config, saved_spaces.observation)
    with _limit_parameters(checkpoint.policy_path):
        policy = build_policy(completed, *saved_spaces)
    checkpoint.load_weights(policy)
    policy.to(resolve_device(device))
    policy.set_training_mode(False)
    return policy


def check_task_fits(checkpoint: Checkpoint, suite: SuiteConfig, backend: BackendName) -> None:
    """Check that the policy of a checkpoint can act in a task it was not trained on.

    Args:
        checkpoint: the checkpoint.
        suite: a suite of only this task, with the texts that the policy was trained on.
        backend: library that steps the environments.

    Raises:
        ConfigError: an observation or the actions differ; the error names the first difference.
    """
    saved = checkpoint.spaces()
    if saved is None:  # from an earlier version, which did not store the spaces
        return
    [task] = suite.tasks
    own = _trained_spaces(*suite_spaces(suite, choose_backend(suite, backend)))
    # the suite's own keys follow from the number of tasks and of actions, not from the task
    keys = {*saved.observation, *own.observation} - {TASK_KEY, ACTION_MASK_KEY}
    pairs: list[tuple[str, object, object]] = []
    for key in sorted(keys):
        pairs.append((f"observation '{key}'", saved.observation.get(key), own.observation.get(key)))
    if ACTION_MASK_KEY not in saved.observation.spaces:
        pairs.append(("action space", saved.action, own.action))
    for aspect, expected, given in pairs:
        if given != expected:
            raise ConfigError(
                f"task '{task.name}' does not fit {checkpoint.folder}: its {aspect} is "
                f"{_describe(given)}, expected {_describe(expected)}; choose a task with the "
                "spaces of the run's own"
            )


def _describe(space: object) -> str:
    return "missing" if space is None else describe_space(space)


def _check_same_spaces(checkpoint: Checkpoint, saved: Spaces, env: Spaces) -> None:
    differing = []
    for key in sorted({*saved.observation, *env.observation}):
        if saved.observation.spaces.get(key) != env.observation.spaces.get(key):
            differing.append(f"observation '{key}'")
    if saved.action != env.action:
        differing.append("actions")
    if differing:
        raise ConfigError(
            f"{checkpoint.folder} was trained on other spaces than these environments have, which "
            f"differ in {', '.join(differing)}; use the environments that it was trained on"
        )


def _spaces_of_run(config: ResolvedConfig) -> Spaces:
    """Return the spaces of a run's environments, for checkpoints that do not store them."""
    backend = choose_backend(config.task, config.backend)
    return _trained_spaces(*suite_spaces(config.task, backend))


def _trained_spaces(
    observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
) -> Spaces:
    """Return the spaces that SB3 trains on: it transposes images to channels first."""
    assert isinstance(observation_space, spaces.Dict), "the observation contract is a Dict"
    assert isinstance(action_space, ActionSpace)
    parts: list[tuple[str, spaces.Space[Any]]] = []
    for key, part in observation_space.items():
        if isinstance(part, spaces.Box) and _has_channels_last(part):
            # (H, W, C) -> (C, H, W)
            part = VecTransposeImage.transpose_space(part, key)
        parts.append((key, part))
    return Spaces(spaces.Dict(parts), action_space)


def _has_channels_last(space: spaces.Box) -> bool:
    return is_image_space(space) and not is_image_space_channels_first(space)


@contextmanager
def _limit_parameters(weights: Path) -> Iterator[None]:
    """Reject a network that is far larger than its weights file.

    The configuration may come from an untrusted source. Allocated memory costs nothing until it is
    written to, and torch registers each parameter before that.
    """
    check_regular(weights)
    file_bytes = weights.stat().st_size
    max_bytes = BYTES_PER_FILE_BYTE * file_bytes + SPARE_BYTES
    n_bytes = 0

    def count(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> None:
        nonlocal n_bytes
        if parameter is not None:
            n_bytes += parameter.numel() * parameter.element_size()
        if n_bytes > max_bytes:
            raise ConfigError(
                f"the configuration asks for a network of more than {n_bytes:,} bytes, "
                f"and {weights} has {file_bytes:,}"
            )

    # checked while building, because afterwards the memory would already be in use
    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    except (RuntimeError, MemoryError, OverflowError) as error:
        # torch cannot allocate the weights
        raise ConfigError(
            f"the configuration asks for a network that cannot be built: {error}"
        ) from None
    finally:
        hook.remove()  # it is global and would count every later module
