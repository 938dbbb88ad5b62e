"""Tests of the vocabulary of MiniGrid and BabyAI, and of the token ids of their missions."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from suites import MINIGRID_IDS

from mirl.configs.tasks import TaskConfig
from mirl.configs.texts import split_words as words
from mirl.envs import MAX_TOKENS, N_TOKENS, VOCABULARY, mission_space, tokenize
from mirl.envs.make import make_env
from mirl.envs.texts.codec import text_codec
from mirl.envs.texts.vocabulary import MAX_BYTES

token_id = text_codec().token_id
QUICK_IDS = (
    "MiniGrid-Fetch-5x5-N2-v0",
    "MiniGrid-PutNear-6x6-N2-v0",
    "MiniGrid-LockedRoom-v0",
    "MiniGrid-MemoryS7-v0",
    "MiniGrid-RedBlueDoors-6x6-v0",
    "BabyAI-SynthLoc-v0",
    "BabyAI-BossLevel-v0",
)


def sampled_missions(env_id: str, episodes: int) -> list[str]:
    env = make_env(TaskConfig(name="sample", env_id=env_id))
    missions = []
    for seed in range(episodes):
        env.reset(seed=seed)
        missions.append(env.unwrapped.mission)
    env.close()
    return missions


def assert_in_vocabulary(env_id: str, episodes: int) -> None:
    for mission in sampled_missions(env_id, episodes):
        assert set(words(mission)) <= set(VOCABULARY), mission


@given(st.text())
def test_any_text_has_valid_tokens(text: str) -> None:
    """The tokens of any text are in the mission space."""
    ids = tokenize(text)
    assert ids.dtype == np.int16
    assert mission_space().contains(ids)


@pytest.mark.parametrize("text", ["\ud800 alone", "\0", "go " * 500, "İ", "٣ ²"])
def test_unusual_texts_have_valid_tokens(text: str) -> None:
    """Surrogates, zero bytes, long texts and other scripts have tokens in the mission space."""
    assert mission_space().contains(tokenize(text))


@given(st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=MAX_TOKENS))
def test_known_words_can_be_decoded(tokens: list[str]) -> None:
    """A text of words in the vocabulary can be decoded from its tokens."""
    ids = tokenize(" ".join(tokens))
    assert [VOCABULARY[i - 1] for i in ids if i] == tokens


def test_vocabulary_has_no_duplicates() -> None:
    assert len(set(VOCABULARY)) == len(VOCABULARY)


def test_padding_is_reserved() -> None:
    """The id of padding belongs to no word."""
    assert 0 not in {token_id(word) for word in (*VOCABULARY, "klingon", "7", "!")}


def test_unknown_words_have_stable_buckets() -> None:
    """An unknown word has the id of a hash bucket, always the same."""
    first = token_id("klingon")
    assert len(VOCABULARY) < first < N_TOKENS
    assert token_id("klingon") == first


def test_tokens_are_equal_across_processes() -> None:
    """A text has the same tokens in a process with another hash seed."""
    text = "go to the klingon ship, then pick up 3 tribbles"
    code = f"from mirl.envs.texts.codec import tokenize; print(*tokenize({text!r}))"
    environment = {**os.environ, "PYTHONHASHSEED": "4711"}
    out = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert out.stdout.split() == [str(token) for token in tokenize(text)]


def test_tokens_are_a_copy() -> None:
    """Changing the tokens that were returned does not change later results."""
    tokenize("go to the red ball")[:] = 7
    assert tokenize("go to the red ball")[0] == token_id("go")


def test_longest_mission_fits() -> None:
    """The longest mission of BabyAI's grammar has at most MAX_TOKENS tokens."""
    place = "a red ball in front of you"
    clause = f"put {place} next to {place}"
    longest = f"{clause} and {clause} after you {clause} and {clause}"
    assert len(words(longest)) == 72 <= MAX_TOKENS
    assert len(longest.replace("red", "purple").encode()) < 320 < MAX_BYTES


@pytest.mark.parametrize("env_id", QUICK_IDS)
def test_vocabulary_covers_the_missions(env_id: str) -> None:
    assert_in_vocabulary(env_id, episodes=20)


@pytest.mark.exhaustive
@pytest.mark.parametrize("env_id", MINIGRID_IDS)
def test_vocabulary_covers_every_id(env_id: str) -> None:
    """The vocabulary has every word of the missions of every id."""
    assert_in_vocabulary(env_id, episodes=30)


def test_distinct_missions_have_distinct_tokens() -> None:
    missions = {
        mission for env_id in QUICK_IDS for mission in sampled_missions(env_id, episodes=20)
    }
    assert len(missions) > 50
    assert len({tokenize(mission).tobytes() for mission in missions}) == len(missions)
