"""Arguments of ``train.py --multirun``."""

from pathlib import Path

import pytest

from mirl.configs.commands.sweep import (
    RangeConfig,
    SweepConfig,
    describe,
    is_multirun,
    parse_sweep,
    parse_values,
    sweep_runs,
)
from mirl.configs.compose import compose_train
from mirl.configs.errors import ConfigError


def grid(*words: str) -> list[str]:
    """Return the names of the runs of a grid."""
    return [run.name for run in sweep_runs(parse_sweep(["-m", *words]))]


def test_grid_has_all_combinations() -> None:
    names = grid("fusion=film,bilinear", "seed=0,1,2", "task=goto_door,goto_obj")
    assert len(names) == len(set(names)) == 12
    assert names[:3] == [
        "goto_door-film-ppo-seed0",
        "goto_obj-film-ppo-seed0",
        "goto_door-film-ppo-seed1",
    ]


def test_run_is_that_of_its_words() -> None:
    """A run of a grid has the configuration and the directory of a single command."""
    for run in sweep_runs(parse_sweep(["-m", "seed=1,2", "agent.gamma=.9,.99", "runs_dir=a,b"])):
        config = compose_train(run.words)
        assert config == run.config
        assert config.run_dir == Path("a,b") / run.name
        assert run.name == f"goto_door-ppo-seed{config.seed}-gamma{run.settings['agent.gamma']}"
        assert config.agent.gamma == float(run.settings["agent.gamma"])


def test_names_do_not_depend_on_others() -> None:
    """A grid with more values has the runs of a smaller one."""
    assert set(grid("agent.gamma=.9,.99")) < set(grid("agent.gamma=.9,.99,.8", "seed=0,1"))
    assert grid("agent.gamma=.9,.99", "name=x") == ["x-gamma.9", "x-gamma.99"]
    assert grid("seed=0,1") == ["goto_door-ppo-seed0", "goto_door-ppo-seed1"]


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("seed=0,1", ("0", "1")),
        ("seed=range(0,6,2)", ("0", "2", "4")),
        ("agent.gamma=range(.7,1,.1)", ("0.7", "0.8", "0.9")),
        ("agent.gamma=choice(.9, .99)", (".9", ".99")),
        ("sites=[map],[map,heads]", ("[map]", "[map,heads]")),
        ("agent.net_arch=[8],[16]", ("[8]", "[16]")),
        ("logger=[csv],[wandb,csv]", ("[csv]", "[wandb,csv]")),
        ("start_from=choice(runs/a,runs/b)", ("runs/a", "runs/b")),
        ("task.kwargs.size=5,6", ("5", "6")),
    ],
)
def test_values_are_split(word: str, values: tuple[str, ...]) -> None:
    key, _, text = word.partition("=")
    parsed = parse_values(key, text)
    if isinstance(parsed, RangeConfig):
        parsed = tuple(parsed.values())
    assert parsed == values


@pytest.mark.parametrize(
    "word",
    ["sites=map,heads", "logger=wandb,csv", "runs_dir=a,b", "agent.gamma=.9", "name=a,b"],
)
def test_one_value_is_none_of_several(word: str) -> None:
    key, _, text = word.partition("=")
    assert parse_values(key, text) == (text,)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("agent.gamma=interval(0.9,0.99)", {"low": 0.9, "high": 0.99}),
        ("agent.learning_rate=tag(log,interval(1e-5,1e-2))", {"low": 1e-5, "log": True}),
        ("agent.n_steps=interval(16,64)", {"integer": True, "high": 64.0, "step": None}),
        ("task.kwargs.size=int(interval(5,9))", {"integer": True, "low": 5.0}),
        ("agent.n_epochs=range(2,9,3)", {"integer": True, "high": 8.0, "step": 3.0}),
        ("agent.ent_coef=range(0,1,.25)", {"integer": False, "high": 0.75, "step": 0.25}),
    ],
)
def test_ranges_are_read(word: str, expected: dict[str, object]) -> None:
    key, _, text = word.partition("=")
    parsed = parse_values(key, text)
    assert isinstance(parsed, RangeConfig)
    assert expected.items() <= parsed.model_dump().items()


def study(*words: str) -> SweepConfig:
    """Return the configuration of a study."""
    config = parse_sweep(["--multirun", *words])
    assert config.is_study
    return config


def test_ranges_make_a_study() -> None:
    config = study("agent.gamma=interval(.9,.99)", "fusion=film,concat", "seed=3")
    assert (config.swept, config.trials) == (("agent.gamma", "fusion"), 20)
    words = config.words({"agent.gamma": "0.95", "fusion": "film"})
    assert words == ["agent.gamma=0.95", "fusion=film", "seed=3"]
    assert study("fusion=film,concat", "n_trials=4").trials == 4
    # a range with steps is a grid as well
    assert not parse_sweep(["-m", "agent.n_epochs=range(1,4)"]).is_study


def test_folder_is_that_of_the_words() -> None:
    """The number of trials and the engine change no folder, any option of a run does."""
    words = ("agent.gamma=interval(.9,.99)", "fusion=film,concat")
    folder = study(*words).folder
    assert folder.parts[0] == "sweeps"
    assert study(*words, "n_trials=5", "engine=ray", "jobs=2").folder == folder
    assert study(*words, "seed=1").folder != folder
    assert study(*words, "out=mine").folder == Path("mine")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("fusion=film", "--multirun: expected an option with several values"),
        ("fusion=film,flim", "fusion=flim: unknown fusion 'flim'"),
        ("seed=1,1", "seed: expected different values"),
        ("seed=1,", "seed: expected different values"),
        ("lr=1,2", "lr=1: unknown option 'lr'. Did you mean 'agent.learning_rate'?"),
        ("agent.gamma=interval(1,0)", "agent.gamma: a range needs a lower bound below"),
        ("agent.gamma=tag(log,interval(0,1))", "above 0 if it is logarithmic"),
        ("agent.n_epochs=shuffle(range(1,5))", "agent.n_epochs"),
        ("agent.n_epochs=tag(log,range(1,5))", "agent.n_epochs: expected a range such as"),
        ("agent.gamma=interval(0,", "agent.gamma: expected a range such as"),
        ("agent.gamma=interval(0,2)", "agent.gamma=2.0: agent.gamma: input should be less"),
        ("seed=1,2 n_trials=3", "seed: a study of several seeds would choose the luckiest"),
        ("fusion=film,concat n_trials=3 name=x", "name=: the trials are numbered"),
        ("seed=0,1 engine=cloud", "engine: expected 'local', 'slurm' or 'ray'"),
        ("seed=0,1 jobs=0", "jobs: input should be greater than 0"),
        ("agent.gamma=.9,.90,0.9 name=x", None),
        ("seed=range(0,200) agent.gamma=range(0,1,.01)", "at most 10,000 runs, got 20,000"),
        ("fusion=film,concat trials=3", "unknown option 'trials'"),
    ],
)
def test_mistake_is_one_line(words: str, message: str | None) -> None:
    if message is None:
        assert len(grid(*words.split())) == 3
        return
    with pytest.raises(ConfigError) as caught:
        parse_sweep(["-m", *words.split()])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_same_directory_is_refused() -> None:
    """Two values whose names differ only in characters that a folder cannot have."""
    with pytest.raises(ConfigError, match="two runs of the sweep have the name"):
        grid("task.kwargs.text=choice('a b','a?b')", "runs_dir=x")


def test_settings_are_typed() -> None:
    assert describe({"seed": "1", "fusion": "film"}) == "seed=1 fusion=film"
    assert is_multirun(["seed=1,2", "-m"])
    assert not is_multirun(["seed=1"])
