"""Fixtures for the tests of the networks."""

import sys
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # helper modules are in this folder


@pytest.fixture
def as_users_run_it() -> Iterator[None]:
    """Switch off the shape checks of the tests, which would raise before our own errors do."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
