"""Checks of the array shapes in signatures at run time, and settings of all tests."""

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

# extractor, policy and routing are left out: they report invalid arguments in their own words
POLICY_MODULES = (
    "contexts",
    "encoders",
    "features",
    "fusions",
    "grouped_matmul",
    "memory.core",
    "memory.episodes",
    "memory.fast_weights",
    "memory.lstm",
    "memory.mi_lstm",
    "memory.window_attention",
    "positions",
)
# beartype accepts an int for a float only with this option (PEP 484)
TYPE_CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
ON_POLICY_MODULES = [
    "mirl.agents.on_policy.a2c",
    "mirl.agents.on_policy.advantages",
    "mirl.agents.on_policy.losses",
    "mirl.agents.on_policy.ppo",
    "mirl.agents.on_policy.rollout_buffer",
]
CHECKED = [f"mirl.policies.{module}" for module in POLICY_MODULES] + ON_POLICY_MODULES
for checked in CHECKED:  # the hook ignores a module that does not exist
    path = Path(__file__).parents[1].joinpath(*checked.split(".")[1:])
    exists = path.is_dir() or path.with_suffix(".py").exists()
    assert exists, f"conftest.py checks shapes in {checked}, which does not exist"
install_import_hook(CHECKED, TYPE_CHECKER)

sys.path.insert(0, str(Path(__file__).parent))  # to import the helper modules in this folder
torch.set_num_threads(1)
# a busy machine takes long for a single example now and then
settings.register_profile("busy", deadline=None)
settings.load_profile("busy")


def pytest_configure(config: pytest.Config) -> None:
    """Ignore two warnings that are of no interest in tests."""
    # gymnasium's Dict derives from typing.Mapping, which beartype calls deprecated
    config.addinivalue_line(
        "filterwarnings", "ignore::beartype.roar.BeartypeDecorHintPep585DeprecationWarning"
    )
    # expected of tiny networks, or on a busy machine
    config.addinivalue_line("filterwarnings", "ignore:the network is idle")
