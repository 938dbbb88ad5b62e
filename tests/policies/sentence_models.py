"""A stand-in for MiniLM, whose embeddings are made of the characters of the words."""

import zlib
from typing import Any

import torch
from torch import Tensor


class FakeModel:
    """Model with the interface of ``SentenceTransformer`` that counts the texts it embeds."""

    def __init__(self) -> None:
        self.embedded: list[str] = []
        self.tokenizer = self

    def encode(self, texts: Any, **options: Any) -> Any:
        if isinstance(texts, str):  # called as the tokenizer
            return texts.split()
        self.embedded += texts
        with torch.inference_mode():
            words = [self._words(text) for text in texts]
            if options["output_value"] == "token_embeddings":
                return words
            return torch.stack(
                [torch.nn.functional.normalize(word.mean(0), dim=0) for word in words]
            )

    def _words(self, text: str) -> Tensor:
        vectors = []
        for word in ["[CLS]", *text.split()]:
            generator = torch.Generator().manual_seed(zlib.crc32(word.encode()))
            vectors.append(torch.randn(384, generator=generator))
        return torch.stack(vectors)
