"""The words of MiniGrid and BabyAI, whose token ids every policy shares."""

MAX_TOKENS = 80
"""Length of a tokenized mission of MiniGrid and BabyAI.

BabyAI's longest mission has 72 tokens: four times "put a red ball in front of you next to a red
ball in front of you" (17), joined by two "and" and one ", then" or "after you".
"""
MAX_BYTES = 512
"""Length of such a mission in bytes; the longest one has fewer than 320."""

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
"""Number of token ids without further words: padding (0), the vocabulary, the hash buckets."""
