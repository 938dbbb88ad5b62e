"""Run directories of earlier versions evaluate, resume and load."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mirl.agents import load_policy, train
from mirl.agents.runs.migration import (
    check_schema_version,
    current_weight_name,
    migrate_state,
    migrate_weight_names,
)
from mirl.agents.runs.run_directory import RunDirectory

GOLDEN = Path(__file__).parents[2] / "golden"
"""Run directories that earlier versions wrote."""


def test_schema_1_loads_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(GOLDEN / "schema_1", tmp_path / "runs" / "schema_1")
    monkeypatch.chdir(tmp_path)
    run = RunDirectory.open(Path("runs/schema_1"))
    checkpoint = run.checkpoint("best")
    assert checkpoint.version == 1
    assert checkpoint.spaces() is None
    policy = load_policy("runs/schema_1", device="cpu")
    for name, weight in load_file(checkpoint.policy_path).items():
        assert torch.equal(policy.state_dict()[name], weight)
    last = run.latest_valid_checkpoint()
    assert last is not None
    assert last.folder == checkpoint.folder
    # it was finished, and is left as it is
    config = run.config.model_copy(update={"name": "schema_1"})
    assert train(config)[:2] == (256, True)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("action_net.fusion.read.weight", "action_net.fusion.output.weight"),
        ("read.bias", "output.bias"),
        ("features_extractor.encoder.normalise.mean", "features_extractor.encoder.normalize.mean"),
        ("context.normalise.variance", "context.normalize.variance"),
        ("context.normalise.count", "context.normalize.count"),
        ("encoder.spread.weight", "encoder.spread.weight"),
        ("thread.weight", "thread.weight"),
        ("read.other", "read.other"),
    ],
)
def test_weight_names_are_migrated(old: str, new: str) -> None:
    assert current_weight_name(old) == new
    assert migrate_weight_names({old: 1}) == {new: 1}
    assert current_weight_name(new) == new


def test_colliding_weight_names_are_rejected() -> None:
    with pytest.raises(ValueError, match="two weights have the same name"):
        migrate_weight_names({"read.weight": 1, "output.weight": 2})


def test_sampling_state_is_migrated() -> None:
    old = {"sampling": {"sampling": "slots"}, "num_timesteps": 3}
    assert migrate_state(old, 2) == {"sampling": {"sampling": "fixed"}, "num_timesteps": 3}
    assert migrate_state(old, 3) is old
    other = {"sampling": {"sampling": "uniform", "seed": 1}}
    assert migrate_state(other, 1) == other


@pytest.mark.parametrize("state", [{}, {"sampling": 1}, {"sampling": {"sampling": []}}])
def test_odd_sampling_state_is_kept(state: dict[str, object]) -> None:
    """A sampling state of an unexpected form is kept, for the loader to report it."""
    assert json.loads(json.dumps(migrate_state(state, 1))) == state


@pytest.mark.parametrize("version", [0, 4, "3", None, [1], 1.5])
def test_unknown_schema_version_is_rejected(version: object) -> None:
    with pytest.raises(ValueError, match="expected one from 1 to 3"):
        check_schema_version(version, "a checkpoint")
