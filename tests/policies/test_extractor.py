"""``FusionExtractor``: use of the keys, shapes that SB3 gives, and errors."""

from typing import Any
from unittest.mock import patch

import gymnasium as gym
import numpy as np
import pytest
import torch
from batches import batch_of
from gymnasium import spaces
from minigrid.wrappers import FullyObsWrapper
from stable_baselines3.common.preprocessing import preprocess_obs
from torch import Tensor
from torch.nn.functional import one_hot

from mirl.configs.errors import ConfigError
from mirl.configs.networks import (
    GoalContextConfig,
    GridEncoderConfig,
    ImageEncoderConfig,
    MissionContextConfig,
    NetworkConfig,
    TaskIdContextConfig,
    VectorEncoderConfig,
    network_config,
)
from mirl.envs import ContractObservation
from mirl.policies import FusionExtractor
from mirl.policies.contexts import (
    CombinedContext,
    GoalContext,
    MissionContext,
    TaskIdContext,
)
from mirl.policies.encoders import CellsEncoder, GridCells, ImageCells, VectorEncoder
from mirl.policies.extractor import extractor_part
from mirl.policies.features import UniqueRows
from mirl.policies.fusions import AttentionMask, CrossAttention, Film, Fusion
from mirl.policies.grouped_matmul import ContextGroups

close = torch.testing.assert_close

CODES = np.broadcast_to(np.array([10, 5, 3], np.uint8), (7, 7, 3))
GRID = spaces.Dict(
    {
        "direction": spaces.Discrete(4),
        "image": spaces.Box(np.zeros_like(CODES), CODES.copy(), (7, 7, 3), np.uint8),
        "mission": spaces.Box(0, 20, (6,), np.int16),
        "task": spaces.Discrete(3),
    }
)
PIXELS = spaces.Dict(
    {"image": spaces.Box(0, 255, (40, 40, 3), np.uint8), "task": spaces.Discrete(3)}
)
POINT = spaces.Box(-1, 1, (3,), np.float32)
GOAL = spaces.Dict(
    {
        "observation": spaces.Box(-1, 1, (5,), np.float32),
        "achieved_goal": POINT,
        "desired_goal": POINT,
    }
)
TASKS = spaces.Dict(
    {"observation": spaces.Box(-1, 1, (5,), np.float32), "task": spaces.Discrete(3)}
)


def with_random_weights(extractor: FusionExtractor) -> FusionExtractor:
    """Move the weights off their start, where the output ignores the context."""
    with torch.no_grad():
        for weight in extractor.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return extractor


# ------------------------------------------------------------------------------------------ routing


def test_minigrid_keys() -> None:
    """The keys of MiniGrid's observations are assigned to context, image and other inputs."""
    one_task = spaces.Dict({**GRID.spaces, "task": spaces.Discrete(1)})
    extractor = FusionExtractor(one_task)
    assert isinstance(extractor.context, MissionContext)
    assert isinstance(extractor.encoder, CellsEncoder)
    assert isinstance(extractor.encoder.to_cells, GridCells)
    assert extractor.context.keys == ("mission",)
    assert extractor.encoder.image_key == "image"
    assert extractor.encoder.other_keys == ("direction",)


def test_mission_and_tasks_are_joined() -> None:
    """The mission and the index of several tasks form one context; once only the mission did."""
    extractor = FusionExtractor(GRID)
    assert isinstance(extractor.context, CombinedContext)
    assert extractor.context.keys == ("mission", "task")
    assert extractor.encoder.keys == ("direction", "image")


def test_real_minigrid_observation() -> None:
    """The wrapped observation of a MiniGrid environment passes through the extractor."""
    env = ContractObservation(FullyObsWrapper(gym.make("MiniGrid-GoToDoor-5x5-v0")))
    assert isinstance(env.observation_space, spaces.Dict)
    extractor = FusionExtractor(env.observation_space, sites=("map", "vector"))
    assert isinstance(extractor.encoder, CellsEncoder)
    assert isinstance(extractor.encoder.to_cells, GridCells)
    observation, _ = env.reset(seed=0)
    tensors = {key: torch.as_tensor(value).unsqueeze(0) for key, value in observation.items()}
    batch = preprocess_obs(tensors, env.observation_space)
    assert isinstance(batch, dict)
    assert extractor(batch).shape == (1, extractor.features_dim)


def test_pixels_use_the_image_encoder() -> None:
    """Pixels are encoded by the image encoder."""
    extractor = FusionExtractor(PIXELS)
    assert isinstance(extractor.encoder, CellsEncoder)
    assert isinstance(extractor.encoder.to_cells, ImageCells)


def test_goal_environment_keys() -> None:
    """The keys of a goal environment are assigned to context and inputs."""
    extractor = FusionExtractor(GOAL)
    assert isinstance(extractor.context, GoalContext)
    assert isinstance(extractor.encoder, VectorEncoder)
    assert extractor.context.keys == ("desired_goal",)
    assert set(extractor.encoder.keys) == {"observation", "achieved_goal"}


def test_task_id_keys() -> None:
    """A task id is the context if there is no other."""
    extractor = FusionExtractor(TASKS)
    assert isinstance(extractor.context, TaskIdContext)
    assert extractor.encoder.keys == ("observation",)


def test_what_is_not_asked_is_seen() -> None:
    """Beside a chosen context, a text is an input; once the keys of other contexts were dropped."""
    extractor = FusionExtractor(GRID, context="task_id")
    assert extractor.context.keys == ("task",)
    assert extractor.encoder.keys == ("direction", "image", "mission")


def test_task_index_is_no_default_input() -> None:
    """The index of the task is no input, even if it is not the context."""
    extractor = FusionExtractor(GRID, context="mission")
    assert extractor.encoder.keys == ("direction", "image")


def test_context_key_is_not_an_input() -> None:
    """A context under an unusual key is not an input as well."""
    extractor = FusionExtractor(TASKS, context=GoalContextConfig(key="task"))
    assert extractor.encoder.keys == ("observation",)
    space = spaces.Dict({"observation": POINT, "where": spaces.Box(-1, 1, (2, 2, 2))})
    extractor = FusionExtractor(space, context=GoalContextConfig(key="where"))
    assert isinstance(extractor.encoder, VectorEncoder)
    assert extractor.encoder.keys == ("observation",)


def test_observation_keys_choose_the_inputs() -> None:
    """Only the keys in ``observation_keys`` are inputs."""
    extractor = FusionExtractor(GOAL, observation_keys=["observation"])
    assert extractor.encoder.keys == ("observation",)
    batch = batch_of(GOAL, 4)
    close(extractor(batch), extractor({**batch, "achieved_goal": torch.zeros(4, 3)}))


def test_vector_encoder_flattens_images() -> None:
    """The vector encoder takes images as inputs, too."""
    extractor = FusionExtractor(GRID, encoder="vector")
    assert isinstance(extractor.encoder, VectorEncoder)
    batch = batch_of(GRID, 4)
    other = {**batch, "image": batch["image"].flip(1)}
    assert (extractor(batch) - extractor(other)).abs().max() > 1e-4


@pytest.mark.parametrize("key", ["image", "direction"])
@pytest.mark.parametrize("sites", [(), ("map",), ("vector",), ("map", "vector")])
def test_every_input_changes_the_features(key: str, sites: Any) -> None:
    """The features depend on every input."""
    torch.manual_seed(0)
    extractor = FusionExtractor(GRID, sites=sites)
    batch, other = batch_of(GRID, 4), batch_of(GRID, 4, seed=1)
    assert (extractor(batch) - extractor({**batch, key: other[key]})).abs().max() > 1e-4


# -------------------------------------------------------------------------------------------- parts


def test_configs_equal_names() -> None:
    """Names and config objects build the same networks."""
    named = FusionExtractor(
        GRID, fusion="film", context="mission", encoder="grid", sites=("map", "vector")
    )
    configured = FusionExtractor(
        GRID,
        fusion=named.network.fusion,
        context=MissionContextConfig(),
        encoder=GridEncoderConfig(),
        sites=("map", "vector"),
    )
    assert isinstance(named.map_fusion, Film)
    assert [weight.shape for weight in named.parameters()] == [
        weight.shape for weight in configured.parameters()
    ]


def test_attention_differs_by_site() -> None:
    """``attention`` is cross-attention on the map and a mask on the vector."""
    extractor = FusionExtractor(GRID, fusion="attention", sites=("map", "vector"))
    assert isinstance(extractor.map_fusion, CrossAttention)
    assert isinstance(extractor.vector_fusion, AttentionMask)


@pytest.mark.parametrize("return_features", [False, True])
def test_features_dim_is_the_vector_size(return_features: bool) -> None:
    """``features_dim``, which SB3 reads, is the size of the vector."""
    extractor = FusionExtractor(
        GRID,
        context=TaskIdContextConfig(dim=10),
        encoder=GridEncoderConfig(features_dim=20, channels=8),
        return_features=return_features,
    )
    features = extractor(batch_of(GRID, 3))
    vector = features.vector if return_features else features
    assert extractor.features_dim == 20
    assert vector.shape == (3, 20)


def test_features_contain_the_context() -> None:
    """The returned features contain the context of every row."""
    extractor = FusionExtractor(GRID, context=TaskIdContextConfig(dim=10), return_features=True)
    batch = batch_of(GRID, 6)
    with torch.no_grad():
        features = extractor(batch)
        close(features.context.per_row(), extractor.context.mlp(batch["task"]))  # type: ignore[union-attr,operator]
        extractor.return_features = False
        close(extractor(batch), features.vector, rtol=0, atol=0)


MASKED = spaces.Dict({**GRID, "action_mask": spaces.MultiBinary(4)})


@pytest.mark.parametrize("form", ["rollouts", "minibatches", "distinct"])
def test_features_contain_task_and_mask(form: str) -> None:
    """The returned features contain the task and the action mask of every row."""
    batch, tasks = batch_of(MASKED, 6), torch.tensor([2, 0, 1, 1, 2, 0])
    task: dict[str, Any] = {
        "rollouts": one_hot(tasks, 3).float(),
        "minibatches": one_hot(tasks, 3).float().unsqueeze(1),
        "distinct": UniqueRows(
            torch.tensor([0, 2, 1]), ContextGroups(torch.tensor([1, 0, 2, 2, 1, 0]), 3)
        ),
    }
    features = FusionExtractor(MASKED, context="task_id", return_features=True)(
        {**batch, "task": task[form]}
    )
    close(features.task, tasks)
    assert batch["action_mask"].unique().tolist() == [0, 1]
    close(features.action_mask, batch["action_mask"].bool())


def test_index_select_equals_selected_observations() -> None:
    """Selected rows of the features are the features of the selected observations."""
    extractor, rows = FusionExtractor(MASKED, return_features=True), torch.tensor([0, 2, 2, 5])
    batch = batch_of(MASKED, 6)
    some, alone = (
        extractor(batch).index_select(0, rows),
        extractor({key: value[rows] for key, value in batch.items()}),
    )
    close(
        (some.vector, some.context.per_row()),
        (alone.vector, alone.context.per_row()),
        rtol=1e-4,
        atol=1e-5,
    )
    close((some.task, some.action_mask), (alone.task, alone.action_mask))


def test_missing_task_and_mask_are_none() -> None:
    """Without these keys, the task and the action mask of the features are None."""
    features = FusionExtractor(GOAL, return_features=True)(batch_of(GOAL, 3))
    assert (features.task, features.action_mask) == (None, None)
    some = features.index_select(0, torch.tensor([1]))
    assert (some.task, some.action_mask) == (None, None)


def test_action_mask_is_no_default_input() -> None:
    """The action mask is an input only if ``observation_keys`` contains it."""
    assert FusionExtractor(MASKED).encoder.keys == ("direction", "image")
    named = FusionExtractor(MASKED, observation_keys=("image", "action_mask")).encoder
    assert isinstance(named, CellsEncoder)
    assert named.other_keys == ("action_mask",)
    # 4 numbers of the mask join the last layer
    of_map = FusionExtractor(MASKED, observation_keys=("image",)).encoder
    assert isinstance(of_map, CellsEncoder)
    assert named.linear.in_features == of_map.linear.in_features + 4


@pytest.mark.parametrize(("context", "key"), [("task_id", "task"), ("mission", "mission")])
def test_unique_rows_equal_plain_contexts(context: str, key: str) -> None:
    """Contexts given as ``UniqueRows`` give the same features as one context per row."""
    extractor = with_random_weights(FusionExtractor(GRID, context=context, sites=("map", "vector")))
    batch = batch_of(GRID, 6)
    rows, index = torch.unique(batch[key], dim=0, return_inverse=True)
    distinct = rows.argmax(-1) if key == "task" else rows.long()
    close(
        extractor({**batch, key: UniqueRows(distinct, ContextGroups(index, len(rows)))}),
        extractor(batch),
    )


@pytest.mark.parametrize("context", ["task_id", "mission"])
@pytest.mark.parametrize("sites", [("map",), ("vector",), ("map", "vector")])
def test_sb3_shapes_agree(context: str, sites: Any) -> None:
    """SB3's shapes of rollouts, minibatches and single rows give the same features."""
    extractor = with_random_weights(
        FusionExtractor(GRID, context=context, sites=sites, return_features=True)
    )

    def features(batch: dict[str, Tensor]) -> Tensor:
        given = extractor(batch)
        return torch.cat([given.vector, given.context.per_row()], dim=1)

    batch = batch_of(GRID, 6)
    minibatch = {
        **batch,
        "task": batch["task"].unsqueeze(1),
        "direction": batch["direction"].unsqueeze(1),
    }
    close(features(minibatch), features(batch))
    rows = [
        features({key: value[row : row + 1] for key, value in batch.items()}) for row in range(6)
    ]
    close(features(batch), torch.cat(rows), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fusion", ["bilinear", "film", "metric"])
@pytest.mark.parametrize("context", ["task_id", "mission"])
def test_fusion_per_cell_type_is_equivalent(context: str, fusion: str) -> None:
    """Fusing every cell type once equals fusing every cell, in value and gradients."""
    codes = np.broadcast_to(
        np.array([2, 1], np.uint8), (4, 4, 2)
    )  # 6 cell types, 3 tasks, 4 rows of 16 cells
    space = spaces.Dict(
        {**GRID, "image": spaces.Box(np.zeros_like(codes), codes.copy(), (4, 4, 2), np.uint8)}
    )
    extractor = with_random_weights(
        FusionExtractor(space, fusion=fusion, context=context, sites=("map",))
    )
    batch = {**batch_of(space, 4), "mission": torch.tensor([[1.0], [2], [1], [2]])}
    assert extractor.map_fusion is not None
    sizes: list[torch.Size] = []
    extractor.map_fusion.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape))
    results = []
    for per_type in (True, False):
        with patch.object(Fusion, "is_positionwise", per_type):
            features = extractor(batch)
        assert sizes.pop()[-2] == (6 if per_type else 16)
        extractor.zero_grad()
        features.square().sum().backward()
        results.append((features, [weight.grad for weight in extractor.parameters()]))
    close(*results, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------------- arguments


def test_network_equals_separate_options() -> None:
    """A network config builds the same extractor as the separate options."""
    parts: dict[str, Any] = {"fusion": "film", "context": "task_id", "sites": ("map", "vector")}
    torch.manual_seed(0)
    separate = FusionExtractor(GRID, **parts)
    torch.manual_seed(0)
    single = FusionExtractor(GRID, network_config(**parts))
    close(single.state_dict(), separate.state_dict(), rtol=0, atol=0)
    assert single.network == separate.network
    assert single.network.is_resolved


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (network_config(sites=("map",)), {"fusion": "film"}, "got network and fusion"),
        (network_config(sites=("heads",)), {}, "site 'heads' is outside a features extractor"),
        (network_config(sites=(), memory="gru"), {}, "has no memory, got memory=gru"),
    ],
)
def test_unfit_network_raises(
    network: NetworkConfig, options: dict[str, Any], message: str
) -> None:
    """A network beside separate options, with heads, or with a memory raises an error."""
    with pytest.raises(ConfigError, match=message):
        FusionExtractor(GRID, network, **options)


def test_policy_network_without_heads() -> None:
    """The extractor's part of a policy's network has neither heads nor a memory."""
    part = extractor_part(network_config(sites=("map", "heads"), memory="lstm", fusion="gate"))
    assert part == network_config(sites=("map",), fusion="gate")


# ------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("space", "options", "message"),
    [
        (GRID, {"fusion": "bilinaer"}, "Did you mean 'bilinear'"),
        (GRID, {"fusion": "lowrank"}, "Did you mean 'low_rank'"),
        (GRID, {"fusion": 3}, "expected one of concat, bilinear, .*, got 3"),
        (GRID, {"context": "misison"}, "Did you mean 'mission'"),
        (GRID, {"encoder": "gird"}, "Did you mean 'grid'"),
        (GRID, {"sites": ("vectro",)}, "unknown site 'vectro'. Did you mean 'vector'"),
        (GRID, {"sites": ("heads",)}, "use mirl.policies.FusionPolicy"),
        (
            GRID,
            {"observation_keys": ["imgae"]},
            r"no key 'imgae'.*; use observation_keys=\[image\]$",
        ),
        (
            GRID,
            {"context": MissionContextConfig(key="mision")},
            "no key 'mision'.*; use context.key=mission$",
        ),
        (GRID, {"context": "goal"}, "no key 'desired_goal'"),
        (GRID, {"encoder": "vector", "sites": ("map",)}, "encoder 'vector' has no cells"),
        (GOAL, {"sites": ("map",)}, "encoder 'vector' has no cells"),
        (GOAL, {"encoder": "image"}, "encoder=image needs pixels, an observation of rank 3"),
        (POINT, {}, "expected a Dict observation space"),
        (spaces.Dict({"observation": POINT}), {}, "no context among the observation's keys"),
        (spaces.Dict({"desired_goal": POINT}), {}, "expected an input beside the context"),
    ],
)
def test_mistakes_raise_config_error(
    space: spaces.Dict, options: dict[str, Any], message: str
) -> None:
    """A mistake in the arguments raises ConfigError with a hint."""
    with pytest.raises(ConfigError, match=message):
        FusionExtractor(space, **options)


def test_two_images_are_both_read() -> None:
    """Each of two images has an encoder of its own; once two images were rejected."""
    space = spaces.Dict({"a": PIXELS["image"], "b": PIXELS["image"], "task": PIXELS["task"]})
    extractor = FusionExtractor(space, sites=("map",))
    batch = batch_of(space, 4)
    for key in ("a", "b"):
        other = {**batch, key: batch[key].flip(1)}
        assert (extractor(batch) - extractor(other)).abs().max() > 1e-5


def test_config_options_are_used() -> None:
    """The options of config objects determine the sizes."""
    extractor = FusionExtractor(
        PIXELS,
        encoder=ImageEncoderConfig(channels=4, features_dim=11),
        context=TaskIdContextConfig(dim=6),
    )
    assert (extractor.features_dim, extractor.context_dim) == (11, 6)
    assert (
        FusionExtractor(TASKS, encoder=VectorEncoderConfig(hidden=(), features_dim=9)).features_dim
        == 9
    )


def test_relative_goal_is_the_difference() -> None:
    """A relative goal is encoded and normalized as the difference of the two keys."""
    context = GoalContextConfig(dim=8, normalize=True, relative_to="achieved_goal")
    extractor = FusionExtractor(GOAL, context=context, return_features=True)
    plain = FusionExtractor(
        GOAL, context=GoalContextConfig(dim=8, normalize=True), return_features=True
    )
    plain.load_state_dict(extractor.state_dict())
    there = batch_of(GOAL, 16)
    left = {**there, "desired_goal": there["desired_goal"] - there["achieved_goal"]}
    extractor.update_statistics(there)
    plain.update_statistics(left)
    close(extractor(there).context.values, plain(left).context.values)
    assert not torch.allclose(extractor(there).context.values, plain(there).context.values)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            GoalContextConfig(relative_to="achieved"),
            "no key 'achieved'.*; use context.relative_to=achieved_goal$",
        ),
        (
            GoalContextConfig(relative_to="observation"),
            r"two Box spaces of the same shape.*'observation' Box.*\(5,\)",
        ),
        (
            GoalContextConfig(key="task", relative_to="observation"),
            "two Box spaces of the same shape, 'task' is Discrete",
        ),
    ],
)
def test_relative_goal_needs_equal_shapes(config: GoalContextConfig, message: str) -> None:
    """A goal can be relative only to an existing key of its own shape."""
    space = spaces.Dict({**GOAL.spaces, "task": spaces.Discrete(3)})
    with pytest.raises(ConfigError, match=message):
        FusionExtractor(space, context=config)
