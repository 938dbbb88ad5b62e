"""Tests of the conversion of texts to token ids and bytes, and of its warnings."""

import pickle
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from mirl.configs.tasks import SuiteConfig, TaskConfig
from mirl.configs.texts import TextForm, decode_utf8, split_words, unique_words
from mirl.envs.texts import codec as codec_module
from mirl.envs.texts.codec import (
    MAX_WARNINGS,
    TextCodec,
    TextWarning,
    is_text,
    mission_space,
    suite_codec,
    text_codec,
    tokenize,
    warn_once,
)
from mirl.envs.texts.vocabulary import N_TOKENS, VOCABULARY

WORDS = st.text(min_size=1, max_size=12).filter(lambda text: len(split_words(text)) == 1)
FORMS = st.sampled_from(["tokens", "utf8"])
COLLIDING = (("iron", "cow"), ("four", "nine"), ("sink", "toaster"))
"""Pairs of words that share a hash bucket."""


@pytest.fixture(autouse=True)
def _no_warning_was_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec_module, "_shown", {})


@pytest.fixture
def caught() -> Iterator[list[warnings.WarningMessage]]:
    """Return the warnings, which are collected instead of raised."""
    with warnings.catch_warnings(record=True) as recorded:
        warnings.simplefilter("always")
        yield recorded


@given(st.text(), st.lists(WORDS, max_size=20), st.integers(1, 100), FORMS)
def test_any_text_is_in_the_space(
    text: str, vocabulary: list[str], length: int, form: TextForm
) -> None:
    codec = TextCodec(unique_words(vocabulary), length, form)
    codes = codec.encode(text)
    assert codec.space().contains(codes)
    assert is_text(codec.space())


@given(st.lists(WORDS, min_size=1, max_size=60))
def test_vocabulary_words_have_own_ids(words: list[str]) -> None:
    """No two words of a vocabulary share an id, and MiniGrid's words keep theirs."""
    vocabulary = unique_words(words)
    codec = TextCodec(vocabulary)
    known = {*VOCABULARY, *vocabulary}
    ids = {codec.token_id(word) for word in known}
    assert len(ids) == len(known)
    assert 0 not in ids
    assert max(ids) <= codec.n_codes - 1 - 64  # the buckets are behind them
    plain = TextCodec()
    assert [codec.token_id(word) for word in VOCABULARY] == [
        plain.token_id(word) for word in VOCABULARY
    ]


@given(st.text())
def test_words_of_a_vocabulary_are_stable(text: str) -> None:
    """A vocabulary that was stored is the same after it was loaded."""
    words = unique_words([text])
    assert unique_words(words) == words
    assert tuple(dict.fromkeys(split_words(text))) == words


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), st.integers(1, 300))
def test_bytes_hold_the_text(text: str, length: int) -> None:
    """The form ``utf8`` holds the text itself, or as much of it as there is space for."""
    decoded = decode_utf8(TextCodec((), length, "utf8").encode(text).tolist())
    assert text.startswith(decoded)
    assert decoded == text or len(decoded.encode()) > length - 4


def test_without_vocabulary_ids_are_minigrids() -> None:
    assert mission_space() == spaces.Box(0, N_TOKENS - 1, (80,), np.int16)
    suite = SuiteConfig(name="doors", tasks=(TaskConfig(name="a", env_id="A-v0"),))
    assert suite_codec(suite) is text_codec()


@given(st.lists(WORDS, max_size=5), st.integers(1, 100), FORMS)
def test_codec_is_sent_to_workers(vocabulary: list[str], length: int, form: TextForm) -> None:
    codec = text_codec(unique_words(vocabulary), length, form)
    assert pickle.loads(pickle.dumps(codec)) is codec


@given(
    st.lists(st.sampled_from(["iron", "cow", "red", "door"]), max_size=8),
    st.lists(st.sampled_from(["iron", "cow", "red"]), min_size=1, max_size=2),
    FORMS,
)
def test_phrases_are_found_in_both_forms(
    text: list[str], phrase: list[str], form: TextForm
) -> None:
    codec = TextCodec(("iron", "cow"), 80, form)
    expected = f" {' '.join(phrase)} " in f" {' '.join(text)} "
    codes = codec.encode(" ".join(text))
    assert codec.contains_any(codes, (codec.phrase(" ".join(phrase)),)) == expected


@pytest.mark.parametrize("pair", COLLIDING)
def test_collision_names_both_words(
    pair: tuple[str, str], caught: list[warnings.WarningMessage]
) -> None:
    """Two words in one bucket give one warning with a remedy that works."""
    codec = TextCodec()
    for word in (*pair, *pair):
        codec.encode(f"collect the {word}", "instruction")
        codec.encode(f"the {word}", "instruction")
    [warning] = caught
    message = str(warning.message)
    first, second = sorted(pair)
    assert f"'{first}' and '{second}' share one token id" in message
    assert "'instruction'" in message
    assert f"task.vocabulary=[{first},{second}]" in message
    followed = TextCodec(pair)
    for word in pair:
        followed.encode(f"collect the {word}", "instruction")
    assert len(caught) == 1


@given(st.lists(WORDS, min_size=2, max_size=40, unique=True))
def test_every_collision_is_reported(words: list[str]) -> None:
    """There is a warning if and only if two different words of a key share an id."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as caught:
        patch.setattr(codec_module, "_shown", {})
        warnings.simplefilter("always")
        codec = TextCodec(length=200)
        text = " ".join(words)
        codec.encode(text, "mission")
        distinct = set(split_words(text))
        collide = len({codec.token_id(word) for word in distinct}) < len(distinct)
        assert bool(caught) == collide


def test_cut_text_names_the_length(caught: list[warnings.WarningMessage]) -> None:
    """Texts that are cut give one warning per key, and following it keeps them whole."""
    codec = TextCodec(VOCABULARY, 80)
    for n in (80, 98, 120):
        codec.encode("go " * n, "mission")
    [warning] = caught
    assert "'mission': a text of 98 words is cut to 80" in str(warning.message)
    assert "task.text_length=196" in str(warning.message)
    assert tokenize("go " * 98, text_length=196).astype(bool).sum() == 98


def test_warnings_do_not_flood(caught: list[warnings.WarningMessage]) -> None:
    """A text of ever new words gives few warnings, the last of which says so."""
    codec = TextCodec(length=5000)
    codec.encode(" ".join(f"word{i}" for i in range(4000)), "mission")
    assert len(caught) == MAX_WARNINGS + 1
    assert "no more are shown" in str(caught[-1].message)


def test_warning_is_shown_once(caught: list[warnings.WarningMessage]) -> None:
    """The same topic from several processes is one warning."""
    for _ in range(3):
        warn_once(TextWarning("two words", "mission", "a b"))
    assert len(caught) == 1


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(3),
        spaces.Box(0, 9, (4,), np.int64),
        spaces.Box(-1, 9, (4,), np.int16),
        spaces.Box(0, 9, (4, 4), np.int16),
    ],
)
def test_other_spaces_are_no_texts(space: spaces.Space[object]) -> None:
    assert not is_text(space)
