"""Encoder of texts that are not the context."""

import numpy as np
import pytest
import torch
from batches import batch_of
from gymnasium import spaces

from mirl.configs.errors import ConfigError
from mirl.configs.networks import TextEncoderConfig
from mirl.policies.encoders import TextEncoder, build_encoder

close = torch.testing.assert_close
NOTE = spaces.Box(0, 9, (4,), np.int16)


def test_equal_texts_have_one_vector() -> None:
    """Each distinct text is encoded once, to the vector that it has alone."""
    encoder = build_encoder(TextEncoderConfig(features_dim=8), spaces.Dict({"note": NOTE}))
    assert isinstance(encoder, TextEncoder)
    notes = batch_of(spaces.Dict({"note": NOTE}), 3)["note"]
    rows = encoder({"note": notes[[0, 1, 0, 2]]})
    close(rows[0], rows[2])
    for row, index in enumerate([0, 1, 0, 2]):
        close(rows[row], encoder({"note": notes[index : index + 1]})[0])


@pytest.mark.parametrize(
    "space",
    [
        spaces.Dict({"note": NOTE, "other": NOTE}),
        spaces.Dict({"note": spaces.Box(-1, 1, (4,), np.float32)}),
        spaces.Dict({"note": spaces.Box(0, 9, (4, 4), np.int16)}),
    ],
    ids=["several", "numbers", "matrix"],
)
def test_text_encoder_rejects_other_inputs(space: spaces.Dict) -> None:
    with pytest.raises(ConfigError, match=r"reads one key of token ids.*use encoder=auto"):
        build_encoder(TextEncoderConfig(), space)
