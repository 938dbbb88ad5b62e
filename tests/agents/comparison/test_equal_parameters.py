"""Widths that give settings the same number of parameters."""

import pytest
from corridor_env import corridor

from mirl.agents.comparison import equal_parameters
from mirl.agents.comparison.equal_parameters import matching_widths, parameters_of, width_for
from mirl.configs.errors import ConfigError

OPTION = "encoder.features_dim"


def test_smaller_setting_is_widened() -> None:
    settings = {name: [*corridor(""), f"fusion={name}"] for name in ("concat", "bilinear")}
    widths = matching_widths(settings, OPTION)
    assert list(widths) == ["concat"]
    target = parameters_of(settings["bilinear"])
    width = widths["concat"]
    distances = []
    for near in (width - 1, width, width + 1):
        distances.append(abs(parameters_of([*settings["concat"], f"{OPTION}={near}"]) - target))
    assert min(distances) == distances[1]


def test_equal_settings_are_kept() -> None:
    settings = {name: [*corridor(""), f"seed={name}"] for name in ("1", "2")}
    assert matching_widths(settings, OPTION) == {}


def test_option_that_widens_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equal_parameters, "MAX_WIDTH", 8)
    settings = {name: [*corridor(""), f"fusion={name}"] for name in ("concat", "bilinear")}
    with pytest.raises(ConfigError, match="name an option that widens the network"):
        matching_widths(settings, "agent.n_epochs")


@pytest.mark.parametrize("target", [1, 2, 3, 100, 4096])
def test_width_is_the_smallest(target: int) -> None:
    assert width_for(target, lambda width: width) == max(2, target)
