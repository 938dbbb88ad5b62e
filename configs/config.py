"""What every configuration is: frozen, closed to unknown fields, documented by the text under each field."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Width = Annotated[int, Field(ge=1, le=2**16)]
"""Of a layer; a number beyond is a slip, or a stranger's."""
Widths = Annotated[tuple[Width, ...], Field(max_length=16)]
"""Of layers, one upon the other."""
NoBrackets = BeforeValidator(lambda given: (given,) if isinstance(given, str) else given)
"""Of a list of names: a single one may stand by itself."""


class Config(BaseModel):
    """Frozen, closed to unknown fields, documented by the text under each field."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        validate_default=True,
        coerce_numbers_to_str=True,  # name=123
    )
