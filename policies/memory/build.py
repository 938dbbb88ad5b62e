"""Builder of recurrent cores from their configs."""

from typing import assert_never

from torch import nn

from mirl.configs.networks import (
    AttentionMemoryConfig,
    FastWeightsConfig,
    GruConfig,
    LstmConfig,
    MiLstmConfig,
    RecurrentConfig,
)
from mirl.policies.memory.core import Core
from mirl.policies.memory.fast_weights import FastWeights
from mirl.policies.memory.lstm import Recurrent
from mirl.policies.memory.mi_lstm import MiLstm
from mirl.policies.memory.window_attention import WindowAttention


def build_core(config: RecurrentConfig, features_dim: int, context_dim: int) -> Core:
    """Build the recurrent core that a config describes.

    Args:
        config: kind and options of the core.
        features_dim: X, the size of the features.
        context_dim: Z, the size of the context; used by ``mi_lstm`` only.

    Returns:
        The core with its initial weights.

    Raises:
        ConfigError: if there is a single feature and it is to be normalized.
    """
    match config:
        case LstmConfig():
            return Recurrent(nn.LSTM(features_dim, config.size), config)
        case GruConfig():
            return Recurrent(nn.GRU(features_dim, config.size), config)
        case MiLstmConfig():
            return MiLstm(features_dim, context_dim, config)
        case FastWeightsConfig():
            return FastWeights(features_dim, config)
        case AttentionMemoryConfig():
            return WindowAttention(features_dim, config)
        case _:
            assert_never(config)
