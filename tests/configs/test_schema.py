"""The config classes by themselves: frozen, closed, documented."""

from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel, ValidationError

from mirl.configs.agents import A2CConfig, AgentConfig, PPOConfig
from mirl.configs.compose import compose_train, models_of
from mirl.configs.errors import ConfigError, nearest
from mirl.configs.networks import (
    BilinearConfig,
    ContextConfig,
    EncoderConfig,
    FilmConfig,
    FusionConfig,
    choose,
)
from mirl.configs.schema import EvalConfig, TrainConfig
from mirl.configs.tasks import SuiteConfig, TaskConfig


def all_models() -> list[type[BaseModel]]:
    found: list[type[BaseModel]] = []
    waiting: list[type[BaseModel]] = [TrainConfig, EvalConfig]
    while waiting:
        model = waiting.pop()
        if model not in found:
            found.append(model)
            waiting += [
                inner
                for field in model.model_fields.values()
                for inner in models_of(field.annotation)
            ]
    return found


def test_the_walk_over_the_schema_meets_every_member_of_every_union() -> None:
    members = {
        m
        for union in (FusionConfig, ContextConfig, EncoderConfig, AgentConfig)
        for m in get_args(union)
    }
    assert members | {SuiteConfig, TaskConfig} <= {*all_models()}


@pytest.mark.parametrize("model", all_models())
def test_every_config_class_is_frozen_and_closed(model: type[BaseModel]) -> None:
    assert model.model_config["frozen"]
    assert model.model_config["extra"] == "forbid"


@pytest.mark.parametrize("model", all_models())
def test_every_field_is_documented(model: type[BaseModel]) -> None:
    for name, field in model.model_fields.items():
        assert name == "kind" or field.description, name


def test_a_built_config_cannot_be_changed() -> None:
    config = compose_train([])
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 1
    with pytest.raises(ValidationError, match="frozen"):
        config.agent.n_envs = 1


def test_the_rollout_size_is_derived() -> None:
    assert PPOConfig(n_envs=6, n_steps=5, batch_size=10).rollout_size == 30


def test_a_given_name_wins_over_the_derived_one(tmp_path: Path) -> None:
    config = compose_train(["name=mine", f"runs_dir={tmp_path}"])
    assert config.run_dir == tmp_path / "mine"


def test_choose_takes_names_and_configs() -> None:
    film = FilmConfig()
    assert choose("bilinear", FusionConfig) == BilinearConfig()
    assert choose(film, FusionConfig) is film
    assert choose("a2c", AgentConfig) == A2CConfig()


def test_choose_names_the_nearest_kind() -> None:
    with pytest.raises(ConfigError, match=r"got 'biliner'\. Did you mean 'bilinear'"):
        choose("biliner", FusionConfig)


def test_choose_refuses_a_config_of_another_family() -> None:
    with pytest.raises(
        ConfigError, match="expected one of ppo, a2c, sac, td3, tqc, dqn, got FilmConfig"
    ):
        choose(FilmConfig(), AgentConfig)


@pytest.mark.parametrize(
    ("name", "valid", "hint"),
    [
        ("flim", ["film", "gate"], " Did you mean 'film'?"),
        ("xyz", ["film", "gate"], " Valid: film, gate."),
        ("xyz", [], ""),
        ("xyz", [f"option{i}" for i in range(50)], ""),
    ],
)
def test_the_hint_is_the_nearest_name_or_a_short_list(
    name: str, valid: list[str], hint: str
) -> None:
    assert nearest(name, valid) == hint
