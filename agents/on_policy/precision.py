"""bfloat16 where it is faster: in the trunk of a policy; its heads, its losses and its weights stay in float32."""

import threading
import time
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, get_args

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from mirl.configs.errors import ConfigError, nearest
from mirl.configs.schema import PrecisionName

MIN_SPEEDUP = 1.3
"""bfloat16 must be so many times as fast as float32: a little speed is not worth its rounding."""


def resolve_precision(name: PrecisionName, device: torch.device) -> PrecisionName:
    """``auto`` is bf16 where matrix products are clearly faster in it, found out once by trying.

    :raises ConfigError: when there is no such precision.
    """
    if name not in get_args(PrecisionName):
        raise ConfigError(f"unknown precision '{name}'." + nearest(name, get_args(PrecisionName)))
    return ("bf16" if _bf16_is_faster(device.type) else "fp32") if name == "auto" else name


@cache
def _bf16_is_faster(device_type: str) -> bool:
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    seconds = {dtype: _time_matmul(dtype) for dtype in (torch.float32, torch.bfloat16)}
    return seconds[torch.bfloat16] * MIN_SPEEDUP < seconds[torch.float32]


def _time_matmul(dtype: torch.dtype) -> float:
    matrix = torch.ones(512, 512, dtype=dtype)
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        torch.mm(matrix, matrix)
        best = min(best, time.perf_counter() - start)
    return best


def autocast(precision: PrecisionName, device: torch.device) -> AbstractContextManager[Any]:
    """Where a policy computes; call ``heads_in_float32`` on it once before."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def heads_in_float32(policy: ActorCriticPolicy) -> None:
    """The layers that give the action distribution and the value stay in float32 under ``autocast``.

    PPO compares probabilities: a logit of 8 in bfloat16 is off by up to 1/64, a noise in the ratio that nothing
    averages.
    """
    for head in (policy.action_net, policy.value_net):
        head.register_forward_pre_hook(_enter_float32)
        head.register_forward_hook(_leave_float32, always_call=True)


class _Scopes(threading.local):
    """The heads that a thread is inside of."""

    def __init__(self) -> None:
        self.entered: list[AbstractContextManager[Any]] = []


_scopes = _Scopes()


def _enter_float32(_head: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    device = next(_head.parameters()).device.type
    _scopes.entered.append(torch.autocast(device, enabled=False))
    _scopes.entered[-1].__enter__()
    return tuple(in_float32(argument) for argument in arguments)


def _leave_float32(_head: nn.Module, _arguments: Any, _result: Any) -> None:
    _scopes.entered.pop().__exit__(None, None, None)


def in_float32(value: Any) -> Any:
    """Floating tensors, alone or in tuples, in float32; all else, such as a task's number, as it is."""
    match value:
        case Tensor() if value.is_floating_point():
            return value.float()
        case tuple() if hasattr(value, "_fields"):  # Features and Context are named tuples
            return type(value)(*map(in_float32, value))
        case tuple():  # of an actor and a critic
            return tuple(map(in_float32, value))
        case _:
            return value
