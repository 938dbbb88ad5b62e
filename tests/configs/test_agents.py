"""Sizes of rollouts, sequences and minibatches that fit each other."""

import pytest

from mirl.configs.agents import PPOConfig, check_minibatches, check_sequences
from mirl.configs.errors import ConfigError


def test_rollout_size_is_derived() -> None:
    assert PPOConfig(n_envs=6, n_steps=5, batch_size=10).rollout_size == 30


@pytest.mark.parametrize(
    ("batch_size", "suggested"),
    [(20, 10), (7, 30)],  # the largest common divisor; the rollout, if that is 1
)
def test_batch_size_error_suggests_divisor(batch_size: int, suggested: int) -> None:
    with pytest.raises(ValueError, match=rf"agent\.batch_size={suggested}\b"):
        PPOConfig(n_envs=6, n_steps=5, batch_size=batch_size)
    assert PPOConfig(n_envs=6, n_steps=5, batch_size=suggested).rollout_size % suggested == 0


@pytest.mark.parametrize(
    ("n_envs", "n_steps", "batch_size"),
    [
        (128, 32, 512),  # the default
        (8, 32, 256),  # the whole rollout
        (128, 50, 400),
        (1, 1026, 342),
    ],
)
def test_default_batch_fits_rollout(n_envs: int, n_steps: int, batch_size: int) -> None:
    config = PPOConfig(n_envs=n_envs, n_steps=n_steps)
    assert config.batch_size == batch_size
    assert config.model_dump()["batch_size"] == batch_size
    assert "batch_size" not in config.model_fields_set  # so that a resumed run keeps its own


def test_rollout_without_divisor_is_refused() -> None:
    with pytest.raises(ValueError, match=r"use for example agent\.batch_size=1033"):
        PPOConfig(n_envs=1, n_steps=1033)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_envs": 1, "n_steps": 1}, "n_envs × n_steps of at least 2, got 1"),
        (
            {"normalize_advantage": False, "advantages_per_task": True},
            "advantages_per_task needs normalize_advantage=true",
        ),
    ],
)
def test_advantages_must_be_normalizable(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PPOConfig.model_validate(options)


@pytest.mark.parametrize(
    ("n_steps", "sequence_length", "burn_in"), [(32, 0, 0), (32, 32, 0), (32, 8, 8), (6, 3, 1)]
)
def test_sequences_that_fit_pass(n_steps: int, sequence_length: int, burn_in: int) -> None:
    check_sequences(n_steps, sequence_length, burn_in)


@pytest.mark.parametrize("sequence_length", [0, 32])
def test_burn_in_needs_preceding_sequence(sequence_length: int) -> None:
    """With one sequence per rollout there is none before it to recompute the state from."""
    with pytest.raises(ConfigError, match="at most 0, got 1; a sequence_length below n_steps=32"):
        check_sequences(32, sequence_length, 1)


@pytest.mark.parametrize(
    ("batch_size", "length", "n_steps", "n_envs", "suggested"),
    [
        (1024, 48, 48, 256, "batch_size=768 or sequence_length=16"),
        (25, 32, 32, 25, "batch_size=32"),  # no shorter sequence divides both
        (100, 8, 32, 4, "batch_size=64 or sequence_length=4"),
    ],
)
def test_minibatch_error_suggests_whole_sequences(
    batch_size: int, length: int, n_steps: int, n_envs: int, suggested: str
) -> None:
    with pytest.raises(ConfigError, match=f"got {batch_size}; use {suggested}$"):
        check_minibatches(batch_size, length, n_steps, n_envs)


@pytest.mark.parametrize(
    ("total_timesteps", "n_tasks", "n_envs", "batch_size"),
    [
        (1_000_000, 1, 128, 512),
        (65_536, 1, 128, 512),
        (65_535, 1, 64, 512),
        (20_000, 1, 32, 256),
        (20_000, 50, 64, 512),  # every task needs an environment
        (1, 1, 16, 256),
    ],
)
def test_short_run_has_smaller_rollout(
    total_timesteps: int, n_tasks: int, n_envs: int, batch_size: int
) -> None:
    fitted = PPOConfig().fit_rollout(total_timesteps, n_tasks)
    assert (fitted.n_envs, fitted.n_steps, fitted.batch_size) == (n_envs, 32, batch_size)
    PPOConfig.model_validate(fitted.model_dump())


@pytest.mark.parametrize("given", [{"n_envs": 256}, {"n_steps": 64}, {"batch_size": 256}])
def test_given_rollout_stays(given: dict[str, int]) -> None:
    config = PPOConfig.model_validate(given)
    assert config.fit_rollout(1_000, 1) == config


@pytest.mark.parametrize("given", [{}, {"n_envs": 256}, {"n_steps": 32}, {"n_epochs": 3}])
def test_run_keeps_its_rollout(given: dict[str, int]) -> None:
    former = PPOConfig(n_envs=256, batch_size=1024)
    kept = PPOConfig.model_validate(given).with_rollout_of(former)
    assert kept == former.model_copy(update=given)


def test_other_rollout_is_not_mixed() -> None:
    """Options that are given for another rollout do not get the rest of the stored one."""
    given = PPOConfig(n_envs=8, batch_size=64)
    assert given.with_rollout_of(PPOConfig(n_envs=256, batch_size=1024)) is given
