"""Tests of texts as words and as bytes."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mirl.configs.compose import compose_train, validate
from mirl.configs.errors import ConfigError
from mirl.configs.networks import CombinedContextConfig, SentenceContextConfig
from mirl.configs.schema import TrainConfig
from mirl.configs.tasks import SuiteConfig
from mirl.configs.texts import decode_utf8, split_words, unique_words, word_list

TASKS = [{"name": "a", "env_id": "A-v0"}]
PRINTABLE = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def suite(**options: object) -> SuiteConfig:
    return validate(SuiteConfig, {"name": "suite", "tasks": TASKS, **options})


def test_words_and_punctuation_are_split() -> None:
    assert split_words("Go to the Iron-door, then 3x!") == [
        *("go", "to", "the", "iron", "-", "door", ",", "then", "3x", "!")
    ]


@given(st.lists(PRINTABLE, max_size=10))
def test_vocabulary_survives_a_file(texts: list[str]) -> None:
    """A vocabulary that was written to a config.yaml is the same when it is read."""
    stored = suite(vocabulary=texts)
    assert stored.vocabulary == unique_words(texts)
    text = yaml.safe_dump(stored.model_dump(mode="json"), sort_keys=False)
    assert validate(SuiteConfig, yaml.safe_load(text)) == stored


@settings(max_examples=20, deadline=None)  # Hydra takes its time
@given(st.lists(st.from_regex(r"\w{1,8}", fullmatch=True), min_size=1, max_size=6))
def test_word_list_is_typed_as_shown(texts: list[str]) -> None:
    """The list that a warning shows can be typed, also if YAML takes a word for a number."""
    words = unique_words(texts)
    config = compose_train([f"task.vocabulary={word_list(words)}"])
    assert config.task.vocabulary == words


@pytest.mark.parametrize("word", ["null", "true", "no", "1", "1e3", "0x1"])
def test_odd_words_are_typed_as_shown(word: str) -> None:
    assert compose_train([f"task.vocabulary={word_list([word])}"]).task.vocabulary == (word,)


def test_single_word_is_a_vocabulary() -> None:
    assert suite(vocabulary="iron").vocabulary == ("iron",)
    assert suite(vocabulary=["the Iron cow", "cow"]).vocabulary == ("the", "iron", "cow")


def test_too_large_vocabulary_is_refused() -> None:
    """A vocabulary must fit into a config.yaml."""
    with pytest.raises(ConfigError, match=r"at most 16,384 characters.*leave out"):
        suite(vocabulary=[f"word{i}" for i in range(3000)])


@pytest.mark.parametrize("length", [0, -1, 2**16 + 1])
def test_text_length_is_bounded(length: int) -> None:
    with pytest.raises(ConfigError, match="text_length"):
        suite(text_length=length)


def test_cut_character_is_dropped() -> None:
    codes = [byte + 1 for byte in "aü".encode()]
    assert decode_utf8([*codes, 0, 0]) == "aü"
    assert decode_utf8(codes[:-1]) == "a"


@pytest.mark.parametrize("words", [[], ["task=MiniGrid-GoToDoor-5x5-v0"]])
def test_sentences_need_the_text(words: list[str]) -> None:
    """A context of sentence embeddings gets the texts themselves."""
    assert compose_train(words).task.text_form == "tokens"
    assert compose_train([*words, "context=sentence"]).task.text_form == "utf8"


def test_parts_may_be_sentences() -> None:
    """A combined context with sentences gets the texts, from values and from configs."""
    config = compose_train([])
    values = config.model_dump()
    parts = [{"kind": "sentence"}, {"kind": "mission", "key": "hint"}]
    values["context"] = {"kind": "combined", "parts": parts}
    assert validate(TrainConfig, values).task.text_form == "utf8"
    values["task"] = config.task
    values["context"] = CombinedContextConfig(parts=(SentenceContextConfig(),))
    assert validate(TrainConfig, values).task.text_form == "utf8"
