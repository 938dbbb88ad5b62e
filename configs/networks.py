"""The schema of networks: how observation and context are encoded, and how they are fused.

Each group is a closed union, told apart by ``kind``.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, model_validator

from mirl.configs.config import Config, NoBrackets, Width, Widths
from mirl.configs.errors import ConfigError, nearest
from mirl.configs.keys import DESIRED_GOAL_KEY, MISSION_KEY, TASK_KEY

Site = Literal["map", "vector", "heads"]


# ----------------------------------------------------------------------------------------------------- interactions


class ConcatConfig(Config):
    """y = V x + Uᵀ z + b, the additive baseline."""

    kind: Literal["concat"] = "concat"
    hidden: Literal[0] | Width = 0
    """Width of a hidden ReLU layer over [x, z], to match the parameters of another fusion; 0 is the affine form."""


class BilinearConfig(Config):
    """y = zᵀ𝕎x + Uᵀz + Vx + b, the general multiplicative interaction."""

    kind: Literal["bilinear"] = "bilinear"


class LowRankConfig(Config):
    """y = P((A x) ⊙ (B z)) + Uᵀz + Vx + b, a rank-R factorization of 𝕎."""

    kind: Literal["low_rank"] = "low_rank"
    rank: Width = 32
    """R, the number of products."""


class HyperConfig(Config):
    """y = W′(z) x + b′(z) with (W′, b′) = g(z); an affine g makes it equal to ``bilinear``."""

    kind: Literal["hyper"] = "hyper"
    hidden: Widths = (32,)
    """Hidden ReLU layers of the generator g; empty for an affine g."""


class FilmConfig(Config):
    """y = (1 + γ(z)) ⊙ (V x + b) + β(z), feature-wise linear modulation."""

    kind: Literal["film"] = "film"


class GateConfig(Config):
    """y = σ(g(x, z)) ⊙ (V x + b), a bounded diagonal form."""

    kind: Literal["gate"] = "gate"


class AttentionConfig(Config):
    """On a vector a bounded mask, y = V (m ⊙ x) + b with m from M(x, z); on cells, multi-head cross-attention."""

    kind: Literal["attention"] = "attention"
    heads: Width = 4
    """Heads of the cross-attention over cells."""
    mask: Literal["sigmoid", "softmax"] = "sigmoid"
    """On a vector: weights bounded by (0, 1), or on the simplex (times the number of features)."""
    rank: Width = 32
    """Rank of the interaction M(x, z) that makes the mask."""


class MetricConfig(Config):
    """y = V x + b + W s(x, z), with s the similarities of x and z under several learned projections."""

    kind: Literal["metric"] = "metric"
    projections: Width = 8
    """Number of learned metrics; each gives an inner product and a Mahalanobis distance."""
    rank: Width = 16
    """Dimension in which each metric compares."""


FusionConfig = (
    ConcatConfig
    | BilinearConfig
    | LowRankConfig
    | HyperConfig
    | FilmConfig
    | GateConfig
    | AttentionConfig
    | MetricConfig
)


# ------------------------------------------------------------------------------------------- contexts and encoders


class TaskIdContextConfig(Config):
    """z = relu(MLP(one-hot task id)), or the one-hot id itself; a mission, if the tasks state one, is not read."""

    kind: Literal["task_id"] = "task_id"
    key: str = TASK_KEY
    """Key of the observation that holds the task index."""
    dim: Width = 64
    """Z, the size of the context."""
    hidden: Widths = (64,)
    """Hidden ReLU layers before the last; empty for z = one-hot, which makes ``bilinear`` heads one head per task."""


class MissionContextConfig(Config):
    """z from the words of the mission."""

    kind: Literal["mission"] = "mission"
    key: str = MISSION_KEY
    """Key of the observation that holds the mission's token ids."""
    encoder: Literal["attention", "gru", "bag"] = "attention"
    """Self-attention with sinusoidal positions, a recurrent network, or a bag of words."""
    dim: Width = 64
    """Z, the size of the context."""
    heads: Width = 4
    """Heads of the self-attention; they must divide ``dim``."""
    layers: Width = 1
    """Layers of the self-attention or of the GRU."""

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> Self:
        if self.encoder == "attention" and (self.dim % self.heads or self.dim % 2):
            raise ValueError(
                f"dim must be even and a multiple of heads={self.heads}, got {self.dim}"
            )
        return self


class GoalContextConfig(Config):
    """z = relu(MLP(goal)), or for a picture of the goal what an encoder of its own reads from it."""

    kind: Literal["goal"] = "goal"
    key: str = DESIRED_GOAL_KEY
    """Key of the observation that holds the goal."""
    relative_to: str = ""
    """Key of what is subtracted from the goal first, as ``achieved_goal``: what is left to do; nothing if empty."""
    encoder: Literal["mlp", "grid"] = "mlp"
    """An MLP over the flattened goal; or, for a goal in MiniGrid's symbolic form, cells and convolutions."""
    dim: Width = 64
    """Z, the size of the context."""
    normalize: bool = False
    """Bring each number of the goal to mean 0 and deviation 1, by all that training has seen so far."""

    @model_validator(mode="after")
    def _codes_are_no_numbers(self) -> Self:
        for option in ("normalize", "relative_to"):
            if getattr(self, option) and self.encoder == "grid":
                raise ValueError(
                    f"{option} is for goals of real numbers, and encoder=grid reads codes"
                )
        return self


ContextConfig = TaskIdContextConfig | MissionContextConfig | GoalContextConfig


class AutoContextConfig(Config):
    """The goal, else the mission, else the task id, whichever the observation has."""

    kind: Literal["auto"] = "auto"


class GridEncoderConfig(Config):
    """MiniGrid's symbolic view: an embedding per channel, then convolutions; gives cells and a vector."""

    kind: Literal["grid"] = "grid"
    channels: Width = 32
    """Features of each cell."""
    features_dim: Width = 128
    """Size of the feature vector."""


class ImageEncoderConfig(Config):
    """RGB pixels: strided convolutions; gives cells and a vector."""

    kind: Literal["image"] = "image"
    channels: Width = 32
    """Features of each cell."""
    features_dim: Width = 128
    """Size of the feature vector."""


class VectorEncoderConfig(Config):
    """Everything flattened, then an MLP; gives a vector and no cells."""

    kind: Literal["vector"] = "vector"
    hidden: Widths = (128,)
    """Hidden ReLU layers."""
    features_dim: Width = 128
    """Size of the feature vector."""
    normalize: bool = False
    """Bring each number of the observation to mean 0 and deviation 1, by all that training has seen so far."""


EncoderConfig = GridEncoderConfig | ImageEncoderConfig | VectorEncoderConfig


class AutoEncoderConfig(Config):
    """By what is seen: a symbolic grid, pixels, or neither; without cells, fusion on the map moves to the vector."""

    kind: Literal["auto"] = "auto"


# ------------------------------------------------------------------------------------------------------------- memory


class NoMemoryConfig(Config):
    """The policy reads the present observation alone."""

    kind: Literal["none"] = "none"


class RecurrentCoreConfig(Config):
    """What all memories share."""

    size: Width = 128
    """Size of what is remembered."""
    normalize: bool = True
    """LayerNorm, without weights, of the features that are read: what those of all observations have in common would
    drown what differs."""
    skip_connection: bool = False
    """Add what is remembered to the features, by a projection that starts at zero, and let these learn as without a
    memory: no gradient flows to them through it."""


class LstmConfig(RecurrentCoreConfig):
    """A long short-term memory."""

    kind: Literal["lstm"] = "lstm"


class GruConfig(RecurrentCoreConfig):
    """A gated recurrent unit."""

    kind: Literal["gru"] = "gru"


Gate = Literal["input", "forget", "cell", "output"]


class MiLstmConfig(RecurrentCoreConfig):
    """An LSTM whose gates take an interaction M(x_t, h_{t−1}), scaled by the context."""

    kind: Literal["mi_lstm"] = "mi_lstm"
    form: Literal["full", "low_rank", "diagonal"] = "low_rank"
    """The multiplicative term: hᵀ𝕎x; P((A x) ⊙ (B h)); or α ⊙ (V x) ⊙ (U h)."""
    rank: Width = 32
    """R of the form ``low_rank``."""
    gates: Annotated[tuple[Gate, ...], NoBrackets] = get_args(Gate)
    """The gates that have the multiplicative term."""
    scaled_by_context: bool = True
    """The context z scales what each gate takes, by 1 + γ(z)."""

    @model_validator(mode="after")
    def _gates_are_distinct(self) -> Self:
        if not self.gates or len(set(self.gates)) != len(self.gates):
            raise ValueError(
                f"gates must name at least one gate and none twice, got {list(self.gates)}"
            )
        return self


class MultiHeadCoreConfig(RecurrentCoreConfig):
    """A memory whose heads share its size among them."""

    heads: Width = 4
    """Heads, of size/heads each; they must divide ``size``."""

    @model_validator(mode="after")
    def _heads_divide_size(self) -> Self:
        if self.size % self.heads:
            raise ValueError(f"size must be a multiple of heads={self.heads}, got {self.size}")
        return self


class FastWeightsConfig(MultiHeadCoreConfig):
    """A matrix of associations for each head, written by the delta rule and read by a query: linear attention."""

    kind: Literal["fast_weights"] = "fast_weights"


class AttentionMemoryConfig(MultiHeadCoreConfig):
    """Causal multi-head attention over the last timesteps of the episode."""

    kind: Literal["attention"] = "attention"
    window: Annotated[int, Field(ge=1, le=1024)] = 32
    """L, the timesteps that are looked at, the present one included."""
    positions: Literal["relative", "sinusoidal"] = "relative"
    """How the time of a timestep is known: by its distance, or by its number in the episode."""


RecurrentConfig = LstmConfig | GruConfig | MiLstmConfig | FastWeightsConfig | AttentionMemoryConfig
MemoryConfig = NoMemoryConfig | RecurrentConfig


class NetworkConfig(Config):
    """The networks of a policy: what is encoded, how observation and context are fused, and where.

    The single argument that travels from the builder down to the features extractor.
    """

    fusion: Annotated[FusionConfig, Field(discriminator="kind")] = BilinearConfig()
    """How the observation and the context are fused."""
    context: Annotated[ContextConfig | AutoContextConfig, Field(discriminator="kind")] = (
        AutoContextConfig()
    )
    """How the context is encoded."""
    encoder: Annotated[EncoderConfig | AutoEncoderConfig, Field(discriminator="kind")] = (
        AutoEncoderConfig()
    )
    """How the observation is encoded."""
    sites: Annotated[tuple[Site, ...], NoBrackets] = ("vector", "heads")
    """Where to fuse: the feature map, the feature vector, the heads; one or several."""
    memory: Annotated[MemoryConfig, Field(discriminator="kind")] = NoMemoryConfig()
    """Recurrent core between the features extractor and the MLPs."""
    observation_keys: tuple[str, ...] | None = None
    """Keys of the observation that are inputs; None for every key that is neither the context nor
    the action mask."""

    @property
    def is_resolved(self) -> bool:
        """Return True if neither the context nor the encoder is ``auto``."""
        return not isinstance(self.context, AutoContextConfig) and not isinstance(
            self.encoder, AutoEncoderConfig
        )


def network_config(
    *,
    fusion: str | FusionConfig = "bilinear",
    context: str | ContextConfig | None = None,
    encoder: str | EncoderConfig | None = None,
    sites: Sequence[Site] = ("vector", "heads"),
    memory: str | MemoryConfig = "none",
    observation_keys: Sequence[str] | None = None,
) -> NetworkConfig:
    """Build a ``NetworkConfig`` from names ("film", "mission", ...) or config objects.

    Args:
        fusion: name of a fusion, or its config with options.
        context: name or config of the context encoder; None to choose it from the observation space.
        encoder: name or config of the encoder; None to choose it from the observation space.
        sites: one or several of "map", "vector" and "heads".
        memory: name or config of the recurrent core; "none" for a feed-forward policy.
        observation_keys: keys of the observation that are inputs; None for all that are left.

    Returns:
        The frozen configuration.

    Raises:
        ConfigError: if a name is unknown; names the nearest one.
    """
    return NetworkConfig(
        fusion=choose(fusion, FusionConfig),
        context=choose(context or "auto", ContextConfig | AutoContextConfig),
        encoder=choose(encoder or "auto", EncoderConfig | AutoEncoderConfig),
        sites=tuple(sites),
        memory=choose(memory, MemoryConfig),
        observation_keys=None if observation_keys is None else tuple(observation_keys),
    )


def choose(part: str | Config, union: Any) -> Any:
    """A member of a union of configs by its ``kind``, with its defaults; a config is passed through.

    :raises ConfigError: naming the nearest kind.
    """
    members = get_args(union)
    if isinstance(part, members):
        return part
    kinds = {member.model_fields["kind"].default: member for member in members}
    if isinstance(part, str) and part in kinds:
        return kinds[part]()
    raise ConfigError(
        f"expected one of {', '.join(kinds)}, got {part!r}." + nearest(str(part), kinds)
    )
