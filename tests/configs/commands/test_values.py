"""Values of options are taken as a shell passes them on, whatever they mean to Hydra."""

import re
from pathlib import Path

import pytest
from config_errors import error_message
from hypothesis import given, settings
from hypothesis import strategies as st

from mirl.configs.commands.values import option_types, split_outside_brackets
from mirl.configs.commands.words import option_names
from mirl.configs.compose import compose_train
from mirl.configs.schema import TrainConfig

SYMBOLS = "ab$\\{}[]()'\",=: #?!&|<>"
TEXTS = st.one_of(
    st.text(SYMBOLS, min_size=1, max_size=12),
    st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=12),
    st.sampled_from(["it's", "${seed}", "\\${a", "choice(a,b)", "1e5", "true", " a "]),
).filter(lambda text: text[0] not in "'\"" and text.lower() not in ("null", "???"))
"""Texts without quotation marks around them, which are removed, and not one of those for none."""


@settings(deadline=None, derandomize=True)
@given(TEXTS)
def test_text_is_taken_as_typed(text: str) -> None:
    config = compose_train([f"runs_dir={text}", f"start_from={text}", f"task.name={text}"])
    assert config.runs_dir == Path(text)
    assert config.start_from == Path(text)
    assert config.task.name == text


@settings(deadline=None, derandomize=True)
@given(st.text(st.characters(exclude_categories=["C"], exclude_characters="'\\")))
def test_quotation_marks_are_removed(text: str) -> None:
    assert compose_train([f"runs_dir='{text}'"]).runs_dir == Path(text)


@pytest.mark.parametrize("text", ["it's", "a=b", "#1", "$a", "a${b", "go to 'it'", "a#b=c's"])
def test_kwargs_take_odd_texts(text: str) -> None:
    [task] = compose_train([f"task.kwargs.title={text}"]).task.tasks
    assert task.kwargs == {"title": text}


def test_kwargs_keep_their_types() -> None:
    words = ["size=5", "title='5'", "sizes=[1,{a: b}]", "rate=1e-3", "flag=true", "none=null"]
    [task] = compose_train([f"task.kwargs.{word}" for word in words]).task.tasks
    assert task.kwargs == {
        "size": 5,
        "title": "5",
        "sizes": [1, {"a": "b"}],
        "rate": 1e-3,
        "flag": True,
        "none": None,
    }


@pytest.mark.parametrize(
    ("word", "missions"),
    [
        ("go to it's door,open it", ("go to it's door", "open it")),
        ("[a=b,$c,${seed}]", ("a=b", "$c", "${seed}")),
        ("\"a,b\",'c'", ("a,b", "c")),
        ("1,true", ("1", "true")),
        ("alone", ("alone",)),
        ("[]", ()),
    ],
)
def test_list_of_texts(word: str, missions: tuple[str, ...]) -> None:
    assert compose_train([f"split.missions={word}"]).split.missions == missions


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("agent.n_steps=it's", 'agent.n_steps: input should be a valid integer, .* got "it\'s"'),
        ("device=it's", "device: expected 'auto', 'cpu' or 'cuda', got \"it's\""),
        ("name=it's", "name must be a plain folder name .* got 'it's'"),
        ("sites=[map", r"sites: cannot read '\[map' as a list or dictionary; close all brackets"),
        ("task.kwargs.a=" + "[" * 5000, r"cannot read '\[\[.*…"),
        ("task.kwargs.a=${b}", r"'b' not found; '\\\$\{' stands for the characters"),
        ("task.kwargs.a=sort(2,1)", "expected one value, got several"),
        ("task.kwargs.a[0]=1", "unknown option"),
        ("task.kwargs.=1", "unknown option"),
        ("runs_dir=???", r"runs_dir: expected a value, got '\?\?\?'"),
        ("split.missions=", "split.missions: input should be a valid tuple, got ''"),
    ],
)
def test_other_values_get_one_line(word: str, message: str) -> None:
    answer = error_message(word)
    assert "\n" not in answer
    assert len(answer) < 400
    assert re.search(message, answer)


def test_advice_about_values_works() -> None:
    words = ["a=\\${b}", 'b="1,2"', "c=[1,2]", 'd=["it\'s"]']
    [task] = compose_train([f"task.kwargs.{word}" for word in words]).task.tasks
    assert task.kwargs == {"a": "${b}", "b": "1,2", "c": [1, 2], "d": ["it's"]}


def test_lists_need_no_brackets() -> None:
    config = compose_train(["sites=map,heads", "agent.net_arch=32,16", "split.missions=a b,c"])
    assert config.sites == ("map", "heads")
    assert config.agent.net_arch == (32, 16)
    assert config.split.missions == ("a b", "c")
    assert compose_train(["sites=[map,heads]", "agent.net_arch=32,16"]).sites == config.sites


def test_options_have_types() -> None:
    types = option_types([TrainConfig])
    lists = types.lists
    assert {"sites", "task.tasks", "agent.net_arch", "encoder.hidden", "split.goal_low"} <= lists
    assert lists < set(option_names([TrainConfig]))
    assert {"split.missions", "task.vocabulary", "observation_keys"} <= types.text_lists < lists
    assert {"runs_dir", "start_from", "task.success", "context.key"} <= types.texts
    assert not types.texts & {*lists, "device", "agent.n_steps"}


@given(st.text("ab,[]{}()'\"", max_size=12))
def test_split_loses_nothing(value: str) -> None:
    parts = split_outside_brackets(value)
    assert ",".join(parts) == value
    nested = f"[{value}]"
    if len(split_outside_brackets(nested)) > 1:  # a bracket or a quotation mark of its own
        assert set(value) & set("[]{}()'\"")


def test_apostrophe_begins_no_quotation() -> None:
    assert split_outside_brackets("it's,'a,b', \"c,d\",[e,f's]") == [
        "it's",
        "'a,b'",
        ' "c,d"',
        "[e,f's]",
    ]
