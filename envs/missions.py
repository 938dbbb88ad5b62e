"""Missions as token ids: a fixed vocabulary plus hashed buckets, so no text raises and none grows it."""

import re
import zlib
from functools import lru_cache

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

MAX_TOKENS = 80
"""BabyAI's longest mission has 72: four times "put a red ball in front of you next to a red ball in front of you" (17),
two "and" and ", then" or "after you" between them."""

VOCABULARY = (
    # colors
    *("blue", "green", "grey", "purple", "red", "yellow"),
    # things
    *(
        "ball",
        "box",
        "door",
        "goal",
        "hallway",
        "key",
        "lava",
        "maze",
        "object",
        "opening",
        "room",
        "rooms",
        "square",
    ),
    # verbs
    *(
        "avoid",
        "fetch",
        "find",
        "get",
        "go",
        "open",
        "pick",
        "put",
        "reach",
        "traverse",
        "unlock",
        "use",
    ),
    # places
    *(
        "at",
        "behind",
        "end",
        "from",
        "front",
        "in",
        "left",
        "near",
        "next",
        "of",
        "on",
        "right",
        "to",
        "up",
    ),
    # connectors and punctuation
    *("a", "after", "and", "matching", "must", "the", "then", "you", "your", ",", "."),
)
"""Every word of MiniGrid's and BabyAI's missions. The order is part of each checkpoint: append, never insert."""

HASH_BUCKETS = 64
"""Ids shared by all other words."""

N_TOKENS = 1 + len(VOCABULARY) + HASH_BUCKETS
"""Number of ids: padding (0), the vocabulary, the buckets."""

_IDS = {word: position for position, word in enumerate(VOCABULARY, start=1)}
_TOKEN = re.compile(r"\w+|[^\w\s]")


def token_id(word: str) -> int:
    """The id of one word: its own if it is in the vocabulary, else that of its bucket."""
    if word in _IDS:
        return _IDS[word]
    # Python's own hash() differs from process to process. Lone surrogates are legal in a str but not in UTF-8.
    return 1 + len(VOCABULARY) + zlib.crc32(word.encode("utf-8", "surrogatepass")) % HASH_BUCKETS


def words(text: str) -> list[str]:
    """The lower-case words and punctuation marks of a text."""
    return _TOKEN.findall(text.lower())


@lru_cache(maxsize=8192)
def _token_ids(text: str) -> NDArray[np.int16]:
    ids = np.zeros(MAX_TOKENS, dtype=np.int16)
    found = [token_id(word) for word in words(text)[:MAX_TOKENS]]
    ids[: len(found)] = found
    return ids


def tokenize(text: str) -> NDArray[np.int16]:
    """Token ids of a text, shape (MAX_TOKENS,), padded with 0; what is longer is cut."""
    return _token_ids(text).copy()


def mission_space() -> spaces.Box:
    """The space of ``tokenize``'s results."""
    return spaces.Box(0, N_TOKENS - 1, (MAX_TOKENS,), np.int16)
