"""Options of the engines, which execute the runs of a sweep or a comparison."""

from collections.abc import Mapping, MutableMapping
from typing import Literal

from pydantic import Field, PositiveInt

from mirl.configs.config import Config

EngineName = Literal["local", "slurm", "ray"]
"""Executor of the runs: processes on this machine, Slurm jobs, or tasks on a Ray cluster."""
SLURM = "slurm."
"""Prefix of the arguments that are options of Slurm jobs."""
ENGINE_WORDS = ("engine", "jobs")
"""Arguments about the engine, besides those that begin with ``slurm.``."""
ENGINE_FIELDS = frozenset(("engine", "jobs", "slurm"))
"""Fields that do not affect the results, so that a command may be continued with other values."""


class EngineConfig(Config):
    """Executor of the runs, and the number at a time."""

    engine: EngineName = "local"
    """Executor of the runs: processes on this machine, Slurm jobs, or tasks on a running Ray
    cluster (the last two need mirl[sweep], and a folder that all machines share)."""
    jobs: PositiveInt | None = None
    """Runs at a time, which share the cores; none for one per core, or all of them on Slurm."""
    slurm: dict[str, str] = Field(default_factory=dict)
    """Options of Slurm jobs, e.g. slurm.partition=gpu slurm.gpus_per_node=1 slurm.time=600
    (minutes), named as in submitit; slurm.cluster=local tries them without Slurm."""


def add_engine_word(values: MutableMapping[str, object], key: str, value: str) -> bool:
    """Add an argument to the values of an ``EngineConfig``, if it is about the engine.

    Args:
        values: the values so far.
        key: the argument before the equals sign.
        value: the text after it.

    Returns:
        True if it was about the engine.
    """
    if key in ENGINE_WORDS:
        values[key] = value
        return True
    if not key.startswith(SLURM):
        return False
    before = values.get("slurm")
    options = dict(before) if isinstance(before, Mapping) else {}
    values["slurm"] = {**options, key.removeprefix(SLURM): value}
    return True
