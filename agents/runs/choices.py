"""Adoption of choices from the run that a training command continues, if it leaves them open."""

from typing import Any

from mirl.agents.runs.run_directory import RunDirectory
from mirl.configs.agents import OnPolicyConfig
from mirl.configs.aliases import FORMER_DEFAULTS
from mirl.configs.compose import validate
from mirl.configs.config import Config
from mirl.configs.networks import AutoFusionConfig, BaseFusionConfig
from mirl.configs.schema import ResolvedConfig, TrainConfig
from mirl.configs.stored import CONFIG
from mirl.policies.routing.options import accepts, with_options

CHANGED_OPTIONS = {
    (group, option) for (group, _), former in FORMER_DEFAULTS.items() for option in former
}
"""Group and name of each option whose default has changed since the first version."""


def adopt_choices(
    config: TrainConfig, resolved: ResolvedConfig, stored: ResolvedConfig | None
) -> ResolvedConfig:
    """Complete a configuration with the choices of the run that it continues, if left open.

    These are the fusion and its sites, and the options whose default has changed since the first
    version, ``FORMER_DEFAULTS``. A .zip file of SB3 to start from has unscaled values.

    Args:
        config: the configuration of a training command.
        resolved: the same with ``auto`` resolved.
        stored: the configuration that its run directory holds, if there is one.

    Returns:
        The resolved configuration, completed from its run directory or from the run that it starts
        from; options that the command states are kept.

    Raises:
        ConfigError: the configuration of the other run is not valid.
    """
    if stored is None:
        if config.start_from is None:
            return resolved
        if not (config.start_from / CONFIG).exists():
            return _with_plain_values(config, resolved)
        stored = RunDirectory.open(config.start_from).config
    values = resolved.model_dump()
    others = stored.model_dump()
    if isinstance(config.fusion, AutoFusionConfig) and _agree(config.fusion, stored.fusion):
        values["fusion"] = others["fusion"]
    if config.sites is None:
        values["sites"] = others["sites"]
    for group, option in CHANGED_OPTIONS:
        part: Config = getattr(config, group)
        if not _has_option(part.model_dump(exclude_unset=True), option):
            values[group] = _with_option_of(values[group], others[group], option)
    if values == resolved.model_dump():
        return resolved
    return validate(ResolvedConfig, values)


def _with_plain_values(config: TrainConfig, resolved: ResolvedConfig) -> ResolvedConfig:
    """Return a configuration for weights that SB3 saved, whose value head is unscaled."""
    agent = resolved.agent
    if not isinstance(agent, OnPolicyConfig) or "scale_values" in config.agent.model_fields_set:
        return resolved
    return resolved.model_copy(update={"agent": agent.model_copy(update={"scale_values": False})})


def _agree(given: AutoFusionConfig, fusion: BaseFusionConfig) -> bool:
    """Return True if a fusion has the options that are given, with the same values."""
    if not all(accepts(fusion, name, value) for name, value in given.options.items()):
        return False
    return bool(with_options(fusion, given.options, "fusion") == fusion)


def _has_option(values: Any, option: str) -> bool:
    """Return True if an option has a value in plain values, at any depth."""
    if isinstance(values, dict):
        if values.get(option) is not None:
            return True
        return any(_has_option(value, option) for value in values.values())
    if isinstance(values, list | tuple):
        return any(_has_option(value, option) for value in values)
    return False


def _with_option_of(values: Any, others: Any, option: str) -> Any:
    """Return plain values with an option replaced by that of others, wherever both have it."""
    if isinstance(values, dict) and isinstance(others, dict):
        changed = dict(values)
        for name, value in values.items():
            if name not in others:
                continue
            if name == option:
                changed[name] = others[name]
            else:
                changed[name] = _with_option_of(value, others[name], option)
        return changed
    if isinstance(values, list | tuple) and isinstance(others, list | tuple):
        if len(values) != len(others):
            return values
        pairs = zip(values, others, strict=True)
        return tuple(_with_option_of(value, other, option) for value, other in pairs)
    return values
