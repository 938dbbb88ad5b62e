"""A session with an untrained agent on GoToDoor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from mirl.configs.schema import TrainConfig

if TYPE_CHECKING:  # at run time the networks must not be imported before pytest is configured
    from mirl.agents import A2C, PPO
    from mirl.agents.watch.session import Session


@pytest.fixture
def open_session(
    tiny: Callable[..., TrainConfig], make_agent: Callable[[TrainConfig], PPO | A2C]
) -> Iterator[Callable[..., Session]]:
    """``open_session(*words, mission="")``: an untrained agent in its first task."""
    from mirl.agents.watch.session import Session

    opened: list[Session] = []

    def build(*words: str, seed: int = 0, mission: str = "") -> Session:
        config = tiny(*words)
        policy = make_agent(config).policy
        session = Session(policy, config.task, 0, seed=seed, mission=mission)
        opened.append(session)
        return session

    yield build
    for session in opened:
        session.__exit__(None, None, None)
