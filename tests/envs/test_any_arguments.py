"""Whatever a vectorized environment is made of: it steps, or says what is wrong in the documented error."""

from contextlib import closing, suppress
from typing import Any

import numpy as np
import toy_envs  # noqa: F401  (registers its ids)
from hypothesis import given, settings
from hypothesis import strategies as st

from mirl.configs.compose import validate
from mirl.configs.errors import ConfigError
from mirl.configs.tasks import SuiteConfig
from mirl.envs import SuiteVecEnv, make_vec_env

IDS = st.sampled_from(
    [
        "MiniGrid-Empty-5x5-v0",
        "BabyAI-GoToObj-v0",
        "CartPole-v1",
        "ToyCounter-v0",
        "ToyText-v0",
        "ToyLazy-v0",
        "Nope-v0",
        "",
    ]
)
COMMON: dict[str, st.SearchStrategy[Any]] = {
    "backend": st.sampled_from(["auto", "gymnasium", "envpool", "envpol", None]),
    "seed": st.sampled_from([0, 7, 2**31 - 1, 2**40, -1]),
    "split": st.sampled_from(["train", "validation", "test", "tset"]),
}
MORE: dict[str, st.SearchStrategy[Any]] = {
    "sampling": st.sampled_from(
        ["fixed", "uniform", "lowest_success", "learning_progress", "slot"]
    ),
    "workers": st.sampled_from([None, 0, -1]),
    "part": st.sampled_from(["trained", "held_out", "other"]),
    "max_restarts": st.sampled_from([0, 3, -1]),
    "timeout": st.sampled_from([300.0, 0.0, -1.0]),
}


def steps(env: SuiteVecEnv) -> None:
    with closing(env):
        obs = env.reset()
        assert {len(values) for values in obs.values()} == {env.num_envs}
        _, rewards, _, _ = env.step(
            np.zeros((env.num_envs, *(env.action_space.shape or ())), np.int64)
        )
        assert np.isfinite(rewards).all()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    IDS | st.lists(IDS, max_size=3), st.integers(-1, 4), st.fixed_dictionaries({}, optional=COMMON)
)
def test_make_vec_env_steps_or_gives_one_error(
    env: Any, n_envs: int, arguments: dict[str, Any]
) -> None:
    with suppress(ConfigError):
        steps(make_vec_env(env, n_envs, **arguments))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(IDS, min_size=1, max_size=2, unique=True),
    st.fixed_dictionaries({}, optional={**COMMON, **MORE}),
)
def test_a_suite_steps_or_gives_one_error(ids: list[str], arguments: dict[str, Any]) -> None:
    with suppress(ConfigError):
        suite = validate(
            SuiteConfig, {"name": "any", "tasks": [{"name": each, "env_id": each} for each in ids]}
        )
        steps(SuiteVecEnv(suite, 2, **arguments))
