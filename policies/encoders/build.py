"""Construction of the encoder that a config belongs to."""

from gymnasium import spaces

from mirl.configs.networks import (
    BaseEncoderConfig,
)
from mirl.policies.encoders.encoder import Encoder


def build_encoder(config: BaseEncoderConfig, space: spaces.Dict) -> Encoder:
    """Build the observation encoder that ``config`` belongs to.

    Args:
        config: kind and options of the encoder.
        space: the space of the inputs, from which all sizes are read.

    Returns:
        The encoder, newly initialized.

    Raises:
        ConfigError: if the encoder does not fit the space.
    """
    return Encoder.class_of(config).construct(space=space, config=config)
