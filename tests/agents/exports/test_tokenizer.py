"""Tokenizers as tables."""

import json
import re
import zlib
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from mirl.agents.exports.tokenizer import tokenizer_table
from mirl.envs.texts.codec import TextCodec

TEXTS = (
    "go to the red door",
    "Go to the Zorp, then PICK up 3 balls!",
    "",
    "a " * 100,
    "öffne die Tür",
)


def table_of(codec: TextCodec) -> Any:
    """Return the table of a codec, as a JSON file holds it."""
    space = spaces.Dict({"mission": codec.space(), "direction": spaces.Discrete(4)})
    return json.loads(json.dumps(tokenizer_table(codec, space, ["direction", "mission"])))


def by_table(text: str, table: Any) -> list[int]:
    """Return the codes of a text by its table alone, as docs/export.md describes it."""
    if table["form"] == "utf8":
        codes = [byte + table["offset"] for byte in text.encode()]
    else:
        codes = []
        unknown = table["unknown_words"]
        for word in re.findall(table["word_pattern"], text.lower()):
            bucket = zlib.crc32(word.encode()) % unknown["count"]
            codes.append(table["words"].get(word, unknown["first_id"] + bucket))
    codes = codes[: table["length"]]
    return codes + [table["padding"]] * (table["length"] - len(codes))


@pytest.mark.parametrize(
    "codec",
    [TextCodec(), TextCodec(["zorp", "tür"], length=12), TextCodec(length=40, form="utf8")],
    ids=["minigrid", "own words", "bytes"],
)
def test_table_encodes_like_codec(codec: TextCodec) -> None:
    table = table_of(codec)
    assert table["keys"] == ["mission"]
    for text in TEXTS:
        np.testing.assert_array_equal(by_table(text, table), codec.encode(text))


def test_no_table_without_texts() -> None:
    codec = TextCodec()
    space = spaces.Dict({"mission": codec.space(), "direction": spaces.Discrete(4)})
    assert tokenizer_table(codec, space, ["direction", "hidden_state"]) is None
