"""What every configuration is: frozen, closed to unknown fields, documented by the text under each field."""

from pydantic import BaseModel, ConfigDict


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
