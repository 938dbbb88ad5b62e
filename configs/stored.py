"""The configuration that a run directory holds; read without torch, which is slow to load."""

from pathlib import Path

import yaml

from mirl.configs.aliases import migrate_config
from mirl.configs.compose import validate
from mirl.configs.errors import ConfigError
from mirl.configs.imports import check_allowed, import_module, named_code
from mirl.configs.schema import ResolvedConfig

CONFIG = "config.yaml"
"""File with the configuration of the run."""
FIRST_TEXT_LENGTH = 80
"""Length of the texts of a run whose config.yaml does not state one."""
MAX_CONFIG_BYTES = 2**18
"""Maximum size of a config.yaml; a suite of fifty tasks takes a twentieth of it."""
MAX_INTEGER_BITS = 64
"""Maximum length of the integers in a config.yaml; Python does not limit hexadecimal ones."""


def load_stored(run_dir: Path, advice: str = "") -> ResolvedConfig:
    """Load the configuration of a run, without importing modules that only its file names.

    Args:
        run_dir: the run directory.
        advice: end of the message about a module that may not be imported.

    Returns:
        The configuration.

    Raises:
        ConfigError: the folder is not a run directory, its configuration is not valid, or it names
            a module that may not be imported.
    """
    values = _load_yaml(run_dir)
    # before the validation, which imports the parts of networks that are named by their class
    check_allowed(named_code(values), f"{run_dir / CONFIG}: ", advice)
    config = validate(ResolvedConfig, migrate_config(values))
    for module in config.imports:
        import_module(module)
    return _with_first_texts(config)


def check_regular(path: Path) -> None:
    """Check that a path is a regular file and not a link, which could point anywhere.

    Args:
        path: the path.

    Raises:
        ConfigError: it is missing, a link, or not a file.
    """
    if path.is_symlink():
        raise ConfigError(f"{path} is a link, expected a file")
    if not path.exists():
        raise ConfigError(f"{path} is missing")
    if not path.is_file():
        raise ConfigError(f"{path} is not a file")


def _with_first_texts(config: ResolvedConfig) -> ResolvedConfig:
    """Add the former text options to a stored configuration that does not state them."""
    changes: dict[str, object] = {}
    if config.task.vocabulary is None:
        changes["vocabulary"] = ()
    if config.task.text_length is None:
        changes["text_length"] = FIRST_TEXT_LENGTH
    if not changes:
        return config
    return config.model_copy(update={"task": config.task.model_copy(update=changes)})


def _load_yaml(run_dir: Path) -> object:
    path = run_dir / CONFIG
    try:
        check_regular(path)
        size = path.stat().st_size
        if size > MAX_CONFIG_BYTES:
            raise ConfigError(
                f"its config.yaml has {size:,} bytes, expected at most {MAX_CONFIG_BYTES:,}"
            )
        return yaml.load(path.read_text(encoding="utf-8"), _LoaderWithoutAliases)
    except RecursionError:
        raise ConfigError(
            f"{run_dir} is not a run directory: its config.yaml is nested too deeply"
        ) from None
    except (ConfigError, OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())  # PyYAML's messages have several lines
        raise ConfigError(f"{run_dir} is not a run directory: {reason}") from None


class _LoaderWithoutAliases(yaml.SafeLoader):
    """PyYAML's safe loader without aliases, because a few lines of them can expand to any size."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias (*), which no configuration needs")
        return super().compose_node(parent, index)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> object:
        try:
            value = super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            # errors of int(), date() and the like, for a tag that does not fit its text
            kind = node.tag.rpartition(":")[2]
            raise yaml.YAMLError(f"line {node.start_mark.line + 1} holds no valid {kind}") from None
        # Python refuses to print longer integers, even in the message that they are not valid
        if isinstance(value, int) and value.bit_length() > MAX_INTEGER_BITS:
            raise yaml.YAMLError(f"line {node.start_mark.line + 1} holds too large a number")
        return value
