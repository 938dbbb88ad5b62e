"""Options of the engines, which execute the runs of a sweep or a comparison."""

from collections.abc import Mapping, MutableMapping
from typing import Literal

from pydantic import Field, PositiveInt

from mirl.configs.config import Config

EngineName = Literal["local", "slurm", "ray"]
"""Executor of the runs: processes of this machine, jobs of Slurm, tasks of a Ray cluster."""
SLURM = "slurm."
"""Beginning of the arguments that are options of Slurm's jobs."""
ENGINE_WORDS = ("engine", "jobs")
"""Arguments about the engine, beside those that begin with ``slurm.``."""
ENGINE_FIELDS = frozenset(("engine", "jobs", "slurm"))
"""Fields that change no result, so that a command may go on with other values of them."""


class EngineConfig(Config):
    """Executor of the runs, and their number at a time."""

    engine: EngineName = "local"
    """Executor of the runs: processes of this machine, jobs of Slurm, or tasks of the Ray
    cluster that runs (the last two need mirl[sweep], and a folder that all machines share)."""
    jobs: PositiveInt | None = None
    """Runs at a time, which share the cores; none for as many as there are cores, and on Slurm for
    all of them."""
    slurm: dict[str, str] = Field(default_factory=dict)
    """Options of Slurm's jobs, e.g. slurm.partition=gpu slurm.gpus_per_node=1 slurm.time=600
    (minutes), named as in submitit; slurm.cluster=local tries them without Slurm."""


def add_engine_word(values: MutableMapping[str, object], key: str, value: str) -> bool:
    """Add an argument to the values of an ``EngineConfig``, if it is about the engine.

    Args:
        values: the values so far.
        key: the argument before the equals sign.
        value: the text after it.

    Returns:
        True if it was one.
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
