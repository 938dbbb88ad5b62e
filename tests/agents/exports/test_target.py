"""Targets of an export: words of the command line, contexts and file names."""

import pytest

from mirl.agents.exports.target import Target, find_context, parse_target, short_name
from mirl.configs.compose import compose_train
from mirl.configs.errors import ConfigError
from mirl.configs.networks import GoalContextConfig


@pytest.mark.parametrize(
    ("word", "name", "file_format", "file_name"),
    [
        ("policy.onnx", "policy", "onnx", "policy.onnx"),
        ("policy.pt2", "policy", "pt2", "policy.pt2"),
        ("go to the red door", "go to the red door", "pt2", "go-to-the-red-door.pt2"),
        ("go to the red door.onnx", "go to the red door", "onnx", "go-to-the-red-door.onnx"),
        ("MiniGrid.v0", "MiniGrid.v0", "pt2", "MiniGrid.v0.pt2"),
    ],
)
def test_ending_is_the_format(word: str, name: str, file_format: str, file_name: str) -> None:
    target = parse_target(word)
    assert target == Target(name, file_format)  # type: ignore[arg-type]
    assert target.file_name == file_name
    assert target.is_whole_policy == (name == "policy")


@pytest.mark.parametrize(
    "word", ["policy.tflite", "policy.ONNX", "/tmp/policy.onnx", "exports/policy.pt2", "onnx"]
)
def test_wrong_file_names_the_right_ones(word: str) -> None:
    with pytest.raises(ConfigError, match=r"use export=policy\.pt2 or export=policy\.onnx, "):
        parse_target(word)


def test_unknown_task_names_nearest() -> None:
    training = compose_train(["task=doors", "context=task_id"])
    assert find_context("goto_door_6x6", training.context, training.task) == 1
    with pytest.raises(
        ConfigError, match=r"unknown task 'goto_dor_6x6'\. Did you mean 'goto_door_6x6'"
    ):
        find_context("goto_dor_6x6", training.context, training.task)


def test_goals_cannot_be_named() -> None:
    """A goal has no name; the error says what to use instead."""
    with pytest.raises(ConfigError, match=r"is a goal, which has no name; use export=policy.onnx"):
        find_context("2, 3", GoalContextConfig(), compose_train([]).task)


def test_file_names_are_short_and_distinct() -> None:
    """File names are plain, short and distinct."""
    long = "go to the red door, then " * 10
    names = [
        "go to the red door",
        "goto_door",
        "a/b",
        "a-b",
        "../x",
        long,
        long + "stop",
        "去红门",
        "去蓝门",
        "\udcff",
    ]
    files = [short_name(name) for name in names]
    assert files[:2] == ["go-to-the-red-door", "goto_door"]
    assert len({*files}) == len(names)
    assert all(len(file) <= 100 and "/" not in file and file.isascii() for file in files)
