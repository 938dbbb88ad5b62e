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
) -> Fusion:
    """Build the fusion that ``config`` belongs to, for a vector or for each position by itself.

    Args:
        config: options of the fusion, built-in or a user's.
        features_dim: X, the size of the features.
        context_dim: Z, the size of the context.
        out_dim: O, the size of the output.
        gain: gain of the map that the fusion starts as.

    Returns:
        The fusion, newly initialized.

    Raises:
        ConfigError: if no fusion has this config, or if it has another constructor.
    """
    fusion_class = Fusion.class_of(config)
    return _construct(fusion_class, config, features_dim, context_dim, out_dim, gain)


def build_map_fusion(
    config: BaseFusionConfig, features_dim: int, context_dim: int, out_dim: int
) -> Fusion:
    """Build the fusion of a feature map.

    ``attention`` attends over the cells; every other built-in fusion treats each cell by itself.

    Args:
        config: options of the fusion, built-in or a user's.
        features_dim: X, the features of a cell.
        context_dim: Z, the size of the context.
        out_dim: O, the features of a fused cell.

    Returns:
        The fusion, newly initialized.

    Raises:
        ConfigError: if no fusion has this config, or if it has another constructor.
    """
    fusion_class = Fusion.class_of(config)
    fusion_class = fusion_class.map_class or fusion_class
    return _construct(fusion_class, config, features_dim, context_dim, out_dim, RELU_GAIN)


def _construct(
    fusion_class: type[Fusion],
    config: BaseFusionConfig,
    features_dim: int,
    context_dim: int,
    out_dim: int,
    gain: float,
) -> Fusion:
    return fusion_class.construct(
        features_dim=features_dim,
        context_dim=context_dim,
        out_dim=out_dim,
        config=config,
        gain=gain,
    )
