"""An agent whose context is read from sentence embeddings: trained, stored, resumed, evaluated."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from run_setup import evaluate_at
from safetensors.torch import load_file

from mirl.agents import load_policy
from mirl.agents.training import train
from mirl.configs.networks import SentenceContextConfig
from mirl.configs.schema import EvalConfig, TrainConfig
from mirl.policies.text import sentences


@pytest.mark.parametrize("encoder", ["tokens", "vector"])
def test_sentence_agent_resumes_and_evaluates(
    tiny: Callable[..., TrainConfig], encoder: str
) -> None:
    """A run that lost its last checkpoint resumes to the same weights, and evaluates."""
    for package in sentences.PACKAGES:
        pytest.importorskip(package)
    words = ["context=sentence", f"context.encoder={encoder}", "checkpoint_every=128"]
    config = tiny(*words, "total_timesteps=256")
    trained = train(config)
    run, checkpoint = trained.run, trained.checkpoint
    assert (trained.timesteps, trained.finished) == (256, True)
    assert isinstance(run.config.context, SentenceContextConfig)
    assert run.config.task.text_form == "utf8"
    weights = load_file(checkpoint.folder / "policy.safetensors")
    # MiniLM is loaded from its package, and is no part of a run
    assert not any(tensor.numel() > 100_000 for tensor in weights.values())

    shutil.rmtree(checkpoint.folder)
    again = train(config)
    assert (again.timesteps, again.finished) == (256, True)
    resumed = load_file(again.checkpoint.folder / "policy.safetensors")
    assert weights.keys() == resumed.keys()
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)

    policy = load_policy(run.path, "last", "cpu")
    loaded = policy.state_dict()
    assert all(torch.equal(weights[name], loaded[name]) for name in weights)
    evaluation = EvalConfig(run=run.path, checkpoint="last", episodes=2, n_envs=2, device="cpu")
    results, written = evaluate_at(evaluation)
    assert [len(result.returns) for result in results] == [2]
    assert all(Path(path).exists() for path in written)
