"""Choice of the encoder."""

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from routing_spaces import dict_of
from space_kinds import SEEN

from mirl.configs.errors import ConfigError
from mirl.configs.networks import (
    CombinedEncoderConfig,
    GridEncoderConfig,
    ImageEncoderConfig,
    VectorEncoderConfig,
    network_config,
)
from mirl.policies.encoders import build_encoder
from mirl.policies.routing import (
    resolve_encoder,
    resolve_network,
)


@pytest.mark.parametrize(
    ("keys", "encoder"),
    [
        (("observation", "task"), VectorEncoderConfig()),
        (("grid", "direction", "task"), GridEncoderConfig(attributes=8)),
        (("pixels", "task"), ImageEncoderConfig()),
        (
            ("pixels", "grid", "task"),
            CombinedEncoderConfig(
                parts={"grid": GridEncoderConfig(attributes=8), "pixels": ImageEncoderConfig()}
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


@pytest.mark.parametrize(
    ("seen", "channels", "attributes"),
    [
        ("codes", 32, 8),
        ("codes", 25, 8),
        ("codes", 24, 0),  # none would be left for the sum
        ("many_codes", 17, 8),
        ("flat_codes", 9, 8),
        ("flat_codes", 8, 0),
        ("planes", 64, 0),
        ("byte_planes", 64, 0),
        ("float_planes", 64, 0),
        ("multi_binary", 64, 0),
    ],
)
def test_attributes_follow_the_space(seen: str, channels: int, attributes: int) -> None:
    """Codes have 8 channels each where that leaves room; a number that is given is kept."""
    space = spaces.Dict(SEEN[seen])
    config = GridEncoderConfig(channels=channels)
    assert resolve_encoder(config, space) == config.model_copy(update={"attributes": attributes})
    for given in (0, 1):
        stated = config.model_copy(update={"attributes": given})
        assert resolve_encoder(stated, space) == stated


def test_every_grid_states_its_attributes() -> None:
    """Each part of a combined encoder has the attributes of its own space."""
    space = spaces.Dict(
        {
            "codes": SEEN["codes"]["image"],
            "planes": SEEN["planes"]["image"],
            "hashed": spaces.Box(0, np.array([26, 21, 19]).repeat(25).reshape(3, 5, 5), dtype=int),
        }
    )
    encoder = resolve_encoder(CombinedEncoderConfig(), space)
    assert isinstance(encoder, CombinedEncoderConfig)
    found = {key: part.model_dump()["attributes"] for key, part in encoder.parts.items()}
    assert found == {"codes": 8, "planes": 0, "hashed": 8}
    assert resolve_encoder(encoder, space) == encoder


def test_planes_refuse_given_attributes() -> None:
    with pytest.raises(ConfigError, match=r"encoder\.attributes needs cells of codes, got planes"):
        build_encoder(GridEncoderConfig(attributes=8), spaces.Dict(SEEN["planes"]))
