"""The run directory: ``config.yaml``, written before the first step, whose run it holds, and who trains in it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from mirl.agents.runs.atomic_files import check_regular, write_text
from mirl.configs.compose import validate
from mirl.configs.errors import ConfigError
from mirl.configs.schema import TrainConfig

FREE_FIELDS = frozenset(
    {"device", "progress", "runs_dir", "name", "on_fault", "max_restarts", "env_timeout"}
)
"""Fields in which a continued run may differ: they do not change what is learned."""

MAX_CONFIG_BYTES = 2**18
"""Bytes; a suite of fifty tasks takes a twentieth."""


def open_run(config: TrainConfig) -> bool:
    """Create the run directory, or check that the one there belongs to this configuration; True if it was there.

    :raises ConfigError: listing the differences, when another configuration has the name.
    """
    path = config.run_dir / "config.yaml"
    if path.exists():
        if differences := list(
            _differences(load_config(config.run_dir).model_dump(), config.model_dump())
        ):
            listed = "\n".join(
                f"  {name}: {old!r} there, {new!r} now" for name, old, new in differences
            )
            raise ConfigError(
                f"{config.run_dir} holds a run of another configuration; choose a name=…\n{listed}"
            )
        return True
    try:
        if config.run_dir.is_dir() and any(config.run_dir.iterdir()):
            raise ConfigError(
                f"{config.run_dir} exists and is not a run directory; choose a name=…"
            )
        config.run_dir.mkdir(parents=True, exist_ok=True)
        write_text(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    except OSError as error:
        raise ConfigError(
            f"the run directory {config.run_dir} cannot be made: {error.strerror}"
        ) from None
    return False


@contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """Within it no other process trains in the run directory; the operating system ends it with its process.

    :raises ConfigError: when another process does.
    """
    lock = FileLock(run_dir / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"another process is training in {run_dir}; wait for it, or choose a name=…"
        ) from None
    try:
        yield
    finally:
        lock.release()


def load_config(run_dir: Path) -> TrainConfig:
    """The configuration of a run.

    :raises ConfigError: when the folder is not a run directory.
    """
    path = run_dir / "config.yaml"
    try:
        check_regular(path)
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ConfigError(
                f"its config.yaml has {path.stat().st_size:,} bytes, expected at most {MAX_CONFIG_BYTES:,}"
            )
        values = yaml.load(path.read_text(encoding="utf-8"), _PlainLoader)
    except RecursionError:
        raise ConfigError(
            f"{run_dir} is not a run directory: its config.yaml is nested too deeply"
        ) from None
    except (ConfigError, OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{run_dir} is not a run directory: {error}") from None
    return validate(TrainConfig, values)


class _PlainLoader(yaml.SafeLoader):
    """Without aliases: a few lines of them unfold to any size."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias (*), which no configuration needs")
        return super().compose_node(parent, index)


def _differences(
    old: dict[str, Any], new: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    for key in sorted({*old, *new} - (FREE_FIELDS if not prefix else set())):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _differences(before, after, f"{prefix}{key}.")
        elif before != after:
            yield prefix + key, before, after
