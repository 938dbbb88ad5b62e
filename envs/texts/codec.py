"""Conversion of texts to token ids, or to bytes: known words first, hash buckets for the others."""

import warnings
import zlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from mirl.configs.errors import PlainWarning
from mirl.configs.tasks import SuiteConfig
from mirl.configs.texts import (
    N_BYTE_CODES,
    TextForm,
    decode_utf8,
    split_words,
    unique_words,
    word_list,
)
from mirl.envs.texts.vocabulary import HASH_BUCKETS, MAX_TOKENS, VOCABULARY

CACHED_TEXTS = 8192
"""Number of distinct texts whose arrays are cached; few missions are distinct."""
MAX_WARNINGS = 10
"""Largest number of warnings about the texts of one observation key in one process."""
MAX_LISTED_WORDS = 24
"""Largest number of words that a warning lists as the remedy."""
Phrase = tuple[int | str, ...]
"""Consecutive words, as token ids or as strings."""


class TextWarning(PlainWarning):
    """A warning about the texts of an observation.

    Args:
        message: the warning.
        key: key of the observation.
        topic: topic of the warning; each topic is shown only once.
    """

    def __init__(self, message: str, key: str = "", topic: str = "") -> None:
        super().__init__(message)
        self.key = key
        self.topic = topic


_shown: dict[str, set[str]] = {}
"""Topics of the warnings that were shown, by key of the observation."""


def warn_once(warning: TextWarning) -> None:
    """Show a warning, unless this process has shown its topic, or too many warnings, before.

    Args:
        warning: the warning.
    """
    shown = _shown.setdefault(warning.key, set())
    if warning.topic in shown or len(shown) > MAX_WARNINGS:
        return
    shown.add(warning.topic)
    if len(shown) > MAX_WARNINGS:
        warning = TextWarning(
            f"the texts of observation '{warning.key}' gave {MAX_WARNINGS} warnings; no more are "
            "shown",
            warning.key,
            warning.topic,
        )
    warnings.warn(warning, stacklevel=2)


class TextSpace(spaces.Box):
    """Space of an encoded text: a Box of codes that records whether the text ever changes.

    Args:
        n_codes: number of different codes.
        length: length of the arrays.
        is_constant: whether all episodes have the same text, so that it carries no information.
    """

    def __init__(self, n_codes: int, length: int, *, is_constant: bool = False) -> None:
        super().__init__(0, n_codes - 1, (length,), np.int16)
        self.is_constant = is_constant


class TextCodec:
    """Conversion of texts to arrays of int16, as token ids or as UTF-8 bytes.

    Args:
        vocabulary: words with ids of their own, besides MiniGrid's; all others share the hash
            buckets.
        length: length of the arrays, in tokens or bytes; longer texts are cut.
        form: ``tokens``, or ``utf8`` for the bytes plus 1.
    """

    def __init__(
        self,
        vocabulary: Sequence[str] = (),
        length: int = MAX_TOKENS,
        form: TextForm = "tokens",
    ) -> None:
        self.vocabulary = tuple(vocabulary)
        self.length = length
        self.form: TextForm = form
        # a word that MiniGrid has keeps MiniGrid's id
        known = dict.fromkeys((*VOCABULARY, *unique_words(self.vocabulary)))
        self._ids = {word: position for position, word in enumerate(known, start=1)}
        self._n_known = len(known)
        # the first word of each key and bucket, to notice a second one
        self._first_words: dict[tuple[str, int], str] = {}
        # one cache per codec, because the ids of a word differ between them
        self._cached_codes = lru_cache(maxsize=CACHED_TEXTS)(self._codes)

    def __reduce__(self) -> tuple[object, ...]:
        """Return the arguments that rebuild the codec in another process, without its cache."""
        return (text_codec, (self.vocabulary, self.length, self.form))

    @property
    def n_codes(self) -> int:
        """Number of different codes, with 0 for the padding."""
        if self.form == "utf8":
            return N_BYTE_CODES
        n_ids = 1 + self._n_known + HASH_BUCKETS
        # one more than needed, because policies recognize bytes by the number of their codes
        return n_ids + 1 if n_ids == N_BYTE_CODES else n_ids

    @property
    def word_ids(self) -> dict[str, int]:
        """Token ids of the known words."""
        return dict(self._ids)

    @property
    def unknown_ids(self) -> tuple[int, int]:
        """First id of the unknown words, and the number of ids that they share."""
        return 1 + self._n_known, HASH_BUCKETS

    def space(self, *, is_constant: bool = False) -> TextSpace:
        """Return the space of the arrays, (length,).

        Args:
            is_constant: whether all episodes have the same text.
        """
        return TextSpace(self.n_codes, self.length, is_constant=is_constant)

    def encode(self, text: str, key: str = "") -> NDArray[np.int16]:
        """Return the codes of a text, padded with 0.

        Args:
            text: any text.
            key: key of the observation, to warn about cut texts and words that share an id; empty
                for no warning.

        Returns:
            The codes, (length,).
        """
        # a copy: the caller may write to it, the cache must not change
        return self._cached_codes(text, key).copy()

    def token_id(self, word: str, key: str = "") -> int:
        """Return the id of a word: its own if it is known, otherwise that of its bucket.

        Args:
            word: a lower-case word or punctuation mark.
            key: key of the observation, to warn about two words in one bucket; empty for no
                warning.
        """
        known = self._ids.get(word)
        if known is not None:
            return known
        # Python's hash() differs between processes, crc32 does not. A str may hold lone surrogates,
        # which UTF-8 cannot encode by default.
        bucket = zlib.crc32(word.encode("utf-8", "surrogatepass")) % HASH_BUCKETS
        if key:
            first = self._first_words.setdefault((key, bucket), word)
            if first != word:
                self._warn_of_collision(first, word, key)
        return 1 + self._n_known + bucket

    def phrase(self, text: str) -> Phrase:
        """Return the words of a phrase in the form in which ``contains_any`` compares them.

        Args:
            text: the phrase; empty without any word.
        """
        words = split_words(text)
        if self.form == "utf8":
            return tuple(words)
        return tuple(self.token_id(word) for word in words)

    def contains_any(self, codes: NDArray[np.integer], phrases: tuple[Phrase, ...]) -> bool:
        """Return True if a text contains one of the phrases.

        Args:
            codes: the text, (length,).
            phrases: results of ``phrase``.
        """
        # Few texts are distinct, so the search is cached; arrays are not hashable, bytes are.
        return _contains_any(codes.tobytes(), codes.dtype.str, self.form, phrases)

    def _codes(self, text: str, key: str) -> NDArray[np.int16]:
        codes = np.zeros(self.length, dtype=np.int16)
        used = self._byte_codes(text) if self.form == "utf8" else self._token_ids(text, key)
        if len(used) > self.length and key:
            self._warn_of_cut(len(used), key)
        used = used[: self.length]  # because the observation space has a fixed length
        codes[: len(used)] = used
        return codes

    def _token_ids(self, text: str, key: str) -> list[int]:
        # words beyond the length are not part of the observation, and cannot collide
        words = split_words(text)
        ids = [self.token_id(word, key) for word in words[: self.length]]
        return ids + [0] * (len(words) - len(ids))

    def _byte_codes(self, text: str) -> list[int]:
        # lone surrogates, which UTF-8 cannot encode, become question marks
        return [byte + 1 for byte in text.encode("utf-8", "replace")]

    def _warn_of_collision(self, first: str, second: str, key: str) -> None:
        pair = sorted((first, second))
        wanted = (*self.vocabulary, *pair)
        remedy = "with every word in task.vocabulary=[…] (mirl.envs.draw_vocabulary collects them)"
        if len(wanted) <= MAX_LISTED_WORDS:
            remedy = f"with 'task.vocabulary={word_list(wanted)}'"
        warn_once(
            TextWarning(
                f"observation '{key}': the words '{pair[0]}' and '{pair[1]}' share one token id, "
                "so no network can tell them apart; give them ids of their own "
                f"{remedy}, in Python with vocabulary=[…]",
                key,
                f"{pair[0]} {pair[1]}",
            )
        )

    def _warn_of_cut(self, length: int, key: str) -> None:
        unit = "bytes" if self.form == "utf8" else "words"
        warn_once(
            TextWarning(
                f"observation '{key}': a text of {length} {unit} is cut to {self.length}; keep it "
                f"whole with task.text_length={2 * length}, in Python with text_length=",
                key,
                "cut",
            )
        )


def text_codec(
    vocabulary: tuple[str, ...] = (), length: int = MAX_TOKENS, form: TextForm = "tokens"
) -> TextCodec:
    """Return the codec of the given options, which all environments of a process share.

    Args:
        vocabulary: words with ids of their own, besides MiniGrid's.
        length: length of the arrays, in tokens or bytes.
        form: ``tokens`` or ``utf8``.
    """
    return _shared_codec(vocabulary, length, form)


@lru_cache(maxsize=64)
def _shared_codec(vocabulary: tuple[str, ...], length: int, form: TextForm) -> TextCodec:
    # positional arguments only, because the cache would store keyword arguments separately
    return TextCodec(vocabulary, length, form)


def suite_codec(suite: SuiteConfig) -> TextCodec:
    """Return the codec of a suite; without a vocabulary, that of MiniGrid.

    Args:
        suite: the suite.
    """
    return text_codec(suite.vocabulary or (), suite.text_length or MAX_TOKENS, suite.text_form)


def is_text(space: spaces.Space[object]) -> bool:
    """Return True if a space is that of encoded texts.

    Args:
        space: a subspace of an observation.
    """
    if not isinstance(space, spaces.Box) or space.dtype != np.int16 or len(space.shape) != 1:
        return False
    return not space.low.any()


def tokenize(
    text: str, vocabulary: Sequence[str] = (), text_length: int = MAX_TOKENS
) -> NDArray[np.int16]:
    """Return the token ids of a text, padded with 0 or cut.

    Args:
        text: any text.
        vocabulary: words with ids of their own, besides MiniGrid's: ``task.vocabulary`` of a run.
        text_length: length of the result: ``task.text_length`` of a run.

    Returns:
        Token ids, (text_length,).
    """
    return text_codec(tuple(vocabulary), text_length).encode(text)


def mission_space(vocabulary: Sequence[str] = (), text_length: int = MAX_TOKENS) -> spaces.Box:
    """Return the space of token ids, (text_length,).

    Args:
        vocabulary: words with ids of their own, besides MiniGrid's.
        text_length: length of a tokenized text.
    """
    return text_codec(tuple(vocabulary), text_length).space()


@lru_cache(maxsize=CACHED_TEXTS)
def _contains_any(codes: bytes, dtype: str, form: TextForm, phrases: tuple[Phrase, ...]) -> bool:
    row = np.frombuffer(codes, dtype).tolist()
    text: Phrase = tuple(row)
    if form == "utf8":
        text = tuple(split_words(decode_utf8(row)))
    for phrase in phrases:
        length = len(phrase)
        # Compare the phrase with each window of the same number of words.
        for start in range(len(text) - length + 1):
            if text[start : start + length] == phrase:
                return True
    return False
