"""Texts as words and as bytes, as used by all packages, and texts for a terminal."""

import re
from collections.abc import Iterable
from typing import Literal

TextForm = Literal["tokens", "utf8"]
"""Form of a text in an observation: one number per word, or one per byte."""
N_BYTE_CODES = 257
"""Number of codes of a text as bytes: padding (0), then the byte plus 1."""
TOKEN_PATTERN = r"\w+|[^\w\s]"
"""Regular expression of a token: a word, or a single punctuation mark."""
MAX_TEXT_LENGTH = 2**16
"""Maximum length of a text in an observation."""
MAX_VOCABULARY_CHARACTERS = 2**14
"""Maximum number of characters of a suite's own words, so that they fit into a config.yaml."""

_TOKEN = re.compile(TOKEN_PATTERN)
# A word that YAML and Hydra read as text even without quotes.
_PLAIN = re.compile(r"[a-z]+")
_NOT_PLAIN = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n", "inf", "nan"})


def split_words(text: str) -> list[str]:
    """Return the words and punctuation marks of a text in lower case.

    Args:
        text: any text.
    """
    return _TOKEN.findall(text.lower())


def unique_words(texts: Iterable[str]) -> tuple[str, ...]:
    """Return the words of some texts, each once, in the order in which they first appear.

    Args:
        texts: words, or texts of several words.
    """
    found: dict[str, None] = {}
    for text in texts:
        found.update(dict.fromkeys(split_words(text)))
    return tuple(found)


def word_list(words: Iterable[str]) -> str:
    """Return words in the form that the command line takes: ``[cow,iron]``.

    Args:
        words: the words.
    """
    written = []
    for word in words:
        is_plain = _PLAIN.fullmatch(word) is not None and word not in _NOT_PLAIN
        written.append(word if is_plain else f'"{word}"')
    return f"[{','.join(written)}]"


def decode_utf8(codes: Iterable[int]) -> str:
    """Decode the text of an observation in the form ``utf8``.

    Args:
        codes: bytes plus 1, padded with 0.
    """
    data = bytes(code - 1 for code in codes if 0 < code < N_BYTE_CODES)
    # a text that was cut may end inside a character
    return data.decode("utf-8", "ignore")


def printable(text: str) -> str:
    """Return a text without control characters, which a file may contain, for a terminal.

    Args:
        text: any text; line breaks are kept.
    """
    lines: list[str] = []
    for line in text.split("\n"):
        lines.append("".join(c if c.isprintable() else repr(c)[1:-1] for c in line))
    return "\n".join(lines)
