"""Options of parts that the observation space chooses."""

import pytest

from mirl.configs.errors import ConfigError
from mirl.configs.networks import GridEncoderConfig, MissionContextConfig
from mirl.policies.routing.options import accepts, unused_option, validated, with_options


def test_accepted_option_is_known_and_valid() -> None:
    """An option is accepted if the config has it and the value is valid."""
    config = MissionContextConfig()
    assert accepts(config, "dim", 32)
    assert not accepts(config, "dim", -1)
    assert not accepts(config, "hidden", (3,))
    # checked together with the number of heads, when both are known
    assert accepts(config, "dim", 33)


def test_options_replace_values() -> None:
    """Options replace the values of a config, and an unknown one is an error."""
    assert with_options(GridEncoderConfig(), {}, "encoder") == GridEncoderConfig()
    changed = with_options(GridEncoderConfig(), {"channels": 8}, "encoder")
    assert changed == GridEncoderConfig(channels=8)
    with pytest.raises(ConfigError, match=r"encoder\.hidden is not an option .* grid; remove"):
        with_options(GridEncoderConfig(), {"hidden": ()}, "encoder")


def test_invalid_value_names_the_group() -> None:
    """An invalid value raises a ConfigError that names group and option."""
    assert validated(GridEncoderConfig, {"channels": 8}, "encoder").channels == 8
    with pytest.raises(ConfigError, match=r"^encoder\.channels"):
        validated(GridEncoderConfig, {"channels": -1}, "encoder")
    assert str(unused_option("context", "heads", ["goal"])).endswith("remove context.heads")
