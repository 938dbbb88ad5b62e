"""Arguments of compare.py: settings, tasks and seeds, and errors in one line."""

from pathlib import Path

import own_parts  # noqa: F401  (finds the module ownparts)
import pytest

from mirl.configs.comparison import (
    ComparisonConfig,
    RunComparisonConfig,
    parse_comparison,
)
from mirl.configs.errors import ConfigError


def settings_of(*words: str) -> ComparisonConfig:
    """Parse the arguments of a comparison of settings."""
    config = parse_comparison(words)
    assert isinstance(config, ComparisonConfig)
    return config


def test_group_gives_one_setting_each() -> None:
    config = settings_of("task=mt5", "fusion=concat,ownparts:BoundedFilm", "agent.n_steps=64")
    assert config.settings == {
        "concat": ("fusion=concat",),
        "ownparts-BoundedFilm": ("fusion=ownparts:BoundedFilm",),
    }
    assert (config.tasks, config.options) == (("mt5",), ("agent.n_steps=64",))
    assert (config.seeds, config.match, config.jobs) == ((0, 1, 2), "", None)
    assert config.folder == Path("comparisons/mt5")


def test_settings_have_several_options() -> None:
    words = ["settings.late=fusion=concat sites=vector", "settings.plain="]
    config = settings_of(*words, "task=goto_door,mt5", "match=true", "out=x/y")
    assert config.settings == {"late": ("fusion=concat", "sites=vector"), "plain": ()}
    assert config.tasks == ("goto_door", "mt5")
    assert config.match == "encoder.features_dim"
    assert config.folder == Path("x/y")


@pytest.mark.parametrize(
    ("word", "seeds"), [("2", (0, 1)), ("10,11", (10, 11)), ("[7]", (7,)), ("[1,2]", (1, 2))]
)
def test_seeds_are_number_or_list(word: str, seeds: tuple[int, ...]) -> None:
    assert settings_of("fusion=concat,film", f"seeds={word}").seeds == seeds


def test_presets_of_folder_are_common(tmp_path: Path) -> None:
    (tmp_path / "task").mkdir()
    preset = "name: mine\ntasks: [{name: obj, env_id: BabyAI-GoToObj-v0}]\n"
    (tmp_path / "task" / "mine.yaml").write_text(preset)
    config = settings_of("--config-dir", str(tmp_path), "fusion=concat,film", "task=mine")
    assert config.options == (f"--config-dir={tmp_path}",)


def test_words_without_equals_are_runs() -> None:
    config = parse_comparison(["runs/a", "episodes=5", "runs/b", "out=x"])
    assert isinstance(config, RunComparisonConfig)
    assert config.runs == (Path("runs/a"), Path("runs/b"))
    assert (config.names, config.options) == (("a", "b"), ("episodes=5",))
    assert config.folder == Path("x")
    assert parse_comparison(["x/a", "y/a"]).folder == Path("comparisons/x-a-vs-y-a")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task=goto_door"], "expected settings to compare"),
        (["fusion=concat,concat"], "expected different names"),
        (["fusion=concat,"], "expected different names"),
        (["fusion=concat,film", "agent=ppo,a2c"], "have several values each"),
        (["fusion=concat,film", "settings.film="], "given twice"),
        (["settings.a=", "settings.a="], "setting 'a' is given twice"),
        (["settings.a/b="], "plain name"),
        ([f"settings.{'a' * 128}="], "cannot name a run: it is too long"),
        (["settings.a-mt5=", "settings.a=", "task=mt5,mt5-mt5"], "'a-mt5-mt5-seed2' cannot name"),
        (["settings.="], "plain name"),
        (["settings.a=fusion='film"], "cannot be split"),
        (["settings.a=film"], "expected key=value, got 'film'"),
        (["settings.a=task=mt5"], "same for all settings"),
        (["settings.a=seed=1"], "use seeds="),
        (["fusion=concat,film", "name=x"], "use out="),
        (["fusion=concat,film", "seeds=0"], "seeds must be a number"),
        (["fusion=concat,film", "seeds=1,1"], "seeds must be a number"),
        (["fusion=concat,film", "seeds=99999999999999999999"], "seeds must be a number"),
        (["fusion=concat,film", "seeds=-1"], "seeds"),
        (["fusion=concat,film", "jobs=0"], "jobs"),
        (["fusion=concat,film", "task=a,a"], "different tasks"),
        (["fusion=concat,flim"], "setting 'flim': unknown fusion 'flim'"),
        (["settings.a=fusion=film fusion.rang=3"], "setting 'a': unknown option"),
        (["fusion=concat,film", "total_timestep=3"], "unknown option 'total_timestep'"),
        (["fusion=concat,film", "match=encoder.feature_dim"], "unknown option"),
        (["runs/a"], "two or more different run directories"),
        (["runs/a", "runs/../runs/a"], "two or more different run directories"),
        (["runs/a", "runs/b", "gif=true"], "that a comparison does not have"),
        (["--seeds", "3"], "expected key=value"),
    ],
)
def test_invalid_arguments_are_one_line(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_comparison(words)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
