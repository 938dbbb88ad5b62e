"""Encoders of token ids: a text as one vector, and one vector per word.

Shapes in this file: length, the number of tokens; dim, the size of the vectors.
"""

from contextlib import nullcontext
from typing import NamedTuple, assert_never, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from mirl.configs.networks import MissionContextConfig
from mirl.policies.positions import sinusoidal_positions


class EncodedTexts(NamedTuple):
    """Encoded texts."""

    texts: Float[Tensor, "texts dim"]
    """One vector per text."""
    words: Float[Tensor, "texts length dim"]
    """One vector per word, independent of the other words; zeros for padding."""


class ZeroStartLinear(nn.Module):
    """Linear layer y = W x + b that starts at zero.

    It is not an ``nn.Linear``, because SB3's ``ortho_init`` re-initializes every ``nn.Linear``.

    Args:
        in_features: size of x.
        out_features: size of y.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Return W x + b."""
        return F.linear(x, self.weight, self.bias)


def build_attention(
    dim: int, heads: int, layers: int, *, zero_start: bool = False
) -> nn.TransformerEncoder:
    """Build the self-attention over the words of a text.

    Args:
        dim: size of the vectors.
        heads: number of heads, a divisor of ``dim``.
        layers: number of layers.
        zero_start: whether the residual branches start at zero, and each layer as the identity.
    """
    layer = nn.TransformerEncoderLayer(
        dim,
        heads,
        dim_feedforward=2 * dim,
        dropout=0.0,  # dropout would make the probability ratios of PPO random
        batch_first=True,
        norm_first=True,
    )
    # PyTorch has no nested tensors for norm_first, and warns if they are enabled
    attention = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
    if zero_start:
        for each in attention.layers:
            branches = cast(nn.TransformerEncoderLayer, each)
            branches.self_attn.out_proj = ZeroStartLinear(dim, dim)  # type: ignore[assignment]
            branches.linear2 = ZeroStartLinear(2 * dim, dim)  # type: ignore[assignment]
    return attention


def attend(
    attention: nn.TransformerEncoder | None,
    vectors: Float[Tensor, "missions length dim"],
    words: Bool[Tensor, "missions length"],
) -> EncodedTexts:
    """Encode texts by self-attention over vectors with sinusoidal positions.

    Args:
        attention: the self-attention; None to leave it out.
        vectors: one vector per word, (missions, length, dim).
        words: True for each word, False for padding, (missions, length).

    Returns:
        The mean of the self-attention's outputs over the words, and the vectors that it was given.
    """
    located = locate(vectors, words)
    attended = located
    if attention is not None:
        # on a CPU the backward pass of the fused kernel in bfloat16 is ten times as slow
        on_cpu = located.device.type == "cpu"
        with sdpa_kernel(SDPBackend.MATH) if on_cpu else nullcontext():
            attended = attention(located, src_key_padding_mask=~words)
    # mean over only the words: (missions, length, dim) -> (missions, dim)
    attended = attended * words.unsqueeze(-1)
    mean: Tensor = attended.sum(1) / words.sum(1, keepdim=True)
    return EncodedTexts(mean, located)


def locate(
    vectors: Float[Tensor, "missions length dim"], words: Bool[Tensor, "missions length"]
) -> Float[Tensor, "missions length dim"]:
    """Return the vectors of words with their sinusoidal positions added, and zeros for padding.

    Args:
        vectors: one vector per word, (missions, length, dim).
        words: True for each word, False for padding, (missions, length).
    """
    positions = sinusoidal_positions(vectors.shape[1], vectors.shape[2], vectors.device)
    return (vectors + positions) * words.unsqueeze(-1)


def find_words(tokens: Int[Tensor, "missions length"]) -> Bool[Tensor, "missions length"]:
    """Return True for each word, False for padding.

    Args:
        tokens: token ids, (missions, length).

    Returns:
        (missions, length).
    """
    # the first token always counts as a word, so that an empty mission has a mean, too
    first = torch.zeros(1, dtype=torch.int64, device=tokens.device)
    return (tokens != 0).index_fill(1, first, True)


class AttentionMissionEncoder(nn.Module):
    """Mission encoder: embeddings with sinusoidal positions, self-attention, mean over the words.

    Args:
        n_tokens: size of the vocabulary, with 0 as padding.
        config: options of the mission encoder.

    References:
        Vaswani et al., "Attention Is All You Need", NeurIPS 2017.
    """

    def __init__(self, n_tokens: int, config: MissionContextConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_tokens, config.dim, padding_idx=0)
        self.attention: nn.TransformerEncoder | None = None
        if config.layers:
            self.attention = build_attention(
                config.dim, config.heads, config.layers, zero_start=config.zero_start
            )

    def forward(self, tokens: Int[Tensor, "missions length"]) -> EncodedTexts:
        """Encode missions.

        Args:
            tokens: token ids, (missions, length).

        Returns:
            One vector per mission, (missions, dim), and one per word, (missions, length, dim).
        """
        return attend(self.attention, self.embedding(tokens), find_words(tokens))


class GruMissionEncoder(nn.Module):
    """Mission encoder: embeddings, then the state of a GRU after the last word.

    Args:
        n_tokens: size of the vocabulary, with 0 as padding.
        config: options of the mission encoder.
    """

    def __init__(self, n_tokens: int, config: MissionContextConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_tokens, config.dim, padding_idx=0)
        self.gru = nn.GRU(
            config.dim,
            config.dim,
            num_layers=config.layers,
            batch_first=True,
        )

    def forward(self, tokens: Int[Tensor, "missions length"]) -> EncodedTexts:
        """Encode missions.

        Args:
            tokens: token ids, (missions, length).

        Returns:
            One vector per mission, (missions, dim), and one per word, (missions, length, dim).
        """
        embedded = self.embedding(tokens)
        states, _ = self.gru(embedded)
        # the GRU also runs over the padding after the last word, whose states are not used;
        # an empty mission has the state after its first token
        last_word = (tokens != 0).sum(1).sub(1).clamp(min=0)
        missions = torch.arange(tokens.shape[0], device=tokens.device)
        final: Tensor = states[missions, last_word]
        return EncodedTexts(final, locate(embedded, find_words(tokens)))


class BagMissionEncoder(nn.Module):
    """Mission encoder: the mean of the words' embeddings, which ignores their order.

    Args:
        n_tokens: size of the vocabulary, with 0 as padding.
        config: options of the mission encoder.
    """

    def __init__(self, n_tokens: int, config: MissionContextConfig) -> None:
        super().__init__()
        # padding_idx leaves the padding out of the mean
        self.embedding = nn.EmbeddingBag(
            n_tokens,
            config.dim,
            mode="mean",
            padding_idx=0,
        )

    def forward(self, tokens: Int[Tensor, "missions length"]) -> EncodedTexts:
        """Encode missions.

        Args:
            tokens: token ids, (missions, length).

        Returns:
            One vector per mission, (missions, dim), and one per word, (missions, length, dim).
        """
        mean: Tensor = self.embedding(tokens)
        # the embedding of the padding is zero
        return EncodedTexts(mean, F.embedding(tokens, self.embedding.weight))


MissionEncoder = AttentionMissionEncoder | GruMissionEncoder | BagMissionEncoder


def build_mission_encoder(n_tokens: int, config: MissionContextConfig) -> MissionEncoder:
    """Build the mission encoder that ``config`` names.

    Args:
        n_tokens: size of the vocabulary, with 0 as padding.
        config: options of the mission encoder.

    Returns:
        A module from token ids (missions, length) to ``EncodedTexts``.
    """
    match config.encoder:
        case "attention":
            return AttentionMissionEncoder(n_tokens, config)
        case "gru":
            return GruMissionEncoder(n_tokens, config)
        case "bag":
            return BagMissionEncoder(n_tokens, config)
        case _:
            assert_never(config.encoder)
