"""Base class and shared field types of every configuration."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _to_tuple(value: object) -> object:
    """Return a single name as a tuple of one; return any other value unchanged."""
    if isinstance(value, str):
        return (value,)
    return value


Width = Annotated[int, Field(ge=1, le=2**16)]
"""Size of a layer. The upper bound rejects typing errors and hostile files."""
Widths = Annotated[tuple[Width, ...], Field(max_length=16)]
"""Sizes of consecutive layers, first layer first."""
AllowSingleName = BeforeValidator(_to_tuple)
"""Accept ``sites=map`` for ``sites=[map]``."""


class Config(BaseModel):
    """A frozen configuration without unknown fields.

    The string under a field is its documentation; ``--help`` prints its first paragraph.
    """

    model_config = ConfigDict(
        frozen=True,  # what was validated cannot become invalid later
        extra="forbid",  # a misspelled option is an error
        use_attribute_docstrings=True,  # for --help
        allow_inf_nan=False,  # infinity would pass every lower bound
        validate_default=True,
        coerce_numbers_to_str=True,  # name=123 is a valid name
    )
