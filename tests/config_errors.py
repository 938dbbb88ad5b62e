"""Error messages of invalid command lines."""

import pytest

from mirl.configs.compose import compose_train
from mirl.configs.errors import ConfigError


def error_message(*argv: str) -> str:
    """Return the message of the error that ``train.py`` reports for these arguments."""
    with pytest.raises(ConfigError) as caught:
        compose_train(argv)
    message = str(caught.value)
    assert "Traceback" not in message
    return message
