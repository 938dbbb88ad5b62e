"""Properties that all config classes share: frozen, closed to unknown fields, documented."""

from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from mirl.configs.agents import AgentConfig
from mirl.configs.compose import compose_train
from mirl.configs.errors import ConfigError
from mirl.configs.networks import ContextConfig, EncoderConfig, FusionConfig, LowRankConfig
from mirl.configs.schema import EvalConfig, TrainConfig
from mirl.configs.tasks import SuiteConfig, TaskConfig
from mirl.configs.validation_messages import config_classes


def all_models() -> list[type[BaseModel]]:
    """Return every config class that can be part of a command's configuration."""
    found: list[type[BaseModel]] = []
    waiting: list[type[BaseModel]] = [TrainConfig, EvalConfig]
    while waiting:
        model = waiting.pop()
        if model in found:
            continue
        found.append(model)
        for field in model.model_fields.values():
            waiting += config_classes(field)
    return found


def test_walk_finds_all_union_members() -> None:
    """The tests below cover every member of every union."""
    members: set[type[BaseModel]] = set()
    for union in (FusionConfig, ContextConfig, EncoderConfig, AgentConfig):
        members |= set(get_args(union))
    assert members | {SuiteConfig, TaskConfig} <= set(all_models())


@pytest.mark.parametrize("model", all_models())
def test_class_is_frozen_and_closed(model: type[BaseModel]) -> None:
    assert model.model_config["frozen"]
    assert model.model_config["extra"] == "forbid"


@pytest.mark.parametrize("model", all_models())
def test_field_is_documented(model: type[BaseModel]) -> None:
    for name, field in model.model_fields.items():
        assert name == "kind" or field.description, name


def test_built_config_cannot_be_changed() -> None:
    config = compose_train([])
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 1
    with pytest.raises(ValidationError, match="frozen"):
        config.agent.n_envs = 1


def test_single_name_needs_no_brackets() -> None:
    assert compose_train(["sites=map"]).sites == ("map",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rnk": 8}, "LowRankConfig: unknown option 'rnk'. Did you mean 'rank'?"),
        ({"rank": "x"}, "LowRankConfig: rank: input should be a valid integer"),
        ({"rank": 0}, "LowRankConfig: rank: input should be greater than"),
    ],
)
def test_constructor_error_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        LowRankConfig(**options)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)
    assert isinstance(raised.value, ValueError)
    assert isinstance(raised.value.__cause__, ValidationError)
