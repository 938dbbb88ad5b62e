"""Description of the inputs (seen) and the context (asked) of a network."""

from collections.abc import Sequence
from typing import Any

from gymnasium import spaces

from mirl.configs.keys import (
    ACTION_MASK_KEY,
)
from mirl.configs.networks import (
    AutoContextConfig,
    CombinedContextConfig,
    CombinedEncoderConfig,
    NetworkConfig,
)
from mirl.policies.encoders import kind_of


def describe(network: NetworkConfig, space: spaces.Dict) -> str:
    """Return one line that names the inputs (seen) and the context (asked), key by key.

    Args:
        network: a resolved configuration.
        space: the space of the observations.
    """
    assert not isinstance(network.context, AutoContextConfig)
    keys = network.observation_keys or ()
    seen: list[str] = []
    for key in keys:
        encoder = network.encoder
        if isinstance(encoder, CombinedEncoderConfig):
            kind = encoder.parts[key].kind
        elif kind_of(space[key]) == "vector":
            kind = "vector"
        else:
            kind = encoder.kind
        seen.append(f"{key} ({kind})")
    context = network.context
    parts: Sequence[Any] = [context]
    if isinstance(context, CombinedContextConfig):
        parts = context.parts
    asked = [f"{', '.join(part.keys)} ({part.kind})" for part in parts]
    used = {*keys, *context.keys, ACTION_MASK_KEY}
    # the index of a single task carries no information
    unused = [key for key in space if key not in used and not _is_constant(space[key])]
    lines = f"Seen: {', '.join(seen)}. Asked: {', '.join(asked)}."
    if ACTION_MASK_KEY in space.spaces:
        lines += f" Mask: {ACTION_MASK_KEY}."
    if unused:
        lines += f" Not used: {', '.join(unused)}."
    return lines


def _is_constant(space: spaces.Space[object]) -> bool:
    return isinstance(space, spaces.Discrete) and space.n == 1
