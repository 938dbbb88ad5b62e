"""Mixed precision: the policy's trunk in bfloat16; its heads, losses and weights in float32."""

import threading
import time
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import TypeVar, cast, get_args

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from mirl.configs.errors import ConfigError, nearest
from mirl.configs.schema import PrecisionName
from mirl.policies.features import Context, Features

MIN_SPEEDUP = 1.3
"""Smallest speedup of bfloat16 over float32 that is worth its rounding errors."""
HOPELESS = 4.0
"""Ratio of two times that is too large to be caused by other processes."""
T = TypeVar("T")


def resolve_precision(name: PrecisionName, device: torch.device) -> PrecisionName:
    """Replace "auto" by "bf16" if that is clearly faster on this device, else by "fp32".

    Args:
        name: "fp32", "bf16" or "auto".
        device: the training device.

    Returns:
        "fp32" or "bf16".

    Raises:
        ConfigError: if the name is unknown.
    """
    names = get_args(PrecisionName)
    if name not in names:
        raise ConfigError(f"unknown precision '{name}'." + nearest(name, names))
    if name != "auto":
        return name
    return "bf16" if _bf16_is_faster(device.type) else "fp32"


@cache
def _bf16_is_faster(device_type: str) -> bool:
    """Return True if bfloat16 is clearly faster, measured once per process."""
    if device_type == "cuda":
        # Emulated bfloat16 computes in float32 and only adds conversions.
        return torch.cuda.is_bf16_supported(including_emulation=False)
    float32_seconds = _time_matmul(torch.float32)
    bfloat16_seconds = _time_matmul(torch.bfloat16, hopeless=HOPELESS * float32_seconds)
    return bfloat16_seconds * MIN_SPEEDUP < float32_seconds


def _time_matmul(dtype: torch.dtype, hopeless: float = float("inf")) -> float:
    """Return the shortest time of several matrix products, in seconds.

    The products after the second are skipped if the shortest time is above ``hopeless``, because a
    CPU that emulates bfloat16 takes a second for all of them.
    """
    matrix = torch.ones(512, 512, dtype=dtype)
    best = float("inf")
    for product in range(8):
        if product > 1 and best > hopeless:
            break
        start = time.perf_counter()
        torch.mm(matrix, matrix)
        # The minimum, because set-up and other processes can only slow a product down.
        best = min(best, time.perf_counter() - start)
    return best


def autocast(
    precision: PrecisionName, device: torch.device
) -> AbstractContextManager[object | None]:
    """Return a context manager in which a policy computes in the given precision.

    Call ``heads_in_float32`` on the policy once before.

    Args:
        precision: "fp32" or "bf16".
        device: the training device.
    """
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def heads_in_float32(policy: ActorCriticPolicy) -> None:
    """Keep the output layers of the action distribution and the value in float32 in ``autocast``.

    PPO compares probabilities: a logit of 8 in bfloat16 is off by up to 1/64, which adds noise to
    the probability ratio that does not average out.

    Args:
        policy: the policy; gets forward hooks.
    """
    for head in (policy.action_net, policy.value_net):
        head.register_forward_pre_hook(_enter_float32)
        # Called even if the forward pass raises, or autocast would stay off in this thread.
        head.register_forward_hook(_leave_float32, always_call=True)


class _Scopes(threading.local):
    """The contexts of the heads whose forward pass a thread is in."""

    def __init__(self) -> None:
        self.entered: list[torch.autocast] = []


_scopes = _Scopes()


def _enter_float32(head: nn.Module, arguments: tuple[object, ...]) -> tuple[object, ...]:
    device_type = next(head.parameters()).device.type
    scope = torch.autocast(device_type, enabled=False)
    # Kept here, because the two hooks of a head share no local variable.
    _scopes.entered.append(scope)
    scope.__enter__()
    return in_float32(arguments)


def _leave_float32(_head: nn.Module, _arguments: tuple[object, ...], _output: object) -> None:
    _scopes.entered.pop().__exit__(None, None, None)


def in_float32(value: T) -> T:
    """Convert floating-point tensors to float32, also inside tuples.

    Args:
        value: a tensor, ``Features``, ``Context``, or a tuple of them; anything else is returned
            unchanged.

    Returns:
        The same structure. Integer and boolean tensors are not converted.
    """
    converted: object = value
    match value:
        case Tensor():
            if value.is_floating_point():
                converted = value.float()
        # Before plain tuples: a named tuple takes its fields as separate arguments.
        case Features() | Context():
            converted = type(value)._make(map(in_float32, value))
        case tuple():  # the features of actor and critic, or the arguments of a head
            converted = tuple(map(in_float32, value))
    return cast(T, converted)
