"""Names of agents that come with MIRL, in the place of run directories."""

from pathlib import Path

import pytest

from mirl.configs.commands.pretrained import FOLDER, pretrained_names, results_folder, run_name
from mirl.configs.comparison import RunComparisonConfig, parse_comparison
from mirl.configs.compose import compose_train, parse_flat
from mirl.configs.errors import ConfigError
from mirl.configs.schema import CardConfig, EvalConfig, WatchConfig


@pytest.mark.parametrize("config_class", [CardConfig, EvalConfig, WatchConfig])
def test_commands_take_pretrained_agents(config_class: type) -> None:
    config = parse_flat(config_class, ["run=pretrained:goto_local"])
    assert config.run == FOLDER / "goto_local"
    assert run_name(config.run) == "pretrained:goto_local"


def test_training_starts_from_pretrained_agents() -> None:
    config = compose_train(["task=goto_door", "start_from=pretrained:goto_local"])
    assert config.start_from == FOLDER / "goto_local"


def test_comparison_takes_pretrained_agents() -> None:
    config = parse_comparison(["pretrained:goto_local", "runs/mine"])
    assert isinstance(config, RunComparisonConfig)
    assert config.runs == (FOLDER / "goto_local", Path("runs/mine"))


def test_unknown_agents_are_named() -> None:
    with pytest.raises(ConfigError, match=r"no agent 'goto_lokal' comes with MIRL.*'goto_local'"):
        parse_flat(EvalConfig, ["run=pretrained:goto_lokal"])
    with pytest.raises(ConfigError, match=", ".join(pretrained_names())):
        parse_flat(EvalConfig, ["run=pretrained:"])


def test_results_stay_outside_the_package() -> None:
    assert results_folder(Path("runs/mine")) == Path("runs/mine")
    assert results_folder(FOLDER / "goto_local") == Path("runs/pretrained-goto_local")
