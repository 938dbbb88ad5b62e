"""``train.py`` for torchrun, with a rank that dies at chosen events.

The environment variable ``KILLS`` has one "rank:event" for each start by torchrun, separated by
commas. An event is a timestep, a collective or the flush of a file.
"""

import os
import signal
from collections.abc import Callable
from typing import Any

from mirl import train
from mirl.agents.runs import atomic_files, checkpoint
from mirl.agents.runs.ranks import Ranks
from mirl.envs import SuiteVecEnv


def count_events(fatal_event: int) -> None:
    """Let this process kill itself at an event."""
    events = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal events
            events += 1
            if events == fatal_event:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments)

        return call

    SuiteVecEnv.step_async = counted(SuiteVecEnv.step_async)  # type: ignore[method-assign]
    for name in ("sum_", "gather", "gather_objects"):
        setattr(Ranks, name, counted(getattr(Ranks, name)))
    for module in (atomic_files, checkpoint):
        module.flush = counted(atomic_files.flush)  # type: ignore[attr-defined]


def main() -> None:
    """Train, and die if this start and rank are chosen."""
    kills = [kill.split(":") for kill in os.environ["KILLS"].split(",")]
    start = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    if start < len(kills):
        rank, event = kills[start]
        if rank == os.environ["RANK"]:
            count_events(int(event))
    train.main()


if __name__ == "__main__":
    main()
