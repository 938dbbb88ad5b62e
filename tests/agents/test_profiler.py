"""The profiler splits the time of an iteration and warns if the network mostly waits."""

import warnings

import pytest
from stable_baselines3.common.logger import Logger

from mirl.agents.profiler import PATIENCE, WARM_UP, IterationProfiler


class Clock:
    """A clock that only moves when the test moves it."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("mirl.agents.profiler.time.perf_counter", clock)
    return clock


def iterate(
    profiler: IterationProfiler, clock: Clock, *, environment: float, forward: float, update: float
) -> Logger:
    """Run an iteration of 128 timesteps and ten seconds, after a callback that took long."""
    logger = Logger(None, [])
    clock.now += 1000
    profiler.start()
    for section, seconds in (
        ("environment", environment),
        ("forward", forward),
        ("update", update),
    ) * 2:
        with profiler.section(section):  # type: ignore[arg-type]
            clock.now += seconds / 2
    clock.now += 10 - environment - forward - update
    profiler.record(logger, 128)
    return logger


def test_shares_add_up_to_iteration(clock: Clock) -> None:
    logged = iterate(IterationProfiler(), clock, environment=3, forward=2, update=4).name_to_value
    expected = {"environment": 30, "forward": 20, "update": 40, "rest": 10}
    assert logged.pop("speed/steps_per_second") == pytest.approx(12.8)
    assert logged == pytest.approx(
        {f"speed/{part}_percent": share for part, share in expected.items()}
    )
    assert sum(logged.values()) == pytest.approx(100)


def test_idle_network_warns_once(clock: Clock) -> None:
    """An idle network is reported once, and not before it can be judged."""
    profiler, waiting = (
        IterationProfiler(),
        {"environment": 3.5, "forward": 2.0, "update": 2.0},
    )  # and 2.5 of the rest
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(WARM_UP + int(PATIENCE / 10) - 1):
            iterate(profiler, clock, **waiting)
        with pytest.warns(
            UserWarning, match=r"idle 60 % of the time; 35 % are spent on stepping environments"
        ):
            iterate(profiler, clock, **waiting)
        iterate(profiler, clock, **waiting)


def test_half_busy_network_is_silent(clock: Clock) -> None:
    """A network that works half of the time causes no warning."""
    profiler = IterationProfiler()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(WARM_UP + int(PATIENCE / 5)):
            iterate(profiler, clock, environment=5, forward=2, update=3)


def test_single_idle_iteration_is_silent(clock: Clock) -> None:
    """One idle iteration among busy ones causes no warning."""
    profiler = IterationProfiler()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for n in range(WARM_UP + int(PATIENCE / 5)):
            waits = n % 3 == 0
            iterate(
                profiler, clock, environment=8 if waits else 2, forward=1, update=1 if waits else 7
            )
