"""Tokenizers as tables, so that programs can tokenize texts without MIRL."""

from collections.abc import Iterable

from gymnasium import spaces

from mirl.configs.texts import TOKEN_PATTERN
from mirl.envs.texts.codec import TextCodec, is_text


def tokenizer_table(
    codec: TextCodec, space: spaces.Dict, keys: Iterable[str]
) -> dict[str, object] | None:
    """Return a description of how a program's text inputs are converted to numbers.

    Args:
        codec: the text codec of the run.
        space: the observation space.
        keys: keys of the inputs.

    Returns:
        The table; None if no input is a text.
    """
    texts = [key for key in keys if key in space.spaces and is_text(space[key])]
    if not texts:
        return None
    table: dict[str, object] = {
        "keys": texts,
        "form": codec.form,
        "length": codec.length,
        "padding": 0,
    }
    if codec.form == "utf8":
        # each byte of the text plus this number
        return table | {"offset": 1}
    first_id, count = codec.unknown_ids
    return table | {
        "lower_case": True,
        # a regular expression of Python's re
        "word_pattern": TOKEN_PATTERN,
        "words": codec.word_ids,
        # the id of any other word is first_id + crc32(its UTF-8 bytes) % count
        "unknown_words": {"first_id": first_id, "count": count, "hash": "crc32"},
    }
