"""Choice of the fusion and its sites by the kinds of the inputs and of the context."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from mirl.configs.errors import ConfigError
from mirl.configs.networks import (
    AnyContextConfig,
    AutoFusionConfig,
    BaseEncoderConfig,
    BaseFusionConfig,
    BilinearConfig,
    CombinedContextConfig,
    CombinedEncoderConfig,
    GridEncoderConfig,
    LowRankConfig,
    MissionContextConfig,
    ProductConfig,
    ScaledFusionConfig,
    SentenceContextConfig,
    Site,
    TaskIdContextConfig,
)
from mirl.policies.routing.encoders import has_feature_map
from mirl.policies.routing.options import accepts, with_options

Seen = Literal["codes", "map", "vector"]
"""Kind of the encoded inputs: a feature map of cells whose codes have channels of their own
(``encoder.attributes``), any other feature map (pixels, planes), or no feature map."""
Asked = Literal["words", "task_id", "goal", "nothing"]
"""Kind of the context: a text, alone or with other contexts; a task id; anything else; nothing, if
the context is a text that never changes."""


class Choice(NamedTuple):
    """A fusion, and the sites at which it was measured."""

    fusion: BaseFusionConfig
    sites: tuple[Site, ...]


ON_MAP: tuple[Site, ...] = ("map", "heads")
"""Sites if there is a feature map."""
ON_VECTOR: tuple[Site, ...] = ("vector", "heads")
"""Sites if there is no feature map."""

CHOICES: Mapping[tuple[Seen, Asked], Choice] = {
    ("codes", "words"): Choice(
        ProductConfig(products=8, main_rank=4, main_attributes=1, combine="sum", bound=2.0),
        ON_MAP,
    ),
    ("codes", "task_id"): Choice(BilinearConfig(), ON_MAP),
    ("codes", "goal"): Choice(BilinearConfig(), ON_MAP),
    ("codes", "nothing"): Choice(BilinearConfig(), ON_MAP),
    ("map", "words"): Choice(BilinearConfig(), ON_MAP),
    ("map", "task_id"): Choice(BilinearConfig(), ON_MAP),
    ("map", "goal"): Choice(BilinearConfig(), ON_MAP),
    ("map", "nothing"): Choice(BilinearConfig(), ON_MAP),
    ("vector", "words"): Choice(BilinearConfig(), ON_VECTOR),
    ("vector", "task_id"): Choice(BilinearConfig(), ON_VECTOR),
    ("vector", "goal"): Choice(LowRankConfig(), ON_VECTOR),
    ("vector", "nothing"): Choice(BilinearConfig(), ON_VECTOR),
}
"""The fusion and the sites of ``fusion=auto``, decided by the tables of docs/results.md."""
ELSEWHERE = BilinearConfig()
"""The fusion of ``fusion=auto`` if other sites are given than those of its choice."""


def resolve_fusion(
    fusion: BaseFusionConfig | AutoFusionConfig,
    sites: Sequence[Site] | None,
    encoder: BaseEncoderConfig,
    context: AnyContextConfig,
    constant_keys: frozenset[str] = frozenset(),
    *,
    has_heads: bool = True,
) -> Choice:
    """Return the fusion and its sites, with open choices resolved from encoder and context.

    Args:
        fusion: the fusion, or ``auto``.
        sites: the sites; None to choose them.
        encoder: a resolved encoder.
        context: a resolved context.
        constant_keys: observation keys of texts that never change.
        has_heads: False for a features extractor, for which the site "heads" is not chosen.

    Returns:
        The fusion and the sites. Given ones are kept.

    Raises:
        ConfigError: if an option is given for ``auto`` that the chosen fusion lacks, unless exactly
            one fusion has it.
    """
    default_sites = ON_MAP if has_feature_map(encoder) else ON_VECTOR
    if sites is None and not has_heads:
        sites = default_sites[:1]
    if isinstance(fusion, AutoFusionConfig):
        choice = CHOICES[kind_seen(encoder), kind_asked(context, constant_keys)]
        if sites is not None and set(sites) != set(choice.sites):
            choice = Choice(ELSEWHERE, default_sites)
        chosen = _with_given_options(choice.fusion, fusion)
        if isinstance(chosen, type(choice.fusion)):
            default_sites = choice.sites
    else:
        chosen = fusion
    if not chosen.fits_heads:
        default_sites = default_sites[:1]
    chosen = _with_context_scale(chosen, context)
    if sites is None:
        return Choice(chosen, default_sites)
    return Choice(chosen, tuple(sites))


def kind_seen(encoder: BaseEncoderConfig) -> Seen:
    """Return the kind of the encoded inputs.

    Args:
        encoder: a resolved encoder.
    """
    if not has_feature_map(encoder):
        return "vector"
    return "codes" if _has_attributes(encoder) else "map"


def _has_attributes(encoder: BaseEncoderConfig) -> bool:
    """Return True if the cells of every feature map have attributes."""
    if isinstance(encoder, CombinedEncoderConfig):
        maps = [part for part in encoder.parts.values() if has_feature_map(part)]
        return all(_has_attributes(part) for part in maps)
    return isinstance(encoder, GridEncoderConfig) and bool(encoder.attributes)


def kind_asked(context: AnyContextConfig, constant_keys: frozenset[str] = frozenset()) -> Asked:
    """Return the kind of the context.

    Args:
        context: a resolved context.
        constant_keys: observation keys of texts that never change.
    """
    parts: Sequence[AnyContextConfig] = [context]
    if isinstance(context, CombinedContextConfig):
        parts = context.parts
    parts = [part for part in parts if not constant_keys.issuperset(part.keys)]
    if not parts:
        return "nothing"
    if any(isinstance(part, MissionContextConfig | SentenceContextConfig) for part in parts):
        return "words"
    if all(isinstance(part, TaskIdContextConfig) for part in parts):
        return "task_id"
    return "goal"


def _with_given_options(chosen: BaseFusionConfig, given: AutoFusionConfig) -> BaseFusionConfig:
    """Return the chosen fusion with the given options, or the only other one that has them all."""
    options: Mapping[str, Any] = given.options
    missing = [name for name, value in options.items() if not accepts(chosen, name, value)]
    if not missing:
        return with_options(chosen, options, "fusion")
    owners: list[BaseFusionConfig] = []
    for kind in given.kinds():
        other = kind()
        assert isinstance(other, BaseFusionConfig)
        if all(accepts(other, name, value) for name, value in options.items()):
            owners.append(other)
    if len(owners) == 1:
        return with_options(owners[0], options, "fusion")
    name = missing[0]
    advice = f"remove fusion.{name}"
    if owners:
        kinds = ", ".join(f"fusion={owner.kind}" for owner in owners)
        advice = f"use one of {kinds}, or {advice}"
    raise ConfigError(
        f"fusion.{name} is not an option of {chosen.kind}, the fusion that the observation and the "
        f"context call for; {advice}"
    )


def _with_context_scale(fusion: BaseFusionConfig, context: AnyContextConfig) -> BaseFusionConfig:
    """Return a fusion with a scale of its own if it multiplies by a one-hot context."""
    if not isinstance(fusion, ScaledFusionConfig) or fusion.context_scale is not None:
        return fusion
    if getattr(fusion, "hidden", ()):
        # a generator multiplies by its hidden layer, which is dense
        return fusion
    if isinstance(context, TaskIdContextConfig) and not context.hidden:
        return fusion.model_copy(update={"context_scale": fusion.one_hot_scale})
    return fusion
