"""Context encoders of tasks, missions and goals, and several of them joined."""

from unittest.mock import patch

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from mission_cases import (
    N_TASKS,
    N_TOKENS,
    SPACE,
    WORDS,
    Words,
    encode,
    mission_context,
    missions,
)
from torch import Tensor, nn

from mirl.configs.errors import ConfigError
from mirl.configs.networks import (
    CombinedContextConfig,
    ContextConfig,
    GoalContextConfig,
    MissionContextConfig,
    RawContextConfig,
    TaskIdContextConfig,
)
from mirl.policies import contexts
from mirl.policies.contexts import CONTEXT_BUCKET, ContextEncoder, build_context
from mirl.policies.features import UniqueRows, unique_rows
from mirl.policies.grouped_matmul import ContextGroups

close = torch.testing.assert_close

# ----------------------------------------------------------------------------------------- missions


@pytest.mark.parametrize("words", WORDS)
def test_distinct_missions_are_encoded_once(words: Words) -> None:
    """The mission encoder gets every distinct mission exactly once."""
    context = mission_context(words)
    read: list[Tensor] = []
    context.get_submodule("words").register_forward_pre_hook(
        lambda _, inputs: read.append(inputs[0])
    )
    result = context({"mission": missions([1, 2], [3], [1, 2], [3], [3], [4, 5, 6])})
    assert [tokens.any(1).sum() for tokens in read] == [3]
    assert result.groups.count == 3
    assert result.values.shape == (CONTEXT_BUCKET, 8)
    assert result.groups.index.shape == (6,)


@given(st.integers(1, N_TOKENS - 1))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_missions_are_padded_to_buckets(count: int) -> None:
    """The number of encoded missions is a multiple of the bucket size."""
    result = mission_context("bag")(
        {"mission": missions(*([token] for token in range(1, count + 1)))}
    )
    assert result.groups.count == count <= len(result.values) < count + CONTEXT_BUCKET
    assert len(result.values) % CONTEXT_BUCKET == 0


@pytest.mark.parametrize("words", WORDS)
def test_given_distinct_missions_are_used(words: Words) -> None:
    """Distinct missions that are given as such are not searched again."""
    context, texts = mission_context(words), missions([1, 2], [3], [1, 2], [4, 5, 6])
    rows, groups = unique_rows(texts.long())
    with patch.object(
        contexts, "unique_rows", side_effect=AssertionError("the rows are distinct already")
    ):
        given = context({"mission": UniqueRows(rows.to(torch.int16), groups)})
    assert given.groups is groups
    close(given.per_row(), encode(context, texts))


# ------------------------------------------------------------------------------------- tasks, goals


def one_hot(tasks: list[int]) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(tasks), N_TASKS).float()


def test_task_shapes_of_sb3_agree() -> None:
    """The one-hot task gives one context in SB3's rollout form and its minibatch form."""
    context = build_context(TaskIdContextConfig(dim=8), SPACE)
    tasks = one_hot([2, 0, 3, 2])
    of_rollouts = context({"task": tasks})
    of_minibatches = context({"task": tasks.unsqueeze(1)})
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
    assert context({"task": one_hot([1] * 20)}).values.shape == (N_TASKS, 8)


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_given_distinct_tasks_are_used(shape: tuple[int, ...]) -> None:
    """Distinct tasks that are given as such are the ones that are encoded."""
    context = build_context(TaskIdContextConfig(dim=8), SPACE)
    groups = ContextGroups(torch.tensor([1, 0, 1]), 2)
    given = context({"task": UniqueRows(torch.tensor([3, 0]).reshape(shape), groups)})
    assert given.values.shape == (2, 8)
    close(given.per_row(), encode(context, one_hot([0, 3, 0])))


def test_goals_are_encoded_row_by_row() -> None:
    """Every goal has its own context, which does not depend on the batch."""
    context = build_context(GoalContextConfig(dim=8), SPACE)
    goals = torch.randn(5, 2, 3)
    result = context({"desired_goal": goals})
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
    result = context({"desired_goal": goals[index]})
    assert result.values.shape == (3, 8)
    close(result.per_row(), encode(context, goals)[index], rtol=1e-4, atol=1e-5)
    groups = ContextGroups(index, 3)
    given = context({"desired_goal": UniqueRows(goals.to(torch.uint8).flatten(1), groups)})
    assert given.groups is groups
    close(given.per_row(), result.per_row(), rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TaskIdContextConfig(key="mission"), "task_id needs a Discrete space under 'mission'"),
        (
            MissionContextConfig(key="desired_goal"),
            "under .*mirl.envs.ContractObservation makes them of a text.*use context=auto",
        ),
        (
            GoalContextConfig(key="mission", encoder="grid"),
            "encoder=grid needs a Box of rank 3 under 'mission', got Box",
        ),
        (
            MissionContextConfig(key="task"),
            "under .*mirl.envs.ContractObservation makes them of a text.*use context=auto",
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


# --------------------------------------------------------------------------------- several contexts


def combined_context(*parts: ContextConfig) -> ContextEncoder:
    torch.manual_seed(0)
    return build_context(CombinedContextConfig(parts=parts, dim=6), SPACE)  # type: ignore[arg-type]


MISSION = MissionContextConfig(encoder="bag", dim=8)
TASK = TaskIdContextConfig(dim=5)
PARTS: dict[str, tuple[ContextConfig, ...]] = {
    "mission_task": (MISSION, TASK),
    "task_mission": (TASK, MISSION),
    "goal_mission": (GoalContextConfig(dim=4), MISSION),
    "all": (GoalContextConfig(dim=4, normalize=True), MISSION, TASK),
}


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_combined_context_equals_each_row(parts: tuple[ContextConfig, ...]) -> None:
    """The joined context is relu(V [z₁, z₂, …] + b), row by row, and with ``UniqueRows``."""
    context = combined_context(*parts)
    texts = missions([1, 2], [3], [1, 2], [3], [4, 5, 6], [1, 2])
    batch = {
        "mission": texts,
        "task": one_hot([0, 1, 3, 1, 0, 0]),
        "desired_goal": torch.randn(6, 2, 3),
    }
    encoders = context.get_submodule("parts")
    join = context.get_submodule("join")
    expected = []
    for row in range(6):
        alone = {key: value[row : row + 1] for key, value in batch.items()}
        joined = torch.cat([part(alone).per_row() for part in encoders], dim=1)  # type: ignore[union-attr]
        expected.append(torch.relu(join(joined)))
    result = context(batch)
    close(result.per_row(), torch.cat(expected), rtol=1e-4, atol=1e-6)
    assert context.out_dim == 6
    # one key may come as its distinct rows
    key = context.grouped_key
    assert key in ("mission", "task")
    rows = texts.long() if key == "mission" else batch["task"].argmax(-1, keepdim=True)
    given = context({**batch, key: unique_rows(rows)})
    close(given.per_row(), result.per_row(), rtol=1e-4, atol=1e-6)


def test_combined_words_sum_to_context() -> None:
    """The words of a combined context are those of its parts, each in its share of V."""
    context = combined_context(MISSION, TASK)
    batch = {"mission": missions([1, 2], [3]), "task": one_hot([0, 1])}
    encoded = context(batch)
    joined = encoded.select(encoded.groups.index)
    mission, task = (part(batch) for part in context.get_submodule("parts"))  # type: ignore[union-attr]
    assert joined.words.shape == (2, mission.words.shape[1] + 1, context.out_dim)
    join = context.get_submodule("join")
    share = join.weight[:, : mission.values.shape[1]]  # type: ignore[index]
    alone = mission.select(mission.groups.index)
    is_word = alone.words.any(-1, keepdim=True)
    close(joined.words[:, :-1], (alone.words @ share.T + join.bias) * is_word)
    assert not is_word.all()
    close(torch.relu(joined.words[:, -1] + alone.values @ share.T), joined.values)
    assert task.words is None


def test_few_combinations_are_joined_once() -> None:
    """Rows with the same mission and the same task share one context."""
    context = combined_context(MISSION, TASK)
    texts = missions([1, 2], [3], [1, 2], [3], [3])
    result = context({"mission": texts, "task": one_hot([0, 1, 0, 2, 1])})
    assert result.groups is not None
    assert result.groups.index.unique().numel() == 3
    assert len(result.values) == CONTEXT_BUCKET


def test_goal_keeps_digits_under_autocast() -> None:
    """A goal in real units gives different contexts for 512 and 513 in bfloat16, as in float32."""
    space = spaces.Dict({"desired_goal": spaces.Box(0, 1000, (2,), np.float32)})
    context = build_context(GoalContextConfig(dim=8), space)
    goals = torch.tensor([[512.0, 513.0], [513.0, 512.0]])
    hidden: list[Tensor] = []
    context.get_submodule("mlp.0").register_forward_hook(lambda *call: hidden.append(call[2]))
    plain = context({"desired_goal": goals}).values
    with torch.autocast("cpu", torch.bfloat16):
        half = context({"desired_goal": goals}).values
    close(hidden[1], hidden[0])
    # the first layer tells them apart; the output is in bfloat16
    assert not torch.equal(hidden[1][0], hidden[1][1])
    assert plain.dtype == torch.float32
    assert half.isfinite().all()


# ---------------------------------------------------------------------------------------------- raw


def test_raw_context_is_scaled_value() -> None:
    """The raw context is the value itself, scaled, and each distinct value is one context."""
    context = build_context(RawContextConfig(scale=0.2), SPACE)
    goals = torch.randn(3, 2, 3)[[0, 1, 0, 2, 1]]
    result = context({"desired_goal": goals})
    assert result.groups is not None
    assert len(result.values) == result.groups.count == 3
    close(result.per_row(), 0.2 * goals.flatten(1))
    assert context.out_dim == 6
    assert not list(context.parameters())


def test_raw_task_is_one_hot() -> None:
    """The raw context of a task id is one-hot, in both of SB3's shapes."""
    context = build_context(RawContextConfig(key="task"), SPACE)
    tasks = one_hot([2, 0, 3, 2])
    close(context({"task": tasks}).per_row(), tasks)
    close(context({"task": tasks.unsqueeze(1)}).per_row(), tasks)


def test_raw_context_rejects_texts() -> None:
    with pytest.raises(ConfigError, match=r"'mission' is a text; use context=mission"):
        build_context(RawContextConfig(key="mission"), SPACE)
