"""Missions as token ids: a fixed vocabulary plus hash buckets for all other words."""

import re
import zlib
from functools import lru_cache

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

MAX_TOKENS = 80
"""Length of a tokenized mission.

BabyAI's longest mission has 72 tokens: four times "put a red ball in front of you next to a red
ball in front of you" (17), joined by two "and" and one ", then" or "after you".
"""

# fmt: off
VOCABULARY = (
    # colors
    "blue", "green", "grey", "purple", "red", "yellow",
    # objects
    "ball", "box", "door", "goal", "hallway", "key", "lava", "maze", "object", "opening",
    "room", "rooms", "square",
    # verbs
    "avoid", "fetch", "find", "get", "go", "open", "pick", "put", "reach", "traverse",
    "unlock", "use",
    # places
    "at", "behind", "end", "from", "front", "in", "left", "near", "next", "of", "on",
    "right", "to", "up",
    # connectors and punctuation
    "a", "after", "and", "matching", "must", "the", "then", "you", "your", ",", ".",
)
# fmt: on
"""Every word in the missions of MiniGrid and BabyAI.

The order is part of every checkpoint: append new words, never insert them.
"""

HASH_BUCKETS = 64
"""Number of ids shared by all words outside the vocabulary."""

N_TOKENS = 1 + len(VOCABULARY) + HASH_BUCKETS
"""Number of token ids: padding (0), the vocabulary, the hash buckets."""

_IDS = {word: position for position, word in enumerate(VOCABULARY, start=1)}
# A word, or a single punctuation mark.
_TOKEN = re.compile(r"\w+|[^\w\s]")


def token_id(word: str) -> int:
    """Return the id of a word: its own if the vocabulary has it, otherwise that of its bucket.

    Args:
        word: a lower-case word or punctuation mark.
    """
    if word in _IDS:
        return _IDS[word]
    # Python's hash() differs between processes, crc32 does not. A str may hold lone surrogates,
    # which UTF-8 cannot encode by default.
    checksum = zlib.crc32(word.encode("utf-8", "surrogatepass"))
    return 1 + len(VOCABULARY) + checksum % HASH_BUCKETS


def words(text: str) -> list[str]:
    """Return the words and punctuation marks of a text in lower case.

    Args:
        text: any text.
    """
    return _TOKEN.findall(text.lower())


@lru_cache(maxsize=8192)
def _token_ids(text: str) -> NDArray[np.int16]:
    # Few missions are distinct, so the work is done once for each.
    ids = np.zeros(MAX_TOKENS, dtype=np.int16)
    # Longer texts are cut, because the observation space has a fixed length.
    used = [token_id(word) for word in words(text)[:MAX_TOKENS]]
    ids[: len(used)] = used
    return ids


def tokenize(text: str) -> NDArray[np.int16]:
    """Return the token ids of a text, padded with 0 or cut to MAX_TOKENS.

    Args:
        text: any text.

    Returns:
        Token ids, (MAX_TOKENS,).
    """
    return _token_ids(text).copy()  # the caller may write to it, the cache must not change


def mission_space() -> spaces.Box:
    """Return the space of token ids, (MAX_TOKENS,)."""
    return spaces.Box(0, N_TOKENS - 1, (MAX_TOKENS,), np.int16)
