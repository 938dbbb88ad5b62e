"""Arguments that are none get a plain answer."""

import shlex

import pytest

from mirl.configs.commands.words import SYNONYMS, option_names, typed_words
from mirl.configs.comparison import parse_comparison
from mirl.configs.compose import compose_train, parse_flat
from mirl.configs.errors import ConfigError
from mirl.configs.schema import EvalConfig, TrainConfig


def message(*argv: str) -> str:
    """Return the error of a training command."""
    with pytest.raises(ConfigError) as caught:
        compose_train(argv)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        (
            "seed=1,2,3",
            "seed: expected one value for one run, got '1,2,3'; --multirun trains each",
        ),
        ("seed=range(1,4)", "seed: expected one value for one run, got 'range(1,4)'"),
        ("agent.gamma=.9,.99", "--multirun trains each, mirl-compare settings.A='agent.gamma=…'"),
        (
            "fusion=concat,film",
            "--multirun trains each, mirl-compare fusion=concat,film compares them",
        ),
        ("task=goto_obj,goto_door", "that are trained together are joined by +"),
        ("task.kwargs.size=5,6", "write a list in brackets, 'task.kwargs.size=[5,6]'"),
        ("task.kwargs.size=5,6", "or a text in quotation marks, 'task.kwargs.size=\"5,6\"'"),
        ("-m", "-m: only train.py has it, for several runs"),
        ("--multirun", "--multirun: only train.py has it"),
        ("lr=1", "unknown option 'lr'. Did you mean 'agent.learning_rate'?"),
        ("--lr=1", "Did you mean 'agent.learning_rate'?"),
        ("steps=1", "Did you mean 'total_timesteps'?"),
        ("n-steps=1", "Did you mean 'agent.n_steps'?"),
        ("rank=1", "Did you mean 'fusion.rank' or 'memory.rank'?"),
        ("--seed=1", "Did you mean 'seed'?"),
    ],
)
def test_plain_answer_to_wrong_word(word: str, answer: str) -> None:
    assert answer in message(word)


def test_advice_of_messages_works() -> None:
    assert parse_comparison(["fusion=concat,film"]).settings
    words = ["settings.A=agent.gamma=.9", "settings.B=agent.gamma=.99", "seeds=1,2,3"]
    assert parse_comparison(words).seeds == (1, 2, 3)


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("agent.lr=1e-3", "agent.learning_rate"),
        ("agent.epochs=3", "agent.n_epochs"),
        ("device=gpu", "cuda"),
    ],
)
def test_names_of_other_programs(word: str, meant: str) -> None:
    """A name of another program leads to the option or value, in a group too."""
    assert message(word).endswith(f"Did you mean '{meant}'?")


def test_synonyms_lead_to_options() -> None:
    known = {*option_names([TrainConfig]), *EvalConfig.model_fields}
    assert set(SYNONYMS.values()) <= known
    assert not set(SYNONYMS) & set(TrainConfig.model_fields)


def test_typed_words_repeat_an_evaluation() -> None:
    words = ["evaluation.test_episodes=7", "evaluation.context_use=false", "runs_dir=my, own runs"]
    config = compose_train([*words, "backend=gymnasium", "evaluation.deterministic=true"])
    typed = typed_words(config.test_evaluation)
    assert "'run=my, own runs/goto_door-ppo-seed0'" in typed
    assert parse_flat(EvalConfig, shlex.split(" ".join(typed))) == config.test_evaluation
