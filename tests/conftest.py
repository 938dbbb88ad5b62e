"""What every test module shares: the shapes in the networks' signatures are checked while the tests run."""

import sys
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

# extractor, policy and routing stay out: they tell users' mistakes in their own words, before a type checker should
CHECKED = (
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
# by PEP 484 an int will do where a float is asked for
TYPE_CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
LOOP = [
    "mirl.agents.on_policy.a2c",
    "mirl.agents.on_policy.advantages",
    "mirl.agents.on_policy.losses",
    "mirl.agents.on_policy.ppo",
    "mirl.agents.on_policy.rollout_buffer",
]
install_import_hook([*(f"mirl.policies.{module}" for module in CHECKED), *LOOP], TYPE_CHECKER)

sys.path.insert(0, str(Path(__file__).parent))  # for the helper modules beside this file
torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    # gymnasium's Dict derives from typing.Mapping, which beartype finds old-fashioned
    config.addinivalue_line(
        "filterwarnings", "ignore::beartype.roar.BeartypeDecorHintPep585DeprecationWarning"
    )
    # true of tiny networks, or of a busy machine
    config.addinivalue_line("filterwarnings", "ignore:the network is idle")
