"""Context encoders of tasks, missions and goals."""

from typing import Literal
from unittest.mock import patch

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mirl.configs.errors import ConfigError
from mirl.configs.networks import (
    ContextConfig,
    GoalContextConfig,
    MissionContextConfig,
    TaskIdContextConfig,
)
from mirl.policies import contexts
from mirl.policies.contexts import MISSION_BUCKET, build_context
from mirl.policies.features import Context, UniqueRows, unique_rows
from mirl.policies.grouped_matmul import ContextGroups
from mirl.policies.positions import sinusoidal_positions

close = torch.testing.assert_close
Words = Literal["attention", "gru", "bag"]
WORDS: tuple[Words, ...] = ("attention", "gru", "bag")

LENGTH, N_TOKENS, N_TASKS = 10, 30, 4
SPACE = spaces.Dict(
    {
        "mission": spaces.Box(0, N_TOKENS - 1, (LENGTH,), np.int16),
        "task": spaces.Discrete(N_TASKS),
        "desired_goal": spaces.Box(-1, 1, (2, 3), np.float32),
    }
)


def missions(*texts: list[int]) -> Tensor:
    """Token ids as SB3 gives them: floats, padded with zeros."""
    return torch.tensor([text + [0] * (LENGTH - len(text)) for text in texts], dtype=torch.float32)


def mission_context(words: Words, seed: int = 0, layers: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return build_context(MissionContextConfig(encoder=words, dim=8, heads=2, layers=layers), SPACE)


def encode(module: nn.Module, observation: Tensor) -> Tensor:
    context: Context = module(observation)
    return context.per_row()


# ----------------------------------------------------------------------------------------- missions


@pytest.mark.parametrize("words", WORDS)
def test_distinct_missions_are_encoded_once(words: Words) -> None:
    """The mission encoder gets every distinct mission exactly once."""
    context = mission_context(words)
    read: list[Tensor] = []
    context.get_submodule("words").register_forward_pre_hook(
        lambda _, inputs: read.append(inputs[0])
    )
    result = context(missions([1, 2], [3], [1, 2], [3], [3], [4, 5, 6]))
    assert [tokens.any(1).sum() for tokens in read] == [3]
    assert result.groups.count == 3
    assert result.values.shape == (MISSION_BUCKET, 8)
    assert result.groups.index.shape == (6,)


@given(st.integers(1, N_TOKENS - 1))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_missions_are_padded_to_buckets(count: int) -> None:
    """The number of encoded missions is a multiple of the bucket size."""
    result = mission_context("bag")(missions(*([token] for token in range(1, count + 1))))
    assert result.groups.count == count <= len(result.values) < count + MISSION_BUCKET
    assert len(result.values) % MISSION_BUCKET == 0


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


@pytest.mark.parametrize("words", ["attention", "gru"])
def test_word_order_matters(words: Words) -> None:
    near, far = encode(mission_context(words), missions([4, 9, 2], [2, 9, 4]))
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


@pytest.mark.parametrize("words", WORDS)
def test_given_distinct_missions_are_used(words: Words) -> None:
    """Distinct missions that are given as such are not searched again."""
    context, texts = mission_context(words), missions([1, 2], [3], [1, 2], [4, 5, 6])
    rows, groups = unique_rows(texts.long())
    with patch.object(
        contexts, "unique_rows", side_effect=AssertionError("the rows are distinct already")
    ):
        given = context(UniqueRows(rows.to(torch.int16), groups))
    assert given.groups is groups
    close(given.per_row(), encode(context, texts))


# ------------------------------------------------------------------------------------- tasks, goals


def one_hot(tasks: list[int]) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(tasks), N_TASKS).float()


def test_task_shapes_of_sb3_agree() -> None:
    """The one-hot task gives one context in SB3's rollout form and its minibatch form."""
    context = build_context(TaskIdContextConfig(dim=8), SPACE)
    tasks = one_hot([2, 0, 3, 2])
    of_rollouts, of_minibatches = context(tasks), context(tasks.unsqueeze(1))
    close(of_minibatches.per_row(), of_rollouts.per_row())
    assert of_minibatches.per_row().shape == (4, 8)


def test_task_context_equals_mlp() -> None:
    """The context of a task is an MLP of its one-hot id."""
    context = build_context(TaskIdContextConfig(dim=8), SPACE)
    tasks = one_hot([2, 0, 3, 2])
    mlp = context.get_submodule("mlp")
    close(encode(context, tasks), mlp(tasks))
    assert isinstance(mlp[-1], nn.ReLU)  # type: ignore[index]


def test_default_task_mlp_fits_old_checkpoints() -> None:
    """The default MLP has the parameters that older checkpoints contain."""
    context = build_context(TaskIdContextConfig(), SPACE)
    assert {name: tuple(weight.shape) for name, weight in context.named_parameters()} == {
        "mlp.0.weight": (64, N_TASKS),
        "mlp.0.bias": (64,),
        "mlp.2.weight": (64, 64),
        "mlp.2.bias": (64,),
    }


def test_task_mlp_has_requested_sizes() -> None:
    """The hidden layers have the requested sizes, and ``dim`` is the size of the last layer."""
    context = build_context(TaskIdContextConfig(hidden=(6, 7), dim=5), SPACE)
    widths = [layer.out_features for layer in context.modules() if isinstance(layer, nn.Linear)]
    assert (widths, context.out_dim) == ([6, 7, 5], 5)
    assert encode(context, one_hot([1, 2])).shape == (2, 5)


def test_no_hidden_layers_give_one_hot() -> None:
    """Without hidden layers the context is the one-hot id itself."""
    context, tasks = (
        build_context(TaskIdContextConfig(hidden=(), dim=9), SPACE),
        one_hot([2, 0, 3, 2]),
    )
    assert context.out_dim == N_TASKS
    assert not list(context.parameters())
    close(encode(context, tasks), tasks, rtol=0, atol=0)
    close(encode(context, tasks.unsqueeze(1)), tasks, rtol=0, atol=0)


def test_each_task_is_encoded_once() -> None:
    """A batch of one task still encodes each task once, not each row."""
    context = build_context(TaskIdContextConfig(dim=8), SPACE)
    assert context(one_hot([1] * 20)).values.shape == (N_TASKS, 8)


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_given_distinct_tasks_are_used(shape: tuple[int, ...]) -> None:
    """Distinct tasks that are given as such are the ones that are encoded."""
    context = build_context(TaskIdContextConfig(dim=8), SPACE)
    groups = ContextGroups(torch.tensor([1, 0, 1]), 2)
    given = context(UniqueRows(torch.tensor([3, 0]).reshape(shape), groups))
    assert given.values.shape == (2, 8)
    close(given.per_row(), encode(context, one_hot([0, 3, 0])))


def test_goals_are_encoded_row_by_row() -> None:
    """Every goal has its own context, which does not depend on the batch."""
    context = build_context(GoalContextConfig(dim=8), SPACE)
    goals = torch.randn(5, 2, 3)
    result = context(goals)
    assert result.groups is None
    close(result.per_row(), torch.stack([encode(context, goal.unsqueeze(0))[0] for goal in goals]))


CODES = np.broadcast_to(np.array([4, 2], np.uint8), (5, 6, 2))
PICTURES = spaces.Dict(
    {"desired_goal": spaces.Box(np.zeros_like(CODES), CODES.copy(), (5, 6, 2), np.uint8)}
)


def goal_images(size: int, distinct: int) -> tuple[Tensor, Tensor]:
    """Return goal images (distinct, 5, 6, 2) as SB3 gives them, and the index of each row."""
    generator = torch.Generator().manual_seed(0)
    codes = [torch.randint(0, high, (distinct, 5, 6), generator=generator) for high in (5, 3)]
    return torch.stack(codes, dim=-1).float(), torch.randint(
        0, distinct, (size,), generator=generator
    )


def test_goal_image_context_equals_manual_encoding() -> None:
    """A symbolic goal image is encoded by convolutions over its embedded codes."""
    torch.manual_seed(0)
    context = build_context(GoalContextConfig(encoder="grid", dim=8), PICTURES)
    goals, _ = goal_images(1, 3)
    embedding = context.get_parameter("encoder.to_cells.embedding.weight")
    by_code = embedding[:, :5].T[goals[..., 0].long()] + embedding[:, 5:].T[goals[..., 1].long()]
    cells = (
        (by_code + context.get_parameter("encoder.to_cells.embedding.bias"))
        .relu()
        .permute(0, 3, 1, 2)
    )
    mapped = context.get_submodule("encoder.convolutions")(cells).permute(0, 2, 3, 1).flatten(1)
    expected = context.get_submodule("encoder.linear")(mapped).relu()
    assert context.out_dim == 8
    close(encode(context, goals), expected, rtol=1e-4, atol=1e-5)
    assert expected.std(dim=0).max() > 1e-3


def test_distinct_goal_images_are_encoded_once() -> None:
    """Every distinct goal image is encoded once, found or given."""
    context = build_context(GoalContextConfig(encoder="grid", dim=8), PICTURES)
    goals, index = goal_images(40, 3)
    result = context(goals[index])
    assert result.values.shape == (3, 8)
    close(result.per_row(), encode(context, goals)[index], rtol=1e-4, atol=1e-5)
    groups = ContextGroups(index, 3)
    given = context(UniqueRows(goals.to(torch.uint8), groups))
    assert given.groups is groups
    close(given.per_row(), result.per_row(), rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TaskIdContextConfig(key="mission"), "task_id needs a Discrete space under 'mission'"),
        (
            MissionContextConfig(key="desired_goal"),
            "under .*; wrap the environment in mirl.envs.ContractObservation",
        ),
        (
            GoalContextConfig(encoder="grid"),
            "encoder=grid needs a Box of rank 3 under 'desired_goal', got Box",
        ),
        (
            MissionContextConfig(key="task"),
            "under .*; wrap the environment in mirl.envs.ContractObservation",
        ),
    ],
)
def test_space_must_fit_the_context(config: ContextConfig, message: str) -> None:
    """A space that does not fit the context encoder raises an error that says what is needed."""
    with pytest.raises(ConfigError, match=message):
        build_context(config, SPACE)


def test_raw_text_error_names_the_wrapper() -> None:
    """The error for a raw text names the wrapper that tokenizes it."""
    with pytest.raises(ConfigError, match="ContractObservation"):
        build_context(MissionContextConfig(), spaces.Dict({"mission": spaces.Text(20)}))
