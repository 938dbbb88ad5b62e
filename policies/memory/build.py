"""Builder of recurrent cores from their configs."""

from mirl.configs.networks import RecurrentCoreConfig
from mirl.policies.memory.core import Core
from mirl.policies.memory.fast_weights import FastWeights
from mirl.policies.memory.lstm import Gru, Lstm
from mirl.policies.memory.mi_lstm import MiLstm
from mirl.policies.memory.window_attention import WindowAttention

BUILT_IN = (Lstm, Gru, MiLstm, FastWeights, WindowAttention)
"""Built-in cores. Importing their modules registers their configs."""


def build_core(config: RecurrentCoreConfig, features_dim: int, context_dim: int) -> Core:
    """Build the recurrent core that ``config`` belongs to.

    Args:
        config: options of the core, built-in or custom.
        features_dim: X, the size of the features.
        context_dim: Z, the size of the context.

    Returns:
        The core with its initial weights.

    Raises:
        ConfigError: if no core has this config, if its constructor does not fit, or if a single
            feature is to be normalized.
    """
    core_class = Core.class_of(config)
    return core_class.construct(features_dim=features_dim, context_dim=context_dim, config=config)
