"""What the tests of the networks share."""

import sys
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for the helper modules beside this file


@pytest.fixture
def as_users_run_it() -> Iterator[None]:
    """Without the shape checks of the tests, which would speak before our own messages do."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
