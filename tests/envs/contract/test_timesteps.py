"""Tests of what ``reset`` and ``step`` may return."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mirl.configs.errors import ContractError
from mirl.envs.contract.timesteps import check_reset_result, check_step_result

NUMBERS = st.one_of(
    st.booleans(),
    st.integers(-(2**30), 2**30),
    st.floats(),
    arrays.arrays(
        st.sampled_from([np.float32, np.float64, np.int32, np.bool_]),
        st.sampled_from([(), (1,), (1, 1)]),
    ),
)


@given(NUMBERS)
def test_single_numbers_are_rewards(reward: Any) -> None:
    """Numbers, numpy scalars and arrays of one number become a float."""
    converted = check_step_result((0, reward, False, False, {})).reward
    assert type(converted) is float
    np.testing.assert_equal(converted, float(np.asarray(reward).item()))
    if isinstance(reward, np.ndarray):
        assert check_step_result((0, reward.reshape(-1)[0], False, False, {})).reward is not None


@pytest.mark.parametrize("reward", [None, "1", [], np.zeros(2), 1j, {}, np.zeros(0), [[1], [2, 3]]])
def test_other_rewards_are_refused(reward: Any) -> None:
    with pytest.raises(ContractError, match=r"reward: expected one number, got .*; return a float"):
        check_step_result((0, reward, False, False, {}))


@pytest.mark.parametrize("flag", [True, np.True_, np.array([True]), np.array(True), 1])
def test_single_flags_are_taken(flag: Any) -> None:
    timestep = check_step_result((0, 0.0, flag, flag, {}))
    assert timestep.terminated is True
    assert timestep.truncated is True


@pytest.mark.parametrize("flag", [None, "yes", 2, np.array([True, False]), {}, 0.5])
@pytest.mark.parametrize("name", ["terminated", "truncated"])
def test_other_flags_are_refused(name: str, flag: Any) -> None:
    flags = {"terminated": False, "truncated": False, name: flag}
    with pytest.raises(ContractError, match=rf"{name}: expected a bool, got .*return bool"):
        check_step_result((0, 0.0, *flags.values(), {}))


@pytest.mark.parametrize("info", [None, [], "info", 0])
def test_infos_are_dicts(info: Any) -> None:
    with pytest.raises(ContractError, match=r"info of step\(\): expected a dict, got"):
        check_step_result((0, 0.0, False, False, info))
    with pytest.raises(ContractError, match=r"info of reset\(\): expected a dict, got"):
        check_reset_result((0, info))


@pytest.mark.parametrize("result", [None, 0, (0, 0.0, False, {}), [0, 0.0, False, False, {}]])
def test_step_gives_five_values(result: Any) -> None:
    with pytest.raises(ContractError, match=r"step\(\): expected a tuple \(observation, reward"):
        check_step_result(result)


@pytest.mark.parametrize("result", [None, np.zeros(2), (0,), (0, {}, {})])
def test_reset_gives_two_values(result: Any) -> None:
    with pytest.raises(ContractError, match=r"reset\(\): expected a tuple \(observation, info\)"):
        check_reset_result(result)
