"""Encoders of token ids: attention, GRU and bag of words."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from mission_cases import LENGTH, N_TOKENS, WORDS, Words, encode, mission_context, missions
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from mirl.configs.errors import ConfigError
from mirl.configs.networks import MissionContextConfig, network_config
from mirl.policies.positions import sinusoidal_positions
from mirl.policies.routing import resolve_network

close = torch.testing.assert_close


@pytest.mark.parametrize("words", WORDS)
def test_mission_is_independent_of_the_batch(words: Words) -> None:
    """A mission is encoded in a batch as it is alone."""
    context = mission_context(words)
    texts = missions([1, 2, 3, 4, 5], [3], [7, 8], [3])
    close(encode(context, texts), torch.cat([encode(context, text.unsqueeze(0)) for text in texts]))


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("words", WORDS)
def test_padding_does_not_change_the_context(words: Words, layers: int) -> None:
    """Neither padding columns nor a longer mission in the batch change the context."""
    context = mission_context(words, layers=layers)
    alone = encode(context, missions([4, 9, 2]))
    beside_a_longer_one = encode(context, missions([4, 9, 2], [1] * LENGTH))
    close(beside_a_longer_one[:1], alone, rtol=1e-5, atol=1e-6)
    close(encode(context, missions([4, 9, 2])[:, :3]), alone)


@pytest.mark.parametrize("words", WORDS)
def test_gap_keeps_missions_independent(words: Words) -> None:
    """A mission with padding between its words does not depend on the rest of the batch."""
    context = mission_context(words)
    alone = encode(context, missions([4, 0, 0, 9]))
    close(encode(context, missions([4, 0, 0, 9], [1] * LENGTH))[:1], alone, rtol=1e-5, atol=1e-6)
    assert (encode(context, missions([4, 0, 0, 8])) - alone).abs().max() > (
        1e-3 if words != "gru" else -1
    )


@pytest.mark.parametrize("words", WORDS)
def test_each_word_has_a_vector(words: Words) -> None:
    """A context holds one vector per word, and zeros behind the last word of a shorter text."""
    context = mission_context(words)
    batch = {"mission": missions([4, 9, 2], [4], [])}
    encoded = context(batch)
    vectors = encoded.select(encoded.groups.index).words
    assert vectors.shape == (3, 3, context.out_dim)
    assert not vectors[1:, 1:].any()
    assert vectors[1, 0].any()
    alone = context({"mission": missions([4, 9, 2])})
    close(alone.select(alone.groups.index).words[0], vectors[0], rtol=1e-5, atol=1e-6)
    # the words behind it do not change the first word
    close(vectors[1, 0], vectors[0, 0], rtol=1e-5, atol=1e-6)
    if words == "bag":
        mean = vectors[0].mean(0)
        close(context.norm(mean), encoded.per_row()[0], rtol=1e-5, atol=1e-6)
    assert (vectors[0, 0] - vectors[0, 1]).abs().max() > 1e-3


@pytest.mark.parametrize("words", ["attention", "gru"])
def test_word_order_matters(words: Words) -> None:
    # residual branches that start at zero learn the order later
    context = mission_context(words, zero_start=False)
    near, far = encode(context, missions([4, 9, 2], [2, 9, 4]))
    assert (near - far).abs().max() > 1e-3


def test_bag_ignores_word_order() -> None:
    """The bag of words gives one context for any order of the words."""
    near, far = encode(mission_context("bag"), missions([4, 9, 2], [2, 4, 9]))
    close(near, far)


@pytest.mark.parametrize("words", WORDS)
def test_different_words_change_the_context(words: Words) -> None:
    """Another word gives another context."""
    one, other = encode(mission_context(words), missions([4, 9, 2], [4, 9, 3]))
    assert (one - other).abs().max() > 1e-3


@pytest.mark.parametrize("words", WORDS)
def test_empty_mission_is_finite(words: Words) -> None:
    """An empty mission has a finite context and finite gradients."""
    context = mission_context(words)
    z = encode(context, missions([], [1, 2], []))
    z.square().sum().backward()
    assert z.isfinite().all()
    assert all(
        weight.grad.isfinite().all() for weight in context.parameters() if weight.grad is not None
    )


def test_batch_of_empty_missions_is_finite() -> None:
    """A batch that contains only empty missions has finite contexts."""
    for words in WORDS:
        assert encode(mission_context(words), missions([], [])).isfinite().all()


def test_largest_token_has_an_embedding() -> None:
    """The vocabulary includes the largest token id of the space."""
    for words in WORDS:
        assert encode(mission_context(words), missions([N_TOKENS - 1])).isfinite().all()


@pytest.mark.parametrize("words", WORDS)
def test_used_embeddings_get_a_gradient(words: Words) -> None:
    """The embeddings of the words in the batch get a gradient, and no others."""
    context = mission_context(words)
    (encode(context, missions([1, 2], [3])) ** 3).sum().backward()
    embedding = context.get_parameter("words.embedding.weight").grad
    assert embedding is not None
    assert embedding[1:4].any(dim=1).all()
    assert not embedding[0].any()
    assert not embedding[4:].any()


def test_bag_is_normalized_mean_embedding() -> None:
    """The bag of words is the LayerNorm of the mean embedding."""
    context = mission_context("bag")
    table = context.get_parameter("words.embedding.weight")
    expected = nn.functional.layer_norm((table[4] + table[9] + table[9]) / 3, (8,))
    close(encode(context, missions([4, 9, 9]))[0], expected)


def test_gru_context_is_last_state() -> None:
    """The GRU's context is its state after the last word."""
    context = mission_context("gru")
    gru, table = context.get_submodule("words.gru"), context.get_parameter("words.embedding.weight")
    cell = nn.GRUCell(8, 8)
    cell.load_state_dict(
        {name.removesuffix("_l0"): weight for name, weight in gru.state_dict().items()}
    )
    state = torch.zeros(1, 8)
    for token in (4, 9, 2):
        state = cell(table[token].unsqueeze(0), state)
    close(
        encode(context, missions([4, 9, 2], [1] * LENGTH))[:1],
        nn.functional.layer_norm(state, (8,)),
    )


def test_attention_equals_unpadded_transformer_layer() -> None:
    """Self-attention equals torch's transformer layer on the words without padding."""
    context = mission_context("attention")
    table = context.get_parameter("words.embedding.weight")
    layer = nn.TransformerEncoderLayer(
        8, 2, dim_feedforward=16, dropout=0.0, batch_first=True, norm_first=True
    )
    layer.load_state_dict(context.get_submodule("words.attention.layers.0").state_dict())
    words = table[[4, 9, 2]] + sinusoidal_positions(3, 8)
    expected = nn.functional.layer_norm(layer(words.unsqueeze(0)).mean(dim=1), (8,))
    close(encode(context, missions([4, 9, 2], [1] * LENGTH))[:1], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("length", "encoder"), [(80, "attention"), (81, "gru")])
def test_gru_reads_long_texts(length: int, encoder: str) -> None:
    text = spaces.Box(0, 200, (length,), np.int16)
    space = spaces.Dict({"mission": text, "observation": spaces.Box(-1, 1, (3,), np.float32)})
    context = resolve_network(network_config(), space).context
    assert isinstance(context, MissionContextConfig)
    assert context.encoder == encoder


@pytest.mark.parametrize("layers", [1, 2])
def test_zero_start_is_mean_of_words(layers: int) -> None:
    """Attention whose branches start at zero starts as the mean of located words, also in SB3."""
    context = mission_context("attention", layers=layers, zero_start=True, norm=False)
    context.apply(ActorCriticPolicy.init_weights)
    texts = missions([4, 9, 2], [3])
    embedding = context.words.embedding
    positions = sinusoidal_positions(3, context.out_dim, texts.device)
    located = embedding(texts[0, :3].long()) + positions
    close(encode(context, texts)[0], located.mean(0), rtol=1e-5, atol=1e-6)
    encode(context, texts).square().sum().backward()
    for name, weight in context.words.attention.named_parameters():
        if "out_proj" in name or "linear2" in name:
            assert weight.grad is not None
            assert weight.grad.any(), name


def test_no_layers_give_located_words() -> None:
    """Without self-attention a mission is the mean of its words and their positions."""
    context = mission_context("attention", layers=0, norm=False)
    texts = missions([4, 9, 2], [3])
    positions = sinusoidal_positions(3, context.out_dim, texts.device)
    located = context.words.embedding(texts[0, :3].long()) + positions
    close(encode(context, texts)[0], located.mean(0), rtol=1e-5, atol=1e-6)
    assert [name for name, _ in context.words.named_parameters()] == ["embedding.weight"]


def test_gru_needs_a_layer() -> None:
    """A GRU without layers is refused, with the encoder to use instead."""
    with pytest.raises(ConfigError, match="use encoder=bag"):
        MissionContextConfig(encoder="gru", layers=0)


def test_zero_start_keeps_names_of_weights() -> None:
    """A checkpoint has the same names with and without the zero start."""
    ours = mission_context("attention", zero_start=True).state_dict()
    assert ours.keys() == mission_context("attention").state_dict().keys()


@pytest.mark.parametrize("words", WORDS)
def test_norm_of_mission_is_optional(words: Words) -> None:
    """The context is the layer norm of the words' vector, or that vector itself."""
    normed = mission_context(words)
    plain = mission_context(words, norm=False)
    plain.words.load_state_dict(normed.words.state_dict())
    assert not any("norm." in name for name, _ in plain.named_parameters() if "words" not in name)
    texts = missions([4, 9, 2], [3])
    close(encode(normed, texts), nn.functional.layer_norm(encode(plain, texts), (normed.out_dim,)))
