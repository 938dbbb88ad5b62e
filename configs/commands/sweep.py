"""Schema and arguments of ``train.py --multirun``: a grid of runs, or a study of ranges."""

import re
import zlib
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, NamedTuple, Self

from pydantic import Field, PositiveInt, model_validator

from mirl.configs.commands.engines import EngineConfig, add_engine_word
from mirl.configs.commands.values import option_types, split_outside_brackets
from mirl.configs.commands.words import MULTIRUN, parse_overrides
from mirl.configs.compose import CONFIG_DIR, compose_train, split_config_dir, validate
from mirl.configs.config import Config
from mirl.configs.errors import ConfigError
from mirl.configs.schema import RUN_NAME, TrainConfig
from mirl.configs.tasks import file_name, short_file_name

DEFAULT_FOLDER = Path("sweeps")
"""Folder of the sweeps, inside the current one."""
DEFAULT_TRIALS = 20
"""Number of trials of a study, if it is not given."""
MAX_RUNS = 10_000
"""Maximum number of runs of a sweep."""
DIGITS = 12
"""Decimal places of the values of a range with steps."""
MAX_NAME = 128
"""Maximum length of the name of a run."""
OWN_WORDS = ("out", "n_trials")
"""Arguments of a sweep, besides those of the engine, that are not options of train.py."""
IN_NAME = ("task", "fusion", "memory", "agent", "split", "seed")
"""Options that are part of the default name of a run."""
SET_BY_STUDY = {
    "name": "the trials are numbered; use out=… for their folder",
    "runs_dir": "the trials are in the folder of the study; use out=…",
}
"""Options of train.py that a study sets itself, and what to do instead."""
RANGE = re.compile(r"(int|tag|range|interval|shuffle|sort|glob)\(")
"""Prefixes of values that are ranges in Hydra's syntax."""


class RangeConfig(Config):
    """Values between two bounds, of which a study tries some."""

    low: float
    """Smallest value."""
    high: float
    """Largest value."""
    log: bool = False
    """Draw the logarithm uniformly."""
    integer: bool = False
    """Whole numbers only."""
    step: Annotated[float, Field(gt=0)] | None = None
    """Distance between two values; none for any value."""

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> Self:
        if self.low >= self.high or (self.log and self.low <= 0):
            raise ValueError(
                "a range needs a lower bound below the upper one, and above 0 if it is logarithmic,"
                f" got {self.low:g} and {self.high:g}"
            )
        return self

    def typed(self, value: float) -> str:
        """Return one of the values as it would be typed.

        Args:
            value: the value.
        """
        return str(round(value)) if self.integer else repr(float(value))

    def values(self) -> list[str]:
        """Return all values of a range with steps, as they are typed."""
        assert self.step is not None
        number = round((self.high - self.low) / self.step)
        values = [round(self.low + index * self.step, DIGITS) for index in range(number + 1)]
        return [self.typed(value) for value in values]


class SweepRun(NamedTuple):
    """A run of a sweep."""

    config: TrainConfig
    """Its configuration."""
    settings: dict[str, str]
    """Values of the options that differ between the runs, as they are typed."""
    words: tuple[str, ...]
    """Arguments of train.py that define the run."""

    @property
    def name(self) -> str:
        """Return the name of its run directory."""
        return self.config.run_name


class SweepConfig(EngineConfig):
    """Runs for all combinations of values, or a study to find the best values."""

    options: tuple[tuple[str, str], ...]
    """Names and values of the options of train.py, in the order in which they were typed; those
    with several values are also in choices or ranges."""
    config_dir: Path | None = None
    """Folder of the user's own presets."""
    choices: dict[str, tuple[str, ...]]
    """Values of the options with several values."""
    ranges: dict[str, RangeConfig]
    """Ranges of options."""
    out: Path | None = None
    """Folder of the sweep's logs and results, and of a study's runs; by default in sweeps/."""
    n_trials: PositiveInt | None = None
    """Number of Optuna trials to find the best values, including failed and pruned ones, instead
    of training all combinations; 20 if a range is given. A larger number adds trials."""

    @property
    def is_study(self) -> bool:
        """Return True if Optuna chooses the values."""
        return self.n_trials is not None or bool(self.ranges)

    @property
    def trials(self) -> int:
        """Return the number of trials of a study."""
        return self.n_trials or DEFAULT_TRIALS

    @property
    def swept(self) -> tuple[str, ...]:
        """Return the options with several values, in the order in which they were typed."""
        names = [key for key, _ in self.options if key in self.choices or key in self.ranges]
        return tuple(dict.fromkeys(names))

    @property
    def plan(self) -> list[str]:
        """Return the arguments that distinguish this sweep from others."""
        words = [f"{key}={value}" for key, value in self.options]
        if self.config_dir is not None:
            words.append(f"{CONFIG_DIR}={self.config_dir}")
        return words + (["study"] if self.is_study else [])

    @property
    def folder(self) -> Path:
        """Return the folder of the sweep: ``out``, or a separate one per set of arguments."""
        if self.out is not None:
            return self.out
        checksum = f"{zlib.crc32(' '.join(self.plan).encode()):08x}"
        parts = [key.rpartition(".")[2] for key in self.swept]
        name = short_file_name("-".join(["study" if self.is_study else "grid", *parts]), 80)
        return DEFAULT_FOLDER / f"{name}-{checksum}"

    def words(self, settings: Mapping[str, str]) -> list[str]:
        """Return the arguments of train.py with a value for each swept option.

        Args:
            settings: the values by the names of the options.
        """
        words = [f"{key}={settings.get(key, value)}" for key, value in self.options]
        if self.config_dir is not None:
            words.append(f"{CONFIG_DIR}={self.config_dir}")
        return words


def is_multirun(argv: Sequence[str]) -> bool:
    """Return True if the arguments of train.py ask for several runs.

    Args:
        argv: command-line arguments.
    """
    return any(word in MULTIRUN for word in argv)


def parse_sweep(argv: Sequence[str]) -> SweepConfig:
    """Build the configuration of ``train.py --multirun``.

    Args:
        argv: command-line arguments.

    Returns:
        The valid configuration; each of its runs has been composed.

    Raises:
        ConfigError: if an argument is invalid.
    """
    words, config_dir = split_config_dir([word for word in argv if word not in MULTIRUN])
    values: dict[str, object] = {"config_dir": config_dir}
    options: dict[str, str] = {}
    choices: dict[str, tuple[str, ...]] = {}
    ranges: dict[str, RangeConfig] = {}
    for key, value in parse_overrides(words):
        if add_engine_word(values, key, value):
            continue
        if key in OWN_WORDS:
            values[key] = value
            continue
        options.pop(key, None)  # the last value of an option counts, as in a single run
        choices.pop(key, None)
        ranges.pop(key, None)
        options[key] = value
        parsed = parse_values(key, value)
        if isinstance(parsed, RangeConfig):
            ranges[key] = parsed
        elif len(parsed) > 1:
            choices[key] = parsed
    values |= {"choices": choices, "ranges": ranges, "options": tuple(options.items())}
    config = _with_steps_as_choices(validate(SweepConfig, values))
    if not config.swept:
        raise ConfigError(
            "--multirun: expected an option with several values, e.g. fusion=film,bilinear or "
            "seed=0,1,2 (lists as 'sites=[map],[heads]'), or with a range, e.g. "
            "'agent.learning_rate=interval(1e-4,1e-3)'"
        )
    if config.is_study:
        _check_study(config)
    else:
        sweep_runs(config)
    return config


def parse_values(key: str, value: str) -> tuple[str, ...] | RangeConfig:
    """Parse the values of an argument of a sweep.

    Args:
        key: the option.
        value: the text after the equals sign: one value, several as ``a,b`` or ``choice(a,b)``, or
            a range in Hydra's syntax: ``interval(1e-4,1e-3)``, ``tag(log,interval(1e-4,1e-3))``,
            ``int(interval(16,64))``, ``range(1,5)``.

    Returns:
        The values as they are typed for single runs, or the range.

    Raises:
        ConfigError: the range cannot be read.
    """
    types = option_types([TrainConfig])
    if value.startswith("choice(") and value.endswith(")"):
        return _split(key, value[len("choice(") : -1])
    if key in types.texts or key in types.text_lists:
        return (value,)
    if RANGE.match(value):
        return _parse_range(key, value, key in types.integers)
    values = _split(key, value)
    # a list may omit its brackets, so only values in brackets are several lists
    if key in types.lists and not all(part.startswith("[") for part in values):
        return (value,)
    return values


def _split(key: str, value: str) -> tuple[str, ...]:
    values = tuple(part.strip() for part in split_outside_brackets(value))
    if len(values) > 1 and ("" in values or len(set(values)) < len(values)):
        raise ConfigError(f"{key}: expected different values joined by commas, got '{value}'")
    return values


def _parse_range(key: str, value: str, integer: bool) -> RangeConfig:
    # imported on use, because Hydra takes long to import
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import IntervalSweep, RangeSweep
    from hydra.errors import HydraException

    expected = (
        f"{key}: expected a range such as interval(0.1,0.9), tag(log,interval(1e-4,1e-2)), "
        f"int(interval(16,64)) or range(1,5), got '{value}'"
    )
    try:
        parsed = OverridesParser.create().parse_override(f"++key={value}").value()
    except (HydraException, RecursionError):
        raise ConfigError(expected) from None
    match parsed:
        case IntervalSweep(start=int() | float() as low, end=int() | float() as high) if (
            parsed.tags <= {"log"}
        ):
            is_integer = integer or (isinstance(low, int) and isinstance(high, int))
            kind = {"low": low, "high": high, "log": "log" in parsed.tags, "integer": is_integer}
            step = None
        case RangeSweep(start=int() | float() as low, stop=int() | float() as stop) if (
            not parsed.tags and not parsed.shuffle
        ):
            # the end is not part of the range, but rounding may add it
            numbers = [n for n in parsed.range() if round(float(n), DIGITS) != stop]
            if len(numbers) < 2:
                raise ConfigError(f"{key}: expected a range of two or more values, got '{value}'")
            is_integer = all(float(number).is_integer() for number in (low, stop, parsed.step))
            step = float(parsed.step)
            # the sum of many steps is not exact
            high = round(low + step * (len(numbers) - 1), DIGITS)
            kind = {"low": low, "high": high, "integer": is_integer}
        case _:
            raise ConfigError(expected)
    try:
        return validate(RangeConfig, {**kind, "step": step})
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from None


def _with_steps_as_choices(config: SweepConfig) -> SweepConfig:
    """Replace ranges with steps by all of their values, if a grid has no other ranges."""
    is_grid = config.n_trials is None
    if not is_grid or any(each.step is None for each in config.ranges.values()):
        return config
    steps = {key: tuple(each.values()) for key, each in config.ranges.items()}
    return config.model_copy(update={"choices": {**config.choices, **steps}, "ranges": {}})


# --------------------------------------------------------------------------------------------- runs


def sweep_runs(config: SweepConfig) -> list[SweepRun]:
    """Return the runs of a grid: all combinations of the values.

    A run has the name that ``train.py`` would give it for the same arguments, so that both continue
    the same run. If that name does not state a swept option, ``name=`` is added to the arguments.

    Args:
        config: the configuration of a grid.

    Returns:
        The runs; the value of the last option changes fastest.

    Raises:
        ConfigError: an argument is invalid, or two runs have the same name.
    """
    names = config.swept
    values = [config.choices[name] for name in names]
    number = 1
    for each in values:
        number *= len(each)
    if number > MAX_RUNS:
        raise ConfigError(f"expected at most {MAX_RUNS:,} runs, got {number:,}; give fewer values")
    settings = [dict(zip(names, each, strict=True)) for each in product(*values)]
    is_named = any(key == "name" for key, _ in config.options)
    labeled = [name for name in names if is_named or name not in IN_NAME]
    runs = [_run_of(config, each, labeled) for each in settings]
    if len({run.name for run in runs}) < len(runs):
        # several presets of the same kind share its name
        runs = [_run_of(config, each, names) for each in settings]
    found: set[str] = set()
    for run in runs:
        if run.name in found:
            raise ConfigError(f"two runs of the sweep have the name '{run.name}'")
        found.add(run.name)
    return runs


def _run_of(config: SweepConfig, settings: dict[str, str], labeled: Sequence[str]) -> SweepRun:
    words = config.words(settings)
    composed = compose(words, settings)
    if labeled:
        parts = [composed.run_name]
        for key in labeled:
            parts.append(file_name(f"{key.rpartition('.')[2]}{settings[key]}"))
        name = short_file_name("-".join(parts), MAX_NAME)
        words.append(f"name={name}")
        composed = composed.model_copy(update={"name": name})
    assert re.fullmatch(RUN_NAME, composed.run_name), composed.run_name
    return SweepRun(composed, settings, tuple(words))


def compose(words: Sequence[str], settings: Mapping[str, str]) -> TrainConfig:
    """Compose the configuration of a run of a sweep.

    Args:
        words: arguments of train.py.
        settings: values of the swept options, which an error names.

    Returns:
        The valid configuration.

    Raises:
        ConfigError: if an argument is invalid.
    """
    try:
        return compose_train(words)
    except ConfigError as error:
        raise ConfigError(f"{describe(settings)}: {error}") from None


def describe(settings: Mapping[str, str]) -> str:
    """Return the values of the swept options as they are typed.

    Args:
        settings: the values by the names of the options.
    """
    return " ".join(f"{key}={value}" for key, value in settings.items())


def _check_study(config: SweepConfig) -> None:
    """Compose runs with both bounds and with every choice, so that mistakes are reported early."""
    if "seed" in config.swept:
        raise ConfigError(
            "seed: a study of several seeds would choose the luckiest; give one, and train the "
            "best values with others"
        )
    for key, _ in config.options:
        if key in SET_BY_STUDY:
            raise ConfigError(f"{key}=: {SET_BY_STUDY[key]}")
    first = {key: values[0] for key, values in config.choices.items()}
    for bound in ("low", "high"):
        ends = {key: each.typed(getattr(each, bound)) for key, each in config.ranges.items()}
        settings = {**first, **ends}
        compose(config.words(settings), settings)
        for key, values in config.choices.items():
            for value in values:
                compose(config.words({**settings, key: value}), {key: value})
