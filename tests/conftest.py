"""What every test module shares: the shapes in the networks' signatures are checked while the tests run."""

import pytest
import torch
from jaxtyping import install_import_hook

# extractor and policy stay out: they tell users' mistakes in their own words, before a type checker should
CHECKED = ("contexts", "encoders", "interactions", "positions")
TYPE_CHECKER = (
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"  # an int where a float is asked for
)
install_import_hook([f"mirl.policies.{module}" for module in CHECKED], TYPE_CHECKER)

torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    # gymnasium's Dict derives from typing.Mapping, which beartype finds old-fashioned
    config.addinivalue_line("filterwarnings", "ignore::beartype.roar.BeartypeDecorHintPep585DeprecationWarning")
