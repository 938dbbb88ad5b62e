"""Choice of the encoder."""

from typing import Any

import pytest
from routing_spaces import dict_of

from mirl.configs.networks import (
    CombinedEncoderConfig,
    GridEncoderConfig,
    ImageEncoderConfig,
    VectorEncoderConfig,
    network_config,
)
from mirl.policies.routing import (
    resolve_network,
)


@pytest.mark.parametrize(
    ("keys", "encoder"),
    [
        (("observation", "task"), VectorEncoderConfig()),
        (("grid", "direction", "task"), GridEncoderConfig()),
        (("pixels", "task"), ImageEncoderConfig()),
        (
            ("pixels", "grid", "task"),
            CombinedEncoderConfig(
                parts={"grid": GridEncoderConfig(), "pixels": ImageEncoderConfig()}
            ),
        ),
    ],
    ids=["vector", "grid", "image", "several"],
)
def test_auto_encoder_fits_the_inputs(keys: tuple[str, ...], encoder: Any) -> None:
    """The automatic encoder fits the spaces of the inputs."""
    assert resolve_network(network_config(), dict_of(*keys)).encoder == encoder


def test_auto_encoder_uses_observation_keys() -> None:
    """Only the keys in ``observation_keys`` decide about the encoder."""
    network = network_config(observation_keys=("direction",))
    resolved = resolve_network(network, dict_of("grid", "direction", "task"))
    assert resolved.encoder == VectorEncoderConfig()
