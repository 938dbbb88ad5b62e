"""Choice of the encoder by the space of the inputs."""

from collections.abc import Mapping, Sequence
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space

from mirl.configs.errors import ConfigError
from mirl.configs.networks import (
    AutoEncoderConfig,
    BaseEncoderConfig,
    CombinedEncoderConfig,
    GridEncoderConfig,
    ImageEncoderConfig,
    TextEncoderConfig,
    VectorEncoderConfig,
)
from mirl.policies.encoders import (
    Encoder,
    Kind,
    cells_key,
    default_attributes,
    kind_of,
    reads_pixels,
)
from mirl.policies.routing.options import unused_option, validated, with_options


def resolve_encoder(
    config: BaseEncoderConfig | AutoEncoderConfig, space: spaces.Dict
) -> BaseEncoderConfig:
    """Return the encoder, with open choices resolved from the space of the inputs.

    Args:
        config: the encoder; ``auto`` chooses a kind for each key. A given kind is used for the
            keys that it can read, and each other key gets the kind that fits it.
        space: the space of the inputs.

    Returns:
        The encoder: a single kind if it reads all inputs, otherwise ``combined``. The number of
        ``attributes`` of a grid is set.

    Raises:
        ConfigError: if the given kind or an option fits no input.
    """
    return _with_attributes(_choose_encoder(config, space), space)


def _choose_encoder(
    config: BaseEncoderConfig | AutoEncoderConfig, space: spaces.Dict
) -> BaseEncoderConfig:
    kinds = {key: kind_of(part) for key, part in space.items()}
    match config:
        case AutoEncoderConfig():
            return _auto_encoder(config, kinds)
        case CombinedEncoderConfig():
            return _combined(config, kinds)
        case VectorEncoderConfig():
            return _given_encoder(config, kinds, [key for key in kinds if kinds[key] != "text"])
        case TextEncoderConfig():
            return _given_encoder(config, kinds, [key for key in kinds if kinds[key] == "text"])
        case GridEncoderConfig():
            return _cells_encoder(config, kinds, space)
        case ImageEncoderConfig():
            return _cells_encoder(config, kinds, space)
        case _:
            return config


def _with_attributes(encoder: BaseEncoderConfig, space: spaces.Dict) -> BaseEncoderConfig:
    """Return an encoder whose grids have an explicit number of attributes."""
    if isinstance(encoder, CombinedEncoderConfig):
        parts: dict[str, BaseEncoderConfig] = {}
        for key, part in encoder.parts.items():
            parts[key] = _with_attributes(part, spaces.Dict({key: space[key]}))
        return encoder.model_copy(update={"parts": parts})
    if not isinstance(encoder, GridEncoderConfig) or encoder.attributes is not None:
        return encoder
    try:
        attributes = default_attributes(space[cells_key(space, "grid")], encoder.channels)
    except ConfigError:
        # the encoder itself raises an error with the reason later
        attributes = 0
    return encoder.model_copy(update={"attributes": attributes})


def _given_encoder(
    config: VectorEncoderConfig | TextEncoderConfig, kinds: Mapping[str, Kind], keys: Sequence[str]
) -> BaseEncoderConfig:
    """Return an encoder with a given kind for some keys, and the fitting kinds for the others."""
    if not keys:
        listed = ", ".join(f"{key} ({kind})" for key, kind in kinds.items())
        raise ConfigError(f"encoder={config.kind} reads none of {listed}; use encoder=auto")
    if len(kinds) == 1 or (config.kind == "vector" and len(keys) == len(kinds)):
        return config
    parts: dict[str, BaseEncoderConfig] = dict.fromkeys(keys, config)
    dim = CombinedEncoderConfig().features_dim
    if config.kind == "vector":
        dim = config.features_dim
    return _combined(CombinedEncoderConfig(parts=parts, features_dim=dim), kinds)


def _cells_encoder(
    config: GridEncoderConfig | ImageEncoderConfig, kinds: Mapping[str, Kind], space: spaces.Dict
) -> BaseEncoderConfig:
    """Return an encoder with a given kind for every image, grid or plane that it can read."""
    cells = [key for key, part in space.items() if _reads_cells(config, kinds[key], part)]
    if not cells:
        listed = ", ".join(f"{key} ({kind})" for key, kind in kinds.items())
        needed = "codes or planes" if config.kind == "grid" else "pixels"
        raise ConfigError(
            f"encoder={config.kind} needs {needed}, an observation of rank 3, got {listed}; "
            "use encoder=auto"
        )
    if len(cells) == 1 and all(kinds[key] == "vector" for key in kinds if key not in cells):
        return config
    parts: dict[str, BaseEncoderConfig] = dict.fromkeys(cells, config)
    combined = CombinedEncoderConfig(parts=parts, features_dim=config.features_dim)
    return _combined(combined, kinds)


def _reads_cells(
    config: GridEncoderConfig | ImageEncoderConfig, kind: Kind, space: spaces.Space[object]
) -> bool:
    if kind not in ("image", "grid"):
        return False
    if config.kind == "grid":
        return not is_image_space(space)
    return reads_pixels(space)


def _combined(config: CombinedEncoderConfig, kinds: Mapping[str, Kind]) -> CombinedEncoderConfig:
    """Return a combined encoder with a part for each input."""
    _check_parts(config, kinds)
    parts: dict[str, BaseEncoderConfig] = {}
    for key, kind in kinds.items():
        parts[key] = config.parts.get(key) or _default_part(kind, config)
    return config.model_copy(update={"parts": parts})


def _check_parts(config: CombinedEncoderConfig, kinds: Mapping[str, Kind]) -> None:
    """Raise a ConfigError if a part is given for a key outside the inputs."""
    for key in config.parts:
        if key not in kinds:
            raise ConfigError(
                f"encoder.parts: '{key}' is not an input, they are {', '.join(kinds)}; "
                f"remove encoder.parts.{key}"
            )


def _default_part(kind: Kind, config: CombinedEncoderConfig) -> BaseEncoderConfig:
    """Return the encoder of a kind, with as many channels as the given parts have."""
    if kind in ("image", "grid"):
        for part in config.parts.values():
            if isinstance(part, GridEncoderConfig | ImageEncoderConfig):
                return ENCODERS[kind].model_validate({"channels": part.channels})
    return ENCODERS[kind]()


ENCODERS: Mapping[Kind, type[BaseEncoderConfig]] = {
    "text": TextEncoderConfig,
    "image": ImageEncoderConfig,
    "grid": GridEncoderConfig,
    "vector": VectorEncoderConfig,
}
"""Config of the encoder of each kind of space."""


def _auto_encoder(config: AutoEncoderConfig, kinds: Mapping[str, Kind]) -> BaseEncoderConfig:
    options = dict(config.options)
    listed = [f"{key} ({kind})" for key, kind in kinds.items()]
    given = options.pop("parts", {})
    single = None if given else _single_kind(kinds)
    chosen = set(kinds.values()) if single is None else {single}
    # an option that only ``vector`` has chooses this kind, unless there are only texts
    is_vector = False
    for name in options:
        owners = config.owners(name)
        if any(ENCODERS[kind] in owners for kind in chosen) or name == "features_dim":
            continue
        if VectorEncoderConfig not in owners or chosen == {"text"}:
            raise unused_option("encoder", name, listed)
        is_vector = True
    if is_vector:
        if "vector" not in kinds.values():
            return _flattened(options, kinds)
        # numbers next to an image go through an MLP of their own
        single = None
    if single is not None:
        return with_options(ENCODERS[single](), options, "encoder")
    joined: dict[str, Any] = {"parts": given}
    if "features_dim" in options:
        joined["features_dim"] = options.pop("features_dim")
    stated = validated(CombinedEncoderConfig, joined, "encoder")
    _check_parts(stated, kinds)
    parts = dict(stated.parts)
    for key, kind in kinds.items():
        if key in parts:
            continue
        fields = ENCODERS[kind].model_fields
        own = {name: value for name, value in options.items() if name in fields}
        parts[key] = with_options(_default_part(kind, stated), own, "encoder")
    in_order = {key: parts[key] for key in kinds}
    # validated again, because the channels of all parts must be equal
    joined["parts"] = {key: part.model_dump() for key, part in in_order.items()}
    return validated(CombinedEncoderConfig, joined, "encoder")


def _flattened(options: Mapping[str, Any], kinds: Mapping[str, Kind]) -> BaseEncoderConfig:
    """Return the encoder for a ``vector`` option if no key has numbers: it flattens all keys."""
    for name in options:
        if name not in VectorEncoderConfig.model_fields:
            raise unused_option("encoder", name, ["vector"])
    vector = with_options(VectorEncoderConfig(), options, "encoder")
    return _given_encoder(vector, kinds, [key for key in kinds if kinds[key] != "text"])


def _single_kind(kinds: Mapping[str, Kind]) -> Kind | None:
    """Return the kind whose encoder reads all inputs, or None if that takes a combined encoder."""
    cells = [kind for kind in kinds.values() if kind in ("image", "grid")]
    if "text" in kinds.values():
        return "text" if len(kinds) == 1 else None
    if len(cells) > 1:
        return None
    # the numbers next to one image are joined before its last layer
    return cells[0] if cells else "vector"


def has_feature_map(encoder: BaseEncoderConfig) -> bool:
    """Return True if an encoder has a feature map.

    Args:
        encoder: a resolved encoder.
    """
    if isinstance(encoder, CombinedEncoderConfig):
        return any(has_feature_map(part) for part in encoder.parts.values())
    return Encoder.class_of(encoder).has_map
