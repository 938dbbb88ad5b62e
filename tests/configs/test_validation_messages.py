"""Messages about invalid values: what was expected, what was given, and the nearest name."""

from typing import Annotated, Any

import pytest
from config_errors import error_message
from pydantic.fields import FieldInfo

from mirl.configs.compose import compose_train, validate
from mirl.configs.errors import ConfigError
from mirl.configs.networks import BaseFusionConfig, FilmConfig, GateConfig
from mirl.configs.parts import BuiltInOrOwn, PartConfig
from mirl.configs.schema import TrainConfig
from mirl.configs.tasks import SuiteConfig, TaskConfig
from mirl.configs.validation_messages import MAX_SHOWN_CHARACTERS, config_classes


@pytest.mark.parametrize(
    ("annotation", "classes"),
    [
        (FilmConfig, [FilmConfig]),
        (FilmConfig | GateConfig, [FilmConfig, GateConfig]),
        (tuple[TaskConfig, ...], [TaskConfig]),
        (
            Annotated[PartConfig, BuiltInOrOwn(FilmConfig | GateConfig, BaseFusionConfig)],
            [FilmConfig, GateConfig],
        ),
        (int, []),
        (dict[str, int], []),
    ],
)
def test_config_classes_of_a_field(annotation: Any, classes: list[type]) -> None:
    assert config_classes(FieldInfo.from_annotation(annotation)) == classes
    assert config_classes(TrainConfig.model_fields["task"]) == [SuiteConfig]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["agent.n_envs=many"], "agent.n_envs: input should be a valid integer"),
        (["agent.n_envs=2.5"], "got 2.5"),
        (["agent.n_envs=0"], "agent.n_envs: input should be greater than 0, got 0"),
        (["agent.learning_rate=nan"], "agent.learning_rate: input should be a finite number"),
        (["agent.gamma=1.5"], "agent.gamma: input should be less than or equal to 1, got 1.5"),
        (["progress=perhaps"], "progress: input should be a valid boolean"),
        (["seed=-1"], "seed: input should be greater than or equal to 0, got -1"),
        (["seed=4294967296"], "seed: input should be less than 2147483648"),
        (["sites=3"], "sites.0: expected 'map', 'vector' or 'heads', got 3"),
        (["fusion=low_rank", "fusion.rank=[1]"], "fusion.rank: input should be a valid integer"),
        (["evaluation=3"], "evaluation: input should be a valid dictionary"),
    ],
)
def test_wrong_type_shows_given_value(argv: list[str], message: str) -> None:
    """A value of a wrong type, or out of range, is reported with what was expected."""
    assert message in error_message(*argv)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["fusion=film", "fusion.rank=8"], "unknown option 'fusion.rank' of film."),
        (["agent=a2c", "agent.clip_range=0.1"], "unknown option 'agent.clip_range' of a2c."),
        (
            ["context=task_id", "task=doors", "context.heads=2"],
            "unknown option 'context.heads' of task_id.",
        ),
    ],
)
def test_option_of_other_preset_is_rejected(argv: list[str], message: str) -> None:
    assert message in error_message(*argv)


def test_error_inside_task_is_one_line() -> None:
    (line,) = error_message("task.tasks=[{name: a, env_id: X-v0, success: rewrad}]").splitlines()
    assert line == (
        "task 'a': success: expected 'auto', 'reward', 'info', 'any_step' or 'return>=X' with "
        "a number X, got 'rewrad'. Did you mean 'reward'?"
    )


def test_missing_kind_is_named() -> None:
    values = compose_train([]).model_dump()
    with pytest.raises(ConfigError, match=r"^fusion\.kind=… is required$"):
        validate(TrainConfig, {**values, "fusion": {"rank": 3}})


def test_long_value_is_shortened() -> None:
    message = error_message(f"agent.n_envs={'x' * 1000}")
    assert message.endswith("…")
    assert len(message) < MAX_SHOWN_CHARACTERS + 100
