"""Construction of the fusion that a config belongs to."""

from mirl.configs.networks import (
    BaseFusionConfig,
)
from mirl.policies.fusions.affine import RELU_GAIN
from mirl.policies.fusions.fusion import Fusion


def build_fusion(
    config: BaseFusionConfig,
    features_dim: int,
    context_dim: int,
    out_dim: int,
    *,
    gain: float = RELU_GAIN,
    attribute_dims: tuple[int, ...] = (),
) -> Fusion:
    """Build the fusion that ``config`` belongs to, for a vector or for each position separately.

    Args:
        config: options of the fusion, built-in or custom.
        features_dim: X, the size of the features.
        context_dim: Z, the size of the context.
        out_dim: O, the size of the output.
        gain: gain of the map that the fusion starts as.
        attribute_dims: number of features of each attribute, which come first; empty for none.

    Returns:
        The fusion, newly initialized.

    Raises:
        ConfigError: if no fusion has this config, or if its constructor does not fit.
    """
    return _construct(
        Fusion.class_of(config),
        config,
        features_dim,
        context_dim,
        out_dim,
        gain,
        attribute_dims,
    )


def build_map_fusion(
    config: BaseFusionConfig,
    features_dim: int,
    context_dim: int,
    out_dim: int,
    *,
    attribute_dims: tuple[int, ...] = (),
) -> Fusion:
    """Build the fusion of a feature map.

    ``attention`` attends over the cells; every other built-in fusion treats each cell separately.

    Args:
        config: options of the fusion, built-in or custom.
        features_dim: X, the features of a cell.
        context_dim: Z, the size of the context.
        out_dim: O, the features of a fused cell.
        attribute_dims: number of features of each attribute of a cell, which come first; empty for
            none.

    Returns:
        The fusion, newly initialized.

    Raises:
        ConfigError: if no fusion has this config, or if its constructor does not fit.
    """
    fusion_class = Fusion.class_of(config)
    fusion_class = fusion_class.map_class or fusion_class
    return _construct(
        fusion_class,
        config,
        features_dim,
        context_dim,
        out_dim,
        RELU_GAIN,
        attribute_dims,
    )


def _construct(
    fusion_class: type[Fusion],
    config: BaseFusionConfig,
    features_dim: int,
    context_dim: int,
    out_dim: int,
    gain: float,
    attribute_dims: tuple[int, ...],
) -> Fusion:
    arguments: dict[str, object] = {
        "features_dim": features_dim,
        "context_dim": context_dim,
        "out_dim": out_dim,
        "config": config,
        "gain": gain,
    }
    if fusion_class.uses_attributes:
        arguments["attribute_dims"] = attribute_dims
    return fusion_class.construct(**arguments)
