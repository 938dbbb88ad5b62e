"""Base class and shared field types of every configuration."""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from mirl.configs.errors import ConfigError


def _to_tuple(value: object) -> object:
    """Return a single name or number as a tuple of one; return any other value unchanged."""
    if isinstance(value, str | int):
        return (value,)
    return value


Width = Annotated[int, Field(ge=1, le=2**16)]
"""Size of a layer. The upper bound rejects typos and malicious files."""
Depth = Annotated[int, Field(ge=1, le=64)]
"""Number of equal layers, with an upper bound for the same reason."""
AllowSingle = BeforeValidator(_to_tuple)
"""Accept ``sites=map`` for ``sites=[map]``, and ``net_arch=64`` for ``net_arch=[64]``."""
Widths = Annotated[tuple[Width, ...], Field(max_length=16), AllowSingle]
"""Sizes of consecutive layers, first layer first."""

Explain = Callable[[type[BaseModel], ErrorDetails], str]
_explanations: list[Explain] = []
"""The function that explains an error; it knows the config classes, so it cannot be imported."""


def explain_errors_by(explain: Explain) -> None:
    """Set the function that explains the errors of constructors.

    Args:
        explain: returns one line about one error of a config class.
    """
    _explanations[:] = [explain]


class Config(BaseModel):
    """A frozen configuration without unknown fields.

    The string under a field is its documentation; ``--help`` prints its first paragraph.

    Args:
        options: the fields.

    Raises:
        ConfigError: if a value is invalid or an option is unknown.
    """

    model_config = ConfigDict(
        frozen=True,  # a validated config cannot become invalid later
        extra="forbid",  # a misspelled option is an error
        use_attribute_docstrings=True,  # for --help
        allow_inf_nan=False,  # infinity would pass every lower bound
        validate_default=True,
        coerce_numbers_to_str=True,  # name=123 is a valid name
    )

    def __init__(self, **options: Any) -> None:
        try:
            super().__init__(**options)
        except ValidationError as error:
            detail = error.errors()[0]
            problem = detail["msg"]
            for explain in _explanations:
                problem = explain(type(self), detail)
            raise ConfigError(f"{type(self).__qualname__}: {problem}") from error

    # pydantic does not call a constructor with this mark when it builds nested configs, so an
    # error inside of them keeps its location
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]
