"""Parts that all engines share: threads, division of cores, and exceptions as text."""

import pickle

import pytest

from mirl.agents.jobs.engine import CPUS, THREADS, Outcome, call_safely, divide, thread_variables
from mirl.configs.errors import ConfigError, ContractError, RunError


class TwoArgumentsError(Exception):
    """Exception that cannot be unpickled."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConfigError("bad"), ConfigError("bad")),
        (ContractError("bad"), ConfigError("bad")),
        (RunError("broke"), RunError("broke")),
        (TwoArgumentsError("a", "b"), RunError("TwoArgumentsError: a b")),
        (SystemExit(3), RunError("SystemExit: 3")),
    ],
)
def test_exceptions_arrive_as_text(error: BaseException, expected: Exception) -> None:
    def fail(_: int) -> None:
        raise error

    outcome = pickle.loads(pickle.dumps(call_safely(fail, 1)))
    found = outcome.unwrap()
    assert type(found) is type(expected)
    assert str(found) == str(expected)


def test_result_arrives() -> None:
    assert call_safely(lambda item: item + 1, 1) == Outcome(2)
    assert Outcome(2).unwrap() == 2


@pytest.mark.parametrize(
    ("jobs", "n_runs", "expected"),
    [(None, 20, (8, 1)), (2, 20, (2, 4)), (None, 3, (3, 2)), (20, 40, (20, 1)), (None, 0, (1, 8))],
)
def test_runs_divide_the_cores(jobs: int | None, n_runs: int, expected: tuple[int, int]) -> None:
    assert divide(8, jobs, n_runs) == expected


@pytest.mark.parametrize(("limit", "threads"), [("", "4"), ("1", "1"), ("9", "4"), ("4,2", "4")])
def test_user_limits_the_threads(monkeypatch: pytest.MonkeyPatch, limit: str, threads: str) -> None:
    monkeypatch.setenv(THREADS, limit)
    assert thread_variables(4) == {THREADS: threads, CPUS: "4"}
