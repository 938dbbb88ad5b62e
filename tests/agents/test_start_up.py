"""A process loads nothing slow before it needs it."""

import subprocess
import sys

SLOW = ("envpool", "matplotlib", "scipy.stats", "torch._dynamo")
"""Modules that take seconds to load."""
BUILD = f"""
import sys
from mirl.envs.pools import workers
assert "torch" not in sys.modules, "worker processes need no torch"

from mirl.agents.builder import build_policy, resolve_auto
from mirl.configs.compose import compose_train
from mirl.envs import choose_backend
from mirl.envs.suite_spaces import joined_spaces

config = compose_train(["task=MIRL/ReachCell-v0"])
backend = choose_backend(config.task, config.backend)
joined = joined_spaces(config.task, backend)
resolved = resolve_auto(config, joined.observation)
policy = build_policy(resolved, joined.observation, joined.action)
print(backend, [name for name in {SLOW} if name in sys.modules])
"""


def test_acting_loads_nothing_slow() -> None:
    """Worker processes do without torch, and a policy without torch's compiler."""
    done = subprocess.run(
        [sys.executable, "-c", BUILD], capture_output=True, text=True, check=False
    )
    assert done.stdout == "gymnasium []\n", done.stderr
