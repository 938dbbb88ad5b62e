"""Choice of networks and keys by the options and the observation space."""

from mirl.policies.routing.contexts import advice_auto, asked_keys, resolve_context
from mirl.policies.routing.description import describe
from mirl.policies.routing.encoders import has_feature_map, resolve_encoder
from mirl.policies.routing.fusions import resolve_fusion
from mirl.policies.routing.inputs import input_keys, legacy_input_keys
from mirl.policies.routing.network import (
    check_resolvable,
    check_supported,
    choose_network,
    resolve_network,
    subspace,
)

__all__ = [
    "advice_auto",
    "asked_keys",
    "check_resolvable",
    "check_supported",
    "choose_network",
    "describe",
    "has_feature_map",
    "input_keys",
    "legacy_input_keys",
    "resolve_context",
    "resolve_encoder",
    "resolve_fusion",
    "resolve_network",
    "subspace",
]
